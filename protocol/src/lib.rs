//! The protocol of the half-message store: what a record says, and what follows from it.
//!
//! No I/O, no clock, no async: time and records come in as parameters, commands go out as values.
//! The program's resolver, its tests and its simulations drive this same code.
//!
//! # Layout
//! - [`ids`]: transaction id, half offset, epoch
//! - [`record`]: the records of the store
//! - [`codec`]: their bytes; versioned, checked, skippable fields
//! - [`ledger`]: the state of one partition as a fold over its records; progress (L, P)
//! - [`schedule`]: when the next check of a half message is due
//! - [`core`]: the resolver of one partition: events in, commands out

pub mod codec;
pub mod core;
mod hash;
pub mod ids;
pub mod ledger;
pub mod record;
pub mod schedule;

pub use crate::core::{
    Answer, Command, CoreConfig, Event, NotAsked, Question, ResolverCore, Takeover,
};
pub use crate::schedule::Backoff;
pub use codec::{DecodeError, HEADER, LOCAL_TRANSACTION_ID_HEADER, TRANSACTION_ID_HEADER};
pub use ids::{Epoch, HalfOffset, TransactionId};
pub use ledger::{
    Closed, Half, History, Ignored, Ledger, Open, Outcome, ParkedHalf, ParkedState, PastStep,
    Print, Progress,
};
pub use record::{
    AskedBy, Body, CheckOutcome, Checked, Decision, HalfMeta, HalfRef, Origin, Park, ParkCause,
    Record, Reopen, Verdict,
};

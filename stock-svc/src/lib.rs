//! stock-svc: products, stock, and the deductions that a rolled-back or cancelled order gives back.
//!
//! The one invariant: for every sku, received = available + what is deducted and not restored;
//! and available is never negative. It holds because a deduction and its restore meet at one row,
//! the barrier ([`store::barrier`]), whatever their order, however often each comes.
//!
//! # Layout
//! - [`settings`]: every setting and its check; [`seed`] is the demonstration's stock
//! - [`service`]: start, serve, stop
//! - [`http`]: the routes
//! - [`deduct`]: the handler of the topic by which orders ask for their stock, and its answers
//! - [`group_commit`]: deductions over HTTP that wait at the same time share a transaction
//! - [`restore`]: the handler of the topic that asks for restores
//! - `locked`: which messages of a batch somebody else's lock is to blame for
//! - [`store`]: everything that is said to the database
//! - [`model`]: items, refusals, and what the database keeps of them
//! - [`fault`]: induced failures
//! - [`metrics`]: what is counted
//! - `scenarios`: what must hold at the barrier, on any database; only for tests

pub mod deduct;
pub mod fault;
pub mod group_commit;
pub mod http;
pub mod metrics;
pub mod model;
pub mod restore;
pub mod seed;
pub mod service;
pub mod settings;
pub mod store;

mod locked;

#[cfg(any(test, feature = "scenarios"))]
pub mod scenarios;

#[cfg(test)]
mod tests;

pub use service::{Service, main, run};
pub use settings::Settings;

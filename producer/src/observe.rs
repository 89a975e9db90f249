//! A hook for whoever wants to show the lives of half messages as they happen.
//!
//! It tells; it must never be asked, waited for, or believed instead of the store: after a crash,
//! or where another replica owns a partition, steps are missing here, and [`crate::Admin`] knows.

use halfmsg_protocol::{Origin, Verdict};

use crate::TransactionId;
use crate::transaction::LocalOutcome;

/// Hears each step in the lives of half messages, as this process takes or reads it.
///
/// It is called on the threads that do the work, the resolver's among them: it must return at once,
/// and never block. A panic is caught and logged. A bounded queue that drops its oldest entry is the right thing
/// behind it. Without an observer a step costs one comparison.
///
/// [`LifeStep::Stored`], [`LifeStep::LocalTransaction`] and the check that follows a local
/// transaction at once are told by the process that runs the local transaction; all else by the
/// owner of the store's partition, when it reads the record or has carried it out. A next owner tells
/// again what the stored progress does not cover, and nothing else of what was before it.
///
/// ```
/// use std::sync::mpsc::SyncSender;
/// use halfmsg_producer::{LifeEvent, LifeObserver, LifeStep};
///
/// struct Deliveries(SyncSender<String>);
///
/// impl LifeObserver for Deliveries {
///     fn observe(&self, event: &LifeEvent<'_>) {
///         if let LifeStep::Delivered { .. } = event.step {
///             // Full: whoever reads is too slow, and the delivery does not wait for it.
///             let _ = self.0.try_send(event.transaction_id.to_string());
///         }
///     }
/// }
/// ```
pub trait LifeObserver: Send + Sync + 'static {
    /// A step was taken.
    fn observe(&self, event: &LifeEvent<'_>);
}

/// One step in the life of one half message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LifeEvent<'a> {
    /// The message.
    pub transaction_id: TransactionId,
    /// Its ordering key; of a message that memory has no room for, only a short one.
    pub key: Option<&'a [u8]>,
    /// When it happened, in milliseconds since the epoch. [`LifeStep::Stored`], [`LifeStep::Decided`],
    /// [`LifeStep::Dropped`], [`LifeStep::Reopened`] and, unless its target refused it, [`LifeStep::Parked`]
    /// have the time of their record in the store, told again or not: the broker's clock, if the store has
    /// `message.timestamp.type=LogAppendTime`. The others have this process's.
    ///
    /// None where nobody knows: of a delivery that an earlier owner of the partition may have made already.
    pub at_ms: Option<i64>,
    /// What happened.
    pub step: LifeStep<'a>,
}

/// What happened to a half message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum LifeStep<'a> {
    /// Its HALF is acknowledged; the local transaction may begin.
    Stored {
        /// The kind of local transaction.
        purpose: &'a str,
        /// Where it goes if it is committed.
        topic: &'a str,
        /// The store's partition.
        partition: i32,
        /// The offset of its HALF.
        offset: i64,
    },
    /// The call of the local transaction has ended, or was given up.
    LocalTransaction {
        /// How.
        outcome: &'a LocalOutcome,
    },
    /// The listener was asked. `commit` and `rollback` become a decision, `unknown` counts as an attempt,
    /// `failed` is asked again. An answer to a message that was decided meanwhile is not told.
    Checked {
        /// `commit`, `rollback`, `unknown` or `failed`.
        answer: &'static str,
        /// What the listener said; may be empty.
        reason: &'a str,
    },
    /// The first decision was read in the store. It holds.
    Decided {
        /// Which way.
        verdict: Verdict,
        /// Who said so.
        by: Origin,
        /// The operator's name, if a person decided.
        operator: Option<&'a str>,
        /// Why; may be empty.
        reason: &'a str,
    },
    /// Its topic has it, since this moment or, if somebody was quicker to read it, a little before.
    Delivered {
        /// The topic.
        topic: &'a str,
    },
    /// Rolled back: nothing was or will be sent.
    Dropped,
    /// Given up on, or its target refuses it: an operator decides.
    Parked {
        /// Such as `max_checks` or `undeliverable`.
        cause: &'static str,
        /// In words.
        reason: &'a str,
    },
    /// An operator opened the parked message again.
    Reopened {
        /// Who.
        operator: &'a str,
        /// Why.
        reason: &'a str,
    },
}

//! What goes into a resolver core and what comes out: its settings, events and commands.

use std::sync::Arc;
use std::time::Duration;

use crate::ids::{HalfOffset, TransactionId};
use crate::ledger::{Half, Ignored, ParkedHalf, ParkedState, Progress};
use crate::record::{Body, HalfRef, Origin, Record};
use crate::schedule::Backoff;

/// When and how often halves are checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CoreConfig {
    /// From storing a half to its first check, if the message does not say otherwise.
    pub check_after: Duration,
    /// Between checks, whether they were answered or failed.
    pub check_backoff: Backoff,
    /// Real attempts before a half is parked.
    pub max_checks: u32,
    /// Age at which a half is parked, after at least one real attempt by this owner; while its
    /// checks fail, only once they have failed for as long.
    pub max_age: Duration,
    /// How long this owner waits for a listener before it parks a half that has none: from when it
    /// has the half. Of one that is older than `max_age` and this together, five minutes are enough.
    pub no_listener_grace: Duration,
    /// Until an attempt that could not be made, or a record that could not be appended, is tried
    /// again.
    pub retry_delay: Duration,
    /// Halves in one question.
    pub check_batch: usize,
    /// Bytes of their bodies in one question; the half that reaches it is the last.
    pub check_batch_bytes: usize,
    /// Questions under way at once.
    pub check_batches: usize,
    /// How long after its decision a copy of a half may still be appended that its application did
    /// not decide. So long its record is not given up: whoever takes over must know the copy for
    /// what it is. Zero where a message may be delivered twice.
    pub copy_window: Duration,
}

/// How a partition is taken over.
#[derive(Debug, Clone)]
pub struct Takeover {
    /// Where replay begins and up to where outcomes are carried out already.
    pub progress: Progress,
    /// What the parked topic says.
    pub parked: Vec<ParkedState>,
    /// The wall clock, milliseconds since the epoch; tells how old a replayed half is.
    pub wall_ms: i64,
    /// The monotonic clock.
    pub now: Duration,
}

/// What a listener said of one half.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The local transaction is committed.
    Commit,
    /// It is not, and never will be.
    Rollback,
    /// It cannot tell yet.
    Unknown(String),
    /// It was asked and failed, panicked or took too long: an attempt that does not count.
    Failed(String),
    /// It was not asked: an attempt that does not count.
    NotAsked(NotAsked),
}

/// Why an attempt could not be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotAsked {
    /// Nobody listens for this application and purpose here.
    NoListener,
    /// The half is being asked about already, or the process is stopping.
    Busy,
    /// It may hang, and there was neither place nor time to ask about it beside the others.
    NoPlace,
    /// An earlier call about it was given up and goes on, so that nobody can ask.
    Blocked,
    /// Its body is not in memory and cannot be read now.
    Unread,
}

/// What happens to a partition.
#[derive(Debug, Clone)]
pub enum Event {
    /// A record of the store.
    Record {
        /// Its offset.
        offset: i64,
        /// When the broker appended it, milliseconds since the epoch.
        appended_ms: i64,
        /// What it says.
        record: Record,
        /// The user's part.
        body: Body,
    },
    /// A record that is none of ours; it is copied to the parked topic and passed.
    Foreign {
        /// Its offset.
        offset: i64,
    },
    /// The end of the log is at this position; control records need no event of their own.
    CaughtUp {
        /// The offset of the next record.
        position: i64,
    },
    /// The outcome of the record at this offset is carried out.
    CarriedOut {
        /// The record.
        at: i64,
    },
    /// The target refuses, for good, the delivery that the decision at this offset led to: the
    /// message is parked, and that is what carries the decision out.
    DeliveryRefused {
        /// The decision.
        at: i64,
        /// What the broker said.
        reason: String,
        /// The wall clock, milliseconds since the epoch.
        wall_ms: i64,
    },
    /// The answer about one half that was asked.
    Answered {
        /// The half and life that was asked about.
        of: HalfRef,
        /// The answer.
        answer: Answer,
    },
    /// A question is over, whatever it gave.
    BatchOver,
    /// A record that was to be appended was not, as far as is known.
    AppendFailed {
        /// The half that it was about.
        of: HalfRef,
    },
    /// Ask about this half now.
    CheckNow {
        /// The half.
        half: HalfOffset,
    },
    /// Time has passed.
    Tick,
}

/// One half to ask about.
#[derive(Debug, Clone)]
pub struct Question {
    /// The half and its life.
    pub of: HalfRef,
    /// The message.
    pub half: Arc<Half>,
    /// Attempts already made.
    pub attempts: u32,
}

/// What is to be done.
#[derive(Debug, Clone)]
pub enum Command {
    /// Send the message to its target, then report [`Event::CarriedOut`] or
    /// [`Event::DeliveryRefused`]. With `settled`, mark it in the parked topic as well.
    Deliver {
        /// The decision's offset.
        at: i64,
        /// The message.
        half: Arc<Half>,
        /// What the parked topic is to say.
        settled: Option<HalfRef>,
    },
    /// A rolled-back message had been parked: mark it in the parked topic.
    Settle {
        /// The decision's offset.
        at: i64,
        /// What the parked topic is to say.
        settled: HalfRef,
    },
    /// Write the message to the parked topic.
    WriteParked {
        /// The PARK's offset.
        at: i64,
        /// The message.
        parked: ParkedHalf,
    },
    /// Copy the record at this offset, which is none of ours, to the parked topic.
    CopyForeign {
        /// The record.
        at: i64,
    },
    /// Ask the listener about these halves; report one [`Event::Answered`] each, then
    /// [`Event::BatchOver`].
    Ask(Vec<Question>),
    /// Append this record to the partition; report only a failure.
    Append(Record),
    /// Report to people: a record was ignored.
    Note {
        /// The message that it was about.
        id: TransactionId,
        /// The ignored record's offset.
        at: i64,
        /// Why.
        why: Ignored,
    },
    /// Report to people: the message was dropped.
    Dropped {
        /// The message.
        half: Arc<Half>,
        /// Who decided.
        origin: Origin,
        /// Why.
        reason: String,
    },
}

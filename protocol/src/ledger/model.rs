//! What a ledger holds and says: half messages in their states, progress, outcomes.

use std::sync::Arc;

use super::history::History;
use super::print::Print;
use crate::ids::{Epoch, HalfOffset};
use crate::record::{Body, CheckOutcome, HalfMeta, HalfRef, Park, ParkCause, Record};

/// A half message: what is ours and what is the user's. Shared, never changed.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Half {
    /// What is ours.
    pub meta: Arc<HalfMeta>,
    /// The user's part; of a stub, at most the key.
    pub body: Body,
    /// The offset of its HALF record: its identity in the partition.
    pub offset: HalfOffset,
    /// The offset of the record that has the whole body: its HALF, or its last REOPEN. Of a parked
    /// message it is the parked topic that has it.
    pub stored_at: i64,
    /// Bytes of the whole body.
    pub bytes: usize,
    /// What tells a copy of it from another message of the same id.
    pub print: Print,
    /// The body is not kept in memory: it is read again when it is needed.
    pub is_stub: bool,
}

/// The longest key that a stub keeps, in bytes.
pub const STUB_KEY_BYTES: usize = 256;

impl Half {
    /// A message with its whole body.
    pub fn new(meta: Arc<HalfMeta>, body: Body, offset: HalfOffset, stored_at: i64) -> Self {
        let bytes = body.len();
        let print = Print::of(&meta, body.key.as_ref(), body.payload.as_deref());
        Self { meta, body, offset, stored_at, bytes, print, is_stub: false }
    }

    /// The same without its body, but for a short key.
    #[must_use]
    pub fn stub(&self) -> Self {
        let key = self.body.key.as_ref().filter(|key| key.len() <= STUB_KEY_BYTES);
        // A copy, because a slice of the record would keep all of it in memory.
        let key = key.map(|key| bytes::Bytes::copy_from_slice(key));
        let body = Body { key, ..Body::default() };
        Self { meta: Arc::clone(&self.meta), body, is_stub: true, ..*self }
    }

    /// A stub with the body that was read again.
    #[must_use]
    pub fn with(&self, body: Body) -> Self {
        Self { meta: Arc::clone(&self.meta), body, is_stub: false, ..*self }
    }
}

/// An open half message.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Open {
    /// The message.
    pub half: Arc<Half>,
    /// When the broker appended that record, milliseconds since the epoch.
    pub appended_ms: i64,
    /// Its life.
    pub epoch: Epoch,
    /// Real attempts to ask in this life.
    pub attempts: u32,
    /// What the last attempt gave; while its checks fail, what the first of them said.
    pub last_outcome: Option<(CheckOutcome, String)>,
    /// Since when its checks fail, by the append time of the record that says so; nothing if the
    /// last one was answered.
    pub failing_since_ms: Option<i64>,
    /// What happened to it, in this life and those before.
    pub history: History,
}

impl Open {
    pub(super) fn new(half: Arc<Half>, appended_ms: i64, epoch: Epoch, history: History) -> Self {
        let (attempts, last_outcome, failing_since_ms) = (0, None, None);
        Self { half, appended_ms, epoch, attempts, last_outcome, failing_since_ms, history }
    }
}

/// A message that was given up on, with everything needed to open it again.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ParkedHalf {
    /// The message.
    pub half: Arc<Half>,
    /// The life that was parked.
    pub epoch: Epoch,
    /// Real attempts in that life.
    pub attempts: u32,
    /// Why.
    pub cause: ParkCause,
    /// Why, in words.
    pub reason: String,
    /// The offset of the PARK record; a REOPEN before it is not about this park.
    pub parked_at: i64,
    /// When the PARK record was appended, milliseconds since the epoch.
    pub parked_ms: i64,
    /// What happened to it before.
    pub history: History,
}

impl ParkedHalf {
    /// What happened to it, and that it is parked.
    pub(super) fn whole_history(&self) -> History {
        let of = HalfRef { id: self.half.meta.id, half: self.half.offset, epoch: self.epoch };
        let (attempts, cause, reason) = (self.attempts, self.cause, self.reason.clone());
        let mut history = self.history.clone();
        let park = Record::Park(Park { of, attempts, cause, reason });
        history.push(park, self.parked_at, self.parked_ms);
        history
    }
}

/// What the parked topic says about a message.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ParkedState {
    /// Parked, or open again and not yet settled.
    Parked(ParkedHalf),
    /// Reopened and then settled by the decision at this offset. A REOPEN before it is the one
    /// that led here, a later one is stale. Removed once progress has passed it.
    Settled {
        /// The half's identity.
        of: HalfRef,
        /// The offset of the decision.
        at: i64,
    },
}

/// How far a partition is carried out; stored as committed offset and its metadata.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Progress {
    /// Replay begins here: no record below is needed any more.
    pub low_water: i64,
    /// Every outcome of a record below is carried out and must not be carried out again.
    pub position: i64,
}

/// Why a record changed nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ignored {
    /// The decision agrees with one that was there first.
    Duplicate,
    /// The decision contradicts one that was there first, or comes while the message is parked.
    Conflict,
    /// A decision about a half that is unknown, too old to tell duplicate from conflict.
    LateUnknown,
    /// The transaction id is not that of the half at the offset that is named.
    Mismatch,
    /// It answers another epoch or attempt than the current one.
    Stale,
    /// A message that the log holds already: its client sent it again.
    Copy,
    /// Another message under the id of one that the log holds already: it is lost, because whoever
    /// reads deliveries takes the second one of an id for a repetition.
    Reused {
        /// The message that has the id.
        first: HalfOffset,
    },
}

/// What a record led to.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// A half message is open.
    Opened,
    /// It is committed: deliver it. `settles` if it had been parked before.
    Deliver {
        /// The message.
        half: Arc<Half>,
        /// The parked topic's entry is to be settled too.
        settles: bool,
    },
    /// It is rolled back: never deliver it. `settles` as above.
    Dropped {
        /// The message.
        half: Arc<Half>,
        /// The parked topic's entry is to be settled.
        settles: bool,
    },
    /// An attempt was counted.
    Attempted {
        /// The half.
        half: HalfOffset,
        /// Attempts so far.
        attempts: u32,
    },
    /// Asking failed: no attempt was counted.
    CheckFailed {
        /// The half.
        half: HalfOffset,
    },
    /// It is parked: write it to the parked topic.
    Parked(ParkedHalf),
    /// It is open again.
    Reopened {
        /// The half.
        half: HalfOffset,
    },
    /// Nothing changed.
    Ignored(Ignored),
}

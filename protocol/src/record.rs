//! The records of the half-message store, as values. Their bytes are [`crate::codec`]'s.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::ids::{Epoch, HalfOffset, TransactionId};

/// What is ours about a half message; the user's key, headers and payload are the [`Body`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HalfMeta {
    /// The message's identity.
    pub id: TransactionId,
    /// The application whose listener is asked.
    pub application: String,
    /// The kind of local transaction; it selects the listener.
    pub purpose: String,
    /// The topic that it is delivered to once committed.
    pub topic: String,
    /// The message's timestamp, in milliseconds since the epoch, the user's or the time of the prepare; carried
    /// to the target.
    pub timestamp_ms: i64,
    /// When it is checked first, if not after the group's default.
    pub check_after: Option<Duration>,
    /// The identity of the local transaction, if the message is one of several that share it; else
    /// it is the message's own.
    pub local_transaction: Option<TransactionId>,
}

/// The user's part of a record, byte for byte. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Body {
    /// The ordering key.
    pub key: Option<Bytes>,
    /// The user's headers in their order.
    pub headers: Vec<(String, Option<Bytes>)>,
    /// The payload; none is Kafka's null value.
    pub payload: Option<Bytes>,
}

impl Body {
    /// Bytes of key, headers and payload.
    pub fn len(&self) -> usize {
        let bytes = |value: &Option<Bytes>| value.as_ref().map_or(0, Bytes::len);
        let headers: usize =
            self.headers.iter().map(|(name, value)| name.len() + bytes(value)).sum();
        bytes(&self.key) + headers + bytes(&self.payload)
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Names the half message that a record is about, and the epoch that it answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct HalfRef {
    /// The message's identity; must agree with the half at `half`.
    pub id: TransactionId,
    /// The offset of its HALF record in this partition.
    pub half: HalfOffset,
    /// The life of the message that is meant.
    pub epoch: Epoch,
}

/// Which way a decision goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// Deliver it.
    Commit,
    /// Drop it.
    Rollback,
}

/// Who decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Origin {
    /// The producer, after its local transaction.
    Producer,
    /// The check-back.
    CheckBack,
    /// A person.
    Operator,
}

/// COMMIT or ROLLBACK.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Decision {
    /// The half message that it decides.
    pub of: HalfRef,
    /// Which way.
    pub verdict: Verdict,
    /// Who says so.
    pub origin: Origin,
    /// The operator's name, if a person decided.
    pub operator: Option<String>,
    /// Why; empty if there is nothing to say.
    pub reason: String,
}

/// What asking gave, when it did not decide.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CheckOutcome {
    /// The listener does not know yet.
    Unknown,
    /// The listener failed, panicked or took too long: it could not look.
    Failed,
}

/// CHECKED: the listener was asked and did not decide.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Checked {
    /// The half message that was asked about.
    pub of: HalfRef,
    /// The number of this attempt; the first is 1. One that failed does not count: its number is that
    /// of the last attempt that did, or 0. (Failures once counted; those that were written so still
    /// do, so that every replica folds a log alike.)
    pub attempt: u32,
    /// What it gave.
    pub outcome: CheckOutcome,
    /// What the listener said.
    pub reason: String,
    /// The operator who had it asked; none if it was due.
    pub asked_by: Option<Box<AskedBy>>,
}

/// A person who had the listener asked now.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct AskedBy {
    /// Who.
    pub operator: String,
    /// Why.
    pub reason: String,
}

impl Checked {
    /// The same, asked for by an operator.
    #[must_use]
    pub fn asked_by(self, operator: String, reason: String) -> Self {
        Self { asked_by: Some(Box::new(AskedBy { operator, reason })), ..self }
    }

    /// The listener looked and cannot tell yet: one attempt more than so many.
    pub fn unknown(of: HalfRef, attempts: u32, reason: String) -> Self {
        let attempt = attempts.saturating_add(1);
        Self { of, attempt, outcome: CheckOutcome::Unknown, reason, asked_by: None }
    }

    /// The listener could not look: after so many attempts, and none more.
    pub fn failed(of: HalfRef, attempts: u32, reason: String) -> Self {
        Self { of, attempt: attempts, outcome: CheckOutcome::Failed, reason, asked_by: None }
    }
}

/// Why a half message was given up on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ParkCause {
    /// As many checks as allowed gave no answer.
    MaxChecks,
    /// Older than allowed, and still unanswered.
    MaxAge,
    /// Nobody listens for its application and purpose.
    NoListener,
    /// Committed, but the target refuses it.
    Undeliverable,
}

/// PARK: the resolver gave up.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Park {
    /// The half message.
    pub of: HalfRef,
    /// The attempts counted when it was given up; a park based on another count is stale.
    pub attempts: u32,
    /// Why.
    pub cause: ParkCause,
    /// Why, in words.
    pub reason: String,
}

/// REOPEN: a parked message is open again. The record carries the whole half.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Reopen {
    /// The parked half; its epoch is the one that was parked, the new one is the next.
    pub of: HalfRef,
    /// The half, as first prepared.
    pub meta: Arc<HalfMeta>,
    /// Who reopened it.
    pub operator: String,
    /// Why.
    pub reason: String,
}

/// What the `halfmsg` header of a store record says.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Record {
    /// A prepared message.
    Half(Arc<HalfMeta>),
    /// COMMIT or ROLLBACK.
    Decision(Decision),
    /// An attempt that did not decide.
    Checked(Checked),
    /// Given up.
    Park(Park),
    /// Open again.
    Reopen(Box<Reopen>),
}

impl Record {
    /// The identity of the message that the record is about.
    pub fn id(&self) -> TransactionId {
        match self {
            Record::Half(meta) => meta.id,
            Record::Decision(decision) => decision.of.id,
            Record::Checked(checked) => checked.of.id,
            Record::Park(park) => park.of.id,
            Record::Reopen(reopen) => reopen.of.id,
        }
    }
}

macro_rules! names {
    ($type:ty { $($variant:ident = $name:literal),+ $(,)? }) => {
        impl $type {
            /// The name that people and metrics see.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }
        }
    };
}

names!(Verdict { Commit = "commit", Rollback = "rollback" });
names!(Origin { Producer = "producer", CheckBack = "check-back", Operator = "operator" });
names!(CheckOutcome { Unknown = "unknown", Failed = "failed" });
names!(ParkCause {
    MaxChecks = "max_checks",
    MaxAge = "max_age",
    NoListener = "no_listener",
    Undeliverable = "undeliverable",
});

//! Why an operator's call changed nothing, or is not known to have changed anything.
//!
//! What says that nothing was done must never be told once a record is stored.

use crate::TransactionId;
use crate::snapshot::SnapshotError;

/// Why an operator's call changed nothing, or what is not known of its effect.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AdminError {
    /// No such message, or it is long closed.
    #[error("no half message {0} is known: it never was, or was closed long ago")]
    NotFound(TransactionId),
    /// A topic that must be there is not: most likely group or prefix are not what they should be.
    #[error("{0}; check the group's name and the topic prefix")]
    NoTopic(String),
    /// The check says the opposite.
    #[error(
        "the check says {check}, so {asked} is refused: the local transaction's outcome is known"
    )]
    Contradiction {
        /// What the check says.
        check: &'static str,
        /// What was asked for.
        asked: &'static str,
    },
    /// Nobody can tell.
    #[error("the check gives no answer ({why}): repeat with force if you know the outcome")]
    NeedsForce {
        /// Why not.
        why: String,
    },
    /// It is decided already.
    #[error("{id} is decided already: {decision}")]
    AlreadyClosed {
        /// The message.
        id: TransactionId,
        /// Which way.
        decision: &'static str,
    },
    /// Only a parked message can be resumed.
    #[error("{0} is open, not parked: nothing to resume")]
    NotParked(TransactionId),
    /// Only an open message can be checked.
    #[error("{0} is parked: resume it, and it is checked at once")]
    NotOpen(TransactionId),
    /// Nothing behind a certain record is carried out.
    #[error("the partition is stopped at {0}; nothing behind it is carried out")]
    Stopped(String),
    /// The state of things forbids it.
    #[error("{0}")]
    Refused(String),
    /// A request that is incomplete.
    #[error("{0}")]
    Invalid(&'static str),
    /// Kafka is away; nothing was done.
    #[error("Kafka does not answer: {0}; nothing was done")]
    Unreachable(String),
    /// Not everything could be looked at, so nothing was done.
    #[error("{0}")]
    Incomplete(String),
    /// The store or the resolver did not answer in time; it may be done all the same.
    #[error("not confirmed in time: {0}; look at the message before trying again")]
    Unavailable(String),
    /// The record of the act is stored, which cannot be taken back; its effect could not be looked
    /// at. Doing it again changes nothing: the first decision counts.
    #[error(
        "the record is stored; whether it had its effect could not be seen ({0}): look at the message \
         again"
    )]
    Unseen(String),
}

impl AdminError {
    /// A stable name: the code of the HTTP problem, and of the command line's JSON errors.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotFound(_) => "not_found",
            Self::NoTopic(_) => "no_topic",
            Self::Contradiction { .. } => "contradiction",
            Self::NeedsForce { .. } => "needs_force",
            Self::AlreadyClosed { .. } => "already_closed",
            Self::NotParked(_) => "not_parked",
            Self::NotOpen(_) => "not_open",
            Self::Stopped(_) => "partition_stopped",
            Self::Refused(_) => "refused",
            Self::Invalid(_) => "invalid",
            Self::Unreachable(_) => "kafka_unavailable",
            Self::Incomplete(_) => "incomplete",
            Self::Unavailable(_) => "not_confirmed",
            Self::Unseen(_) => "effect_unseen",
        }
    }

    /// The same, of a look behind the record that was stored.
    pub(crate) fn behind_the_record(self) -> Self {
        Self::Unseen(self.cause())
    }

    /// Why, without what it means for an act.
    pub(crate) fn cause(self) -> String {
        match self {
            Self::Unreachable(why) => format!("Kafka does not answer: {why}"),
            Self::Unavailable(why) | Self::Unseen(why) => why,
            other => other.to_string(),
        }
    }
}

impl From<SnapshotError> for AdminError {
    fn from(error: SnapshotError) -> Self {
        match error {
            SnapshotError::Unreachable(why) => Self::Unreachable(why),
            SnapshotError::NoTopic(why) => Self::NoTopic(why),
            error => Self::Incomplete(error.to_string()),
        }
    }
}

//! Errors of the producer; each says what the caller can do.

use std::time::Duration;

use halfmsg_kafka::TopicError;
use halfmsg_protocol::TransactionId;

use crate::config::ConfigError;
use crate::message::MAX_HEADERS;

/// A message that cannot be sent as it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// Not a name that Kafka accepts.
    #[error("'{0}' is no topic name: 1 to 249 characters of a-z, A-Z, 0-9, '.', '_' and '-'")]
    Topic(String),
    /// More than is reasonable.
    #[error("{0} headers: at most {MAX_HEADERS} are allowed")]
    TooManyHeaders(usize),
    /// A header that halfmsg sets itself.
    #[error("the header '{0}' is set by halfmsg itself: choose another name")]
    ReservedHeader(String),
    /// A name that Kafka's client cannot carry.
    #[error("the header name {0:?} has a NUL character")]
    HeaderName(String),
    /// A check that would race the local transaction.
    #[error("check_after is {after:?}: it must be more than prepare and local deadline, {least:?}")]
    CheckAfter {
        /// What was asked for.
        after: Duration,
        /// What it must exceed.
        least: Duration,
    },
    /// A check that would leave what nobody decides open for longer than the group allows.
    #[error(
        "check_after is {after:?}: it must be at most {most:?}, the more of max_age and the group's check_after"
    )]
    CheckTooLate {
        /// What was asked for.
        after: Duration,
        /// The most.
        most: Duration,
    },
    /// No point in time that a record can have.
    #[error("timestamp_ms is {0}: it must be between 0 and the end of the year 9999")]
    Timestamp(i64),
    /// Key, headers and payload together are over the limit.
    #[error("{bytes} bytes of key, headers and payload: the limit is {max_bytes}")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The limit.
        max_bytes: usize,
    },
    /// An identity that this process has given to another message.
    #[error(
        "the id {0} was given to a message before, which may have been stored: a message needs a \
         fresh one, also where storing it has failed"
    )]
    IdUsed(TransactionId),
    /// A transaction of no message, or of too many.
    #[error("{count} messages in one transaction: 1 to {most} are allowed")]
    MessageCount {
        /// So many were given.
        count: usize,
        /// The limit.
        most: usize,
    },
    /// Only some messages of one transaction have an id of the caller's.
    #[error(
        "{given} of {count} messages in one transaction have an id: give each one, or none; their local \
         transaction is known by all of them"
    )]
    SomeIds {
        /// So many have one.
        given: usize,
        /// So many messages.
        count: usize,
    },
    /// The argument is not what the purpose's listener takes.
    #[error("the listener of purpose '{purpose}' takes a {expected} as its argument")]
    WrongArgument {
        /// The purpose.
        purpose: String,
        /// The type that it takes.
        expected: &'static str,
    },
}

/// Why a half message is not stored. The local transaction has not run.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// The message itself cannot be sent; nothing was stored.
    #[error("the message is refused: {0}")]
    Invalid(#[from] Invalid),
    /// The topic that it is to be delivered to does not exist; nothing was stored.
    #[error("the target topic '{0}' does not exist: create it, or correct the name")]
    UnknownTopic(String),
    /// No listener was registered for the purpose; nothing was stored.
    #[error("nobody listens for purpose '{0}': register a listener when building the producer")]
    NoListener(String),
    /// Too much is under way already; nothing was stored. Try again later.
    #[error("too much is under way: {0}; try again later")]
    Backpressure(String),
    /// Kafka did not acknowledge in time. Try again, under another id if it was given one; if the
    /// half was stored after all, its check finds no local transaction and settles it.
    #[error("Kafka did not store the half message within {deadline:?}: {reason}")]
    Unavailable {
        /// The prepare deadline.
        deadline: Duration,
        /// What the client said.
        reason: String,
        /// The identity under which the half may have been stored.
        transaction_id: Option<TransactionId>,
    },
    /// The producer is stopping; nothing was stored.
    #[error("the producer is stopping")]
    ShuttingDown,
}

impl PrepareError {
    /// Every [`PrepareError::reason`].
    pub(crate) const REASONS: [&str; 6] =
        ["invalid", "unknown_topic", "no_listener", "backpressure", "unavailable", "shutting_down"];

    /// Its kind, as it is counted: whose mistake it is shows in it.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Invalid(_) => "invalid",
            Self::UnknownTopic(_) => "unknown_topic",
            Self::NoListener(_) => "no_listener",
            Self::Backpressure(_) => "backpressure",
            Self::Unavailable { .. } => "unavailable",
            Self::ShuttingDown => "shutting_down",
        }
    }

    /// Whether the same call may succeed later.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Backpressure(_) | Self::Unavailable { .. } | Self::ShuttingDown)
    }

    /// The identity under which a half may have been stored, if that is not known.
    pub fn transaction_id(&self) -> Option<TransactionId> {
        match self {
            Self::Unavailable { transaction_id, .. } => *transaction_id,
            _ => None,
        }
    }
}

/// A decision that was not acknowledged in time. The check-back decides instead; the same call may
/// be repeated, the first decision wins.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the decision on {transaction_id} was not stored in time: {reason}; its check decides")]
pub struct DecisionError {
    /// The half message.
    pub transaction_id: TransactionId,
    /// What the client said.
    pub reason: String,
}

/// Why a producer does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A setting.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A topic is missing, or has settings under which messages could be lost.
    #[error(transparent)]
    Topic(#[from] TopicError),
    /// The group's store belongs to another application.
    #[error(
        "the producer group '{group}' belongs to the application '{owner}', not to '{application}': \
         choose another group"
    )]
    ForeignGroup {
        /// The group.
        group: String,
        /// Who owns it.
        owner: String,
        /// Who asked.
        application: String,
    },
    /// A client could not be made.
    #[error("the Kafka client cannot be created: {0}; check the librdkafka properties")]
    Client(#[from] rdkafka::error::KafkaError),
    /// The resolver's thread could not be started.
    #[error("the resolver's thread cannot be started: {0}")]
    Thread(#[from] std::io::Error),
}

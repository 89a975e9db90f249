//! Why a topic cannot be used; each says what is wrong, where, and the command that changes it.

use rdkafka::error::{KafkaError, RDKafkaErrorCode};

/// Why a topic cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TopicError {
    /// The topic exists with a setting under which messages could be lost.
    #[error(
        "topic '{topic}' has {setting}={found}, but halfmsg needs {setting}={needed}: \
         messages could be lost; change it with kafka-configs.sh --alter --topic {topic} \
         --add-config {setting}={needed}"
    )]
    WrongSetting {
        /// The topic.
        topic: String,
        /// The setting's name.
        setting: String,
        /// Its value on the broker.
        found: String,
        /// The value that is needed.
        needed: String,
    },
    /// A number that is too low.
    #[error(
        "topic '{topic}' has {setting}={found}, but halfmsg needs at least {needed}: messages that \
         are allowed would be refused; change it with kafka-configs.sh --alter --topic {topic} \
         --add-config {setting}={needed}"
    )]
    TooLow {
        /// The topic.
        topic: String,
        /// The setting's name.
        setting: String,
        /// Its value on the broker.
        found: String,
        /// What it must be at least.
        needed: String,
    },
    /// More replicas must acknowledge a record than there are.
    #[error(
        "topic '{topic}' has min.insync.replicas={min_in_sync} and only {replicas} replicas: nothing \
         could be written to it; give it more replicas with kafka-reassign-partitions.sh, or change \
         it with kafka-configs.sh --alter --topic {topic} --add-config min.insync.replicas={replicas}"
    )]
    Unwritable {
        /// The topic.
        topic: String,
        /// `min.insync.replicas`.
        min_in_sync: usize,
        /// The fewest replicas of a partition.
        replicas: usize,
    },
    /// Fewer replicas than were configured.
    #[error(
        "topic '{topic}' has replication factor {found}, but {needed} is configured \
         (HALFMSG_REPLICATION_FACTOR): give it more replicas with kafka-reassign-partitions.sh, or \
         configure {found}"
    )]
    TooFewReplicas {
        /// The topic.
        topic: String,
        /// The fewest replicas of a partition.
        found: usize,
        /// What is configured.
        needed: usize,
    },
    /// A client could not be made: properties that do not go together, a file that is missing.
    #[error("the Kafka client cannot be created: {0}; check HALFMSG_KAFKA_PROPERTIES")]
    Client(KafkaError),
    /// The brokers do not let this client in, or it does not trust them.
    #[error(
        "Kafka was reached, but the login or the TLS handshake failed: {reason}; check \
         security.protocol, sasl.* and ssl.* in HALFMSG_KAFKA_PROPERTIES"
    )]
    Login {
        /// What the client said.
        reason: String,
    },
    /// The client may not do what it must.
    #[error(
        "this client has no right to {right} topic '{topic}': grant it with kafka-acls.sh --add \
         --allow-principal User:<name> --operation {right} --topic {topic}"
    )]
    Forbidden {
        /// The topic.
        topic: String,
        /// The operation, in the words of Kafka's access control lists.
        right: &'static str,
    },
    /// The broker refused to create the topic.
    #[error("topic '{topic}' cannot be created: {code}; create it by hand or grant the right to")]
    Refused {
        /// The topic.
        topic: String,
        /// What the broker said.
        code: RDKafkaErrorCode,
    },
    /// The topic does not exist.
    #[error("topic '{0}' does not exist on this cluster: create it, or correct the name")]
    Unknown(String),
    /// No broker could be talked to; it may pass.
    #[error(
        "Kafka cannot be talked to about topic '{topic}': {reason}; if that stays so, check \
         KAFKA_BROKERS, and security.protocol, sasl.* and ssl.* in HALFMSG_KAFKA_PROPERTIES"
    )]
    Unreachable {
        /// The topic.
        topic: String,
        /// What the client said last.
        reason: String,
    },
    /// The cluster did not answer.
    #[error("Kafka did not answer about topic '{topic}': {source}")]
    Unavailable {
        /// The topic.
        topic: String,
        /// What the client said.
        source: KafkaError,
    },
}

impl TopicError {
    /// Whether the same call may succeed later, without anybody changing anything.
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Unavailable { .. } | Self::Unreachable { .. })
    }
}

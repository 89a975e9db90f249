//! What every Kafka client of halfmsg shares: connection settings, topics and the embedded broker.
//!
//! It knows nothing of half messages; it must never decide anything about a message.
//!
//! # Layout
//! - [`config`]: [`KafkaConfig`], from which each client's `ClientConfig` is made
//! - `properties`: which librdkafka properties are refused, and which are secret
//! - `probe`: the first contact: who answers, and why not
//! - [`replication`]: whether a topic has enough replicas
//! - [`topics`]: creates a topic, or refuses one whose settings would lose messages; `topic_error`:
//!   why
//! - [`embedded`]: librdkafka's in-process mock cluster, for the demonstration and for tests

pub mod config;
pub mod embedded;
mod probe;
mod properties;
pub mod replication;
mod topic_error;
pub mod topics;

pub use config::{ConfigError, DEFAULT_TOPIC_PREFIX, KafkaConfig};
pub use embedded::EmbeddedBroker;
pub use topic_error::TopicError;
pub use topics::{TopicSpec, TopicStatus, ensure_topic, partition_count, verify_topic};

//! What every Kafka client of halfmsg shares: connection settings, topics and the embedded broker.
//!
//! It knows nothing of half messages; it must never decide anything about a message.
//!
//! # Layout
//! - [`config`]: [`KafkaConfig`], from which each client's `ClientConfig` is made
//! - [`topics`]: creates a topic, or refuses one whose settings would lose messages
//! - [`embedded`]: librdkafka's in-process mock cluster, for the demonstration and for tests

pub mod config;
pub mod embedded;
pub mod topics;

pub use config::{ConfigError, KafkaConfig};
pub use embedded::EmbeddedBroker;
pub use topics::{TopicError, TopicSpec, TopicStatus, ensure_topic, partition_count};

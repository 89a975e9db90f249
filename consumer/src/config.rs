//! The settings of a consumer; every bound has a name here.

use std::time::Duration;

use halfmsg_kafka::{KafkaConfig, TopicSpec};
use sea_orm::DatabaseConnection;

/// How partitions come to this replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Assignment {
    /// The consumer group shares them out.
    #[default]
    Shared,
    /// All of them, at once: for the embedded broker, whose group takes 3 to 11 s to join. Two
    /// replicas with this setting both get every message; the inbox lets one have its effect.
    All,
}

/// How a topic is made if it is missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicSettings {
    /// The number of partitions.
    pub partitions: i32,
    /// -1 takes the broker's default; an existing topic with less than is given here is refused.
    pub replication_factor: i32,
    /// `min.insync.replicas`, likewise.
    pub min_insync_replicas: i32,
    /// How long messages are kept; `None` for ever.
    pub retention: Option<Duration>,
}

impl Default for TopicSettings {
    fn default() -> Self {
        Self {
            partitions: 8,
            replication_factor: -1,
            min_insync_replicas: -1,
            retention: Some(Duration::from_secs(7 * 24 * 3600)),
        }
    }
}

impl TopicSettings {
    /// The topic as it is made. Compaction is refused on an existing one: it would drop all but
    /// the last message of a key.
    pub(crate) fn spec(&self, topic: &str) -> TopicSpec {
        let retention = self.retention.map_or_else(|| "-1".into(), |r| r.as_millis().to_string());
        let settings = [("cleanup.policy", "delete".to_owned()), ("retention.ms", retention)];
        TopicSpec {
            name: topic.to_owned(),
            partitions: self.partitions,
            replication_factor: self.replication_factor,
            min_insync_replicas: self.min_insync_replicas,
            settings: settings.map(|(name, value)| (name.to_owned(), value)).into(),
            required: vec!["cleanup.policy".into()],
            at_least: Vec::new(),
            advised: Vec::new(),
        }
    }
}

/// The settings of a consumer.
#[derive(Debug, Clone)]
pub struct ConsumerConfig {
    /// How to reach Kafka.
    pub kafka: KafkaConfig,
    /// The database of the inbox and of the handlers' effects.
    pub database: DatabaseConnection,
    /// The consumer group and the name of the inbox. Changing it forgets what was consumed.
    pub subscriber: String,
    /// A stable name of this replica for static membership; see the design, section 3.
    pub instance_id: Option<String>,
    /// How partitions come to this replica.
    pub assignment: Assignment,
    /// How missing topics are made.
    pub topic: TopicSettings,
    /// At most this many messages in one transaction.
    pub max_batch: usize,
    /// No further message is added to a batch that has this many bytes of payload.
    pub max_batch_bytes: usize,
    /// After this many failures of its own a message becomes a dead letter. Until then it holds
    /// up the batches behind it: with the defaults 20 s.
    pub max_attempts: u32,
    /// The first pause before a retry; it doubles, with a jitter of a quarter either way.
    pub first_backoff: Duration,
    /// The longest pause before a retry.
    pub longest_backoff: Duration,
    /// One attempt, from the beginning of its transaction to the end of its commit.
    pub attempt_deadline: Duration,
    /// How long a batch may take before its partitions are paused and polled, so that the group
    /// does not take this replica for dead. What was fetched ahead is fetched again afterwards.
    pub patience: Duration,
    /// How long a graceful stop waits for the batch in hand, and for the group to be left.
    pub drain_deadline: Duration,
}

impl ConsumerConfig {
    /// The defaults.
    pub fn new(
        kafka: KafkaConfig,
        database: DatabaseConnection,
        subscriber: impl Into<String>,
    ) -> Self {
        let assignment = if kafka.embedded { Assignment::All } else { Assignment::Shared };
        Self {
            kafka,
            database,
            subscriber: subscriber.into(),
            instance_id: None,
            assignment,
            topic: TopicSettings::default(),
            max_batch: 500,
            max_batch_bytes: 8 * 1024 * 1024,
            max_attempts: 10,
            first_backoff: Duration::from_millis(100),
            longest_backoff: Duration::from_secs(5),
            attempt_deadline: Duration::from_secs(30),
            patience: Duration::from_secs(5),
            drain_deadline: Duration::from_secs(5),
        }
    }

    /// The first mistake, in words, if there is one.
    pub(crate) fn mistake(&self) -> Option<&'static str> {
        if self.subscriber.is_empty() {
            Some("the subscriber has no name")
        } else if self.max_batch == 0 || self.max_attempts == 0 {
            Some("max_batch and max_attempts must be at least 1")
        } else if self.first_backoff.is_zero() || self.longest_backoff < self.first_backoff {
            Some("the first backoff must be above zero and not above the longest")
        } else {
            None
        }
    }
}

//! Every setting of the producer and its resolver; their bounds are in `validate`.

use std::time::Duration;

use halfmsg_kafka::{DEFAULT_TOPIC_PREFIX, KafkaConfig};
use halfmsg_protocol::{Backoff, CoreConfig};

mod validate;

pub use validate::ConfigError;
pub(crate) use validate::validate_name;

/// The longest name of an application, a group or a purpose, in bytes.
pub const MAX_NAME_BYTES: usize = 120;

/// How the store's partitions come to this replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Assignment {
    /// The replicas share them out (a Kafka consumer group).
    Shared,
    /// This replica owns all; for the embedded broker, and for tests.
    All,
}

/// How committed messages reach their topics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Emission {
    /// Deliveries and progress are two steps: after a crash between them, a takeover or a renewed
    /// client a message may come again, with the same transaction id.
    AtLeastOnce,
    /// Each batch of deliveries and the progress behind it are one Kafka transaction (KIP-98,
    /// KIP-447): readers with `isolation.level=read_committed` see every message once. A
    /// transactional id per store partition fences the partition's former owner.
    ExactlyOnce,
}

/// A point at which the process aborts, to prove what survives. Never set it in production.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CrashPoint {
    /// After a decision is acknowledged by the store.
    AfterDecision,
    /// After a delivery is acknowledged by its target, before progress is stored.
    AfterDelivery,
    /// After the Kafka transaction of a delivery is committed, before anybody here hears of it; in
    /// exactly-once mode only.
    AfterCommit,
}

/// Settings of a [`crate::TransactionProducer`]. Start from [`ProducerConfig::new`], whose values are the
/// defaults; docs/configuration.md lists them with their bounds.
#[derive(Debug, Clone)]
pub struct ProducerConfig {
    /// How to reach Kafka.
    pub kafka: KafkaConfig,
    /// The application's name: only it is asked about its halves.
    pub application: String,
    /// The producer group: the replicas that share one store.
    pub group: String,
    /// First part of the names of the store and parked topics.
    pub topic_prefix: String,
    /// Static membership of this replica (`group.instance.id`): a restarted replica then takes
    /// its partitions back at once. Unique per replica, or unset.
    pub instance_id: Option<String>,
    /// How partitions are assigned; on the embedded broker all belong to the one replica.
    pub assignment: Assignment,
    /// Partitions of the store when it is created.
    pub store_partitions: i32,
    /// Replication factor of the topics when they are created; -1 is the broker's default. An
    /// existing topic with less than is given here is refused.
    pub replication_factor: i32,
    /// `min.insync.replicas` of the topics, likewise.
    pub min_insync_replicas: i32,
    /// Limit of key, headers and payload together, in bytes.
    pub max_message_bytes: usize,
    /// Wait for Kafka at start.
    pub start_deadline: Duration,
    /// Storing a half message, waiting for a free place included.
    pub prepare_deadline: Duration,
    /// The local transaction; past it the check decides.
    pub local_deadline: Duration,
    /// Storing a decision; past it the check-back decides.
    pub decision_deadline: Duration,
    /// How long the client goes on sending a record that the store does not acknowledge, also one
    /// that nobody waits for any more. Each time that it gives one up it may write others twice
    /// (see [`halfmsg_protocol::Ignored::Copy`]), so it is longer than the deadlines. The same in all
    /// replicas of a group: whoever owns a partition expects copies of the others' halves for as long.
    pub store_timeout: Duration,
    /// From storing a half to its first check; more than prepare and local deadline together.
    pub check_after: Duration,
    /// Interval between checks, also between those that fail: doubles from `initial` to `max`.
    pub check_backoff: Backoff,
    /// Answers `Unknown` before a half is parked; a check that fails is none. RocketMQ's
    /// transactionCheckMax.
    pub max_checks: u32,
    /// Age at which a half is parked after at least one attempt; while its checks fail, only once
    /// they have failed for as long.
    pub max_age: Duration,
    /// How long one owner of its partition has a half before it parks it because nobody listens; 5
    /// minutes for one that is older than `max_age` and this together.
    pub no_listener_grace: Duration,
    /// One call of a listener's check.
    pub check_deadline: Duration,
    /// Halves in one call of a listener's check.
    pub check_batch: usize,
    /// Bytes of the halves in one call of a listener's check; the half that reaches it is the last.
    pub check_batch_bytes: usize,
    /// Calls of listeners' checks at once, per partition and in all.
    pub check_concurrency: usize,
    /// Messages between prepare and decision at once; more wait up to half of the prepare deadline, so that
    /// storing has the other half.
    pub max_transactions: usize,
    /// How committed messages reach their topics; the embedded broker has at-least-once only.
    pub emission: Emission,
    /// Deliveries in one batch, which in exactly-once mode is one Kafka transaction.
    pub batch_messages: usize,
    /// Bytes of the messages in one batch; a larger message goes alone.
    pub batch_bytes: usize,
    /// The longest that a batch waits for more: while the store has more to read, or the batch
    /// before it was a large one; else it goes at once.
    pub batch_linger: Duration,
    /// Deliveries of one partition that wait for their batch; beyond, the partition is not read on.
    pub max_queued_messages: usize,
    /// Their bytes; beyond, the partition is not read on.
    pub max_queued_bytes: usize,
    /// Bytes of the messages of open halves that are kept in memory, in all partitions; those
    /// beyond are read from the store again when they are needed.
    pub body_budget_bytes: usize,
    /// How long a Kafka transaction of a replica that died holds read-committed readers up, if no
    /// other replica takes its partitions over before. A batch makes some five calls to the brokers, one after
    /// the other: where they take longer than this in all, the brokers end it, and it is begun anew and anew.
    pub transaction_timeout: Duration,
    /// Between two times that records which no replica needs any more are deleted from the store,
    /// which is also done when stopping; none keeps everything for ever.
    pub trim_interval: Option<Duration>,
    /// Draining what is under way when stopping.
    pub shutdown_deadline: Duration,
    /// Where to abort; none in production.
    pub crash_at: Option<CrashPoint>,
}

impl std::str::FromStr for Emission {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "at-least-once" => Ok(Self::AtLeastOnce),
            "exactly-once" => Ok(Self::ExactlyOnce),
            other => Err(format!("'{other}': it must be at-least-once or exactly-once")),
        }
    }
}

impl Emission {
    /// The name as settings have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AtLeastOnce => "at-least-once",
            Self::ExactlyOnce => "exactly-once",
        }
    }
}

impl ProducerConfig {
    /// The most that a message may ask for as its own.
    pub(crate) fn longest_check_after(&self) -> Duration {
        self.max_age.max(self.check_after)
    }

    /// The defaults, for this cluster, application and group.
    pub fn new(
        kafka: KafkaConfig,
        application: impl Into<String>,
        group: impl Into<String>,
    ) -> Self {
        let (assignment, emission) = match kafka.embedded {
            true => (Assignment::All, Emission::AtLeastOnce),
            false => (Assignment::Shared, Emission::ExactlyOnce),
        };
        Self {
            kafka,
            application: application.into(),
            group: group.into(),
            topic_prefix: DEFAULT_TOPIC_PREFIX.into(),
            instance_id: None,
            assignment,
            store_partitions: 8,
            replication_factor: -1,
            min_insync_replicas: -1,
            max_message_bytes: 1_000_000,
            start_deadline: Duration::from_secs(60),
            prepare_deadline: Duration::from_secs(2),
            local_deadline: Duration::from_secs(3),
            decision_deadline: Duration::from_secs(2),
            store_timeout: Duration::from_secs(30),
            check_after: Duration::from_secs(6),
            check_backoff: Backoff {
                initial: Duration::from_secs(10),
                max: Duration::from_secs(300),
            },
            max_checks: 15,
            max_age: Duration::from_secs(24 * 3_600),
            no_listener_grace: Duration::from_secs(3_600),
            check_deadline: Duration::from_secs(3),
            check_batch: 256,
            check_batch_bytes: 1_024 * 1_024,
            check_concurrency: 4,
            max_transactions: 4_096,
            emission,
            batch_messages: 4_096,
            batch_bytes: 1_024 * 1_024,
            batch_linger: Duration::from_millis(50),
            max_queued_messages: 8_192,
            max_queued_bytes: 4 * 1_024 * 1_024,
            body_budget_bytes: 128 * 1_024 * 1_024,
            transaction_timeout: Duration::from_secs(10),
            trim_interval: Some(Duration::from_secs(60)),
            shutdown_deadline: Duration::from_secs(5),
            crash_at: None,
        }
    }

    /// The topic of the half-message store.
    pub fn store_topic(&self) -> String {
        format!("{}.{}.store", self.topic_prefix, self.group)
    }

    /// The transactional id under which a store partition's deliveries go out.
    pub fn transactional_id(&self, partition: i32) -> String {
        format!("{}.{}.store-{partition}", self.topic_prefix, self.group)
    }

    /// The compacted topic of parked messages.
    pub fn parked_topic(&self) -> String {
        format!("{}.{}.parked", self.topic_prefix, self.group)
    }

    pub(crate) fn core(&self) -> CoreConfig {
        CoreConfig {
            check_after: self.check_after,
            check_backoff: self.check_backoff,
            max_checks: self.max_checks,
            max_age: self.max_age,
            no_listener_grace: self.no_listener_grace,
            retry_delay: RETRY_DELAY,
            check_batch: self.check_batch,
            check_batch_bytes: self.check_batch_bytes,
            check_batches: self.check_concurrency,
            copy_window: match self.emission {
                Emission::ExactlyOnce => self.store_timeout + COPY_MARGIN,
                Emission::AtLeastOnce => Duration::ZERO,
            },
        }
    }
}

/// A record that was sent at the last moment is appended, or refused, within this.
const COPY_MARGIN: Duration = Duration::from_secs(10);

/// Until something that failed for a passing reason is tried again: a check that could not be
/// asked, a record that could not be appended, a delivery, taking partitions over.
pub(crate) const RETRY_DELAY: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> ProducerConfig {
        ProducerConfig::new(KafkaConfig::new("127.0.0.1:9092"), "shop", "orders")
    }

    #[test]
    fn the_defaults_are_valid() {
        assert_eq!(config().validate(), Ok(()));
        assert_eq!(config().store_topic(), "halfmsg.orders.store");
        assert_eq!(config().parked_topic(), "halfmsg.orders.parked");
    }

    #[test]
    fn secrets_are_not_shown() {
        let mut config = config();
        config.kafka.properties.insert("sasl.password".into(), "s3cret".into());
        assert!(!format!("{config:?}").contains("s3cret"));
    }
}

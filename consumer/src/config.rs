//! The settings of a consumer; every bound has a name here.

use std::time::Duration;

use halfmsg_kafka::{KafkaConfig, TopicSpec};
use sea_orm::DatabaseConnection;

/// The rows of a transaction are in memory, and it holds what it locks until the last of them is written.
pub(crate) const MAX_BATCH: usize = 10_000;

/// Each part names the rows that the others have in hand, and a statement has 65,535 variables on
/// PostgreSQL.
const MAX_RETRIES: usize = 4;
/// librdkafka's default of `max.poll.interval.ms`.
const MAX_POLL_INTERVAL: Duration = Duration::from_secs(300);

/// How long the inbox remembers, unless something else is set: longer than a topic with Kafka's
/// defaults can deliver a message again.
pub const DEFAULT_INBOX_RETENTION: Duration = Duration::from_secs(15 * 24 * 3600);

/// How partitions come to this replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Assignment {
    /// The consumer group shares them out.
    #[default]
    Shared,
    /// All of them, at once, and later those that are added: for the embedded broker, whose group takes 3
    /// to 11 s to join. Two replicas with this setting both get every message; the inbox lets one have its
    /// effect.
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

/// How often and when a message that failed is tried again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetryLevels {
    /// The delay before each retry; further retries take the last one.
    pub delays: Vec<Duration>,
    /// After so many retries that failed, the message becomes a dead letter; 0 makes it one at once.
    pub max_retries: u32,
}

impl Default for RetryLevels {
    /// RocketMQ's: 10 s, 30 s, 1 to 10 min, 20 and 30 min, 1 and 2 h; 16 retries in 4 h 46 min.
    fn default() -> Self {
        let minutes = (1..=10).chain([20, 30, 60, 120]).map(|minutes| minutes * 60);
        let delays: Vec<_> = [10, 30].into_iter().chain(minutes).map(Duration::from_secs).collect();
        Self { delays, max_retries: 16 }
    }
}

impl RetryLevels {
    /// These delays, each once.
    pub fn new(delays: impl IntoIterator<Item = Duration>) -> Self {
        let delays: Vec<_> = delays.into_iter().collect();
        let max_retries = u32::try_from(delays.len()).unwrap_or(u32::MAX);
        Self { delays, max_retries }
    }

    /// The delay before the next retry after `done` of them; `None` if there is none.
    pub(crate) fn delay(&self, done: u32) -> Option<Duration> {
        if done >= self.max_retries {
            return None;
        }
        let level = usize::try_from(done).unwrap_or(usize::MAX);
        self.delays.get(level).or(self.delays.last()).copied()
    }
}

/// What becomes of the later messages of a key, one of whose messages waits for a retry. A key is
/// that of one partition; messages without a key have no order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KeyOrder {
    /// They wait behind it, in the retry table, until it succeeded or is a dead letter: across
    /// restarts and replicas. With RocketMQ's levels that may be hours. Each batch asks whether
    /// the retry table is empty; while it is not, one more indexed question for the batch's keys,
    /// and each message that waits is written and deleted once more than one that does not. A replica
    /// that gives order up takes what waits one by one, so all of a subscriber choose the same.
    #[default]
    Keep,
    /// They go on; the one that failed comes later. For handlers whose messages commute, and the
    /// only choice that lets a hot key go on.
    GiveUp,
}

/// What may run at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Spread {
    /// The messages of different keys; those without a key by their partition.
    #[default]
    ByKey,
    /// The messages of different partitions.
    ByPartition,
}

/// The settings of a consumer. Start from [`ConsumerConfig::new`], whose values are the defaults;
/// docs/configuration.md lists them with their bounds.
#[derive(Debug, Clone)]
pub struct ConsumerConfig {
    /// How to reach Kafka.
    pub kafka: KafkaConfig,
    /// The database of the inbox and of the handlers' effects.
    pub database: DatabaseConnection,
    /// The consumer group and the name of the inbox. Changing it forgets what was consumed.
    pub subscriber: String,
    /// A name that stays the same when this replica restarts (`group.instance.id`): its partitions then
    /// come back to it at once. Unique per replica, or unset.
    pub instance_id: Option<String>,
    /// How partitions come to this replica.
    pub assignment: Assignment,
    /// With [`Assignment::All`], how often partitions are looked for that were added to the topics. With
    /// [`Assignment::Shared`] it is the client that finds them (`topic.metadata.refresh.interval.ms`).
    pub partition_interval: Duration,
    /// How missing topics are made.
    pub topic: TopicSettings,
    /// At most this many messages in one transaction. Their rows in the inbox, of four values each, go
    /// in statements of 8,000.
    pub max_batch: usize,
    /// No further message is added to a batch that has this many bytes of payload.
    pub max_batch_bytes: usize,
    /// At most this many transactions at once. What was fetched together is divided by `spread`
    /// and ends together: the slowest part decides when the next is taken, and a key is in one part
    /// only, so its order is kept. On SQLite, which has one writer, always 1.
    pub concurrency: usize,
    /// What may run at the same time.
    pub spread: Spread,
    /// So many attempts follow closely upon each other, while the batch waits: enough for a
    /// deadlock or a dropped connection elsewhere. Then the message goes into the retry table, and
    /// the batch goes on.
    pub quick_attempts: u32,
    /// The first pause between quick attempts; it doubles, with a jitter of a quarter either way.
    /// Also between attempts to reach a database or a broker that is away.
    pub first_backoff: Duration,
    /// The longest such pause.
    pub longest_backoff: Duration,
    /// When a message that failed is tried again, and when it is given up on.
    pub retry: RetryLevels,
    /// What becomes of later messages of the same key meanwhile.
    pub key_order: KeyOrder,
    /// How often the retry table is asked what is due. A retry that this replica stored itself
    /// fires on time; one of a replica that is gone so much later at most, and earlier or later by
    /// the difference of the two clocks.
    pub retry_poll: Duration,
    /// At most this many transactions of retries at once, beside those of `concurrency`: so many slow
    /// retries, of whatever topic and key, hold up the others. On SQLite always 1.
    pub retry_concurrency: usize,
    /// How long the inbox remembers a message: the once-promise ends there. It must be longer than
    /// the topic can deliver it again: `retention.ms` and, because Kafka deletes whole segments,
    /// `segment.ms` of the topic (7 days each, if nothing else is set), hence 15 days. `None`: for
    /// ever. What waits for a retry or is an open dead letter is never forgotten.
    pub inbox_retention: Option<Duration>,
    /// At least so many messages of one key of a topic are remembered, the newest, and those before them are
    /// forgotten sooner than `inbox_retention` says, but not within 10 s: the once-promise then ends there
    /// too, for any copy behind which so many of its key have come. For a few keys with very many messages,
    /// where nothing repeats old ones: neither the producers nor a reset of the group's offsets. What Kafka
    /// itself delivers again has no second effect: at most so many messages of a partition, less one
    /// batch, are handled beyond the offset that the group's coordinator has confirmed, and while it
    /// confirms none, the consumer waits. For that, replicas share the partitions (not two with
    /// [`Assignment::All`]), have the same setting, their clocks differ by less than 10 s, and none is set
    /// back by more from one run of a replica to the next. It counts messages with a key that were consumed
    /// with this setting, in the order in which they were first received; for `inbox_retention`, too, one that
    /// was retried is then as old as that. Each cleaning reads an index of them all. `None`: no such bound.
    pub inbox_per_key: Option<u64>,
    /// How often the inbox is cleaned, in batches of 1,000.
    pub clean_interval: Duration,
    /// One attempt, from the beginning of its transaction to the end of its commit. On PostgreSQL a
    /// statement waits for a lock for half of it at most, unless the handler says otherwise in its
    /// transaction.
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
            partition_interval: Duration::from_secs(30),
            topic: TopicSettings::default(),
            max_batch: 500,
            max_batch_bytes: 8 * 1024 * 1024,
            concurrency: 4,
            spread: Spread::default(),
            quick_attempts: 3,
            first_backoff: Duration::from_millis(100),
            longest_backoff: Duration::from_secs(5),
            retry: RetryLevels::default(),
            key_order: KeyOrder::default(),
            retry_poll: Duration::from_secs(1),
            retry_concurrency: 2,
            inbox_retention: Some(DEFAULT_INBOX_RETENTION),
            inbox_per_key: None,
            clean_interval: Duration::from_secs(60),
            attempt_deadline: Duration::from_secs(30),
            patience: Duration::from_secs(5),
            drain_deadline: Duration::from_secs(5),
        }
    }

    /// The first mistake, in words, if there is one.
    pub(crate) fn mistake(&self) -> Option<String> {
        let wrong = self.rules().into_iter().find(|(_, kept, _)| !kept);
        wrong.map(|(setting, _, needed)| format!("{setting} must be {needed}"))
    }

    /// The settings that have bounds, and these in words.
    pub fn ranges(&self) -> Vec<(&'static str, &'static str)> {
        self.rules().into_iter().map(|(setting, _, needed)| (setting, needed)).collect()
    }

    /// So many messages of a partition may lie beyond the offset that the coordinator has confirmed when
    /// a further batch is taken: with it, and with the batch in which another replica ended, they are all
    /// among those of a key that the inbox remembers. `None` where it has no such bound.
    pub(crate) fn most_unconfirmed(&self) -> Option<u64> {
        let batch = u64::try_from(self.max_batch).unwrap_or(u64::MAX);
        Some(self.inbox_per_key?.saturating_sub(batch.saturating_mul(2)))
    }

    /// After so long without a poll the group takes a member for dead.
    fn max_poll_interval(&self) -> Duration {
        let millis = self.kafka.properties.get("max.poll.interval.ms");
        let millis = millis.and_then(|millis| millis.parse().ok());
        millis.map_or(MAX_POLL_INTERVAL, Duration::from_millis)
    }

    /// Each with whether it is kept.
    fn rules(&self) -> Vec<(&'static str, bool, &'static str)> {
        let above_zero = "above zero";
        vec![
            ("subscriber", !self.subscriber.is_empty(), "a name"),
            ("max_batch", (1..=MAX_BATCH).contains(&self.max_batch), "1 to 10,000"),
            ("quick_attempts", self.quick_attempts > 0, "at least 1"),
            ("concurrency", self.concurrency > 0, "at least 1"),
            ("retry_concurrency", (1..=MAX_RETRIES).contains(&self.retry_concurrency), "1 to 4"),
            ("partition_interval", !self.partition_interval.is_zero(), above_zero),
            ("first_backoff", !self.first_backoff.is_zero(), above_zero),
            (
                "longest_backoff",
                self.longest_backoff >= self.first_backoff,
                "not below first_backoff",
            ),
            (
                "retry",
                self.retry.max_retries == 0 || !self.retry.delays.is_empty(),
                "at least one delay, if there are retries",
            ),
            ("retry_poll", !self.retry_poll.is_zero(), above_zero),
            ("attempt_deadline", !self.attempt_deadline.is_zero(), above_zero),
            (
                "patience",
                !self.patience.is_zero() && self.patience < self.max_poll_interval(),
                "above zero, and below max.poll.interval.ms: else the group gives the partitions of a \
                 long batch to others",
            ),
            ("clean_interval", !self.clean_interval.is_zero(), above_zero),
            (
                "inbox_per_key",
                self.inbox_per_key.is_none_or(|keep| keep >= self.max_batch as u64 * 3),
                "at least three times max_batch: what comes again after a crash would have a second effect",
            ),
            (
                "inbox_retention",
                self.inbox_retention.is_none_or(|retention| !retention.is_zero()),
                "above zero: an inbox that remembers nothing is no barrier",
            ),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_levels_are_those_of_rocketmq() {
        let levels = RetryLevels::default();
        let delays: Vec<u64> = (0..16).map(|done| levels.delay(done).unwrap().as_secs()).collect();
        let minutes = [60, 120, 180, 240, 300, 360, 420, 480, 540, 600, 1200, 1800, 3600, 7200];
        assert_eq!(delays[..2], [10, 30]);
        assert_eq!(delays[2..], minutes);
        assert_eq!(levels.delay(16), None);
    }

    #[test]
    fn a_batch_has_a_bound() {
        let kafka = KafkaConfig::new("nobody:1");
        let config = ConsumerConfig::new(kafka, DatabaseConnection::default(), "s");
        assert_eq!(config.mistake(), None);
        let config = ConsumerConfig { max_batch: MAX_BATCH, ..config };
        assert_eq!(config.mistake(), None);
        assert!(ConsumerConfig { max_batch: MAX_BATCH + 1, ..config }.mistake().is_some());
    }

    #[test]
    fn what_may_come_again_fits_into_what_is_remembered_of_a_key() {
        let with = |inbox_per_key| {
            let kafka = KafkaConfig::new("nobody:1");
            let config = ConsumerConfig::new(kafka, DatabaseConnection::default(), "s");
            ConsumerConfig { max_batch: 10, inbox_per_key, ..config }
        };
        assert!(with(Some(29)).mistake().expect("too few").starts_with("inbox_per_key must"));
        assert_eq!((with(Some(30)).mistake(), with(None).most_unconfirmed()), (None, None));
        // These, the batch in hand, and one more for whoever began elsewhere in between.
        let most = with(Some(30)).most_unconfirmed().expect("bounded");
        assert_eq!(most + 2 * 10, 30);
    }

    #[test]
    fn a_long_batch_is_polled_before_the_group_takes_its_partitions() {
        let mut kafka = KafkaConfig::new("nobody:1");
        let with = |kafka: &KafkaConfig, patience| {
            let config = ConsumerConfig::new(kafka.clone(), DatabaseConnection::default(), "s");
            ConsumerConfig { patience, ..config }.mistake()
        };
        assert!(with(&kafka, MAX_POLL_INTERVAL).expect("too long").starts_with("patience must"));
        kafka.properties.insert("max.poll.interval.ms".into(), "6000".into());
        assert_eq!(with(&kafka, Duration::from_millis(5_999)), None);
        assert!(with(&kafka, Duration::from_secs(6)).is_some());
    }

    #[test]
    fn the_last_level_repeats() {
        let levels = RetryLevels { max_retries: 3, ..RetryLevels::new([Duration::from_secs(1)]) };
        assert_eq!(levels.delay(2), Some(Duration::from_secs(1)));
        assert_eq!(levels.delay(3), None);
        assert_eq!(RetryLevels::new([]).delay(0), None);
    }
}

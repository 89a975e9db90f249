//! Every setting of the producer and its resolver, with its bound and its check.

use std::time::Duration;

use halfmsg_kafka::KafkaConfig;
use halfmsg_protocol::{Backoff, CoreConfig};

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

/// A point at which the process aborts, to prove what survives. Never set it in production.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CrashPoint {
    /// After a decision is acknowledged by the store.
    AfterDecision,
    /// After a delivery is acknowledged by its target, before progress is stored.
    AfterDelivery,
}

/// Settings of a [`crate::TransactionProducer`]. Start from [`ProducerConfig::new`].
#[derive(Debug, Clone)]
pub struct ProducerConfig {
    /// How to reach Kafka.
    pub kafka: KafkaConfig,
    /// The application's name: only it is asked about its halves.
    pub application: String,
    /// The producer group: the replicas that share one store. Default: the application's name.
    pub group: String,
    /// First part of the names of the store and parked topics. Default `halfmsg`.
    pub topic_prefix: String,
    /// Static membership of this replica (`group.instance.id`): a restarted replica then takes
    /// its partitions back at once. Unique per replica, or unset.
    pub instance_id: Option<String>,
    /// How partitions are assigned. Default: shared, on the embedded broker all.
    pub assignment: Assignment,
    /// Partitions of the store when it is created. Default 8.
    pub store_partitions: i32,
    /// Replication factor of the topics when they are created; -1 is the broker's default.
    pub replication_factor: i32,
    /// Limit of key, headers and payload together, in bytes. Default 1,000,000.
    pub max_message_bytes: usize,
    /// Wait for Kafka at start. Default 60 s.
    pub start_deadline: Duration,
    /// Storing a half message, waiting for a free place included. Default 2 s.
    pub prepare_deadline: Duration,
    /// The local transaction; past it the check decides. Default 3 s.
    pub local_deadline: Duration,
    /// Storing a decision; past it the check-back decides. Default 2 s.
    pub decision_deadline: Duration,
    /// From storing a half to its first check. Default 6 s.
    pub check_after: Duration,
    /// Interval between checks: doubles from `initial` to `max`. Default 10 s to 5 min.
    pub check_backoff: Backoff,
    /// Real attempts before a half is parked. Default 15 (RocketMQ's transactionCheckMax).
    pub max_checks: u32,
    /// Age at which a half is parked after at least one attempt. Default 24 h.
    pub max_age: Duration,
    /// Wait for a listener before halves that have none are parked. Default 1 h.
    pub no_listener_grace: Duration,
    /// One call of a listener's check. Default 3 s.
    pub check_deadline: Duration,
    /// Halves in one call of a listener's check. Default 256.
    pub check_batch: usize,
    /// Calls of listeners' checks at once, per partition and in all. Default 4.
    pub check_concurrency: usize,
    /// Transactions between prepare and decision at once; more wait up to the prepare deadline.
    /// Default 4,096.
    pub max_transactions: usize,
    /// Deliveries that are not acknowledged yet; beyond, the store is not read on. Default 10,000.
    pub max_deliveries: usize,
    /// Draining what is under way when stopping. Default 5 s.
    pub shutdown_deadline: Duration,
    /// Where to abort; none in production.
    pub crash_at: Option<CrashPoint>,
}

/// A setting that cannot work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A Kafka setting.
    #[error(transparent)]
    Kafka(#[from] halfmsg_kafka::ConfigError),
    /// A name that is empty, too long or not fit for a topic.
    #[error(
        "{setting} is '{value}': 1 to {MAX_NAME_BYTES} characters of a-z, A-Z, 0-9, '.', '_' and \
         '-' are allowed"
    )]
    Name {
        /// The setting.
        setting: &'static str,
        /// Its value.
        value: String,
    },
    /// A number or duration out of its range.
    #[error("{setting} is {value}: it must be {needed}")]
    Range {
        /// The setting.
        setting: &'static str,
        /// Its value.
        value: String,
        /// The range.
        needed: &'static str,
    },
    /// The check could ask before the local transaction had its time.
    #[error(
        "prepare_deadline ({prepare:?}) + local_deadline ({local:?}) must be less than \
         check_after ({check_after:?}): a check would race every slow local transaction"
    )]
    CheckTooEarly {
        /// The prepare deadline.
        prepare: Duration,
        /// The local deadline.
        local: Duration,
        /// The time to the first check.
        check_after: Duration,
    },
}

impl ProducerConfig {
    /// The defaults, for this cluster, application and group.
    pub fn new(
        kafka: KafkaConfig,
        application: impl Into<String>,
        group: impl Into<String>,
    ) -> Self {
        let assignment = if kafka.embedded { Assignment::All } else { Assignment::Shared };
        Self {
            kafka,
            application: application.into(),
            group: group.into(),
            topic_prefix: "halfmsg".into(),
            instance_id: None,
            assignment,
            store_partitions: 8,
            replication_factor: -1,
            max_message_bytes: 1_000_000,
            start_deadline: Duration::from_secs(60),
            prepare_deadline: Duration::from_secs(2),
            local_deadline: Duration::from_secs(3),
            decision_deadline: Duration::from_secs(2),
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
            check_concurrency: 4,
            max_transactions: 4_096,
            max_deliveries: 10_000,
            shutdown_deadline: Duration::from_secs(5),
            crash_at: None,
        }
    }

    /// The topic of the half-message store.
    pub fn store_topic(&self) -> String {
        format!("{}.{}.store", self.topic_prefix, self.group)
    }

    /// The compacted topic of parked messages.
    pub fn parked_topic(&self) -> String {
        format!("{}.{}.parked", self.topic_prefix, self.group)
    }

    /// Checks every setting.
    ///
    /// # Errors
    /// The first mistake, naming setting, value and range.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.kafka.validate()?;
        for (setting, value) in [
            ("application", &self.application),
            ("group", &self.group),
            ("topic_prefix", &self.topic_prefix),
        ] {
            validate_name(setting, value)?;
        }
        if let Some(id) = &self.instance_id {
            validate_name("instance_id", id)?;
        }
        self.validate_durations()?;
        self.validate_counts()?;
        let first_check = self.check_after;
        if self.prepare_deadline + self.local_deadline >= first_check {
            return Err(ConfigError::CheckTooEarly {
                prepare: self.prepare_deadline,
                local: self.local_deadline,
                check_after: first_check,
            });
        }
        Ok(())
    }

    fn validate_durations(&self) -> Result<(), ConfigError> {
        let day = Duration::from_secs(86_400);
        for (setting, value) in [
            ("start_deadline", self.start_deadline),
            ("prepare_deadline", self.prepare_deadline),
            ("local_deadline", self.local_deadline),
            ("decision_deadline", self.decision_deadline),
            ("check_after", self.check_after),
            ("check_backoff.initial", self.check_backoff.initial),
            ("check_backoff.max", self.check_backoff.max),
            ("check_deadline", self.check_deadline),
            ("shutdown_deadline", self.shutdown_deadline),
        ] {
            let needed = "between 10 ms and one day";
            if value < Duration::from_millis(10) || value > day {
                return Err(ConfigError::Range { setting, value: format!("{value:?}"), needed });
            }
        }
        Ok(())
    }

    fn validate_counts(&self) -> Result<(), ConfigError> {
        let count = |value: i32| usize::try_from(value).unwrap_or(0);
        for (setting, value, max, needed) in [
            ("store_partitions", count(self.store_partitions), 10_000, "1 to 10,000"),
            ("max_checks", self.max_checks as usize, 1_000_000, "1 to 1,000,000"),
            ("check_batch", self.check_batch, 10_000, "1 to 10,000"),
            ("check_concurrency", self.check_concurrency, 1_000, "1 to 1,000"),
            ("max_transactions", self.max_transactions, 1_000_000, "1 to 1,000,000"),
            ("max_deliveries", self.max_deliveries, 1_000_000, "1 to 1,000,000"),
            ("max_message_bytes", self.max_message_bytes, 100_000_000, "1 to 100,000,000"),
        ] {
            if value == 0 || value > max {
                return Err(ConfigError::Range { setting, value: value.to_string(), needed });
            }
        }
        Ok(())
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
            check_batches: self.check_concurrency,
        }
    }
}

/// Until something that failed for a passing reason is tried again: a check that could not be
/// asked, a record that could not be appended, a delivery, taking partitions over.
pub(crate) const RETRY_DELAY: Duration = Duration::from_secs(1);

/// Checks a name that becomes part of a topic's name.
pub(crate) fn validate_name(setting: &'static str, value: &str) -> Result<(), ConfigError> {
    let fit = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if value.is_empty() || value.len() > MAX_NAME_BYTES || !value.chars().all(fit) {
        return Err(ConfigError::Name { setting, value: value.to_owned() });
    }
    Ok(())
}

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
    fn refuses_a_check_that_races_every_local_transaction() {
        let mut config = config();
        config.check_after = Duration::from_secs(5);
        assert!(matches!(config.validate(), Err(ConfigError::CheckTooEarly { .. })));
    }

    #[test]
    fn names_the_setting_that_is_wrong() {
        let mut wrong = config();
        wrong.group = "or ders".into();
        assert!(wrong.validate().unwrap_err().to_string().contains("group is 'or ders'"));
        let mut wrong = config();
        wrong.check_batch = 0;
        assert!(wrong.validate().unwrap_err().to_string().contains("check_batch is 0"));
        let mut wrong = config();
        wrong.check_deadline = Duration::ZERO;
        assert!(wrong.validate().unwrap_err().to_string().contains("check_deadline"));
    }
}

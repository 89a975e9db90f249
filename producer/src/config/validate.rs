//! The bounds of the settings: one clear line for the first mistake.

use std::time::Duration;

use super::{Emission, MAX_NAME_BYTES, ProducerConfig};

const DAY: Duration = Duration::from_secs(86_400);
const DURATION_RANGE: &str = "between 10 ms and one day";
const TRANSACTION_TIMEOUT_RANGE: &str = "between 1 s and 15 min";
const REPLICATION_RANGE: &str = "-1 (the broker's default) or 1 to 100";

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
        self.validate_store_timeout()?;
        self.validate_counts()?;
        self.validate_emission()?;
        self.validate_replication()?;
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

    /// The settings that have a range of their own, and the range in words. What they need of each
    /// other, and of the broker, is in their errors only.
    pub fn ranges(&self) -> Vec<(&'static str, &'static str)> {
        let durations = self.durations().into_iter().map(|(setting, _)| match setting {
            // Not to wait at all is right too.
            "batch_linger" => (setting, "at most one day"),
            _ => (setting, DURATION_RANGE),
        });
        let counts = self.counts().into_iter().map(|(setting, _, _, needed)| (setting, needed));
        let others = [
            ("transaction_timeout", TRANSACTION_TIMEOUT_RANGE),
            ("replication_factor", REPLICATION_RANGE),
            ("min_insync_replicas", REPLICATION_RANGE),
        ];
        durations.chain(counts).chain(others).collect()
    }

    fn durations(&self) -> Vec<(&'static str, Duration)> {
        vec![
            ("start_deadline", self.start_deadline),
            ("prepare_deadline", self.prepare_deadline),
            ("local_deadline", self.local_deadline),
            ("decision_deadline", self.decision_deadline),
            ("store_timeout", self.store_timeout),
            ("check_after", self.check_after),
            ("check_backoff.initial", self.check_backoff.initial),
            ("check_backoff.max", self.check_backoff.max),
            ("check_deadline", self.check_deadline),
            ("shutdown_deadline", self.shutdown_deadline),
            ("trim_interval", self.trim_interval.unwrap_or(DAY)),
            ("batch_linger", self.batch_linger.max(Duration::from_millis(10))),
        ]
    }

    fn validate_durations(&self) -> Result<(), ConfigError> {
        for (setting, value) in self.durations() {
            let needed = DURATION_RANGE;
            if value < Duration::from_millis(10) || value > DAY {
                return Err(ConfigError::Range { setting, value: format!("{value:?}"), needed });
            }
        }
        Ok(())
    }

    fn validate_store_timeout(&self) -> Result<(), ConfigError> {
        if self.store_timeout < self.prepare_deadline.max(self.decision_deadline) {
            return Err(ConfigError::Range {
                setting: "store_timeout",
                value: format!("{:?}", self.store_timeout),
                needed: "at least prepare_deadline and decision_deadline",
            });
        }
        Ok(())
    }

    fn validate_emission(&self) -> Result<(), ConfigError> {
        if self.kafka.embedded && self.emission == Emission::ExactlyOnce {
            return Err(ConfigError::Range {
                setting: "emission",
                value: "exactly-once".into(),
                needed: "at-least-once on the embedded broker, which has no transactions",
            });
        }
        // The broker's own bounds: transaction.max.timeout.ms is 15 minutes by default.
        let (least, most) = (Duration::from_secs(1), Duration::from_secs(900));
        if self.transaction_timeout < least || self.transaction_timeout > most {
            return Err(ConfigError::Range {
                setting: "transaction_timeout",
                value: format!("{:?}", self.transaction_timeout),
                needed: TRANSACTION_TIMEOUT_RANGE,
            });
        }
        // librdkafka refuses a transactional client then, and the first one is made when partitions are taken
        // over. Where nothing is set, it takes what fits.
        let socket = self.kafka.properties.get("socket.timeout.ms");
        let socket = socket.and_then(|value| value.trim().parse::<u128>().ok());
        let longest = self.transaction_timeout.as_millis() + 100;
        if let Some(set) =
            socket.filter(|set| self.emission == Emission::ExactlyOnce && *set > longest)
        {
            return Err(ConfigError::Range {
                setting: "the Kafka property socket.timeout.ms",
                value: set.to_string(),
                needed: "at most transaction_timeout and 100 ms: remove it, or raise transaction_timeout",
            });
        }
        Ok(())
    }

    fn validate_replication(&self) -> Result<(), ConfigError> {
        let (factor, in_sync) = (self.replication_factor, self.min_insync_replicas);
        for (setting, value) in [("replication_factor", factor), ("min_insync_replicas", in_sync)] {
            let needed = REPLICATION_RANGE;
            if value == 0 || !(-1..=100).contains(&value) {
                return Err(ConfigError::Range { setting, value: value.to_string(), needed });
            }
        }
        if factor > 0 && in_sync > factor {
            let (setting, value) = ("min_insync_replicas", in_sync.to_string());
            let needed = "at most replication_factor: nothing could be written";
            return Err(ConfigError::Range { setting, value, needed });
        }
        Ok(())
    }

    fn counts(&self) -> Vec<(&'static str, usize, usize, &'static str)> {
        let count = |value: i32| usize::try_from(value).unwrap_or(0);
        vec![
            ("store_partitions", count(self.store_partitions), 10_000, "1 to 10,000"),
            ("max_checks", self.max_checks as usize, 1_000_000, "1 to 1,000,000"),
            ("check_batch", self.check_batch, 10_000, "1 to 10,000"),
            ("check_concurrency", self.check_concurrency, 1_000, "1 to 1,000"),
            ("max_transactions", self.max_transactions, 1_000_000, "1 to 1,000,000"),
            ("batch_messages", self.batch_messages, 100_000, "1 to 100,000"),
            ("batch_bytes", self.batch_bytes, 1 << 30, "1 to 1 GiB"),
            ("check_batch_bytes", self.check_batch_bytes, 1 << 30, "1 to 1 GiB"),
            ("body_budget_bytes", self.body_budget_bytes, 1 << 40, "1 to 1 TiB"),
            ("max_queued_messages", self.max_queued_messages, 1_000_000, "1 to 1,000,000"),
            ("max_queued_bytes", self.max_queued_bytes, 1 << 30, "1 to 1 GiB"),
            ("max_message_bytes", self.max_message_bytes, 100_000_000, "1 to 100,000,000"),
        ]
    }

    fn validate_counts(&self) -> Result<(), ConfigError> {
        for (setting, value, max, needed) in self.counts() {
            if value == 0 || value > max {
                return Err(ConfigError::Range { setting, value: value.to_string(), needed });
            }
        }
        Ok(())
    }
}

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
    use halfmsg_kafka::KafkaConfig;

    use super::*;
    use crate::resolver::delivery;

    fn config() -> ProducerConfig {
        ProducerConfig::new(KafkaConfig::new("127.0.0.1:9092"), "shop", "orders")
    }

    #[test]
    fn refuses_a_check_that_races_every_local_transaction() {
        let mut config = config();
        config.check_after = Duration::from_secs(5);
        assert!(matches!(config.validate(), Err(ConfigError::CheckTooEarly { .. })));
    }

    /// What librdkafka says only when the first partition is taken over.
    #[test]
    fn refuses_what_no_transactional_client_takes() {
        for (millis, emission, is_right) in [
            ("10100", Emission::ExactlyOnce, true),
            ("10101", Emission::ExactlyOnce, false),
            ("60000", Emission::AtLeastOnce, true),
        ] {
            let mut config = config();
            config.emission = emission;
            config.kafka.properties.insert("socket.timeout.ms".into(), millis.into());
            let found = config.validate();
            assert_eq!(found.is_ok(), is_right, "{millis}: {found:?}");
            assert_eq!(delivery::client(&config, 0).is_ok(), is_right, "{millis}");
        }
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
        let mut wrong = config();
        wrong.replication_factor = 0;
        assert!(wrong.validate().unwrap_err().to_string().contains("replication_factor is 0"));
    }

    #[test]
    fn more_in_sync_than_replicas_is_refused() {
        let mut config = config();
        (config.replication_factor, config.min_insync_replicas) = (3, 3);
        assert_eq!(config.validate(), Ok(()));
        config.min_insync_replicas = 4;
        let refused = config.validate().unwrap_err().to_string();
        assert!(refused.contains("min_insync_replicas is 4"), "{refused}");
    }
}

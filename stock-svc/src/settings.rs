//! Every setting of stock-svc: environment variables, the same as flags, checked all at once.

use std::time::Duration;

use clap::Parser;
use halfmsg_consumer::{RetryLevels, TopicSettings};
use halfmsg_service_kit::settings::replication;
use halfmsg_service_kit::{Common, CommonSettings, Mistakes, ServiceDefaults};

use crate::seed::{self, SeedProduct};

/// The service's name.
pub const NAME: &str = "stock-svc";
const DEFAULTS: ServiceDefaults = ServiceDefaults { name: NAME, listen: "127.0.0.1:8081" };

/// Stock: products, deductions, and the consumer that restores them
#[derive(Debug, Clone, Parser)]
#[command(name = NAME)]
pub struct Settings {
    /// What both services are told.
    #[command(flatten)]
    pub common: CommonSettings,

    /// The topic whose messages ask for restores
    #[arg(long, env = "HALFMSG_ROLLBACK_TOPIC", default_value = "stock.rollback")]
    pub rollback_topic: String,

    /// The consumer group: the replicas that share the topic's partitions. Changing it forgets what
    /// was consumed
    #[arg(long, env = "HALFMSG_GROUP", default_value = NAME)]
    pub group: String,

    /// Products that are added at start if they are not there: sku=quantity, separated by commas
    #[arg(long, env = "HALFMSG_SEED", default_value = "", hide_default_value = true)]
    pub seed: String,

    /// Partitions of the topic, if it is created
    #[arg(long, env = "HALFMSG_TOPIC_PARTITIONS", default_value = "8")]
    pub topic_partitions: String,

    /// Replication factor of the topic, if it is created; -1 is the broker's default. With less, an
    /// existing one is refused
    #[arg(
        long,
        env = "HALFMSG_REPLICATION_FACTOR",
        default_value = "-1",
        allow_hyphen_values = true
    )]
    pub replication_factor: String,

    /// min.insync.replicas of the topic, if it is created; -1 is the broker's default. With less, an
    /// existing one is refused
    #[arg(
        long,
        env = "HALFMSG_MIN_INSYNC_REPLICAS",
        default_value = "-1",
        allow_hyphen_values = true
    )]
    pub min_insync_replicas: String,

    /// Hours for which the topic keeps messages, if it is created; 0 is for ever
    #[arg(long, env = "HALFMSG_TOPIC_RETENTION_HOURS", default_value = "168")]
    pub topic_retention_hours: String,

    /// The delays before the retries of a message that failed, in milliseconds, separated by commas:
    /// as many retries as delays, then it is a dead letter; none: at once. Without it RocketMQ's 16,
    /// from 10 s to 2 h
    #[arg(long, env = "HALFMSG_RETRY_LEVELS_MS")]
    pub retry_levels_ms: Option<String>,

    /// Hours for which messages are remembered, so that they have no second effect; not less than the
    /// topic keeps them; 0 is for ever
    #[arg(long, env = "HALFMSG_INBOX_RETENTION_HOURS", default_value = "360")]
    pub inbox_retention_hours: String,
}

/// The settings after validation. It has no `Debug`: the database's address has a password.
#[derive(Clone)]
pub struct Config {
    /// What both services are told.
    pub common: Common,
    /// The topic whose messages ask for restores.
    pub rollback_topic: String,
    /// The consumer group.
    pub group: String,
    /// What is added at start.
    pub seed: Vec<SeedProduct>,
    /// How the topic is created if it is missing.
    pub topic: TopicSettings,
    /// When a message that failed is tried again.
    pub retry: RetryLevels,
    /// How long the inbox remembers.
    pub inbox_retention: Option<Duration>,
}

/// At most this many delays.
const MAX_LEVELS: usize = 64;
/// The longest delay in milliseconds: 30 days.
const MAX_LEVEL_MILLIS: u64 = 30 * 24 * 3_600_000;

impl Settings {
    /// Reads every value.
    ///
    /// # Errors
    /// All mistakes, one line each.
    pub fn validate(&self) -> Result<Config, Mistakes> {
        let mut mistakes = Mistakes::new();
        let config = self.read(&mut mistakes);
        mistakes.clone().finish()?;
        config.ok_or(mistakes)
    }

    fn read(&self, mistakes: &mut Mistakes) -> Option<Config> {
        let common = self.common.validate(&DEFAULTS, mistakes);
        mistakes.name("HALFMSG_ROLLBACK_TOPIC", &self.rollback_topic);
        mistakes.name("HALFMSG_GROUP", &self.group);
        let seed = seed::read("HALFMSG_SEED", &self.seed, mistakes);
        let topic = self.topic(mistakes);
        let retry = self.retry(mistakes);
        let inbox_retention =
            self.inbox_retention(topic.as_ref().and_then(|topic| topic.retention), mistakes);
        Some(Config {
            common: common?,
            rollback_topic: self.rollback_topic.clone(),
            group: self.group.clone(),
            seed,
            topic: topic?,
            retry: retry?,
            inbox_retention: inbox_retention?,
        })
    }

    fn retry(&self, mistakes: &mut Mistakes) -> Option<RetryLevels> {
        const NAME: &str = "HALFMSG_RETRY_LEVELS_MS";
        let parts: Vec<&str> = match self.retry_levels_ms.as_deref().map(str::trim) {
            None | Some("") => return Some(RetryLevels::default()),
            Some("none") => Vec::new(),
            Some(levels) => levels.split(',').map(str::trim).collect(),
        };
        if parts.len() > MAX_LEVELS {
            mistakes.add(format!(
                "{NAME} has {} delays, at most {MAX_LEVELS} are allowed",
                parts.len()
            ));
            return None;
        }
        let delays: Option<Vec<u64>> =
            parts.iter().map(|part| mistakes.number(NAME, part, 1..=MAX_LEVEL_MILLIS)).collect();
        Some(RetryLevels::new(delays?.into_iter().map(Duration::from_millis)))
    }

    /// `Some(None)` is for ever.
    fn inbox_retention(
        &self,
        topic: Option<Duration>,
        mistakes: &mut Mistakes,
    ) -> Option<Option<Duration>> {
        const NAME: &str = "HALFMSG_INBOX_RETENTION_HOURS";
        let hours = mistakes.number(NAME, &self.inbox_retention_hours, 0..=1_000_000_u64)?;
        let retention = Duration::from_secs(hours * 3600);
        if hours == 0 {
            return Some(None);
        }
        if topic.is_some_and(|topic| retention < topic) {
            mistakes.add(format!(
                "{NAME} is {hours}: less than HALFMSG_TOPIC_RETENTION_HOURS, so a message that is \
                 delivered again could have a second effect"
            ));
            return None;
        }
        Some(Some(retention))
    }

    fn topic(&self, mistakes: &mut Mistakes) -> Option<TopicSettings> {
        let partitions =
            mistakes.number("HALFMSG_TOPIC_PARTITIONS", &self.topic_partitions, 1..=10_000_i32);
        let replication =
            replication(&self.replication_factor, &self.min_insync_replicas, mistakes);
        let hours = mistakes.number(
            "HALFMSG_TOPIC_RETENTION_HOURS",
            &self.topic_retention_hours,
            0..=1_000_000_u64,
        )?;
        let (replication_factor, min_insync_replicas) = replication?;
        let retention = (hours > 0).then(|| Duration::from_secs(hours * 3600));
        Some(TopicSettings {
            partitions: partitions?,
            replication_factor,
            min_insync_replicas,
            retention,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAST: [&str; 3] = ["x", "--kafka-brokers=k:9092", "--database-url=sqlite://x.db"];

    fn validate(more: &[&str]) -> Result<Config, Mistakes> {
        let arguments = LEAST.iter().chain(more).copied();
        let settings: Settings =
            halfmsg_service_kit::settings::parse_from(arguments).expect("known flags");
        settings.validate()
    }

    #[test]
    fn the_defaults_are_valid() {
        let Ok(config) = validate(&[]) else { panic!("the defaults are valid") };
        assert_eq!(config.rollback_topic, "stock.rollback");
        assert_eq!(config.common.listen.port(), 8081);
        assert_eq!(config.topic, TopicSettings::default());
        assert_eq!(config.seed, []);
    }

    #[test]
    fn every_mistake_is_one_line() {
        let Err(mistakes) = validate(&[
            "--rollback-topic=a b",
            "--group=",
            "--replication-factor=0",
            "--topic-partitions=0",
            "--topic-retention-hours=x",
            "--seed=apple",
        ]) else {
            panic!("six mistakes")
        };
        for name in [
            "HALFMSG_ROLLBACK_TOPIC is",
            "HALFMSG_GROUP is",
            "HALFMSG_REPLICATION_FACTOR is",
            "HALFMSG_TOPIC_PARTITIONS is",
            "HALFMSG_TOPIC_RETENTION_HOURS is",
            "HALFMSG_SEED has",
        ] {
            let lines = mistakes.lines();
            assert_eq!(lines.iter().filter(|line| line.starts_with(name)).count(), 1, "{lines:?}");
        }
    }

    #[test]
    fn retries_as_rocketmq_or_as_told() {
        let levels = |more: &[&str]| validate(more).ok().map(|config| config.retry);
        assert_eq!(levels(&[]), Some(RetryLevels::default()));
        let told = RetryLevels::new([100, 2_000].map(Duration::from_millis));
        assert_eq!(levels(&["--retry-levels-ms=100, 2000"]), Some(told));
        assert_eq!(levels(&["--retry-levels-ms=none"]), Some(RetryLevels::new([])));
        for wrong in ["--retry-levels-ms=0", "--retry-levels-ms=1,x", "--retry-levels-ms=1,"] {
            assert_eq!(levels(&[wrong]), None, "{wrong}");
        }
    }

    #[test]
    fn the_inbox_remembers_as_long_as_the_topic() {
        assert!(validate(&["--inbox-retention-hours=167"]).is_err());
        let config = validate(&["--inbox-retention-hours=0"]);
        assert!(config.is_ok_and(|config| config.inbox_retention.is_none()));
    }

    #[test]
    fn keeps_messages_for_ever_if_told_so() {
        let config = validate(&["--topic-retention-hours=0"]);
        assert!(config.is_ok_and(|config| config.topic.retention.is_none()));
    }
}

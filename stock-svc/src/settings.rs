//! Every setting of stock-svc: environment variables, the same as flags, checked all at once.

use clap::Parser;
use halfmsg_service_kit::{
    Common, CommonSettings, Delivery, DeliverySettings, Mistakes, ServiceDefaults,
};

use crate::seed::{self, SeedProduct};
use crate::{group_commit, service};

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

    /// The topic whose messages ask for the stock of an order
    #[arg(long, env = "HALFMSG_CREATED_TOPIC", default_value = "order.created")]
    pub created_topic: String,

    /// The topic of the answers to them
    #[arg(long, env = "HALFMSG_OUTBOUND_TOPIC", default_value = "stock.outbound")]
    pub outbound_topic: String,

    /// The consumer group of restores, and with .deductions behind it that of deductions: the
    /// replicas that share the topics' partitions. Changing it forgets what was consumed
    #[arg(long, env = "HALFMSG_GROUP", default_value = NAME)]
    pub group: String,

    /// Products that are added at start if they are not there: sku=quantity, separated by commas
    #[arg(long, env = "HALFMSG_SEED", default_value = "", hide_default_value = true)]
    pub seed: String,

    /// At most so many deductions asked for over HTTP share a transaction, where so many wait: 1 to
    /// 1000; 1 gives each its own
    #[arg(long, env = "HALFMSG_DEDUCT_TOGETHER", default_value = "64")]
    pub deduct_together: String,

    /// At most so many messages of a topic are restored, or deducted, in one transaction: 1 to 5000.
    /// More are faster, and hold their products for longer
    #[arg(long, env = "HALFMSG_MESSAGES_TOGETHER", default_value = "500")]
    pub messages_together: String,

    /// Its consumers.
    #[command(flatten)]
    pub delivery: DeliverySettings,
}

/// The settings after validation. It has no `Debug`: the database's address has a password.
#[derive(Clone)]
pub struct Config {
    /// What both services are told.
    pub common: Common,
    /// The topic whose messages ask for restores.
    pub rollback_topic: String,
    /// The topic whose messages ask for deductions.
    pub created_topic: String,
    /// The topic of their answers.
    pub outbound_topic: String,
    /// The consumer group.
    pub group: String,
    /// What is added at start.
    pub seed: Vec<SeedProduct>,
    /// At most so many deductions over HTTP share a transaction.
    pub deduct_together: usize,
    /// At most so many messages are restored, or deducted, in one transaction.
    pub messages_together: usize,
    /// Its consumers.
    pub delivery: Delivery,
}

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
        mistakes.different_topics(&[
            ("HALFMSG_ROLLBACK_TOPIC", &self.rollback_topic),
            ("HALFMSG_CREATED_TOPIC", &self.created_topic),
            ("HALFMSG_OUTBOUND_TOPIC", &self.outbound_topic),
        ]);
        mistakes.name("HALFMSG_GROUP", &self.group);
        let seed = seed::read("HALFMSG_SEED", &self.seed, mistakes);
        let deduct_together = mistakes.number(
            "HALFMSG_DEDUCT_TOGETHER",
            &self.deduct_together,
            1..=group_commit::MAX_ORDERS,
        );
        let messages_together = mistakes.number(
            "HALFMSG_MESSAGES_TOGETHER",
            &self.messages_together,
            1..=service::MAX_MESSAGES,
        );
        let delivery = self.delivery.read(mistakes);
        Some(Config {
            common: common?,
            rollback_topic: self.rollback_topic.clone(),
            created_topic: self.created_topic.clone(),
            outbound_topic: self.outbound_topic.clone(),
            group: self.group.clone(),
            seed,
            deduct_together: deduct_together?,
            messages_together: messages_together?,
            delivery: delivery?,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use halfmsg_consumer::{RetryLevels, TopicSettings};

    use super::*;

    const LEAST: [&str; 3] = ["x", "--kafka-brokers=k:9092", "--database-url=sqlite://x.db"];

    fn validate(more: &[&str]) -> Result<Config, Mistakes> {
        let arguments = LEAST.iter().chain(more).copied();
        let settings: Settings =
            halfmsg_service_kit::settings::parse_flags(arguments).expect("known flags");
        settings.validate()
    }

    #[test]
    fn the_defaults_are_valid() {
        let Ok(config) = validate(&[]) else { panic!("the defaults are valid") };
        assert_eq!(config.rollback_topic, "stock.rollback");
        assert_eq!(config.common.listen.port(), 8081);
        assert_eq!(config.delivery.topic, TopicSettings::default());
        assert_eq!(config.seed, []);
        assert_eq!(config.deduct_together, group_commit::DEFAULT_ORDERS);
        assert_eq!(config.messages_together, service::DEFAULT_MESSAGES);
    }

    #[test]
    fn every_mistake_is_one_line() {
        let Err(mistakes) = validate(&[
            "--rollback-topic=a b",
            "--group=",
            "--replication-factor=0",
            "--topic-partitions=0",
            "--topic-retention-hours=x",
            "--deduct-together=0",
            "--messages-together=5001",
            "--seed=apple",
        ]) else {
            panic!("eight mistakes")
        };
        for name in [
            "HALFMSG_ROLLBACK_TOPIC is",
            "HALFMSG_GROUP is",
            "HALFMSG_REPLICATION_FACTOR is",
            "HALFMSG_TOPIC_PARTITIONS is",
            "HALFMSG_TOPIC_RETENTION_HOURS is",
            "HALFMSG_DEDUCT_TOGETHER is",
            "HALFMSG_MESSAGES_TOGETHER is",
            "HALFMSG_SEED has",
        ] {
            let lines = mistakes.lines();
            assert_eq!(lines.iter().filter(|line| line.starts_with(name)).count(), 1, "{lines:?}");
        }
    }

    #[test]
    fn retries_as_rocketmq_or_as_told() {
        let levels = |more: &[&str]| validate(more).ok().map(|config| config.delivery.retry);
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
        assert!(config.is_ok_and(|config| config.delivery.inbox_retention.is_none()));
    }

    #[test]
    fn keeps_messages_for_ever_if_told_so() {
        let config = validate(&["--topic-retention-hours=0"]);
        assert!(config.is_ok_and(|config| config.delivery.topic.retention.is_none()));
    }
}

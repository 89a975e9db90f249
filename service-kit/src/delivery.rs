//! The settings of a service's consumers: the topics that are made, their retries, their inbox.

use std::time::Duration;

use clap::Args;
use halfmsg_consumer::{ConsumerConfig, DEFAULT_INBOX_RETENTION, RetryLevels, TopicSettings};

use crate::mistakes::Mistakes;
use crate::settings::replication;

/// At most this many delays.
const MAX_LEVELS: usize = 64;
/// The longest delay in milliseconds: 30 days.
const MAX_LEVEL_MILLIS: u64 = 30 * 24 * 3_600_000;

/// As the settings have it: 0 is for ever.
fn hours(retention: Option<Duration>) -> String {
    retention.map_or(0, |retention| retention.as_secs() / 3600).to_string()
}

/// What a service that consumes is told. All values are text until [`DeliverySettings::read`].
#[derive(Debug, Clone, Args)]
pub struct DeliverySettings {
    /// Partitions of a topic that is consumed, if it is created
    #[arg(long, env = "HALFMSG_TOPIC_PARTITIONS", default_value_t = TopicSettings::default().partitions.to_string())]
    pub topic_partitions: String,

    /// Hours for which such a topic keeps messages, if it is created; 0 is for ever
    #[arg(long, env = "HALFMSG_TOPIC_RETENTION_HOURS", default_value_t = hours(TopicSettings::default().retention))]
    pub topic_retention_hours: String,

    /// Replication factor of topics that are created; -1 is the broker's default. With less, an
    /// existing one is refused
    #[arg(
        long,
        env = "HALFMSG_REPLICATION_FACTOR",
        default_value_t = TopicSettings::default().replication_factor.to_string(),
        allow_hyphen_values = true
    )]
    pub replication_factor: String,

    /// min.insync.replicas of topics that are created; -1 is the broker's default. With less, an
    /// existing one is refused
    #[arg(
        long,
        env = "HALFMSG_MIN_INSYNC_REPLICAS",
        default_value_t = TopicSettings::default().min_insync_replicas.to_string(),
        allow_hyphen_values = true
    )]
    pub min_insync_replicas: String,

    /// The delays before the retries of a message that failed, in milliseconds, separated by commas:
    /// as many retries as delays, then it is a dead letter; none: at once. Without it RocketMQ's 16,
    /// from 10 s to 2 h
    #[arg(long, env = "HALFMSG_RETRY_LEVELS_MS")]
    pub retry_levels_ms: Option<String>,

    /// Hours for which messages are remembered, so that they have no second effect; not less than the
    /// topic keeps them, unless that is for ever (docs/guarantees.md tells what holds then); 0 is for ever
    #[arg(long, env = "HALFMSG_INBOX_RETENTION_HOURS", default_value_t = hours(Some(DEFAULT_INBOX_RETENTION)))]
    pub inbox_retention_hours: String,
}

/// The settings after validation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// How a topic is created if it is missing.
    pub topic: TopicSettings,
    /// When a message that failed is tried again.
    pub retry: RetryLevels,
    /// How long the inbox remembers; none is for ever.
    pub inbox_retention: Option<Duration>,
}

impl Delivery {
    /// The same settings of a consumer, with these.
    pub fn of(&self, config: ConsumerConfig) -> ConsumerConfig {
        ConsumerConfig {
            topic: self.topic.clone(),
            retry: self.retry.clone(),
            inbox_retention: self.inbox_retention,
            ..config
        }
    }

    /// Tells, at a start, what the settings allow and may not be meant.
    pub fn tell(&self) {
        if let Some(warning) = self.warning() {
            tracing::warn!("{warning}");
        }
    }

    /// A report that goes back to the first order needs topics that keep all, so it is no mistake.
    fn warning(&self) -> Option<String> {
        let remembered = self.inbox_retention.filter(|_| self.topic.retention.is_none())?;
        Some(format!(
            "topics keep messages for ever (HALFMSG_TOPIC_RETENTION_HOURS), the inbox remembers them for {} \
             h (HALFMSG_INBOX_RETENTION_HOURS): what is read again after that is handled again",
            remembered.as_secs() / 3600
        ))
    }
}

impl DeliverySettings {
    /// Reads every value. Every mistake adds a line.
    pub fn read(&self, mistakes: &mut Mistakes) -> Option<Delivery> {
        let topic = self.topic(mistakes);
        let retry = self.retry(mistakes);
        let kept = topic.as_ref().and_then(|topic| topic.retention);
        let inbox_retention = self.inbox_retention(kept, mistakes);
        Some(Delivery { topic: topic?, retry: retry?, inbox_retention: inbox_retention? })
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
        let replication =
            replication(&self.replication_factor, &self.min_insync_replicas, mistakes);
        let partitions =
            mistakes.number("HALFMSG_TOPIC_PARTITIONS", &self.topic_partitions, 1..=10_000_i32);
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

    #[test]
    fn topics_that_outlive_the_inbox_are_told() {
        let with = |topic: Option<u64>, inbox: Option<u64>| {
            let hours = |hours: u64| Duration::from_secs(hours * 3600);
            let retention = topic.map(hours);
            let topic = TopicSettings { retention, ..TopicSettings::default() };
            let retry = RetryLevels::default();
            Delivery { topic, retry, inbox_retention: inbox.map(hours) }.warning()
        };
        assert!(with(None, Some(360)).is_some_and(|warning| warning.contains("for 360 h")));
        assert_eq!(
            [with(Some(168), Some(360)), with(None, None), with(Some(168), None)],
            [const { None }; 3]
        );
    }
}

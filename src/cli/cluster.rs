//! Which group of which cluster a command is about.

use std::time::Duration;

use halfmsg_kafka::{DEFAULT_TOPIC_PREFIX, KafkaConfig};
use halfmsg_producer::{OperatorClient, SnapshotLimits};
use halfmsg_service_kit::{Mistakes, settings};

use super::failure::Failure;
use super::output::Output;
use super::progress;

/// The flags that every command about a group has.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct ClusterArgs {
    /// host:port of the brokers, separated by commas
    #[arg(long, visible_alias = "kafka-brokers", env = "KAFKA_BROKERS")]
    brokers: String,
    /// The producer group
    #[arg(long, env = "HALFMSG_GROUP", default_value = order_svc::settings::NAME)]
    group: String,
    /// The prefix of the group's topics
    #[arg(long, env = "HALFMSG_TOPIC_PREFIX", default_value = DEFAULT_TOPIC_PREFIX)]
    topic_prefix: String,
    /// librdkafka properties: name=value, separated by commas
    #[arg(
        long,
        env = "HALFMSG_KAFKA_PROPERTIES",
        default_value = "",
        hide_default_value = true,
        hide_env_values = true,
        allow_hyphen_values = true
    )]
    kafka_properties: String,
    /// How results are printed
    #[arg(long, value_enum, default_value = "text")]
    pub(crate) output: Output,
    /// Give up a look at the store after so many seconds
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    timeout_seconds: u64,
    /// Refuse to read more records than this in one look
    #[arg(long, default_value_t = 20_000_000)]
    max_records: u64,
}

impl ClusterArgs {
    /// A client for the group; a long look shows a bar on a terminal.
    pub(crate) fn client(&self) -> Result<OperatorClient, Failure> {
        Ok(self.quiet_client()?.on_progress(progress::on_stderr()))
    }

    /// One that shows no bar.
    pub(crate) fn quiet_client(&self) -> Result<OperatorClient, Failure> {
        let mut mistakes = Mistakes::new();
        let mut kafka = KafkaConfig::new(&self.brokers);
        kafka.properties = settings::kafka_properties(&self.kafka_properties, &mut mistakes);
        mistakes.finish()?;
        let client = OperatorClient::new(kafka, &self.topic_prefix, &self.group)?;
        Ok(client.limits(SnapshotLimits {
            deadline: Duration::from_secs(self.timeout_seconds),
            max_records: self.max_records,
        }))
    }
}

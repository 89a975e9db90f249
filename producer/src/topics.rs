//! The store and the parked topic: created with the settings that the guarantees need, or verified.

use std::time::{Duration, Instant};

use halfmsg_kafka::{TopicError, TopicSpec, ensure_topic};

use crate::config::{ProducerConfig, RETRY_DELAY};

/// What a store record may have besides the user's part.
const STORE_MARGIN_BYTES: usize = 64 * 1_024;
/// What a parked record may have besides a store record.
const PARKED_MARGIN_BYTES: usize = 64 * 1_024;
/// A takeover reads the parked topic whole, and compaction never touches the segment that is being
/// written: it is what may stay of messages that are long settled, so it is small. Kafka's default is
/// 1 GiB.
const PARKED_SEGMENT_BYTES: usize = 16 * 1_024 * 1_024;
/// After so long (an hour) a segment is closed, however little is in it, and compacted, however little
/// of it is settled; compacting small segments costs little. Kafka's defaults are a week and never.
const PARKED_SEGMENT_MS: &str = "3600000";
/// One look at a topic.
const LOOKUP: Duration = Duration::from_secs(10);

pub(crate) fn store_record_bytes(config: &ProducerConfig) -> usize {
    config.max_message_bytes + STORE_MARGIN_BYTES
}

pub(crate) fn parked_record_bytes(config: &ProducerConfig) -> usize {
    store_record_bytes(config) + PARKED_MARGIN_BYTES
}

fn spec(
    config: &ProducerConfig,
    name: String,
    settings: &[(&str, &str)],
    required: &[&str],
    advised: &[&str],
) -> TopicSpec {
    let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    TopicSpec {
        name,
        partitions: config.store_partitions,
        replication_factor: config.replication_factor,
        min_insync_replicas: config.min_insync_replicas,
        settings: settings.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        required: owned(required),
        at_least: owned(&["max.message.bytes"]),
        advised: owned(advised),
    }
}

fn store(config: &ProducerConfig) -> TopicSpec {
    let max_bytes = store_record_bytes(config).to_string();
    let settings = [
        ("cleanup.policy", "delete"),
        ("retention.ms", "-1"),
        ("retention.bytes", "-1"),
        ("message.timestamp.type", "LogAppendTime"),
        ("unclean.leader.election.enable", "false"),
        // Small, so that trimming frees space soon.
        ("segment.bytes", "67108864"),
        ("max.message.bytes", &max_bytes),
    ];
    let required = [
        "cleanup.policy",
        "retention.ms",
        "retention.bytes",
        "message.timestamp.type",
        "unclean.leader.election.enable",
    ];
    spec(config, config.store_topic(), &settings, &required, &[])
}

fn parked(config: &ProducerConfig) -> TopicSpec {
    let max_bytes = parked_record_bytes(config).to_string();
    let segment_bytes = PARKED_SEGMENT_BYTES.max(4 * parked_record_bytes(config)).to_string();
    let settings = [
        ("cleanup.policy", "compact"),
        ("unclean.leader.election.enable", "false"),
        ("max.message.bytes", max_bytes.as_str()),
        ("segment.bytes", &segment_bytes),
        ("segment.ms", PARKED_SEGMENT_MS),
        ("min.cleanable.dirty.ratio", "0.1"),
        ("max.compaction.lag.ms", PARKED_SEGMENT_MS),
    ];
    let required = ["cleanup.policy", "unclean.leader.election.enable"];
    let advised =
        ["segment.bytes", "segment.ms", "min.cleanable.dirty.ratio", "max.compaction.lag.ms"];
    spec(config, config.parked_topic(), &settings, &required, &advised)
}

/// Both, as they must be.
pub(crate) fn specs(config: &ProducerConfig) -> [TopicSpec; 2] {
    [store(config), parked(config)]
}

/// Creates or verifies both; waits for a broker that is away, up to the start deadline.
pub(crate) async fn ensure(config: &ProducerConfig) -> Result<(), TopicError> {
    let until = Instant::now() + config.start_deadline;
    for topic in specs(config) {
        loop {
            match ensure_topic(&config.kafka, &topic, LOOKUP).await {
                Ok(status) => {
                    tracing::debug!(topic = topic.name, ?status, "topic");
                    break;
                }
                Err(error) if error.is_passing() && Instant::now() < until => {
                    tracing::warn!(%error, "waiting for Kafka");
                    tokio::time::sleep(RETRY_DELAY).await;
                }
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

//! Reads partitions of a small topic from their beginning to their end.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use halfmsg_kafka::KafkaConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::{Offset, TopicPartitionList};

/// One wait for a message.
const POLL: Duration = Duration::from_millis(50);

/// Whether the broker says that this client has no right to what it asks for: waiting does not help.
pub(crate) fn is_denied(error: &KafkaError) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(
        error.rdkafka_error_code(),
        Some(
            Code::TopicAuthorizationFailed
                | Code::GroupAuthorizationFailed
                | Code::ClusterAuthorizationFailed
                | Code::TransactionalIdAuthorizationFailed
        )
    )
}

/// Reading needs no right to the group.
fn is_of_the_group(error: &KafkaError) -> bool {
    error.rdkafka_error_code() == Some(RDKafkaErrorCode::GroupAuthorizationFailed)
}

/// Shows every record that these partitions held when it began. Blocks up to the deadline.
///
/// # Errors
/// What the client says, at once if it has no right to read; [`KafkaError::NoMessageReceived`] past the deadline.
pub(crate) fn scan(
    kafka: &KafkaConfig,
    topic: &str,
    partitions: &[i32],
    deadline: Duration,
    mut show: impl FnMut(&BorrowedMessage<'_>),
) -> Result<(), KafkaError> {
    let until = Instant::now() + deadline;
    let left = || until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    // The client needs a group's name, although nothing is committed: the topic's is one that this
    // application has the right to.
    let mut config = kafka.consumer(topic);
    let consumer: BaseConsumer = config.set("isolation.level", "read_committed").create()?;
    consumer.fetch_metadata(Some(topic), left())?;
    let mut ends: HashMap<i32, i64> = HashMap::new();
    let mut assignment = TopicPartitionList::new();
    for partition in partitions {
        let (low, high) = consumer.fetch_watermarks(topic, *partition, left())?;
        if high > low {
            ends.insert(*partition, high);
            assignment.add_partition_offset(topic, *partition, Offset::Beginning)?;
        }
    }
    if !ends.is_empty() {
        consumer.assign(&assignment)?;
    }
    while !ends.is_empty() {
        if Instant::now() > until {
            return Err(KafkaError::NoMessageReceived);
        }
        match consumer.poll(POLL) {
            Some(Ok(message)) => {
                show(&message);
                let end = ends.get(&message.partition());
                if end.is_some_and(|end| message.offset() + 1 >= *end) {
                    ends.remove(&message.partition());
                }
            }
            Some(Err(error)) if is_denied(&error) && !is_of_the_group(&error) => return Err(error),
            Some(Err(error)) => tracing::debug!(%error, topic, "reading to the end"),
            // Compaction and transactions leave gaps at the end: ask where the consumer stands.
            None => {
                let position = consumer.position()?;
                ends.retain(|partition, end| {
                    let at = position.find_partition(topic, *partition).map(|found| found.offset());
                    !matches!(at, Some(Offset::Offset(at)) if at >= *end)
                });
            }
        }
    }
    Ok(())
}

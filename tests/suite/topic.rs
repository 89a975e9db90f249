//! The records of a topic, raw: read from its beginning to its end, or written by hand.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use halfmsg_kafka::KafkaConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{Header, Headers, Message, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::{Offset, TopicPartitionList};

/// From one record to the next when a topic is read, or writing one.
const DEADLINE: Duration = Duration::from_secs(60);
/// One poll.
const POLL: Duration = Duration::from_millis(50);

/// A record.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Entry {
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    pub(crate) timestamp_ms: Option<i64>,
    pub(crate) key: Option<Vec<u8>>,
    pub(crate) headers: Vec<(String, Option<Vec<u8>>)>,
    pub(crate) payload: Option<Vec<u8>>,
}

impl Entry {
    /// A copy of a record.
    pub(crate) fn of(message: &impl Message) -> Self {
        let headers = message.headers().map_or_else(Vec::new, |headers| {
            let value = |header: Header<'_, &[u8]>| header.value.map(<[u8]>::to_vec);
            headers.iter().map(|header| (header.key.to_owned(), value(header))).collect()
        });
        Self {
            partition: message.partition(),
            offset: message.offset(),
            timestamp_ms: message.timestamp().to_millis(),
            key: message.key().map(<[u8]>::to_vec),
            headers,
            payload: message.payload().map(<[u8]>::to_vec),
        }
    }

    /// The value of the last header of this name.
    pub(crate) fn header(&self, name: &str) -> Option<&[u8]> {
        let found = self.headers.iter().rfind(|(found, _)| found == name);
        found.and_then(|(_, value)| value.as_deref())
    }
}

/// A consumer that stands at the beginning of every partition of the topic. Blocks.
pub(crate) fn from_the_beginning(
    kafka: &KafkaConfig,
    topic: &str,
) -> Result<(BaseConsumer, usize), KafkaError> {
    let mut client = kafka.consumer("halfmsg-tests");
    client.set("isolation.level", "read_committed").set("enable.partition.eof", "true");
    let consumer: BaseConsumer = client.create()?;
    let metadata = consumer.fetch_metadata(Some(topic), DEADLINE)?;
    let mut assignment = TopicPartitionList::new();
    for found in metadata.topics().iter().flat_map(|topic| topic.partitions()) {
        assignment.add_partition_offset(topic, found.id(), Offset::Beginning)?;
    }
    consumer.assign(&assignment)?;
    Ok((consumer, assignment.count()))
}

/// Every record that is in the topic now, in the order of each partition.
pub(crate) async fn read_all(kafka: &KafkaConfig, topic: &str) -> Vec<Entry> {
    let (kafka, name) = (kafka.clone(), topic.to_owned());
    let read = tokio::task::spawn_blocking(move || read(&kafka, &name)).await;
    let read = read.expect("reading does not panic");
    read.unwrap_or_else(|error| panic!("reading {topic}: {error}"))
}

fn read(kafka: &KafkaConfig, topic: &str) -> Result<Vec<Entry>, KafkaError> {
    let (consumer, partitions) = from_the_beginning(kafka, topic)?;
    let mut until = Instant::now() + DEADLINE;
    let (mut entries, mut ended) = (Vec::new(), HashSet::new());
    while ended.len() < partitions {
        match consumer.poll(POLL) {
            Some(Ok(message)) => {
                entries.push(Entry::of(&message));
                until = Instant::now() + DEADLINE;
            }
            Some(Err(KafkaError::PartitionEOF(partition))) => drop(ended.insert(partition)),
            // Passing errors are told as well; the deadline ends what does not pass.
            Some(Err(_)) | None if Instant::now() < until => {}
            Some(Err(error)) => return Err(error),
            None => return Err(KafkaError::NoMessageReceived),
        }
    }
    Ok(entries)
}

/// Writes a record by hand into its partition; its offset.
pub(crate) async fn write(kafka: &KafkaConfig, topic: &str, entry: &Entry) -> i64 {
    let producer: FutureProducer = kafka.producer().create().expect("a producer");
    let headers = entry.headers.iter().fold(OwnedHeaders::new(), |headers, (key, value)| {
        headers.insert(Header { key, value: value.as_deref() })
    });
    let mut record: FutureRecord<'_, [u8], [u8]> =
        FutureRecord::to(topic).partition(entry.partition).headers(headers);
    if let Some(key) = &entry.key {
        record = record.key(key.as_slice());
    }
    if let Some(payload) = &entry.payload {
        record = record.payload(payload.as_slice());
    }
    let sent = producer.send(record, DEADLINE).await;
    sent.unwrap_or_else(|(error, _)| panic!("writing to {topic}: {error}")).offset
}

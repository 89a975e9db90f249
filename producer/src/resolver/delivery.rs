//! The client that a partition's deliveries and parked records go through, the records that they
//! become, and what errors mean.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::Thread;
use std::time::Duration;

use bytes::Bytes;
use halfmsg_protocol::{Half, LOCAL_TRANSACTION_ID_HEADER, TRANSACTION_ID_HEADER};
use rdkafka::ClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, ProducerContext, ThreadedProducer};

use crate::config::{Emission, ProducerConfig};
use crate::parked::ParkedRecord;

/// Between two looks whether the batch is to be given up.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// The client's own bounds are its largest: a record that was stored under other settings, or is none
/// of ours, is the topic's to take or to refuse. The client holds one batch at a time.
const RECORD_BYTES: &str = "1000000000";
const QUEUE_KB: &str = "2147483647";
/// Messages without a key stay with one partition of their target for so many milliseconds: else each
/// of a batch would go to another one, and a Kafka transaction end in all of them (KIP-480).
const STICKY_MILLIS: &str = "10";
const STICKY: &str = "sticky.partitioning.linger.ms";
/// The client's default for records of one request to one partition; topics for small messages take
/// less.
const REQUEST_BYTES: usize = 1_000_000;

/// The delivery reports of one batch. Those of a batch that was given up reach nobody.
pub(crate) struct Reports {
    left: AtomicUsize,
    failures: Mutex<Vec<(usize, KafkaError)>>,
    waiting: Thread,
}

impl Reports {
    /// Of so many records; the thread that calls is the one that waits.
    pub(crate) fn of(records: usize) -> Arc<Self> {
        let failures = Mutex::default();
        Arc::new(Self { left: records.into(), failures, waiting: std::thread::current() })
    }

    /// The record of the item at this index has come to its end.
    pub(crate) fn done(&self, index: usize, result: Result<(), KafkaError>) {
        if let Err(error) = result {
            let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
            failures.push((index, error));
        }
        if self.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.waiting.unpark();
        }
    }

    /// Waits until every record has come to its end; false if told to stop before.
    pub(crate) fn wait(&self, stop: &AtomicBool) -> bool {
        while self.left.load(Ordering::Acquire) > 0 {
            if stop.load(Ordering::Relaxed) {
                return false;
            }
            std::thread::park_timeout(LOOK_INTERVAL);
        }
        true
    }

    /// What failed, in the order of the items.
    pub(crate) fn failures(&self) -> Vec<(usize, KafkaError)> {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let mut taken = std::mem::take(&mut *failures);
        taken.sort_by_key(|(index, _)| *index);
        taken
    }
}

/// Hands delivery reports to the batch that they belong to.
pub(crate) struct LaneContext;

impl ClientContext for LaneContext {}

impl ProducerContext for LaneContext {
    type DeliveryOpaque = Box<Report>;

    fn delivery(&self, result: &DeliveryResult<'_>, report: Box<Report>) {
        let result = match result {
            Ok(_) => Ok(()),
            Err((error, _)) => Err(error.clone()),
        };
        report.batch.done(report.index, result);
    }
}

/// Which item of which batch a record belongs to.
pub(crate) struct Report {
    pub(crate) batch: Arc<Reports>,
    pub(crate) index: usize,
}

/// An idempotent producer; a transactional one in exactly-once mode.
pub(crate) type Client = ThreadedProducer<LaneContext>;
/// A record on its way.
pub(crate) type Outgoing<'a> = BaseRecord<'a, [u8], [u8], Box<Report>>;

/// The client of one store partition.
pub(crate) fn client(config: &ProducerConfig, partition: i32) -> Result<Client, KafkaError> {
    settings(config, partition).create_with_context(LaneContext)
}

fn settings(config: &ProducerConfig, partition: i32) -> ClientConfig {
    let max_record_bytes = crate::topics::parked_record_bytes(config);
    let mut client = config.kafka.producer();
    client
        // The agreement with Java clients on which partition a key goes to.
        .set("partitioner", "murmur2_random")
        .set("topic.metadata.propagation.max.ms", "5000")
        .set("message.max.bytes", RECORD_BYTES)
        .set("batch.size", max_record_bytes.min(REQUEST_BYTES).to_string())
        // Each item is two records at most, and marks are cleared along with them.
        .set("queue.buffering.max.messages", (4 * config.batch_messages + 1_000).to_string())
        .set("queue.buffering.max.kbytes", QUEUE_KB);
    if !config.kafka.properties.contains_key(STICKY) {
        client.set(STICKY, STICKY_MILLIS);
    }
    match config.emission {
        // A broker that is away holds deliveries up for as long as it takes.
        Emission::AtLeastOnce => client.set("message.timeout.ms", "0"),
        Emission::ExactlyOnce => {
            let timeout = config.transaction_timeout.as_millis().to_string();
            client
                .set("transactional.id", config.transactional_id(partition))
                .set("transaction.timeout.ms", &timeout)
                .set("message.timeout.ms", &timeout)
        }
    };
    client
}

/// The delivered record: the user's key, payload, headers and timestamp, and the transaction id as
/// text, by which a consumer in any language deduplicates.
pub(crate) fn delivery(half: &Half, report: Report) -> Outgoing<'_> {
    let mut record: Outgoing<'_> = BaseRecord::with_opaque_to(&half.meta.topic, Box::new(report))
        .headers(delivered_headers(half))
        .timestamp(half.meta.timestamp_ms);
    if let Some(key) = &half.body.key {
        record = record.key(key.as_ref());
    }
    if let Some(payload) = &half.body.payload {
        record = record.payload(payload.as_ref());
    }
    record
}

/// A record of the parked topic.
pub(crate) fn parked<'a>(
    topic: &'a str,
    partition: i32,
    parked: &'a ParkedRecord,
    report: Report,
) -> Outgoing<'a> {
    let mut record: Outgoing<'_> = BaseRecord::with_opaque_to(topic, Box::new(report))
        .partition(partition)
        .headers(headers(&parked.headers))
        .key(parked.key.as_bytes());
    if let Some(payload) = &parked.payload {
        record = record.payload(payload.as_ref());
    }
    record
}

/// The user's headers and ours, as the target gets them.
pub(crate) fn delivered_headers(half: &Half) -> OwnedHeaders {
    let id = half.meta.id.to_string();
    let mut headers = headers(&half.body.headers)
        .insert(Header { key: TRANSACTION_ID_HEADER, value: Some(id.as_bytes()) });
    if let Some(local) = half.meta.local_transaction.map(|id| id.to_string()) {
        let (key, value) = (LOCAL_TRANSACTION_ID_HEADER, Some(local.as_bytes()));
        headers = headers.insert(Header { key, value });
    }
    headers
}

fn headers(from: &[(String, Option<Bytes>)]) -> OwnedHeaders {
    from.iter().fold(OwnedHeaders::new_with_capacity(from.len() + 1), |headers, (key, value)| {
        headers.insert(Header { key, value: value.as_deref() })
    })
}

/// Who is to blame for a failed delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Blame {
    /// Its topic: it is missing, or not for us.
    Topic,
    /// Whoever gives the rights: there is none to write to its topic, or it has not reached every broker.
    Right,
    /// A message of its batch, which the broker refuses as a whole.
    Batch,
    /// Nobody that sending again would not help.
    Nobody,
}

/// Whether the record is too large, or the request that it was in.
pub(crate) fn is_too_large(error: &KafkaError) -> bool {
    use RDKafkaErrorCode::{InvalidMessageSize, MessageBatchTooLarge, MessageSizeTooLarge};
    let code = error.rdkafka_error_code();
    matches!(code, Some(InvalidMessageSize | MessageBatchTooLarge | MessageSizeTooLarge))
}

/// Reads an error.
pub(crate) fn blame(error: &KafkaError) -> Blame {
    use RDKafkaErrorCode as Code;
    let KafkaError::MessageProduction(code) = error else { return Blame::Nobody };
    match code {
        Code::UnknownTopic
        | Code::UnknownTopicOrPartition
        | Code::UnknownPartition
        | Code::InvalidTopic => Blame::Topic,
        Code::MessageSizeTooLarge
        | Code::InvalidMessageSize
        | Code::MessageBatchTooLarge
        | Code::InvalidRecord
        | Code::InvalidTimestamp
        | Code::PolicyViolation => Blame::Batch,
        Code::TopicAuthorizationFailed => Blame::Right,
        _ => Blame::Nobody,
    }
}

#[cfg(test)]
mod tests {
    use halfmsg_kafka::EmbeddedBroker;
    use rdkafka::producer::Producer;

    use super::*;

    const PARTITIONS: i32 = 16;
    const DEADLINE: Duration = Duration::from_secs(120);

    /// Where a batch of unkeyed messages goes, with what was set by hand.
    fn partitions_of_a_batch(by_hand: &[(&str, &str)]) -> usize {
        let broker = EmbeddedBroker::start().expect("a loopback port");
        broker.create_topic("t", PARTITIONS).expect("a topic");
        let mut config = ProducerConfig::new(broker.config(), "app", "group");
        let by_hand = by_hand.iter().map(|(name, value)| ((*name).into(), (*value).into()));
        config.kafka.properties.extend(by_hand);
        let client = client(&config, 0).expect("a client");
        let metadata = client.client().fetch_metadata(Some("t"), DEADLINE);
        metadata.expect("the topic is known");
        let reports = Reports::of(1_000);
        for index in 0..1_000 {
            let report = Box::new(Report { batch: Arc::clone(&reports), index });
            let record: Outgoing<'_> = BaseRecord::with_opaque_to("t", report).payload(b"x");
            client.send(record).map_err(|(error, _)| error).expect("room in the queue");
            if index == 0 {
                // A partition whose broker is not connected yet counts as away: another one is chosen.
                client.flush(DEADLINE).expect("delivered");
            }
        }
        client.flush(DEADLINE).expect("delivered");
        let ends = (0..PARTITIONS).map(|partition| {
            client.client().fetch_watermarks("t", partition, DEADLINE).expect("it answers").1
        });
        ends.filter(|end| *end > 0).count()
    }

    #[test]
    fn a_batch_without_keys_goes_to_few_partitions() {
        let config = ProducerConfig::new(halfmsg_kafka::KafkaConfig::new("b:1"), "app", "group");
        assert_eq!(settings(&config, 0).get(STICKY), Some(STICKY_MILLIS));
        // For as long as a busy machine takes to send them.
        let few = partitions_of_a_batch(&[(STICKY, "60000")]);
        assert!(few < PARTITIONS as usize / 2, "{few} partitions");
        let all = partitions_of_a_batch(&[(STICKY, "0")]);
        assert_eq!(all, PARTITIONS as usize, "unless told otherwise");
    }
}

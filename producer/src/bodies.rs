//! Reads bodies again that were let go from memory: of open halves from the store, of parked ones
//! from the parked topic. Everything here blocks, as long as there is progress within a deadline. What
//! was read is kept when the rest could not be: the next attempt goes on there.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use halfmsg_kafka::KafkaConfig;
use halfmsg_protocol::{Body, Half, TransactionId};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::{Offset, TopicPartitionList};

use crate::config::ProducerConfig;
use crate::parked;
use crate::scan::Patience;

mod readers;

use readers::{Readers, TURN_DEADLINE};

/// Until the next body of a batch is there, or the next record of the parked topic.
const DEADLINE: Duration = Duration::from_secs(10);
/// One wait for a record.
const POLL: Duration = Duration::from_millis(100);
/// A body that lies no further ahead is read up to; else the reader jumps.
const READ_ON: i64 = 1_000;

/// Why a body cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    #[error("the store cannot be read: {0}")]
    Kafka(#[from] KafkaError),
    #[error("{topic}[{partition}]@{offset}: the record is gone; was the topic cut by hand?")]
    Gone { topic: String, partition: i32, offset: i64 },
    #[error("{topic}[{partition}]@{offset}: not read within {patience:?}")]
    Late { topic: String, partition: i32, offset: i64, patience: Duration },
    #[error("{topic}[{partition}]: others have read it for {TURN_DEADLINE:?}")]
    Busy { topic: String, partition: i32 },
    #[error("given up")]
    GivenUp,
}

/// A body that could not be read, and those behind it were not looked for.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub(crate) struct Unread {
    /// The offset of the record that has it.
    pub(crate) stored_at: i64,
    pub(crate) error: BodyError,
}

/// Whole halves, by their `stored_at`.
pub(crate) type Whole = BTreeMap<i64, Arc<Half>>;

/// Reads single records of one partition of the store. Keeps its client and its place, because bodies
/// are mostly asked for in their order.
pub(crate) struct StoreReader {
    kafka: KafkaConfig,
    topic: String,
    partition: i32,
    reading: Option<(BaseConsumer, i64)>,
    /// What the last attempt has read, if it did not come to its end.
    kept: Whole,
    patience: Duration,
}

impl StoreReader {
    pub(crate) fn new(config: &ProducerConfig, partition: i32) -> Self {
        Self::of(&config.kafka, &config.store_topic(), partition)
    }

    fn of(kafka: &KafkaConfig, topic: &str, partition: i32) -> Self {
        let (kafka, topic, patience) = (kafka.clone(), topic.to_owned(), DEADLINE);
        Self { kafka, topic, partition, reading: None, kept: Whole::new(), patience }
    }

    /// The whole halves of these stubs; one that is whole is not read. Each may take its time; it ends
    /// early if it is given up.
    ///
    /// # Errors
    /// The first that could not be read. What was read before it is not read again by the next call:
    /// however slow the broker is, repeating the call comes to its end.
    pub(crate) fn whole(
        &mut self,
        halves: &[&Arc<Half>],
        given_up: impl Fn() -> bool,
    ) -> Result<Whole, Unread> {
        let mut stubs: Vec<&Arc<Half>> =
            halves.iter().filter(|half| half.is_stub).copied().collect();
        stubs.sort_by_key(|half| half.stored_at);
        let mut kept = std::mem::take(&mut self.kept);
        let mut found = Whole::new();
        for half in stubs {
            let stored_at = half.stored_at;
            if let Some(half) = kept.remove(&stored_at) {
                found.insert(stored_at, half);
                continue;
            }
            match self.body(stored_at, &given_up) {
                Ok(body) => drop(found.insert(stored_at, Arc::new(half.with(body)))),
                Err(error) => {
                    // One that is only late is on its way: asking anew would begin anew.
                    if !matches!(error, BodyError::Late { .. }) {
                        self.reading = None;
                    }
                    self.kept = found;
                    return Err(Unread { stored_at, error });
                }
            }
        }
        self.kept = kept;
        Ok(found)
    }

    fn body(&mut self, offset: i64, given_up: impl Fn() -> bool) -> Result<Body, BodyError> {
        self.stand_at(offset)?;
        let (partition, patience) = (self.partition, self.patience);
        let mut until = Instant::now() + patience;
        let topic = || self.topic.clone();
        let Some((consumer, next)) = &mut self.reading else {
            return Err(KafkaError::Canceled.into());
        };
        loop {
            if given_up() {
                return Err(BodyError::GivenUp);
            }
            if Instant::now() > until {
                return Err(BodyError::Late { topic: topic(), partition, offset, patience });
            }
            let Some(polled) = consumer.poll(POLL) else { continue };
            let message = match polled {
                Ok(message) => message,
                Err(error) if is_lasting(&error) => return Err(error.into()),
                // The broker is away, or moves: the client goes on by itself.
                Err(error) => {
                    tracing::debug!(%error, partition, offset, "reading a body");
                    continue;
                }
            };
            *next = message.offset() + 1;
            until = Instant::now() + patience;
            if message.offset() > offset {
                return Err(BodyError::Gone { topic: topic(), partition, offset });
            }
            if message.offset() == offset {
                return Ok(parked::users_body(&message));
            }
        }
    }

    fn stand_at(&mut self, offset: i64) -> Result<(), KafkaError> {
        let near = |next: i64| (next..=next.saturating_add(READ_ON)).contains(&offset);
        if self.reading.as_ref().is_some_and(|(_, next)| near(*next)) {
            return Ok(());
        }
        let consumer = match self.reading.take() {
            Some((consumer, _)) => consumer,
            None => {
                // The client needs a group's name, and asks whose coordinator it is: the group's own is one
                // that the application has a right to. Nothing is committed.
                let mut config = self.kafka.consumer(&self.topic);
                // Little in advance: what is read is held in memory.
                config
                    .set("auto.offset.reset", "error")
                    .set("queued.min.messages", "100")
                    .set("queued.max.messages.kbytes", "512")
                    // A larger record comes all the same, alone (KIP-74).
                    .set("fetch.message.max.bytes", "262144");
                let consumer: BaseConsumer = config.create()?;
                consumer.fetch_metadata(Some(&self.topic), DEADLINE)?;
                consumer
            }
        };
        let mut place = TopicPartitionList::new();
        place.add_partition_offset(&self.topic, self.partition, Offset::Offset(offset))?;
        consumer.assign(&place)?;
        self.reading = Some((consumer, offset));
        Ok(())
    }
}

/// Waiting would not help.
fn is_lasting(error: &KafkaError) -> bool {
    use RDKafkaErrorCode::{AutoOffsetReset, TopicAuthorizationFailed, UnknownTopicOrPartition};
    match error {
        KafkaError::MessageConsumptionFatal(_) => true,
        KafkaError::MessageConsumption(code) => {
            matches!(code, AutoOffsetReset | TopicAuthorizationFailed | UnknownTopicOrPartition)
        }
        _ => false,
    }
}

/// Bodies for the check-back, views and operators.
pub(crate) struct Bodies {
    kafka: KafkaConfig,
    parked_topic: String,
    store: Readers,
}

impl Bodies {
    pub(crate) fn new(config: &ProducerConfig) -> Self {
        let store = Readers::new(config);
        Self { kafka: config.kafka.clone(), parked_topic: config.parked_topic(), store }
    }

    /// The whole halves of those of these open ones that are stubs, by their `stored_at`.
    pub(crate) fn open(&self, partition: i32, halves: &[&Arc<Half>]) -> Result<Whole, Unread> {
        let Some(stub) = halves.iter().find(|half| half.is_stub) else { return Ok(Whole::new()) };
        let read = self.store.with(partition, |store| store.whole(halves, || false));
        read.unwrap_or_else(|| {
            let error = BodyError::Busy { topic: self.store.topic().to_owned(), partition };
            Err(Unread { stored_at: stub.stored_at, error })
        })
    }

    /// Readers of the store that nobody has asked for a while. Dropping them blocks.
    pub(crate) fn take_unused(&self) -> Vec<StoreReader> {
        self.store.take_unused()
    }

    /// The body of a parked message.
    pub(crate) fn parked(&self, partition: i32, id: TransactionId) -> Result<Body, BodyError> {
        let patience = Patience::Idle(DEADLINE);
        let found = parked::read_body(&self.kafka, &self.parked_topic, partition, id, patience)?;
        let topic = || self.parked_topic.clone();
        found.ok_or_else(|| BodyError::Gone { topic: topic(), partition, offset: -1 })
    }
}

#[cfg(test)]
mod tests {
    use halfmsg_kafka::EmbeddedBroker;
    use halfmsg_protocol::{HalfMeta, HalfOffset};
    use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

    use super::*;

    const LONG: Duration = Duration::from_secs(30);

    struct Store {
        broker: EmbeddedBroker,
        producer: BaseProducer,
        reader: StoreReader,
    }

    impl Store {
        fn new(patience: Duration) -> Self {
            let broker = EmbeddedBroker::start().expect("a loopback port");
            let config = ProducerConfig::new(broker.config(), "tests", "group");
            broker.create_topic(&config.store_topic(), 1).expect("a topic");
            let producer = broker.config().producer().create().expect("a client");
            let reader = StoreReader { patience, ..StoreReader::new(&config, 0) };
            Self { broker, producer, reader }
        }

        fn write(&self, records: i64) {
            for number in 0..records {
                let payload = number.to_string();
                let record: BaseRecord<'_, [u8], str> = BaseRecord::to(&self.reader.topic);
                let sent = self.producer.send(record.partition(0).payload(&payload));
                sent.map_err(|(error, _)| error).expect("room in the queue");
            }
            self.producer.flush(LONG).expect("stored");
        }

        fn read(&mut self, offsets: &[i64]) -> Result<Whole, Unread> {
            let stubs: Vec<_> = offsets.iter().map(|offset| stub(*offset)).collect();
            self.reader.whole(&stubs.iter().collect::<Vec<_>>(), || false)
        }
    }

    fn stub(stored_at: i64) -> Arc<Half> {
        let meta = HalfMeta {
            id: TransactionId::from_bytes([1; 16]),
            application: "tests".into(),
            purpose: "test".into(),
            topic: "target".into(),
            timestamp_ms: 0,
            check_after: None,
            local_transaction: None,
        };
        Arc::new(Half::new(meta, Body::default(), HalfOffset(stored_at), stored_at).stub())
    }

    #[test]
    fn a_batch_may_take_long_as_long_as_its_bodies_come() {
        let mut store = Store::new(Duration::from_millis(1_500));
        // So far apart that each is a jump, which takes a round trip at least.
        let offsets: Vec<i64> = (0..8).map(|number| number * (READ_ON + 2)).collect();
        store.write(offsets[7] + 1);
        store.broker.round_trip_time(Duration::from_millis(300)).expect("it runs");
        let begun = Instant::now();
        let whole = store.read(&offsets).expect("each comes in time");
        assert!(begun.elapsed() > store.reader.patience, "all of them take longer");
        for offset in offsets {
            let payload = whole[&offset].body.payload.as_deref();
            assert_eq!(payload, Some(offset.to_string().as_bytes()));
        }
    }

    #[test]
    fn what_was_read_is_not_read_again_when_the_rest_is_late() {
        let mut store = Store::new(Duration::from_millis(300));
        store.reader.patience = LONG;
        store.write(1);
        store.read(&[0]).expect("it is there");
        store.reader.patience = Duration::from_millis(300);
        let late = store.read(&[0, 1]).expect_err("the second is not there yet");
        assert!(late.stored_at == 1 && matches!(late.error, BodyError::Late { .. }), "{late}");
        assert!(store.reader.kept.contains_key(&0));
        assert!(store.reader.reading.is_some(), "what is on its way still is");
        store.write(1);
        store.reader.patience = LONG;
        let whole = store.read(&[0, 1]).expect("both");
        assert_eq!(whole.keys().collect::<Vec<_>>(), [&0, &1]);
        assert!(store.reader.kept.is_empty(), "memory is given back");
        let mut given_up = store.reader;
        let stub = stub(2);
        let end = given_up.whole(&[&stub], || true).expect_err("nobody waits");
        assert!(matches!(end.error, BodyError::GivenUp));
    }
}

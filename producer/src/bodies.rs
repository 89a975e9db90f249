//! Reads bodies again that were let go from memory: of open halves from the store, of parked ones
//! from the parked topic. Everything here blocks, up to a deadline.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
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

/// Reading the bodies of one batch, or one body of the parked topic.
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
    #[error("{topic}[{partition}]: not read within {DEADLINE:?}")]
    Late { topic: String, partition: i32 },
}

/// Reads single records of the store. Keeps its client and its place, because bodies are mostly
/// asked for in their order.
pub(crate) struct StoreReader {
    kafka: KafkaConfig,
    topic: String,
    reading: Option<(BaseConsumer, i32, i64)>,
}

impl StoreReader {
    pub(crate) fn new(config: &ProducerConfig) -> Self {
        Self { kafka: config.kafka.clone(), topic: config.store_topic(), reading: None }
    }

    /// The whole halves of these stubs; one that is whole is not read.
    pub(crate) fn whole(
        &mut self,
        partition: i32,
        halves: &[&Arc<Half>],
    ) -> Result<BTreeMap<i64, Arc<Half>>, BodyError> {
        let mut stubs: Vec<&Arc<Half>> =
            halves.iter().filter(|half| half.is_stub).copied().collect();
        stubs.sort_by_key(|half| half.stored_at);
        let until = Instant::now() + DEADLINE;
        let mut found = BTreeMap::new();
        for half in stubs {
            let body = self.body(partition, half.stored_at, until).inspect_err(|_| {
                // It may stand anywhere now.
                self.reading = None;
            })?;
            found.insert(half.stored_at, Arc::new(half.with(body)));
        }
        Ok(found)
    }

    fn body(&mut self, partition: i32, offset: i64, until: Instant) -> Result<Body, BodyError> {
        self.stand_at(partition, offset)?;
        let topic = || self.topic.clone();
        let Some((consumer, _, next)) = &mut self.reading else {
            return Err(KafkaError::Canceled.into());
        };
        loop {
            if Instant::now() > until {
                return Err(BodyError::Late { topic: topic(), partition });
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
            if message.offset() > offset {
                return Err(BodyError::Gone { topic: topic(), partition, offset });
            }
            if message.offset() == offset {
                return Ok(parked::users_body(&message));
            }
        }
    }

    fn stand_at(&mut self, partition: i32, offset: i64) -> Result<(), KafkaError> {
        let near = |next: i64| (next..=next.saturating_add(READ_ON)).contains(&offset);
        if self.reading.as_ref().is_some_and(|(_, of, next)| *of == partition && near(*next)) {
            return Ok(());
        }
        let consumer = match self.reading.take() {
            Some((consumer, ..)) => consumer,
            None => {
                // The client needs a group's name, and asks whose coordinator it is: the group's own is one
                // that the application has a right to. Nothing is committed.
                let mut config = self.kafka.consumer(&self.topic);
                // Little in advance: what is read is held in memory.
                config
                    .set("auto.offset.reset", "error")
                    .set("queued.min.messages", "100")
                    .set("queued.max.messages.kbytes", "1024");
                let consumer: BaseConsumer = config.create()?;
                consumer.fetch_metadata(Some(&self.topic), DEADLINE)?;
                consumer
            }
        };
        let mut place = TopicPartitionList::new();
        place.add_partition_offset(&self.topic, partition, Offset::Offset(offset))?;
        consumer.assign(&place)?;
        self.reading = Some((consumer, partition, offset));
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
    store: Mutex<StoreReader>,
}

impl Bodies {
    pub(crate) fn new(config: &ProducerConfig) -> Self {
        let store = Mutex::new(StoreReader::new(config));
        Self { kafka: config.kafka.clone(), parked_topic: config.parked_topic(), store }
    }

    /// The whole halves of those of these open ones that are stubs, by their `stored_at`.
    pub(crate) fn open(
        &self,
        partition: i32,
        halves: &[&Arc<Half>],
    ) -> Result<BTreeMap<i64, Arc<Half>>, BodyError> {
        if halves.iter().all(|half| !half.is_stub) {
            return Ok(BTreeMap::new());
        }
        let mut store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        store.whole(partition, halves)
    }

    /// The body of a parked message.
    pub(crate) fn parked(&self, partition: i32, id: TransactionId) -> Result<Body, BodyError> {
        let patience = Patience::Idle(DEADLINE);
        let found = parked::read_body(&self.kafka, &self.parked_topic, partition, id, patience)?;
        let topic = || self.parked_topic.clone();
        found.ok_or_else(|| BodyError::Gone { topic: topic(), partition, offset: -1 })
    }
}

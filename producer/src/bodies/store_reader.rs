//! Reads single records of one partition of the store, mostly in their order. It must never begin
//! anew what is only late: what was read, and what is on its way, is kept for the next attempt.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use halfmsg_kafka::KafkaConfig;
use halfmsg_protocol::{Body, Half};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::{Offset, TopicPartitionList};

use super::{BodyError, DEADLINE, Unread, Whole};
use crate::config::ProducerConfig;
use crate::parked;

/// One wait for a record.
const POLL: Duration = Duration::from_millis(100);
/// A body that lies no further ahead is read up to; else the reader jumps.
const READ_ON: i64 = 1_000;
/// So many bodies may be late before what is behind them is not waited for: their broker may be away.
const LATE_AT_ONCE: usize = 2;
/// So many bodies that could not be read are known, and read behind the others.
const HARD_KEPT: usize = 1_000;

/// Reads single records of one partition of the store. Keeps its client and its place, because bodies
/// are mostly asked for in their order.
pub(crate) struct StoreReader {
    kafka: KafkaConfig,
    topic: String,
    pub(super) partition: i32,
    reading: Option<(BaseConsumer, i64)>,
    /// What the last attempt has read, if it did not come to its end.
    kept: Whole,
    /// Where bodies stand that could not be read when they were last asked for.
    hard: BTreeSet<i64>,
    patience: Duration,
}

impl StoreReader {
    pub(crate) fn new(config: &ProducerConfig, partition: i32) -> Self {
        Self::of(&config.kafka, &config.store_topic(), partition)
    }

    pub(super) fn of(kafka: &KafkaConfig, topic: &str, partition: i32) -> Self {
        let (kafka, topic, patience) = (kafka.clone(), topic.to_owned(), DEADLINE);
        let (kept, hard) = (Whole::new(), BTreeSet::new());
        Self { kafka, topic, partition, reading: None, kept, hard, patience }
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
                    self.failed(&error);
                    self.kept = found;
                    return Err(Unread { stored_at, error });
                }
            }
        }
        self.kept = kept;
        Ok(found)
    }

    /// The whole halves of those of these stubs that can be read; and which cannot, first of all the
    /// first that was tried. What could not be read the last time is tried last, so that no half is
    /// kept from being read by others for ever; behind [`LATE_AT_ONCE`] that are late none is tried.
    pub(crate) fn whole_but(&mut self, halves: &[&Arc<Half>]) -> (Whole, Vec<Unread>) {
        let mut stubs: Vec<&Arc<Half>> =
            halves.iter().filter(|half| half.is_stub).copied().collect();
        stubs.sort_by_key(|half| (self.hard.contains(&half.stored_at), half.stored_at));
        let (mut found, mut unread, mut late) = (Whole::new(), Vec::new(), 0);
        for half in stubs {
            let stored_at = half.stored_at;
            if late == LATE_AT_ONCE {
                break;
            }
            match self.body(stored_at, || false) {
                Ok(body) => {
                    self.hard.remove(&stored_at);
                    found.insert(stored_at, Arc::new(half.with(body)));
                }
                Err(error) => {
                    self.failed(&error);
                    late += usize::from(!matches!(error, BodyError::Gone { .. }));
                    self.hard.insert(stored_at);
                    if self.hard.len() > HARD_KEPT {
                        self.hard.pop_first();
                    }
                    unread.push(Unread { stored_at, error });
                }
            }
        }
        (found, unread)
    }

    /// One that is only late is on its way: asking anew would begin anew. One that is gone says
    /// nothing of the client.
    fn failed(&mut self, error: &BodyError) {
        if !matches!(error, BodyError::Late { .. } | BodyError::Gone { .. }) {
            self.reading = None;
        }
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
                Err(KafkaError::MessageConsumption(RDKafkaErrorCode::AutoOffsetReset)) => {
                    // The next one needs a place of its own.
                    *next = i64::MAX;
                    return Err(BodyError::Gone { topic: topic(), partition, offset });
                }
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
    use RDKafkaErrorCode::{TopicAuthorizationFailed, UnknownTopicOrPartition};
    match error {
        KafkaError::MessageConsumptionFatal(_) => true,
        KafkaError::MessageConsumption(code) => {
            matches!(code, TopicAuthorizationFailed | UnknownTopicOrPartition)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use halfmsg_kafka::EmbeddedBroker;
    use halfmsg_protocol::{HalfMeta, HalfOffset, TransactionId};
    use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

    use super::*;

    const LONG: Duration = Duration::from_secs(120);
    /// The machine may stand still in some of them.
    const TRIES: u32 = 5;

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
            let mut read = || self.reader.whole(&stubs.iter().collect::<Vec<_>>(), || false);
            match read() {
                // The start of its client has a deadline of its own.
                Err(Unread { error: BodyError::Kafka(_), .. }) => read(),
                read => read,
            }
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
        Arc::new(
            Half::new(Arc::new(meta), Body::default(), HalfOffset(stored_at), stored_at).stub(),
        )
    }

    #[test]
    fn a_batch_may_take_long_as_long_as_its_bodies_come() {
        let mut store = Store::new(LONG);
        // So far apart that each is a jump, which takes a round trip at least.
        let offsets: Vec<i64> = (0..8).map(|number| number * (READ_ON + 2)).collect();
        store.write(offsets[7] + 1);
        // The client is there by then: its start has a deadline of its own.
        store.read(&offsets[7..]).expect("it is there");
        store.broker.round_trip_time(Duration::from_millis(1_100)).expect("it runs");
        store.reader.patience = Duration::from_secs(8);
        let mut tries = 0;
        let (whole, took) = loop {
            let begun = Instant::now();
            match store.read(&offsets) {
                Ok(whole) => break (whole, begun.elapsed()),
                Err(late) => {
                    tries += 1;
                    assert!(tries < TRIES, "each comes in time: {late}");
                    store.reader.kept.clear();
                }
            }
        };
        assert!(took > store.reader.patience, "all of them take longer");
        for offset in offsets {
            let payload = whole[&offset].body.payload.as_deref();
            assert_eq!(payload, Some(offset.to_string().as_bytes()));
        }
    }

    #[test]
    fn what_was_read_is_not_read_again_when_the_rest_is_late() {
        let mut store = Store::new(LONG);
        store.write(1);
        store.read(&[0]).expect("it is there");
        // In this time the first one is read, unless the machine stands still.
        store.reader.patience = Duration::from_secs(7);
        let late = (0..TRIES)
            .map(|_| store.read(&[0, 1]).expect_err("the second is not there yet"))
            .find(|late| late.stored_at == 1)
            .expect("the first one is");
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

    #[test]
    fn one_body_that_cannot_be_read_keeps_no_other_from_being_read() {
        let mut store = Store::new(LONG);
        store.write(3);
        let read = |store: &mut Store, patience: Duration, offsets: &[i64]| {
            store.reader.patience = patience;
            let stubs: Vec<_> = offsets.iter().map(|offset| stub(*offset)).collect();
            let (whole, unread) = store.reader.whole_but(&stubs.iter().collect::<Vec<_>>());
            let unread: Vec<i64> = unread.iter().map(|unread| unread.stored_at).collect();
            (whole.into_keys().collect::<Vec<_>>(), unread)
        };
        store.read(&[0]).expect("it is there");
        let short = Duration::from_millis(300);
        assert_eq!(read(&mut store, LONG, &[0, 1, 2]), (vec![0, 1, 2], vec![]));
        // Behind the end of the log nothing comes.
        let late = read(&mut store, short, &[3, 4, 5]);
        assert_eq!(late, (vec![], vec![3, 4]), "the third is not waited for");
        assert_eq!(store.reader.hard, BTreeSet::from([3, 4]));
        store.write(3);
        assert_eq!(read(&mut store, LONG, &[3, 4, 5]), (vec![3, 4, 5], vec![]));
        assert!(store.reader.hard.is_empty());
        // What could not be read before comes last. The machine may stand still meanwhile.
        let enough = Duration::from_secs(7);
        let last = (0..TRIES).map(|_| {
            store.reader.hard = BTreeSet::from([6, 7]);
            read(&mut store, enough, &[6, 0, 7, 1])
        });
        let last = last.take_while(|found| *found != (vec![0, 1], vec![6, 7])).count();
        assert!(last < TRIES as usize, "the others are read, and before these");
        // One that is not there at all is no reason to wait.
        let gone = read(&mut store, LONG, &[2, 9_000, 9_001, 9_002]);
        assert_eq!(gone, (vec![2], vec![9_000, 9_001, 9_002]));
        assert_eq!(read(&mut store, LONG, &[0]), (vec![0], vec![]));
    }
}

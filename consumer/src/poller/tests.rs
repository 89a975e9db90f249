//! The poller's thread at a broker in this process.
#![allow(clippy::unwrap_used)]

use std::cell::Cell;
use std::io;
use std::sync::{Mutex, PoisonError};

use halfmsg_kafka::EmbeddedBroker;
use rdkafka::Offset;
use rdkafka::client::ClientContext;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::statistics::{Partition, Statistics, Topic};
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use sea_orm::Database;

use super::*;
use crate::metrics::ConsumerFamilies;

const TOPIC: &str = "t";
const GROUP: &str = "one";
/// Long enough for a busy machine; only a failing test waits as long.
const PATIENCE: Duration = Duration::from_secs(120);
/// As short as they may be in a group that waits three seconds for its members.
const MAX_POLL_MILLIS: u64 = 4_000;

/// A poller, and the worker's ends of its channels.
struct Rig {
    poller: Poller,
    batches: tokio::sync::mpsc::Receiver<Batch>,
    verdicts: std::sync::mpsc::Sender<Verdict>,
}

impl Rig {
    async fn at(broker: &EmbeddedBroker, assignment: Assignment) -> Self {
        broker.create_topic(TOPIC, 1).unwrap();
        let mut kafka = broker.config();
        for (name, millis) in [
            ("max.poll.interval.ms", MAX_POLL_MILLIS),
            ("session.timeout.ms", MAX_POLL_MILLIS),
            ("heartbeat.interval.ms", 500),
        ] {
            kafka.properties.insert(name.into(), millis.to_string());
        }
        let database = Database::connect("sqlite::memory:").await.unwrap();
        let config = ConsumerConfig { assignment, ..ConsumerConfig::new(kafka, database, GROUP) };
        let (batches, received) = tokio::sync::mpsc::channel(1);
        let (verdicts, verdict) = std::sync::mpsc::channel();
        let poller = Poller {
            config,
            topics: vec![TOPIC.to_owned()],
            batches,
            verdicts: verdict,
            generation: Arc::default(),
            stop: Arc::default(),
            consumes: Arc::default(),
            metrics: ConsumerFamilies::default().of(GROUP),
            health: Health::starting(),
            handle: ConsumerHandle::default(),
        };
        Self { poller, batches: received, verdicts }
    }
}

fn send(broker: &EmbeddedBroker) {
    let producer: BaseProducer = broker.config().producer().create().unwrap();
    let record: BaseRecord<'_, str, str> = BaseRecord::to(TOPIC).key("k").payload("x");
    producer.send(record).map_err(|(error, _)| error).unwrap();
    producer.flush(PATIENCE).unwrap();
}

fn until(what: &str, condition: impl Fn() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < until, "waited for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The offset that the coordinator has.
fn committed(broker: &EmbeddedBroker) -> Offset {
    let client: BaseConsumer = broker.config().consumer(GROUP).create().unwrap();
    let mut places = TopicPartitionList::new();
    places.add_partition(TOPIC, 0);
    let found = client.committed_offsets(places, PATIENCE).unwrap();
    found.find_partition(TOPIC, 0).unwrap().offset()
}

/// The commit of a batch is refused, and said again, and refused; no other batch comes. Nobody hears of
/// either but by the client's figures.
#[tokio::test(flavor = "multi_thread")]
async fn offsets_that_the_coordinator_refuses_are_told_and_said_again() {
    let broker = EmbeddedBroker::start().unwrap();
    let Rig { poller, mut batches, verdicts } = Rig::at(&broker, Assignment::All).await;
    send(&broker);
    let refusal = RDKafkaRespErr::RD_KAFKA_RESP_ERR_OFFSET_METADATA_TOO_LARGE;
    broker.refuse(RDKafkaApiKey::OffsetCommit, &[refusal; 2]).unwrap();
    let (stop, missing) = (poller.stop.clone(), poller.metrics.unconfirmed_partitions.clone());
    let thread = std::thread::spawn(move || poller.run());
    let batch = tokio::time::timeout(PATIENCE, batches.recv()).await.unwrap().unwrap();
    assert_eq!(batch.messages.len(), 1);
    verdicts.send(Verdict::Done).unwrap();
    tokio::task::spawn_blocking(move || {
        until("a metric of what is refused", || missing.get() == 1);
        until("it to be taken", || missing.get() == 0);
        assert_eq!(committed(&broker), Offset::Offset(1));
        stop.store(true, Ordering::Release);
        thread.join().unwrap().unwrap();
    })
    .await
    .unwrap();
}

/// The client's figures, with what the coordinator has.
fn figures(committed_offset: i64) -> Statistics {
    let partition = Partition { committed_offset, ..Partition::default() };
    let topic = Topic { partitions: HashMap::from([(0, partition)]), ..Topic::default() };
    Statistics { topics: HashMap::from([(TOPIC.to_owned(), topic)]), ..Statistics::default() }
}

#[tokio::test]
async fn offsets_that_are_refused_for_long_show_until_they_are_taken() {
    let broker = EmbeddedBroker::start().unwrap();
    let poller = Rig::at(&broker, Assignment::All).await.poller;
    let (events, health) = (poller.events(), &poller.health);
    health.good(Cause::Client);
    events.told.tells(&(TOPIC.to_owned(), 0), 7);
    for _ in 0..2 {
        events.stats(figures(6));
    }
    assert_eq!((poller.metrics.unconfirmed_partitions.get(), health.check()), (1, Ok(())));
    // It has been so for longer than passes by itself.
    let long_since = Instant::now().checked_sub(Duration::from_secs(31)).unwrap();
    events.commits.passed(health, Cause::Offsets);
    events.commits.failed_at(long_since, health, Cause::Offsets, "");
    events.stats(figures(6));
    let why = health.check().unwrap_err();
    assert!(why.contains("does not take the offsets") && why.contains("t[0]"), "{why}");
    events.stats(figures(7));
    assert_eq!((poller.metrics.unconfirmed_partitions.get(), health.check()), (0, Ok(())));
}

/// What a thread logs.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Lines {
    fn have(&self, part: &str) -> bool {
        let bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&bytes).contains(part)
    }
}

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A member that does not poll for longer than its group lets it says so once it does.
#[tokio::test(flavor = "multi_thread")]
async fn who_has_not_polled_for_too_long_says_so() {
    let broker = EmbeddedBroker::start().unwrap();
    let poller = Rig::at(&broker, Assignment::Shared).await.poller;
    let lines = Lines::default();
    let writer = lines.clone();
    let log = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone());
    let polls = move || {
        let client: Client = poller.client_config().create_with_context(poller.events()).unwrap();
        client.subscribe(&[TOPIC]).unwrap();
        let (polled, longest) = (Cell::new(Instant::now()), Cell::new(Duration::ZERO));
        until("its partition", || {
            assert!(poller.collect(&client).unwrap().messages.is_empty());
            let pause = polled.replace(Instant::now()).elapsed();
            longest.set(longest.get().max(pause));
            client.assignment().unwrap().count() == 1
        });
        // Unless the machine stood still.
        if longest.get() < Duration::from_millis(MAX_POLL_MILLIS / 2) {
            assert!(!lines.have("max.poll.interval.ms"));
        }
        until("the line that says so", || {
            // It is what goes wrong.
            std::thread::sleep(Duration::from_millis(MAX_POLL_MILLIS + 1_000));
            poller.collect(&client).unwrap();
            lines.have("nobody polled for max.poll.interval.ms")
        });
    };
    let logged = move || tracing::subscriber::with_default(log.finish(), polls);
    tokio::task::spawn_blocking(logged).await.unwrap();
}

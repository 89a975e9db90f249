//! The consumer on the embedded broker and SQLite.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use halfmsg_consumer::{
    Assignment, Consumer, ConsumerConfig, ConsumerMetrics, Context, DeadLetterFilter, DeadLetters,
    HandlerError, MessageHandler, ReceivedMessage, Replayed, RetryLevels, TRANSACTION_ID_HEADER,
};
use halfmsg_db::{DbOptions, begin_write, connect};
use halfmsg_kafka::EmbeddedBroker;
use halfmsg_migrations::{StockMigrator, migrate};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use sea_orm::{ConnectionTrait, DatabaseConnection, DbBackend, Statement};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

const TOPIC: &str = "t";
/// Long enough for a busy machine; only a failing test waits as long.
const DEADLINE: Duration = Duration::from_secs(120);

struct World {
    broker: EmbeddedBroker,
    database: DatabaseConnection,
    producer: FutureProducer,
    _directory: tempfile::TempDir,
}

impl World {
    async fn new() -> Self {
        Self::waiting(DEADLINE).await
    }

    /// With a database whose writers wait so long for each other.
    async fn waiting(sqlite_busy_timeout: Duration) -> Self {
        let broker = EmbeddedBroker::start().unwrap();
        broker.create_topic(TOPIC, 2).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", directory.path().join("a.db").display());
        let options =
            DbOptions { sqlite_busy_timeout, acquire_timeout: DEADLINE, ..DbOptions::default() };
        let database = connect(&url, &options).await.unwrap();
        migrate::<StockMigrator>(&database).await.unwrap();
        // No unique key: a second effect would be seen.
        database.execute_unprepared("CREATE TABLE effect (payload TEXT)").await.unwrap();
        let producer = broker.config().producer().create().unwrap();
        Self { broker, database, producer, _directory: directory }
    }

    fn config(&self) -> ConsumerConfig {
        ConsumerConfig {
            quick_attempts: 3,
            retry: RetryLevels::new([]),
            first_backoff: Duration::from_millis(5),
            longest_backoff: Duration::from_millis(50),
            patience: Duration::from_millis(50),
            attempt_deadline: DEADLINE,
            drain_deadline: DEADLINE / 4,
            ..ConsumerConfig::new(self.broker.config(), self.database.clone(), "restorer")
        }
    }

    fn start(&self, handler: impl MessageHandler) -> Running {
        self.run(Consumer::builder(self.config()).subscribe(TOPIC, handler).build().unwrap())
    }

    fn run(&self, consumer: Consumer) -> Running {
        let (metrics, dead_letters) = (consumer.metrics(), consumer.dead_letters());
        let shutdown = CancellationToken::new();
        let stop = shutdown.clone();
        let task = tokio::spawn(async move { consumer.run(stop).await.unwrap() });
        Running { metrics, dead_letters, shutdown, task }
    }

    async fn send(&self, key: &str, id: Option<Uuid>, payload: &str) {
        let id = id.map(|id| id.to_string());
        let headers = OwnedHeaders::new_with_capacity(1);
        let headers = match &id {
            Some(id) => headers.insert(Header { key: TRANSACTION_ID_HEADER, value: Some(id) }),
            None => headers,
        };
        let record = FutureRecord::to(TOPIC).key(key).headers(headers).payload(payload);
        self.producer.send(record, DEADLINE).await.unwrap();
    }

    async fn effects(&self) -> Vec<String> {
        let select = "SELECT payload FROM effect ORDER BY rowid";
        let select = Statement::from_string(DbBackend::Sqlite, select);
        let rows = self.database.query_all_raw(select).await.unwrap();
        rows.iter().map(|row| row.try_get_by_index(0).unwrap()).collect()
    }

    async fn wait_for_effects(&self, count: usize) -> Vec<String> {
        let began = Instant::now();
        loop {
            let effects = self.effects().await;
            if effects.len() >= count {
                return effects;
            }
            assert!(began.elapsed() < DEADLINE, "{} of {count} effects", effects.len());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

struct Running {
    metrics: ConsumerMetrics,
    dead_letters: DeadLetters,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

impl Running {
    async fn stop(self) {
        self.shutdown.cancel();
        tokio::time::timeout(DEADLINE, self.task).await.unwrap().unwrap();
    }
}

async fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < DEADLINE, "not within {DEADLINE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn effect(context: &Context<'_>, message: &ReceivedMessage) -> Result<(), HandlerError> {
    let payload = message.payload.clone().unwrap_or_default();
    let payload = String::from_utf8_lossy(&payload).into_owned();
    let sql = "INSERT INTO effect VALUES (?)";
    let insert = Statement::from_sql_and_values(DbBackend::Sqlite, sql, [payload.into()]);
    context.transaction().execute_raw(insert).await?;
    Ok(())
}

fn text(message: &ReceivedMessage) -> &str {
    std::str::from_utf8(message.payload.as_deref().unwrap_or_default()).unwrap()
}

/// Has an effect for each message; fails at `poison` while it is armed.
struct Effects {
    armed: Arc<AtomicBool>,
}

impl Effects {
    fn harmless() -> Self {
        Self { armed: Arc::new(AtomicBool::new(false)) }
    }
}

#[async_trait]
impl MessageHandler for Effects {
    async fn handle(
        &self,
        context: &Context<'_>,
        batch: &[ReceivedMessage],
    ) -> Result<(), HandlerError> {
        for message in batch {
            effect(context, message).await?;
            if self.armed.load(Ordering::Acquire) {
                match text(message) {
                    "poison" => return Err(HandlerError::Failed("poison".into())),
                    "panic" => panic!("panic"),
                    "garbage" => return Err(HandlerError::Undecodable("garbage".into())),
                    _ => {}
                }
            }
        }
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn c34_the_same_message_100_times_has_one_effect() {
    let world = World::new().await;
    let id = Uuid::now_v7();
    for _ in 0..100 {
        world.send("k", Some(id), "once").await;
    }
    world.send("k", Some(Uuid::now_v7()), "last").await;
    let running = world.start(Effects::harmless());
    assert_eq!(world.wait_for_effects(2).await, ["once", "last"]);
    wait_until("99 duplicates", || running.metrics.duplicates() == 99).await;
    running.stop().await;
    assert_eq!(world.effects().await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_without_a_transaction_are_told_apart_by_their_place() {
    let world = World::new().await;
    for _ in 0..3 {
        world.send("k", None, "same").await;
    }
    let running = world.start(Effects::harmless());
    world.wait_for_effects(3).await;
    running.stop().await;
    // Progress was kept: a second life sees only what is new.
    world.send("k", None, "new").await;
    let running = world.start(Effects::harmless());
    assert_eq!(world.wait_for_effects(4).await, ["same", "same", "same", "new"]);
    assert_eq!(running.metrics.duplicates(), 0, "offsets were committed at the stop");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_poison_message_in_500_costs_nothing_else_and_can_be_replayed() {
    let world = World::new().await;
    let armed = Arc::new(AtomicBool::new(true));
    for n in 0..500 {
        let payload = match n {
            123 => "poison".into(),
            321 => "panic".into(),
            400 => "garbage".into(),
            _ => format!("m{n}"),
        };
        world.send(&format!("k{n}"), Some(Uuid::now_v7()), &payload).await;
    }
    let running = world.start(Effects { armed: armed.clone() });
    let effects = world.wait_for_effects(497).await;
    wait_until("three dead letters", || running.metrics.dead_letters() == 3).await;
    assert!(effects.iter().all(|payload| payload.starts_with('m')), "{effects:?}");
    let letters = running.dead_letters.list(&DeadLetterFilter::default(), None, 10).await.unwrap();
    assert_eq!(letters.len(), 3);
    for letter in &letters {
        assert_eq!(letter.payload, None);
        let letter = running.dead_letters.find(letter.id).await.unwrap().unwrap();
        let payload = letter.payload.as_deref().unwrap();
        assert_eq!(letter.attempts, if payload == "garbage" { 1 } else { 3 }, "{letter:?}");
        assert!(letter.cause.contains(payload), "{letter:?}");
    }
    // The cause is still there: the replay fails, and says so.
    let id = letters[0].id;
    assert!(running.dead_letters.replay(id).await.is_err());
    let letter = running.dead_letters.find(id).await.unwrap().unwrap();
    assert_eq!(letter.attempts, letters[0].attempts + 1);
    // It is gone: one effect, however often it is replayed.
    armed.store(false, Ordering::Release);
    assert!(matches!(running.dead_letters.replay(id).await.unwrap(), Replayed::Done(_)));
    assert!(matches!(running.dead_letters.replay(id).await.unwrap(), Replayed::Before(_)));
    assert_eq!(world.effects().await.len(), 498);
    assert!(running.dead_letters.replay(Uuid::now_v7()).await.is_err());
    running.stop().await;
}

/// Hangs in the middle of a batch while it is held, after some of its effects.
struct Hanging {
    hold: Arc<AtomicBool>,
    entered: Arc<AtomicUsize>,
}

#[async_trait]
impl MessageHandler for Hanging {
    async fn handle(
        &self,
        context: &Context<'_>,
        batch: &[ReceivedMessage],
    ) -> Result<(), HandlerError> {
        self.entered.fetch_add(1, Ordering::AcqRel);
        for (index, message) in batch.iter().enumerate() {
            effect(context, message).await?;
            while index == batch.len() / 2 && self.hold.load(Ordering::Acquire) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_in_the_middle_of_a_batch_repeats_no_effect() {
    let world = World::new().await;
    for n in 0..50 {
        world.send(&format!("k{n}"), Some(Uuid::now_v7()), &format!("m{n}")).await;
    }
    let hold = Arc::new(AtomicBool::new(true));
    let entered = Arc::new(AtomicUsize::new(0));
    let hanging = Hanging { hold: hold.clone(), entered: entered.clone() };
    let running = world.start(hanging);
    wait_until("the handler is in the middle", || entered.load(Ordering::Acquire) > 0).await;
    // As a crash: the transaction is torn off, nothing is drained.
    running.task.abort();
    let _ = running.task.await;
    hold.store(false, Ordering::Release);
    let running = world.start(Hanging { hold, entered });
    let mut effects = world.wait_for_effects(50).await;
    running.stop().await;
    effects.sort();
    effects.dedup();
    assert_eq!(effects.len(), 50);
    assert_eq!(world.effects().await.len(), 50);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_batch_is_paused_and_what_comes_meanwhile_is_not_lost() {
    let world = World::new().await;
    let (hold, entered) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicUsize::new(0)));
    world.send("k", Some(Uuid::now_v7()), "slow").await;
    let running = world.start(Hanging { hold: hold.clone(), entered: entered.clone() });
    wait_until("the handler is slow", || entered.load(Ordering::Acquire) > 0).await;
    for n in 0..20 {
        world.send(&format!("k{n}"), Some(Uuid::now_v7()), &format!("m{n}")).await;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    hold.store(false, Ordering::Release);
    assert_eq!(world.wait_for_effects(21).await.len(), 21);
    running.stop().await;
    assert_eq!(world.effects().await.len(), 21);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_busy_burns_no_attempts() {
    let world = World::waiting(Duration::from_millis(50)).await;
    let blocking = begin_write(&world.database).await.unwrap();
    world.send("k", Some(Uuid::now_v7()), "patient").await;
    let running = world.start(Effects::harmless());
    wait_until("more failures than attempts", || running.metrics.failures() > 5).await;
    blocking.rollback().await.unwrap();
    assert_eq!(world.wait_for_effects(1).await, ["patient"]);
    assert_eq!(running.metrics.dead_letters(), 0);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_while_retrying_is_prompt_and_keeps_the_message() {
    let world = World::new().await;
    let armed = Arc::new(AtomicBool::new(true));
    world.send("k", Some(Uuid::now_v7()), "poison").await;
    let mut config = world.config();
    config.first_backoff = Duration::from_secs(600);
    config.longest_backoff = Duration::from_secs(600);
    let consumer = Consumer::builder(config)
        .subscribe(TOPIC, Effects { armed: armed.clone() })
        .build()
        .unwrap();
    let (shutdown, metrics) = (CancellationToken::new(), consumer.metrics());
    let task = tokio::spawn(consumer.run(shutdown.clone()));
    wait_until("it failed", || metrics.failures() == 1).await;
    shutdown.cancel();
    tokio::time::timeout(DEADLINE, task).await.unwrap().unwrap().unwrap();
    armed.store(false, Ordering::Release);
    let running = world.start(Effects { armed });
    assert_eq!(world.wait_for_effects(1).await, ["poison"]);
    running.stop().await;
}

/// A handler that does not end within the drain deadline: its batch is rolled back and released, and
/// the next life has it, once.
#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_outlasts_the_drain_deadline_is_released() {
    const DRAIN: Duration = Duration::from_secs(2);
    let world = World::new().await;
    world.send("k", Some(Uuid::now_v7()), "before").await;
    let hold = Arc::new(AtomicBool::new(false));
    let entered = Arc::new(AtomicUsize::new(0));
    let handler = || Hanging { hold: hold.clone(), entered: entered.clone() };
    let config = ConsumerConfig { drain_deadline: DRAIN, ..world.config() };
    let consumer = Consumer::builder(config).subscribe(TOPIC, handler()).build().unwrap();
    let running = world.run(consumer);
    wait_until("one message is done", || running.metrics.messages() == 1).await;
    hold.store(true, Ordering::Release);
    let before = entered.load(Ordering::Acquire);
    for n in 0..50 {
        world.send(&format!("k{n}"), Some(Uuid::now_v7()), &format!("m{n}")).await;
    }
    wait_until("it is in the middle", || entered.load(Ordering::Acquire) > before).await;
    let stopped = Instant::now();
    running.stop().await;
    // The handler had its time, and then the group was left.
    assert!(stopped.elapsed() >= DRAIN, "{:?}", stopped.elapsed());
    assert!(hold.load(Ordering::Acquire), "it never ended by itself");
    assert_eq!(world.effects().await, ["before"], "the batch was rolled back");
    hold.store(false, Ordering::Release);
    let running =
        world.run(Consumer::builder(world.config()).subscribe(TOPIC, handler()).build().unwrap());
    let effects = world.wait_for_effects(51).await;
    assert_eq!(running.metrics.duplicates(), 0, "what was done before was committed at the stop");
    running.stop().await;
    let mut distinct = world.effects().await;
    assert_eq!((effects.len(), distinct.len()), (51, 51));
    distinct.sort();
    distinct.dedup();
    assert_eq!(distinct.len(), 51);
}

#[tokio::test(flavor = "multi_thread")]
async fn members_come_and_go_and_each_message_has_one_effect() {
    let world = Arc::new(World::new().await);
    let config = ConsumerConfig { assignment: Assignment::Shared, ..world.config() };
    let member = || {
        let builder = Consumer::builder(config.clone()).subscribe(TOPIC, Effects::harmless());
        world.run(builder.build().unwrap())
    };
    // A steady flow, so that every rebalance meets messages on their way.
    let (feeding, sent) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicUsize::new(0)));
    let feeder = tokio::spawn({
        let (world, feeding, sent) = (world.clone(), feeding.clone(), sent.clone());
        async move {
            while feeding.load(Ordering::Acquire) {
                let n = sent.fetch_add(1, Ordering::AcqRel);
                world.send(&format!("k{n}"), Some(Uuid::now_v7()), &format!("m{n}")).await;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    });
    let works = async |member: &Running| {
        wait_until("it has partitions", || member.metrics.messages() > 0).await;
    };
    let first = member();
    works(&first).await;
    let second = member();
    works(&second).await;
    first.stop().await;
    let third = member();
    works(&third).await;
    feeding.store(false, Ordering::Release);
    feeder.await.unwrap();
    let sent = sent.load(Ordering::Acquire);
    let mut effects = world.wait_for_effects(sent).await;
    second.stop().await;
    third.stop().await;
    assert_eq!(world.effects().await.len(), sent);
    effects.sort();
    effects.dedup();
    assert_eq!(effects.len(), sent);
}

/// The client tells once that it may not read, and never that it may again; and no message comes to show it.
#[tokio::test(flavor = "multi_thread")]
async fn a_right_that_was_away_for_a_moment_leaves_no_consumer_unready() {
    let world = World::new().await;
    let consumer = Consumer::builder(world.config()).subscribe(TOPIC, Effects::harmless());
    let consumer = consumer.build().unwrap();
    let health = consumer.health();
    let running = world.run(consumer);
    world.send("k", None, "before").await;
    world.wait_for_effects(1).await;
    wait_until("it is ready", || health.check().is_ok()).await;
    let denied = RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED;
    world.broker.refuse(RDKafkaApiKey::Fetch, &[denied]).unwrap();
    wait_until("it is denied", || health.check().is_err()).await;
    wait_until("it is ready again", || health.check().is_ok()).await;
    world.send("k", None, "behind").await;
    assert_eq!(world.wait_for_effects(2).await, ["before", "behind"]);
    running.stop().await;
}

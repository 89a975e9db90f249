//! Whole batches, without Kafka.
//!
//! # Layout
//! - this file: the handler and the worker of these tests, which others use too; failures, and what is let go
//! - `waits`: locks of others and deadlines; `replies`: the replies of a batch

mod replies;
mod waits;

use std::collections::HashMap;
use std::sync::atomic::AtomicU32;
use std::sync::{Mutex, OnceLock};

use bytes::Bytes;

use async_trait::async_trait;
use halfmsg_db::{DbOptions, connect};
use halfmsg_migrations::{StockMigrator, migrate};
use sea_orm::{ConnectionTrait, DatabaseConnection, DbErr, RuntimeErr};

use super::*;
use crate::config::KeyOrder;
use crate::handler::{Context, HandlerError, MessageHandler};
use crate::message::example;
use crate::reply::Reply;

/// Fails a message called `poison` a number of times; notes the offsets of the batches that it
/// let pass.
#[derive(Default)]
pub(crate) struct Scripted {
    pub(crate) failures_left: AtomicU32,
    pub(crate) calls: AtomicU32,
    /// Another pool on the database, whose writers wait for nobody.
    other: OnceLock<DatabaseConnection>,
    passed: Mutex<Vec<i64>>,
}

#[async_trait]
impl MessageHandler for Arc<Scripted> {
    async fn handle(
        &self,
        context: &Context<'_>,
        batch: &[ReceivedMessage],
    ) -> Result<(), HandlerError> {
        self.calls.fetch_add(1, Ordering::AcqRel);
        if batch.iter().any(|message| message.payload.as_deref() == Some(b"poison")) {
            let taken = self.failures_left.fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| {
                n.checked_sub(u32::from(batch.len() == 1))
            });
            if taken.is_ok() {
                return Err(HandlerError::Failed("poison".into()));
            }
        }
        let of = |wanted: &'static [u8]| {
            batch.iter().filter(move |one| one.payload.as_deref() == Some(wanted))
        };
        if of(b"locked").count() > 0 && self.is_locked() {
            return Err(HandlerError::locked(of(b"locked"), "theirs"));
        }
        if let Some(other) = self.other.get()
            && of(b"contended").count() > 0
            && self.is_locked()
        {
            // This transaction is what it would have to wait for.
            other.execute_unprepared("DELETE FROM inbox WHERE 0").await?;
        }
        if of(b"too much").count() > 0 && self.is_locked() {
            return Err(HandlerError::Database(out_of_space()));
        }
        if batch.iter().any(|one| one.payload.as_deref() == Some(b"hangs")) {
            std::future::pending::<()>().await;
        }
        for message in batch.iter().filter(|one| one.payload.as_deref() == Some(b"answered")) {
            context.publish(message, Reply::new("replies", "{}").with_key("k"))?;
        }
        self.passed.lock().unwrap().extend(batch.iter().map(|message| message.offset));
        Ok(())
    }
}

impl Scripted {
    fn is_locked(&self) -> bool {
        let less = |left: u32| left.checked_sub(1);
        self.failures_left.fetch_update(Ordering::AcqRel, Ordering::Acquire, less).is_ok()
    }
}

/// Long enough for a busy machine; only a failing test waits as long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// What a database says that cannot work, in whatever words of the driver.
pub(crate) fn out_of_space() -> DbErr {
    let error = std::io::Error::other("no space left on the device");
    DbErr::Query(RuntimeErr::SqlxError(Arc::new(error.into())))
}

/// Quick attempts before a message makes way.
pub(crate) const QUICK: u32 = 5;

pub(crate) struct World {
    pub(crate) worker: Worker,
    pub(crate) script: Arc<Scripted>,
    generation: Arc<AtomicU64>,
    directory: tempfile::TempDir,
}

pub(crate) async fn world(failures: u32, key_order: KeyOrder) -> World {
    let directory = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", directory.path().join("a.db").display());
    let options = DbOptions {
        acquire_timeout: PATIENCE,
        sqlite_busy_timeout: PATIENCE,
        ..DbOptions::default()
    };
    let database = connect(&url, &options).await.unwrap();
    migrate::<StockMigrator>(&database).await.unwrap();
    let script = Arc::new(Scripted { failures_left: failures.into(), ..Scripted::default() });
    let handler: Arc<dyn MessageHandler> = Arc::new(script.clone());
    let generation = Arc::new(AtomicU64::new(1));
    let metrics = crate::metrics::ConsumerFamilies::default().of("s");
    let kafka = halfmsg_kafka::KafkaConfig::new("nobody:1");
    let worker = Worker {
        sender: Arc::new(Sender::new(kafka, database.clone(), "s".into(), metrics.clone())),
        deliverer: Arc::new(Deliverer {
            database,
            subscriber: "s".into(),
            handlers: HashMap::from([("t".to_owned(), handler)]),
            attempt_deadline: PATIENCE,
            key_order,
            inbox_by_key: false,
            metrics: metrics.clone(),
        }),
        retries: Retries {
            quick_attempts: QUICK,
            first: Duration::from_millis(1),
            longest: Duration::from_millis(5),
            levels: RetryLevels::new([Duration::from_secs(60)]),
        },
        concurrency: 1,
        spread: Spread::ByKey,
        wake: Wake::default(),
        metrics,
        health: Health::starting(),
        generation: generation.clone(),
        shutdown: CancellationToken::new(),
    };
    World { worker, script, generation, directory }
}

impl World {
    /// Of each row of the retry table.
    pub(crate) async fn attempts(&self) -> Vec<i64> {
        let select =
            sea_orm::sea_query::Query::select().column("attempts").from("retry").to_owned();
        let rows = self.worker.deliverer.database.query_all(&select).await.unwrap();
        rows.iter().map(|row| row.try_get("", "attempts").unwrap()).collect()
    }
}

pub(crate) fn message(offset: i64, key: &'static str, payload: &'static str) -> ReceivedMessage {
    ReceivedMessage {
        key: Some(Bytes::from_static(key.as_bytes())),
        payload: Some(Bytes::from_static(payload.as_bytes())),
        ..example(offset, None)
    }
}

impl World {
    pub(crate) async fn process(&self, messages: Vec<ReceivedMessage>) -> Verdict {
        self.worker.process(Batch { messages, generation: 1 }).await
    }

    pub(crate) fn passed(&self) -> Vec<i64> {
        self.script.passed.lock().unwrap().clone()
    }
}

#[tokio::test]
async fn later_messages_of_a_failed_key_wait_and_others_go_on() {
    let world = world(3, KeyOrder::GiveUp).await;
    let batch = vec![
        message(0, "a", "fine"),
        message(1, "b", "poison"),
        message(2, "b", "later"),
        message(3, "c", "fine"),
        message(4, "b", "latest"),
    ];
    assert_eq!(world.process(batch).await, Verdict::Done);
    assert_eq!(world.passed(), [0, 3, 1, 2, 4]);
    assert_eq!(world.worker.metrics.retried(), 0);
    assert_eq!(world.worker.metrics.messages(), 5);
}

#[tokio::test]
async fn a_message_that_keeps_failing_makes_way_for_its_key() {
    let world = world(u32::MAX, KeyOrder::GiveUp).await;
    let batch = vec![message(0, "b", "poison"), message(1, "b", "later")];
    assert_eq!(world.process(batch.clone()).await, Verdict::Done);
    assert_eq!(world.passed(), [1]);
    assert_eq!(world.worker.metrics.retried(), 1);
    // The same batch again, as after a crash before its offsets were committed.
    assert_eq!(world.process(batch).await, Verdict::Done);
    assert_eq!(world.passed(), [1]);
    assert_eq!(world.worker.metrics.retried(), 1);
    assert_eq!(world.worker.metrics.duplicates(), 2);
}

#[tokio::test]
async fn a_key_that_keeps_its_order_waits_and_others_go_on() {
    let world = world(u32::MAX, KeyOrder::Keep).await;
    let first = vec![message(0, "b", "poison"), message(1, "b", "later"), message(2, "c", "fine")];
    assert_eq!(world.process(first).await, Verdict::Done);
    // A batch behind it, also as another replica would get it.
    let second = vec![message(3, "b", "latest"), message(4, "c", "fine")];
    assert_eq!(world.process(second.clone()).await, Verdict::Done);
    assert_eq!(world.process(second).await, Verdict::Done);
    assert_eq!(world.passed(), [2, 4]);
    let metrics = &world.worker.metrics;
    assert_eq!((metrics.retried(), metrics.held(), metrics.duplicates()), (1, 2, 2));
}

#[tokio::test]
async fn a_poison_message_in_500_costs_a_logarithm_of_transactions() {
    for place in [0, 1, 249, 250, 333, 499] {
        let world = world(u32::MAX, KeyOrder::Keep).await;
        let payload = |offset| if offset == place { "poison" } else { "fine" };
        let batch = (0..500).map(|n| ReceivedMessage {
            key: Some(Bytes::from(n.to_string())),
            ..message(n, "", payload(n))
        });
        assert_eq!(world.process(batch.collect()).await, Verdict::Done);
        assert_eq!(world.passed().len(), 499);
        assert_eq!(world.worker.metrics.retried(), 1);
        let calls = world.script.calls.load(Ordering::Acquire);
        // Down to it with a step up after each success, up behind it, and the quick attempts;
        // log2(500) is 9.
        assert!(calls <= 4 * 9 + QUICK, "poison at {place}: {calls} transactions");
        println!("poison at {place}: {calls} transactions");
    }
}

#[tokio::test]
async fn a_batch_of_an_older_assignment_is_let_go() {
    let world = world(u32::MAX, KeyOrder::Keep).await;
    world.generation.store(2, Ordering::Release);
    assert_eq!(world.process(vec![message(0, "b", "fine")]).await, Verdict::Released);
    assert_eq!(world.passed(), Vec::<i64>::new());
}

#[tokio::test]
async fn a_batch_in_hand_is_let_go_on_shutdown() {
    let world = world(u32::MAX, KeyOrder::Keep).await;
    world.worker.shutdown.cancel();
    assert_eq!(world.process(vec![message(0, "b", "poison")]).await, Verdict::Released);
}

//! Whole batches, without Kafka.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::AtomicU32;

use async_trait::async_trait;
use halfmsg_db::{DbOptions, connect};
use halfmsg_migrations::{StockMigrator, migrate};

use super::*;
use crate::handler::{Context, HandlerError, MessageHandler};
use crate::message::example;

/// Fails a message called `poison` a number of times; notes the offsets of the batches that it
/// let pass.
#[derive(Default)]
struct Scripted {
    failures_left: AtomicU32,
    passed: Mutex<Vec<i64>>,
}

#[async_trait]
impl MessageHandler for Arc<Scripted> {
    async fn handle(&self, _: &Context<'_>, batch: &[ReceivedMessage]) -> Result<(), HandlerError> {
        if batch.iter().any(|message| message.payload.as_deref() == Some(b"poison")) {
            let taken = self.failures_left.fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| {
                n.checked_sub(u32::from(batch.len() == 1))
            });
            if taken.is_ok() {
                return Err(HandlerError::Failed("poison".into()));
            }
        }
        self.passed.lock().unwrap().extend(batch.iter().map(|message| message.offset));
        Ok(())
    }
}

struct World {
    worker: Worker,
    script: Arc<Scripted>,
    generation: Arc<AtomicU64>,
    _directory: tempfile::TempDir,
}

async fn world(failures: u32) -> World {
    let directory = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", directory.path().join("a.db").display());
    let database = connect(&url, &DbOptions::default()).await.unwrap();
    migrate::<StockMigrator>(&database).await.unwrap();
    let script = Arc::new(Scripted { failures_left: failures.into(), ..Scripted::default() });
    let handler: Arc<dyn MessageHandler> = Arc::new(script.clone());
    let generation = Arc::new(AtomicU64::new(1));
    let worker = Worker {
        deliverer: Arc::new(Deliverer {
            database,
            subscriber: "s".into(),
            handlers: HashMap::from([("t".to_owned(), handler)]),
            attempt_deadline: Duration::from_secs(30),
        }),
        retries: Retries {
            max_attempts: 5,
            first: Duration::from_millis(1),
            longest: Duration::from_millis(5),
        },
        metrics: ConsumerMetrics::default(),
        health: Health::starting(),
        generation: generation.clone(),
        shutdown: CancellationToken::new(),
    };
    World { worker, script, generation, _directory: directory }
}

fn message(offset: i64, key: &'static str, payload: &'static str) -> ReceivedMessage {
    ReceivedMessage {
        key: Some(Bytes::from_static(key.as_bytes())),
        payload: Some(Bytes::from_static(payload.as_bytes())),
        ..example(offset, None)
    }
}

impl World {
    async fn process(&self, messages: Vec<ReceivedMessage>) -> Verdict {
        self.worker.process(Batch { messages, generation: 1 }).await
    }

    fn passed(&self) -> Vec<i64> {
        self.script.passed.lock().unwrap().clone()
    }
}

#[tokio::test]
async fn later_messages_of_a_failed_key_wait_and_others_go_on() {
    let world = world(3).await;
    let batch = vec![
        message(0, "a", "fine"),
        message(1, "b", "poison"),
        message(2, "b", "later"),
        message(3, "c", "fine"),
        message(4, "b", "latest"),
    ];
    assert_eq!(world.process(batch).await, Verdict::Done);
    assert_eq!(world.passed(), [0, 3, 1, 2, 4]);
    assert_eq!(world.worker.metrics.dead_letters(), 0);
    assert_eq!(world.worker.metrics.messages(), 5);
}

#[tokio::test]
async fn a_message_that_keeps_failing_makes_way_for_its_key() {
    let world = world(u32::MAX).await;
    let batch = vec![message(0, "b", "poison"), message(1, "b", "later")];
    assert_eq!(world.process(batch.clone()).await, Verdict::Done);
    assert_eq!(world.passed(), [1]);
    assert_eq!(world.worker.metrics.dead_letters(), 1);
    // The same batch again, as after a crash before its offsets were committed.
    assert_eq!(world.process(batch).await, Verdict::Done);
    assert_eq!(world.passed(), [1]);
    assert_eq!(world.worker.metrics.dead_letters(), 1);
    assert_eq!(world.worker.metrics.duplicates(), 2);
}

#[tokio::test]
async fn a_batch_of_an_older_assignment_is_let_go() {
    let world = world(u32::MAX).await;
    world.generation.store(2, Ordering::Release);
    assert_eq!(world.process(vec![message(0, "b", "fine")]).await, Verdict::Released);
    assert_eq!(world.passed(), Vec::<i64>::new());
}

#[tokio::test]
async fn a_batch_in_hand_is_let_go_on_shutdown() {
    let world = world(u32::MAX).await;
    world.worker.shutdown.cancel();
    assert_eq!(world.process(vec![message(0, "b", "poison")]).await, Verdict::Released);
}

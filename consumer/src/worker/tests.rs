//! Whole batches, without Kafka.

use std::collections::{BTreeSet, HashMap};
use std::sync::Mutex;
use std::sync::atomic::AtomicU32;

use bytes::Bytes;

use async_trait::async_trait;
use halfmsg_db::{DbOptions, connect};
use halfmsg_migrations::{StockMigrator, migrate};

use super::*;
use crate::config::KeyOrder;
use crate::handler::{Context, HandlerError, MessageHandler};
use crate::message::example;
use crate::reply::{self, Reply};

/// Fails a message called `poison` a number of times; notes the offsets of the batches that it
/// let pass.
#[derive(Default)]
pub(crate) struct Scripted {
    pub(crate) failures_left: AtomicU32,
    pub(crate) calls: AtomicU32,
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

/// Quick attempts before a message makes way.
pub(crate) const QUICK: u32 = 5;

pub(crate) struct World {
    pub(crate) worker: Worker,
    pub(crate) script: Arc<Scripted>,
    generation: Arc<AtomicU64>,
    _directory: tempfile::TempDir,
}

pub(crate) async fn world(failures: u32, key_order: KeyOrder) -> World {
    let directory = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", directory.path().join("a.db").display());
    let database = connect(&url, &DbOptions::default()).await.unwrap();
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
            attempt_deadline: Duration::from_secs(30),
            key_order,
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
    World { worker, script, generation, _directory: directory }
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

#[tokio::test]
async fn replies_are_stored_in_the_order_of_the_calls() {
    let world = world(0, KeyOrder::Keep).await;
    // As text, 10 comes before 9.
    let batch: Vec<_> = (8..12).map(|n| message(n, "a", "answered")).collect();
    let deliverer = &world.worker.deliverer;
    let answers = deliverer.deliver(&batch).await.unwrap().answers;
    let keys: Vec<String> = batch.iter().map(ReceivedMessage::inbox_key).collect();
    assert_eq!(answers.message_keys.len(), 4);
    let own = reply::to_messages(&deliverer.database, "s", &keys, 0, 100).await.unwrap();
    let seqs: Vec<i64> = own.iter().map(|one| one.seq).collect();
    let stored = reply::load(&deliverer.database, &seqs).await.unwrap();
    let ids: Vec<_> = keys.iter().map(|key| reply::reply_id("s", key, 0)).collect();
    assert_eq!(stored.iter().map(|one| one.id).collect::<Vec<_>>(), ids);
    // A later message's reply finds those before it, page by page, and that the first was refused.
    reply::refused(&deliverer.database, seqs[0], "why").await.unwrap();
    let chains = BTreeSet::from([own[3].chain.clone().unwrap()]);
    let page = async |after| {
        reply::of_chains(&deliverer.database, "s", &chains, after, seqs[3], 3).await.unwrap()
    };
    let (first, second) = (page(0).await, page(seqs[2]).await);
    assert_eq!(first.iter().map(|one| one.refused).collect::<Vec<_>>(), [true, false, false]);
    assert_eq!(second.iter().map(|one| one.seq).collect::<Vec<_>>(), seqs[3..]);
}

#[tokio::test]
async fn after_a_deadline_messages_are_tried_one_by_one() {
    let mut world = world(0, KeyOrder::Keep).await;
    let deliverer = Arc::get_mut(&mut world.worker.deliverer).unwrap();
    deliverer.attempt_deadline = Duration::from_millis(500);
    let keys = ["a", "b", "c", "d", "e", "f", "g", "h"];
    let payload = |n| if n == 7 { "hangs" } else { "fine" };
    let batch = (0..8).zip(keys).map(|(n, key)| message(n, key, payload(n))).collect();
    world.worker.retries.quick_attempts = 1;
    assert_eq!(world.process(batch).await, Verdict::Done);
    let mut passed = world.passed();
    passed.sort_unstable();
    assert_eq!(passed, (0..7).collect::<Vec<_>>());
    // The batch and the message; halving would have waited for four deadlines.
    let metrics = &world.worker.metrics;
    assert_eq!((metrics.failures(), metrics.retried()), (2, 1));
}

#[tokio::test]
async fn what_a_batch_waited_for_is_forgotten_when_it_is_let_go() {
    let world = world(0, KeyOrder::Keep).await;
    let health = &world.worker.health;
    health.bad(Cause::Database, "away".into());
    world.generation.store(2, Ordering::Release);
    assert_eq!(world.process(vec![message(0, "b", "fine")]).await, Verdict::Released);
    assert_eq!(health.check(), Err("the consumer is starting".into()));
}

#[test]
fn what_keeps_its_order_is_in_one_part() {
    let messages: Vec<_> = (0..100)
        .map(|n| ReceivedMessage {
            key: (n % 10 < 9).then(|| Bytes::from((n % 10).to_string())),
            partition: i32::try_from(n % 2).unwrap(),
            ..message(n, "", "")
        })
        .collect();
    for (spread, most) in [(Spread::ByKey, 4), (Spread::ByPartition, 4), (Spread::ByKey, 1)] {
        let parts = parts(messages.clone(), most, spread);
        assert!(parts.len() <= most && (most == 1 || parts.len() > 1));
        assert_eq!(parts.iter().map(Vec::len).sum::<usize>(), 100);
        let mut home = HashMap::new();
        for (index, part) in parts.iter().enumerate() {
            assert!(part.is_sorted_by_key(|message| message.offset));
            for message in part {
                let order = message.key_hash().unwrap_or(i64::from(message.partition));
                assert_eq!(*home.entry(order).or_insert(index), index);
            }
        }
    }
}

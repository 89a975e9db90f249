//! The process dies at every wait of a delivery, of a retry and of sending replies: each message has
//! one effect and one answer, in the order of its key.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use halfmsg_consumer::testkit::{self, ConsumerKit, EveryWait};
use halfmsg_consumer::{
    Consumer, ConsumerConfig, Context, DeadLetterFilter, HandlerError, KeyOrder, MessageHandler,
    ReceivedMessage, Reply, reply_id,
};
use halfmsg_db::{DbOptions, connect};
use halfmsg_migrations::{ConsumerMigrator, migrate};
use sea_orm::{ConnectionTrait, DatabaseConnection, DbBackend, Statement};
use tempfile::TempDir;

/// Long enough for a busy machine; only a failing test waits as long.
const PATIENCE: Duration = Duration::from_secs(120);

/// Writes the payload down and answers twice; `moody` fails as long as the world is not mended, or what it
/// needs is locked by somebody else.
#[derive(Clone)]
struct Write {
    mended: Arc<AtomicBool>,
    locked: bool,
}

#[async_trait]
impl MessageHandler for Write {
    async fn handle(
        &self,
        context: &Context<'_>,
        batch: &[ReceivedMessage],
    ) -> Result<(), HandlerError> {
        for message in batch {
            let payload = String::from_utf8_lossy(message.payload.as_deref().unwrap()).into_owned();
            if payload == "moody" && !self.mended.load(Ordering::Relaxed) {
                return Err(if self.locked {
                    HandlerError::locked([message], "not let go yet")
                } else {
                    HandlerError::Failed("not mended yet".into())
                });
            }
            let insert = "INSERT INTO written VALUES (?)";
            let insert =
                Statement::from_sql_and_values(DbBackend::Sqlite, insert, [payload.into()]);
            context.transaction().execute_raw(insert).await?;
            for answer in ["first", "second"] {
                let reply = Reply::new("answers", answer);
                context
                    .publish(message, reply.with_key(message.key.clone().unwrap_or_default()))?;
            }
        }
        Ok(())
    }
}

struct World {
    database: DatabaseConnection,
    /// Of the database's file: one in memory ends with its connection, which a death closes.
    _directory: TempDir,
    handler: Write,
    messages: Vec<ReceivedMessage>,
    /// What every process of this world has sent, in its order.
    sent: Vec<(uuid::Uuid, String)>,
}

impl World {
    /// `k`: early, moody, behind, last; `l`: other; one without a key.
    async fn new(locked: bool) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}/dying.db", directory.path().display());
        // What a dead process has under way may take long on a machine that stands still.
        let options = DbOptions {
            sqlite_busy_timeout: PATIENCE,
            acquire_timeout: PATIENCE,
            ..DbOptions::default()
        };
        let database = connect(&url, &options).await.unwrap();
        migrate::<ConsumerMigrator>(&database).await.unwrap();
        database.execute_unprepared("CREATE TABLE written (payload TEXT)").await.unwrap();
        let handler = Write { mended: Arc::new(AtomicBool::new(false)), locked };
        let (messages, sent) = (Vec::new(), Vec::new());
        let mut world = Self { database, _directory: directory, handler, messages, sent };
        let kit = world.start();
        let message = |payload: &'static str, key: Option<&'static str>| {
            let mut message = kit.message("t", payload);
            message.key = key.map(Into::into);
            message
        };
        world.messages = vec![
            message("early", Some("k")),
            message("moody", Some("k")),
            message("behind", Some("k")),
            message("other", Some("l")),
            message("alone", None),
            message("last", Some("k")),
        ];
        world
    }

    fn start(&self) -> ConsumerKit {
        let config = testkit::config(self.database.clone(), "s");
        let attempt_deadline = PATIENCE;
        let config = ConsumerConfig { key_order: KeyOrder::Keep, attempt_deadline, ..config };
        Consumer::builder(config).subscribe("t", self.handler.clone()).test_kit().unwrap()
    }

    fn mend(&self) {
        self.handler.mended.store(true, Ordering::Relaxed);
    }

    /// The process ends, wherever it is: what it sent is sent.
    fn end(&mut self, kit: ConsumerKit) {
        let text =
            |reply: &Reply| String::from_utf8(reply.payload.clone().unwrap().into()).unwrap();
        self.sent.extend(kit.replies().iter().map(|sent| (sent.id, text(&sent.reply))));
    }

    /// Delivered once more, as Kafka does where no offset was committed, and everything is carried out: the
    /// retries that are there already before that, or behind it.
    async fn recover(&mut self, again: &[ReceivedMessage], retries_first: bool) {
        // A process that is dead has no statement under way. Here one may still run in its thread: the
        // writer's turn comes when it has ended.
        self.database.execute_unprepared("DELETE FROM written WHERE 0").await.unwrap();
        let kit = self.start();
        if retries_first {
            kit.settle_all().await.unwrap();
        }
        kit.deliver(again).await;
        kit.settle_all().await.unwrap();
        assert_eq!(kit.waiting().await.unwrap(), 0);
        let dead = kit.dead_letters().list(&DeadLetterFilter::default(), None, 10).await.unwrap();
        assert!(dead.is_empty(), "{dead:?}");
        // Nothing is left to be sent.
        let sent = kit.replies().len();
        kit.settle_all().await.unwrap();
        assert_eq!(kit.replies().len(), sent);
        self.end(kit);
    }

    async fn assert_once(&self, what: &str) {
        let written = written(&self.database).await;
        let of = |wanted: &str| written.iter().filter(|one| *one == wanted).count();
        for payload in ["early", "moody", "behind", "other", "alone", "last"] {
            assert_eq!(of(payload), 1, "{what}: {payload} in {written:?}");
        }
        let key: Vec<_> =
            written.iter().filter(|one| !["other", "alone"].contains(&one.as_str())).collect();
        assert_eq!(key, ["early", "moody", "behind", "last"], "{what}");
        let ids: BTreeSet<_> = self.sent.iter().map(|(id, _)| *id).collect();
        let expected = |message: &ReceivedMessage| {
            [0, 1].map(|number| reply_id("s", &message.inbox_key(), number))
        };
        let expected: BTreeSet<_> = self.messages.iter().flat_map(expected).collect();
        assert_eq!(ids, expected, "{what}: every answer, under its own id, and no other");
        // Whatever was repeated, no answer is first seen behind a later one of its key.
        let first = |message: usize, number: usize| {
            let id = reply_id("s", &self.messages[message].inbox_key(), number);
            self.sent.iter().position(|(sent, _)| *sent == id).unwrap()
        };
        let order: Vec<_> = [0, 1, 2, 5]
            .iter()
            .flat_map(|message| [first(*message, 0), first(*message, 1)])
            .collect();
        assert!(order.is_sorted(), "{what}: {order:?}");
    }
}

async fn written(database: &DatabaseConnection) -> Vec<String> {
    let select = Statement::from_string(DbBackend::Sqlite, "SELECT payload FROM written");
    let rows = database.query_all_raw(select).await.unwrap();
    rows.iter().map(|row| row.try_get_by_index(0).unwrap()).collect()
}

/// A batch in which nothing fails: barrier, effects, replies, their sending.
#[tokio::test]
async fn at_every_wait_of_a_delivery_and_of_the_replies() {
    let mut tries = EveryWait::default();
    while let Some(waits) = tries.next_try() {
        let mut world = World::new(false).await;
        world.mend();
        let kit = world.start();
        let died = kit.deliver_and_die(&world.messages, waits).await;
        world.end(kit);
        world.recover(&world.messages.clone(), false).await;
        world.assert_once(&format!("at wait {waits}")).await;
        tries.died(died);
    }
}

/// A batch with a message that fails: halving, quick attempts, the retry table, what waits behind. Or with
/// one whose rows somebody else has locked: it makes way at once, and an earlier one of its key with it. The
/// process that comes next may try it again before it reads the others once more.
#[tokio::test]
async fn at_every_wait_of_a_delivery_that_fails() {
    for (locked, retries_first) in [(false, false), (false, true), (true, false), (true, true)] {
        let mut tries = EveryWait::default();
        while let Some(waits) = tries.next_try() {
            let mut world = World::new(locked).await;
            let kit = world.start();
            let died = kit.deliver_and_die(&world.messages, waits).await;
            world.end(kit);
            world.mend();
            world.recover(&world.messages.clone(), retries_first).await;
            let what = format!("at wait {waits}, locked: {locked}, retries first: {retries_first}");
            world.assert_once(&what).await;
            tries.died(died);
        }
    }
}

/// The scheduler, with retries that fail again, that meet a lock again, and that succeed. The offsets were
/// committed before: nothing is delivered again.
#[tokio::test]
async fn at_every_wait_of_the_scheduler() {
    for (mended, locked) in [(false, false), (false, true), (true, false)] {
        let mut tries = EveryWait::default();
        while let Some(waits) = tries.next_try() {
            let mut world = World::new(locked).await;
            let kit = world.start();
            kit.deliver(&world.messages).await;
            // The early one waits with what is locked; beside a failure it had its effect.
            assert_eq!(kit.waiting().await.unwrap(), if locked { 4 } else { 3 });
            if mended {
                world.mend();
            }
            let died = kit.retry_and_die(waits).await.unwrap();
            world.end(kit);
            world.mend();
            world.recover(&[], false).await;
            let what = format!("at wait {waits}, mended: {mended}, locked: {locked}");
            world.assert_once(&what).await;
            tries.died(died);
        }
    }
}

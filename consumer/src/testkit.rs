//! Tests of handlers without Kafka (feature `testkit`): messages are handed in, replies are kept.
//!
//! [`ConsumerBuilder::test_kit`] takes the place of `run`. Batches go through the program's own
//! worker, inbox, retry table, dead letters and replies, in the database of the configuration;
//! [`database`] makes one of SQLite in memory. Nothing waits for a clock: [`ConsumerKit::settle_all`]
//! carries out every retry, however far away. A handler's own work takes its real time.
//!
//! It must never be part of a program: a message that is handed in is nowhere else.
//!
//! ```
//! use halfmsg_consumer::testkit::{self, Counts, Crash};
//! use halfmsg_consumer::{Consumer, Context, HandlerError, MessageHandler, ReceivedMessage, Reply};
//! use sea_orm::ConnectionTrait;
//!
//! struct Book;
//!
//! #[async_trait::async_trait]
//! impl MessageHandler for Book {
//!     async fn handle(
//!         &self,
//!         context: &Context<'_>,
//!         batch: &[ReceivedMessage],
//!     ) -> Result<(), HandlerError> {
//!         for message in batch {
//!             context.transaction().execute_unprepared("UPDATE book SET entries = entries + 1").await?;
//!             context.publish(message, Reply::new("booked", "{}"))?;
//!         }
//!         Ok(())
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let database = testkit::database().await?;
//! database.execute_unprepared("CREATE TABLE book AS SELECT 0 AS entries").await?;
//! let consumer = Consumer::builder(testkit::config(database, "books")).subscribe("paid", Book);
//! let kit = consumer.test_kit()?;
//! let paid = kit.message("paid", "{}");
//! kit.deliver_and_crash(&[paid.clone()], Crash::AfterCommit).await?;
//! let again = kit.deliver(&[paid]).await;
//! assert_eq!(again, Counts { duplicates: 1, ..Counts::default() });
//! assert_eq!(kit.replies().len(), 1);
//! # Ok(())
//! # }
//! ```

mod dying;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use halfmsg_db::{DbOptions, begin_write, connect, now};
use halfmsg_kafka::KafkaConfig;
use halfmsg_migrations::{ConsumerMigrator, migrate};
use sea_orm::sea_query::{Expr, ExprTrait, Query};
use sea_orm::{ConnectionTrait, DatabaseConnection, DbErr};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::config::ConsumerConfig;
use crate::consumer::{Consumer, ConsumerBuilder, ConsumerError};
use crate::dead_letter::DeadLetters;
use crate::deliver::{AttemptError, Stopwatch};
use crate::message::{ReceivedMessage, TRANSACTION_ID_HEADER};
use crate::reply::Reply;
use crate::scheduler::Scheduler;
use crate::sender::Outbox;
use crate::worker::{Batch, Worker};
use crate::{inbox, record};
pub use dying::{EveryWait, dies_at};

/// Between attempts of a kit, in place of the configured pauses.
const PAUSE: Duration = Duration::from_millis(1);
/// As long as a statement waits for the connection of [`database`]: a test machine may stand still.
const CONNECTION_PATIENCE: Duration = Duration::from_secs(30);
/// Rounds of retries in one [`ConsumerKit::settle_all`].
const MAX_ROUNDS: usize = 10_000;

/// Why a kit does not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum KitError {
    /// The handler failed before the crash that was asked for.
    #[error("the handler failed before the crash: {0}")]
    Handler(String),
    /// The tables of the kit's database.
    #[error("the database of the kit: {0}")]
    Database(#[from] DbErr),
    /// The database cannot be opened.
    #[error(transparent)]
    Connect(#[from] halfmsg_db::ConnectError),
    /// Replies that a crash left behind cannot be read.
    #[error("replies are not sent: {0}")]
    Replies(String),
    /// Retries that never end: `RetryLevels::max_retries` is too large for a test.
    #[error("{waiting} messages still wait after {rounds} rounds of retries")]
    Unsettled {
        /// So many.
        waiting: i64,
        /// After so many rounds.
        rounds: usize,
    },
}

/// A database of SQLite in memory, with the consumer's tables. It has one connection: whoever holds
/// a transaction must not ask for a second one.
///
/// # Errors
/// [`KitError::Connect`], [`KitError::Database`].
pub async fn database() -> Result<DatabaseConnection, KitError> {
    let options = DbOptions {
        max_connections: 1,
        acquire_timeout: CONNECTION_PATIENCE,
        ..DbOptions::default()
    };
    let database = connect("sqlite::memory:", &options).await?;
    migrate::<ConsumerMigrator>(&database).await?;
    Ok(database)
}

/// Settings for a kit: the defaults of [`ConsumerConfig::new`], for no cluster at all.
pub fn config(database: DatabaseConnection, subscriber: impl Into<String>) -> ConsumerConfig {
    ConsumerConfig::new(KafkaConfig::new("in-memory:9092"), database, subscriber)
}

/// What became of messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Had their effect.
    pub applied: u64,
    /// Were left out, because the inbox knew them.
    pub duplicates: u64,
    /// Were put into the retry table.
    pub retried: u64,
    /// Were put behind an earlier one of their key.
    pub held: u64,
    /// Became dead letters.
    pub dead: u64,
}

/// Where the process dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Crash {
    /// The handler is done, its transaction is not committed.
    BeforeCommit,
    /// It is committed; no reply is sent, no offset committed.
    AfterCommit,
}

/// A reply as it was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SentReply {
    /// Its identity: the same for every repetition.
    pub id: Uuid,
    /// The reply, with `halfmsg-transaction-id` among its headers.
    pub reply: Reply,
}

/// A consumer that is handed its messages; see the [module](self).
pub struct ConsumerKit {
    consumer: Consumer,
    worker: Worker,
    scheduler: Scheduler,
    outbox: Outbox,
    next_offset: AtomicI64,
}

impl ConsumerBuilder {
    /// Starts a [`ConsumerKit`] with these handlers and settings.
    ///
    /// # Errors
    /// As [`ConsumerBuilder::build`].
    pub fn test_kit(self) -> Result<ConsumerKit, ConsumerError> {
        let mut consumer = self.build()?;
        (consumer.config.first_backoff, consumer.config.longest_backoff) = (PAUSE, PAUSE);
        let outbox = Outbox::default();
        consumer.keep_replies(&outbox);
        let never = CancellationToken::new();
        let worker = consumer.worker(Arc::new(AtomicU64::new(0)), never.clone());
        let scheduler = consumer.scheduler(never);
        let next_offset = AtomicI64::new(0);
        Ok(ConsumerKit { consumer, worker, scheduler, outbox, next_offset })
    }
}

impl ConsumerKit {
    /// A new message of a half message's kind: partition 0, the next offset, a transaction id of its
    /// own. Its fields are there to be changed.
    pub fn message(&self, topic: impl Into<String>, payload: impl Into<Bytes>) -> ReceivedMessage {
        let id = Bytes::from(Uuid::now_v7().to_string());
        let headers = vec![(TRANSACTION_ID_HEADER.to_owned(), Some(id))];
        self.received(topic, None, headers, Some(payload.into()))
    }

    /// A message made of what a producer has sent, at the next offset: of the parts of what the
    /// producer's kit has delivered, say.
    pub fn received(
        &self,
        topic: impl Into<String>,
        key: Option<Bytes>,
        headers: Vec<(String, Option<Bytes>)>,
        payload: Option<Bytes>,
    ) -> ReceivedMessage {
        let offset = self.next_offset.fetch_add(1, Ordering::Relaxed);
        ReceivedMessage { topic: topic.into(), partition: 0, offset, key, headers, payload }
    }

    /// Delivers a batch, as if it had been fetched together, and takes it to its end. The same
    /// messages may be delivered again, as Kafka may.
    pub async fn deliver(&self, messages: &[ReceivedMessage]) -> Counts {
        let before = self.counts();
        let batch = Batch { messages: messages.to_vec(), generation: 0 };
        self.worker.process(batch).await;
        self.counts().since(before)
    }

    /// Delivers a batch in one attempt and ends the process at this point. The kit goes on as the
    /// process that was started again: deliver them once more.
    ///
    /// # Errors
    /// [`KitError::Handler`] if it does not come so far.
    pub async fn deliver_and_crash(
        &self,
        messages: &[ReceivedMessage],
        crash: Crash,
    ) -> Result<(), KitError> {
        let attempt = match crash {
            Crash::BeforeCommit => self.attempt_without_commit(messages).await,
            Crash::AfterCommit => self.worker.deliverer.deliver(messages).await.map(drop),
        };
        attempt.map_err(|error| KitError::Handler(error.to_string()))
    }

    /// Delivers a batch, and ends the process where it waits for the so many-th time (from 1): for a
    /// connection, a lock, a statement, the commit, a pause, the acknowledgement of a reply. True if it
    /// died there, else it was delivered. The process that is started again is another kit on the same
    /// database.
    ///
    /// [`EveryWait`] takes one number after the other until it survives.
    pub async fn deliver_and_die(&self, messages: &[ReceivedMessage], waits: u32) -> bool {
        dies_at(waits, self.deliver(messages)).await.is_none()
    }

    /// [`ConsumerKit::retry_now`] of a process that ends where it waits for the so many-th time, as in
    /// [`ConsumerKit::deliver_and_die`].
    ///
    /// # Errors
    /// [`KitError::Database`].
    pub async fn retry_and_die(&self, waits: u32) -> Result<bool, KitError> {
        self.make_due().await?;
        Ok(dies_at(waits, self.scheduler.work_off()).await.is_none())
    }

    async fn attempt_without_commit(
        &self,
        messages: &[ReceivedMessage],
    ) -> Result<(), AttemptError> {
        let deliverer = &self.worker.deliverer;
        let transaction = begin_write(&deliverer.database).await?;
        let fresh = inbox::remember_in_tx(
            &transaction,
            &deliverer.subscriber,
            deliverer.inbox_by_key,
            messages,
        )
        .await?;
        let watch = Stopwatch::default();
        let handled = deliverer.handle_in_tx(&transaction, &fresh, &watch).await;
        transaction.rollback().await?;
        handled.map(drop)
    }

    /// Sends the replies that a crash left behind, then carries out every retry, one level after the
    /// other, until each message had its effect or is a dead letter.
    ///
    /// # Errors
    /// [`KitError::Database`], [`KitError::Replies`], [`KitError::Unsettled`].
    pub async fn settle_all(&self) -> Result<Counts, KitError> {
        let before = self.counts();
        let left_behind = self.scheduler.sender.send_left_behind(Some(now())).await;
        left_behind.map_err(|error| KitError::Replies(error.to_string()))?;
        for _ in 0..MAX_ROUNDS {
            if self.waiting().await? == 0 {
                return Ok(self.counts().since(before));
            }
            self.retry_now().await?;
        }
        Err(KitError::Unsettled { waiting: self.waiting().await?, rounds: MAX_ROUNDS })
    }

    /// Carries out the next retry of each message that waits for one.
    ///
    /// # Errors
    /// [`KitError::Database`].
    pub async fn retry_now(&self) -> Result<Counts, KitError> {
        let before = self.counts();
        self.make_due().await?;
        self.scheduler.work_off().await;
        Ok(self.counts().since(before))
    }

    async fn make_due(&self) -> Result<(), KitError> {
        let mut due = Query::update();
        due.table("retry")
            .value("next_at", now())
            .and_where(Expr::col("subscriber").eq(&self.worker.deliverer.subscriber))
            // What waits behind another message has no turn yet.
            .and_where(Expr::col("next_at").is_not_null());
        self.worker.deliverer.database.execute(&due).await?;
        Ok(())
    }

    /// How many messages are in the retry table.
    ///
    /// # Errors
    /// [`KitError::Database`].
    pub async fn waiting(&self) -> Result<i64, KitError> {
        let deliverer = &self.worker.deliverer;
        Ok(record::count(&deliverer.database, "retry", &deliverer.subscriber).await?)
    }

    /// The replies that were sent, in their order; repetitions too.
    pub fn replies(&self) -> Vec<SentReply> {
        self.outbox.sent()
    }

    /// The dead letters, to be listed, replayed and discarded as in the program.
    pub fn dead_letters(&self) -> DeadLetters {
        self.consumer.dead_letters()
    }

    fn counts(&self) -> Counts {
        let metrics = self.consumer.metrics();
        Counts {
            applied: metrics.messages(),
            duplicates: metrics.duplicates(),
            retried: metrics.retried(),
            held: metrics.held(),
            dead: metrics.dead_letters(),
        }
    }
}

impl Counts {
    fn since(self, before: Self) -> Self {
        Self {
            applied: self.applied - before.applied,
            duplicates: self.duplicates - before.duplicates,
            retried: self.retried - before.retried,
            held: self.held - before.held,
            dead: self.dead - before.dead,
        }
    }
}

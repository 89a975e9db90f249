//! Consuming messages so that each has its effect once, and answering them.
//!
//! A handler gets a batch inside one database transaction, in which the runtime first records
//! each message in the inbox of this subscriber; one seen before is skipped. Replies that the
//! handler publishes are stored in the same transaction and sent behind it; offsets are committed
//! after that. So a crash, a rebalance or a message that was delivered twice repeats the delivery,
//! never the effect, and an effect never goes without its reply. The promise lasts as long as the
//! inbox's rows: [`ConsumerConfig::inbox_retention`].
//!
//! A message that fails does not fail its batch: it is isolated by halving, tried a few times more,
//! then put into the retry table in one transaction with its inbox row, and the others go on. The
//! [`RetryLevels`] are RocketMQ's; after the last, or at once if it cannot be decoded, it is a dead
//! letter, which can be listed, replayed and discarded ([`DeadLetters`], [`DeadLetterStore`]). Later
//! messages of its key wait behind it or overtake it ([`KeyOrder`]). A database that is away burns no
//! attempts, nor do other people's locks for [`LOCKED_FOR`]. Across different keys no order is promised.
//!
//! Two things the runtime cannot tell. A message without a transaction id is known by its coordinates:
//! after its topic was deleted and made anew, a new message at an old place counts as one that was
//! had. Use another subscriber then, or [`Inbox::forget`]. (One with a transaction id is known by that, of
//! whatever topic: whoever makes a message of another one, and takes its headers over, as Kafka Streams
//! does, must drop [`TRANSACTION_ID_HEADER`] or give it a new value, else a subscriber that reads both drops
//! the second as a repetition.) And a handler that aborts the process (a
//! stack overflow, `abort`, the memory killer) leaves no failure behind: its message is not counted,
//! comes again after the restart, and needs a handler that refuses it.
//!
//! The tables are `halfmsg_migrations::ConsumerMigrator`, in the handler's database: PostgreSQL or
//! SQLite.
//!
//! ```no_run
//! use halfmsg_consumer::{Consumer, ConsumerConfig, Context, HandlerError, MessageHandler,
//!     ReceivedMessage, Reply};
//!
//! struct Restore;
//!
//! #[async_trait::async_trait]
//! impl MessageHandler for Restore {
//!     async fn handle(
//!         &self,
//!         context: &Context<'_>,
//!         batch: &[ReceivedMessage],
//!     ) -> Result<(), HandlerError> {
//!         for message in batch {
//!             // … statements on context.transaction()
//!             context.publish(message, Reply::new("stock.restored", "{}"))?;
//!         }
//!         Ok(())
//!     }
//! }
//!
//! # async fn example(config: ConsumerConfig, shutdown: tokio_util::sync::CancellationToken)
//! # -> Result<(), Box<dyn std::error::Error>> {
//! Consumer::builder(config).subscribe("stock.rollback", Restore).run(shutdown).await?;
//! # Ok(())
//! # }
//! ```
//!
//! # Layout
//! - [`config`]: [`ConsumerConfig`], all bounds
//! - [`message`]: [`ReceivedMessage`], and the key under which it is remembered
//! - [`handler`]: [`MessageHandler`], what a user writes
//! - [`consumer`]: [`Consumer`], starts and restarts the parts below
//! - `poller`: the thread that talks to Kafka: fetches, pauses, commits
//! - `worker`: takes a batch to its end, in parts: isolates, sets aside
//! - `deliver`: one attempt: inbox, handler, replies, commit
//! - [`inbox`]: the barrier
//! - `retry`: the table of what waits; `scheduler`: hands it out when it is due; `give_up`: puts it
//!   there, or to the dead letters
//! - [`reply`]: [`Reply`], stored; `sender`: sends what is stored
//! - `background`: what was left behind, the inbox's retention, gauges
//! - [`dead_letter`]: what was given up on, its filters, its replay
//! - `testkit` (feature `testkit`): tests of handlers without Kafka
//! - `record`, `headers`: how a message is kept in a table
//! - `health`: [`Health`], a slot for each cause
//! - [`metrics`]: [`ConsumerMetrics`], what can be watched; `spans`: traces of what handlers have

pub mod config;
pub mod consumer;
pub mod dead_letter;
pub mod handler;
pub mod inbox;
pub mod message;
pub mod metrics;
pub mod reply;

mod background;
mod backoff;
mod deliver;
mod give_up;
mod headers;
mod health;
mod poller;
mod record;
mod retry;
mod scheduler;
mod sender;
mod spans;
#[cfg(feature = "testkit")]
pub mod testkit;
mod worker;

pub use config::{
    Assignment, ConsumerConfig, DEFAULT_INBOX_RETENTION, KeyOrder, RetryLevels, Spread,
    TopicSettings,
};
pub use consumer::{Consumer, ConsumerBuilder, ConsumerError, ConsumerHandle};
pub use dead_letter::{
    DeadLetter, DeadLetterError, DeadLetterFilter, DeadLetterState, DeadLetterStore, DeadLetters,
    ReplayError, Replayed,
};
pub use handler::{Context, HandlerError, LOCKED_FOR, MessageHandler};
pub use health::Health;
pub use inbox::Inbox;
pub use message::{ReceivedMessage, TRANSACTION_ID_HEADER};
pub use metrics::{ConsumerFamilies, ConsumerMetrics};
pub use reply::{MAX_REPLIES, MAX_REPLY_BYTES, Reply, reply_id};

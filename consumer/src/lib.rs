//! Consuming messages so that each has its effect once.
//!
//! A handler gets a batch inside one database transaction, in which the runtime first records
//! each message in the inbox of this subscriber; one seen before is skipped. Offsets are
//! committed after the database transaction. So a crash, a rebalance or a message that was
//! delivered twice repeats the delivery, never the effect. The promise lasts as long as the
//! inbox's rows, which nothing deletes yet.
//!
//! A message that fails does not fail its batch: the others go on, except later ones of the same
//! key; the culprit is retried in place and becomes a dead letter when its attempts are used up.
//! A message that cannot be decoded is a dead letter at once. A database that is away burns no
//! attempts. Across different keys no order is promised.
//!
//! ```no_run
//! use halfmsg_consumer::{Consumer, ConsumerConfig, Context, HandlerError, MessageHandler,
//!     ReceivedMessage};
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
//!         // … statements on context.transaction()
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
//! - `worker`: takes a batch to its end: isolates, retries, gives up
//! - `deliver`: one attempt: inbox, handler, commit
//! - `inbox`: the barrier
//! - `headers`: how a dead letter keeps its headers
//! - [`dead_letter`]: what was given up on, and its replay
//! - [`metrics`]: [`ConsumerMetrics`], what can be watched

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
mod poller;
mod record;
mod retry;
mod scheduler;
mod sender;
mod worker;

pub use config::{Assignment, ConsumerConfig, KeyOrder, RetryLevels, Spread, TopicSettings};
pub use consumer::{Consumer, ConsumerBuilder, ConsumerError, ConsumerHandle, Health};
pub use dead_letter::{
    DeadLetter, DeadLetterError, DeadLetterFilter, DeadLetterState, DeadLetterStore, DeadLetters,
    ReplayError, Replayed,
};
pub use handler::{Context, HandlerError, MessageHandler};
pub use inbox::Inbox;
pub use message::{ReceivedMessage, TRANSACTION_ID_HEADER};
pub use metrics::ConsumerMetrics;
pub use reply::{MAX_REPLIES, MAX_REPLY_BYTES, Reply, reply_id};

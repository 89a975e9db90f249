//! One attempt: the inbox, the handler, its replies and the commit, in one transaction.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::FutureExt;
use halfmsg_db::{DbFault, begin_write, set_timeouts_in_tx};
use halfmsg_traces::context::within;
use sea_orm::sea_query::{Expr, Query};
use sea_orm::{ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbBackend, DbErr};
use tokio::time::timeout;

use crate::config::KeyOrder;
use crate::handler::{Afterwards, Context, HandlerError, MessageHandler};
use crate::message::ReceivedMessage;
use crate::metrics::ConsumerMetrics;
use crate::reply::Answers;
use crate::retry::Sorted;
use crate::spans::Processing;
use crate::{inbox, reply, retry};

/// What an attempt that succeeded did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Delivered {
    /// Messages that had their effect now.
    pub(crate) fresh: usize,
    /// Messages that had it before.
    pub(crate) duplicates: usize,
    /// Messages that were put behind an earlier one of their key.
    pub(crate) held: usize,
    /// What has to be sent before these offsets are committed.
    pub(crate) answers: Answers,
}

/// Why an attempt had no effect.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AttemptError {
    /// The database is away or busy: no message is to blame.
    #[error("{0}")]
    Transient(String),
    /// A statement says that the database cannot work. An attempt that ended with it is only told so while
    /// the database answers: it may be what one message asks for, or a server that comes and goes.
    #[error("{0}")]
    Unable(String),
    /// A handler's statement met a deadlock or a lock that was held for too long.
    #[error("{0}")]
    Contended(String),
    /// Somebody else has locked what these messages need, as their handler says.
    #[error("somebody else holds what they need: {cause}")]
    Locked {
        /// By their inbox keys.
        keys: BTreeSet<String>,
        cause: String,
    },
    /// A message cannot be decoded.
    #[error("cannot be decoded: {0}")]
    Undecodable(String),
    /// The handler took too long.
    #[error("{0}")]
    Overdue(String),
    /// The attempt took too long, and most of it was not the handler's: somebody holds what the inbox or
    /// the commit needs. No message is to blame, but a smaller batch may do.
    #[error("{0}")]
    Late(String),
    /// A message's handler failed.
    #[error("{0}")]
    Failed(String),
}

impl From<HandlerError> for AttemptError {
    fn from(error: HandlerError) -> Self {
        match error {
            HandlerError::Undecodable(cause) => Self::Undecodable(cause),
            HandlerError::Database(error) => match DbFault::of(&error) {
                DbFault::Unavailable => Self::Unable(error.to_string()),
                DbFault::Contended => Self::Contended(error.to_string()),
                _ => Self::Failed(HandlerError::Database(error).to_string()),
            },
            HandlerError::Locked { keys, cause } => Self::Locked { keys, cause },
            error @ HandlerError::Failed(_) => Self::Failed(error.to_string()),
        }
    }
}

/// The runtime's own statements: no handler is to blame for a busy database.
impl From<DbErr> for AttemptError {
    fn from(error: DbErr) -> Self {
        match DbFault::of(&error) {
            DbFault::Unavailable => Self::Unable(error.to_string()),
            DbFault::Contended => Self::Transient(error.to_string()),
            _ => Self::Failed(HandlerError::Database(error).to_string()),
        }
    }
}

impl AttemptError {
    /// A statement about the rows of messages, which waits for whoever has one of them in hand.
    pub(crate) fn of_barrier(error: DbErr) -> Self {
        if DbFault::of(&error) == DbFault::Contended {
            return Self::Late(format!("somebody else has one of these messages in hand: {error}"));
        }
        error.into()
    }
}

/// How long the database may take to answer a ping before it counts as away.
const PING_DEADLINE: Duration = Duration::from_secs(2);

/// The database ends a transaction that is silent for so much longer than its attempt may take: whose process
/// stands still, or whose machine is gone. Whoever has the same messages meanwhile waits no longer than that.
const IDLE_MARGIN: Duration = Duration::from_secs(5);

/// The handlers and where they work. It keeps nothing between attempts.
pub(crate) struct Deliverer {
    pub(crate) database: DatabaseConnection,
    pub(crate) subscriber: String,
    pub(crate) handlers: HashMap<String, Arc<dyn MessageHandler>>,
    pub(crate) attempt_deadline: Duration,
    pub(crate) key_order: KeyOrder,
    /// Whether the inbox is bounded by key.
    pub(crate) inbox_by_key: bool,
    pub(crate) metrics: ConsumerMetrics,
}

/// How much of an attempt its handlers took.
#[derive(Debug, Default)]
pub(crate) struct Stopwatch {
    nanos: AtomicU64,
}

impl Stopwatch {
    /// Counts until what it returns is dropped, by the deadline too.
    fn start(&self) -> Running<'_> {
        Running { watch: self, began: Instant::now() }
    }

    fn total(&self) -> Duration {
        Duration::from_nanos(self.nanos.load(Ordering::Relaxed))
    }
}

/// A handler at work.
struct Running<'a> {
    watch: &'a Stopwatch,
    began: Instant,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let nanos = u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.watch.nanos.fetch_add(nanos, Ordering::Relaxed);
    }
}

/// What handlers left to be done after the commit.
#[derive(Default)]
pub(crate) struct Handled {
    pub(crate) afterwards: Vec<Afterwards>,
    pub(crate) answers: Answers,
    pub(crate) processing: Processing,
}

impl Handled {
    /// The transaction is committed: nothing that fails from here on is a failure of the message.
    pub(crate) fn committed(self) -> Answers {
        self.processing.committed();
        for action in self.afterwards {
            if std::panic::catch_unwind(AssertUnwindSafe(action)).is_err() {
                tracing::error!("what a handler left to be done after the commit panicked");
            }
        }
        self.answers
    }
}

impl Deliverer {
    /// Delivers a batch, all or nothing. An error of the commit leaves open whether it happened;
    /// the next attempt finds out from the inbox.
    pub(crate) async fn deliver(
        &self,
        batch: &[ReceivedMessage],
    ) -> Result<Delivered, AttemptError> {
        let watch = Stopwatch::default();
        self.bounded(&watch, async {
            let transaction = self.begin().await?;
            let fresh =
                inbox::remember_in_tx(&transaction, &self.subscriber, self.inbox_by_key, batch)
                    .await;
            let fresh = fresh.map_err(AttemptError::of_barrier)?;
            let repeated = repeated(batch, &fresh);
            let duplicates = batch.len() - fresh.len();
            // After the inbox: where another replica has just put one of these messages into the
            // retry table, this statement sees it.
            let subscriber = &self.subscriber;
            let Sorted { go, held } =
                retry::sort_in_tx(&transaction, subscriber, self.key_order, fresh).await?;
            let handled = self.handle_in_tx(&transaction, &go, &watch).await?;
            retry::hold_back_in_tx(&transaction, subscriber, &held).await?;
            transaction.commit().await?;
            let mut answers = handled.committed();
            answers.message_keys.extend(repeated);
            Ok(Delivered { fresh: go.len(), duplicates, held: held.len(), answers })
        })
        .await
    }

    /// Begins the transaction of an attempt. What waits for a lock in it ends before the attempt does:
    /// cut off by the deadline, it would keep its connection until it has the lock (PostgreSQL). And it
    /// outlives neither its process nor its deadline by long.
    pub(crate) async fn begin(&self) -> Result<DatabaseTransaction, AttemptError> {
        let begun = async {
            let transaction = begin_write(&self.database).await?;
            let idle = self.attempt_deadline.saturating_add(IDLE_MARGIN);
            set_timeouts_in_tx(&transaction, self.attempt_deadline / 2, idle).await?;
            Ok::<_, DbErr>(transaction)
        };
        begun.await.map_err(|error| match AttemptError::from(error) {
            // Nothing was asked for any message yet.
            AttemptError::Unable(cause) => AttemptError::Transient(cause),
            error => error,
        })
    }

    /// Gives messages to their handlers and stores the replies, inside a caller's transaction.
    pub(crate) async fn handle_in_tx(
        &self,
        transaction: &DatabaseTransaction,
        messages: &[ReceivedMessage],
        watch: &Stopwatch,
    ) -> Result<Handled, AttemptError> {
        let processing = Processing::begin(messages, &self.subscriber);
        match self.give_in_tx(transaction, messages, &processing, watch).await {
            Ok((afterwards, answers)) => Ok(Handled { afterwards, answers, processing }),
            Err(error) => {
                processing.failed(&error);
                Err(error)
            }
        }
    }

    async fn give_in_tx(
        &self,
        transaction: &DatabaseTransaction,
        messages: &[ReceivedMessage],
        processing: &Processing,
        watch: &Stopwatch,
    ) -> Result<(Vec<Afterwards>, Answers), AttemptError> {
        let (mut replies, mut afterwards) = (Vec::new(), Vec::new());
        for run in messages.chunk_by(|a, b| a.topic == b.topic) {
            let handler = run.first().and_then(|message| self.handlers.get(&message.topic));
            let Some(handler) = handler else {
                let topic = run.first().map(|message| message.topic.as_str());
                return Err(AttemptError::Failed(format!("no handler for topic {topic:?}")));
            };
            let context = Context::new(transaction, run);
            let began = Instant::now();
            let counted = watch.start();
            match processing.of_one(run) {
                Some(span) => within(&span, handler.handle(&context, run)).await?,
                None => handler.handle(&context, run).await?,
            }
            drop(counted);
            self.metrics.handled_in(began.elapsed());
            let (mut published, mut left) = context.into_parts();
            replies.append(&mut published);
            afterwards.append(&mut left);
        }
        processing.go_on_in(&mut replies);
        reply::store_in_tx(transaction, &self.subscriber, &replies).await?;
        let answers = Answers::of(&replies);
        if !messages.is_empty() {
            still_sound_in_tx(transaction).await?;
        }
        Ok((afterwards, answers))
    }

    /// Within the deadline of an attempt, a panic being a failure like others. `watch` is what counts the
    /// handlers' part of it. [`AttemptError::Unable`] is only what a database says that answers.
    pub(crate) async fn bounded<T>(
        &self,
        watch: &Stopwatch,
        attempt: impl Future<Output = Result<T, AttemptError>>,
    ) -> Result<T, AttemptError> {
        match timeout(self.attempt_deadline, AssertUnwindSafe(attempt).catch_unwind()).await {
            Ok(Ok(Err(AttemptError::Unable(cause)))) => Err(self.unable(cause).await),
            Ok(Ok(result)) => result,
            Ok(Err(panic)) => {
                let text = panic.downcast_ref::<String>().map(String::as_str);
                let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
                Err(AttemptError::Failed(format!("the handler panicked: {}", text.unwrap_or("?"))))
            }
            Err(_) => Err(self.overdue(watch.total()).await),
        }
    }

    /// A database that does not answer is to blame for its own delay; the handlers are, if they took the
    /// larger part of it; else it is somebody who holds what the runtime's own statements need.
    async fn overdue(&self, handlers: Duration) -> AttemptError {
        let text = format!("the attempt took longer than {:?}", self.attempt_deadline);
        if !self.database_answers().await {
            return AttemptError::Transient(format!("{text}, and the database does not answer"));
        }
        if handlers >= self.attempt_deadline / 2 {
            return AttemptError::Overdue(text);
        }
        AttemptError::Late(format!(
            "{text}, {handlers:?} of it in handlers: somebody holds what its inbox or its commit needs"
        ))
    }

    async fn unable(&self, cause: String) -> AttemptError {
        match self.database_answers().await {
            true => AttemptError::Unable(cause),
            false => AttemptError::Transient(cause),
        }
    }

    async fn database_answers(&self) -> bool {
        matches!(timeout(PING_DEADLINE, self.database.ping()).await, Ok(Ok(())))
    }
}

/// The inbox keys of what was handled before: their replies may be unconfirmed.
fn repeated(batch: &[ReceivedMessage], fresh: &[ReceivedMessage]) -> Vec<String> {
    let fresh: HashSet<String> = fresh.iter().map(ReceivedMessage::inbox_key).collect();
    let keys: HashSet<String> = batch.iter().map(ReceivedMessage::inbox_key).collect();
    keys.into_iter().filter(|key| !fresh.contains(key)).collect()
}

/// A handler that passes over a failed statement leaves PostgreSQL with a transaction that ends by
/// being rolled back, and a COMMIT that says nothing of it: any statement before it does.
async fn still_sound_in_tx(transaction: &DatabaseTransaction) -> Result<(), AttemptError> {
    if transaction.get_database_backend() != DbBackend::Postgres {
        return Ok(());
    }
    let one = Query::select().expr(Expr::val(1)).to_owned();
    match transaction.query_one(&one).await {
        Ok(_) => Ok(()),
        Err(error) if DbFault::of(&error).is_transient() => Err(error.into()),
        Err(error) => Err(AttemptError::Failed(format!(
            "the handler passed over a statement that failed: {error}"
        ))),
    }
}

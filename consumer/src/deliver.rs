//! One attempt: the inbox, the handler and the commit, in one transaction.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use halfmsg_db::{DbFault, begin_write};
use sea_orm::{DatabaseConnection, DatabaseTransaction, DbErr};
use tokio::time::timeout;

use crate::handler::{Afterwards, Context, HandlerError, MessageHandler};
use crate::inbox;
use crate::message::ReceivedMessage;

/// What an attempt that succeeded did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Delivered {
    /// Messages that had their effect now.
    pub(crate) fresh: usize,
    /// Messages that had it before.
    pub(crate) duplicates: usize,
}

/// Why an attempt had no effect.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AttemptError {
    /// The database is away or busy: no message is to blame.
    #[error("{0}")]
    Transient(String),
    /// A message cannot be decoded.
    #[error("cannot be decoded: {0}")]
    Undecodable(String),
    /// A message's handler failed.
    #[error("{0}")]
    Failed(String),
}

impl From<HandlerError> for AttemptError {
    fn from(error: HandlerError) -> Self {
        match error {
            HandlerError::Undecodable(cause) => Self::Undecodable(cause),
            HandlerError::Database(error) if DbFault::of(&error).is_transient() => {
                Self::Transient(error.to_string())
            }
            error => Self::Failed(error.to_string()),
        }
    }
}

impl From<DbErr> for AttemptError {
    fn from(error: DbErr) -> Self {
        HandlerError::from(error).into()
    }
}

/// How long the database may take to answer a ping before it counts as away.
const PING_DEADLINE: Duration = Duration::from_secs(2);

/// The handlers and where they work. It keeps nothing between attempts.
pub(crate) struct Deliverer {
    pub(crate) database: DatabaseConnection,
    pub(crate) subscriber: String,
    pub(crate) handlers: HashMap<String, Arc<dyn MessageHandler>>,
    pub(crate) attempt_deadline: Duration,
}

impl Deliverer {
    /// Delivers a batch, all or nothing. An error of the commit leaves open whether it happened;
    /// the next attempt finds out from the inbox.
    pub(crate) async fn deliver(
        &self,
        batch: &[ReceivedMessage],
    ) -> Result<Delivered, AttemptError> {
        self.bounded(async {
            let transaction = begin_write(&self.database).await?;
            let (delivered, afterwards) = self.deliver_in_tx(&transaction, batch).await?;
            transaction.commit().await?;
            afterwards.into_iter().for_each(|action| action());
            Ok(delivered)
        })
        .await
    }

    /// The same inside a caller's transaction, with what is to be done after its commit.
    pub(crate) async fn deliver_in_tx(
        &self,
        transaction: &DatabaseTransaction,
        batch: &[ReceivedMessage],
    ) -> Result<(Delivered, Vec<Afterwards>), AttemptError> {
        let fresh = inbox::remember_in_tx(transaction, &self.subscriber, batch).await?;
        let delivered = Delivered { fresh: fresh.len(), duplicates: batch.len() - fresh.len() };
        let context = Context::new(transaction);
        for run in fresh.chunk_by(|a, b| a.topic == b.topic) {
            let handler = run.first().and_then(|message| self.handlers.get(&message.topic));
            let Some(handler) = handler else {
                let topic = run.first().map(|message| message.topic.as_str());
                return Err(AttemptError::Failed(format!("no handler for topic {topic:?}")));
            };
            handler.handle(&context, run).await?;
        }
        Ok((delivered, context.into_afterwards()))
    }

    /// Within the deadline of an attempt, a panic being a failure like others.
    pub(crate) async fn bounded<T>(
        &self,
        attempt: impl Future<Output = Result<T, AttemptError>>,
    ) -> Result<T, AttemptError> {
        match timeout(self.attempt_deadline, AssertUnwindSafe(attempt).catch_unwind()).await {
            Ok(Ok(result)) => result,
            Ok(Err(panic)) => {
                let text = panic.downcast_ref::<String>().map(String::as_str);
                let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
                Err(AttemptError::Failed(format!("the handler panicked: {}", text.unwrap_or("?"))))
            }
            Err(_) => Err(self.overdue().await),
        }
    }

    /// A database that does not answer is to blame for its own delay, else the handler is.
    async fn overdue(&self) -> AttemptError {
        let text = format!("the attempt took longer than {:?}", self.attempt_deadline);
        match timeout(PING_DEADLINE, self.database.ping()).await {
            Ok(Ok(())) => AttemptError::Failed(text),
            _ => AttemptError::Transient(format!("{text}, and the database does not answer")),
        }
    }
}

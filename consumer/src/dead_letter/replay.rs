//! Replaying a dead letter at once, where its handler is.

use std::ops::Deref;
use std::sync::Arc;

use halfmsg_db::{DbFault, begin_write, now};
use halfmsg_traces::failed;
use sea_orm::sea_query::{Expr, ExprTrait, LockType, Query};
use sea_orm::{ConnectionTrait, DatabaseTransaction, DbErr};
use uuid::Uuid;

use super::{DeadLetter, DeadLetterFilter, DeadLetterState, DeadLetterStore, row};
use crate::deliver::{AttemptError, Deliverer};
use crate::inbox;
use crate::message::ReceivedMessage;
use crate::metrics::ConsumerMetrics;
use crate::record::cause_text;
use crate::reply::Answers;
use crate::sender::Sender;
use crate::spans;

/// What a replay did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Replayed {
    /// The message had its effect now.
    Done(DeadLetter),
    /// It had it before: an earlier replay succeeded.
    Before(DeadLetter),
}

/// Why a replay had no effect.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// There is no such dead letter of this subscriber.
    #[error("there is no dead letter {0}")]
    NotFound(Uuid),
    /// A replay waits in the retry table, or it was discarded.
    #[error("dead letter {id} is {state} already")]
    NotOpen {
        /// The dead letter.
        id: Uuid,
        /// What became of it.
        state: DeadLetterState,
    },
    /// It failed again; cause and attempts are noted.
    #[error("it failed again: {0}")]
    Failed(String),
    /// The database is away or busy: nothing happened; try again.
    #[error("the database is unavailable: {0}")]
    Unavailable(String),
    /// A row that cannot be read, or a statement that is refused.
    #[error("{0}")]
    Database(DbErr),
}

impl From<DbErr> for ReplayError {
    fn from(error: DbErr) -> Self {
        if DbFault::of(&error).is_transient() {
            Self::Unavailable(error.to_string())
        } else {
            Self::Database(error)
        }
    }
}

/// The dead letters of a consumer in this process: a [`DeadLetterStore`] that can also call the
/// handler. Cheap to clone.
#[derive(Clone)]
pub struct DeadLetters {
    pub(crate) store: DeadLetterStore,
    pub(crate) deliverer: Arc<Deliverer>,
    pub(crate) sender: Arc<Sender>,
    pub(crate) metrics: ConsumerMetrics,
}

impl Deref for DeadLetters {
    type Target = DeadLetterStore;

    fn deref(&self) -> &DeadLetterStore {
        &self.store
    }
}

/// How a letter was found.
enum Attempt {
    Missing,
    Closed(DeadLetter),
    Done(DeadLetter, Answers),
}

impl DeadLetters {
    /// Gives the message to its handler once more, in one transaction with the note that it was
    /// replayed: however often it is called, the message has one effect. Its replies are sent
    /// afterwards, by the background if that fails now.
    ///
    /// Cancelled, it happened or not; calling again finds out.
    ///
    /// # Errors
    /// [`ReplayError`].
    pub async fn replay(&self, id: Uuid) -> Result<Replayed, ReplayError> {
        match self.deliverer.bounded(self.attempt(id)).await {
            Ok(Attempt::Done(letter, answers)) => {
                self.metrics.applied(1);
                if let Err(error) = self.sender.send(&answers).await {
                    tracing::warn!(%error, "the replies to a replayed message wait");
                }
                Ok(Replayed::Done(letter))
            }
            Ok(Attempt::Closed(letter)) if letter.state == DeadLetterState::Replayed => {
                Ok(Replayed::Before(letter))
            }
            Ok(Attempt::Closed(letter)) => Err(ReplayError::NotOpen { id, state: letter.state }),
            Ok(Attempt::Missing) => Err(ReplayError::NotFound(id)),
            Err(AttemptError::Transient(cause) | AttemptError::Contended(cause)) => {
                Err(ReplayError::Unavailable(cause))
            }
            Err(error) => {
                let cause = cause_text(&error.to_string());
                self.note_failure(id, &cause).await?;
                Err(ReplayError::Failed(cause))
            }
        }
    }

    async fn attempt(&self, id: Uuid) -> Result<Attempt, AttemptError> {
        let transaction = begin_write(&self.deliverer.database).await?;
        let mut select = self.store.select(&DeadLetterFilter::default());
        select.and_where(Expr::col("id").eq(id)).lock(LockType::Update);
        let Some(row) = transaction.query_one(&select).await? else {
            return Ok(Attempt::Missing);
        };
        let (mut letter, message) = row::read(&row)?;
        if letter.state != DeadLetterState::Open {
            return Ok(Attempt::Closed(letter));
        }
        let mut span = spans::replay(&message, &self.deliverer.subscriber);
        let answers = self.handle(transaction, id, [message]).await.inspect_err(|error| {
            if let Some(span) = &mut span {
                failed(span, "not_done", &error.to_string());
            }
        })?;
        (letter.state, letter.replayed_at) = (DeadLetterState::Replayed, Some(now()));
        Ok(Attempt::Done(letter, answers))
    }

    async fn handle(
        &self,
        transaction: DatabaseTransaction,
        id: Uuid,
        messages: [ReceivedMessage; 1],
    ) -> Result<Answers, AttemptError> {
        let handled = self.deliverer.handle_in_tx(&transaction, &messages).await?;
        inbox::renew_in_tx(&transaction, &self.deliverer.subscriber, &messages).await?;
        row::replayed_in_tx(&transaction, &[id]).await?;
        transaction.commit().await?;
        Ok(handled.committed())
    }

    async fn note_failure(&self, id: Uuid, cause: &str) -> Result<(), DbErr> {
        let mut update = Query::update();
        update
            .table("dead_letter")
            .value("attempts", Expr::col("attempts").add(1))
            .value("cause", cause)
            .value("last_failed_at", now())
            .and_where(Expr::col("id").eq(id));
        self.deliverer.database.execute(&update).await.map(|_| ())
    }
}

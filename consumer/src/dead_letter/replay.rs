//! Replaying a dead letter at once, where its handler is.

use std::ops::Deref;
use std::sync::Arc;

use halfmsg_db::{DbFault, now, writers_turn};
use halfmsg_traces::failed;
use sea_orm::sea_query::{Expr, ExprTrait, LockType, Query};
use sea_orm::{ConnectionTrait, DatabaseTransaction, DbErr};
use uuid::Uuid;

use super::{DeadLetter, DeadLetterFilter, DeadLetterState, DeadLetterStore, row};
use crate::deliver::{AttemptError, Deliverer, Stopwatch};
use crate::message::ReceivedMessage;
use crate::metrics::ConsumerMetrics;
use crate::record::cause_text;
use crate::reply::Answers;
use crate::sender::Sender;
use crate::{inbox, retry, spans};

/// What a replay did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Replayed {
    /// The message had its effect now.
    Done(DeadLetter),
    /// It had it before: an earlier replay succeeded.
    Before(DeadLetter),
}

/// Why a replay had no effect, or why nobody knows.
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
    /// An earlier message of its key waits for its retry, and the order of the key is kept: `queue` puts it
    /// behind that one.
    #[error(
        "an earlier message of the key of dead letter {0} waits in the retry table: queue it, so that it follows"
    )]
    Behind(Uuid),
    /// Nobody can try it here: its topic has no handler any more, or has it in another service.
    #[error(
        "no consumer here has a handler for topic {topic} of dead letter {id}: discard it, or replay it where there is one"
    )]
    NoHandler {
        /// The dead letter.
        id: Uuid,
        /// Its topic.
        topic: String,
    },
    /// It failed again; cause and attempts are noted.
    #[error("it failed again: {0}")]
    Failed(String),
    /// The database is away or busy. It may have happened, where the end of its transaction was not answered:
    /// ask again, which has no second effect.
    #[error("the database is unavailable, and the replay may have happened; ask again: {0}")]
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
    Behind,
    NoHandler(String),
    Done(DeadLetter, Answers),
}

impl DeadLetters {
    /// Gives the message to its handler once more, in one transaction with the note that it was
    /// replayed: however often it is called, the message has one effect. Its replies are sent
    /// afterwards, by the background if that fails now.
    ///
    /// With [`KeyOrder::Keep`](crate::KeyOrder) it does not overtake what waits in the retry table; messages
    /// of its key that came behind it may have had their effect since it became a dead letter.
    ///
    /// Cancelled, it happened or not; calling again finds out.
    ///
    /// # Errors
    /// [`ReplayError`].
    pub async fn replay(&self, id: Uuid) -> Result<Replayed, ReplayError> {
        let watch = Stopwatch::default();
        match self.deliverer.bounded(&watch, self.attempt(id, &watch)).await {
            Ok(Attempt::Done(letter, answers)) => {
                self.metrics.applied(1);
                if let Err(error) = self.sender.send(&answers).await {
                    let transaction_id = letter.transaction_id.map(tracing::field::display);
                    let key = letter.key.as_deref();
                    tracing::warn!(transaction_id, key, %error, "the replies to a replayed message wait");
                }
                Ok(Replayed::Done(letter))
            }
            Ok(Attempt::Closed(letter)) if letter.state == DeadLetterState::Replayed => {
                Ok(Replayed::Before(letter))
            }
            Ok(Attempt::Closed(letter)) => Err(ReplayError::NotOpen { id, state: letter.state }),
            Ok(Attempt::Missing) => Err(ReplayError::NotFound(id)),
            Ok(Attempt::Behind) => Err(ReplayError::Behind(id)),
            Ok(Attempt::NoHandler(topic)) => Err(ReplayError::NoHandler { id, topic }),
            Err(
                AttemptError::Transient(cause)
                | AttemptError::Unable(cause)
                | AttemptError::Contended(cause)
                | AttemptError::Locked { cause, .. }
                | AttemptError::Late(cause),
            ) => Err(ReplayError::Unavailable(cause)),
            Err(error) => self.failed(id, cause_text(&error.to_string())).await,
        }
    }

    /// An attempt had no effect, as far as it knows: its end may have been given up on while the database was
    /// carrying it out, and another operator may have been quicker. The letter knows.
    async fn failed(&self, id: Uuid, cause: String) -> Result<Replayed, ReplayError> {
        if self.note_failure(id, &cause).await? {
            return Err(ReplayError::Failed(cause));
        }
        match self.store.find(id).await?.ok_or(ReplayError::NotFound(id))? {
            letter if letter.state == DeadLetterState::Replayed => Ok(Replayed::Before(letter)),
            letter => Err(ReplayError::NotOpen { id, state: letter.state }),
        }
    }

    async fn attempt(&self, id: Uuid, watch: &Stopwatch) -> Result<Attempt, AttemptError> {
        let transaction = self.deliverer.begin().await?;
        let mut select = self.store.select(&DeadLetterFilter::default());
        select.and_where(Expr::col("id").eq(id)).lock(LockType::Update);
        let Some(row) = transaction.query_one(&select).await? else {
            return Ok(Attempt::Missing);
        };
        let (mut letter, message) = row::read(&row)?;
        if letter.state != DeadLetterState::Open {
            return Ok(Attempt::Closed(letter));
        }
        if !self.deliverer.handlers.contains_key(&letter.topic) {
            return Ok(Attempt::NoHandler(letter.topic));
        }
        let Deliverer { subscriber, key_order, .. } = &*self.deliverer;
        let ahead =
            retry::sort_in_tx(&transaction, subscriber, *key_order, vec![message.clone()]).await?;
        if !ahead.held.is_empty() {
            return Ok(Attempt::Behind);
        }
        let mut span = spans::replay(&message, subscriber);
        let answers =
            self.handle(transaction, id, [message], watch).await.inspect_err(|error| {
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
        watch: &Stopwatch,
    ) -> Result<Answers, AttemptError> {
        let Deliverer { subscriber, inbox_by_key, .. } = &*self.deliverer;
        let handled = self.deliverer.handle_in_tx(&transaction, &messages, watch).await?;
        inbox::renew_in_tx(&transaction, subscriber, *inbox_by_key, &messages).await?;
        row::replayed_in_tx(&transaction, &[id]).await?;
        transaction.commit().await?;
        Ok(handled.committed())
    }

    /// False if it is not open any more. Waits for a transaction that has the letter in hand (PostgreSQL,
    /// MySQL and MariaDB: its row is locked; on SQLite it is the writer).
    async fn note_failure(&self, id: Uuid, cause: &str) -> Result<bool, DbErr> {
        let mut update = Query::update();
        update
            .table("dead_letter")
            .value("attempts", Expr::col("attempts").add(1))
            .value("cause", cause)
            .value("last_failed_at", now())
            .and_where(Expr::col("id").eq(id))
            .and_where(row::in_state(DeadLetterState::Open));
        let _turn = writers_turn(&self.deliverer.database).await;
        Ok(self.deliverer.database.execute(&update).await?.rows_affected() > 0)
    }
}

#[cfg(test)]
mod tests {
    use sea_orm::ConnectionTrait;

    use super::*;
    use crate::DeadLetterError;
    use crate::config::{KeyOrder, RetryLevels};
    use crate::worker::tests::{World, message, world};

    fn letters(world: &World) -> DeadLetters {
        let deliverer = world.worker.deliverer.clone();
        let store = DeadLetterStore::new(deliverer.database.clone(), "s");
        DeadLetters {
            store: store.with_handlers_of(deliverer.handlers.keys()),
            deliverer,
            sender: world.worker.sender.clone(),
            metrics: world.worker.metrics.clone(),
        }
    }

    /// Both became dead letters, and the first is queued: the second must not overtake it.
    #[tokio::test]
    async fn a_replay_does_not_overtake_what_waits_ahead_of_it() {
        for order in [KeyOrder::Keep, KeyOrder::GiveUp] {
            let mut world = world(3, order).await;
            (world.worker.retries.quick_attempts, world.worker.retries.levels) =
                (1, RetryLevels::new([]));
            let batch = ["a", "b", "a"].into_iter().zip(0..);
            let batch = batch.map(|(key, offset)| message(offset, key, "poison")).collect();
            world.process(batch).await;
            let letters = letters(&world);
            let mut all = letters.list(&DeadLetterFilter::default(), None, 10).await.unwrap();
            all.sort_by_key(|letter| letter.offset);
            let [first, other, second] = &all[..] else { panic!("{all:?}") };
            letters.queue(first.id).await.unwrap();
            let replayed = letters.replay(second.id).await;
            match order {
                KeyOrder::Keep => {
                    assert!(matches!(replayed, Err(ReplayError::Behind(id)) if id == second.id));
                    let left = letters.find(second.id).await.unwrap().unwrap();
                    assert_eq!((left.state, left.attempts), (second.state, second.attempts));
                }
                KeyOrder::GiveUp => assert!(matches!(replayed, Ok(Replayed::Done(_)))),
            }
            assert!(matches!(letters.replay(other.id).await, Ok(Replayed::Done(_))));
        }
    }

    /// A service that has no handler for a topic any more tries none of its letters, and queues none.
    #[tokio::test]
    async fn what_has_no_handler_stays_open() {
        let mut world = world(2, KeyOrder::Keep).await;
        (world.worker.retries.quick_attempts, world.worker.retries.levels) =
            (1, RetryLevels::new([]));
        world.process(vec![message(0, "a", "poison"), message(1, "b", "poison")]).await;
        let letters = letters(&world);
        let former = "UPDATE dead_letter SET topic = 'former' WHERE \"offset\" = 0";
        letters.deliverer.database.execute_unprepared(former).await.unwrap();
        let all = DeadLetterFilter::default();
        let of_former = DeadLetterFilter { topic: Some("former".into()), ..all.clone() };
        let before = letters.list(&of_former, None, 10).await.unwrap();
        let [DeadLetter { id, .. }] = before[..] else { panic!("{before:?}") };
        let replayed = letters.replay(id).await;
        assert!(matches!(replayed, Err(ReplayError::NoHandler { topic, .. }) if topic == "former"));
        let queued = letters.queue(id).await;
        assert!(matches!(queued, Err(DeadLetterError::NoHandler { .. })), "{queued:?}");
        assert_eq!(letters.queue_all(&all, None).await.unwrap(), 1);
        assert_eq!(letters.list(&of_former, None, 10).await.unwrap(), before);
        assert_eq!(before[0].state, DeadLetterState::Open);
    }

    /// The failure of one replay is noted behind the success of another, or behind its own end, which it was
    /// told too late.
    #[tokio::test]
    async fn a_failure_is_not_written_over_what_became_of_the_letter() {
        for (column, replayed) in [("replayed_at", true), ("discarded_at", false)] {
            let mut world = world(u32::MAX, KeyOrder::Keep).await;
            (world.worker.retries.quick_attempts, world.worker.retries.levels) =
                (1, RetryLevels::new([]));
            world.process(vec![message(0, "k", "poison")]).await;
            let letters = letters(&world);
            let letter =
                letters.list(&DeadLetterFilter::default(), None, 1).await.unwrap().remove(0);
            let error = letters.replay(letter.id).await.unwrap_err();
            assert!(matches!(error, ReplayError::Failed(_)), "{error}");
            let close = format!("UPDATE dead_letter SET {column} = CURRENT_TIMESTAMP");
            letters.deliverer.database.execute_unprepared(&close).await.unwrap();
            let before = letters.find(letter.id).await.unwrap().unwrap();
            assert_eq!(before.attempts, letter.attempts + 1);
            match letters.failed(letter.id, "too late".into()).await {
                Ok(Replayed::Before(_)) if replayed => {}
                Err(ReplayError::NotOpen { .. }) if !replayed => {}
                other => panic!("{other:?}"),
            }
            assert_eq!(letters.find(letter.id).await.unwrap().unwrap(), before);
        }
    }
}

//! Giving a dead letter up for good, also one whose replay waits: it leaves the retry table with that, so that
//! nobody can try it afterwards.

use halfmsg_db::{begin_write, now};
use uuid::Uuid;

use super::{DeadLetter, DeadLetterError, DeadLetterState, DeadLetterStore, row};
use crate::retry;

/// A reason is cut at this many characters.
const MAX_REASON: usize = 500;

impl DeadLetterStore {
    /// Gives up for good: the message will have no effect. Its row stays, with the reason. A queued one leaves
    /// the retry table; with [`KeyOrder::Keep`](crate::KeyOrder) what waits there behind it has its turn. One
    /// that a replica tries right now is left to it.
    ///
    /// # Errors
    /// [`DeadLetterError`].
    pub async fn discard(&self, id: Uuid, reason: &str) -> Result<DeadLetter, DeadLetterError> {
        let reason: String = reason.chars().filter(|c| *c != '\0').take(MAX_REASON).collect();
        let transaction = begin_write(&self.database).await?;
        let (letter, message) = self.lock_in_tx(&transaction, id).await?;
        match letter.state {
            DeadLetterState::Open => {}
            DeadLetterState::Queued => {
                // Whoever tries it notes that in the letter, which is locked here: what is not in the table
                // now has not been tried either.
                if !retry::withdraw_in_tx(&transaction, &self.subscriber, &message, id).await? {
                    return Err(DeadLetterError::BeingTried(id));
                }
            }
            state => return Err(DeadLetterError::NotOpen { id, state }),
        }
        let at = now();
        row::discarded_in_tx(&transaction, id, at, &reason).await?;
        transaction.commit().await?;
        Ok(DeadLetter {
            state: DeadLetterState::Discarded,
            queued_at: None,
            discarded_at: Some(at),
            discard_reason: Some(reason),
            ..letter
        })
    }
}

#[cfg(test)]
mod tests {
    use sea_orm::sea_query::{Expr, ExprTrait, Query};
    use sea_orm::{ConnectionTrait, DatabaseConnection};

    use super::*;
    use crate::config::{KeyOrder, RetryLevels};
    use crate::dead_letter::DeadLetterFilter;
    use crate::worker::tests::{message, world};

    async fn waiting(database: &DatabaseConnection) -> (usize, usize) {
        let mut select = Query::select();
        select.column("id").from("retry");
        let all = database.query_all(&select).await.unwrap().len();
        select.and_where(Expr::col("next_at").is_not_null());
        (all, database.query_all(&select).await.unwrap().len())
    }

    /// Nobody has a handler for it any more, so nobody would ever try it.
    #[tokio::test]
    async fn what_is_queued_leaves_the_retries_and_what_is_behind_it_has_its_turn() {
        let mut world = world(u32::MAX, KeyOrder::Keep).await;
        (world.worker.retries.quick_attempts, world.worker.retries.levels) =
            (1, RetryLevels::new([]));
        world.process(vec![message(0, "k", "poison")]).await;
        let database = world.worker.deliverer.database.clone();
        let letters = DeadLetterStore::new(database.clone(), "s");
        assert_eq!(letters.queue_all(&DeadLetterFilter::default(), None).await.unwrap(), 1);
        world.process(vec![message(1, "k", "fine")]).await;
        assert_eq!(waiting(&database).await, (2, 1));
        let id = letters.list(&DeadLetterFilter::default(), None, 1).await.unwrap().remove(0).id;
        let gone = letters.discard(id, "its topic is no more").await.unwrap();
        assert_eq!((gone.state, gone.queued_at), (DeadLetterState::Discarded, None));
        assert_eq!(letters.find(id).await.unwrap(), Some(gone));
        assert_eq!(waiting(&database).await, (1, 1));
        let again = letters.discard(id, "again").await.unwrap_err();
        let settled = DeadLetterState::Discarded;
        assert!(matches!(again, DeadLetterError::NotOpen { state, .. } if state == settled));
        assert!(matches!(letters.queue(id).await, Err(DeadLetterError::NotOpen { .. })));
    }

    /// Somebody has emptied the retry table.
    #[tokio::test]
    async fn what_is_queued_and_nowhere_can_be_discarded() {
        let mut world = world(u32::MAX, KeyOrder::GiveUp).await;
        (world.worker.retries.quick_attempts, world.worker.retries.levels) =
            (1, RetryLevels::new([]));
        world.process(vec![message(0, "k", "poison")]).await;
        let database = world.worker.deliverer.database.clone();
        let letters = DeadLetterStore::new(database.clone(), "s");
        let id = letters.list(&DeadLetterFilter::default(), None, 1).await.unwrap().remove(0).id;
        letters.queue(id).await.unwrap();
        database.execute_unprepared("DELETE FROM retry").await.unwrap();
        let gone = letters.discard(id, "lost").await.unwrap();
        assert_eq!(gone.state, DeadLetterState::Discarded);
    }
}

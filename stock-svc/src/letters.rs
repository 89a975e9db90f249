//! The dead letters of both consumers, as one list.

use std::num::NonZeroU32;
use std::sync::Arc;

use halfmsg_consumer::{
    DeadLetter, DeadLetterError, DeadLetterFilter, DeadLetters, ReplayError, Replayed,
};
use sea_orm::DbErr;
use uuid::Uuid;

/// Cheap to clone.
#[derive(Clone)]
pub struct Letters(Arc<[DeadLetters]>);

impl Letters {
    /// Those of these consumers.
    pub fn of(consumers: impl IntoIterator<Item = DeadLetters>) -> Self {
        Self(consumers.into_iter().collect())
    }

    /// At most `limit` of them, newest first, those before `before` if given.
    ///
    /// # Errors
    /// What the database says.
    pub async fn list(
        &self,
        filter: &DeadLetterFilter,
        before: Option<Uuid>,
        limit: u64,
    ) -> Result<Vec<DeadLetter>, DbErr> {
        let mut found = Vec::new();
        for letters in self.0.iter() {
            found.extend(letters.list(filter, before, limit).await?);
        }
        // UUIDv7 sorts by time.
        found.sort_by_key(|letter| std::cmp::Reverse(letter.id));
        found.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
        Ok(found)
    }

    /// One of them.
    ///
    /// # Errors
    /// What the database says.
    pub async fn find(&self, id: Uuid) -> Result<Option<DeadLetter>, DbErr> {
        for letters in self.0.iter() {
            if let Some(letter) = letters.find(id).await? {
                return Ok(Some(letter));
            }
        }
        Ok(None)
    }

    /// As [`DeadLetters::replay`], by the consumer whose it is.
    ///
    /// # Errors
    /// [`ReplayError`].
    pub async fn replay(&self, id: Uuid) -> Result<Replayed, ReplayError> {
        for letters in self.0.iter() {
            match letters.replay(id).await {
                Err(ReplayError::NotFound(_)) => {}
                replayed => return replayed,
            }
        }
        Err(ReplayError::NotFound(id))
    }

    /// As `discard` of the consumer whose it is.
    ///
    /// # Errors
    /// [`DeadLetterError`].
    pub async fn discard(&self, id: Uuid, reason: &str) -> Result<DeadLetter, DeadLetterError> {
        for letters in self.0.iter() {
            match letters.discard(id, reason).await {
                Err(DeadLetterError::NotFound(_)) => {}
                discarded => return discarded,
            }
        }
        Err(DeadLetterError::NotFound(id))
    }

    /// Queues all open ones of a filter, at most `rate` a second of each consumer.
    ///
    /// # Errors
    /// What the database says; those of the consumers before stay queued.
    pub async fn queue_all(
        &self,
        filter: &DeadLetterFilter,
        rate: Option<NonZeroU32>,
    ) -> Result<u64, DbErr> {
        let mut queued = 0;
        for letters in self.0.iter() {
            queued += letters.queue_all(filter, rate).await?;
        }
        Ok(queued)
    }
}

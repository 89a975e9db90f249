//! The dead letters of all consumers of a service, as one list.

use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError};

use halfmsg_consumer::{
    DeadLetter, DeadLetterError, DeadLetterFilter, DeadLetters, ReplayError, Replayed,
};
use sea_orm::DbErr;
use uuid::Uuid;

/// Cheap to clone; clones have the same consumers.
#[derive(Clone, Default)]
pub struct Letters(Arc<Mutex<Consumers>>);

#[derive(Default)]
struct Consumers {
    known: Vec<(u64, DeadLetters)>,
    next: u64,
}

/// Its dead letters are in the list until this is dropped.
#[must_use]
pub struct Listed {
    letters: Letters,
    number: u64,
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.letters.with(|all| all.known.retain(|(number, _)| *number != self.number));
    }
}

impl Letters {
    /// Those of these consumers.
    pub fn of(consumers: impl IntoIterator<Item = DeadLetters>) -> Self {
        let letters = Self::default();
        for consumer in consumers {
            letters.add(consumer);
        }
        letters
    }

    /// Those of one more consumer, which comes and goes.
    pub fn list_while(&self, consumer: DeadLetters) -> Listed {
        Listed { letters: self.clone(), number: self.add(consumer) }
    }

    fn add(&self, consumer: DeadLetters) -> u64 {
        self.with(|all| {
            all.next += 1;
            all.known.push((all.next, consumer));
            all.next
        })
    }

    /// Held for no await.
    fn with<T>(&self, work: impl FnOnce(&mut Consumers) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn consumers(&self) -> Vec<DeadLetters> {
        self.with(|all| all.known.iter().map(|(_, consumer)| consumer.clone()).collect())
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
        for letters in self.consumers() {
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
        for letters in self.consumers() {
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
        for letters in self.consumers() {
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
        for letters in self.consumers() {
            match letters.discard(id, reason).await {
                Err(DeadLetterError::NotFound(_)) => {}
                discarded => return discarded,
            }
        }
        Err(DeadLetterError::NotFound(id))
    }

    /// Queues all open ones of a filter, due at `rate` a second of each consumer: as
    /// [`DeadLetterStore::queue_all`](halfmsg_consumer::DeadLetterStore::queue_all).
    ///
    /// # Errors
    /// What the database says; those of the consumers before stay queued.
    pub async fn queue_all(
        &self,
        filter: &DeadLetterFilter,
        rate: Option<NonZeroU32>,
    ) -> Result<u64, DbErr> {
        let mut queued = 0;
        for letters in self.consumers() {
            queued += letters.queue_all(filter, rate).await?;
        }
        Ok(queued)
    }
}

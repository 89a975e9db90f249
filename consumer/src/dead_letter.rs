//! Messages that were given up on: kept whole, listed, queued for a replay, discarded.
//!
//! Everything here needs only the database, so it also works from outside the service. A row is
//! never deleted: it says what was lost and what became of it.
//!
//! # Layout
//! - this file: a dead letter; listing, queueing
//! - `discard`: giving one up for good; `replay`: at once, where its handler is; `row`: the table

mod discard;
mod replay;
mod row;

use std::num::NonZeroU32;
use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use halfmsg_db::{begin_write, now};
use sea_orm::sea_query::{
    Asterisk, Expr, ExprTrait, LikeExpr, LockBehavior, LockType, Order, Query, SelectStatement,
};
use sea_orm::{ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbErr};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::message::ReceivedMessage;
use crate::retry::{self, Failures, Place};

pub use replay::{DeadLetters, ReplayError, Replayed};
pub(crate) use row::{failed_again_in_tx, replayed_in_tx, store_in_tx};

/// At most this many are queued in one transaction.
const QUEUE_BATCH: u64 = 100;

/// How many nobody has replayed or discarded yet.
pub(crate) async fn count_open(
    database: &impl ConnectionTrait,
    subscriber: &str,
) -> Result<i64, DbErr> {
    let mut select = Query::select();
    select
        .expr_as(Expr::col(Asterisk).count(), "rows")
        .from("dead_letter")
        .and_where(Expr::col("subscriber").eq(subscriber))
        .and_where(row::in_state(DeadLetterState::Open));
    let row = database.query_one(&select).await?;
    row.map_or(Ok(0), |row| row.try_get("", "rows"))
}

/// What becomes of a dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum DeadLetterState {
    /// Somebody has to look at it.
    Open,
    /// A replay waits in the retry table.
    Queued,
    /// A replay succeeded.
    Replayed,
    /// An operator gave it up for good.
    Discarded,
}

impl std::fmt::Display for DeadLetterState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Open => "open",
            Self::Queued => "queued",
            Self::Replayed => "replayed",
            Self::Discarded => "discarded",
        })
    }
}

/// A message that was given up on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DeadLetter {
    /// Its identity (UUIDv7).
    pub id: Uuid,
    /// What becomes of it.
    pub state: DeadLetterState,
    /// The transaction id, or the coordinates of a foreign message.
    pub message_key: String,
    /// The transaction whose message it is; `None` for a foreign one.
    #[cfg_attr(feature = "openapi", schema(required))]
    pub transaction_id: Option<Uuid>,
    /// Where it came from.
    pub topic: String,
    /// The partition there.
    pub partition: i32,
    /// The offset there.
    pub offset: i64,
    /// The last failure.
    pub cause: String,
    /// Failures so far, quick attempts, retries and replays together.
    pub attempts: i64,
    /// The first failure.
    pub first_failed_at: DateTime<Utc>,
    /// The last failure.
    pub last_failed_at: DateTime<Utc>,
    /// When a replay was queued that has not ended yet.
    #[cfg_attr(feature = "openapi", schema(required))]
    pub queued_at: Option<DateTime<Utc>>,
    /// When a replay succeeded.
    #[cfg_attr(feature = "openapi", schema(required))]
    pub replayed_at: Option<DateTime<Utc>>,
    /// When it was discarded.
    #[cfg_attr(feature = "openapi", schema(required))]
    pub discarded_at: Option<DateTime<Utc>>,
    /// Why it was discarded.
    #[cfg_attr(feature = "openapi", schema(required))]
    pub discard_reason: Option<String>,
    /// The key, when it is text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The payload as text, unreadable bytes replaced. Not every reader may see it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payload: Option<String>,
}

/// Which dead letters are meant. The default is all of them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DeadLetterFilter {
    /// Of this topic.
    pub topic: Option<String>,
    /// With this text in the cause.
    pub cause: Option<String>,
    /// That failed last at this moment or later.
    pub since: Option<DateTime<Utc>>,
    /// In this state.
    pub state: Option<DeadLetterState>,
}

/// Why a dead letter cannot be queued or discarded.
#[derive(Debug, thiserror::Error)]
pub enum DeadLetterError {
    /// There is no such dead letter of this subscriber.
    #[error("there is no dead letter {0}")]
    NotFound(Uuid),
    /// It is not open any more.
    #[error("dead letter {id} is {state} already")]
    NotOpen {
        /// The dead letter.
        id: Uuid,
        /// What became of it.
        state: DeadLetterState,
    },
    /// A replica has its queued replay in hand: ask again once that has ended.
    #[error("dead letter {0} is being tried right now; ask again")]
    BeingTried(Uuid),
    /// No consumer here would ever try it: discard it, or queue it where there is a handler.
    #[error(
        "no consumer here has a handler for topic {topic} of dead letter {id}: discard it, or replay it where there is one"
    )]
    NoHandler {
        /// The dead letter.
        id: Uuid,
        /// Its topic.
        topic: String,
    },
    /// What the database says.
    #[error(transparent)]
    Database(#[from] DbErr),
}

/// The dead letters of one subscriber, wherever its consumer runs. Cheap to clone.
#[derive(Debug, Clone)]
pub struct DeadLetterStore {
    database: DatabaseConnection,
    subscriber: String,
    /// Those that are tried, where that is known: nothing else is queued.
    topics: Option<Arc<[String]>>,
}

impl DeadLetterStore {
    /// Those of this subscriber in this database. Nothing here knows which topics it has handlers for: what is
    /// queued of another one waits until there is one, or until it is discarded.
    pub fn new(database: DatabaseConnection, subscriber: impl Into<String>) -> Self {
        Self { database, subscriber: subscriber.into(), topics: None }
    }

    /// The same, which queues only what has a handler.
    pub(crate) fn with_handlers_of<'a>(self, topics: impl Iterator<Item = &'a String>) -> Self {
        Self { topics: Some(topics.cloned().collect()), ..self }
    }

    /// At most `limit` dead letters, newest first, those before `before` if given; without their
    /// payloads, which [`DeadLetterStore::find`] reads.
    ///
    /// # Errors
    /// What the database says.
    pub async fn list(
        &self,
        filter: &DeadLetterFilter,
        before: Option<Uuid>,
        limit: u64,
    ) -> Result<Vec<DeadLetter>, DbErr> {
        let mut select = self.filtered(row::select_without_payloads(), filter);
        if let Some(before) = before {
            select.and_where(Expr::col("id").lt(before));
        }
        // UUIDv7 sorts by time.
        select.order_by("id", Order::Desc).limit(limit);
        let rows = self.database.query_all(&select).await?;
        rows.iter().map(|row| Ok(row::read(row)?.0)).collect()
    }

    /// One dead letter.
    ///
    /// # Errors
    /// What the database says.
    pub async fn find(&self, id: Uuid) -> Result<Option<DeadLetter>, DbErr> {
        let mut select = self.select(&DeadLetterFilter::default());
        select.and_where(Expr::col("id").eq(id));
        let row = self.database.query_one(&select).await?;
        row.map(|row| Ok(row::read(&row)?.0)).transpose()
    }

    /// Puts an open dead letter into the retry table, due now: a replica tries it, with all retries
    /// before it. When that succeeds it is [`DeadLetterState::Replayed`], else open again. With
    /// [`KeyOrder::Keep`](crate::KeyOrder), later messages of its key wait for that.
    ///
    /// # Errors
    /// [`DeadLetterError`].
    pub async fn queue(&self, id: Uuid) -> Result<(), DeadLetterError> {
        let transaction = begin_write(&self.database).await?;
        let (letter, message) = self.lock_in_tx(&transaction, id).await?;
        if letter.state != DeadLetterState::Open {
            return Err(DeadLetterError::NotOpen { id, state: letter.state });
        }
        if self.topics.as_ref().is_some_and(|topics| !topics.contains(&letter.topic)) {
            return Err(DeadLetterError::NoHandler { id, topic: letter.topic });
        }
        if !self.queue_in_tx(&transaction, &letter, &message, now()).await? {
            return Err(DeadLetterError::NotOpen { id, state: DeadLetterState::Queued });
        }
        Ok(transaction.commit().await?)
    }

    /// Queues all open dead letters of a filter, the oldest first, and returns how many. They become due one
    /// after the other, `rate` a second from now on, or all now without one.
    ///
    /// That is a plan in the table, which survives restarts, and no limit: what became due while no consumer
    /// ran, or none kept up, is tried as fast as it goes once there is one, and several calls add up. To hold
    /// to a pace that something behind the handler needs, queue parts by filter while the consumer runs.
    ///
    /// With [`KeyOrder::Keep`](crate::KeyOrder) a dead letter that waits for its moment is an earlier
    /// message of its key: later ones of that key, also those that come new, wait behind it in the retry
    /// table until it has had its turn. 10,000 of them at 10 a second hold up the last key for 17
    /// minutes; a higher rate, no rate, or parts by filter hold up for less. Other keys go on, and so does
    /// everything with [`KeyOrder::GiveUp`](crate::KeyOrder).
    ///
    /// Of a running consumer's, those stay open and are not counted whose topics have no handler any more.
    ///
    /// In transactions of 100: cancelled or failed, those before stay queued.
    ///
    /// # Errors
    /// What the database says.
    pub async fn queue_all(
        &self,
        filter: &DeadLetterFilter,
        rate: Option<NonZeroU32>,
    ) -> Result<u64, DbErr> {
        let began = now();
        let filter = DeadLetterFilter { state: Some(DeadLetterState::Open), ..filter.clone() };
        let (mut after, end, mut queued) = (Uuid::nil(), Uuid::now_v7(), 0);
        loop {
            let transaction = begin_write(&self.database).await?;
            let mut select = self.filtered(row::select_without_payloads(), &filter);
            select
                .and_where(Expr::col("id").gt(after))
                // Not those that fail while this runs.
                .and_where(Expr::col("id").lt(end))
                .order_by("id", Order::Asc)
                .limit(QUEUE_BATCH)
                .lock_with_behavior(LockType::Update, LockBehavior::SkipLocked);
            if let Some(topics) = &self.topics {
                select.and_where(Expr::col("topic").is_in(topics.iter().map(String::as_str)));
            }
            let rows = transaction.query_all(&select).await?;
            if rows.is_empty() {
                return Ok(queued);
            }
            for row in &rows {
                // One payload in memory at a time; the row is locked.
                let id: Uuid = row.try_get("", "id")?;
                let mut one = self.select(&DeadLetterFilter::default());
                one.and_where(Expr::col("id").eq(id));
                after = id;
                let Some(whole) = transaction.query_one(&one).await? else { continue };
                let (letter, message) = row::read(&whole)?;
                let at = began + paced(queued, rate);
                let done = self.queue_in_tx(&transaction, &letter, &message, at).await?;
                queued += u64::from(done);
            }
            transaction.commit().await?;
        }
    }

    /// False if a retry of the same message waits already.
    async fn queue_in_tx(
        &self,
        transaction: &DatabaseTransaction,
        letter: &DeadLetter,
        message: &ReceivedMessage,
        next_at: DateTime<Utc>,
    ) -> Result<bool, DbErr> {
        let failures = Failures {
            cause: letter.cause.clone(),
            attempts: u32::try_from(letter.attempts).unwrap_or(u32::MAX),
            // A replay begins anew: its own first failure counts, for what is forgiven for a while. The
            // letter keeps that of the message.
            first_failed_at: None,
            last_failed_at: Some(letter.last_failed_at),
        };
        let place = Place { next_at: Some(next_at), dead_letter_id: Some(letter.id) };
        let subscriber = &self.subscriber;
        let stored = retry::store_in_tx(transaction, subscriber, message, &failures, place).await?;
        if stored {
            row::queued_in_tx(transaction, letter.id).await?;
        }
        Ok(stored)
    }

    /// Nobody else replays, queues or discards it until the transaction ends.
    async fn lock_in_tx(
        &self,
        transaction: &DatabaseTransaction,
        id: Uuid,
    ) -> Result<(DeadLetter, ReceivedMessage), DeadLetterError> {
        let mut select = self.select(&DeadLetterFilter::default());
        select.and_where(Expr::col("id").eq(id)).lock(LockType::Update);
        let row = transaction.query_one(&select).await?;
        Ok(row::read(&row.ok_or(DeadLetterError::NotFound(id))?)?)
    }

    fn select(&self, filter: &DeadLetterFilter) -> SelectStatement {
        self.filtered(row::select(), filter)
    }

    fn filtered(&self, mut select: SelectStatement, filter: &DeadLetterFilter) -> SelectStatement {
        select.and_where(Expr::col("subscriber").eq(self.subscriber.as_str()));
        if let Some(topic) = &filter.topic {
            select.and_where(Expr::col("topic").eq(topic.as_str()));
        }
        if let Some(cause) = &filter.cause {
            select.and_where(Expr::col("cause").like(containing(cause)));
        }
        if let Some(since) = filter.since {
            select.and_where(Expr::col("last_failed_at").gte(since));
        }
        if let Some(state) = filter.state {
            select.and_where(row::in_state(state));
        }
        select
    }
}

/// When number `index` is due, after the first.
fn paced(index: u64, rate: Option<NonZeroU32>) -> TimeDelta {
    let Some(rate) = rate else { return TimeDelta::zero() };
    let micros = index.saturating_mul(1_000_000) / u64::from(rate.get());
    TimeDelta::microseconds(i64::try_from(micros).unwrap_or(i64::MAX / 2))
}

fn containing(text: &str) -> LikeExpr {
    let mut pattern = String::with_capacity(text.len() + 2);
    pattern.push('%');
    for c in text.chars().filter(|c| *c != '\0') {
        if matches!(c, '%' | '_' | '\\') {
            pattern.push('\\');
        }
        pattern.push(c);
    }
    pattern.push('%');
    LikeExpr::new(pattern).escape('\\')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{KeyOrder, RetryLevels};
    use crate::worker::tests::{message, world};

    /// What becomes due is in the table, also for a consumer that comes later.
    #[tokio::test]
    async fn what_is_queued_at_a_rate_is_due_one_after_the_other() {
        let mut world = world(u32::MAX, KeyOrder::Keep).await;
        (world.worker.retries.quick_attempts, world.worker.retries.levels) =
            (1, RetryLevels::new([]));
        let keys = ["a", "b", "c", "d", "e"];
        let batch = (0..5).zip(keys).map(|(offset, key)| message(offset, key, "poison")).collect();
        world.process(batch).await;
        let database = world.worker.deliverer.database.clone();
        let letters = DeadLetterStore::new(database.clone(), "s");
        let began = now();
        let queued = letters.queue_all(&DeadLetterFilter::default(), NonZeroU32::new(2)).await;
        assert_eq!(queued.unwrap(), 5);
        let mut select = Query::select();
        select.column("next_at").from("retry").order_by("next_at", Order::Asc);
        let rows = database.query_all(&select).await.unwrap();
        let due: Vec<DateTime<Utc>> =
            rows.iter().map(|row| row.try_get("", "next_at").unwrap()).collect();
        assert!(due[0] >= began && due[0] <= now());
        let half = TimeDelta::milliseconds(500);
        assert!(due.windows(2).all(|pair| pair[1] - pair[0] == half), "{due:?}");
    }

    #[test]
    fn a_rate_spreads_replays() {
        assert_eq!(paced(50, NonZeroU32::new(10)), TimeDelta::seconds(5));
        assert_eq!(paced(50, None), TimeDelta::zero());
    }
}

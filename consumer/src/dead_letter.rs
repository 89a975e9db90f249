//! Messages that were given up on: kept whole, listed, replayed.

use bytes::Bytes;
use chrono::{DateTime, Utc};
use halfmsg_db::{DbFault, begin_write, now};
use sea_orm::sea_query::{Expr, ExprTrait, LockType, OnConflict, Order, Query};
use sea_orm::{ConnectionTrait, DatabaseTransaction, DbErr, QueryResult, Value};
use serde::Serialize;
use std::sync::Arc;
use uuid::Uuid;

use crate::deliver::{AttemptError, Deliverer};
use crate::headers;
use crate::inbox;
use crate::message::ReceivedMessage;
use crate::metrics::ConsumerMetrics;

/// A cause is cut at this many characters.
const MAX_CAUSE: usize = 2_000;

/// Columns in the order in which they are written.
const COLUMNS: [&str; 13] = [
    "id",
    "subscriber",
    "message_key",
    "topic",
    "partition",
    "offset",
    "key",
    "headers",
    "payload",
    "cause",
    "attempts",
    "first_failed_at",
    "last_failed_at",
];

/// A message that was given up on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DeadLetter {
    /// Its identity (UUIDv7).
    pub id: Uuid,
    /// The transaction id, or the coordinates of a foreign message.
    pub message_key: String,
    /// Where it came from.
    pub topic: String,
    /// The partition there.
    pub partition: i32,
    /// The offset there.
    pub offset: i64,
    /// The last failure.
    pub cause: String,
    /// Failures so far, replays included.
    pub attempts: i64,
    /// The first failure.
    pub first_failed_at: DateTime<Utc>,
    /// The last failure.
    pub last_failed_at: DateTime<Utc>,
    /// When a replay succeeded.
    pub replayed_at: Option<DateTime<Utc>>,
    /// The key, when it is text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The payload as text, unreadable bytes replaced. Not every reader may see it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payload: Option<String>,
}

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

/// The dead letters of one consumer. Cheap to clone.
#[derive(Clone)]
pub struct DeadLetters {
    pub(crate) deliverer: Arc<Deliverer>,
    pub(crate) metrics: ConsumerMetrics,
}

impl DeadLetters {
    /// At most `limit` dead letters, newest first, those before `before` if given.
    ///
    /// # Errors
    /// What the database says.
    pub async fn list(&self, before: Option<Uuid>, limit: u64) -> Result<Vec<DeadLetter>, DbErr> {
        let mut select = self.select();
        if let Some(before) = before {
            select.and_where(Expr::col("id").lt(before));
        }
        // UUIDv7 sorts by time.
        select.order_by("id", Order::Desc).limit(limit);
        let rows = self.deliverer.database.query_all(&select).await?;
        rows.iter().map(|row| Ok(read(row)?.0)).collect()
    }

    /// One dead letter.
    ///
    /// # Errors
    /// What the database says.
    pub async fn find(&self, id: Uuid) -> Result<Option<DeadLetter>, DbErr> {
        let mut select = self.select();
        select.and_where(Expr::col("id").eq(id));
        let row = self.deliverer.database.query_one(&select).await?;
        row.map(|row| Ok(read(&row)?.0)).transpose()
    }

    /// Gives the message to its handler once more, through the inbox, in one transaction with the
    /// note that it was replayed: however often it is called, the message has one effect.
    ///
    /// Cancelled, it happened or not; calling again finds out.
    ///
    /// # Errors
    /// [`ReplayError`].
    pub async fn replay(&self, id: Uuid) -> Result<Replayed, ReplayError> {
        match self.deliverer.bounded(self.attempt(id)).await {
            Ok(Some((letter, true))) => {
                self.metrics.messages.inc();
                Ok(Replayed::Done(letter))
            }
            Ok(Some((letter, false))) => Ok(Replayed::Before(letter)),
            Ok(None) => Err(ReplayError::NotFound(id)),
            Err(AttemptError::Transient(cause)) => Err(ReplayError::Unavailable(cause)),
            Err(error) => {
                let cause = cause_text(&error.to_string());
                self.note_failure(id, &cause).await?;
                Err(ReplayError::Failed(cause))
            }
        }
    }

    /// The letter, and whether it had its effect now.
    async fn attempt(&self, id: Uuid) -> Result<Option<(DeadLetter, bool)>, AttemptError> {
        let transaction = begin_write(&self.deliverer.database).await?;
        let mut select = self.select();
        select.and_where(Expr::col("id").eq(id)).lock(LockType::Update);
        let Some(row) = transaction.query_one(&select).await? else {
            return Ok(None);
        };
        let (mut letter, message) = read(&row)?;
        if letter.replayed_at.is_some() {
            return Ok(Some((letter, false)));
        }
        // Its row in the inbox stands for the dead letter; from here on for the effect.
        let subscriber = &self.deliverer.subscriber;
        inbox::forget_in_tx(&transaction, subscriber, &letter.message_key).await?;
        let (_, afterwards) = self.deliverer.deliver_in_tx(&transaction, &[message]).await?;
        let replayed_at = now();
        let mut update = Query::update();
        update
            .table("dead_letter")
            .value("replayed_at", replayed_at)
            .and_where(Expr::col("id").eq(id));
        transaction.execute(&update).await?;
        transaction.commit().await?;
        afterwards.into_iter().for_each(|action| action());
        letter.replayed_at = Some(replayed_at);
        Ok(Some((letter, true)))
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

    fn select(&self) -> sea_orm::sea_query::SelectStatement {
        Query::select()
            .columns(COLUMNS)
            .column("replayed_at")
            .from("dead_letter")
            .and_where(Expr::col("subscriber").eq(self.deliverer.subscriber.as_str()))
            .to_owned()
    }
}

/// Why a message is given up on.
pub(crate) struct Failure<'a> {
    pub(crate) cause: &'a str,
    pub(crate) attempts: u32,
    pub(crate) first_failed_at: DateTime<Utc>,
}

/// Stores a dead letter in one transaction with the message's row in the inbox. If the inbox has
/// the message already, it had its effect or is a dead letter, and nothing is stored.
pub(crate) async fn bury(
    deliverer: &Deliverer,
    message: &ReceivedMessage,
    failure: Failure<'_>,
) -> Result<(), AttemptError> {
    deliverer
        .bounded(async {
            let transaction = begin_write(&deliverer.database).await?;
            let one = std::slice::from_ref(message);
            let fresh = inbox::remember_in_tx(&transaction, &deliverer.subscriber, one).await?;
            if !fresh.is_empty() {
                store_in_tx(&transaction, &deliverer.subscriber, message, failure).await?;
            }
            transaction.commit().await?;
            Ok(())
        })
        .await
}

async fn store_in_tx(
    transaction: &DatabaseTransaction,
    subscriber: &str,
    message: &ReceivedMessage,
    failure: Failure<'_>,
) -> Result<(), DbErr> {
    let bytes = |value: &Option<Bytes>| value.as_ref().map(|value| value.to_vec());
    let row: [Value; 13] = [
        Uuid::now_v7().into(),
        subscriber.into(),
        message.inbox_key().into(),
        message.topic.as_str().into(),
        message.partition.into(),
        message.offset.into(),
        bytes(&message.key).into(),
        headers::write(&message.headers).into(),
        bytes(&message.payload).into(),
        cause_text(failure.cause).into(),
        i64::from(failure.attempts).into(),
        failure.first_failed_at.into(),
        now().into(),
    ];
    let mut insert = Query::insert();
    insert
        .into_table("dead_letter")
        .columns(COLUMNS)
        .values_panic(row.map(Into::into))
        .on_conflict(
            OnConflict::columns(["subscriber", "topic", "partition", "offset"])
                .do_nothing()
                .to_owned(),
        );
    transaction.execute(&insert).await.map(|_| ())
}

fn read(row: &QueryResult) -> Result<(DeadLetter, ReceivedMessage), DbErr> {
    let key: Option<Vec<u8>> = row.try_get("", "key")?;
    let payload: Option<Vec<u8>> = row.try_get("", "payload")?;
    let headers: String = row.try_get("", "headers")?;
    let letter = DeadLetter {
        id: row.try_get("", "id")?,
        message_key: row.try_get("", "message_key")?,
        topic: row.try_get("", "topic")?,
        partition: row.try_get("", "partition")?,
        offset: row.try_get("", "offset")?,
        cause: row.try_get("", "cause")?,
        attempts: row.try_get("", "attempts")?,
        first_failed_at: row.try_get("", "first_failed_at")?,
        last_failed_at: row.try_get("", "last_failed_at")?,
        replayed_at: row.try_get("", "replayed_at")?,
        key: key.clone().and_then(|key| String::from_utf8(key).ok()),
        payload: payload.as_deref().map(|bytes| String::from_utf8_lossy(bytes).into_owned()),
    };
    let message = ReceivedMessage {
        topic: letter.topic.clone(),
        partition: letter.partition,
        offset: letter.offset,
        key: key.map(Bytes::from),
        headers: headers::read(&headers).map_err(|error| DbErr::Type(error.to_string()))?,
        payload: payload.map(Bytes::from),
    };
    Ok((letter, message))
}

/// Cut, and without NUL, which PostgreSQL's text cannot hold.
fn cause_text(cause: &str) -> String {
    cause.chars().filter(|c| *c != '\0').take(MAX_CAUSE).collect()
}

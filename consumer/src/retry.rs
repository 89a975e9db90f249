//! The retry table: messages that failed and wait for their time, and those that wait behind them.
//!
//! A row lives as long as its message is undecided. It comes with the message's row in the inbox,
//! in one transaction, and goes with the message's effect or with its dead letter, which may be discarded;
//! nothing here may delete one for any other reason.
//!
//! # Layout
//! - this file: the row, and how it comes in
//! - `hold`: what waits behind an earlier message of its key
//! - `claim`: whose turn it is, and taking it
//! - `end`: putting off, and taking out

mod claim;
mod end;
mod hold;

use std::time::Duration;

use chrono::{DateTime, Utc};
use halfmsg_db::now;
use sea_orm::sea_query::{Condition, Expr, ExprTrait, OnConflict, Query};
use sea_orm::{ConnectionTrait, DatabaseTransaction, DbErr, QueryResult, Value};
use uuid::Uuid;

use crate::message::ReceivedMessage;
use crate::record::{self, cause_text};

pub(crate) use claim::{Bounds, Turns, claim_in_tx, next_due};
pub(crate) use end::{PutOff, give_up_in_tx, put_off_in_tx, take_in_tx, withdraw_in_tx};
pub(crate) use hold::{Sorted, hold_back_in_tx, sort_in_tx};

/// What went wrong with a message so far.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Failures {
    pub(crate) cause: String,
    pub(crate) attempts: u32,
    pub(crate) first_failed_at: Option<DateTime<Utc>>,
    pub(crate) last_failed_at: Option<DateTime<Utc>>,
}

impl Failures {
    /// One more.
    pub(crate) fn note(&mut self, cause: String) {
        let at = now();
        self.attempts = self.attempts.saturating_add(1);
        self.cause = cause;
        self.first_failed_at.get_or_insert(at);
        self.last_failed_at = Some(at);
    }
}

impl Failures {
    /// Somebody else's lock: no attempt.
    pub(crate) fn met_a_lock(&mut self, cause: String) {
        let attempts = self.attempts;
        self.note(cause);
        self.attempts = attempts;
    }

    /// For how long it has failed, from its first failure of any kind: a lock of somebody else, an error of
    /// the handler. A replay begins anew.
    pub(crate) fn age(&self) -> Duration {
        let since = self.first_failed_at.unwrap_or_else(now);
        (now() - since).to_std().unwrap_or_default()
    }
}

/// A message in the table.
#[derive(Debug, Clone)]
pub(crate) struct Waiting {
    pub(crate) id: Uuid,
    pub(crate) message: ReceivedMessage,
    pub(crate) failures: Failures,
    /// Retries that were made.
    pub(crate) level: u32,
    /// The dead letter that this is a replay of.
    pub(crate) dead_letter_id: Option<Uuid>,
}

/// Where a new row stands.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    /// When its turn is; `None` behind an earlier message of its key.
    pub(crate) next_at: Option<DateTime<Utc>>,
    pub(crate) dead_letter_id: Option<Uuid>,
}

/// Stores a message whose row in the inbox is this transaction's. False if it is there already.
pub(crate) async fn store_in_tx(
    transaction: &DatabaseTransaction,
    subscriber: &str,
    message: &ReceivedMessage,
    failures: &Failures,
    place: Place,
) -> Result<bool, DbErr> {
    let own: [Value; 9] = [
        Uuid::now_v7().into(),
        message.key_hash().into(),
        cause_text(&failures.cause).into(),
        i64::from(failures.attempts).into(),
        0_i64.into(),
        failures.first_failed_at.into(),
        failures.last_failed_at.into(),
        place.next_at.into(),
        place.dead_letter_id.into(),
    ];
    let mut insert = Query::insert();
    insert
        .into_table("retry")
        .columns(record::COLUMNS.into_iter().chain([
            "id",
            "key_hash",
            "cause",
            "attempts",
            "level",
            "first_failed_at",
            "last_failed_at",
            "next_at",
            "dead_letter_id",
        ]))
        .values_panic(record::values(subscriber, message).into_iter().chain(own).map(Expr::from))
        .on_conflict(OnConflict::columns(["subscriber", "message_key"]).do_nothing().to_owned());
    Ok(transaction.execute(&insert).await?.rows_affected() > 0)
}

/// Columns that only this table has and that are read.
const OWN: [&str; 7] =
    ["id", "cause", "attempts", "level", "first_failed_at", "last_failed_at", "dead_letter_id"];

/// What keeps its order: the messages of one key in one partition.
pub(crate) type OrderingKey = (String, i32, i64);

pub(crate) fn ordering_key(message: &ReceivedMessage) -> Option<OrderingKey> {
    Some((message.topic.clone(), message.partition, message.key_hash()?))
}

fn of_key(subscriber: &str, (topic, partition, hash): &OrderingKey) -> Condition {
    Condition::all()
        .add(Expr::col("subscriber").eq(subscriber))
        .add(Expr::col("topic").eq(topic.as_str()))
        .add(Expr::col("partition").eq(*partition))
        .add(Expr::col("key_hash").eq(*hash))
}

fn read(row: &QueryResult) -> Result<Waiting, DbErr> {
    let count = |column| -> Result<u32, DbErr> {
        Ok(u32::try_from(row.try_get::<i64>("", column)?).unwrap_or(u32::MAX))
    };
    Ok(Waiting {
        id: row.try_get("", "id")?,
        message: record::read(row)?,
        failures: Failures {
            cause: row.try_get("", "cause")?,
            attempts: count("attempts")?,
            first_failed_at: row.try_get("", "first_failed_at")?,
            last_failed_at: row.try_get("", "last_failed_at")?,
        },
        level: count("level")?,
        dead_letter_id: row.try_get("", "dead_letter_id")?,
    })
}

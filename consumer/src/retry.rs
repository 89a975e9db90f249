//! The retry table: messages that failed and wait for their time, and those that wait behind them.
//!
//! A row lives as long as its message is undecided. It comes with the message's row in the inbox,
//! in one transaction, and goes with the message's effect or with its dead letter; nothing here may
//! delete one for any other reason.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use halfmsg_db::now;
use sea_orm::sea_query::{
    Expr, ExprTrait, LockBehavior, LockType, OnConflict, Order, Query, SelectStatement,
};
use sea_orm::{ConnectionTrait, DatabaseTransaction, DbErr, QueryResult, Value};
use uuid::Uuid;

use crate::config::KeyOrder;
use crate::message::ReceivedMessage;
use crate::record::{self, cause_text};

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
    pub(crate) next_at: DateTime<Utc>,
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

/// The fresh messages that may be handled now. With [`KeyOrder::Keep`], those with an earlier message
/// of their key in the table are put behind it instead.
pub(crate) async fn hold_back_in_tx(
    transaction: &DatabaseTransaction,
    subscriber: &str,
    order: KeyOrder,
    fresh: Vec<ReceivedMessage>,
) -> Result<(Vec<ReceivedMessage>, usize), DbErr> {
    if order == KeyOrder::GiveUp || is_empty_in_tx(transaction, subscriber).await? {
        return Ok((fresh, 0));
    }
    let ahead = ahead_in_tx(transaction, subscriber, &fresh).await?;
    let mut go = Vec::with_capacity(fresh.len());
    let mut held = 0;
    for message in fresh {
        let first = message
            .key_hash()
            .and_then(|hash| ahead.get(&(message.topic.clone(), message.partition, hash)).copied());
        match first {
            Some((offset, next_at)) if offset < message.offset => {
                let cause = format!("waits behind offset {offset}, which has the same key");
                let none = Failures { cause, ..Failures::default() };
                let place = Place { next_at, dead_letter_id: None };
                store_in_tx(transaction, subscriber, &message, &none, place).await?;
                held += 1;
            }
            _ => go.push(message),
        }
    }
    Ok((go, held))
}

async fn is_empty_in_tx(
    transaction: &DatabaseTransaction,
    subscriber: &str,
) -> Result<bool, DbErr> {
    let mut any = Query::select();
    any.expr(Expr::val(1)).from("retry").and_where(Expr::col("subscriber").eq(subscriber)).limit(1);
    Ok(transaction.query_one(&any).await?.is_none())
}

/// By topic, partition and key: the first offset that waits, and when its turn is.
type Ahead = HashMap<(String, i32, i64), (i64, DateTime<Utc>)>;

async fn ahead_in_tx(
    transaction: &DatabaseTransaction,
    subscriber: &str,
    messages: &[ReceivedMessage],
) -> Result<Ahead, DbErr> {
    let hashes: Vec<i64> = messages.iter().filter_map(ReceivedMessage::key_hash).collect();
    let mut ahead = Ahead::new();
    if hashes.is_empty() {
        return Ok(ahead);
    }
    let mut select = Query::select();
    select
        .columns(["topic", "partition", "key_hash", "offset", "next_at"])
        .from("retry")
        .and_where(Expr::col("subscriber").eq(subscriber))
        .and_where(Expr::col("key_hash").is_in(hashes))
        .order_by("offset", Order::Desc);
    for row in transaction.query_all(&select).await? {
        let key = (
            row.try_get("", "topic")?,
            row.try_get("", "partition")?,
            row.try_get("", "key_hash")?,
        );
        ahead.insert(key, (row.try_get("", "offset")?, row.try_get("", "next_at")?));
    }
    Ok(ahead)
}

/// When the next retry is due; `None` if none waits.
pub(crate) async fn next_due(
    database: &impl ConnectionTrait,
    subscriber: &str,
    order: KeyOrder,
) -> Result<Option<DateTime<Utc>>, DbErr> {
    let mut select = turn(subscriber, order);
    select.column(("retry", "next_at")).limit(1);
    let row = database.query_one(&select).await?;
    row.map(|row| row.try_get("", "next_at")).transpose()
}

/// Up to `limit` messages that are due, locked; those that somebody else works on are left out.
/// On SQLite the transaction itself keeps everybody else away.
pub(crate) async fn claim_in_tx(
    transaction: &DatabaseTransaction,
    subscriber: &str,
    order: KeyOrder,
    limit: u64,
) -> Result<Vec<Waiting>, DbErr> {
    let mut select = turn(subscriber, order);
    for column in record::COLUMNS.iter().chain(&OWN) {
        select.column(("retry", *column));
    }
    select
        .and_where(Expr::col(("retry", "next_at")).lte(now()))
        .limit(limit)
        .lock_with_behavior(LockType::Update, LockBehavior::SkipLocked);
    let mut rows: Vec<Waiting> =
        transaction.query_all(&select).await?.iter().map(read).collect::<Result<_, _>>()?;
    rows.sort_by(|a, b| place(&a.message).cmp(&place(&b.message)));
    Ok(rows)
}

/// Columns that only this table has and that are read.
const OWN: [&str; 7] =
    ["id", "cause", "attempts", "level", "first_failed_at", "last_failed_at", "dead_letter_id"];

fn place(message: &ReceivedMessage) -> (&str, i32, i64) {
    (&message.topic, message.partition, message.offset)
}

/// The messages whose turn it is, soonest first: with [`KeyOrder::Keep`] the first of each key.
fn turn(subscriber: &str, order: KeyOrder) -> SelectStatement {
    let mut select = Query::select();
    select
        .from("retry")
        .and_where(Expr::col(("retry", "subscriber")).eq(subscriber))
        .order_by(("retry", "next_at"), Order::Asc)
        .order_by(("retry", "offset"), Order::Asc);
    if order == KeyOrder::Keep {
        let mut earlier = Query::select();
        earlier.expr(Expr::val(1)).from_as("retry", "earlier");
        for column in ["subscriber", "topic", "partition", "key_hash"] {
            earlier.and_where(Expr::col(("earlier", column)).equals(("retry", column)));
        }
        earlier.and_where(Expr::col(("earlier", "offset")).lt(Expr::col(("retry", "offset"))));
        select.and_where(Expr::not_exists(earlier));
    }
    select
}

/// Puts a message off after a failure. False if somebody else has decided it meanwhile.
pub(crate) async fn put_off(
    database: &impl ConnectionTrait,
    waiting: &Waiting,
    failures: &Failures,
    next_at: DateTime<Utc>,
) -> Result<bool, DbErr> {
    let mut update = Query::update();
    update
        .table("retry")
        .value("attempts", i64::from(failures.attempts))
        .value("level", i64::from(waiting.level) + 1)
        .value("cause", cause_text(&failures.cause))
        .value("first_failed_at", failures.first_failed_at)
        .value("last_failed_at", failures.last_failed_at)
        .value("next_at", next_at)
        .and_where(Expr::col("id").eq(waiting.id))
        .and_where(Expr::col("attempts").eq(i64::from(waiting.failures.attempts)));
    Ok(database.execute(&update).await?.rows_affected() > 0)
}

/// Takes out what this transaction has claimed: the effect is in it too.
pub(crate) async fn take_in_tx(
    transaction: &DatabaseTransaction,
    claimed: &[Waiting],
) -> Result<(), DbErr> {
    let mut delete = Query::delete();
    delete.from_table("retry").and_where(Expr::col("id").is_in(claimed.iter().map(|one| one.id)));
    transaction.execute(&delete).await.map(|_| ())
}

/// Takes one out, whose dead letter is in this transaction too. False if somebody else has tried it
/// since it was read: then it is theirs to decide.
pub(crate) async fn give_up_in_tx(
    transaction: &DatabaseTransaction,
    waiting: &Waiting,
) -> Result<bool, DbErr> {
    let mut delete = Query::delete();
    delete
        .from_table("retry")
        .and_where(Expr::col("id").eq(waiting.id))
        .and_where(Expr::col("attempts").eq(i64::from(waiting.failures.attempts)));
    Ok(transaction.execute(&delete).await?.rows_affected() > 0)
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

//! The retry table: messages that failed and wait for their time, and those that wait behind them.
//!
//! A row lives as long as its message is undecided. It comes with the message's row in the inbox,
//! in one transaction, and goes with the message's effect or with its dead letter; nothing here may
//! delete one for any other reason.

use std::collections::{BTreeSet, HashMap, HashSet};

use chrono::{DateTime, Utc};
use halfmsg_db::now;
use sea_orm::sea_query::{
    Condition, Expr, ExprTrait, LockBehavior, LockType, OnConflict, Order, Query, SelectStatement,
};
use sea_orm::{ConnectionTrait, DatabaseTransaction, DbErr, QueryResult, Value};
use uuid::Uuid;

use crate::config::KeyOrder;
use crate::message::ReceivedMessage;
use crate::record::{self, cause_text, in_chunks};

/// What waits behind a message comes along with it where at most so many keys are due; beyond, the
/// keys alone make a batch.
const MAX_RUNS: usize = 16;

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

/// Fresh messages by what may become of them now.
#[derive(Default)]
pub(crate) struct Sorted {
    pub(crate) go: Vec<ReceivedMessage>,
    pub(crate) held: Vec<Held>,
}

/// A message with an earlier one of its key in the table.
pub(crate) struct Held {
    message: ReceivedMessage,
    first: First,
}

/// Which of the fresh messages may be handled now. With [`KeyOrder::Keep`], those with an earlier
/// message of their key in the table must be stored with [`hold_back_in_tx`].
pub(crate) async fn sort_in_tx(
    transaction: &DatabaseTransaction,
    subscriber: &str,
    order: KeyOrder,
    fresh: Vec<ReceivedMessage>,
) -> Result<Sorted, DbErr> {
    if order == KeyOrder::GiveUp || is_empty_in_tx(transaction, subscriber).await? {
        return Ok(Sorted { go: fresh, held: Vec::new() });
    }
    let ahead = ahead_in_tx(transaction, subscriber, &fresh).await?;
    let mut sorted = Sorted::default();
    for message in fresh {
        let first = ordering_key(&message).and_then(|key| ahead.get(&key)).copied();
        match first.filter(|first| first.offset < message.offset) {
            Some(first) => sorted.held.push(Held { message, first }),
            None => sorted.go.push(message),
        }
    }
    Ok(sorted)
}

/// Puts messages behind the first of their key. Right before the commit: nobody can try that one
/// meanwhile.
pub(crate) async fn hold_back_in_tx(
    transaction: &DatabaseTransaction,
    subscriber: &str,
    held: &[Held],
) -> Result<(), DbErr> {
    let firsts = held.iter().map(|one| one.first.id).collect();
    let kept = keep_in_tx(transaction, firsts).await?;
    for Held { message, first } in held {
        let cause = format!("waits behind offset {}, which has the same key", first.offset);
        let none = Failures { cause, ..Failures::default() };
        // Who has the first in hand may have looked for the next one already.
        let next_at = (!kept.contains(&first.id)).then(now);
        let place = Place { next_at, dead_letter_id: None };
        store_in_tx(transaction, subscriber, message, &none, place).await?;
    }
    Ok(())
}

async fn is_empty_in_tx(
    transaction: &DatabaseTransaction,
    subscriber: &str,
) -> Result<bool, DbErr> {
    let mut any = Query::select();
    any.expr(Expr::val(1)).from("retry").and_where(Expr::col("subscriber").eq(subscriber)).limit(1);
    Ok(transaction.query_one(&any).await?.is_none())
}

/// The first message of a key that has a turn.
#[derive(Clone, Copy)]
struct First {
    id: Uuid,
    offset: i64,
}

async fn ahead_in_tx(
    transaction: &DatabaseTransaction,
    subscriber: &str,
    messages: &[ReceivedMessage],
) -> Result<HashMap<OrderingKey, First>, DbErr> {
    let hashes: BTreeSet<i64> = messages.iter().filter_map(ReceivedMessage::key_hash).collect();
    let mut ahead = HashMap::new();
    for hashes in in_chunks(hashes) {
        let mut select = Query::select();
        select
            .columns(["id", "topic", "partition", "key_hash", "offset"])
            .from("retry")
            .and_where(Expr::col("subscriber").eq(subscriber))
            .and_where(Expr::col("key_hash").is_in(hashes))
            .and_where(Expr::col("next_at").is_not_null())
            .order_by("offset", Order::Desc);
        for row in transaction.query_all(&select).await? {
            let key = (
                row.try_get("", "topic")?,
                row.try_get("", "partition")?,
                row.try_get("", "key_hash")?,
            );
            let (id, offset) = (row.try_get("", "id")?, row.try_get("", "offset")?);
            ahead.insert(key, First { id, offset });
        }
    }
    Ok(ahead)
}

/// Those of these rows that nobody works on stay until this transaction ends: who takes one out
/// after that sees what is put behind it.
async fn keep_in_tx(
    transaction: &DatabaseTransaction,
    ids: BTreeSet<Uuid>,
) -> Result<HashSet<Uuid>, DbErr> {
    let mut kept = HashSet::new();
    for ids in in_chunks(ids) {
        let mut select = Query::select();
        select
            .column("id")
            .from("retry")
            .and_where(Expr::col("id").is_in(ids))
            .lock_with_behavior(LockType::Share, LockBehavior::SkipLocked);
        for row in transaction.query_all(&select).await? {
            kept.insert(row.try_get("", "id")?);
        }
    }
    Ok(kept)
}

/// When the next retry is due; `None` if none waits.
pub(crate) async fn next_due(
    database: &impl ConnectionTrait,
    of: &Turns<'_>,
) -> Result<Option<DateTime<Utc>>, DbErr> {
    let mut select = of.select();
    select.column(("retry", "next_at")).limit(1);
    let row = database.query_one(&select).await?;
    row.map(|row| row.try_get("", "next_at")).transpose()
}

/// How much is claimed at once.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    pub(crate) messages: usize,
    /// No further message behind so many bytes of payload.
    pub(crate) bytes: usize,
}

/// A row without its payload.
struct Found {
    id: Uuid,
    key: Option<OrderingKey>,
    offset: i64,
    bytes: i64,
}

/// Messages that are due, locked; those that somebody else works on are left out. On SQLite the
/// transaction itself keeps everybody else away. Where few keys are due, what waits behind them
/// comes along, in order.
pub(crate) async fn claim_in_tx(
    transaction: &DatabaseTransaction,
    of: &Turns<'_>,
    bounds: Bounds,
) -> Result<Vec<Waiting>, DbErr> {
    let mut select = of.select();
    found_columns(&mut select)
        .and_where(Expr::col(("retry", "next_at")).lte(now()))
        .limit(bounds.messages as u64)
        .lock_with_behavior(LockType::Update, LockBehavior::SkipLocked);
    let mut found = find(transaction, &select).await?;
    if of.order == KeyOrder::Keep && found.len() <= MAX_RUNS {
        for index in 0..found.len() {
            let limit = bounds.messages.saturating_sub(found.len());
            let (Some(first), 1..) = (found.get(index), limit) else { break };
            let behind = behind_in_tx(transaction, of.subscriber, first, limit).await?;
            found.extend(behind);
        }
    }
    let mut bytes = 0_usize;
    let within = found.iter().take_while(|one| {
        let room = bytes < bounds.bytes;
        bytes = bytes.saturating_add(usize::try_from(one.bytes).unwrap_or_default());
        room
    });
    load_in_tx(transaction, within.map(|one| one.id).collect()).await
}

/// What waits behind a claimed message of its key, locked. Only the lock of the first keeps other
/// replicas away from them: so it ends at one that had a turn of its own.
async fn behind_in_tx(
    transaction: &DatabaseTransaction,
    subscriber: &str,
    first: &Found,
    limit: usize,
) -> Result<Vec<Found>, DbErr> {
    let Some(key) = &first.key else { return Ok(Vec::new()) };
    let mut next_turn = Query::select();
    next_turn.expr(Expr::col("offset").min()).from("retry");
    next_turn
        .cond_where(of_key(subscriber, key))
        .and_where(Expr::col("offset").gt(first.offset))
        .and_where(Expr::col("next_at").is_not_null());
    let mut select = Query::select();
    select
        .from("retry")
        .cond_where(of_key(subscriber, key))
        .and_where(Expr::col("offset").gt(first.offset))
        .and_where(Expr::col("next_at").is_null())
        .order_by("offset", Order::Asc)
        .limit(limit as u64)
        .lock(LockType::Update);
    let end: Option<i64> = match transaction.query_one(&next_turn).await? {
        Some(row) => row.try_get_by_index(0)?,
        None => None,
    };
    if let Some(end) = end {
        select.and_where(Expr::col("offset").lt(end));
    }
    find(transaction, found_columns(&mut select)).await
}

fn found_columns(select: &mut SelectStatement) -> &mut SelectStatement {
    for column in ["id", "topic", "partition", "key_hash", "offset"] {
        select.column(("retry", column));
    }
    // PostgreSQL's length has 32 bits, SQLite's 64.
    select.expr_as(Expr::cust("CAST(COALESCE(LENGTH(payload), 0) AS bigint)"), "bytes")
}

async fn find(
    transaction: &DatabaseTransaction,
    select: &SelectStatement,
) -> Result<Vec<Found>, DbErr> {
    let read = |row: &QueryResult| -> Result<Found, DbErr> {
        let place = (row.try_get("", "topic")?, row.try_get("", "partition")?);
        let hash: Option<i64> = row.try_get("", "key_hash")?;
        Ok(Found {
            id: row.try_get("", "id")?,
            key: hash.map(|hash| (place.0, place.1, hash)),
            offset: row.try_get("", "offset")?,
            bytes: row.try_get("", "bytes")?,
        })
    };
    transaction.query_all(select).await?.iter().map(read).collect()
}

async fn load_in_tx(
    transaction: &DatabaseTransaction,
    ids: BTreeSet<Uuid>,
) -> Result<Vec<Waiting>, DbErr> {
    let mut rows = Vec::with_capacity(ids.len());
    for ids in in_chunks(ids) {
        let mut select = Query::select();
        select
            .columns(record::COLUMNS.into_iter().chain(OWN))
            .from("retry")
            .and_where(Expr::col("id").is_in(ids));
        for row in transaction.query_all(&select).await? {
            rows.push(read(&row)?);
        }
    }
    rows.sort_by(|a, b| place(&a.message).cmp(&place(&b.message)));
    Ok(rows)
}

/// Columns that only this table has and that are read.
const OWN: [&str; 7] =
    ["id", "cause", "attempts", "level", "first_failed_at", "last_failed_at", "dead_letter_id"];

fn place(message: &ReceivedMessage) -> (&str, i32, i64) {
    (&message.topic, message.partition, message.offset)
}

/// Which messages may have a turn.
#[derive(Debug, Clone)]
pub(crate) struct Turns<'a> {
    pub(crate) subscriber: &'a str,
    pub(crate) order: KeyOrder,
    /// Those that this replica has handlers for: others belong to replicas of another version.
    pub(crate) topics: Vec<&'a str>,
}

impl Turns<'_> {
    /// Soonest first: with [`KeyOrder::Keep`] the first of each key.
    fn select(&self) -> SelectStatement {
        let mut select = Query::select();
        select
            .from("retry")
            .and_where(Expr::col(("retry", "subscriber")).eq(self.subscriber))
            .and_where(Expr::col(("retry", "topic")).is_in(self.topics.iter().copied()))
            // Those that wait behind another one have none: they are not even looked at.
            .and_where(Expr::col(("retry", "next_at")).is_not_null())
            .order_by(("retry", "next_at"), Order::Asc)
            .order_by(("retry", "offset"), Order::Asc);
        if self.order == KeyOrder::Keep {
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
}

/// Puts a message off after a failure; with [`KeyOrder::Keep`] those behind it lose the turn that
/// they may have. False if somebody else has decided it meanwhile.
pub(crate) async fn put_off_in_tx(
    transaction: &DatabaseTransaction,
    subscriber: &str,
    order: KeyOrder,
    waiting: &Waiting,
    failures: &Failures,
    put_off: PutOff,
) -> Result<bool, DbErr> {
    let mut update = Query::update();
    update
        .table("retry")
        .value("attempts", i64::from(failures.attempts))
        .value("level", i64::from(put_off.level))
        .value("cause", cause_text(&failures.cause))
        .value("first_failed_at", failures.first_failed_at)
        .value("last_failed_at", failures.last_failed_at)
        .value("next_at", put_off.next_at)
        .and_where(Expr::col("id").eq(waiting.id))
        .and_where(Expr::col("attempts").eq(i64::from(waiting.failures.attempts)));
    if transaction.execute(&update).await?.rows_affected() == 0 {
        return Ok(false);
    }
    if let (KeyOrder::Keep, Some(key)) = (order, ordering_key(&waiting.message)) {
        let mut behind = Query::update();
        behind
            .table("retry")
            .value("next_at", Option::<DateTime<Utc>>::None)
            .cond_where(of_key(subscriber, &key))
            .and_where(Expr::col("next_at").is_not_null())
            .and_where(Expr::col("offset").gt(waiting.message.offset))
            .and_where(Expr::col("attempts").eq(0));
        transaction.execute(&behind).await?;
    }
    Ok(true)
}

/// Until when a message is put off, and the retries that it has behind it then.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PutOff {
    pub(crate) next_at: DateTime<Utc>,
    pub(crate) level: u32,
}

/// Takes out what this transaction has claimed, and gives what is behind its turn: the effect is in
/// it too. False if somebody else has taken one of them, who keeps no order: then this transaction
/// must be rolled back.
pub(crate) async fn take_in_tx(
    transaction: &DatabaseTransaction,
    subscriber: &str,
    claimed: &[Waiting],
) -> Result<bool, DbErr> {
    let (mut taken, ids) = (0, claimed.iter().map(|one| one.id).collect::<Vec<_>>());
    for ids in in_chunks(ids) {
        let mut delete = Query::delete();
        delete.from_table("retry").and_where(Expr::col("id").is_in(ids));
        taken += transaction.execute(&delete).await?.rows_affected();
    }
    let keys: BTreeSet<OrderingKey> =
        claimed.iter().filter_map(|one| ordering_key(&one.message)).collect();
    for key in &keys {
        next_turn_in_tx(transaction, subscriber, key).await?;
    }
    Ok(taken == claimed.len() as u64)
}

/// Takes one out, whose dead letter is in this transaction too. False if somebody else has tried it
/// since it was read: then it is theirs to decide.
pub(crate) async fn give_up_in_tx(
    transaction: &DatabaseTransaction,
    subscriber: &str,
    waiting: &Waiting,
) -> Result<bool, DbErr> {
    let mut delete = Query::delete();
    delete
        .from_table("retry")
        .and_where(Expr::col("id").eq(waiting.id))
        .and_where(Expr::col("attempts").eq(i64::from(waiting.failures.attempts)));
    let taken = transaction.execute(&delete).await?.rows_affected() > 0;
    if let (true, Some(key)) = (taken, ordering_key(&waiting.message)) {
        next_turn_in_tx(transaction, subscriber, &key).await?;
    }
    Ok(taken)
}

/// The first one of a key has its turn now, if it has none yet. Behind the deletion of the one
/// before: that waits for whoever is putting a message behind it, and this sees that message.
async fn next_turn_in_tx(
    transaction: &DatabaseTransaction,
    subscriber: &str,
    key: &OrderingKey,
) -> Result<(), DbErr> {
    let mut first = Query::select();
    first
        .column("id")
        .from("retry")
        .cond_where(of_key(subscriber, key))
        .order_by("offset", Order::Asc)
        .limit(1);
    let mut update = Query::update();
    update
        .table("retry")
        .value("next_at", now())
        .and_where(Expr::col("id").in_subquery(first))
        .and_where(Expr::col("next_at").is_null());
    transaction.execute(&update).await.map(|_| ())
}

/// What keeps its order: the messages of one key in one partition.
type OrderingKey = (String, i32, i64);

fn ordering_key(message: &ReceivedMessage) -> Option<OrderingKey> {
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

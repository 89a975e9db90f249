//! Whose turn it is, and taking it: what is claimed is locked until its transaction ends, and what
//! somebody else has claimed is passed over.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};
use halfmsg_db::now;
use sea_orm::sea_query::{Expr, ExprTrait, LockBehavior, LockType, Order, Query, SelectStatement};
use sea_orm::{ConnectionTrait, DatabaseTransaction, DbErr, QueryResult};
use uuid::Uuid;

use super::{OWN, OrderingKey, Waiting, of_key, read};
use crate::config::KeyOrder;
use crate::message::ReceivedMessage;
use crate::record::{self, in_chunks};

/// What waits behind a message comes along with it where at most so many keys are due; beyond, the
/// keys alone make a batch.
const MAX_RUNS: usize = 16;

/// Which messages may have a turn.
#[derive(Debug, Clone)]
pub(crate) struct Turns<'a> {
    pub(crate) subscriber: &'a str,
    pub(crate) order: KeyOrder,
    /// Those that this replica has handlers for: others belong to replicas of another version.
    pub(crate) topics: Vec<&'a str>,
    /// Not these rows: another part of this replica is deciding about them.
    pub(crate) taken: Vec<Uuid>,
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
        if !self.taken.is_empty() {
            select.and_where(Expr::col(("retry", "id")).is_not_in(self.taken.iter().copied()));
        }
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

fn place(message: &ReceivedMessage) -> (&str, i32, i64) {
    (&message.topic, message.partition, message.offset)
}

//! The barrier: what this subscriber has had.
//!
//! A row means that the subscriber answers for the message: it had its effect, or a retry or a dead
//! letter stands for it. So nothing here may delete a row while one of those two is open.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicI64, Ordering};

use chrono::{DateTime, TimeDelta, Utc};
use halfmsg_db::{now, writers_turn};
use sea_orm::sea_query::{Expr, ExprTrait, InsertStatement, LikeExpr, OnConflict, Order, Query};
use sea_orm::{ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbErr, Value};

use crate::background::CLEAN_BATCH;
use crate::message::ReceivedMessage;

/// Rows that one statement inserts, each with four variables: a statement has 32,766 on SQLite.
const ROWS_PER_STATEMENT: usize = 8_000;
/// Keys with too many messages that one look finds.
const KEYS_AT_ONCE: u64 = 100;
/// Nothing younger is forgotten by its key: the clocks of replicas may differ by so much, and what one has
/// written would seem newer than what another one may have to read again.
pub(crate) const LEAST_AGE: TimeDelta = TimeDelta::seconds(10);

/// When this process has received what is bounded by key.
static RECEIVED: Forward = Forward(AtomicI64::new(i64::MIN));

/// Moments that never go back, in microseconds: of a key the newest are kept, and a clock that is set back
/// would make them the oldest.
struct Forward(AtomicI64);

impl Forward {
    /// What the clock says, or the last moment if that is later.
    fn at(&self, clock: DateTime<Utc>) -> DateTime<Utc> {
        let micros = clock.timestamp_micros();
        let last = self.0.fetch_max(micros, Ordering::Relaxed);
        DateTime::from_timestamp_micros(Ord::max(micros, last)).unwrap_or(clock)
    }
}

/// Remembers the messages and gives back those that are new, in their order; of two with the same
/// key the first. `by_key`: with what is needed to forget the older ones of an ordering key.
///
/// Where another transaction is remembering one of them, this waits for its end.
pub(crate) async fn remember_in_tx(
    transaction: &DatabaseTransaction,
    subscriber: &str,
    by_key: bool,
    messages: &[ReceivedMessage],
) -> Result<Vec<ReceivedMessage>, DbErr> {
    let mut new = HashSet::new();
    for mut insert in inserts(subscriber, by_key, messages) {
        insert
            .on_conflict(OnConflict::columns(["subscriber", "message_key"]).do_nothing().to_owned())
            .returning_col("message_key");
        for row in transaction.query_all(&insert).await? {
            new.insert(row.try_get::<String>("", "message_key")?);
        }
    }
    let fresh = messages.iter().filter(|message| new.remove(&message.inbox_key()));
    Ok(fresh.cloned().collect())
}

/// Notes that a retry or replay has its effect now. Also where the row is gone. `by_key` as for
/// [`remember_in_tx`].
///
/// Without it, they are remembered from now on as long as any other. With it, a row keeps its place among those
/// of its key, which is that of its message: as the newest it would push out others that came before it
/// and may be read again, and without a place it would stay for ever. So its age is then counted from when
/// the message was first received, too: it is then that Kafka's retention bounds when it may come again. One
/// whose row is gone has lost its place; it counts for no key, and only its age ends it.
pub(crate) async fn renew_in_tx(
    transaction: &DatabaseTransaction,
    subscriber: &str,
    by_key: bool,
    messages: &[ReceivedMessage],
) -> Result<(), DbErr> {
    for mut insert in inserts(subscriber, false, messages) {
        let mut known = OnConflict::columns(["subscriber", "message_key"]);
        if by_key {
            known.do_nothing();
        } else {
            known.update_columns(["received_at", "key_hash"]);
        }
        transaction.execute(insert.on_conflict(known)).await?;
    }
    Ok(())
}

/// In sorted order, so that two members with the same messages do not wait for each other.
fn inserts(subscriber: &str, by_key: bool, messages: &[ReceivedMessage]) -> Vec<InsertStatement> {
    let of_key = |message: &ReceivedMessage| if by_key { message.topic_key_hash() } else { None };
    let rows: BTreeMap<String, Option<i64>> =
        messages.iter().map(|message| (message.inbox_key(), of_key(message))).collect();
    let rows: Vec<_> = rows.into_iter().collect();
    // Ages alone follow the clock wherever it is set: it may have been far ahead.
    let received_at = if by_key { RECEIVED.at(now()) } else { now() };
    let insert = |rows: &[(String, Option<i64>)]| {
        let mut insert = Query::insert();
        let columns = ["subscriber", "message_key", "received_at", "key_hash"];
        insert.into_table("inbox").columns(columns);
        for (key, hash) in rows {
            let row: [Value; 4] =
                [subscriber.into(), key.as_str().into(), received_at.into(), (*hash).into()];
            insert.values_panic(row.map(Into::into));
        }
        insert
    };
    rows.chunks(ROWS_PER_STATEMENT).map(insert).collect()
}

/// Forgets up to `limit` messages that were received before `before`, the oldest first; never one
/// that waits for a retry or is an open dead letter, because it would be handled a second time.
/// Returns how many.
pub(crate) async fn clean(
    database: &DatabaseConnection,
    subscriber: &str,
    before: DateTime<Utc>,
    limit: u64,
) -> Result<u64, DbErr> {
    let mut old = Query::select();
    old.column("message_key")
        .from("inbox")
        .and_where(Expr::col(("inbox", "subscriber")).eq(subscriber))
        .and_where(Expr::col(("inbox", "received_at")).lt(before))
        .and_where(nothing_pending())
        .order_by("received_at", Order::Asc)
        .limit(limit);
    let mut delete = Query::delete();
    delete
        .from_table("inbox")
        .and_where(Expr::col("subscriber").eq(subscriber))
        .and_where(Expr::col("message_key").in_subquery(old));
    let _turn = writers_turn(database).await;
    Ok(database.execute(&delete).await?.rows_affected())
}

/// Forgets, of each ordering key, what was received before the newest `keep` messages and more than
/// [`LEAST_AGE`] ago, in statements of up to `limit`; never what waits for a retry or is an open dead letter, and of what one transaction remembered
/// together all or nothing. Returns how many are forgotten.
///
/// Cancelled or failed, those before stay forgotten.
pub(crate) async fn clean_by_key(
    database: &DatabaseConnection,
    subscriber: &str,
    keep: u64,
    limit: u64,
) -> Result<u64, DbErr> {
    let (mut after, mut forgotten) = (None, 0);
    loop {
        let mut full = Query::select();
        full.column("key_hash")
            .from("inbox")
            .and_where(Expr::col("subscriber").eq(subscriber))
            .and_where(Expr::col("key_hash").is_not_null())
            .group_by_col("key_hash")
            .and_having(Expr::cust("COUNT(*)").gt(i64::try_from(keep).unwrap_or(i64::MAX)))
            .order_by("key_hash", Order::Asc)
            .limit(KEYS_AT_ONCE);
        if let Some(after) = after {
            full.and_where(Expr::col("key_hash").gt(after));
        }
        let rows = database.query_all(&full).await?;
        let keys: Result<Vec<i64>, DbErr> =
            rows.iter().map(|row| row.try_get("", "key_hash")).collect();
        for key in keys? {
            after = Some(key);
            loop {
                let cleaned = clean_one_key(database, subscriber, key, keep, limit).await?;
                forgotten += cleaned;
                if cleaned < limit {
                    break;
                }
            }
        }
        if (rows.len() as u64) < KEYS_AT_ONCE {
            return Ok(forgotten);
        }
    }
}

async fn clean_one_key(
    database: &DatabaseConnection,
    subscriber: &str,
    key: i64,
    keep: u64,
    limit: u64,
) -> Result<u64, DbErr> {
    let mut oldest_kept = Query::select();
    oldest_kept
        .column("received_at")
        .from("inbox")
        .and_where(Expr::col("subscriber").eq(subscriber))
        .and_where(Expr::col("key_hash").eq(key))
        .order_by("received_at", Order::Desc)
        .limit(1)
        .offset(keep.saturating_sub(1));
    // A value of its own: another message that comes meanwhile only makes fewer too many.
    let Some(row) = database.query_one(&oldest_kept).await? else { return Ok(0) };
    let newest: DateTime<Utc> = row.try_get("", "received_at")?;
    let before = Ord::min(newest, now() - LEAST_AGE);
    let mut old = Query::select();
    old.column("message_key")
        .from("inbox")
        .and_where(Expr::col(("inbox", "subscriber")).eq(subscriber))
        .and_where(Expr::col(("inbox", "key_hash")).eq(key))
        .and_where(Expr::col(("inbox", "received_at")).lt(before))
        .and_where(nothing_pending())
        .order_by("received_at", Order::Asc)
        .limit(limit);
    let mut delete = Query::delete();
    delete
        .from_table("inbox")
        .and_where(Expr::col("subscriber").eq(subscriber))
        .and_where(Expr::col("message_key").in_subquery(old));
    let _turn = writers_turn(database).await;
    Ok(database.execute(&delete).await?.rows_affected())
}

fn nothing_pending() -> Expr {
    let same = |table: &'static str| {
        let mut found = Query::select();
        found
            .expr(Expr::val(1))
            .from(table)
            .and_where(Expr::col((table, "subscriber")).equals(("inbox", "subscriber")))
            .and_where(Expr::col((table, "message_key")).equals(("inbox", "message_key")));
        found
    };
    let mut open = same("dead_letter");
    open.and_where(Expr::col(("dead_letter", "replayed_at")).is_null())
        .and_where(Expr::col(("dead_letter", "discarded_at")).is_null());
    Expr::not_exists(same("retry")).and(Expr::not_exists(open))
}

/// What a subscriber remembers. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Inbox {
    database: DatabaseConnection,
    subscriber: String,
}

impl Inbox {
    /// The inbox of this subscriber.
    pub fn new(database: DatabaseConnection, subscriber: impl Into<String>) -> Self {
        Self { database, subscriber: subscriber.into() }
    }

    /// Forgets one message by its [`inbox_key`](ReceivedMessage::inbox_key): delivered again, it
    /// has its effect again. False if it is not remembered, or waits for a retry, or is an open
    /// dead letter.
    ///
    /// # Errors
    /// What the database says.
    pub async fn forget(&self, key: &str) -> Result<bool, DbErr> {
        let mut delete = Query::delete();
        delete
            .from_table("inbox")
            .and_where(Expr::col(("inbox", "subscriber")).eq(self.subscriber.as_str()))
            .and_where(Expr::col(("inbox", "message_key")).eq(key))
            .and_where(nothing_pending());
        let _turn = writers_turn(&self.database).await;
        Ok(self.database.execute(&delete).await?.rows_affected() > 0)
    }

    /// Forgets the messages of a topic that are known by their place, those without a transaction id:
    /// after it was deleted and made anew, a new message at an old place would count as one that was
    /// had. The topic's consumers must stand still. Those that wait for a retry or are an open dead letter
    /// stay. Returns how many are forgotten.
    ///
    /// In batches of 1,000: cancelled or failed, those before stay forgotten.
    ///
    /// # Errors
    /// What the database says; repeating it is harmless.
    pub async fn forget_places(&self, topic: &str) -> Result<u64, DbErr> {
        let (mut after, mut forgotten) = (format!("{topic}-"), 0);
        loop {
            let mut select = Query::select();
            select
                .column("message_key")
                .from("inbox")
                .and_where(Expr::col("subscriber").eq(self.subscriber.as_str()))
                .and_where(Expr::col("message_key").gt(after.as_str()))
                .and_where(Expr::col("message_key").like(beginning(topic)))
                .order_by("message_key", Order::Asc)
                .limit(CLEAN_BATCH);
            let rows = self.database.query_all(&select).await?;
            let keys: Result<Vec<String>, DbErr> =
                rows.iter().map(|row| row.try_get("", "message_key")).collect();
            let keys = keys?;
            let Some(last) = keys.last() else { return Ok(forgotten) };
            after.clone_from(last);
            let places = keys.into_iter().filter(|key| is_place_of(topic, key));
            let mut delete = Query::delete();
            delete
                .from_table("inbox")
                .and_where(Expr::col(("inbox", "subscriber")).eq(self.subscriber.as_str()))
                .and_where(Expr::col(("inbox", "message_key")).is_in(places))
                .and_where(nothing_pending());
            let _turn = writers_turn(&self.database).await;
            forgotten += self.database.execute(&delete).await?.rows_affected();
        }
    }
}

/// Keys that begin with this topic and a dash: also those of topics with longer names.
fn beginning(topic: &str) -> LikeExpr {
    let mut pattern = String::with_capacity(topic.len() + 2);
    for c in topic.chars() {
        if matches!(c, '%' | '_' | '\\') {
            pattern.push('\\');
        }
        pattern.push(c);
    }
    pattern.push_str("-%");
    LikeExpr::new(pattern).escape('\\')
}

/// As [`ReceivedMessage::inbox_key`] writes it: topic, partition and offset.
fn is_place_of(topic: &str, key: &str) -> bool {
    let place = key.strip_prefix(topic).and_then(|rest| rest.strip_prefix('-'));
    let place = place.and_then(|rest| rest.split_once('-'));
    place.is_some_and(|(partition, offset)| {
        partition.parse::<u32>().is_ok() && offset.parse::<u64>().is_ok()
    })
}

#[cfg(test)]
pub(crate) mod tests;

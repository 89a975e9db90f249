//! The barrier: what this subscriber has had.
//!
//! A row means that the subscriber answers for the message: it had its effect, or a retry or a dead
//! letter stands for it. So nothing here may delete a row while one of those two is open.

use std::collections::{BTreeSet, HashSet};

use chrono::{DateTime, Utc};
use halfmsg_db::now;
use sea_orm::sea_query::{Expr, ExprTrait, InsertStatement, OnConflict, Order, Query};
use sea_orm::{ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbErr, Value};

use crate::message::ReceivedMessage;

/// Remembers the messages and gives back those that are new, in their order; of two with the same
/// key the first.
///
/// Where another transaction is remembering one of them, this waits for its end.
pub(crate) async fn remember_in_tx(
    transaction: &DatabaseTransaction,
    subscriber: &str,
    messages: &[ReceivedMessage],
) -> Result<Vec<ReceivedMessage>, DbErr> {
    // In sorted order, so that two members with the same messages do not wait for each other.
    let keys: BTreeSet<String> = messages.iter().map(ReceivedMessage::inbox_key).collect();
    let mut insert = insert(subscriber, keys);
    insert
        .on_conflict(OnConflict::columns(["subscriber", "message_key"]).do_nothing().to_owned())
        .returning_col("message_key");
    let mut new = HashSet::new();
    for row in transaction.query_all(&insert).await? {
        new.insert(row.try_get::<String>("", "message_key")?);
    }
    let fresh = messages.iter().filter(|message| new.remove(&message.inbox_key()));
    Ok(fresh.cloned().collect())
}

/// Notes that a retry or replay has its effect now: remembered as long as any other. Also where the
/// row is gone.
pub(crate) async fn renew_in_tx(
    transaction: &DatabaseTransaction,
    subscriber: &str,
    messages: &[ReceivedMessage],
) -> Result<(), DbErr> {
    let keys: BTreeSet<String> = messages.iter().map(ReceivedMessage::inbox_key).collect();
    let mut insert = insert(subscriber, keys);
    insert.on_conflict(
        OnConflict::columns(["subscriber", "message_key"]).update_column("received_at").to_owned(),
    );
    transaction.execute(&insert).await.map(|_| ())
}

fn insert(subscriber: &str, keys: BTreeSet<String>) -> InsertStatement {
    let mut insert = Query::insert();
    insert.into_table("inbox").columns(["subscriber", "message_key", "received_at"]);
    let received_at = now();
    for key in keys {
        let row: [Value; 3] = [subscriber.into(), key.into(), received_at.into()];
        insert.values_panic(row.map(Into::into));
    }
    insert
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
        Ok(self.database.execute(&delete).await?.rows_affected() > 0)
    }
}

//! What former generations of the report have left: rows of the report, and what their subscribers had
//! in the inbox and among the retries. It goes away a few rows at a time, each time in a transaction of
//! its own, while the present generation is read; whoever dies in between leaves the rest to the next.
//!
//! It must never touch the present generation, and never delete a dead letter: those are the operator's
//! journal.

use chrono::{DateTime, Utc};
use halfmsg_service_kit::db::begin_write;
use sea_orm::sea_query::{Expr, ExprTrait, LockBehavior, LockType, Order, Query, SelectStatement};
use sea_orm::{ConnectionTrait, DatabaseTransaction, DbErr, Value};
use uuid::Uuid;

use super::ReportStore;

/// Rows that one statement deletes: one that takes a moment, whatever is left.
pub const CLEAN_BATCH: u64 = 500;
/// Subscribers of one database that are looked at; a service has a few.
const MAX_SUBSCRIBERS: usize = 1_000;

impl ReportStore {
    /// Deletes up to [`CLEAN_BATCH`] rows that a former generation has left, and says how many; none
    /// if nothing is left. Rows that somebody else has in hand are left to the next call.
    /// `prefix` is the beginning of its subscribers' names, before the generation.
    ///
    /// Cancelled, or killed, it has deleted them or not.
    ///
    /// # Errors
    /// What the database says; repeating it is harmless.
    pub async fn clean(&self, prefix: &str) -> Result<u64, DbErr> {
        for (table, key) in [("report_order", "order_id"), ("report_product", "sku")] {
            let deleted = self.clean_report(table, key).await?;
            if deleted > 0 {
                return Ok(deleted);
            }
        }
        // The present generation is asked for after them: one of these that it is not is over for good.
        let inbox = self.subscribers("inbox", prefix).await?;
        let retry = self.subscribers("retry", prefix).await?;
        let Some(current) = self.generation().await? else { return Ok(0) };
        let current = subscriber(prefix, current);
        for former in inbox.iter().filter(|former| **former != current) {
            let deleted = self.clean_inbox(former).await?;
            if deleted > 0 {
                return Ok(deleted);
            }
        }
        for former in retry.iter().filter(|former| **former != current) {
            let deleted = self.clean_retries(former).await?;
            if deleted > 0 {
                return Ok(deleted);
            }
        }
        Ok(0)
    }

    /// Rows of other readings. None while nobody knows which is the present one.
    async fn clean_report(&self, table: &'static str, key: &'static str) -> Result<u64, DbErr> {
        let is_former = || {
            let current = Query::select().column("reading").from("report_generation").take();
            let current = Expr::SubQuery(None, Box::new(current.into()));
            Expr::col(("r", "reading")).lt(current)
        };
        let mut some = Query::select();
        some.column(("r", key)).from_as(table, "r").and_where(is_former());
        let tx = begin_write(&self.database).await?;
        let keys = match table {
            "report_order" => take_in_tx::<Uuid>(&tx, some, key).await?,
            _ => take_in_tx::<String>(&tx, some, key).await?,
        };
        delete_in_tx(tx, table, None, key, keys).await
    }

    async fn clean_inbox(&self, former: &str) -> Result<u64, DbErr> {
        let mut some = Query::select();
        some.column("message_key").from("inbox").and_where(Expr::col("subscriber").eq(former));
        let tx = begin_write(&self.database).await?;
        let keys = take_in_tx::<String>(&tx, some, "message_key").await?;
        delete_in_tx(tx, "inbox", Some(former), "message_key", keys).await
    }

    /// A dead letter whose replay was waiting is open again: nobody will replay it by itself.
    async fn clean_retries(&self, former: &str) -> Result<u64, DbErr> {
        let mut some = Query::select();
        some.column("id").from("retry").and_where(Expr::col("subscriber").eq(former));
        let tx = begin_write(&self.database).await?;
        let ids = take_in_tx::<Uuid>(&tx, some, "id").await?;
        let replayed = Query::select()
            .column("dead_letter_id")
            .from("retry")
            .and_where(Expr::col("id").is_in(ids.iter().cloned()))
            .and_where(Expr::col("dead_letter_id").is_not_null())
            .take();
        let mut reopen = Query::update();
        reopen
            .table("dead_letter")
            .value("queued_at", Option::<DateTime<Utc>>::None)
            .and_where(Expr::col("id").in_subquery(replayed));
        tx.execute(&reopen).await?;
        delete_in_tx(tx, "retry", Some(former), "id", ids).await
    }

    /// Generations' subscribers that have rows in a table: from one to the next by the table's index,
    /// which reads no more than one row of each.
    async fn subscribers(&self, table: &'static str, prefix: &str) -> Result<Vec<String>, DbErr> {
        let (mut found, mut last) = (Vec::new(), String::new());
        for _ in 0..MAX_SUBSCRIBERS {
            let mut next = Query::select();
            next.column("subscriber")
                .from(table)
                .and_where(Expr::col("subscriber").gt(last.as_str()))
                .order_by("subscriber", Order::Asc)
                .limit(1);
            let Some(row) = self.database.query_one(&next).await? else { break };
            last = row.try_get("", "subscriber")?;
            if is_generation(&last, prefix) {
                found.push(last.clone());
            }
        }
        Ok(found)
    }
}

/// A generation's subscriber.
pub(crate) fn subscriber(prefix: &str, generation: Uuid) -> String {
    format!("{prefix}.{}", generation.simple())
}

fn is_generation(name: &str, prefix: &str) -> bool {
    let generation = name.strip_prefix(prefix).and_then(|rest| rest.strip_prefix('.'));
    let generation = generation.and_then(|rest| Uuid::try_parse(rest).ok());
    generation.is_some_and(|generation| subscriber(prefix, generation) == name)
}

/// Locks some of these rows to the end of the transaction, without waiting for anybody: who waited
/// here with rows in hand could wait in a circle.
async fn take_in_tx<K>(
    tx: &DatabaseTransaction,
    mut some: SelectStatement,
    key: &str,
) -> Result<Vec<Value>, DbErr>
where
    K: sea_orm::TryGetable + Into<Value>,
{
    some.limit(CLEAN_BATCH).lock_with_behavior(LockType::Update, LockBehavior::SkipLocked);
    let rows = tx.query_all(&some).await?;
    rows.iter().map(|row| Ok(row.try_get::<K>("", key)?.into())).collect()
}

/// Deletes what was taken, and ends the transaction.
async fn delete_in_tx(
    tx: DatabaseTransaction,
    table: &'static str,
    subscriber: Option<&str>,
    key: &'static str,
    keys: Vec<Value>,
) -> Result<u64, DbErr> {
    if keys.is_empty() {
        tx.rollback().await?;
        return Ok(0);
    }
    let mut delete = Query::delete();
    delete.from_table(table).and_where(Expr::col(key).is_in(keys));
    if let Some(subscriber) = subscriber {
        delete.and_where(Expr::col("subscriber").eq(subscriber));
    }
    let deleted = tx.execute(&delete).await?.rows_affected();
    tx.commit().await?;
    Ok(deleted)
}

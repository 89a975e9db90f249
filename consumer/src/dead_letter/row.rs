//! The table of dead letters.

use chrono::{DateTime, Utc};
use halfmsg_db::now;
use sea_orm::sea_query::{Expr, ExprTrait, Query, SelectStatement};
use sea_orm::{ConnectionTrait, DatabaseTransaction, DbErr, QueryResult, Value};
use uuid::Uuid;

use super::{DeadLetter, DeadLetterState};
use crate::message::ReceivedMessage;
use crate::record::{self, cause_text};
use crate::retry::Failures;

/// The columns behind those of the message that are written at first.
const NEW: [&str; 5] = ["id", "cause", "attempts", "first_failed_at", "last_failed_at"];
/// Those that tell what became of it.
const LATER: [&str; 4] = ["queued_at", "replayed_at", "discarded_at", "discard_reason"];

pub(super) fn select() -> SelectStatement {
    Query::select()
        .columns(record::COLUMNS.into_iter().chain(NEW).chain(LATER))
        .from("dead_letter")
        .to_owned()
}

/// The same without payloads, which are not even read.
pub(super) fn select_without_payloads() -> SelectStatement {
    let columns = record::COLUMNS.into_iter().chain(NEW).chain(LATER);
    Query::select()
        .columns(columns.filter(|column| *column != "payload"))
        // A NULL of the column's own type, on every database.
        .expr_as(Expr::cust("CASE WHEN 1 = 0 THEN payload END"), "payload")
        .from("dead_letter")
        .to_owned()
}

pub(super) fn in_state(state: DeadLetterState) -> Expr {
    let (queued, replayed, discarded) =
        (Expr::col("queued_at"), Expr::col("replayed_at"), Expr::col("discarded_at"));
    match state {
        DeadLetterState::Replayed => replayed.is_not_null(),
        DeadLetterState::Discarded => discarded.is_not_null(),
        DeadLetterState::Queued => queued.is_not_null().and(replayed.is_null()),
        DeadLetterState::Open => queued.is_null().and(replayed.is_null()).and(discarded.is_null()),
    }
}

/// Stores a dead letter. The message's row in the inbox is this transaction's, or was there while
/// the message waited for its retries.
pub(crate) async fn store_in_tx(
    transaction: &DatabaseTransaction,
    subscriber: &str,
    message: &ReceivedMessage,
    failures: &Failures,
) -> Result<(), DbErr> {
    let first = failures.first_failed_at.unwrap_or_else(now);
    let own: [Value; 5] = [
        Uuid::now_v7().into(),
        cause_text(&failures.cause).into(),
        i64::from(failures.attempts).into(),
        first.into(),
        failures.last_failed_at.unwrap_or(first).into(),
    ];
    let mut insert = Query::insert();
    insert
        .into_table("dead_letter")
        .columns(record::COLUMNS.into_iter().chain(NEW))
        .values_panic(record::values(subscriber, message).into_iter().chain(own).map(Expr::from));
    transaction.execute(&insert).await.map(|_| ())
}

/// A queued replay was given up on: it is open again.
pub(crate) async fn failed_again_in_tx(
    transaction: &DatabaseTransaction,
    id: Uuid,
    failures: &Failures,
) -> Result<(), DbErr> {
    let mut update = Query::update();
    update
        .table("dead_letter")
        .value("attempts", i64::from(failures.attempts))
        .value("cause", cause_text(&failures.cause))
        .value("last_failed_at", failures.last_failed_at.unwrap_or_else(now))
        .value("queued_at", Option::<DateTime<Utc>>::None)
        .and_where(Expr::col("id").eq(id));
    transaction.execute(&update).await.map(|_| ())
}

/// Replays have their effect in this transaction.
pub(crate) async fn replayed_in_tx(
    transaction: &DatabaseTransaction,
    ids: &[Uuid],
) -> Result<(), DbErr> {
    if ids.is_empty() {
        return Ok(());
    }
    let mut update = Query::update();
    update
        .table("dead_letter")
        .value("replayed_at", now())
        .value("queued_at", Option::<DateTime<Utc>>::None)
        .and_where(Expr::col("id").is_in(ids.iter().copied()));
    transaction.execute(&update).await.map(|_| ())
}

pub(super) async fn queued_in_tx(transaction: &DatabaseTransaction, id: Uuid) -> Result<(), DbErr> {
    let mut update = Query::update();
    update.table("dead_letter").value("queued_at", now()).and_where(Expr::col("id").eq(id));
    transaction.execute(&update).await.map(|_| ())
}

/// Whatever it was before: given up for good.
pub(super) async fn discarded_in_tx(
    transaction: &DatabaseTransaction,
    id: Uuid,
    at: DateTime<Utc>,
    reason: &str,
) -> Result<(), DbErr> {
    let mut update = Query::update();
    update
        .table("dead_letter")
        .value("discarded_at", at)
        .value("discard_reason", reason)
        .value("queued_at", Option::<DateTime<Utc>>::None)
        .and_where(Expr::col("id").eq(id));
    transaction.execute(&update).await.map(|_| ())
}

pub(super) fn read(row: &QueryResult) -> Result<(DeadLetter, ReceivedMessage), DbErr> {
    let message = record::read(row)?;
    let moment = |column| row.try_get::<Option<DateTime<Utc>>>("", column);
    let (queued_at, replayed_at, discarded_at) =
        (moment("queued_at")?, moment("replayed_at")?, moment("discarded_at")?);
    let state = match (replayed_at, discarded_at, queued_at) {
        (Some(_), _, _) => DeadLetterState::Replayed,
        (_, Some(_), _) => DeadLetterState::Discarded,
        (_, _, Some(_)) => DeadLetterState::Queued,
        _ => DeadLetterState::Open,
    };
    let payload = message.payload.as_deref();
    let letter = DeadLetter {
        id: row.try_get("", "id")?,
        state,
        message_key: row.try_get("", "message_key")?,
        transaction_id: message.transaction_id(),
        topic: message.topic.clone(),
        partition: message.partition,
        offset: message.offset,
        cause: row.try_get("", "cause")?,
        attempts: row.try_get("", "attempts")?,
        first_failed_at: row.try_get("", "first_failed_at")?,
        last_failed_at: row.try_get("", "last_failed_at")?,
        queued_at,
        replayed_at,
        discarded_at,
        discard_reason: row.try_get("", "discard_reason")?,
        key: message.key.as_deref().and_then(|key| String::from_utf8(key.to_vec()).ok()),
        payload: payload.map(|bytes| String::from_utf8_lossy(bytes).into_owned()),
    };
    Ok((letter, message))
}

//! Putting a message off, and taking it out: with its effect, or with its dead letter.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};
use halfmsg_db::now;
use sea_orm::sea_query::{Expr, ExprTrait, LockBehavior, LockType, Order, Query};
use sea_orm::{ConnectionTrait, DatabaseTransaction, DbErr};
use uuid::Uuid;

use super::{Failures, OrderingKey, Waiting, of_key, ordering_key};
use crate::config::KeyOrder;
use crate::message::ReceivedMessage;
use crate::record::{cause_text, in_chunks};

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
    order: KeyOrder,
    claimed: &[Waiting],
) -> Result<bool, DbErr> {
    let (mut taken, ids) = (0, claimed.iter().map(|one| one.id).collect::<Vec<_>>());
    for ids in in_chunks(ids) {
        let mut delete = Query::delete();
        delete.from_table("retry").and_where(Expr::col("id").is_in(ids));
        taken += transaction.execute(&delete).await?.rows_affected();
    }
    // Nothing waits without a turn where order is given up, but what a former setting has left.
    if order == KeyOrder::GiveUp && !any_without_turn_in_tx(transaction, subscriber).await? {
        return Ok(taken == claimed.len() as u64);
    }
    let keys: BTreeSet<OrderingKey> =
        claimed.iter().filter_map(|one| ordering_key(&one.message)).collect();
    for key in &keys {
        next_turn_in_tx(transaction, subscriber, key).await?;
    }
    Ok(taken == claimed.len() as u64)
}

/// One question to an index, for all keys of a batch.
async fn any_without_turn_in_tx(
    transaction: &DatabaseTransaction,
    subscriber: &str,
) -> Result<bool, DbErr> {
    let mut any = Query::select();
    any.expr(Expr::val(1))
        .from("retry")
        .and_where(Expr::col("subscriber").eq(subscriber))
        .and_where(Expr::col("next_at").is_null())
        .limit(1);
    Ok(transaction.query_one(&any).await?.is_some())
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

/// Takes out the replay of a dead letter that is locked in this transaction and will be discarded in it. False if
/// somebody has it in hand: then it is theirs to decide.
pub(crate) async fn withdraw_in_tx(
    transaction: &DatabaseTransaction,
    subscriber: &str,
    message: &ReceivedMessage,
    dead_letter_id: Uuid,
) -> Result<bool, DbErr> {
    let mut replay = Query::select();
    replay
        .column("id")
        .from("retry")
        .and_where(Expr::col("subscriber").eq(subscriber))
        .and_where(Expr::col("message_key").eq(message.inbox_key()))
        .and_where(Expr::col("dead_letter_id").eq(dead_letter_id));
    let mut free = replay.clone();
    free.lock_with_behavior(LockType::Update, LockBehavior::SkipLocked);
    let Some(row) = transaction.query_one(&free).await? else {
        return Ok(transaction.query_one(&replay).await?.is_none());
    };
    let id: Uuid = row.try_get("", "id")?;
    let mut delete = Query::delete();
    delete.from_table("retry").and_where(Expr::col("id").eq(id));
    transaction.execute(&delete).await?;
    if let Some(key) = ordering_key(message) {
        next_turn_in_tx(transaction, subscriber, &key).await?;
    }
    Ok(true)
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

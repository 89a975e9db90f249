//! What waits behind an earlier message of its key: with `KeyOrder::Keep` it must never be handled
//! before that, and never be forgotten behind it.

use std::collections::{BTreeSet, HashMap, HashSet};

use halfmsg_db::now;
use sea_orm::sea_query::{Expr, ExprTrait, LockBehavior, LockType, Order, Query};
use sea_orm::{ConnectionTrait, DatabaseTransaction, DbErr};
use uuid::Uuid;

use super::{Failures, OrderingKey, Place, ordering_key, store_in_tx};
use crate::config::KeyOrder;
use crate::message::ReceivedMessage;
use crate::record::in_chunks;

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

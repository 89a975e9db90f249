//! The barrier: what this subscriber has had.

use std::collections::{BTreeSet, HashSet};

use halfmsg_db::now;
use sea_orm::sea_query::{OnConflict, Query};
use sea_orm::{ConnectionTrait, DatabaseTransaction, DbErr, Value};

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
    let mut insert = Query::insert();
    insert.into_table("inbox").columns(["subscriber", "message_key", "received_at"]);
    let received_at = now();
    for key in keys {
        let row: [Value; 3] = [subscriber.into(), key.into(), received_at.into()];
        insert.values_panic(row.map(Into::into));
    }
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

/// Forgets one message, so that its dead letter can be replayed through the barrier.
pub(crate) async fn forget_in_tx(
    transaction: &DatabaseTransaction,
    subscriber: &str,
    key: &str,
) -> Result<(), DbErr> {
    use sea_orm::sea_query::{Expr, ExprTrait};
    let mut delete = Query::delete();
    delete
        .from_table("inbox")
        .and_where(Expr::col("subscriber").eq(subscriber))
        .and_where(Expr::col("message_key").eq(key));
    transaction.execute(&delete).await.map(|_| ())
}

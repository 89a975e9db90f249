//! A message as it is kept in a table: the columns that retries and dead letters share.

use bytes::Bytes;
use sea_orm::sea_query::{Asterisk, Expr, ExprTrait, Query};
use sea_orm::{ConnectionTrait, DbErr, QueryResult, Value};

use crate::headers;
use crate::message::ReceivedMessage;

/// Columns of a message, in the order of [`values`].
pub(crate) const COLUMNS: [&str; 8] =
    ["subscriber", "message_key", "topic", "partition", "offset", "key", "headers", "payload"];

/// A cause is cut at this many characters.
const MAX_CAUSE: usize = 2_000;

/// Values in one IN list.
const MAX_IN: usize = 10_000;

/// The values of [`COLUMNS`].
pub(crate) fn values(subscriber: &str, message: &ReceivedMessage) -> [Value; 8] {
    [
        subscriber.into(),
        message.inbox_key().into(),
        message.topic.as_str().into(),
        message.partition.into(),
        message.offset.into(),
        bytes(message.key.as_ref()).into(),
        headers::write(&message.headers).into(),
        bytes(message.payload.as_ref()).into(),
    ]
}

/// The message of a row.
pub(crate) fn read(row: &QueryResult) -> Result<ReceivedMessage, DbErr> {
    let headers: String = row.try_get("", "headers")?;
    Ok(ReceivedMessage {
        topic: row.try_get("", "topic")?,
        partition: row.try_get("", "partition")?,
        offset: row.try_get("", "offset")?,
        key: row.try_get::<Option<Vec<u8>>>("", "key")?.map(Bytes::from),
        headers: headers::read(&headers).map_err(|error| DbErr::Type(error.to_string()))?,
        payload: row.try_get::<Option<Vec<u8>>>("", "payload")?.map(Bytes::from),
    })
}

pub(crate) fn bytes(value: Option<&Bytes>) -> Option<Vec<u8>> {
    value.map(|value| value.to_vec())
}

/// Cut, and without NUL, which PostgreSQL's text cannot hold.
pub(crate) fn cause_text(cause: &str) -> String {
    cause.chars().filter(|c| *c != '\0').take(MAX_CAUSE).collect()
}

/// Values for an IN list, in portions: a statement has at most 32,766 variables on SQLite.
pub(crate) fn in_chunks<T>(values: impl IntoIterator<Item = T>) -> impl Iterator<Item = Vec<T>> {
    let mut values = values.into_iter();
    std::iter::from_fn(move || {
        let chunk: Vec<T> = values.by_ref().take(MAX_IN).collect();
        (!chunk.is_empty()).then_some(chunk)
    })
}

/// How many rows of a table are a subscriber's.
pub(crate) async fn count(
    database: &impl ConnectionTrait,
    table: &'static str,
    subscriber: &str,
) -> Result<i64, DbErr> {
    let mut select = Query::select();
    select
        .expr_as(Expr::col(Asterisk).count(), "rows")
        .from(table)
        .and_where(Expr::col("subscriber").eq(subscriber));
    let row = database.query_one(&select).await?;
    row.map_or(Ok(0), |row| row.try_get("", "rows"))
}

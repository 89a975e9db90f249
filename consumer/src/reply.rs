//! Replies: stored with the inbox row of the message that they answer, in one transaction.
//!
//! This module must never send: what was sent before the commit cannot be taken back.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use halfmsg_db::now;
use sea_orm::sea_query::{Condition, Expr, ExprTrait, OnConflict, Order, Query, SelectStatement};
use sea_orm::{ConnectionTrait, DatabaseTransaction, DbErr, QueryResult, Value};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::backoff::after;
use crate::handler::NewReply;
use crate::headers;
use crate::message::{TRANSACTION_ID_HEADER, key_hash};
use crate::record::{bytes, cause_text};

/// At most this many replies to one message.
pub const MAX_REPLIES: usize = 100;
/// Key, headers and payload of a reply together. Kafka's default takes 1,000,000 bytes; what lies
/// between is for the record's own fields.
pub const MAX_REPLY_BYTES: usize = 990_000;
/// At most this many bytes in the name of a topic, as Kafka has it.
const MAX_TOPIC_BYTES: usize = 249;
/// Who stored a reply sends it within this time, else the background does.
pub(crate) const GRACE: Duration = Duration::from_secs(10);
/// When a reply that the broker refused is tried again.
pub(crate) const REFUSED_PAUSE: Duration = Duration::from_secs(60);

/// A message that answers another one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reply {
    /// Where it goes: 1 to 249 of `a-z`, `A-Z`, `0-9`, `.`, `_` and `-`. The topic must exist.
    pub topic: String,
    /// The ordering key; by Kafka's default partitioner it chooses the partition.
    pub key: Option<Bytes>,
    /// Headers. `halfmsg-transaction-id` is ours: one that is given here is dropped.
    pub headers: Vec<(String, Option<Bytes>)>,
    /// The payload.
    pub payload: Option<Bytes>,
}

impl Reply {
    /// A reply with a payload, to this topic.
    pub fn new(topic: impl Into<String>, payload: impl Into<Bytes>) -> Self {
        Self { topic: topic.into(), payload: Some(payload.into()), ..Self::default() }
    }

    /// The same with a key.
    #[must_use]
    pub fn with_key(mut self, key: impl Into<Bytes>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// What is wrong with its topic, if anything: no broker would ever take it.
    pub(crate) fn mistake_in_topic(&self) -> Option<String> {
        let topic = self.topic.as_str();
        let known = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if topic.is_empty() {
            return Some("a reply has no topic".into());
        }
        if topic.len() <= MAX_TOPIC_BYTES
            && topic.bytes().all(known)
            && ![".", ".."].contains(&topic)
        {
            return None;
        }
        // It may be long.
        let shown: String = topic.chars().take(MAX_TOPIC_BYTES).collect();
        Some(format!(
            "a reply to topic {shown:?}: Kafka's names have 1 to {MAX_TOPIC_BYTES} of the characters a-z, \
             A-Z, 0-9, '.', '_' and '-', and are not '.' or '..'"
        ))
    }

    pub(crate) fn size(&self) -> usize {
        let part = |bytes: &Option<Bytes>| bytes.as_ref().map_or(0, Bytes::len);
        let headers: usize = self.headers.iter().map(|(name, v)| name.len() + part(v)).sum();
        headers + part(&self.key) + part(&self.payload)
    }
}

/// The identity of reply number `index` to a message: a UUID of version 8 made of the first 16
/// bytes of SHA-256 over subscriber, NUL, inbox key, NUL and the index in decimal. So it is the
/// same however often the message is handled.
pub fn reply_id(subscriber: &str, inbox_key: &str, index: usize) -> Uuid {
    let named = format!("{subscriber}\0{inbox_key}\0{index}");
    let digest: [u8; 32] = Sha256::digest(named.as_bytes()).into();
    let mut id = [0; 16];
    id.copy_from_slice(&digest[..16]);
    uuid::Builder::from_custom_bytes(id).into_uuid()
}

/// A reply that is not yet acknowledged.
#[derive(Debug, Clone)]
pub(crate) struct Unsent {
    pub(crate) seq: i64,
    pub(crate) id: Uuid,
    pub(crate) key_hash: Option<i64>,
    pub(crate) reply: Reply,
}

/// A reply that is not yet acknowledged, without its payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stored {
    pub(crate) seq: i64,
    pub(crate) topic: String,
    /// `None` for one without a key, which has no order.
    pub(crate) chain: Option<Chain>,
    pub(crate) bytes: usize,
    /// The broker has just refused it; it is not its time yet.
    pub(crate) refused: bool,
}

/// What keeps its order: topic and hash of the key.
pub(crate) type Chain = (String, i64);

/// Whose replies are to be sent now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Answers {
    /// Messages that were just handled, or handled before without a confirmation.
    pub(crate) message_keys: Vec<String>,
}

impl Answers {
    /// Those of replies that are stored now.
    pub(crate) fn of(replies: &[NewReply]) -> Self {
        let keys: BTreeSet<&str> = replies.iter().map(|new| new.inbox_key.as_str()).collect();
        Self { message_keys: keys.into_iter().map(str::to_owned).collect() }
    }
}

/// Replies that one statement stores: with the values of each, far below what a statement may have.
const ROWS_PER_STATEMENT: usize = 500;
/// No further reply joins a statement that has so many bytes of them.
const BYTES_PER_STATEMENT: usize = 1024 * 1024;

/// Stores replies; the order of storing is the order of sending. Many in one statement, whose rows the
/// databases number in the order in which they stand in it.
pub(crate) async fn store_in_tx(
    transaction: &DatabaseTransaction,
    subscriber: &str,
    replies: &[NewReply],
) -> Result<(), DbErr> {
    let next_at = after(GRACE);
    let mut rest = replies;
    while !rest.is_empty() {
        let (these, more) = rest.split_at(fitting(rest));
        rest = more;
        let mut insert = Query::insert();
        insert.into_table("reply").columns([
            "id",
            "subscriber",
            "message_key",
            "topic",
            "key",
            "key_hash",
            "headers",
            "payload",
            "next_at",
        ]);
        for NewReply { inbox_key, index, reply } in these {
            let row: [Value; 9] = [
                reply_id(subscriber, inbox_key, *index).into(),
                subscriber.into(),
                inbox_key.as_str().into(),
                reply.topic.as_str().into(),
                bytes(reply.key.as_ref()).into(),
                reply.key.as_deref().map(key_hash).into(),
                headers::write(&reply.headers).into(),
                bytes(reply.payload.as_ref()).into(),
                next_at.into(),
            ];
            insert.values_panic(row.map(Into::into));
        }
        // The inbox has forgotten the message since; its reply still waits.
        insert.on_conflict(OnConflict::column("id").do_nothing().to_owned());
        transaction.execute(&insert).await?;
    }
    Ok(())
}

/// How many of these go into one statement: at least one.
fn fitting(replies: &[NewReply]) -> usize {
    let mut bytes = 0_usize;
    let fits = replies.iter().take(ROWS_PER_STATEMENT).take_while(|new| {
        let room = bytes < BYTES_PER_STATEMENT;
        bytes = bytes.saturating_add(new.reply.size());
        room
    });
    fits.count()
}

/// A page of the replies to these messages, in the order in which they were stored.
pub(crate) async fn to_messages(
    database: &impl ConnectionTrait,
    subscriber: &str,
    message_keys: &[String],
    after: i64,
    limit: u64,
) -> Result<Vec<Stored>, DbErr> {
    let mut select = select(subscriber, after, limit);
    select.and_where(Expr::col("message_key").is_in(message_keys.iter().cloned()));
    find(database, &select).await
}

/// A page of the replies of these chains, up to the one with the number `last`, in order.
pub(crate) async fn of_chains(
    database: &impl ConnectionTrait,
    subscriber: &str,
    chains: &BTreeSet<Chain>,
    after: i64,
    last: i64,
    limit: u64,
) -> Result<Vec<Stored>, DbErr> {
    let mut by_topic: BTreeMap<&str, Vec<i64>> = BTreeMap::new();
    for (topic, hash) in chains {
        by_topic.entry(topic).or_default().push(*hash);
    }
    let mut any = Condition::any();
    for (topic, hashes) in by_topic {
        let of_topic = Expr::col("topic").eq(topic);
        any = any.add(of_topic.and(Expr::col("key_hash").is_in(hashes)));
    }
    let mut select = select(subscriber, after, limit);
    select.cond_where(any).and_where(Expr::col("seq").lte(last));
    find(database, &select).await
}

/// A page of what nobody has sent in time, in order; with `before`, also whatever was stored before then and
/// what was refused.
pub(crate) async fn left_behind(
    database: &impl ConnectionTrait,
    subscriber: &str,
    after: i64,
    before: Option<DateTime<Utc>>,
    limit: u64,
) -> Result<Vec<Stored>, DbErr> {
    let mut select = select(subscriber, after, limit);
    let mut found = Condition::any().add(Expr::col("next_at").lte(now()));
    if let Some(before) = before {
        let due = before.checked_add_signed(TimeDelta::from_std(GRACE).unwrap_or_default());
        found = found.add(Expr::col("next_at").lte(due.unwrap_or(DateTime::<Utc>::MAX_UTC)));
        found = found.add(Expr::col("cause").is_not_null());
    }
    select.cond_where(found);
    find(database, &select).await
}

/// Whole replies by their numbers, in order; those that are acknowledged meanwhile are left out.
pub(crate) async fn load(
    database: &impl ConnectionTrait,
    seqs: &[i64],
) -> Result<Vec<Unsent>, DbErr> {
    let mut select = Query::select();
    select
        .columns(["seq", "id", "topic", "key", "key_hash", "headers", "payload"])
        .from("reply")
        .and_where(Expr::col("seq").is_in(seqs.iter().copied()))
        .order_by("seq", Order::Asc);
    database.query_all(&select).await?.iter().map(read).collect()
}

/// Forgets replies that are acknowledged.
pub(crate) async fn forget(database: &impl ConnectionTrait, seqs: &[i64]) -> Result<(), DbErr> {
    let mut delete = Query::delete();
    delete.from_table("reply").and_where(Expr::col("seq").is_in(seqs.iter().copied()));
    database.execute(&delete).await.map(|_| ())
}

/// Notes that the broker refuses a reply.
pub(crate) async fn refused(
    database: &impl ConnectionTrait,
    seq: i64,
    cause: &str,
) -> Result<(), DbErr> {
    let mut update = Query::update();
    update
        .table("reply")
        .value("cause", cause_text(cause))
        .value("next_at", after(REFUSED_PAUSE))
        .and_where(Expr::col("seq").eq(seq));
    database.execute(&update).await.map(|_| ())
}

/// How many wait.
pub(crate) async fn count(database: &impl ConnectionTrait, subscriber: &str) -> Result<i64, DbErr> {
    crate::record::count(database, "reply", subscriber).await
}

fn select(subscriber: &str, after: i64, limit: u64) -> SelectStatement {
    Query::select()
        .columns(["seq", "topic", "key_hash", "cause", "next_at"])
        .expr_as(Expr::cust("CAST(COALESCE(LENGTH(payload), 0) AS bigint)"), "bytes")
        .from("reply")
        .and_where(Expr::col("subscriber").eq(subscriber))
        .and_where(Expr::col("seq").gt(after))
        .order_by("seq", Order::Asc)
        .limit(limit)
        .to_owned()
}

async fn find(
    database: &impl ConnectionTrait,
    select: &SelectStatement,
) -> Result<Vec<Stored>, DbErr> {
    let now = now();
    let read = |row: &QueryResult| -> Result<Stored, DbErr> {
        let (topic, hash): (String, Option<i64>) =
            (row.try_get("", "topic")?, row.try_get("", "key_hash")?);
        let cause: Option<String> = row.try_get("", "cause")?;
        let next_at: DateTime<Utc> = row.try_get("", "next_at")?;
        Ok(Stored {
            seq: row.try_get("", "seq")?,
            chain: hash.map(|hash| (topic.clone(), hash)),
            topic,
            bytes: usize::try_from(row.try_get::<i64>("", "bytes")?).unwrap_or_default(),
            refused: cause.is_some() && next_at > now,
        })
    };
    database.query_all(select).await?.iter().map(read).collect()
}

fn read(row: &QueryResult) -> Result<Unsent, DbErr> {
    let id: Uuid = row.try_get("", "id")?;
    let stored: String = row.try_get("", "headers")?;
    let mut headers = headers::read(&stored).map_err(|error| DbErr::Type(error.to_string()))?;
    headers.retain(|(name, _)| name != TRANSACTION_ID_HEADER);
    headers.push((TRANSACTION_ID_HEADER.to_owned(), Some(Bytes::from(id.to_string()))));
    Ok(Unsent {
        seq: row.try_get("", "seq")?,
        id,
        key_hash: row.try_get("", "key_hash")?,
        reply: Reply {
            topic: row.try_get("", "topic")?,
            key: row.try_get::<Option<Vec<u8>>>("", "key")?.map(Bytes::from),
            headers,
            payload: row.try_get::<Option<Vec<u8>>>("", "payload")?.map(Bytes::from),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_statement_has_room_for_so_many() {
        let of = |bytes: usize| NewReply {
            inbox_key: "k".into(),
            index: 0,
            reply: Reply::new("t", vec![0; bytes]),
        };
        let sizes = |bytes: usize, count: usize| fitting(&vec![of(bytes); count]);
        assert_eq!(sizes(0, 1_200), ROWS_PER_STATEMENT);
        assert_eq!(sizes(MAX_REPLY_BYTES, 10), 2);
        assert_eq!(sizes(2 * BYTES_PER_STATEMENT, 10), 1);
        assert_eq!(sizes(10, 7), 7);
    }

    #[test]
    fn a_topic_that_no_broker_takes_is_a_mistake() {
        let mistake = |topic: &str| Reply::new(topic, "").mistake_in_topic();
        for topic in ["stock.outbound", "A_b-9", "...", &"t".repeat(249)] {
            assert_eq!(mistake(topic), None, "{topic}");
        }
        for topic in ["", ".", "..", "a b", "a\0", "ä", "a/b", &"t".repeat(250)] {
            assert!(mistake(topic).is_some(), "{topic}");
        }
    }

    #[test]
    fn the_same_reply_has_the_same_id() {
        let id = reply_id("s", "k", 0);
        assert_eq!(id, reply_id("s", "k", 0));
        assert_eq!(id.get_version_num(), 8);
        for other in [reply_id("s", "k", 1), reply_id("t", "k", 0), reply_id("s", "l", 0)] {
            assert_ne!(id, other);
        }
        // Receivers remember it: it must never change.
        assert_eq!(id.to_string(), "f05e8079-3a99-8974-ad09-18dffe6bd004");
    }
}

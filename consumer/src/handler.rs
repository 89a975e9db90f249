//! What a user of this crate writes.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use sea_orm::{DatabaseTransaction, DbErr};

use crate::message::ReceivedMessage;
use crate::reply::{MAX_REPLIES, MAX_REPLY_BYTES, Reply};

/// Other people's locks count as no attempt of a message whose first failure, of any kind, was less long ago;
/// since it was queued again, if it was a dead letter.
pub const LOCKED_FOR: Duration = Duration::from_secs(600);

/// Something to be done once the transaction is committed.
pub(crate) type Afterwards = Box<dyn FnOnce() + Send>;

/// The replies of a batch, in the order of the calls: it is the order in which those of one key are
/// sent, so nothing here may sort them.
#[derive(Default)]
struct Published {
    replies: Vec<NewReply>,
    /// By inbox key, how many there are: the next one's number.
    counts: HashMap<String, usize>,
}

/// A reply that is to be stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NewReply {
    /// Of the message that it answers.
    pub(crate) inbox_key: String,
    /// Its number among the replies to that message.
    pub(crate) index: usize,
    pub(crate) reply: Reply,
}

/// Where a handler does its work: the transaction in which the inbox has just remembered the
/// messages.
pub struct Context<'a> {
    transaction: &'a DatabaseTransaction,
    batch: &'a [ReceivedMessage],
    /// The inbox keys of the batch, once they are asked for.
    keys: OnceLock<HashSet<String>>,
    afterwards: Mutex<Vec<Afterwards>>,
    replies: Mutex<Published>,
}

impl<'a> Context<'a> {
    /// For the handler of these messages.
    pub(crate) fn new(transaction: &'a DatabaseTransaction, batch: &'a [ReceivedMessage]) -> Self {
        Self {
            transaction,
            batch,
            keys: OnceLock::new(),
            afterwards: Mutex::default(),
            replies: Mutex::default(),
        }
    }

    /// The transaction. Every effect belongs into it, else it may happen twice; no HTTP call and
    /// no sleep belongs into it.
    pub fn transaction(&self) -> &'a DatabaseTransaction {
        self.transaction
    }

    /// Does something, quickly, once the transaction is committed: a line in the log, a counter.
    /// It is lost if the process dies before.
    pub fn after_commit(&self, action: impl FnOnce() + Send + 'static) {
        self.afterwards.lock().unwrap_or_else(PoisonError::into_inner).push(Box::new(action));
    }

    /// Answers a message of this batch. The reply is stored in this transaction and sent after its
    /// commit; the offset is committed once the broker has taken it, or has refused it. What a crash
    /// leaves unsent is sent by whoever comes next; one that is refused (no such topic, no right, too
    /// large) stays and is tried every minute, with the later ones of its key behind it, and holds up
    /// no offset. Replies of one key to messages of one key are sent in the order of the calls.
    ///
    /// It may be sent more than once, always with the same `halfmsg-transaction-id`:
    /// [`reply_id`](crate::reply_id) of the subscriber, the message's
    /// [`inbox_key`](ReceivedMessage::inbox_key) and the number of this reply to it, from 0.
    ///
    /// # Errors
    /// [`HandlerError::Failed`] beyond [`MAX_REPLIES`] replies to a message, or a reply whose topic has a
    /// name that Kafka does not know, or larger than [`MAX_REPLY_BYTES`], or to a message that is not of this batch: nobody would
    /// send it before that one's offset, and it would take the identity of that one's own reply.
    pub fn publish(&self, to: &ReceivedMessage, reply: Reply) -> Result<(), HandlerError> {
        if let Some(mistake) = reply.mistake_in_topic() {
            return Err(HandlerError::Failed(mistake));
        }
        if reply.size() > MAX_REPLY_BYTES {
            let (size, topic) = (reply.size(), &reply.topic);
            return Err(HandlerError::Failed(format!(
                "a reply to topic {topic} has {size} bytes, the limit is {MAX_REPLY_BYTES}"
            )));
        }
        let inbox_key = to.inbox_key();
        if !self.keys().contains(&inbox_key) {
            let ReceivedMessage { topic, partition, offset, .. } = to;
            return Err(HandlerError::Failed(format!(
                "a reply to {topic}-{partition}@{offset} ({inbox_key}), which is not of this batch: \
                 answer the messages that the handler was given"
            )));
        }
        let mut published = self.replies.lock().unwrap_or_else(PoisonError::into_inner);
        let count = published.counts.entry(inbox_key.clone()).or_default();
        if *count >= MAX_REPLIES {
            let most = format!("more than {MAX_REPLIES} replies to one message");
            return Err(HandlerError::Failed(most));
        }
        let index = *count;
        *count += 1;
        published.replies.push(NewReply { inbox_key, index, reply });
        Ok(())
    }

    fn keys(&self) -> &HashSet<String> {
        self.keys.get_or_init(|| self.batch.iter().map(ReceivedMessage::inbox_key).collect())
    }

    /// What is to be stored, in this order, and what is to be done afterwards.
    pub(crate) fn into_parts(self) -> (Vec<NewReply>, Vec<Afterwards>) {
        (
            self.replies.into_inner().unwrap_or_else(PoisonError::into_inner).replies,
            self.afterwards.into_inner().unwrap_or_else(PoisonError::into_inner),
        )
    }
}

/// Why a handler did not succeed; its transaction is rolled back.
#[derive(Debug, thiserror::Error)]
pub enum HandlerError {
    /// The message cannot be understood, now or ever: it becomes a dead letter at once. From a
    /// batch of several, the runtime finds out by itself which one is meant.
    #[error("cannot be decoded: {0}")]
    Undecodable(String),
    /// The database refused. Away: the batch is repeated until it is back, and no attempt counts. Where it
    /// answers and yet says that it cannot work (out of memory, an error of its disk), the messages are handed
    /// out one by one, and one that it cannot handle alone is then as [`HandlerError::Locked`].
    /// A deadlock or a lock that was not to be had: a few quick attempts of the whole batch, then of its
    /// halves; one message alone is then as [`HandlerError::Locked`]. Else as [`HandlerError::Failed`].
    #[error("database: {0}")]
    Database(#[from] DbErr),
    /// Somebody else has locked what these messages need, and nothing was done for the batch: made by
    /// [`HandlerError::locked`]. They make way into the retry table, with
    /// [`KeyOrder::Keep`](crate::KeyOrder) all of the batch that has their keys, and the others are handed
    /// out again at once. It counts as no attempt of theirs, as long as their first failure is not older than
    /// [`LOCKED_FOR`]; the replay of a dead letter begins anew.
    #[error("somebody else holds what {} of the messages need: {cause}", .keys.len())]
    Locked {
        /// The messages, by their [`inbox_key`](ReceivedMessage::inbox_key).
        keys: BTreeSet<String>,
        /// What was met.
        cause: String,
    },
    /// Anything else: a few quick attempts, then the retry table, then a dead letter.
    #[error("{0}")]
    Failed(String),
}

impl HandlerError {
    /// For a handler that knows whose rows somebody else has locked. One that does not may give the
    /// database's error, [`HandlerError::Database`]: the runtime then finds out by itself, at the cost of
    /// as many waits for the lock as it takes to halve the batch down to one message.
    pub fn locked<'a>(
        messages: impl IntoIterator<Item = &'a ReceivedMessage>,
        cause: impl Into<String>,
    ) -> Self {
        let keys = messages.into_iter().map(ReceivedMessage::inbox_key).collect();
        Self::Locked { keys, cause: cause.into() }
    }
}

/// Handles the messages of one topic.
#[async_trait]
pub trait MessageHandler: Send + Sync + 'static {
    /// Handles a batch: messages that the inbox has not seen before, those of one partition in
    /// the order of their offsets.
    ///
    /// It may be called again with the same messages, after its transaction was rolled back, and
    /// in smaller batches. It can be cancelled at any await.
    async fn handle(
        &self,
        context: &Context<'_>,
        batch: &[ReceivedMessage],
    ) -> Result<(), HandlerError>;
}

//! What a user of this crate writes.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use sea_orm::{DatabaseTransaction, DbErr};

use crate::message::ReceivedMessage;
use crate::reply::{MAX_REPLIES, MAX_REPLY_BYTES, Reply};

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
    afterwards: Mutex<Vec<Afterwards>>,
    replies: Mutex<Published>,
}

impl<'a> Context<'a> {
    pub(crate) fn new(transaction: &'a DatabaseTransaction) -> Self {
        Self { transaction, afterwards: Mutex::default(), replies: Mutex::default() }
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
    /// commit, and only then is the offset committed; what a crash leaves unsent is sent by whoever
    /// comes next. Replies of one key to messages of one key are sent in the order of the calls.
    ///
    /// It may be sent more than once, always with the same `halfmsg-transaction-id`:
    /// [`reply_id`](crate::reply_id) of the subscriber, the message's
    /// [`inbox_key`](ReceivedMessage::inbox_key) and the number of this reply to it, from 0.
    ///
    /// # Errors
    /// [`HandlerError::Failed`] beyond [`MAX_REPLIES`] replies to a message, or a reply without a
    /// topic or larger than [`MAX_REPLY_BYTES`].
    pub fn publish(&self, to: &ReceivedMessage, reply: Reply) -> Result<(), HandlerError> {
        if reply.topic.is_empty() {
            return Err(HandlerError::Failed("a reply has no topic".into()));
        }
        if reply.size() > MAX_REPLY_BYTES {
            let (size, topic) = (reply.size(), &reply.topic);
            return Err(HandlerError::Failed(format!(
                "a reply to topic {topic} has {size} bytes, the limit is {MAX_REPLY_BYTES}"
            )));
        }
        let mut published = self.replies.lock().unwrap_or_else(PoisonError::into_inner);
        let inbox_key = to.inbox_key();
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
    /// The database refused. Away: the batch is repeated until it is back, and no attempt counts.
    /// A deadlock or a lock that was not to be had: a few quick attempts of the whole batch. Else,
    /// and after those, as [`HandlerError::Failed`].
    #[error("database: {0}")]
    Database(#[from] DbErr),
    /// Anything else: a few quick attempts, then the retry table, then a dead letter.
    #[error("{0}")]
    Failed(String),
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

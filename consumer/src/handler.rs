//! What a user of this crate writes.

use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use sea_orm::{DatabaseTransaction, DbErr};

use crate::message::ReceivedMessage;

/// Something to be done once the transaction is committed.
pub(crate) type Afterwards = Box<dyn FnOnce() + Send>;

/// Where a handler does its work: the transaction in which the inbox has just remembered the
/// messages.
pub struct Context<'a> {
    transaction: &'a DatabaseTransaction,
    afterwards: Mutex<Vec<Afterwards>>,
}

impl<'a> Context<'a> {
    pub(crate) fn new(transaction: &'a DatabaseTransaction) -> Self {
        Self { transaction, afterwards: Mutex::default() }
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

    pub(crate) fn into_afterwards(self) -> Vec<Afterwards> {
        self.afterwards.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why a handler did not succeed; its transaction is rolled back.
#[derive(Debug, thiserror::Error)]
pub enum HandlerError {
    /// The message cannot be understood, now or ever: it becomes a dead letter at once. From a
    /// batch of several, the runtime finds out by itself which one is meant.
    #[error("cannot be decoded: {0}")]
    Undecodable(String),
    /// The database refused. Away or busy: the batch is repeated and no attempt counts; else as
    /// [`HandlerError::Failed`].
    #[error("database: {0}")]
    Database(#[from] DbErr),
    /// Anything else: retried, and a dead letter after the last attempt.
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

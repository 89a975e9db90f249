//! Several messages of one local transaction: stored before it, decided alike after it.
//!
//! Each is a half message of its own, in the partition of its key and with an identity of its own,
//! by which its consumer deduplicates. They share the identity of the local transaction, by which
//! the check-back asks: so one fence answers for all, also if only some decisions were stored.

use std::time::Instant;

use futures::future::join_all;

use crate::TransactionId;
use crate::error::{DecisionError, Invalid, PrepareError};
use crate::listener::LocalTransactionState;
use crate::message::{HalfMessage, Message};
use crate::producer::TransactionProducer;
use crate::transaction::{LocalOutcome, Receipt, SendResult, Transaction};
use halfmsg_protocol::{Origin, Verdict};

/// The most messages of one transaction.
pub const MAX_MESSAGES: usize = 100;

/// Stored half messages that await one decision. Dropped without it, they are left to the
/// check-back.
#[must_use = "a transaction that is dropped is left to the check-back"]
pub struct TransactionOfSeveral {
    first: Transaction,
    others: Vec<HalfMessage>,
}

impl TransactionProducer {
    /// Stores several half messages that share one local transaction and its decision; the caller
    /// runs it, with [`TransactionOfSeveral::id`] as the key of its fence, and decides.
    ///
    /// They become visible at their topics independently of each other, as transactions of their
    /// store partitions come to their ends. Each takes a place among `max_transactions`, of which there
    /// must be as many.
    ///
    /// # Errors
    /// [`PrepareError`]: do not run the local transaction then. What was stored until then is
    /// rolled back, or answered for by the check-back.
    pub async fn begin_several(
        &self,
        purpose: &str,
        messages: Vec<Message>,
    ) -> Result<TransactionOfSeveral, PrepareError> {
        self.listener(purpose)?;
        // There are no more places than that, however long it waits.
        let (count, most) = (messages.len(), MAX_MESSAGES.min(self.inner.config.max_transactions));
        let places = u32::try_from(count).ok().filter(|_| (1..=most).contains(&count));
        let places = places.ok_or(Invalid::MessageCount { count, most })?;
        let until = self.admit(&messages.iter().collect::<Vec<_>>())?;
        let began = Instant::now();
        let places = self.places(places, until).await?;
        let local = self.new_transaction_id();
        let store = |message| self.store(purpose, message, Some(local), until);
        let stored = join_all(messages.into_iter().map(store)).await;
        let mut halves = Vec::with_capacity(stored.len());
        let mut failed = None;
        for stored in stored {
            match stored {
                Ok(half) => {
                    self.inner.metrics.prepared(began.elapsed());
                    self.inner.life.stored(&half);
                    halves.push(half);
                }
                Err(error) => {
                    self.inner.metrics.prepare_failed();
                    failed.get_or_insert(error);
                }
            }
        }
        if let Some(error) = failed {
            let undo = |half| self.record(half, Verdict::Rollback, Origin::Producer);
            // One that is not stored is the check-back's: the local transaction never runs.
            drop(join_all(halves.iter().map(undo)).await);
            return Err(error);
        }
        let first = Transaction::new(self.clone(), halves.remove(0), places);
        Ok(TransactionOfSeveral { first, others: halves })
    }
}

impl TransactionOfSeveral {
    /// The identity of the local transaction: the key of its fence.
    pub fn id(&self) -> TransactionId {
        self.first.half().local_transaction_id
    }

    /// Where the halves are stored, in the order of the messages.
    pub fn receipts(&self) -> Vec<Receipt> {
        let others = self.others.iter().map(Receipt::of);
        std::iter::once(self.first.receipt()).chain(others).collect()
    }

    /// The local transaction is committed: deliver all of them.
    ///
    /// # Errors
    /// [`DecisionError`] of the first that was not stored: its check-back decides, and finds the
    /// same; or the call is repeated.
    pub async fn commit(&self) -> Result<(), DecisionError> {
        self.decide(Verdict::Commit, Origin::Producer).await
    }

    /// The local transaction is not committed and never will be: drop all of them.
    ///
    /// # Errors
    /// As for [`TransactionOfSeveral::commit`].
    pub async fn rollback(&self) -> Result<(), DecisionError> {
        self.decide(Verdict::Rollback, Origin::Producer).await
    }

    /// Its outcome is not known: the listener's check is asked once now, and decides all of them
    /// if it can. The result is that of the first message.
    pub async fn check(self) -> SendResult {
        let unknown = LocalOutcome::Answered(LocalTransactionState::Unknown);
        let producer = self.first.producer();
        let mut result = producer.decide(self.first.half(), unknown).await;
        let verdict = match result.state {
            LocalTransactionState::Commit => Verdict::Commit,
            LocalTransactionState::Rollback => Verdict::Rollback,
            LocalTransactionState::Unknown => return result,
        };
        let others =
            self.others.iter().map(|half| producer.record(half, verdict, Origin::CheckBack));
        result.decision_recorded &= join_all(others).await.iter().all(Result::is_ok);
        result
    }

    /// Leaves them to the check-back, when it is due.
    pub fn leave_open(self) -> Vec<Receipt> {
        self.receipts()
    }

    async fn decide(&self, verdict: Verdict, origin: Origin) -> Result<(), DecisionError> {
        let producer = self.first.producer();
        let halves = std::iter::once(self.first.half()).chain(&self.others);
        let decided = join_all(halves.map(|half| producer.record(half, verdict, origin))).await;
        decided.into_iter().collect()
    }
}

//! Several messages of one local transaction: stored before it, decided alike after it.
//!
//! Each is a half message of its own, in the partition of its key and with an identity of its own,
//! by which its consumer deduplicates. They share the identity of the local transaction, by which
//! the check-back asks: so one fence answers for all, also if only some decisions were stored. If the
//! caller names the messages, their names make the transaction's: who stores the same again after a
//! restart runs the same local transaction behind the same fence.

use std::time::Instant;

use futures::future::join_all;
use sha2::{Digest, Sha256};
use uuid::{Uuid, Variant, Version};

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
    /// must be as many. Either all of them have an id of the caller's ([`Message::id`]) or none: the ids
    /// make that of the local transaction, whatever their order.
    ///
    /// # Errors
    /// [`PrepareError`]: do not run the local transaction then. What was stored until then is
    /// rolled back, or answered for by the check-back; messages with ids of the caller's always by the
    /// check-back, because their local transaction may have run before.
    pub async fn begin_several(
        &self,
        purpose: &str,
        mut messages: Vec<Message>,
    ) -> Result<TransactionOfSeveral, PrepareError> {
        self.listener(purpose)?;
        // There are no more places than that, however long it waits.
        let (count, most) = (messages.len(), MAX_MESSAGES.min(self.inner.config.max_transactions));
        let places = u32::try_from(count).ok().filter(|_| (1..=most).contains(&count));
        let places = places.ok_or(Invalid::MessageCount { count, most })?;
        let until = self.admit(&messages.iter().collect::<Vec<_>>())?;
        let began = Instant::now();
        let places = self.places(places, until).await;
        let places = places.inspect_err(|error| self.inner.metrics.prepare_failed(error))?;
        let local = local_transaction(&messages)?;
        let are_named = messages.iter().any(|message| message.id.is_some());
        let store = |message| self.store(purpose, message, Some(local), until);
        let stored = join_all(messages.iter_mut().map(store)).await;
        let mut halves = Vec::with_capacity(stored.len());
        let mut failed = None;
        for stored in stored {
            match stored {
                Ok(half) => {
                    self.inner.metrics.prepared(began.elapsed());
                    halves.push(half);
                }
                Err(error) => {
                    self.inner.metrics.prepare_failed(&error);
                    failed.get_or_insert(error);
                }
            }
        }
        if let Some(error) = failed {
            // Those that the caller names may be copies of messages whose local transaction has run
            // before: then a rollback would drop these. What is not rolled back is the check-back's.
            if !are_named {
                let undo = |half| self.record(half, Verdict::Rollback, Origin::Producer);
                drop(join_all(halves.iter().map(undo)).await);
            }
            return Err(error);
        }
        let first = Transaction::new(self.clone(), halves.remove(0), places);
        Ok(TransactionOfSeveral { first, others: halves })
    }
}

/// The identity of the local transaction of these messages: a new one, or, if they have ids of the
/// caller's, what follows from these. Then it begins as the youngest of them, because a fence is kept
/// as long as its key is young.
pub(crate) fn local_transaction(messages: &[Message]) -> Result<TransactionId, Invalid> {
    let mut ids: Vec<TransactionId> = messages.iter().filter_map(|message| message.id).collect();
    ids.sort_unstable();
    let (given, count) = (ids.len(), messages.len());
    let Some(youngest) = ids.last() else { return Ok(TransactionId::from_uuid(Uuid::now_v7())) };
    if given < count {
        return Err(Invalid::SomeIds { given, count });
    }
    let mut hash = Sha256::new();
    ids.iter().for_each(|id| hash.update(id.as_bytes()));
    let mut bytes: [u8; 16] = *youngest.as_bytes();
    bytes[6..].copy_from_slice(&hash.finalize()[..10]);
    let uuid = uuid::Builder::from_bytes(bytes);
    let uuid = uuid.with_version(Version::SortRand).with_variant(Variant::RFC4122);
    Ok(TransactionId::from_uuid(uuid.into_uuid()))
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

    /// The local transaction is committed: deliver all of them, those of one key in the order of the
    /// messages.
    ///
    /// # Errors
    /// [`DecisionError`] of the first that was not stored: its check-back decides, and finds the
    /// same; or the call is repeated.
    pub async fn commit(&self) -> Result<(), DecisionError> {
        self.decide(Verdict::Commit, Origin::Producer).await
    }

    /// The local transaction is not committed and never will be: drop all of them. Not after
    /// `FenceError::AlreadyEntered`: see [`crate::Transaction::rollback`].
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
        // Those of one key are delivered in the order of the messages.
        let decided = join_all(halves.map(|half| producer.record(half, verdict, origin))).await;
        decided.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(id: Option<u128>) -> Message {
        let id = id.map(|id| TransactionId::from_bytes(id.to_be_bytes()));
        Message { id, ..Message::new("topic", "payload") }
    }

    fn local(ids: &[u128]) -> TransactionId {
        let messages: Vec<Message> = ids.iter().map(|id| message(Some(*id))).collect();
        local_transaction(&messages).expect("all have one")
    }

    /// It must be the same in every version: a restart may be an upgrade.
    #[test]
    fn the_ids_make_the_local_transaction() {
        const OLD: u128 = 0x0199_0000_0001_7000_8000_0000_0000_0001;
        const YOUNG: u128 = 0x0199_0000_0002_7000_8000_0000_0000_0002;
        assert_eq!(local(&[OLD, YOUNG]), local(&[YOUNG, OLD]));
        assert_eq!(local(&[OLD, YOUNG]).to_string(), "01990000-0002-7d94-85a8-c752b75a900d");
        assert_ne!(local(&[OLD]), local(&[OLD, YOUNG]));
        assert_ne!(local(&[OLD]), message(Some(OLD)).id.expect("given"), "no message's own");
        let none = [message(None), message(None)];
        assert_ne!(local_transaction(&none), local_transaction(&none));
        let some = local_transaction(&[message(Some(OLD)), message(None)]);
        assert_eq!(some, Err(Invalid::SomeIds { given: 1, count: 2 }));
    }
}

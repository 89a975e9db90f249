//! From a message to its decision, as the real producer goes, with faults at each step.

use std::any::Any;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use halfmsg_protocol::{
    Answer, Body, Checked, Decision, HalfMeta, Origin, Record, TransactionId, Verdict,
};

use super::{Fault, Inner, KitError, TestKit};
use crate::clock;
use crate::error::{DecisionError, Invalid, PrepareError};
use crate::listener::LocalTransactionState;
use crate::message::{HalfMessage, Message};
use crate::several::{MAX_MESSAGES, local_transaction};
use crate::transaction::{LocalOutcome, SendResult, half_ref, verdict};

impl TestKit {
    /// As [`TransactionProducer::send_in_transaction`](crate::TransactionProducer::send_in_transaction).
    ///
    /// # Errors
    /// [`KitError::Prepare`]: the local transaction has not run. [`KitError::Crashed`], if a fault
    /// says so.
    pub async fn send_in_transaction<A: Any + Send>(
        &self,
        purpose: &str,
        message: Message,
        arg: A,
    ) -> Result<SendResult, KitError> {
        let inner = &self.inner;
        let found = inner.checker.listener(purpose).cloned();
        let listener = found.ok_or_else(|| PrepareError::NoListener(purpose.to_owned()))?;
        let arg: Box<dyn Any + Send> = Box::new(arg);
        listener.takes(arg.as_ref()).map_err(|expected| {
            PrepareError::from(Invalid::WrongArgument { purpose: purpose.to_owned(), expected })
        })?;
        let check_after = message.check_after.unwrap_or(inner.config.check_after);
        let half = inner.store(purpose, message, None)?;
        inner.crashes(Fault::CrashAfterHalf)?;
        if inner.alive(|world| world.takes(Fault::CheckFirst))? {
            inner.advance(check_after).await?;
        }
        let dies_at = inner.alive(super::World::takes_crash_during_local)?;
        let mut run = {
            let half = half.clone();
            tokio::spawn(async move { until_wait(dies_at, listener.execute(&half, arg)).await })
        };
        let local = match tokio::time::timeout(inner.config.local_deadline, &mut run).await {
            Ok(Ok(Some(answer))) => LocalOutcome::of(Ok(Ok(answer))),
            Ok(Ok(None)) => {
                inner.alive(|world| world.crashed = true)?;
                return Err(KitError::Crashed);
            }
            Ok(Err(error)) => LocalOutcome::of(Ok(Err(error))),
            Err(late) => LocalOutcome::of(Err(late)),
        };
        inner.crashes(Fault::CrashAfterLocal)?;
        inner.decide(&half, local).await
    }

    /// As [`TransactionProducer::begin`](crate::TransactionProducer::begin).
    ///
    /// # Errors
    /// As [`TestKit::send_in_transaction`].
    pub async fn begin(
        &self,
        purpose: &str,
        message: Message,
    ) -> Result<TestTransaction, KitError> {
        self.inner.listens(purpose)?;
        let half = self.inner.store(purpose, message, None)?;
        self.inner.begun(vec![half]).await
    }

    /// As [`TransactionProducer::begin_several`](crate::TransactionProducer::begin_several). A fault
    /// is about one message: the first that meets it.
    ///
    /// # Errors
    /// As [`TestKit::send_in_transaction`].
    pub async fn begin_several(
        &self,
        purpose: &str,
        messages: Vec<Message>,
    ) -> Result<TestTransaction, KitError> {
        let inner = &self.inner;
        inner.listens(purpose)?;
        let (count, most) = (messages.len(), MAX_MESSAGES.min(inner.config.max_transactions));
        if !(1..=most).contains(&count) {
            return Err(PrepareError::from(Invalid::MessageCount { count, most }).into());
        }
        let local = local_transaction(&messages).map_err(PrepareError::from)?;
        let are_named = messages.iter().any(|message| message.id.is_some());
        let mut halves = Vec::with_capacity(count);
        for message in messages {
            match inner.store(purpose, message, Some(local)) {
                Ok(half) => halves.push(half),
                Err(error) => {
                    // As with the real producer: what the caller names may have run before.
                    for half in halves.iter().filter(|_| !are_named) {
                        // Lost, it is the check-back's.
                        drop(inner.record(half, Verdict::Rollback, Origin::Producer)?);
                    }
                    return Err(error);
                }
            }
        }
        inner.begun(halves).await
    }
}

/// One or several stored half messages that await one decision. Dropped without it, they are left
/// to the check-back.
#[must_use = "a transaction that is dropped is left to the check-back"]
pub struct TestTransaction {
    kit: Arc<Inner>,
    halves: Vec<HalfMessage>,
}

impl TestTransaction {
    /// The identity of the local transaction: the key of its fence.
    pub fn id(&self) -> TransactionId {
        self.halves[0].local_transaction_id
    }

    /// The halves as a listener would see them, in the order of the messages.
    pub fn halves(&self) -> &[HalfMessage] {
        &self.halves
    }

    /// The local transaction is committed. False if the decision is lost: the check-back decides.
    ///
    /// # Errors
    /// [`KitError::Crashed`].
    pub async fn commit(&self) -> Result<bool, KitError> {
        self.decide(Verdict::Commit).await
    }

    /// The local transaction is not committed and never will be. False as above.
    ///
    /// # Errors
    /// [`KitError::Crashed`].
    pub async fn rollback(&self) -> Result<bool, KitError> {
        self.decide(Verdict::Rollback).await
    }

    /// Its outcome is not known: the listener is asked now.
    ///
    /// # Errors
    /// [`KitError::Crashed`].
    pub async fn check(&self) -> Result<SendResult, KitError> {
        let unknown = LocalOutcome::Answered(LocalTransactionState::Unknown);
        let result = self.kit.decide(&self.halves[0], unknown).await?;
        if let Some(verdict) = verdict(result.state) {
            for half in &self.halves[1..] {
                drop(self.kit.record(half, verdict, Origin::CheckBack)?);
            }
        }
        self.kit.run().await?;
        Ok(result)
    }

    async fn decide(&self, verdict: Verdict) -> Result<bool, KitError> {
        self.kit.crashes(Fault::CrashAfterLocal)?;
        let mut stored = true;
        for half in &self.halves {
            stored &= self.kit.record(half, verdict, Origin::Producer)?.is_ok();
        }
        self.kit.run().await?;
        Ok(stored)
    }
}

impl Inner {
    fn listens(&self, purpose: &str) -> Result<(), PrepareError> {
        let found = self.checker.listener(purpose);
        found.map(|_| ()).ok_or_else(|| PrepareError::NoListener(purpose.to_owned()))
    }

    async fn begun(
        self: &Arc<Self>,
        halves: Vec<HalfMessage>,
    ) -> Result<TestTransaction, KitError> {
        self.crashes(Fault::CrashAfterHalf)?;
        self.run().await?;
        Ok(TestTransaction { kit: Arc::clone(self), halves })
    }

    fn store(
        &self,
        purpose: &str,
        message: Message,
        local: Option<TransactionId>,
    ) -> Result<HalfMessage, KitError> {
        let config = &self.config;
        let least = config.prepare_deadline + config.local_deadline;
        let most = config.longest_check_after();
        message.validate(config.max_message_bytes, least, most).map_err(PrepareError::from)?;
        if self.alive(|world| world.takes(Fault::PrepareFails))? {
            return Err(self.unavailable(None).into());
        }
        if let Some(id) = message.id.filter(|id| !self.used.take(*id)) {
            return Err(PrepareError::from(Invalid::IdUsed(id)).into());
        }
        let id = message.id.unwrap_or_else(|| TransactionId::from_uuid(uuid::Uuid::now_v7()));
        let record = Record::Half(Arc::new(HalfMeta {
            id,
            application: config.application.clone(),
            purpose: purpose.to_owned(),
            topic: message.topic.clone(),
            timestamp_ms: message.timestamp_ms.unwrap_or_else(clock::wall_ms),
            check_after: message.check_after,
            local_transaction: local,
        }));
        let stays_with = message.stays_with().map(<[u8]>::to_vec);
        let Message { topic, key, headers, payload, .. } = message;
        let body = Body { key: key.clone(), headers: headers.clone(), payload: payload.clone() };
        let (partition, offset, unheard) = self.alive(|world| {
            let partition = self.partitioner.choose(stays_with.as_deref(), world.partitions());
            let offset = world.append(partition, &record, body);
            (partition, offset, world.takes(Fault::PrepareUnacknowledged))
        })?;
        if unheard {
            return Err(self.unavailable(Some(id)).into());
        }
        Ok(HalfMessage {
            transaction_id: id,
            local_transaction_id: local.unwrap_or(id),
            purpose: purpose.to_owned(),
            topic,
            key,
            headers,
            payload,
            partition,
            offset,
            epoch: 0,
            attempts: 0,
        })
    }

    fn unavailable(&self, transaction_id: Option<TransactionId>) -> PrepareError {
        let (deadline, reason) = (self.config.prepare_deadline, "injected by the test".to_owned());
        PrepareError::Unavailable { deadline, reason, transaction_id }
    }

    /// Records what the local transaction said, or what its check says; delivers what follows.
    async fn decide(
        &self,
        half: &HalfMessage,
        local: LocalOutcome,
    ) -> Result<SendResult, KitError> {
        let (state, origin) = match &local {
            LocalOutcome::Answered(state) if verdict(*state).is_some() => {
                (*state, Origin::Producer)
            }
            _ => (self.check_at_once(half).await?, Origin::CheckBack),
        };
        let decision_recorded = match verdict(state) {
            Some(verdict) => self.record(half, verdict, origin)?.is_ok(),
            None => false,
        };
        self.run().await?;
        let &HalfMessage { transaction_id, partition, offset, .. } = half;
        Ok(SendResult { transaction_id, partition, offset, local, state, decision_recorded })
    }

    async fn check_at_once(&self, half: &HalfMessage) -> Result<LocalTransactionState, KitError> {
        let answer = self.checker.ask_one(self.asked(half.clone())).await;
        let of = half_ref(half);
        let checked = Record::Checked(match answer {
            Answer::Commit => return Ok(LocalTransactionState::Commit),
            Answer::Rollback => return Ok(LocalTransactionState::Rollback),
            Answer::NotAsked(_) => return Ok(LocalTransactionState::Unknown),
            Answer::Unknown(reason) => Checked::unknown(of, half.attempts, reason),
            Answer::Failed(reason) => Checked::failed(of, half.attempts, reason),
        });
        self.alive(|world| world.append(half.partition, &checked, Body::default()))?;
        Ok(LocalTransactionState::Unknown)
    }

    /// Stores a decision, unless it is to be lost.
    fn record(
        &self,
        half: &HalfMessage,
        verdict: Verdict,
        origin: Origin,
    ) -> Result<Result<(), DecisionError>, KitError> {
        let of = half_ref(half);
        let decision = |verdict| {
            let reason = String::new();
            Record::Decision(Decision { of, verdict, origin, operator: None, reason })
        };
        let opposite = match verdict {
            Verdict::Commit => Verdict::Rollback,
            Verdict::Rollback => Verdict::Commit,
        };
        self.alive(|world| {
            if world.takes(Fault::DecisionLost) {
                let transaction_id = half.transaction_id;
                let reason = "injected by the test".to_owned();
                return Err(DecisionError { transaction_id, reason });
            }
            world.append(half.partition, &decision(verdict), Body::default());
            if world.takes(Fault::ContradictingDecision) {
                world.append(half.partition, &decision(opposite), Body::default());
            }
            Ok(())
        })
    }
}

/// The future's output, or nothing if it waits for the so many-th time: it is dropped there.
async fn until_wait<T>(waits: Option<u32>, work: impl Future<Output = T>) -> Option<T> {
    let mut work = pin!(work);
    let mut waited = 0;
    poll_fn(|context| match work.as_mut().poll(context) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => {
            waited += 1;
            if waits.is_some_and(|waits| waited >= waits) {
                Poll::Ready(None)
            } else {
                Poll::Pending
            }
        }
    })
    .await
}

//! From a stored half message to its recorded decision.

use std::time::Instant;

use halfmsg_protocol::{
    Answer, Checked, Decision, HalfOffset, HalfRef, Origin, Record, Verdict, codec,
};
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinError;
use tokio::time::error::Elapsed;

use crate::TransactionId;
use crate::checker::Asked;
use crate::config::CrashPoint;
use crate::error::DecisionError;
use crate::listener::{ListenerResult, LocalTransactionState};
use crate::log::{Part, Way};
use crate::message::HalfMessage;
use crate::producer::TransactionProducer;
use crate::{life, spans};

/// Where a half message is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Receipt {
    /// Its identity.
    pub transaction_id: TransactionId,
    /// The store's partition.
    pub partition: i32,
    /// The offset of its HALF record.
    pub offset: i64,
}

/// How a local transaction ended, as far as its own call told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LocalOutcome {
    /// It said so itself.
    Answered(LocalTransactionState),
    /// It failed or panicked.
    Failed(String),
    /// It took longer than the local deadline, and goes on.
    TimedOut,
}

/// What became of a message sent by [`TransactionProducer::send_in_transaction`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SendResult {
    /// Its identity.
    pub transaction_id: TransactionId,
    /// The store's partition.
    pub partition: i32,
    /// The offset of its HALF record.
    pub offset: i64,
    /// What the local transaction's call gave.
    pub local: LocalOutcome,
    /// What is known now, after the immediate check if one was made.
    pub state: LocalTransactionState,
    /// Whether the decision is stored; if not, the check-back decides.
    pub decision_recorded: bool,
}

/// What the task of a local transaction gave, or that it takes too long.
pub(crate) type LocalEnd =
    Result<Result<ListenerResult<LocalTransactionState>, JoinError>, Elapsed>;

impl LocalOutcome {
    pub(crate) fn of(end: LocalEnd) -> Self {
        match end {
            Ok(Ok(Ok(state))) => Self::Answered(state),
            Ok(Ok(Err(error))) => Self::Failed(error.to_string()),
            Ok(Err(error)) if error.is_panic() => Self::Failed("it panicked".into()),
            Ok(Err(_)) => Self::Failed("it was cancelled".into()),
            Err(_) => Self::TimedOut,
        }
    }
}

impl Receipt {
    pub(crate) fn of(half: &HalfMessage) -> Self {
        let &HalfMessage { transaction_id, partition, offset, .. } = half;
        Self { transaction_id, partition, offset }
    }
}

impl TransactionProducer {
    /// Records what the local transaction said, or what its check says.
    pub(crate) async fn decide(&self, half: &HalfMessage, local: LocalOutcome) -> SendResult {
        self.inner.life.local_transaction(half, &local);
        let (state, origin) = match &local {
            LocalOutcome::Answered(LocalTransactionState::Commit) => {
                (LocalTransactionState::Commit, Origin::Producer)
            }
            LocalOutcome::Answered(LocalTransactionState::Rollback) => {
                (LocalTransactionState::Rollback, Origin::Producer)
            }
            _ => (self.check_at_once(half).await, Origin::CheckBack),
        };
        let recorded = match verdict(state) {
            Some(verdict) => self.record(half, verdict, origin).await.is_ok(),
            None => false,
        };
        SendResult {
            transaction_id: half.transaction_id,
            partition: half.partition,
            offset: half.offset,
            local,
            state,
            decision_recorded: recorded,
        }
    }

    /// The way of the next HALF or decision. Those of several messages of one transaction have company, and
    /// keep their order.
    pub(crate) fn way(&self, is_of_several: bool) -> Way {
        if is_of_several {
            return Way::Prompt;
        }
        let free = self.inner.places.available_permits();
        self.inner.log.way(self.inner.config.max_transactions.saturating_sub(free))
    }

    /// The immediate check after a local transaction whose outcome is not known. What does not decide
    /// is told to the log like any other.
    async fn check_at_once(&self, half: &HalfMessage) -> LocalTransactionState {
        let application = self.inner.config.application.clone();
        let answer = self.inner.checker.ask_one(Asked { application, half: half.clone() }).await;
        self.inner.metrics.checked(&answer);
        self.inner.life.checked(half.transaction_id, half.key.as_deref(), &answer);
        let of = half_ref(half);
        let checked = Record::Checked(match answer {
            Answer::Commit => return LocalTransactionState::Commit,
            Answer::Rollback => return LocalTransactionState::Rollback,
            Answer::NotAsked(_) => return LocalTransactionState::Unknown,
            Answer::Unknown(reason) => Checked::unknown(of, half.attempts, reason),
            Answer::Failed(reason) => Checked::failed(of, half.attempts, reason),
        });
        let deadline = self.inner.config.decision_deadline;
        let body = Default::default();
        let appended = self.inner.log.append_within(half.partition, &checked, &body, deadline);
        if let Err(error) = appended.await {
            let key = life::text(half.key.as_deref());
            let transaction_id = half.transaction_id;
            tracing::warn!(%transaction_id, key, %error, "a check was not told to the log");
        }
        LocalTransactionState::Unknown
    }

    /// Records a decision.
    pub(crate) async fn record(
        &self,
        half: &HalfMessage,
        verdict: Verdict,
        origin: Origin,
    ) -> Result<(), DecisionError> {
        let inner = &self.inner;
        let until = Instant::now() + inner.config.decision_deadline;
        let parent = spans::carried_by(&half.headers);
        let span = |parent| Box::new(spans::decision(half, &parent, verdict, origin));
        let mut span = parent.map(span);
        let sent = {
            let (of, reason) = (half_ref(half), String::new());
            let decision = Decision { of, verdict, origin, operator: None, reason };
            let packed = codec::encode(&Record::Decision(decision));
            let is_of_several = half.local_transaction_id != half.transaction_id;
            inner.log.sent(self.way(is_of_several), half.partition, &packed, Part::default())
        };
        match inner.log.acked(&sent, until).await {
            Ok(_) => {
                inner.metrics.decided(origin, verdict);
                inner.life.decided(half, verdict.as_str(), origin.as_str());
                if inner.config.crash_at == Some(CrashPoint::AfterDecision) {
                    let key = life::text(half.key.as_deref());
                    let transaction_id = half.transaction_id;
                    tracing::error!(%transaction_id, key, "aborting after a decision, as configured");
                    std::process::abort();
                }
                Ok(())
            }
            Err(error) => {
                let transaction_id = half.transaction_id;
                let error = DecisionError { transaction_id, reason: error.to_string() };
                if let Some(span) = &mut span {
                    halfmsg_traces::failed(span, "not_stored", &error.reason);
                }
                tracing::warn!(%transaction_id, key = life::text(half.key.as_deref()), "{error}");
                Err(error)
            }
        }
    }
}

/// A stored half message that awaits its decision. Dropped without one, it is left to the
/// check-back.
#[must_use = "a transaction that is dropped is left to the check-back"]
pub struct Transaction {
    producer: TransactionProducer,
    half: HalfMessage,
    _place: OwnedSemaphorePermit,
}

impl Transaction {
    pub(crate) fn new(
        producer: TransactionProducer,
        half: HalfMessage,
        place: OwnedSemaphorePermit,
    ) -> Self {
        Self { producer, half, _place: place }
    }

    /// Where the half is stored.
    pub fn receipt(&self) -> Receipt {
        Receipt::of(&self.half)
    }

    pub(crate) fn producer(&self) -> &TransactionProducer {
        &self.producer
    }

    /// The half as a listener would see it.
    pub fn half(&self) -> &HalfMessage {
        &self.half
    }

    /// The local transaction is committed: deliver the message.
    ///
    /// # Errors
    /// [`DecisionError`]: the check-back decides, or the call is repeated.
    pub async fn commit(&self) -> Result<(), DecisionError> {
        self.producer.record(&self.half, Verdict::Commit, Origin::Producer).await
    }

    /// The local transaction is not committed and never will be: drop the message.
    ///
    /// Not after `FenceError::AlreadyEntered`: a message that was prepared again under an id of the
    /// caller's shares the decision of the first, whose local transaction has committed. Roll the
    /// database's transaction back and call [`Transaction::check`] or [`Transaction::leave_open`].
    ///
    /// # Errors
    /// [`DecisionError`]: the check-back decides, or the call is repeated.
    pub async fn rollback(&self) -> Result<(), DecisionError> {
        self.producer.record(&self.half, Verdict::Rollback, Origin::Producer).await
    }

    /// Its outcome is not known: the listener's check is asked now, and decides if it can.
    pub async fn check(self) -> SendResult {
        self.producer
            .decide(&self.half, LocalOutcome::Answered(LocalTransactionState::Unknown))
            .await
    }

    /// Leaves it to the check-back, when it is due.
    pub fn leave_open(self) -> Receipt {
        self.receipt()
    }
}

pub(crate) fn verdict(state: LocalTransactionState) -> Option<Verdict> {
    match state {
        LocalTransactionState::Commit => Some(Verdict::Commit),
        LocalTransactionState::Rollback => Some(Verdict::Rollback),
        LocalTransactionState::Unknown => None,
    }
}

pub(crate) fn half_ref(half: &HalfMessage) -> HalfRef {
    HalfRef {
        id: half.transaction_id,
        half: HalfOffset(half.offset),
        epoch: halfmsg_protocol::Epoch(half.epoch),
    }
}

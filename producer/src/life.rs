//! Each step in the life of a half message: a readable line on the target `halfmsg::life`, and the
//! observer, if there is one. Nothing may depend on either.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use halfmsg_protocol::{Answer, Decision, Half, ParkedHalf, Reopen, TransactionId};
use tracing::field::{DisplayValue, display};

use crate::clock;
use crate::message::HalfMessage;
use crate::observe::{LifeEvent, LifeObserver, LifeStep};
use crate::transaction::LocalOutcome;

const TARGET: &str = "halfmsg::life";

/// An ordering key as a field of a line, if it is text.
pub(crate) fn text(key: Option<&[u8]>) -> Option<DisplayValue<&str>> {
    std::str::from_utf8(key?).ok().map(display)
}

/// A record of the store, and since when it stands there.
#[derive(Debug)]
pub(crate) struct Read<R> {
    /// Milliseconds since the epoch.
    pub(crate) at_ms: i64,
    pub(crate) record: R,
}

/// Tells the steps. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Life {
    observer: Option<Arc<dyn LifeObserver>>,
}

impl Life {
    pub(crate) fn new(observer: Option<Arc<dyn LifeObserver>>) -> Self {
        Self { observer }
    }

    /// Whether it is worth keeping what only an observer wants.
    pub(crate) fn is_observed(&self) -> bool {
        self.observer.is_some()
    }

    /// It happens now.
    fn observe(&self, transaction_id: TransactionId, key: Option<&[u8]>, step: LifeStep<'_>) {
        if self.is_observed() {
            self.observe_at(Some(clock::wall_ms()), transaction_id, key, step);
        }
    }

    fn observe_at(
        &self,
        at_ms: Option<i64>,
        transaction_id: TransactionId,
        key: Option<&[u8]>,
        step: LifeStep<'_>,
    ) {
        let Some(observer) = &self.observer else { return };
        let event = LifeEvent { transaction_id, key, at_ms, step };
        // Whatever is wrong with it, messages go on being delivered.
        if catch_unwind(AssertUnwindSafe(|| observer.observe(&event))).is_err() {
            tracing::error!(%transaction_id, key = text(key), "the observer of half messages panicked");
        }
    }

    /// `at_ms`: of the record.
    pub(crate) fn stored(&self, half: &HalfMessage, at_ms: i64) {
        tracing::info!(
            target: TARGET,
            transaction_id = %half.transaction_id, key = text(half.key.as_deref()),
            "half message stored for topic {} (purpose {}, partition {}, offset {})",
            half.topic, half.purpose, half.partition, half.offset
        );
        let &HalfMessage { partition, offset, .. } = half;
        let step =
            LifeStep::Stored { purpose: &half.purpose, topic: &half.topic, partition, offset };
        self.observe_at(Some(at_ms), half.transaction_id, half.key.as_deref(), step);
    }

    pub(crate) fn local_transaction(&self, half: &HalfMessage, outcome: &LocalOutcome) {
        let step = LifeStep::LocalTransaction { outcome };
        self.observe(half.transaction_id, half.key.as_deref(), step);
    }

    /// The decision is stored. Whether it is the first, the partition's owner reads and tells.
    pub(crate) fn decided(&self, half: &HalfMessage, verdict: &str, by: &str) {
        tracing::info!(
            target: TARGET,
            transaction_id = %half.transaction_id, key = text(half.key.as_deref()),
            "{verdict} decided by {by}"
        );
    }

    pub(crate) fn checked(&self, id: TransactionId, key: Option<&[u8]>, answer: &Answer) {
        self.answered(id, key, answer);
        if let Some((answer, reason)) = words(answer) {
            self.observe(id, key, LifeStep::Checked { answer, reason });
        }
    }

    /// The answer may come too late: the message was decided meanwhile.
    pub(crate) fn answered(&self, id: TransactionId, key: Option<&[u8]>, answer: &Answer) {
        let Some((answer, reason)) = words(answer) else { return };
        let said = if reason.is_empty() { answer } else { reason };
        tracing::info!(
            target: TARGET,
            transaction_id = %id, key = text(key),
            "check-back asked; answer: {said}"
        );
    }

    /// `decision`: the record that was read, and its time, if it was kept for an observer.
    pub(crate) fn delivering(&self, half: &Half, decision: Option<&Read<Decision>>) {
        tracing::info!(
            target: TARGET,
            transaction_id = %half.meta.id, key = text(half.body.key.as_deref()),
            "committed: delivering to topic {}", half.meta.topic
        );
        self.decision_read(half, decision);
    }

    /// `at_ms`: none if it may have been delivered before.
    pub(crate) fn delivered(&self, half: &Half, at_ms: Option<i64>) {
        let step = LifeStep::Delivered { topic: &half.meta.topic };
        self.observe_at(at_ms, half.meta.id, half.body.key.as_deref(), step);
    }

    pub(crate) fn dropped(
        &self,
        half: &Half,
        by: &'static str,
        reason: &str,
        decision: Option<&Read<Decision>>,
    ) {
        let why = if reason.is_empty() { String::new() } else { format!(": {reason}") };
        tracing::info!(
            target: TARGET,
            transaction_id = %half.meta.id, key = text(half.body.key.as_deref()),
            "rolled back by {by}: dropped{why}"
        );
        self.decision_read(half, decision);
        if let Some(Read { at_ms, .. }) = decision {
            let key = half.body.key.as_deref();
            self.observe_at(Some(*at_ms), half.meta.id, key, LifeStep::Dropped);
        }
    }

    pub(crate) fn parked(&self, parked: &ParkedHalf) {
        let (cause, reason) = (parked.cause.as_str(), parked.reason.as_str());
        tracing::warn!(
            target: TARGET,
            transaction_id = %parked.half.meta.id, key = text(parked.half.body.key.as_deref()),
            "parked ({cause}): {reason}; an operator decides"
        );
        let key = parked.half.body.key.as_deref();
        let (at_ms, step) = (Some(parked.parked_ms), LifeStep::Parked { cause, reason });
        self.observe_at(at_ms, parked.half.meta.id, key, step);
    }

    pub(crate) fn reopened(&self, half: &Half, reopen: &Read<Reopen>) {
        let Read { at_ms, record: Reopen { operator, reason, .. } } = reopen;
        let step = LifeStep::Reopened { operator, reason };
        self.observe_at(Some(*at_ms), half.meta.id, half.body.key.as_deref(), step);
    }

    fn decision_read(&self, half: &Half, decision: Option<&Read<Decision>>) {
        let Some(Read { at_ms, record }) = decision else { return };
        let Decision { verdict, origin, operator, reason, .. } = record;
        let step = LifeStep::Decided {
            verdict: *verdict,
            by: *origin,
            operator: operator.as_deref(),
            reason,
        };
        self.observe_at(Some(*at_ms), half.meta.id, half.body.key.as_deref(), step);
    }
}

/// Nothing if nobody was asked.
fn words(answer: &Answer) -> Option<(&'static str, &str)> {
    match answer {
        Answer::Commit => Some(("commit", "")),
        Answer::Rollback => Some(("rollback", "")),
        Answer::Unknown(reason) => Some(("unknown", reason)),
        Answer::Failed(reason) => Some(("failed", reason)),
        Answer::NotAsked(_) => None,
    }
}

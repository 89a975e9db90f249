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

    fn observe(&self, transaction_id: TransactionId, key: Option<&[u8]>, step: LifeStep<'_>) {
        let Some(observer) = &self.observer else { return };
        let event = LifeEvent { transaction_id, key, at_ms: clock::wall_ms(), step };
        // Whatever is wrong with it, messages go on being delivered.
        if catch_unwind(AssertUnwindSafe(|| observer.observe(&event))).is_err() {
            tracing::error!(%transaction_id, "the observer of half messages panicked");
        }
    }

    pub(crate) fn stored(&self, half: &HalfMessage) {
        tracing::info!(
            target: TARGET,
            transaction_id = %half.transaction_id, key = text(half.key.as_deref()),
            "half message stored for topic {} (purpose {}, partition {}, offset {})",
            half.topic, half.purpose, half.partition, half.offset
        );
        let &HalfMessage { partition, offset, .. } = half;
        let step =
            LifeStep::Stored { purpose: &half.purpose, topic: &half.topic, partition, offset };
        self.observe(half.transaction_id, half.key.as_deref(), step);
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

    /// `decision`: the record that was read, if it was kept for an observer.
    pub(crate) fn delivering(&self, half: &Half, decision: Option<&Decision>) {
        tracing::info!(
            target: TARGET,
            transaction_id = %half.meta.id, key = text(half.body.key.as_deref()),
            "committed: delivering to topic {}", half.meta.topic
        );
        self.decision_read(half, decision);
    }

    pub(crate) fn delivered(&self, half: &Half) {
        let step = LifeStep::Delivered { topic: &half.meta.topic };
        self.observe(half.meta.id, half.body.key.as_deref(), step);
    }

    pub(crate) fn dropped(
        &self,
        half: &Half,
        by: &'static str,
        reason: &str,
        decision: Option<&Decision>,
    ) {
        let why = if reason.is_empty() { String::new() } else { format!(": {reason}") };
        tracing::info!(
            target: TARGET,
            transaction_id = %half.meta.id, key = text(half.body.key.as_deref()),
            "rolled back by {by}: dropped{why}"
        );
        self.decision_read(half, decision);
        self.observe(half.meta.id, half.body.key.as_deref(), LifeStep::Dropped);
    }

    pub(crate) fn parked(&self, parked: &ParkedHalf) {
        let (cause, reason) = (parked.cause.as_str(), parked.reason.as_str());
        tracing::warn!(
            target: TARGET,
            transaction_id = %parked.half.meta.id, key = text(parked.half.body.key.as_deref()),
            "parked ({cause}): {reason}; an operator decides"
        );
        let key = parked.half.body.key.as_deref();
        self.observe(parked.half.meta.id, key, LifeStep::Parked { cause, reason });
    }

    pub(crate) fn reopened(&self, half: &Half, reopen: &Reopen) {
        let Reopen { operator, reason, .. } = reopen;
        self.observe(
            half.meta.id,
            half.body.key.as_deref(),
            LifeStep::Reopened { operator, reason },
        );
    }

    fn decision_read(&self, half: &Half, decision: Option<&Decision>) {
        let Some(Decision { verdict, origin, operator, reason, .. }) = decision else { return };
        let step = LifeStep::Decided {
            verdict: *verdict,
            by: *origin,
            operator: operator.as_deref(),
            reason,
        };
        self.observe(half.meta.id, half.body.key.as_deref(), step);
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

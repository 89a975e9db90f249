//! The durations among the settings: each has its bounds, and together they must leave a local
//! transaction its time before the first check.

use std::time::Duration;

use halfmsg_producer::{Backoff, ProducerConfig};
use halfmsg_service_kit::Mistakes;

use super::{MILLIS, Settings};

/// The durations, each within its own bounds.
pub(super) struct Times {
    pub(super) prepare: Duration,
    pub(super) local: Duration,
    pub(super) decision: Duration,
    pub(super) store: Duration,
    pub(super) stock: Duration,
    pub(super) check_after: Duration,
    pub(super) check_interval: Duration,
    pub(super) answer: Duration,
    pub(super) lease: Duration,
}

impl Times {
    /// Reads them; nothing if one is out of bounds.
    pub(super) fn read(settings: &Settings, mistakes: &mut Mistakes) -> Option<Self> {
        let mut millis = |name, raw| mistakes.millis(name, raw, MILLIS);
        let prepare = millis("HALFMSG_PREPARE_DEADLINE_MS", &settings.prepare_deadline_ms);
        let local = millis("HALFMSG_LOCAL_DEADLINE_MS", &settings.local_deadline_ms);
        let decision = millis("HALFMSG_DECISION_DEADLINE_MS", &settings.decision_deadline_ms);
        let store = millis("HALFMSG_STORE_TIMEOUT_MS", &settings.store_timeout_ms);
        let stock = millis("HALFMSG_STOCK_DEADLINE_MS", &settings.stock_deadline_ms);
        let check_after = millis("HALFMSG_CHECK_AFTER_MS", &settings.check_after_ms);
        let check_interval = millis("HALFMSG_CHECK_INTERVAL_MS", &settings.check_interval_ms);
        let answer = millis("HALFMSG_ANSWER_DEADLINE_MS", &settings.answer_deadline_ms);
        let lease = millis("HALFMSG_IDEMPOTENCY_LEASE_MS", &settings.idempotency_lease_ms);
        Some(Self {
            prepare: prepare?,
            local: local?,
            decision: decision?,
            store: store?,
            stock: stock?,
            check_after: check_after?,
            check_interval: check_interval?,
            answer: answer?,
            lease: lease?,
        })
    }

    /// Checks them against each other.
    pub(super) fn check(&self, mistakes: &mut Mistakes) {
        let Self { prepare, local, decision, store, stock, check_after, lease, .. } = *self;
        if store < prepare.max(decision) {
            mistakes.add(format!(
                "HALFMSG_STORE_TIMEOUT_MS ({store:?}) must be at least as long as the prepare \
                 ({prepare:?}) and the decision deadline ({decision:?})"
            ));
        }
        if stock >= local {
            mistakes.add(format!(
                "HALFMSG_STOCK_DEADLINE_MS ({stock:?}) must be less than \
                 HALFMSG_LOCAL_DEADLINE_MS ({local:?}): no time would be left to store the order"
            ));
        }
        if prepare + local >= check_after {
            mistakes.add(format!(
                "HALFMSG_PREPARE_DEADLINE_MS ({prepare:?}) + HALFMSG_LOCAL_DEADLINE_MS ({local:?}) \
                 must be less than HALFMSG_CHECK_AFTER_MS ({check_after:?}): a check would race \
                 every slow order"
            ));
        }
        if lease <= prepare + local + decision {
            mistakes.add(format!(
                "HALFMSG_IDEMPOTENCY_LEASE_MS ({lease:?}) must be more than the prepare, local and \
                 decision deadlines together: a repeated request would void a running order"
            ));
        }
    }

    /// The producer's settings with them.
    pub(super) fn producer(&self, defaults: ProducerConfig) -> ProducerConfig {
        let initial = self.check_interval;
        let max = defaults.check_backoff.max.max(initial);
        ProducerConfig {
            prepare_deadline: self.prepare,
            local_deadline: self.local,
            decision_deadline: self.decision,
            store_timeout: self.store,
            check_after: self.check_after,
            check_backoff: Backoff { initial, max },
            ..defaults
        }
    }
}

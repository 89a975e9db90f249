//! The closed halves of a partition that are remembered: to tell a repeated decision from a
//! contradicting one, and to show what became of a message.

use std::collections::{HashMap, VecDeque};

use super::Open;
use crate::ids::{Epoch, HalfOffset, TransactionId};
use crate::record::{Decision, Origin, Verdict};

/// How many closed halves a partition remembers; the oldest is forgotten first.
pub const CLOSED_KEPT: usize = 100_000;

/// A half message that was decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Closed {
    /// Its identity.
    pub id: TransactionId,
    /// The offset of its HALF record.
    pub half: HalfOffset,
    /// The kind of local transaction.
    pub purpose: String,
    /// The target topic.
    pub topic: String,
    /// Which way it went.
    pub verdict: Verdict,
    /// Who decided.
    pub origin: Origin,
    /// Why.
    pub reason: String,
    /// Real attempts to ask before it was decided.
    pub attempts: u32,
    /// The life in which it was decided.
    pub epoch: Epoch,
    /// When it was stored, milliseconds since the epoch.
    pub stored_ms: i64,
    /// The offset of the decision.
    pub decided_at: i64,
    /// When the decision was appended, milliseconds since the epoch.
    pub decided_ms: i64,
}

impl Closed {
    pub(super) fn new(open: &Open, decision: Decision, decided_at: i64, decided_ms: i64) -> Self {
        Self {
            id: decision.of.id,
            half: decision.of.half,
            purpose: open.half.meta.purpose.clone(),
            topic: open.half.meta.topic.clone(),
            verdict: decision.verdict,
            origin: decision.origin,
            reason: decision.reason,
            attempts: open.attempts,
            epoch: open.epoch,
            stored_ms: open.appended_ms,
            decided_at,
            decided_ms,
        }
    }
}

/// The newest [`CLOSED_KEPT`] closed halves.
#[derive(Debug, Default)]
pub(super) struct ClosedRing {
    by_half: HashMap<HalfOffset, Closed>,
    order: VecDeque<(HalfOffset, i64)>,
}

impl ClosedRing {
    pub(super) fn push(&mut self, closed: Closed) {
        self.order.push_back((closed.half, closed.decided_at));
        self.by_half.insert(closed.half, closed);
        while self.order.len() > CLOSED_KEPT {
            let Some((half, decided_at)) = self.order.pop_front() else { break };
            // A reopened half may stand in the order twice; only its last decision counts.
            if self.by_half.get(&half).is_some_and(|closed| closed.decided_at == decided_at) {
                self.by_half.remove(&half);
            }
        }
    }

    pub(super) fn get(&self, half: HalfOffset) -> Option<&Closed> {
        self.by_half.get(&half)
    }

    pub(super) fn forget(&mut self, half: HalfOffset) {
        self.by_half.remove(&half);
    }

    pub(super) fn find(&self, id: TransactionId) -> Option<&Closed> {
        self.by_half.values().find(|closed| closed.id == id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn closed(half: i64, decided_at: i64) -> Closed {
        Closed {
            id: TransactionId::from_bytes([0; 16]),
            half: HalfOffset(half),
            purpose: String::new(),
            topic: String::new(),
            verdict: Verdict::Commit,
            origin: Origin::Producer,
            reason: String::new(),
            attempts: 0,
            epoch: Epoch(0),
            stored_ms: 0,
            decided_at,
            decided_ms: 0,
        }
    }

    #[test]
    fn remembers_so_many_and_forgets_the_oldest() {
        let mut ring = ClosedRing::default();
        let kept = i64::try_from(CLOSED_KEPT).expect("small");
        for half in 0..=kept {
            ring.push(closed(half, half + 1));
        }
        assert!(ring.get(HalfOffset(0)).is_none());
        assert!(ring.get(HalfOffset(1)).is_some());
        assert_eq!(ring.by_half.len(), CLOSED_KEPT);
    }

    #[test]
    fn a_half_decided_again_is_kept_for_its_last_decision() {
        let mut ring = ClosedRing::default();
        ring.push(closed(1, 2));
        ring.forget(HalfOffset(1));
        ring.push(closed(1, 9));
        let kept = i64::try_from(CLOSED_KEPT).expect("small");
        for half in 0..kept - 1 {
            ring.push(closed(half + 10, half + 100));
        }
        assert!(ring.get(HalfOffset(1)).is_some(), "its second decision is within the bound");
    }
}

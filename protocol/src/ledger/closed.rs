//! The closed halves of a partition that are remembered: to tell a repeated decision from a
//! contradicting one, and to show what became of a message.

use std::collections::VecDeque;
use std::collections::hash_map::Entry;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use super::Open;
use crate::hash::OffsetMap;
use crate::ids::{Epoch, HalfOffset, TransactionId};
use crate::record::{Decision, HalfMeta, Origin, Verdict};

/// Of so many closed halves a partition can tell a repeated decision from a contradicting one; the
/// oldest is forgotten first.
pub const CLOSED_KEPT: usize = 100_000;
/// So many of them can be shown.
pub const CLOSED_SHOWN: usize = 10_000;

/// A half message that was decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Closed {
    /// Its identity.
    pub id: TransactionId,
    /// The offset of its HALF record.
    pub half: HalfOffset,
    /// The message, without its body.
    pub meta: Arc<HalfMeta>,
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
    /// When the life in which it was decided began, by the append time of its HALF or its last REOPEN,
    /// milliseconds since the epoch.
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
            meta: Arc::clone(&open.half.meta),
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

/// What tells a repeated decision from a contradicting one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Told {
    pub(super) id: TransactionId,
    pub(super) verdict: Verdict,
    decided_at: i64,
}

/// Which decision, when, and by whom.
#[derive(Debug, Clone, Copy, Hash)]
struct Decided {
    half: HalfOffset,
    at: i64,
    ms: i64,
    origin: Origin,
}

/// One of which it is known no longer what became of it.
pub(super) struct Forgotten {
    pub(super) id: TransactionId,
    pub(super) half: HalfOffset,
    pub(super) decided_ms: i64,
    /// Somebody else than its application decided, who may have been faster than a copy.
    pub(super) may_be_copied: bool,
}

/// The newest closed halves: what became of [`CLOSED_KEPT`] of them, and [`CLOSED_SHOWN`] whole.
#[derive(Debug, Clone, Default)]
pub(super) struct ClosedRing {
    told: OffsetMap<Told>,
    order: VecDeque<Decided>,
    shown: VecDeque<Closed>,
}

impl ClosedRing {
    /// So many are about to be closed. One more stands there for a moment before the oldest goes.
    pub(super) fn expects(&mut self, halves: usize) {
        self.told.reserve(halves + 1);
        self.order.reserve(halves + 1);
        self.shown.reserve(halves.min(CLOSED_SHOWN) + 1);
    }

    /// Those that the next so many closed halves make it forget, as far as they are remembered still.
    pub(super) fn next_forgotten(&self, closed: usize) -> impl Iterator<Item = &TransactionId> {
        let over = (self.order.len() + closed).saturating_sub(CLOSED_KEPT);
        self.order.iter().take(over).filter_map(|next| Some(&self.told.get(&next.half)?.id))
    }

    /// The one that is forgotten for it.
    pub(super) fn push(&mut self, closed: Closed) -> Option<Forgotten> {
        let Closed { id, half, verdict, decided_at, decided_ms, origin, .. } = closed;
        self.order.push_back(Decided { half, at: decided_at, ms: decided_ms, origin });
        self.told.insert(half, Told { id, verdict, decided_at });
        self.shown.push_back(closed);
        if self.shown.len() > CLOSED_SHOWN {
            self.shown.pop_front();
        }
        if self.order.len() <= CLOSED_KEPT {
            return None;
        }
        let Decided { half, at, ms: decided_ms, origin } = self.order.pop_front()?;
        // A reopened half may stand in the order twice; only its last decision counts.
        let Entry::Occupied(told) = self.told.entry(half) else { return None };
        if told.get().decided_at != at {
            return None;
        }
        let told = told.remove();
        let may_be_copied = origin != Origin::Producer;
        Some(Forgotten { id: told.id, half, decided_ms, may_be_copied })
    }

    pub(super) fn get(&self, half: HalfOffset) -> Option<Told> {
        self.told.get(&half).copied()
    }

    pub(super) fn forget(&mut self, half: HalfOffset) {
        self.told.remove(&half);
    }

    /// See [`super::Ledger::fingerprint`]. What is only shown is left out.
    pub(super) fn fingerprint(&self, into: &mut impl Hasher) {
        self.order.hash(into);
        let mut told: Vec<_> = self.told.iter().collect();
        told.sort_unstable_by_key(|(half, _)| **half);
        told.hash(into);
    }

    /// A scan. One that was opened again, or parked since, is not among them.
    pub(super) fn find(&self, id: TransactionId) -> Option<&Closed> {
        let is_last = |closed: &&Closed| {
            let told = self.told.get(&closed.half);
            closed.id == id && told.is_some_and(|told| told.decided_at == closed.decided_at)
        };
        self.shown.iter().rev().find(is_last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta() -> Arc<HalfMeta> {
        Arc::new(HalfMeta {
            id: TransactionId::from_bytes([0; 16]),
            application: String::new(),
            purpose: String::new(),
            topic: String::new(),
            timestamp_ms: 0,
            check_after: None,
            local_transaction: None,
        })
    }

    fn closed(half: i64, decided_at: i64) -> Closed {
        Closed {
            id: TransactionId::from_bytes([0; 16]),
            half: HalfOffset(half),
            meta: meta(),
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
        assert_eq!((ring.told.len(), ring.shown.len()), (CLOSED_KEPT, CLOSED_SHOWN));
    }

    #[test]
    fn has_room_for_what_it_expects() {
        let mut ring = ClosedRing::default();
        ring.expects(CLOSED_KEPT);
        let capacities = |ring: &ClosedRing| (ring.order.capacity(), ring.shown.capacity());
        let before = capacities(&ring);
        for half in 0..i64::try_from(CLOSED_KEPT).expect("small") + 10 {
            ring.push(closed(half, half + 1));
        }
        assert_eq!(capacities(&ring), before);
    }

    #[test]
    fn names_those_that_are_forgotten_next() {
        let mut ring = ClosedRing::default();
        let kept = i64::try_from(CLOSED_KEPT).expect("small");
        let closed = |half: i64| Closed {
            id: TransactionId::from_bytes(i128::from(half).to_be_bytes()),
            ..closed(half, half + 1)
        };
        for half in 0..kept - 1 {
            ring.push(closed(half));
        }
        // It was opened again.
        ring.forget(HalfOffset(1));
        assert_eq!(ring.next_forgotten(1).count(), 0, "there is room for one");
        let named: Vec<TransactionId> = ring.next_forgotten(4).copied().collect();
        let forgotten = (0..4).filter_map(|half| ring.push(closed(kept + half)));
        assert_eq!(forgotten.map(|it| it.id).collect::<Vec<_>>(), named);
        assert_eq!(named, [closed(0).id, closed(2).id]);
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

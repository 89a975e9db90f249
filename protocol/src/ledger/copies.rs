//! Copies of HALF records. A message may stand in the log more than once: a client that gives a
//! record up for want of an acknowledgement begins a new epoch of its producer id, sends what else
//! was under way again, and the broker cannot tell that it has it already (librdkafka 2.12,
//! `rd_kafka_idemp_drain_epoch_bump`; KIP-98 promises no more than one sequence of one epoch).
//!
//! The first copy is the message. What names a later one means the first.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::hash::{Hash, Hasher};

use crate::ids::{HalfOffset, TransactionId};
use crate::record::HalfRef;

/// So many copies of a partition are known by their offsets; the oldest is forgotten first. A
/// decision that names a forgotten one is late, and the check decides.
pub(super) const COPIES_KEPT: usize = 10_000;

/// Which message stands where.
#[derive(Debug, Clone, Default)]
pub(super) struct Copies {
    /// Where the first copy of every message stands that is open, decided, parked, or closed and
    /// remembered.
    first: HashMap<TransactionId, HalfOffset>,
    /// The first copy, by a later one.
    of: HashMap<HalfOffset, HalfOffset>,
    order: VecDeque<HalfOffset>,
    /// From a first copy to its last: a replay that began between them would take a later copy for
    /// the first.
    spans: BTreeMap<HalfOffset, HalfOffset>,
}

impl Copies {
    /// A message that is known from elsewhere than its HALF.
    pub(super) fn know(&mut self, id: TransactionId, half: HalfOffset) {
        self.first.insert(id, half);
    }

    /// A HALF stands at this offset: true if it is a copy of one before.
    pub(super) fn is_copy(&mut self, id: TransactionId, half: HalfOffset) -> bool {
        let first = *self.first.entry(id).or_insert(half);
        if first == half {
            return false;
        }
        // The parked topic may name a later copy, as an older program took it for a message.
        if first < half {
            self.spans.insert(first, half);
        }
        if self.of.insert(half, first).is_none() {
            self.order.push_back(half);
        }
        if self.order.len() > COPIES_KEPT
            && let Some(oldest) = self.order.pop_front()
        {
            self.of.remove(&oldest);
        }
        true
    }

    /// The first copy, if this names a later one.
    pub(super) fn first(&self, half: HalfOffset) -> HalfOffset {
        // As good as always.
        if self.of.is_empty() { half } else { self.of.get(&half).copied().unwrap_or(half) }
    }

    /// The same by the name of its first copy.
    pub(super) fn resolve(&self, of: HalfRef) -> HalfRef {
        HalfRef { half: self.first(of.half), ..of }
    }

    /// The message is remembered no longer.
    pub(super) fn forget(&mut self, id: TransactionId, half: HalfOffset) {
        if self.first.get(&id) == Some(&half) {
            self.first.remove(&id);
        }
    }

    /// Where a replay has to begin so that it knows every copy for what it is, if it would begin
    /// here otherwise.
    pub(super) fn beginning(&self, mut low_water: i64) -> i64 {
        loop {
            let spans = self.spans.range(..HalfOffset(low_water));
            let before = spans.filter(|(_, last)| last.0 >= low_water).map(|(first, _)| first.0);
            match before.min() {
                Some(first) => low_water = first,
                None => return low_water,
            }
        }
    }

    /// Every replay to come begins here or later.
    pub(super) fn begins_from(&mut self, low_water: i64) {
        self.spans.retain(|_, last| last.0 >= low_water);
    }

    /// See [`super::Ledger::fingerprint`]. The first copies are named by the message's own state,
    /// wherever that is.
    pub(super) fn fingerprint(&self, into: &mut impl Hasher) {
        (&self.order, &self.spans).hash(into);
        for half in &self.order {
            self.of.get(half).hash(into);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u8) -> TransactionId {
        TransactionId::from_bytes([number; 16])
    }

    #[test]
    fn the_first_copy_is_the_message() {
        let mut copies = Copies::default();
        assert!(!copies.is_copy(id(1), HalfOffset(4)));
        assert!(!copies.is_copy(id(1), HalfOffset(4)), "replayed");
        assert!(copies.is_copy(id(1), HalfOffset(7)));
        assert_eq!(copies.first(HalfOffset(7)), HalfOffset(4));
        assert_eq!(copies.first(HalfOffset(5)), HalfOffset(5));
        copies.forget(id(1), HalfOffset(7));
        assert!(copies.is_copy(id(1), HalfOffset(8)), "only its first copy is forgotten");
        copies.forget(id(1), HalfOffset(4));
        assert!(!copies.is_copy(id(1), HalfOffset(9)));
    }

    #[test]
    fn no_replay_begins_between_copies() {
        let mut copies = Copies::default();
        for (number, half) in [(1, 2), (2, 4), (1, 5), (3, 6), (2, 8)] {
            copies.is_copy(id(number), HalfOffset(half));
        }
        let begins: Vec<i64> = (1..=9).map(|at| copies.beginning(at)).collect();
        assert_eq!(begins, [1, 2, 2, 2, 2, 2, 2, 2, 9], "the second span begins within the first");
        copies.begins_from(9);
        assert!(copies.spans.is_empty());
    }

    #[test]
    fn remembers_so_many() {
        let mut copies = Copies::default();
        let kept = i64::try_from(COPIES_KEPT).expect("small");
        for copy in 0..=kept + 1 {
            copies.is_copy(id(1), HalfOffset(copy));
        }
        assert_eq!((copies.of.len(), copies.order.len()), (COPIES_KEPT, COPIES_KEPT));
        assert_eq!(copies.first(HalfOffset(1)), HalfOffset(1));
        assert_eq!(copies.first(HalfOffset(2)), HalfOffset(0));
    }
}

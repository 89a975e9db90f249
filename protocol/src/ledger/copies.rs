//! Copies of HALF records. A message may stand in the log more than once: a client that gives a
//! record up for want of an acknowledgement begins a new epoch of its producer id, sends what else
//! was under way again, and the broker cannot tell that it has it already (librdkafka 2.12,
//! `rd_kafka_idemp_drain_epoch_bump`; KIP-98 promises no more than one sequence of one epoch).
//!
//! The first copy is the message. What names a later one means the first. Another message that was
//! given the same id is none of its copies: what names it means nothing else.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, VecDeque};
use std::hash::{Hash, Hasher};

use super::model::Ignored;
use super::print::Print;
use crate::hash::{HashMap, OffsetMap};
use crate::ids::{HalfOffset, TransactionId};
use crate::record::HalfRef;

/// So many copies of a partition are known by their offsets; the oldest is forgotten first. A
/// decision that names a forgotten one is late, and the check decides.
pub(super) const COPIES_KEPT: usize = 10_000;

/// The first copy of a message.
#[derive(Debug, Clone, Copy)]
struct First {
    half: HalfOffset,
    /// Not known of one that is settled: then every other one counts as its copy. It changes nothing
    /// any more.
    print: Option<Print>,
}

/// Which message stands where.
#[derive(Debug, Clone, Default)]
pub(super) struct Copies {
    /// Where the first copy of every message stands that is open, decided, parked, or closed and
    /// remembered.
    first: HashMap<TransactionId, First>,
    /// The first copy, by a later one.
    of: OffsetMap<HalfOffset>,
    order: VecDeque<HalfOffset>,
    /// From a first copy to its last, or to the last other message of its id: a replay that began
    /// between them would take a later one for the first.
    spans: BTreeMap<HalfOffset, HalfOffset>,
    /// Below this the log is deleted: no replay finds a first copy there.
    deleted_below: i64,
}

impl Copies {
    /// A message that is known from elsewhere than its HALF.
    pub(super) fn know(&mut self, id: TransactionId, half: HalfOffset, print: Option<Print>) {
        self.first.insert(id, First { half, print });
    }

    /// So many messages more are about to be known.
    pub(super) fn expects(&mut self, messages: usize) {
        self.first.reserve(messages);
    }

    /// How many of these are known.
    pub(super) fn known_of<'a>(&self, ids: impl Iterator<Item = &'a TransactionId>) -> usize {
        ids.filter(|id| self.first.contains_key(id)).count()
    }

    /// A HALF stands at this offset: why it is no message, if there is one of its id before.
    pub(super) fn ignores(
        &mut self,
        id: TransactionId,
        half: HalfOffset,
        print: Print,
    ) -> Option<Ignored> {
        let first = *self.first.entry(id).or_insert(First { half, print: Some(print) });
        if first.half == half {
            return None;
        }
        // The parked topic may name a later copy, as an older program took it for a message.
        if first.half < half && first.half.0 >= self.deleted_below {
            self.spans.insert(first.half, half);
        }
        if first.print.is_some_and(|first| first != print) {
            return Some(Ignored::Reused { first: first.half });
        }
        if self.of.insert(half, first.half).is_none() {
            self.order.push_back(half);
        }
        if self.order.len() > COPIES_KEPT
            && let Some(oldest) = self.order.pop_front()
        {
            self.of.remove(&oldest);
        }
        Some(Ignored::Copy)
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
        if let Entry::Occupied(first) = self.first.entry(id)
            && first.get().half == half
        {
            first.remove();
        }
    }

    /// How many messages are known.
    #[cfg(test)]
    pub(super) fn known(&self) -> usize {
        self.first.len()
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

    /// The first offset from this one on where a replay may begin.
    pub(super) fn behind(&self, at: i64) -> i64 {
        let spans = self.spans.range(..HalfOffset(at)).map(|(_, last)| last.0);
        match spans.filter(|last| *last >= at).max() {
            Some(last) => self.behind(last + 1),
            None => at,
        }
    }

    /// Every replay to come begins here or later.
    pub(super) fn begins_from(&mut self, low_water: i64) {
        self.spans.retain(|_, last| last.0 >= low_water);
    }

    /// The records below this one are deleted.
    pub(super) fn deleted(&mut self, below: i64) {
        self.deleted_below = self.deleted_below.max(below);
        self.spans.retain(|first, _| first.0 >= self.deleted_below);
    }

    /// See [`super::Ledger::fingerprint`]. The first copies are named by the message's own state,
    /// wherever that is.
    pub(super) fn fingerprint(&self, into: &mut impl Hasher) {
        (&self.order, &self.spans, self.deleted_below).hash(into);
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

    fn print(payload: &'static [u8]) -> Print {
        let meta = crate::record::HalfMeta {
            id: id(0),
            application: String::new(),
            purpose: String::new(),
            topic: String::new(),
            timestamp_ms: 0,
            check_after: None,
            local_transaction: None,
        };
        Print::of(&meta, None, Some(payload))
    }

    impl Copies {
        fn is_copy(&mut self, id: TransactionId, half: HalfOffset) -> bool {
            match self.ignores(id, half, print(b"")) {
                None => false,
                Some(ignored) => ignored == Ignored::Copy,
            }
        }
    }

    #[test]
    fn another_message_of_the_same_id_is_no_copy() {
        let mut copies = Copies::default();
        let (one, other) = (print(b"one"), print(b"other"));
        let reused = Some(Ignored::Reused { first: HalfOffset(4) });
        assert_eq!(copies.ignores(id(1), HalfOffset(4), one), None);
        assert_eq!(copies.ignores(id(1), HalfOffset(6), other), reused);
        assert_eq!(copies.first(HalfOffset(6)), HalfOffset(6), "what names it means no other");
        assert_eq!(copies.ignores(id(1), HalfOffset(8), one), Some(Ignored::Copy));
        assert_eq!(copies.ignores(id(1), HalfOffset(9), other), reused, "also of the other's copy");
        let begins: Vec<i64> = [4, 5, 7, 9, 10].map(|at| copies.beginning(at)).into();
        assert_eq!(begins, [4, 4, 4, 4, 10], "no replay takes the other one for the first");
        // As a new owner knows it: from the parked topic.
        copies.know(id(2), HalfOffset(5), Some(one));
        let reused = Some(Ignored::Reused { first: HalfOffset(5) });
        assert_eq!(copies.ignores(id(2), HalfOffset(11), other), reused);
        copies.know(id(3), HalfOffset(5), None);
        assert_eq!(copies.ignores(id(3), HalfOffset(12), other), Some(Ignored::Copy));
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
        let behind: Vec<i64> = (1..=9).map(|at| copies.behind(at)).collect();
        assert_eq!(behind, [1, 2, 9, 9, 9, 9, 9, 9, 9]);
        copies.begins_from(9);
        assert!(copies.spans.is_empty());
    }

    #[test]
    fn no_replay_begins_below_what_is_deleted() {
        let mut copies = Copies::default();
        for (number, half) in [(1, 2), (2, 3), (1, 5)] {
            copies.is_copy(id(number), HalfOffset(half));
        }
        assert_eq!(copies.beginning(4), 2);
        copies.deleted(4);
        assert_eq!(copies.beginning(5), 5, "nobody can begin at its first copy");
        assert!(copies.is_copy(id(2), HalfOffset(9)), "it is one all the same");
        assert_eq!(copies.beginning(7), 7);
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

//! What can be read from a ledger.

use super::{Closed, Ledger, Open, ParkedHalf};
use crate::ids::{HalfOffset, TransactionId};

impl Ledger {
    /// The offset of the next record.
    pub fn position(&self) -> i64 {
        self.position
    }

    /// If a replay that began here would take a copy for a message of its own, because it stands
    /// behind this offset and the message before it: the nearest offsets before and behind where one
    /// may begin.
    pub fn between_copies(&self, at: i64) -> Option<(i64, i64)> {
        let before = self.copies.beginning(at);
        (before < at).then(|| (before, self.copies.behind(at)))
    }

    /// The open half at this offset, or the one of which a copy stands there.
    pub fn open(&self, half: HalfOffset) -> Option<&Open> {
        self.open.get(&self.copies.first(half))
    }

    /// The open halves from this offset on, in their order.
    pub fn open_from(&self, half: HalfOffset) -> impl Iterator<Item = &Open> {
        self.open.range(half..).map(|(_, open)| open)
    }

    /// How many are open.
    pub fn open_count(&self) -> usize {
        self.open.len()
    }

    /// How many of them have checks that fail.
    pub fn failing_count(&self) -> usize {
        self.failing.len()
    }

    /// The first of those.
    pub fn first_failing(&self) -> Option<&Open> {
        self.failing.first().and_then(|half| self.open.get(half))
    }

    /// The parked messages from this offset on; one that is open again, or decided and not yet
    /// settled, is not among them.
    pub fn parked_from(&self, half: HalfOffset) -> impl Iterator<Item = &ParkedHalf> {
        self.parked
            .range(half..)
            .filter(|(half, _)| !self.open.contains_key(half) && !self.decided.contains_key(half))
            .map(|(_, parked)| parked)
    }

    /// How many are parked.
    pub fn parked_count(&self) -> usize {
        self.parked_from(HalfOffset(0)).count()
    }

    /// The open message of this identity; a scan.
    pub fn find_open(&self, id: TransactionId) -> Option<&Open> {
        self.open.values().find(|open| open.half.meta.id == id)
    }

    /// The parked message of this identity; a scan.
    pub fn find_parked(&self, id: TransactionId) -> Option<&ParkedHalf> {
        self.parked_from(HalfOffset(0)).find(|parked| parked.half.meta.id == id)
    }

    /// What became of the message of this identity, if it is remembered; a scan.
    pub fn find_closed(&self, id: TransactionId) -> Option<&Closed> {
        self.closed.find(id)
    }
}

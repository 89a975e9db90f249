//! Which outcomes are carried out, and what that changes: progress, parked entries, marks.

use std::sync::Arc;

use super::{Ledger, ParkedHalf, Pending, Told};
use crate::ids::{Epoch, TransactionId};
use crate::record::{HalfRef, ParkCause, Record, Verdict};

impl Ledger {
    /// The outcome of the record at `offset` is carried out by this owner. Idempotent.
    pub fn carried_out(&mut self, offset: i64) {
        self.release(offset, false);
    }

    /// The outcome of the record at `offset` was carried out before progress was stored: what the
    /// parked topic says of this very life of the message is newer than the record.
    pub fn replayed(&mut self, offset: i64) {
        self.release(offset, true);
    }

    /// The delivery that the decision at `offset` led to is refused for good: the message is
    /// parked instead. What carries the decision out is now its entry in the parked topic.
    /// `None` if no such delivery is under way.
    pub fn refuse(&mut self, offset: i64, reason: String, wall_ms: i64) -> Option<ParkedHalf> {
        let Some(&Pending::Decision { half, stored_at, .. }) = self.pending.get(&offset) else {
            return None;
        };
        if self.decided.get(&half)?.verdict != Verdict::Commit {
            return None;
        }
        let done = self.decided.remove(&half)?;
        let mut history = done.history;
        let Told(decision, decided_ms) = done.told;
        history.push(Record::Decision(decision), offset, decided_ms);
        self.closed.forget(half);
        self.pending.insert(offset, Pending::Park { half, stored_at });
        let parked = ParkedHalf {
            half: done.half,
            epoch: done.epoch,
            attempts: done.attempts,
            cause: ParkCause::Undeliverable,
            reason,
            // Every record so far was applied to a message that was not parked.
            parked_at: self.position - 1,
            parked_ms: wall_ms,
            history,
        };
        self.parked.insert(half, parked.clone());
        Some(parked)
    }

    /// The life of the message whose decision, at this offset, is not carried out yet.
    pub(crate) fn pending_epoch(&self, offset: i64) -> Option<Epoch> {
        match self.pending.get(&offset) {
            Some(Pending::Decision { epoch, .. }) => Some(*epoch),
            _ => None,
        }
    }

    /// Every replay to come begins at this low-water mark or later.
    pub(crate) fn replays_begin_from(&mut self, low_water: i64) {
        self.copies.begins_from(low_water);
    }

    /// The records below this one are deleted: no replay finds them.
    pub(crate) fn deleted(&mut self, below: i64) {
        self.copies.deleted(below);
    }

    /// Forgets the marks of messages that were settled by decisions below `position`, and names
    /// those of which the parked topic needs to know nothing any more. A message that was parked
    /// since then is not among them: its entry has replaced the mark.
    pub fn forget_settled(&mut self, position: i64) -> Vec<TransactionId> {
        let old: Vec<HalfRef> =
            self.settled.values().filter(|(_, at)| *at < position).map(|(of, _)| *of).collect();
        for of in &old {
            self.settled.remove(&of.half);
        }
        old.iter().filter(|of| !self.parked.contains_key(&of.half)).map(|of| of.id).collect()
    }

    fn release(&mut self, offset: i64, replay: bool) {
        match self.pending.get(&offset) {
            None => {}
            Some(Pending::Foreign) => drop(self.pending.remove(&offset)),
            Some(&Pending::Park { half, stored_at }) => {
                self.pending.remove(&offset);
                self.held.remove(&stored_at);
                // The parked topic has its body now.
                if let Some(parked) = self.parked.get_mut(&half).filter(|of| !of.half.is_stub) {
                    parked.half = Arc::new(parked.half.stub());
                }
            }
            Some(&Pending::Decision { half, epoch, stored_at }) => {
                self.pending.remove(&offset);
                self.held.remove(&stored_at);
                if let Some(done) = self.decided.remove(&half) {
                    let of = HalfRef { id: done.half.meta.id, half, epoch };
                    self.settle(of, offset, replay);
                }
            }
        }
    }

    /// The decision at this offset is carried out: if the message had been parked, it no longer
    /// is. But what the parked topic says of the same life is newer than a replayed decision: its
    /// delivery was refused.
    pub(super) fn settle(&mut self, of: HalfRef, at: i64, replay: bool) {
        let parked = self.parked.get(&of.half);
        // An entry of another message at this offset is one of another log, and stays.
        let Some(parked) = parked.filter(|parked| parked.half.meta.id == of.id) else { return };
        if replay && parked.epoch >= of.epoch {
            self.closed.forget(of.half);
            return;
        }
        self.parked.remove(&of.half);
        if !replay {
            self.settled.insert(of.half, (of, at));
        }
    }
}

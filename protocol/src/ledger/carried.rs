//! Which outcomes are carried out, and what that changes: progress, parked entries, marks.

use super::{Ledger, Pending};
use crate::ids::{Epoch, HalfOffset, TransactionId};
use crate::record::{HalfRef, Verdict};

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

    /// The delivery that the decision at `offset` led to is refused for good. Progress stays held
    /// until the message is parked. `None` if no such delivery is under way.
    pub fn refused(&mut self, offset: i64) -> Option<(HalfRef, u32)> {
        let half = self.decision_at(offset)?;
        let done = self.decided.get_mut(&half).filter(|done| done.verdict == Verdict::Commit)?;
        done.refused = true;
        Some((HalfRef { id: done.half.meta.id, half, epoch: done.epoch }, done.attempts))
    }

    /// The life of the message whose decision, at this offset, is not carried out yet.
    pub(crate) fn pending_epoch(&self, offset: i64) -> Option<Epoch> {
        match self.pending.get(&offset) {
            Some(Pending::Decision { epoch, .. }) => Some(*epoch),
            _ => None,
        }
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

    /// The half whose decision is the record at this offset, if it is to be carried out still and
    /// not replaced by a PARK.
    fn decision_at(&self, offset: i64) -> Option<HalfOffset> {
        match self.pending.get(&offset) {
            Some(Pending::Decision { half, .. }) => {
                let done = self.decided.get(half)?;
                (done.decided_at == offset).then_some(*half)
            }
            _ => None,
        }
    }

    fn release(&mut self, offset: i64, replay: bool) {
        match self.pending.get(&offset) {
            None => {}
            Some(Pending::Foreign) => drop(self.pending.remove(&offset)),
            Some(&Pending::Park { stored_at, refused }) => {
                self.pending.remove(&offset);
                self.held.remove(&stored_at);
                if let Some(decided_at) = refused {
                    self.pending.remove(&decided_at);
                }
            }
            // A PARK has replaced the refused delivery, and is what progress waits for.
            Some(Pending::Decision { .. }) if self.decision_at(offset).is_none() => {}
            Some(&Pending::Decision { half, epoch, stored_at }) => {
                self.pending.remove(&offset);
                self.held.remove(&stored_at);
                self.decided.remove(&half);
                self.settle(half, epoch, offset, replay);
            }
        }
    }

    /// The decision at this offset is carried out: if the message had been parked, it no longer
    /// is. But what the parked topic says of the same life is newer than a replayed decision: its
    /// delivery was refused.
    fn settle(&mut self, half: HalfOffset, epoch: Epoch, at: i64, replay: bool) {
        let Some(parked) = self.parked.get(&half) else { return };
        if replay && parked.epoch >= epoch {
            self.closed.forget(half);
            return;
        }
        let of = HalfRef { id: parked.half.meta.id, half, epoch };
        self.parked.remove(&half);
        if !replay {
            self.settled.insert(half, (of, at));
        }
    }
}

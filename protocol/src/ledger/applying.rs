//! What each kind of record does to a partition's state.

use std::sync::Arc;

use super::closed::{Closed, Forgotten};
use super::history::History;
use super::model::{Half, Ignored, Open, Outcome, ParkedHalf};
use super::{Decided, Ledger, Pending, Told};
use crate::ids::{Epoch, HalfOffset, TransactionId};
use crate::record::{
    Body, CheckOutcome, Checked, Decision, HalfRef, Origin, Park, ParkCause, Record, Reopen,
    Verdict,
};

impl Ledger {
    pub(super) fn half(&mut self, half: Half, appended_ms: i64) -> Outcome {
        if let Some(why) = self.copies.ignores(half.meta.id, half.offset, half.print) {
            return Outcome::Ignored(why);
        }
        if self.is_first_life_over(half.meta.id, half.offset) {
            self.linger(half.offset, self.bytes_before);
            return Outcome::Ignored(Ignored::Stale);
        }
        self.hold(half.stored_at);
        self.opened(half, appended_ms, Epoch::default(), History::default());
        Outcome::Opened
    }

    /// Whether the parked topic, which may be ahead of the log's replay, knows a later life. Then
    /// the first one ended in a PARK: living it again would deliver what was decided otherwise
    /// since, or overwrite the later entry.
    fn is_first_life_over(&self, id: TransactionId, half: HalfOffset) -> bool {
        let parked = self.parked.get(&half).map(|parked| (parked.half.meta.id, parked.epoch));
        let settled = self.settled.get(&half).map(|(of, _)| (of.id, of.epoch));
        let later = |life: (TransactionId, Epoch)| life.0 == id && life.1 > Epoch::default();
        parked.is_some_and(later) || settled.is_some_and(later)
    }

    pub(super) fn decision(
        &mut self,
        mut decision: Decision,
        offset: i64,
        appended_ms: i64,
        is_carried_out: bool,
    ) -> Outcome {
        decision.of = self.copies.resolve(decision.of);
        let of = decision.of;
        match self.open.get(&of.half) {
            None => return Outcome::Ignored(self.late(&decision)),
            Some(open) if open.half.meta.id != of.id => {
                return Outcome::Ignored(Ignored::Mismatch);
            }
            // A decision of an older epoch is still the local transaction's outcome; one of an
            // epoch that does not exist yet is not to be believed.
            Some(open) if open.epoch < of.epoch => return Outcome::Ignored(Ignored::Stale),
            Some(open) if self.is_settled_after(open.epoch, of, offset) => {
                return Outcome::Ignored(Ignored::Conflict);
            }
            Some(_) => {}
        }
        let open = self.close(of.half).expect("found above");
        let verdict = decision.verdict;
        let told = (!is_carried_out).then(|| Told(decision.clone(), appended_ms));
        // An application decides when its HALF is acknowledged: then all copies lie behind.
        // Whoever else decides may be faster than a copy.
        if decision.origin != Origin::Producer {
            self.linger_if_held(of.half);
        }
        if let Some(forgotten) = self.closed.push(Closed::new(&open, decision, offset, appended_ms))
        {
            let Forgotten { id, half, .. } = forgotten;
            // However many are closed meanwhile, a copy may follow it yet.
            let until =
                self.copy_window_ms.map(|window| forgotten.decided_ms.saturating_add(window));
            match until.filter(|until| forgotten.may_be_copied && *until > appended_ms) {
                Some(until) => drop(self.forgotten.insert((until, half), id)),
                None => self.copies.forget(id, half),
            }
        }
        // An entry of another message is one of another log: the topic was made anew.
        let is_entry_ours =
            self.parked.get(&of.half).is_some_and(|entry| entry.half.meta.id == of.id);
        let settles = open.epoch > Epoch::default() || is_entry_ours;
        if verdict == Verdict::Rollback && !settles {
            self.held.remove(&open.half.stored_at);
            return Outcome::Dropped { half: open.half, settles };
        }
        let Open { half, epoch, attempts, history, .. } = open;
        let stored_at = half.stored_at;
        let message = Arc::clone(&half);
        if let Some(told) = told {
            self.pending.insert(offset, Pending::Decision { half: of.half, epoch, stored_at });
            let decided = Decided { half, verdict, epoch, attempts, history, told };
            self.decided.insert(of.half, decided);
        } else {
            self.held.remove(&stored_at);
            self.settle(HalfRef { epoch, ..of }, offset, true);
        }
        match verdict {
            Verdict::Commit => Outcome::Deliver { half: message, settles },
            Verdict::Rollback => Outcome::Dropped { half: message, settles },
        }
    }

    /// Of a later life, the first one began to linger when it ended.
    fn linger_if_held(&mut self, half: HalfOffset) {
        if let Some(before) = self.held.get(&half.0) {
            self.linger(half, *before);
        }
    }

    fn linger(&mut self, half: HalfOffset, bytes_before: u64) {
        if self.copy_window_ms.is_some() {
            self.lingering.insert(half.0, bytes_before);
            self.began_to_linger = Some(half);
        }
    }

    /// Whether the parked topic, ahead of the replay, names a later record as the one that ended
    /// this life: then none before it did.
    fn is_settled_after(&self, epoch: Epoch, of: HalfRef, offset: i64) -> bool {
        self.settled.get(&of.half).is_some_and(|(settled, at)| {
            settled.id == of.id && settled.epoch == epoch && offset < *at
        })
    }

    fn late(&self, decision: &Decision) -> Ignored {
        let of = decision.of;
        if let Some(closed) = self.closed.get(of.half) {
            return match (closed.id == of.id, closed.verdict == decision.verdict) {
                (false, _) => Ignored::Mismatch,
                (true, true) => Ignored::Duplicate,
                (true, false) => Ignored::Conflict,
            };
        }
        match self.parked.get(&of.half) {
            Some(parked) if parked.half.meta.id != of.id => Ignored::Mismatch,
            Some(_) => Ignored::Conflict,
            None => Ignored::LateUnknown,
        }
    }

    pub(super) fn checked(&mut self, checked: Checked, offset: i64, appended_ms: i64) -> Outcome {
        let of = self.copies.resolve(checked.of);
        let Some(open) = self.open.get_mut(&of.half) else {
            return Outcome::Ignored(Ignored::Stale);
        };
        if open.half.meta.id != of.id {
            return Outcome::Ignored(Ignored::Mismatch);
        }
        let is_next = open.attempts.saturating_add(1) == checked.attempt;
        let is_failure =
            open.attempts == checked.attempt && checked.outcome == CheckOutcome::Failed;
        if open.epoch != of.epoch || !(is_next || is_failure) {
            return Outcome::Ignored(Ignored::Stale);
        }
        open.history.push(Record::Checked(checked.clone()), offset, appended_ms);
        open.last_outcome = Some((checked.outcome, checked.reason));
        if is_failure {
            open.failing_since_ms.get_or_insert(appended_ms);
            self.failing.insert(of.half);
            return Outcome::CheckFailed { half: of.half };
        }
        open.attempts = checked.attempt;
        open.failing_since_ms = None;
        self.failing.remove(&of.half);
        Outcome::Attempted { half: of.half, attempts: checked.attempt }
    }

    pub(super) fn park(&mut self, park: Park, offset: i64, appended_ms: i64) -> Outcome {
        let of = self.copies.resolve(park.of);
        let Some(open) = self.open.get(&of.half) else { return Outcome::Ignored(Ignored::Stale) };
        if open.half.meta.id != of.id {
            return Outcome::Ignored(Ignored::Mismatch);
        }
        let matches = open.epoch == of.epoch && open.attempts == park.attempts;
        // Only a committed message is undeliverable, and that is no record of the store.
        let undeliverable = park.cause == ParkCause::Undeliverable;
        if !matches || undeliverable || self.is_settled_after(open.epoch, of, offset) {
            return Outcome::Ignored(Ignored::Stale);
        }
        let parked = ParkedHalf {
            half: Arc::clone(&open.half),
            epoch: open.epoch,
            attempts: open.attempts,
            cause: park.cause,
            reason: park.reason,
            parked_at: offset,
            parked_ms: appended_ms,
            history: open.history.clone(),
        };
        self.pending
            .insert(offset, Pending::Park { half: of.half, stored_at: open.half.stored_at });
        self.close(of.half);
        self.linger_if_held(of.half);
        self.parked.insert(of.half, parked.clone());
        Outcome::Parked(parked)
    }

    pub(super) fn reopen(
        &mut self,
        reopen: Reopen,
        body: Body,
        offset: i64,
        appended_ms: i64,
    ) -> Outcome {
        let of = self.copies.resolve(reopen.of);
        let busy = self.open.contains_key(&of.half) || self.decided.contains_key(&of.half);
        if busy || !self.may_reopen(&of, offset) {
            return Outcome::Ignored(Ignored::Stale);
        }
        self.closed.forget(of.half);
        self.forgotten.retain(|(_, half), _| *half != of.half);
        self.hold(offset);
        self.stubs_below = self.stubs_below.min(of.half);
        let parked = self.parked.get(&of.half).filter(|parked| parked.half.meta.id == of.id);
        let mut history = parked.map(ParkedHalf::whole_history).unwrap_or_default();
        let half = Half::new(Arc::clone(&reopen.meta), body, of.half, offset);
        history.push(Record::Reopen(Box::new(Reopen { of, ..reopen })), offset, appended_ms);
        self.opened(half, appended_ms, of.epoch.next(), history);
        Outcome::Reopened { half: of.half }
    }

    /// Only a message that was parked before, in the epoch that the record names, or one that was
    /// settled later in the log (then this is the replay of the REOPEN that led there).
    fn may_reopen(&self, of: &HalfRef, offset: i64) -> bool {
        let parked = self.parked.get(&of.half).is_some_and(|parked| {
            parked.half.meta.id == of.id && parked.epoch == of.epoch && parked.parked_at < offset
        });
        let replayed = self.settled.get(&of.half).is_some_and(|(settled, at)| {
            settled.id == of.id && settled.epoch == of.epoch.next() && offset < *at
        });
        parked || replayed
    }
}

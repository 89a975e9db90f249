//! The state of one store partition: a fold over its records.
//!
//! It owns which halves are open, what was decided, and how far outcomes are carried out. It must
//! never consult a clock or decide anything itself: the same records give the same state on every
//! replica.
//!
//! States: open -> committed | rolled back | parked; committed -> parked (undeliverable);
//! parked -> open (REOPEN). The first decision wins.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::ids::{Epoch, HalfOffset, TransactionId};
use crate::record::{
    Body, CheckOutcome, Checked, Decision, HalfMeta, HalfRef, Origin, Park, ParkCause, Record,
    Reopen, Verdict,
};

mod carried;
mod closed;
mod copies;
mod fingerprint;
mod model;
#[cfg(test)]
mod tests;
mod view;

use closed::ClosedRing;
pub use closed::{CLOSED_KEPT, CLOSED_SHOWN, Closed};
use copies::Copies;
pub use model::{Half, Ignored, Open, Outcome, ParkedHalf, ParkedState, Progress, STUB_KEY_BYTES};

/// A decided message whose outcome is not carried out yet.
#[derive(Debug, Clone, Hash)]
struct Decided {
    half: Arc<Half>,
    verdict: Verdict,
    epoch: Epoch,
    attempts: u32,
}

/// An outcome that is not carried out yet.
#[derive(Debug, Clone, Hash)]
enum Pending {
    /// A record that is none of ours, to be copied away.
    Foreign,
    /// A delivery, or the mark of a message that had been parked. Replay needs `stored_at`.
    Decision { half: HalfOffset, epoch: Epoch, stored_at: i64 },
    /// A parked topic's entry: of the PARK at this offset, or of the refused delivery that the
    /// decision at this offset led to.
    Park { half: HalfOffset, stored_at: i64 },
}

/// The fold over one partition's records.
#[derive(Debug, Clone)]
pub struct Ledger {
    position: i64,
    open: BTreeMap<HalfOffset, Open>,
    /// By half; its decision is in `pending` as long as it is here.
    decided: BTreeMap<HalfOffset, Decided>,
    /// Those of the open ones whose checks fail.
    failing: BTreeSet<HalfOffset>,
    /// What the parked topic holds, also of a message that is open again or decided.
    parked: BTreeMap<HalfOffset, ParkedHalf>,
    settled: BTreeMap<HalfOffset, (HalfRef, i64)>,
    /// Records that replay still needs, with the bytes that lay before each.
    held: BTreeMap<i64, u64>,
    /// The same of halves that somebody else than their application closed, which a copy may still
    /// follow, until [`Ledger::let_go`]; and the one that was added last, until it is taken.
    lingering: BTreeMap<i64, u64>,
    began_to_linger: Option<HalfOffset>,
    /// Whether there are any.
    lets_linger: bool,
    copies: Copies,
    /// Outcomes not carried out yet, by the offset of the record that led to them.
    pending: BTreeMap<i64, Pending>,
    closed: ClosedRing,
    /// Bytes of all records before the one in hand, and including it.
    bytes_before: u64,
    bytes: u64,
    /// Bytes of the bodies of open halves that are kept in memory; of the halves below the offset
    /// none is.
    body_bytes: u64,
    stubs_below: HalfOffset,
    /// Bodies below `stubs_below` that were in use are not below this offset.
    in_use_from: HalfOffset,
}

impl Ledger {
    /// An empty ledger whose next record is at `position`, with what the parked topic said.
    pub fn new(position: i64, parked: impl IntoIterator<Item = ParkedState>) -> Self {
        let mut ledger = Self {
            position,
            open: BTreeMap::new(),
            decided: BTreeMap::new(),
            failing: BTreeSet::new(),
            parked: BTreeMap::new(),
            settled: BTreeMap::new(),
            held: BTreeMap::new(),
            lingering: BTreeMap::new(),
            began_to_linger: None,
            lets_linger: false,
            copies: Copies::default(),
            pending: BTreeMap::new(),
            closed: ClosedRing::default(),
            bytes_before: 0,
            bytes: 0,
            body_bytes: 0,
            stubs_below: HalfOffset(0),
            in_use_from: NOT_IN_USE,
        };
        for state in parked {
            match state {
                ParkedState::Parked(half) => {
                    ledger.copies.know(half.half.meta.id, half.half.offset);
                    ledger.parked.insert(half.half.offset, half);
                }
                ParkedState::Settled { of, at } => {
                    ledger.copies.know(of.id, of.half);
                    ledger.settled.insert(of.half, (of, at));
                }
            }
        }
        ledger
    }

    /// Holds the log for halves that somebody else than their application closed, each until
    /// [`Ledger::let_go`].
    pub(crate) fn lets_linger(mut self) -> Self {
        self.lets_linger = true;
        self
    }

    /// Applies the record at `offset`, appended at `appended_ms`.
    ///
    /// An outcome that has to be carried out (Deliver, Parked, and a Dropped that settles) holds
    /// progress until [`Ledger::carried_out`] or [`Ledger::replayed`] is called for the offset.
    ///
    /// # Panics
    /// On no record, whatever it says. Debug builds assert that offsets increase.
    pub fn apply(&mut self, record: Record, body: Body, offset: i64, appended_ms: i64) -> Outcome {
        debug_assert!(offset >= self.position, "records arrive in the order of their offsets");
        self.position = offset + 1;
        self.bytes_before = self.bytes;
        self.bytes += body.len() as u64 + RECORD_OVERHEAD_BYTES;
        match record {
            Record::Half(meta) => self.half(meta, body, offset, appended_ms),
            Record::Decision(decision) => self.decision(decision, offset, appended_ms),
            Record::Checked(checked) => self.checked(checked, appended_ms),
            Record::Park(park) => self.park(park, offset, appended_ms),
            Record::Reopen(reopen) => self.reopen(reopen, body, offset, appended_ms),
        }
    }

    /// Moves over records that are none of ours, or that the log does not hold.
    pub fn pass(&mut self, position: i64) {
        self.position = self.position.max(position);
    }

    /// Holds progress at a record that is none of ours until it is copied away.
    pub fn hold_foreign(&mut self, offset: i64) {
        self.pass(offset + 1);
        self.pending.insert(offset, Pending::Foreign);
    }

    /// How far the partition is carried out.
    pub fn progress(&self) -> Progress {
        let position = self.pending.keys().next().copied().unwrap_or(self.position);
        let held = self.held.keys().next().copied();
        Progress { low_water: self.low_water(held, position), position }
    }

    /// How far the partition would be carried out if the outcomes of the records at these offsets
    /// were: what is stored together with them, in one transaction.
    pub fn progress_after(&self, batch: &BTreeSet<i64>) -> Progress {
        let released: BTreeSet<i64> = batch
            .iter()
            .filter_map(|at| match self.pending.get(at)? {
                Pending::Decision { stored_at, .. } | Pending::Park { stored_at, .. } => {
                    Some(*stored_at)
                }
                Pending::Foreign => None,
            })
            .collect();
        let left = |at: &&i64| !batch.contains(at);
        let position = self.pending.keys().find(left).copied().unwrap_or(self.position);
        let held = self.held.keys().find(|at| !released.contains(at)).copied();
        Progress { low_water: self.low_water(held, position), position }
    }

    fn low_water(&self, held: Option<i64>, position: i64) -> i64 {
        let lingering = self.lingering.keys().next().copied();
        self.copies.beginning(held.into_iter().chain(lingering).fold(position, i64::min))
    }

    /// The bytes of the log, from the low-water mark on, that replay still needs.
    pub fn retained_bytes(&self) -> u64 {
        let first =
            |of: &BTreeMap<i64, u64>| of.values().next().map_or(0, |before| self.bytes - before);
        first(&self.held).max(first(&self.lingering))
    }

    /// The half that must be let go some time, if the last record closed one of those.
    pub(crate) fn take_lingering(&mut self) -> Option<HalfOffset> {
        self.began_to_linger.take()
    }

    /// No copy of this half can follow any more, or one may be taken for a message of its own.
    pub(crate) fn let_go(&mut self, half: HalfOffset) {
        self.lingering.remove(&half.0);
    }

    fn half(&mut self, meta: HalfMeta, body: Body, offset: i64, appended_ms: i64) -> Outcome {
        if self.copies.is_copy(meta.id, HalfOffset(offset)) {
            return Outcome::Ignored(Ignored::Copy);
        }
        if self.is_first_life_over(meta.id, HalfOffset(offset)) {
            self.linger(HalfOffset(offset), self.bytes_before);
            return Outcome::Ignored(Ignored::Stale);
        }
        self.hold(offset);
        let half = Half::new(meta, body, HalfOffset(offset), offset);
        self.opened(half, appended_ms, Epoch::default());
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

    fn decision(&mut self, mut decision: Decision, offset: i64, appended_ms: i64) -> Outcome {
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
        // An application decides when its HALF is acknowledged: then all copies lie behind.
        // Whoever else decides may be faster than a copy.
        if decision.origin != Origin::Producer {
            self.linger_if_held(of.half);
        }
        let forgotten = self.closed.push(Closed::new(&open, decision, offset, appended_ms));
        if let Some((id, half)) = forgotten {
            self.copies.forget(id, half);
        }
        // An entry of another message is one of another log: the topic was made anew.
        let is_entry_ours =
            self.parked.get(&of.half).is_some_and(|entry| entry.half.meta.id == of.id);
        let settles = open.epoch > Epoch::default() || is_entry_ours;
        if verdict == Verdict::Rollback && !settles {
            self.held.remove(&open.half.stored_at);
            return Outcome::Dropped { half: open.half, settles };
        }
        let Open { half, epoch, attempts, .. } = open;
        let stored_at = half.stored_at;
        self.pending.insert(offset, Pending::Decision { half: of.half, epoch, stored_at });
        let message = Arc::clone(&half);
        self.decided.insert(of.half, Decided { half, verdict, epoch, attempts });
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
        if self.lets_linger {
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

    fn checked(&mut self, checked: Checked, appended_ms: i64) -> Outcome {
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

    fn park(&mut self, park: Park, offset: i64, appended_ms: i64) -> Outcome {
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
        };
        self.pending
            .insert(offset, Pending::Park { half: of.half, stored_at: open.half.stored_at });
        self.close(of.half);
        self.linger_if_held(of.half);
        self.parked.insert(of.half, parked.clone());
        Outcome::Parked(parked)
    }

    fn reopen(&mut self, reopen: Reopen, body: Body, offset: i64, appended_ms: i64) -> Outcome {
        let of = self.copies.resolve(reopen.of);
        let busy = self.open.contains_key(&of.half) || self.decided.contains_key(&of.half);
        if busy || !self.may_reopen(&of, offset) {
            return Outcome::Ignored(Ignored::Stale);
        }
        self.closed.forget(of.half);
        self.hold(offset);
        let half = Half::new(reopen.meta, body, of.half, offset);
        self.stubs_below = self.stubs_below.min(of.half);
        self.opened(half, appended_ms, of.epoch.next());
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

    fn opened(&mut self, half: Half, appended_ms: i64, epoch: Epoch) {
        self.body_bytes += half.bytes as u64;
        self.open.insert(half.offset, Open::new(Arc::new(half), appended_ms, epoch));
    }

    fn close(&mut self, half: HalfOffset) -> Option<Open> {
        let open = self.open.remove(&half)?;
        self.failing.remove(&half);
        if !open.half.is_stub {
            self.body_bytes -= open.half.bytes as u64;
        }
        Some(open)
    }

    /// Bytes of the bodies of open halves that are kept in memory.
    pub fn body_bytes(&self) -> u64 {
        self.body_bytes
    }

    /// Lets bodies of open halves go, the oldest first, until at most so many bytes are kept. They
    /// are in the log, which is held as long as their halves are open.
    pub fn keep_bodies(&mut self, budget: u64) {
        while self.body_bytes > budget {
            let Some((offset, open)) = self.open.range_mut(self.stubs_below..).next() else {
                return;
            };
            self.stubs_below = HalfOffset(offset.0 + 1);
            if open.half.is_stub {
                continue;
            }
            // What somebody else holds, as who asks about it, would not become free: it counts.
            if Arc::strong_count(&open.half) > 1 {
                self.in_use_from = self.in_use_from.min(*offset);
            } else {
                self.body_bytes -= open.half.bytes as u64;
                open.half = Arc::new(open.half.stub());
            }
        }
    }

    /// Some bodies may be in use no longer: [`Ledger::keep_bodies`] looks at them again.
    pub(crate) fn bodies_returned(&mut self) {
        self.stubs_below = self.stubs_below.min(self.in_use_from);
        self.in_use_from = NOT_IN_USE;
    }

    fn hold(&mut self, offset: i64) {
        self.held.insert(offset, self.bytes_before);
    }
}

/// Beyond every half.
const NOT_IN_USE: HalfOffset = HalfOffset(i64::MAX);

/// What a record costs in the log besides its body, for [`Ledger::retained_bytes`]: batch and
/// record framing and our header, rounded up.
const RECORD_OVERHEAD_BYTES: u64 = 256;

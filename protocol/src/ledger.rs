//! The state of one store partition: a fold over its records.
//!
//! It owns which halves are open, what was decided, and how far outcomes are carried out. It must
//! never consult a clock or decide anything itself: the same records give the same state on every
//! replica.
//!
//! States: open -> committed | rolled back | parked; committed -> parked (undeliverable);
//! parked -> open (REOPEN). The first decision wins.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::ids::{Epoch, HalfOffset, TransactionId};
use crate::record::{Body, Decision, HalfRef, Record, Verdict};

mod applying;
mod carried;
mod closed;
mod copies;
mod fingerprint;
mod history;
mod model;
mod print;
#[cfg(test)]
mod tests;
mod view;

use closed::ClosedRing;
pub use closed::{CLOSED_KEPT, CLOSED_SHOWN, Closed};
use copies::Copies;
pub use history::{History, PastStep};
pub use model::{Half, Ignored, Open, Outcome, ParkedHalf, ParkedState, Progress, STUB_KEY_BYTES};
pub use print::Print;

/// A decided message whose outcome is not carried out yet.
#[derive(Debug, Clone, Hash)]
struct Decided {
    half: Arc<Half>,
    verdict: Verdict,
    epoch: Epoch,
    attempts: u32,
    history: History,
    told: Told,
}

/// The decision and when it was appended, for a history. Two ledgers that differ in it alone behave alike.
#[derive(Debug, Clone)]
struct Told(Decision, i64);

impl Hash for Told {
    fn hash<H: Hasher>(&self, _: &mut H) {}
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
    /// Closed halves that are forgotten otherwise: which copies they have is known until the log has
    /// reached this time, in milliseconds since the epoch.
    forgotten: BTreeMap<(i64, HalfOffset), TransactionId>,
    began_to_linger: Option<HalfOffset>,
    /// Whether there are any.
    copy_window_ms: Option<i64>,
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
            forgotten: BTreeMap::new(),
            began_to_linger: None,
            copy_window_ms: None,
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
                    let Half { meta, offset, print, .. } = &*half.half;
                    ledger.copies.know(meta.id, *offset, Some(*print));
                    ledger.parked.insert(half.half.offset, half);
                }
                ParkedState::Settled { of, at } => {
                    ledger.copies.know(of.id, of.half, None);
                    ledger.settled.insert(of.half, (of, at));
                }
            }
        }
        ledger
    }

    /// Holds the log for halves that somebody else than their application closed, each until an owner
    /// lets it go, and knows their copies, however many are closed behind them, as long as the window
    /// lasts: by the append times of the log, so that every owner makes the same of it.
    #[must_use]
    pub fn lets_linger(mut self, copy_window: Duration) -> Self {
        self.copy_window_ms = Some(i64::try_from(copy_window.as_millis()).unwrap_or(i64::MAX));
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
        self.apply_as(record, body, None, (offset, appended_ms), false)
    }

    /// As [`Ledger::apply`] and then [`Ledger::replayed`]: what the record leads to was carried out
    /// before progress was stored.
    pub fn apply_replayed(
        &mut self,
        record: Record,
        body: Body,
        offset: i64,
        appended_ms: i64,
    ) -> Outcome {
        self.apply_as(record, body, None, (offset, appended_ms), true)
    }

    /// As [`Ledger::apply`], and nothing is kept of the message but its key: a view needs no more. The
    /// payload only tells copies.
    pub fn apply_keyed(
        &mut self,
        record: Record,
        (key, payload): (Option<Bytes>, Option<&[u8]>),
        offset: i64,
        appended_ms: i64,
    ) -> Outcome {
        let print = match &record {
            Record::Half(meta) => Some(Print::of(meta, key.as_ref(), payload)),
            _ => None,
        };
        let body = Body { key, ..Body::default() };
        self.apply_as(record, body, print, (offset, appended_ms), false)
    }

    fn apply_as(
        &mut self,
        record: Record,
        body: Body,
        print: Option<Print>,
        (offset, appended_ms): (i64, i64),
        is_carried_out: bool,
    ) -> Outcome {
        debug_assert!(offset >= self.position, "records arrive in the order of their offsets");
        self.position = offset + 1;
        self.bytes_before = self.bytes;
        self.bytes += body.len() as u64 + RECORD_OVERHEAD_BYTES;
        self.forget_until(appended_ms);
        match record {
            Record::Half(meta) => {
                let mut half = Half::new(meta, body, HalfOffset(offset), offset);
                half.print = print.unwrap_or(half.print);
                self.half(half, appended_ms)
            }
            Record::Decision(decision) => {
                self.decision(decision, offset, appended_ms, is_carried_out)
            }
            Record::Checked(checked) => self.checked(checked, offset, appended_ms),
            Record::Park(park) => {
                let outcome = self.park(park, offset, appended_ms);
                if is_carried_out {
                    self.replayed(offset);
                }
                outcome
            }
            Record::Reopen(reopen) => self.reopen(*reopen, body, offset, appended_ms),
        }
    }

    /// So many records are about to be replayed: room for them is made at once, as far as it is kept.
    pub(crate) fn expects(&mut self, records: usize) {
        let closed = (records / 2).min(CLOSED_KEPT);
        self.copies.expects(closed);
        self.closed.expects(closed);
    }

    /// These records come next: brings where their ids, and those forgotten for them, are looked up into the
    /// processor's cache. Each would wait for memory as it is applied; looked up one right after the other, many wait at once.
    /// Changes nothing.
    pub(crate) fn look_ahead<'a>(&'a self, records: impl Iterator<Item = &'a Record> + Clone) {
        let is_decision = |record: &&Record| matches!(record, Record::Decision(_));
        let closed = records.clone().filter(is_decision).count();
        let halves = records.filter_map(|record| match record {
            Record::Half(meta) => Some(&meta.id),
            _ => None,
        });
        let next = halves.chain(self.closed.next_forgotten(closed));
        std::hint::black_box(self.copies.known_of(next));
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
    /// were: what is stored together with them, in one transaction. They are in ascending order.
    pub fn progress_after(&self, batch: &[i64]) -> Progress {
        debug_assert!(batch.is_sorted(), "in the order of their records");
        let (mut position, mut released) = (None, Vec::with_capacity(batch.len()));
        let mut left = batch.iter().peekable();
        for (at, pending) in &self.pending {
            while left.next_if(|of_batch| *of_batch < at).is_some() {}
            if left.next_if_eq(&at).is_none() {
                position = position.or(Some(*at));
                if left.peek().is_none() {
                    break;
                }
            } else if let Pending::Decision { stored_at, .. } | Pending::Park { stored_at, .. } =
                pending
            {
                released.push(*stored_at);
            }
        }
        let position = position.unwrap_or(self.position);
        released.sort_unstable();
        let is_held = |at: &&i64| released.binary_search(at).is_err();
        let held = self.held.keys().find(is_held).copied();
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

    /// The log has reached this time: nobody sends a copy of what was closed so long ago.
    fn forget_until(&mut self, appended_ms: i64) {
        while let Some(first) = self.forgotten.first_entry() {
            if first.key().0 > appended_ms {
                return;
            }
            let ((_, half), id) = first.remove_entry();
            if self.decided.contains_key(&half) {
                // Its outcome is on its way: looked at again, else nobody would ever forget it.
                let window = self.copy_window_ms.unwrap_or(0).max(1);
                self.forgotten.insert((appended_ms.saturating_add(window), half), id);
            } else if !self.parked.contains_key(&half) {
                self.copies.forget(id, half);
            }
        }
    }

    fn opened(&mut self, half: Half, appended_ms: i64, epoch: Epoch, history: History) {
        self.body_bytes += half.bytes as u64;
        self.open.insert(half.offset, Open::new(Arc::new(half), appended_ms, epoch, history));
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

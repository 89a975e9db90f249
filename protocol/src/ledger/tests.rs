//! The ledger, record by record. Histories with crashes are in `tests/crashes` of the package.
//!
//! # Layout
//! - [`bodies`]: which bodies are kept in memory
//! - [`copies`]: a message that stands in the log more than once, and ids that are used again
//! - [`deciding`]: the first decision wins
//! - [`history`]: what goes along with a message
//! - [`parking`]: giving up, and undeliverable messages
//! - [`reopening`]: which REOPEN counts
//! - [`progress`]: low-water mark, position, retained bytes
//! - [`takeover`]: what a new owner makes of the log and the parked topic

use super::*;
use crate::record::{CheckOutcome, Checked, Decision, HalfMeta, Origin, Park, ParkCause, Reopen};

mod bodies;
mod copies;
mod deciding;
mod failing;
mod history;
mod parking;
mod progress;
mod reopening;
mod takeover;

/// A ledger and the log that it was fed.
struct Fold {
    ledger: Ledger,
    log: Vec<Record>,
}

impl Fold {
    fn new() -> Self {
        Self { ledger: Ledger::new(0, []), log: Vec::new() }
    }

    /// Appends a record to the log and applies it; its offset is its index in the log.
    fn add(&mut self, record: Record) -> (i64, Outcome) {
        let offset = i64::try_from(self.log.len()).unwrap();
        self.log.push(record.clone());
        (offset, self.ledger.apply(record, Body::default(), offset, 1_000 + offset))
    }

    fn half(&mut self, id: u8) -> HalfRef {
        let (offset, outcome) = self.add(Record::Half(meta(id)));
        assert!(matches!(outcome, Outcome::Opened), "{outcome:?}");
        HalfRef { id: transaction(id), half: HalfOffset(offset), epoch: Epoch(0) }
    }

    fn commit(&mut self, of: HalfRef) -> (i64, Outcome) {
        self.add(decision(of, Verdict::Commit))
    }

    fn rollback(&mut self, of: HalfRef) -> (i64, Outcome) {
        self.add(decision(of, Verdict::Rollback))
    }

    fn park(&mut self, of: HalfRef, attempts: u32, cause: ParkCause) -> (i64, Outcome) {
        self.add(Record::Park(Park { of, attempts, cause, reason: "because".into() }))
    }

    fn reopen(&mut self, of: HalfRef) -> (i64, Outcome) {
        self.add(reopen(of))
    }

    /// A half that is parked for good, its parked topic entry written.
    fn parked(&mut self, id: u8) -> HalfRef {
        let of = self.half(id);
        let (at, outcome) = self.park(of, 0, ParkCause::NoListener);
        assert!(matches!(outcome, Outcome::Parked(_)), "{outcome:?}");
        self.ledger.carried_out(at);
        of
    }

    /// A committed half whose target refused it, parked for good; and the commit's offset.
    fn undeliverable(&mut self, id: u8) -> (HalfRef, i64) {
        let of = self.half(id);
        let (decided_at, _) = self.commit(of);
        self.refuse(decided_at);
        self.ledger.carried_out(decided_at);
        (of, decided_at)
    }

    /// The target refuses the delivery that this decision led to.
    fn refuse(&mut self, decided_at: i64) -> ParkedHalf {
        let parked = self.ledger.refuse(decided_at, "too large".into(), 77);
        parked.expect("a delivery is under way")
    }

    /// What the parked topic would say of this half if the PARK was written.
    fn entry(&self, of: HalfRef) -> ParkedState {
        ParkedState::Parked(self.ledger.parked[&of.half].clone())
    }

    /// A new owner that replays the log from there; records below the position are carried out. The
    /// short way that a replay takes leads to the same state at every record.
    fn taken_over(
        &self,
        low_water: i64,
        position: i64,
        parked: impl IntoIterator<Item = ParkedState>,
    ) -> (Fold, Vec<(i64, Outcome)>) {
        let mut ledger = Ledger::new(low_water, parked);
        let mut short = ledger.clone();
        let mut outcomes = Vec::new();
        for (offset, record) in (0_i64..).zip(&self.log).filter(|(at, _)| *at >= low_water) {
            let (at, body) = (1_000 + offset, Body::default());
            let outcome = ledger.apply(record.clone(), body.clone(), offset, at);
            if offset < position {
                ledger.replayed(offset);
                let shortly = short.apply_replayed(record.clone(), body, offset, at);
                assert_eq!(format!("{shortly:?}"), format!("{outcome:?}"), "{offset}");
            } else {
                outcomes.push((offset, outcome));
                short.apply(record.clone(), body, offset, at);
            }
            assert_eq!(state(&short), state(&ledger), "{offset}: {record:?}");
        }
        (Fold { ledger, log: self.log.clone() }, outcomes)
    }
}

/// All that later records depend on.
fn state(ledger: &Ledger) -> u64 {
    let mut hasher = std::hash::DefaultHasher::new();
    ledger.fingerprint(&mut hasher);
    std::hash::Hasher::finish(&hasher)
}

fn transaction(n: u8) -> TransactionId {
    TransactionId::from_bytes([n; 16])
}

fn meta(id: u8) -> Arc<HalfMeta> {
    Arc::new(HalfMeta {
        id: transaction(id),
        application: "app".into(),
        purpose: "purpose".into(),
        topic: "topic".into(),
        timestamp_ms: 0,
        check_after: None,
        local_transaction: None,
    })
}

fn decision(of: HalfRef, verdict: Verdict) -> Record {
    let origin = Origin::Producer;
    Record::Decision(Decision { of, verdict, origin, operator: None, reason: String::new() })
}

fn reopen(of: HalfRef) -> Record {
    let meta = Arc::new(HalfMeta { id: of.id, ..(*meta(0)).clone() });
    Record::Reopen(Box::new(Reopen { of, meta, operator: "ada".into(), reason: String::new() }))
}

fn checked(of: HalfRef, attempt: u32) -> Record {
    let outcome = CheckOutcome::Unknown;
    let reason = format!("attempt {attempt}");
    Record::Checked(Checked { of, attempt, outcome, reason, asked_by: None })
}

/// The same half in another life.
fn in_epoch(of: HalfRef, epoch: u32) -> HalfRef {
    HalfRef { epoch: Epoch(epoch), ..of }
}

fn offsets(ledger: &Ledger) -> (Vec<i64>, Vec<i64>) {
    let all = HalfOffset(0);
    (
        ledger.open_from(all).map(|open| open.half.offset.0).collect(),
        ledger.parked_from(all).map(|parked| parked.half.offset.0).collect(),
    )
}

fn progress(low_water: i64, position: i64) -> Progress {
    Progress { low_water, position }
}

macro_rules! assert_outcome {
    ($found:expr, $expected:pat $(if $guard:expr)?) => {
        match $found {
            (_, $expected) $(if $guard)? => {}
            (at, found) => panic!("{at}: expected {}, found {found:?}", stringify!($expected)),
        }
    };
}
use assert_outcome;

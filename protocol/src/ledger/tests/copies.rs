//! A half message that stands in the log more than once, and other messages under its id.

use super::*;
use crate::ledger::CLOSED_KEPT;

/// The records of these tests are a millisecond apart.
const WINDOW: Duration = Duration::from_secs(250);

fn told_by_the_check(of: HalfRef, verdict: Verdict) -> Record {
    let Record::Decision(decision) = decision(of, verdict) else { unreachable!("a decision") };
    Record::Decision(Decision { origin: Origin::CheckBack, ..decision })
}

fn lingering() -> Fold {
    Fold { ledger: Ledger::new(0, []).lets_linger(WINDOW), log: Vec::new() }
}

impl Fold {
    /// So many others, each decided by its application.
    fn others(&mut self, count: usize) {
        for number in 0..count {
            let id = TransactionId::from_bytes((number as u128 + (1 << 64)).to_be_bytes());
            let (half, _) = self.add(Record::Half(Arc::new(HalfMeta { id, ..(*meta(0)).clone() })));
            let of = HalfRef { id, half: HalfOffset(half), epoch: Epoch(0) };
            self.rollback(of);
        }
    }

    fn other_message(&mut self, id: u8) -> (i64, Outcome) {
        self.add(Record::Half(Arc::new(HalfMeta {
            topic: "another".into(),
            ..(*meta(id)).clone()
        })))
    }
}

/// Whatever the rate: it is the time that counts, not how many are closed meanwhile.
#[test]
fn copies_are_known_as_long_as_they_may_follow() {
    let mut fold = lingering();
    let of = fold.half(1);
    fold.add(told_by_the_check(of, Verdict::Rollback));
    fold.others(CLOSED_KEPT + 1);
    assert_outcome!(fold.rollback(of), Outcome::Ignored(Ignored::LateUnknown));
    assert_outcome!(fold.add(Record::Half(meta(1))), Outcome::Ignored(Ignored::Copy));
    // By the log and not by a clock: an owner who replays it in no time makes the same of it.
    fold.ledger.let_go(of.half);
    assert_outcome!(fold.add(Record::Half(meta(1))), Outcome::Ignored(Ignored::Copy));
    let (offset, decided_ms) = (i64::try_from(fold.log.len()).expect("few"), 1_001);
    let late_ms = decided_ms + i64::try_from(WINDOW.as_millis()).expect("short");
    let late = fold.ledger.apply(Record::Half(meta(1)), Body::default(), offset, late_ms);
    assert!(matches!(late, Outcome::Opened), "{late:?}");
    assert!(fold.ledger.forgotten.is_empty(), "nothing is kept of it");
}

/// Their target was away for longer than copies may follow, and a hundred thousand others were closed.
#[test]
fn what_is_carried_out_late_is_forgotten_all_the_same() {
    let mut fold = lingering();
    let mut pending = Vec::new();
    for number in 0..200 {
        let of = fold.half(number);
        pending.push((of, fold.add(told_by_the_check(of, Verdict::Commit)).0));
    }
    fold.others(CLOSED_KEPT + 1);
    let window_ms = i64::try_from(WINDOW.as_millis()).expect("short");
    let mut end = (i64::try_from(fold.log.len()).expect("few"), 0);
    let mut later = |fold: &mut Fold, id: u8| {
        end = (end.0 + 1, end.1 + 2 * window_ms);
        fold.ledger.apply(Record::Half(meta(id)), Body::default(), end.0, end.1)
    };
    assert!(matches!(later(&mut fold, 201), Outcome::Opened));
    assert!(matches!(later(&mut fold, 0), Outcome::Ignored(Ignored::Copy)), "it is on its way");
    assert_eq!(fold.ledger.copies.known(), CLOSED_KEPT + 201);
    for (of, at) in pending {
        fold.ledger.carried_out(at);
        fold.ledger.let_go(of.half);
    }
    assert!(matches!(later(&mut fold, 202), Outcome::Opened));
    assert_eq!(fold.ledger.copies.known(), CLOSED_KEPT + 2, "nothing is kept of them");
    assert!(fold.ledger.forgotten.is_empty());
}

/// What is parked meanwhile is known for longer than that.
#[test]
fn a_message_that_is_parked_after_it_was_forgotten_keeps_its_copies() {
    let mut fold = lingering();
    let of = fold.half(1);
    let (at, _) = fold.add(told_by_the_check(of, Verdict::Commit));
    fold.others(CLOSED_KEPT + 1);
    fold.refuse(at);
    fold.ledger.carried_out(at);
    fold.ledger.let_go(of.half);
    assert_outcome!(fold.add(Record::Half(meta(1))), Outcome::Ignored(Ignored::Copy));
}

#[test]
fn another_message_under_a_used_id_is_told_and_decides_nothing() {
    let mut fold = Fold::new();
    let of = fold.half(1);
    let (other, outcome) = fold.other_message(1);
    assert!(matches!(outcome, Outcome::Ignored(Ignored::Reused { first }) if first == of.half));
    let named = HalfRef { half: HalfOffset(other), ..of };
    assert_outcome!(fold.commit(named), Outcome::Ignored(Ignored::LateUnknown));
    assert_outcome!(fold.park(named, 0, ParkCause::MaxAge), Outcome::Ignored(Ignored::Stale));
    assert_eq!(offsets(&fold.ledger), (vec![0], vec![]), "it is as open as before");
    // A copy of the first one still means the first.
    let (copy, outcome) = fold.add(Record::Half(meta(1)));
    assert!(matches!(outcome, Outcome::Ignored(Ignored::Copy)), "{outcome:?}");
    assert_outcome!(
        fold.commit(HalfRef { half: HalfOffset(copy), ..of }),
        Outcome::Deliver { half, .. } if half.offset == of.half
    );
}

/// Whoever takes over sees the same, wherever its replay begins.
#[test]
fn every_owner_takes_the_other_message_for_what_it_is() {
    let mut fold = Fold::new();
    let of = fold.half(1);
    fold.park(of, 0, ParkCause::NoListener);
    fold.ledger.carried_out(1);
    let entry = fold.entry(of);
    let (other, _) = fold.other_message(1);
    let named = HalfRef { half: HalfOffset(other), ..of };
    fold.reopen(of);
    fold.commit(named);
    let replays = [(0, None), (0, Some(entry.clone())), (2, Some(entry))];
    for (low_water, parked) in replays {
        let (owner, _) = fold.taken_over(low_water, low_water, parked);
        assert_eq!(offsets(&owner.ledger), (vec![0], vec![]), "open again, from {low_water} on");
    }
    // One that the log has let go of is opened by nobody: no replay begins between the two.
    let mut fold = Fold::new();
    let of = fold.half(1);
    fold.half(2);
    fold.other_message(1);
    fold.rollback(of);
    assert_eq!(fold.ledger.progress(), progress(0, 4));
}

//! Checks that failed: noted, never counted.

use super::*;

fn failed(of: HalfRef, attempts: u32) -> Record {
    Record::Checked(Checked::failed(of, attempts, "away".into()))
}

#[test]
fn a_failure_is_noted_with_the_time_of_the_first() {
    let mut fold = Fold::new();
    let of = fold.half(1);
    let (first, outcome) = fold.add(failed(of, 0));
    assert!(matches!(outcome, Outcome::CheckFailed { half } if half == of.half), "{outcome:?}");
    fold.add(failed(of, 0));
    let open = fold.ledger.open(of.half).expect("it is open");
    assert_eq!((open.attempts, open.failing_since_ms), (0, Some(1_000 + first)));
    assert_eq!(open.last_outcome, Some((CheckOutcome::Failed, "away".into())));
    assert_eq!(fold.ledger.first_failing().map(|open| open.half.offset), Some(of.half));
    fold.add(checked(of, 1));
    let open = fold.ledger.open(of.half).expect("it is open");
    assert_eq!((open.attempts, open.failing_since_ms), (1, None));
    assert_eq!(fold.ledger.failing_count(), 0);
}

#[test]
fn one_after_another_number_of_attempts_or_life_or_of_another_message_is_stale() {
    let mut fold = Fold::new();
    let of = fold.half(1);
    fold.add(checked(of, 1));
    for stale in [failed(of, 0), failed(of, 3), failed(in_epoch(of, 1), 1)] {
        assert_outcome!(fold.add(stale), Outcome::Ignored(Ignored::Stale));
    }
    let other = HalfRef { id: transaction(2), ..of };
    assert_outcome!(fold.add(failed(other, 1)), Outcome::Ignored(Ignored::Mismatch));
    // What was not answered is no failure either: an attempt that was counted before.
    assert_outcome!(fold.add(checked(of, 1)), Outcome::Ignored(Ignored::Stale));
    assert_eq!(fold.ledger.failing_count(), 0);
}

#[test]
fn a_park_rests_on_the_attempts_that_count() {
    let mut fold = Fold::new();
    let of = fold.half(1);
    fold.add(checked(of, 1));
    fold.add(failed(of, 1));
    assert_outcome!(fold.park(of, 1, ParkCause::MaxAge), Outcome::Parked(_));
    assert_eq!(fold.ledger.failing_count(), 0);
    // Its next life begins with none of it.
    fold.reopen(of);
    assert_eq!(fold.ledger.open(of.half).expect("it is open").failing_since_ms, None);
}

#[test]
fn what_is_decided_fails_no_more() {
    let mut fold = Fold::new();
    let (of, other) = (fold.half(1), fold.half(2));
    fold.add(failed(of, 0));
    fold.add(failed(other, 0));
    fold.commit(of);
    assert_eq!(fold.ledger.failing_count(), 1);
    assert_eq!(fold.ledger.first_failing().map(|open| open.half.offset), Some(other.half));
    assert_outcome!(fold.add(failed(of, 0)), Outcome::Ignored(Ignored::Stale));
}

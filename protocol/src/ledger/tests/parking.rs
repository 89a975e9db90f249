//! Giving up: PARK counts once, on the state that it was based on.

use super::*;

#[test]
fn c16_parked_once_and_listed() {
    let mut fold = Fold::new();
    let of = fold.half(1);
    fold.add(checked(of, 1));
    let (at, outcome) = fold.park(of, 1, ParkCause::MaxChecks);
    let Outcome::Parked(parked) = outcome else { panic!("{outcome:?}") };
    assert_eq!((parked.epoch, parked.attempts, parked.cause), (Epoch(0), 1, ParkCause::MaxChecks));
    assert_eq!((parked.reason.as_str(), parked.parked_ms), ("because", 1_000 + at));
    assert_outcome!(fold.park(of, 1, ParkCause::MaxChecks), Outcome::Ignored(Ignored::Stale));
    assert_eq!(offsets(&fold.ledger), (vec![], vec![0]));
    assert_eq!(fold.ledger.find_parked(of.id), Some(&parked));
    assert_eq!(fold.ledger.parked_count(), 1);
}

#[test]
fn a_park_that_does_not_match_is_ignored() {
    let mut fold = Fold::new();
    let of = fold.half(1);
    fold.add(checked(of, 1));
    let wrong = HalfRef { id: transaction(2), ..of };
    let cause = ParkCause::MaxChecks;
    assert_outcome!(fold.park(wrong, 1, cause), Outcome::Ignored(Ignored::Mismatch));
    assert_outcome!(fold.park(of, 0, cause), Outcome::Ignored(Ignored::Stale));
    assert_outcome!(fold.park(of, 2, cause), Outcome::Ignored(Ignored::Stale));
    assert_outcome!(fold.park(in_epoch(of, 1), 1, cause), Outcome::Ignored(Ignored::Stale));
    let undeliverable = ParkCause::Undeliverable;
    assert_outcome!(fold.park(of, 1, undeliverable), Outcome::Ignored(Ignored::Stale));
    assert_eq!(offsets(&fold.ledger), (vec![0], vec![]));
}

#[test]
fn a_decided_half_is_not_parked() {
    let mut fold = Fold::new();
    let of = fold.half(1);
    fold.rollback(of);
    let parked = fold.park(of, 0, ParkCause::MaxChecks);
    assert_outcome!(parked, Outcome::Ignored(Ignored::Stale));
    assert_eq!(offsets(&fold.ledger), (vec![], vec![]));
}

#[test]
fn c11_a_late_commit_leaves_it_parked_as_a_conflict() {
    let mut fold = Fold::new();
    let of = fold.parked(1);
    assert_outcome!(fold.commit(of), Outcome::Ignored(Ignored::Conflict));
    assert_outcome!(fold.rollback(of), Outcome::Ignored(Ignored::Conflict));
    assert_eq!(offsets(&fold.ledger), (vec![], vec![0]));
}

#[test]
fn progress_waits_for_the_parked_topic() {
    let mut fold = Fold::new();
    let of = fold.half(1);
    let (at, _) = fold.park(of, 0, ParkCause::MaxAge);
    assert_eq!(fold.ledger.progress(), progress(0, at));
    fold.ledger.carried_out(at);
    assert_eq!(fold.ledger.progress(), progress(2, 2));
}

#[test]
fn progress_does_not_pass_a_refused_delivery_until_it_is_parked() {
    let mut fold = Fold::new();
    let of = fold.half(1);
    let (decided_at, _) = fold.commit(of);
    fold.half(2);
    assert_eq!(fold.ledger.progress(), progress(0, decided_at));
    let parked = fold.refuse(decided_at);
    assert_eq!((parked.cause, parked.parked_ms), (ParkCause::Undeliverable, 77));
    assert_eq!(fold.ledger.progress(), progress(0, decided_at), "the parked topic lags");
    fold.ledger.carried_out(decided_at);
    assert_eq!(fold.ledger.progress(), progress(2, 3));
    assert_eq!(offsets(&fold.ledger), (vec![2], vec![0]));
}

#[test]
fn only_a_delivery_under_way_is_refused() {
    let mut fold = Fold::new();
    let of = fold.half(1);
    let (decided_at, _) = fold.commit(of);
    let park = fold.park(of, 0, ParkCause::Undeliverable);
    assert_outcome!(park, Outcome::Ignored(Ignored::Stale));
    fold.ledger.carried_out(decided_at);
    assert_eq!(fold.ledger.progress(), progress(3, 3));
    let (of, dropped) = (fold.parked(2), fold.ledger.position());
    fold.reopen(of);
    let (dropped_at, _) = fold.rollback(in_epoch(of, 1));
    assert!(dropped_at > dropped);
    for at in [decided_at, dropped_at, 77] {
        assert_eq!(fold.ledger.refuse(at, String::new(), 0), None, "{at}");
    }
}

#[test]
fn a_delivery_is_refused_once() {
    let mut fold = Fold::new();
    let of = fold.half(1);
    let (decided_at, _) = fold.commit(of);
    fold.refuse(decided_at);
    assert_eq!(fold.ledger.refuse(decided_at, String::new(), 0), None);
    fold.ledger.carried_out(decided_at);
    assert_eq!(fold.ledger.progress(), progress(2, 2));
}

#[test]
fn a_late_decision_about_an_undeliverable_message_is_a_conflict() {
    let mut fold = Fold::new();
    let (of, _) = fold.undeliverable(1);
    assert_outcome!(fold.commit(of), Outcome::Ignored(Ignored::Conflict));
    assert!(fold.ledger.find_closed(of.id).is_none(), "it is parked, not closed");
    assert_eq!(fold.ledger.parked_count(), 1);
}

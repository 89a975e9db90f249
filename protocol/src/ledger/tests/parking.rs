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
    assert_eq!(fold.ledger.refused(decided_at), Some((of, 0)));
    fold.half(2);
    assert_eq!(fold.ledger.progress(), progress(0, decided_at));
    let (at, outcome) = fold.park(of, 0, ParkCause::Undeliverable);
    let Outcome::Parked(parked) = outcome else { panic!("{outcome:?}") };
    assert_eq!(parked.cause, ParkCause::Undeliverable);
    assert_eq!(fold.ledger.progress(), progress(0, decided_at), "the parked topic lags");
    fold.ledger.carried_out(at);
    assert_eq!(fold.ledger.progress(), progress(2, 4));
    assert_eq!(offsets(&fold.ledger), (vec![2], vec![0]));
}

#[test]
fn an_undeliverable_park_needs_a_refusal() {
    let mut fold = Fold::new();
    let of = fold.half(1);
    let (decided_at, _) = fold.commit(of);
    let park = fold.park(of, 0, ParkCause::Undeliverable);
    assert_outcome!(park, Outcome::Ignored(Ignored::Stale));
    fold.ledger.carried_out(decided_at);
    assert_eq!(fold.ledger.progress(), progress(3, 3));
    assert_eq!(fold.ledger.refused(decided_at), None);
    assert_eq!(fold.ledger.refused(77), None);
}

#[test]
fn a_park_repeated_before_it_is_carried_out_changes_nothing() {
    let mut fold = Fold::new();
    let of = fold.half(1);
    let (decided_at, _) = fold.commit(of);
    fold.ledger.refused(decided_at);
    let (first, _) = fold.park(of, 0, ParkCause::Undeliverable);
    let again = fold.park(of, 0, ParkCause::Undeliverable);
    assert_outcome!(again, Outcome::Ignored(Ignored::Stale));
    fold.ledger.carried_out(first);
    assert_eq!(fold.ledger.progress(), progress(4, 4));
}

#[test]
fn a_late_decision_about_an_undeliverable_message_is_a_conflict() {
    let mut fold = Fold::new();
    let (of, _) = fold.undeliverable(1);
    assert_outcome!(fold.commit(of), Outcome::Ignored(Ignored::Conflict));
    assert!(fold.ledger.find_closed(of.id).is_none(), "it is parked, not closed");
    assert_eq!(fold.ledger.parked_count(), 1);
}

#[test]
fn a_parked_half_may_be_opened_again_only_once_its_park_is_carried_out() {
    let mut fold = Fold::new();
    let of = fold.half(1);
    let (at, _) = fold.park(of, 0, ParkCause::MaxChecks);
    let parked = fold.ledger.find_parked(of.id).unwrap().clone();
    assert!(!fold.ledger.is_park_carried_out(&parked));
    fold.ledger.carried_out(at);
    assert!(fold.ledger.is_park_carried_out(&parked));
}

//! The first decision wins; what comes later is told apart.

use super::*;

#[test]
fn commit_delivers_the_half_as_it_was_stored() {
    let mut ledger = Ledger::new(5, []);
    let body = Body {
        key: Some("key".into()),
        headers: vec![("a".into(), Some("1".into())), ("a".into(), None)],
        payload: Some("payload".into()),
    };
    ledger.apply(Record::Half(meta(1)), body.clone(), 5, 77);
    let of = HalfRef { id: transaction(1), half: HalfOffset(5), epoch: Epoch(0) };
    let open = ledger.open(of.half).unwrap();
    assert_eq!((open.half.stored_at, open.appended_ms, open.attempts), (5, 77, 0));
    let outcome = ledger.apply(decision(of, Verdict::Commit), Body::default(), 6, 78);
    let Outcome::Deliver { half, settles: false } = outcome else { panic!("{outcome:?}") };
    assert_eq!(*half, Half::new(meta(1), body, HalfOffset(5), 5));
    assert_eq!(ledger.open_count(), 0);
}

#[test]
fn c09_commit_twice_delivers_once() {
    let mut fold = Fold::new();
    let of = fold.half(1);
    assert_outcome!(fold.commit(of), Outcome::Deliver { settles: false, .. });
    assert_outcome!(fold.commit(of), Outcome::Ignored(Ignored::Duplicate));
    fold.ledger.carried_out(1);
    assert_outcome!(fold.commit(of), Outcome::Ignored(Ignored::Duplicate));
}

#[test]
fn c10_rollback_then_commit_stays_rolled_back() {
    let mut fold = Fold::new();
    let of = fold.half(1);
    assert_outcome!(fold.rollback(of), Outcome::Dropped { settles: false, .. });
    assert_outcome!(fold.commit(of), Outcome::Ignored(Ignored::Conflict));
    assert_outcome!(fold.rollback(of), Outcome::Ignored(Ignored::Duplicate));
    assert_eq!(fold.ledger.progress(), progress(4, 4));
}

#[test]
fn c10_commit_then_rollback_stays_committed() {
    let mut fold = Fold::new();
    let of = fold.half(1);
    assert_outcome!(fold.commit(of), Outcome::Deliver { .. });
    assert_outcome!(fold.rollback(of), Outcome::Ignored(Ignored::Conflict));
    assert_eq!(fold.ledger.progress(), progress(0, 1), "the delivery is still due");
    let closed = fold.ledger.find_closed(of.id).unwrap();
    assert_eq!((closed.verdict, closed.decided_at), (Verdict::Commit, 1));
}

#[test]
fn a_decision_with_another_transaction_id_is_a_mismatch() {
    let mut fold = Fold::new();
    let of = fold.half(1);
    let wrong = HalfRef { id: transaction(2), ..of };
    assert_outcome!(fold.commit(wrong), Outcome::Ignored(Ignored::Mismatch));
    assert_outcome!(fold.commit(of), Outcome::Deliver { .. });
    assert_outcome!(fold.commit(wrong), Outcome::Ignored(Ignored::Mismatch));
    let parked = fold.parked(3);
    let wrong = HalfRef { id: transaction(2), ..parked };
    assert_outcome!(fold.commit(wrong), Outcome::Ignored(Ignored::Mismatch));
}

#[test]
fn a_decision_of_an_unknown_half_is_late() {
    let mut fold = Fold::new();
    fold.half(1);
    for half in [-1, 1, 99, i64::MAX] {
        let of = HalfRef { id: transaction(1), half: HalfOffset(half), epoch: Epoch(0) };
        assert_outcome!(fold.commit(of), Outcome::Ignored(Ignored::LateUnknown));
    }
    assert_eq!(fold.ledger.open_count(), 1);
}

#[test]
fn a_decision_of_an_epoch_to_come_is_not_believed() {
    let mut fold = Fold::new();
    let of = fold.half(1);
    assert_outcome!(fold.commit(in_epoch(of, 1)), Outcome::Ignored(Ignored::Stale));
    assert_eq!(fold.ledger.open_count(), 1);
}

#[test]
fn c15_attempts_are_counted_in_their_order_once() {
    let mut fold = Fold::new();
    let of = fold.half(1);
    assert_outcome!(fold.add(checked(of, 2)), Outcome::Ignored(Ignored::Stale));
    assert_outcome!(fold.add(checked(of, 1)), Outcome::Attempted { attempts: 1, .. });
    assert_outcome!(fold.add(checked(of, 1)), Outcome::Ignored(Ignored::Stale));
    assert_outcome!(fold.add(checked(in_epoch(of, 1), 2)), Outcome::Ignored(Ignored::Stale));
    let wrong = HalfRef { id: transaction(2), ..of };
    assert_outcome!(fold.add(checked(wrong, 2)), Outcome::Ignored(Ignored::Mismatch));
    assert_outcome!(fold.add(checked(of, 2)), Outcome::Attempted { attempts: 2, .. });
    let open = fold.ledger.open(of.half).unwrap();
    assert_eq!(open.last_outcome, Some((CheckOutcome::Unknown, "attempt 2".into())));
    fold.commit(of);
    assert_eq!(fold.ledger.find_closed(of.id).unwrap().attempts, 2);
    assert_outcome!(fold.add(checked(of, 3)), Outcome::Ignored(Ignored::Stale));
}

#[test]
fn messages_do_not_touch_each_other() {
    let mut fold = Fold::new();
    let (first, second, third) = (fold.half(1), fold.half(2), fold.half(3));
    fold.commit(second);
    assert_eq!(offsets(&fold.ledger), (vec![first.half.0, third.half.0], vec![]));
    fold.rollback(third);
    assert_eq!(offsets(&fold.ledger), (vec![first.half.0], vec![]));
    assert!(fold.ledger.find_open(first.id).is_some());
    assert!(fold.ledger.find_open(second.id).is_none());
}

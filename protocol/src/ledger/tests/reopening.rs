//! Which REOPEN counts: the first of the parked epoch, and its replay.

use super::*;

#[test]
fn c11_reopened_it_is_delivered_once() {
    let mut fold = Fold::new();
    let of = fold.parked(1);
    assert_outcome!(fold.commit(of), Outcome::Ignored(Ignored::Conflict));
    let (reopened_at, outcome) = fold.reopen(of);
    assert_outcome!((0, outcome), Outcome::Reopened { half } if half == of.half);
    let open = fold.ledger.open(of.half).unwrap();
    assert_eq!((open.epoch, open.attempts, open.half.stored_at), (Epoch(1), 0, reopened_at));
    assert_eq!(open.half.offset, of.half, "the same identity");
    assert_eq!(offsets(&fold.ledger), (vec![0], vec![]));
    let (at, outcome) = fold.commit(in_epoch(of, 1));
    assert_outcome!((at, outcome), Outcome::Deliver { settles: true, .. });
    assert_outcome!(fold.commit(of), Outcome::Ignored(Ignored::Duplicate));
    fold.ledger.carried_out(at);
    assert_eq!(offsets(&fold.ledger), (vec![], vec![]));
}

#[test]
fn a_decision_of_the_older_epoch_counts_once_it_is_reopened() {
    let mut fold = Fold::new();
    let of = fold.parked(1);
    fold.reopen(of);
    assert_outcome!(fold.commit(of), Outcome::Deliver { settles: true, .. });
}

#[test]
fn only_a_parked_message_is_reopened_and_only_in_its_epoch() {
    let mut fold = Fold::new();
    let open = fold.half(1);
    assert_outcome!(fold.reopen(open), Outcome::Ignored(Ignored::Stale));
    let unknown = HalfRef { half: HalfOffset(77), ..open };
    assert_outcome!(fold.reopen(unknown), Outcome::Ignored(Ignored::Stale));
    let parked = fold.parked(2);
    assert_outcome!(fold.reopen(in_epoch(parked, 1)), Outcome::Ignored(Ignored::Stale));
    let wrong = HalfRef { id: transaction(3), ..parked };
    assert_outcome!(fold.reopen(wrong), Outcome::Ignored(Ignored::Stale));
    fold.rollback(open);
    assert_outcome!(fold.reopen(open), Outcome::Ignored(Ignored::Stale));
    assert_eq!(offsets(&fold.ledger), (vec![], vec![parked.half.0]));
}

#[test]
fn the_second_reopen_of_an_epoch_is_ignored() {
    let mut fold = Fold::new();
    let of = fold.parked(1);
    assert_outcome!(fold.reopen(of), Outcome::Reopened { .. });
    assert_outcome!(fold.reopen(of), Outcome::Ignored(Ignored::Stale));
    let (at, _) = fold.park(in_epoch(of, 1), 0, ParkCause::NoListener);
    assert_outcome!(fold.reopen(of), Outcome::Ignored(Ignored::Stale));
    fold.ledger.carried_out(at);
    assert_outcome!(fold.reopen(of), Outcome::Ignored(Ignored::Stale));
    assert_outcome!(fold.reopen(in_epoch(of, 1)), Outcome::Reopened { .. });
    assert_eq!(fold.ledger.open(of.half).unwrap().epoch, Epoch(2));
}

#[test]
fn a_reopen_after_the_delivery_is_ignored() {
    let mut fold = Fold::new();
    let of = fold.parked(1);
    fold.reopen(of);
    let (at, _) = fold.commit(in_epoch(of, 1));
    assert_outcome!(fold.reopen(of), Outcome::Ignored(Ignored::Stale));
    fold.ledger.carried_out(at);
    assert_outcome!(fold.reopen(of), Outcome::Ignored(Ignored::Stale));
    fold.ledger.forget_settled(at + 1);
    assert_outcome!(fold.reopen(of), Outcome::Ignored(Ignored::Stale));
    assert_eq!(offsets(&fold.ledger), (vec![], vec![]));
}

#[test]
fn a_reopen_after_the_rollback_is_ignored() {
    let mut fold = Fold::new();
    let of = fold.parked(1);
    fold.reopen(of);
    let (at, outcome) = fold.rollback(in_epoch(of, 1));
    assert_outcome!((at, outcome), Outcome::Dropped { settles: true, .. });
    assert_outcome!(fold.reopen(of), Outcome::Ignored(Ignored::Stale));
    fold.ledger.carried_out(at);
    assert_outcome!(fold.reopen(of), Outcome::Ignored(Ignored::Stale));
    assert_eq!(offsets(&fold.ledger), (vec![], vec![]));
}

#[test]
fn a_message_that_is_decided_is_not_listed_as_parked() {
    for verdict in [Verdict::Commit, Verdict::Rollback] {
        let mut fold = Fold::new();
        let of = fold.parked(1);
        fold.reopen(of);
        fold.add(decision(in_epoch(of, 1), verdict));
        assert_eq!(fold.ledger.parked_count(), 0, "{verdict:?}");
    }
}

#[test]
fn a_park_carried_out_late_does_not_carry_out_a_later_delivery() {
    let mut fold = Fold::new();
    let of = fold.half(1);
    let (parked_at, _) = fold.park(of, 0, ParkCause::MaxChecks);
    assert_outcome!(fold.reopen(of), Outcome::Reopened { .. });
    let (decided_at, _) = fold.commit(in_epoch(of, 1));
    fold.ledger.carried_out(parked_at);
    assert_eq!(fold.ledger.progress(), progress(2, decided_at), "the delivery is still due");
    fold.ledger.carried_out(decided_at);
    assert_eq!(fold.ledger.progress(), progress(4, 4));
    assert_eq!(offsets(&fold.ledger), (vec![], vec![]));
}

#[test]
fn an_undeliverable_message_is_reopened_and_delivered() {
    let mut fold = Fold::new();
    let (of, decided_at) = fold.undeliverable(1);
    assert_outcome!(fold.reopen(of), Outcome::Reopened { .. });
    let (at, outcome) = fold.commit(in_epoch(of, 1));
    assert_outcome!((at, outcome), Outcome::Deliver { settles: true, .. });
    fold.ledger.carried_out(decided_at);
    assert_eq!(fold.ledger.progress().position, at, "an old report changes nothing");
    fold.ledger.carried_out(at);
    assert_eq!(fold.ledger.progress(), progress(at + 1, at + 1));
    assert_eq!(offsets(&fold.ledger), (vec![], vec![]));
}

/// What the log says decides, not when the parked topic's acknowledgement comes.
#[test]
fn a_refused_message_can_be_reopened_before_the_parked_topic_has_it() {
    let mut fold = Fold::new();
    let of = fold.half(1);
    let (decided_at, _) = fold.commit(of);
    fold.refuse(decided_at);
    assert_outcome!(fold.reopen(of), Outcome::Reopened { .. });
    assert_eq!(fold.ledger.progress(), progress(0, decided_at));
    fold.ledger.carried_out(decided_at);
    assert_eq!(fold.ledger.progress(), progress(2, 3));
    assert_eq!(offsets(&fold.ledger), (vec![0], vec![]));
}

#[test]
fn an_operator_can_drop_an_undeliverable_message() {
    let mut fold = Fold::new();
    let (of, _) = fold.undeliverable(1);
    fold.reopen(of);
    let (at, outcome) = fold.rollback(in_epoch(of, 1));
    assert_outcome!((at, outcome), Outcome::Dropped { settles: true, .. });
    fold.ledger.carried_out(at);
    assert_eq!(offsets(&fold.ledger), (vec![], vec![]));
    assert_eq!(fold.ledger.progress(), progress(4, 4));
    assert_eq!(fold.ledger.find_closed(of.id).unwrap().verdict, Verdict::Rollback);
}

/// At least once nothing fences a former owner that stood still: its entry for the parked topic may
/// come when the message is long settled, and its mark is cleared away.
#[test]
fn a_late_entry_of_a_former_owner_is_listed_changes_nothing_and_resolves() {
    let mut fold = Fold::new();
    let of = fold.parked(1);
    let late = fold.entry(of);
    fold.reopen(of);
    let (at, _) = fold.commit(in_epoch(of, 1));
    fold.ledger.carried_out(at);
    let end = fold.ledger.position();
    assert_eq!(fold.ledger.forget_settled(end), [of.id]);

    // As long as the log tells of it, the entry is known to be of before.
    let (next, _) = fold.taken_over(0, end, [late.clone()]);
    assert_eq!(offsets(&next.ledger), (vec![], vec![]));

    // Trimmed, it is shown as parked: nothing is held up, and nothing decides by itself.
    let (mut next, _) = fold.taken_over(end, end, [late]);
    assert_eq!(offsets(&next.ledger), (vec![], vec![0]));
    assert_eq!(next.ledger.progress(), progress(end, end));
    assert_outcome!(next.commit(of), Outcome::Ignored(Ignored::Conflict));
    // Opened again, the listener says once more how its local transaction ended: the same message,
    // by the same identity, and then nothing is left of it.
    assert_outcome!(next.reopen(of), Outcome::Reopened { .. });
    let (at, outcome) = next.commit(in_epoch(of, 1));
    let Outcome::Deliver { half, settles: true } = outcome else { panic!("{outcome:?}") };
    assert_eq!(half.meta.id, of.id);
    next.ledger.carried_out(at);
    assert_eq!((next.ledger.parked_count(), next.ledger.open_count()), (0, 0));
    assert_eq!(next.ledger.forget_settled(next.ledger.position()), [of.id]);
}

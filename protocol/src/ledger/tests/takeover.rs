//! What a new owner makes of stored progress, the log from there and the parked topic, whenever
//! the old owner died. The parked topic may be ahead of progress, never behind.

use super::*;

fn settled(of: HalfRef, at: i64) -> ParkedState {
    ParkedState::Settled { of, at }
}

#[test]
fn what_was_carried_out_is_not_carried_out_again() {
    let mut fold = Fold::new();
    let (open, done) = (fold.half(1), fold.half(2));
    let (at, _) = fold.commit(done);
    fold.ledger.carried_out(at);
    let stored = fold.ledger.progress();
    assert_eq!(stored, progress(0, 3));
    fold.commit(open);
    let (new, outcomes) = fold.taken_over(stored.low_water, stored.position, []);
    let [(3, Outcome::Deliver { half, .. })] = &outcomes[..] else { panic!("{outcomes:?}") };
    assert_eq!(half.meta.id, open.id);
    assert_eq!(new.ledger.progress(), progress(0, 3));
}

#[test]
fn a_delivery_that_was_due_is_due_again() {
    let mut fold = Fold::new();
    let of = fold.half(1);
    fold.commit(of);
    let stored = fold.ledger.progress();
    let (_, outcomes) = fold.taken_over(stored.low_water, stored.position, []);
    assert!(matches!(&outcomes[..], [(1, Outcome::Deliver { .. })]), "{outcomes:?}");
}

#[test]
fn a_parked_message_below_the_low_water_mark_comes_from_the_parked_topic() {
    let mut fold = Fold::new();
    let of = fold.parked(1);
    let (mut new, _) = fold.taken_over(2, 2, [fold.entry(of)]);
    assert_eq!(offsets(&new.ledger), (vec![], vec![0]));
    assert_outcome!(new.commit(of), Outcome::Ignored(Ignored::Conflict));
    assert_outcome!(new.reopen(of), Outcome::Reopened { .. });
    let (_, outcome) = new.commit(in_epoch(of, 1));
    assert_outcome!((0, outcome), Outcome::Deliver { settles: true, .. });
}

#[test]
fn a_park_whose_write_is_not_known_is_written_again() {
    let mut fold = Fold::new();
    let of = fold.half(1);
    fold.park(of, 0, ParkCause::MaxAge);
    for parked in [vec![], vec![fold.entry(of)]] {
        let (new, outcomes) = fold.taken_over(0, 1, parked);
        assert!(matches!(&outcomes[..], [(1, Outcome::Parked(_))]), "{outcomes:?}");
        assert_eq!(offsets(&new.ledger), (vec![], vec![0]));
    }
}

#[test]
fn the_replay_of_the_reopen_that_led_to_the_settling_decision_is_honoured() {
    let mut fold = Fold::new();
    let of = fold.parked(1);
    let (reopened_at, _) = fold.reopen(of);
    let (at, _) = fold.commit(in_epoch(of, 1));
    // The mark is written, progress is not: the delivery is due again.
    let mark = settled(in_epoch(of, 1), at);
    let (mut new, outcomes) = fold.taken_over(reopened_at, at, [mark]);
    assert!(matches!(&outcomes[..], [(_, Outcome::Deliver { settles: true, .. })]), "{outcomes:?}");
    assert_outcome!(new.reopen(of), Outcome::Ignored(Ignored::Stale));
    new.ledger.carried_out(at);
    assert_outcome!(new.reopen(of), Outcome::Ignored(Ignored::Stale));
    assert_eq!(new.ledger.forget_settled(at), [], "progress has not passed it");
    assert_eq!(new.ledger.forget_settled(at + 1), [of.id]);
    assert_eq!(new.ledger.forget_settled(at + 1), []);
    assert_eq!(offsets(&new.ledger), (vec![], vec![]));
}

#[test]
fn a_reopen_behind_the_settling_decision_is_stale_in_replay_too() {
    let mut fold = Fold::new();
    let of = fold.parked(1);
    fold.reopen(of);
    let (at, _) = fold.rollback(in_epoch(of, 1));
    fold.ledger.carried_out(at);
    fold.half(2);
    fold.reopen(of);
    let mark = settled(in_epoch(of, 1), at);
    for parked in [vec![mark], vec![]] {
        let (new, _) = fold.taken_over(at + 1, at + 1, parked);
        assert_eq!(offsets(&new.ledger), (vec![4], vec![]));
    }
}

#[test]
fn a_dead_owners_park_is_settled_if_the_new_owner_delivers() {
    let mut fold = Fold::new();
    let of = fold.half(1);
    let (at, _) = fold.commit(of);
    fold.refuse(at);
    let (mut new, outcomes) = fold.taken_over(0, at, [fold.entry(of)]);
    assert!(matches!(&outcomes[..], [(1, Outcome::Deliver { settles: true, .. })]), "{outcomes:?}");
    new.ledger.carried_out(at);
    assert_eq!(offsets(&new.ledger), (vec![], vec![]));
    assert_eq!(new.ledger.progress(), progress(2, 2));
    assert_eq!(new.ledger.forget_settled(2), [of.id]);
}

#[test]
fn the_new_owner_parks_a_delivery_that_is_refused_again() {
    let mut fold = Fold::new();
    let of = fold.half(1);
    let (at, _) = fold.commit(of);
    fold.refuse(at);
    let (mut new, _) = fold.taken_over(0, at, [fold.entry(of)]);
    new.refuse(at);
    new.ledger.carried_out(at);
    assert_eq!(offsets(&new.ledger), (vec![], vec![0]));
    assert_eq!(new.ledger.progress(), progress(2, 2));
}

/// The mark of a delivery may be durable and the delivery not; refused this time, the message is
/// parked, and then the mark must not take the parked entry away with it.
#[test]
fn an_old_mark_does_not_remove_a_message_that_was_parked_since() {
    let mut fold = Fold::new();
    let of = fold.half(1);
    let (at, _) = fold.commit(of);
    let (mut new, _) = fold.taken_over(0, at, [settled(of, at)]);
    new.refuse(at);
    new.ledger.carried_out(at);
    assert_eq!(new.ledger.forget_settled(at + 1), [], "it is parked: keep its entry");
    assert_eq!(offsets(&new.ledger), (vec![], vec![0]));
}

/// Refused, parked, reopened, dropped; then the old owner dies before its progress is stored.
#[test]
fn a_life_that_the_parked_topic_knows_to_be_over_is_not_lived_again() {
    let mut fold = Fold::new();
    let of = fold.half(1);
    let (at, _) = fold.commit(of);
    fold.refuse(at);
    fold.reopen(of);
    let (dropped_at, outcome) = fold.rollback(in_epoch(of, 1));
    assert_outcome!((0, outcome), Outcome::Dropped { settles: true, .. });
    let mark = settled(in_epoch(of, 1), dropped_at);
    let (mut new, outcomes) = fold.taken_over(0, at, [mark]);
    for (offset, outcome) in &outcomes {
        let delivers = matches!(outcome, Outcome::Deliver { .. });
        assert!(!delivers, "{offset}: a rolled-back message is delivered");
    }
    new.ledger.carried_out(dropped_at);
    assert_eq!(offsets(&new.ledger), (vec![], vec![]));
    assert_eq!(new.ledger.progress(), progress(4, 4));
}

/// Refused and parked in two lives; then the old owner dies before its progress is stored.
#[test]
fn an_older_life_does_not_overwrite_the_parked_one() {
    let mut fold = Fold::new();
    let of = fold.half(1);
    let (at, _) = fold.commit(of);
    fold.refuse(at);
    fold.reopen(of);
    let (again, _) = fold.commit(in_epoch(of, 1));
    fold.refuse(again);
    let (new, outcomes) = fold.taken_over(0, at, [fold.entry(of)]);
    let carried_out = outcomes.iter().filter(|(_, outcome)| {
        matches!(outcome, Outcome::Deliver { .. } | Outcome::Parked(_) | Outcome::Dropped { .. })
    });
    assert_eq!(carried_out.count(), 0, "{outcomes:?}");
    assert_eq!(offsets(&new.ledger), (vec![], vec![0]));
    assert_eq!(new.ledger.find_parked(of.id).unwrap().epoch, Epoch(1));
    assert_eq!(new.ledger.progress(), progress(4, 4));
}

#[test]
fn a_replayed_undeliverable_message_is_parked_and_not_closed() {
    let mut fold = Fold::new();
    fold.half(1);
    let (of, _) = fold.undeliverable(2);
    let stored = fold.ledger.progress();
    assert_eq!(stored, progress(0, 3));
    let (mut new, _) = fold.taken_over(stored.low_water, stored.position, [fold.entry(of)]);
    assert_eq!(offsets(&new.ledger), (vec![0], vec![1]));
    assert!(new.ledger.find_closed(of.id).is_none());
    assert_outcome!(new.commit(of), Outcome::Ignored(Ignored::Conflict));
}

/// The first owner ignored this REOPEN, because the message was not parked yet when it came. The
/// parked topic tells the next one that it is parked, and must tell when, too.
#[test]
fn a_reopen_before_the_park_is_stale_in_replay_too() {
    let mut fold = Fold::new();
    fold.half(1);
    let of = fold.half(2);
    assert_outcome!(fold.reopen(of), Outcome::Ignored(Ignored::Stale));
    let (at, _) = fold.park(of, 0, ParkCause::MaxAge);
    fold.ledger.carried_out(at);
    let late = HalfRef { id: transaction(1), half: HalfOffset(0), epoch: Epoch(0) };
    fold.rollback(late);
    let parked = [fold.entry(of)];
    let (new, _) = fold.taken_over(2, 5, parked);
    assert_eq!(offsets(&new.ledger), (vec![], vec![1]));
}

/// The mark tells which decision settled the message, not which REOPEN led there: a stale REOPEN
/// may come first. What lies between must not be believed instead.
#[test]
fn a_life_that_a_mark_ends_is_ended_by_no_other_record() {
    let mut fold = Fold::new();
    let of = fold.half(1);
    assert_outcome!(fold.reopen(of), Outcome::Ignored(Ignored::Stale));
    fold.park(of, 0, ParkCause::MaxAge);
    assert_outcome!(fold.commit(of), Outcome::Ignored(Ignored::Conflict));
    assert_outcome!(
        fold.park(in_epoch(of, 1), 0, ParkCause::MaxAge),
        Outcome::Ignored(Ignored::Stale)
    );
    assert_outcome!(fold.reopen(of), Outcome::Reopened { .. });
    let (at, outcome) = fold.rollback(in_epoch(of, 1));
    assert_outcome!((0, outcome), Outcome::Dropped { settles: true, .. });
    let (mut new, outcomes) = fold.taken_over(0, 0, [settled(in_epoch(of, 1), at)]);
    for (offset, outcome) in &outcomes {
        let other = matches!(outcome, Outcome::Deliver { .. } | Outcome::Parked(_));
        assert!(!other, "{offset}: {outcome:?}");
    }
    new.ledger.carried_out(at);
    assert_eq!(offsets(&new.ledger), (vec![], vec![]));
    assert_eq!(new.ledger.progress(), progress(7, 7));
}

/// The store was made anew: an entry of the parked topic may name an offset that another message
/// has by now. What becomes of that one says nothing about it.
#[test]
fn a_message_of_another_log_stays_parked_whatever_stands_at_its_offset_now() {
    let mut fold = Fold::new();
    let old = fold.parked(1);
    let entry = fold.entry(old);
    for verdict in [Verdict::Commit, Verdict::Rollback] {
        let mut new = Fold { ledger: Ledger::new(0, [entry.clone()]), log: Vec::new() };
        let of = new.half(2);
        assert_eq!(of.half, old.half, "the same offset");
        let (at, _) = new.add(decision(of, verdict));
        new.ledger.carried_out(at);
        assert_eq!(new.ledger.forget_settled(at + 1), [], "{verdict:?}");
        assert_eq!(new.ledger.find_parked(old.id).map(|parked| parked.half.meta.id), Some(old.id));
    }
}

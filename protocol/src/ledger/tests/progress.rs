//! The low-water mark never passes an open half, the position never an outcome that is due.

use super::*;

#[test]
fn an_empty_ledger_stands_at_its_position() {
    let ledger = Ledger::new(42, []);
    assert_eq!(ledger.progress(), progress(42, 42));
    assert_eq!((ledger.position(), ledger.retained_bytes()), (42, 0));
}

#[test]
fn low_water_is_the_oldest_open_half() {
    let mut fold = Fold::new();
    let (first, second) = (fold.half(1), fold.half(2));
    assert_eq!(fold.ledger.progress(), progress(0, 2));
    fold.rollback(first);
    assert_eq!(fold.ledger.progress(), progress(1, 3));
    fold.rollback(second);
    assert_eq!(fold.ledger.progress(), progress(4, 4));
}

#[test]
fn position_is_the_oldest_outcome_that_is_due() {
    let mut fold = Fold::new();
    let (first, second) = (fold.half(1), fold.half(2));
    fold.commit(second);
    fold.commit(first);
    assert_eq!(fold.ledger.progress(), progress(0, 2));
    fold.ledger.carried_out(3);
    assert_eq!(fold.ledger.progress(), progress(1, 2), "the second half is still needed");
    fold.ledger.carried_out(2);
    assert_eq!(fold.ledger.progress(), progress(4, 4));
}

#[test]
fn carried_out_is_idempotent_and_unknown_offsets_do_nothing() {
    let mut fold = Fold::new();
    let of = fold.half(1);
    fold.ledger.carried_out(0);
    fold.ledger.replayed(0);
    assert_eq!(fold.ledger.progress(), progress(0, 1), "a half is no outcome");
    fold.commit(of);
    for _ in 0..3 {
        fold.ledger.carried_out(1);
        fold.ledger.carried_out(99);
    }
    assert_eq!(fold.ledger.progress(), progress(2, 2));
}

#[test]
fn low_water_never_passes_the_position() {
    let mut fold = Fold::new();
    fold.ledger.hold_foreign(0);
    let mut ledger = fold.ledger;
    ledger.apply(Record::Half(meta(1)), Body::default(), 1, 0);
    assert_eq!(ledger.progress(), progress(0, 0));
    ledger.carried_out(0);
    assert_eq!(ledger.progress(), progress(1, 2));
}

#[test]
fn gaps_in_the_log_are_passed_and_never_back() {
    let mut ledger = Ledger::new(10, []);
    ledger.pass(15);
    ledger.pass(12);
    assert_eq!(ledger.progress(), progress(15, 15));
    ledger.apply(Record::Half(meta(1)), Body::default(), 20, 0);
    ledger.pass(30);
    assert_eq!(ledger.progress(), progress(20, 30));
}

#[test]
fn a_reopened_half_holds_at_its_reopen() {
    let mut fold = Fold::new();
    let of = fold.parked(1);
    fold.half(2);
    let (at, _) = fold.reopen(of);
    fold.rollback(HalfRef { id: transaction(2), half: HalfOffset(2), epoch: Epoch(0) });
    assert_eq!(fold.ledger.progress(), progress(at, 5));
}

#[test]
fn retained_bytes_count_from_the_low_water_mark() {
    let mut ledger = Ledger::new(0, []);
    let body = |bytes: usize| Body { payload: Some(vec![0; bytes].into()), ..Body::default() };
    let of =
        |n: u8| HalfRef { id: transaction(n), half: HalfOffset(i64::from(n)), epoch: Epoch(0) };
    ledger.apply(Record::Half(meta(0)), body(1_000), 0, 0);
    ledger.apply(Record::Half(meta(1)), body(10), 1, 0);
    assert_eq!(ledger.retained_bytes(), 1_010 + 2 * RECORD_OVERHEAD_BYTES);
    ledger.apply(decision(of(0), Verdict::Rollback), body(0), 2, 0);
    assert_eq!(ledger.retained_bytes(), 10 + 2 * RECORD_OVERHEAD_BYTES);
    ledger.apply(decision(of(1), Verdict::Commit), body(0), 3, 0);
    assert_eq!(ledger.retained_bytes(), 10 + 3 * RECORD_OVERHEAD_BYTES, "not delivered yet");
    ledger.carried_out(3);
    assert_eq!(ledger.retained_bytes(), 0);
}

#[test]
fn many_halves_in_any_order_leave_nothing_behind() {
    let mut fold = Fold::new();
    let halves: Vec<HalfRef> = (0..200).map(|n| fold.half(n)).collect();
    let mut due = Vec::new();
    for n in 0..200 {
        let of = halves[n * 77 % 200];
        match n % 3 {
            0 => drop(fold.rollback(of)),
            _ => due.push(fold.commit(of).0),
        }
    }
    assert_eq!(fold.ledger.open_count(), 0);
    while let Some(at) = due.pop() {
        assert!(fold.ledger.progress().position <= at);
        fold.ledger.carried_out(at);
    }
    assert_eq!(fold.ledger.progress(), progress(400, 400));
    assert!(fold.ledger.held.is_empty() && fold.ledger.pending.is_empty());
}

/// What is stored with a batch is what progress is once the batch is carried out.
#[test]
fn progress_after_a_batch_is_progress_once_it_is_carried_out() {
    let mut fold = Fold::new();
    let halves: Vec<HalfRef> = (0..60).map(|n| fold.half(n)).collect();
    let mut due = Vec::new();
    for n in (0..60).filter(|n| n % 7 != 3) {
        let of = halves[n * 7 % 60];
        match n % 4 {
            0 => drop(fold.rollback(of)),
            _ => due.push(fold.commit(of).0),
        }
    }
    let refused = due.remove(2);
    for batch in due.chunks(5) {
        let after = fold.ledger.progress_after(batch);
        batch.iter().for_each(|at| fold.ledger.carried_out(*at));
        assert_eq!(fold.ledger.progress(), after);
        assert!(after.position <= refused || fold.ledger.pending.is_empty());
    }
    fold.refuse(refused);
    let after = fold.ledger.progress_after(&[refused]);
    fold.ledger.carried_out(refused);
    assert_eq!(fold.ledger.progress(), after);
    assert_eq!(after.position, fold.ledger.position());
}

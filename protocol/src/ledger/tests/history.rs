//! What goes along with a message when the records that say so are deleted.

use super::*;

/// The steps of the only message with their offsets.
fn told(history: &History) -> Vec<(i64, &'static str)> {
    let name = |record: &Record| match record {
        Record::Half(_) => "half",
        Record::Decision(_) => "decision",
        Record::Checked(_) => "checked",
        Record::Park(_) => "park",
        Record::Reopen(_) => "reopen",
    };
    history.steps(transaction(1)).map(|step| (step.offset, name(&step.record))).collect()
}

#[test]
fn a_parked_message_brings_its_history_into_its_next_life() {
    let mut fold = Fold::new();
    let of = fold.half(1);
    fold.add(Record::Checked(Checked::unknown(of, 0, "not yet".into())));
    // Stale: it changes nothing, and is no part of it.
    fold.add(Record::Checked(Checked::unknown(of, 0, "not yet".into())));
    fold.add(Record::Checked(Checked::failed(of, 1, "away".into())));
    let (at, _) = fold.park(of, 1, ParkCause::NoListener);
    fold.ledger.carried_out(at);
    let first = [(1, "checked"), (3, "checked")];
    assert_eq!(told(&fold.ledger.parked[&of.half].history), first);

    // The log below is gone.
    let (mut new, _) = fold.taken_over(5, 5, [fold.entry(of)]);
    assert_eq!(told(&new.ledger.parked[&of.half].history), first);
    new.reopen(of);
    let open = new.ledger.open(of.half).unwrap();
    assert_eq!(told(&open.history), [(1, "checked"), (3, "checked"), (4, "park"), (5, "reopen")]);
    let Some(PastStep { at_ms, record: Record::Park(park), .. }) = open.history.steps(of.id).nth(2)
    else {
        panic!("its park");
    };
    assert_eq!((at_ms, park.cause, park.attempts), (1_004, ParkCause::NoListener, 1));

    // Its target refuses it: that it was decided is told, too.
    let (decided_at, _) = new.commit(in_epoch(of, 1));
    let parked = new.refuse(decided_at);
    assert_eq!(told(&parked.history).last(), Some(&(6, "decision")));
    let last = parked.history.steps(of.id).last().unwrap();
    assert_eq!((last.at_ms, last.record), (1_006, decision(in_epoch(of, 1), Verdict::Commit)));
    new.ledger.carried_out(decided_at);
    new.reopen(in_epoch(of, 1));
    let open = new.ledger.open(of.half).unwrap();
    assert_eq!(told(&open.history)[4..], [(6, "decision"), (6, "park"), (7, "reopen")]);
}

#[test]
fn what_is_decided_without_a_check_has_none() {
    let mut fold = Fold::new();
    let of = fold.half(1);
    assert!(fold.ledger.open(of.half).unwrap().history.is_empty());
    let (_, outcome) = fold.commit(of);
    assert_outcome!((0, outcome), Outcome::Deliver { .. });
    assert!(fold.ledger.decided[&of.half].history.is_empty());
}

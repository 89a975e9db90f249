//! Bodies of open halves are kept within a budget, the newest first; a stub says where its body is.

use super::*;

fn body(bytes: usize) -> Body {
    Body { key: Some("k".into()), headers: Vec::new(), payload: Some(vec![7; bytes].into()) }
}

fn stubs(ledger: &Ledger) -> Vec<i64> {
    let open = ledger.open_from(HalfOffset(0));
    open.filter(|open| open.half.is_stub).map(|open| open.half.offset.0).collect()
}

fn ledger_of(halves: u8) -> Ledger {
    let mut ledger = Ledger::new(0, []);
    for n in 0..halves {
        ledger.apply(Record::Half(meta(n)), body(99), i64::from(n), 0);
    }
    ledger
}

fn of(n: u8) -> HalfRef {
    HalfRef { id: transaction(n), half: HalfOffset(i64::from(n)), epoch: Epoch(0) }
}

#[test]
fn the_oldest_bodies_are_let_go_first() {
    let mut ledger = ledger_of(10);
    assert_eq!(ledger.body_bytes(), 1_000);
    ledger.keep_bodies(1_000);
    assert_eq!(stubs(&ledger), []);
    ledger.keep_bodies(750);
    assert_eq!((stubs(&ledger), ledger.body_bytes()), (vec![0, 1, 2], 700));
    ledger.keep_bodies(0);
    assert_eq!((stubs(&ledger).len(), ledger.body_bytes()), (10, 0));
    ledger.apply(Record::Half(meta(10)), body(99), 10, 0);
    assert_eq!(ledger.body_bytes(), 100, "a new one is kept until there is no room");
}

#[test]
fn a_stub_keeps_its_place_its_size_and_a_short_key() {
    let half = Half::new(meta(1), body(99), HalfOffset(4), 9);
    let stub = half.stub();
    assert_eq!((stub.stored_at, stub.bytes, stub.is_stub), (9, 100, true));
    assert_eq!((stub.body.key.clone(), stub.body.payload.clone()), (Some("k".into()), None));
    assert_eq!(stub.with(half.body.clone()), half);
    let long = Body { key: Some(vec![1; STUB_KEY_BYTES + 1].into()), ..Body::default() };
    assert_eq!(Half::new(meta(1), long, HalfOffset(0), 0).stub().body, Body::default());
}

#[test]
fn a_decided_half_gives_its_bytes_back_whole_or_stub() {
    let mut ledger = ledger_of(4);
    ledger.keep_bodies(200);
    for n in [0, 3] {
        ledger.apply(decision(of(n), Verdict::Commit), Body::default(), 10 + i64::from(n), 0);
    }
    assert_eq!(ledger.body_bytes(), 100);
    ledger.apply(decision(of(1), Verdict::Rollback), Body::default(), 20, 0);
    ledger.apply(decision(of(2), Verdict::Rollback), Body::default(), 21, 0);
    assert_eq!(ledger.body_bytes(), 0);
}

#[test]
fn a_reopened_half_is_kept_and_let_go_like_any_other() {
    let mut fold = Fold::new();
    let first = fold.parked(1);
    fold.half(2);
    fold.ledger.keep_bodies(0);
    let record = reopen(first);
    let at = fold.ledger.position();
    fold.ledger.apply(record, body(99), at, 0);
    let open = fold.ledger.open(first.half).unwrap();
    assert_eq!((open.half.is_stub, open.half.stored_at), (false, at));
    assert_eq!(fold.ledger.body_bytes(), 100);
    fold.ledger.keep_bodies(99);
    assert_eq!(fold.ledger.body_bytes(), 0);
}

#[test]
fn a_parked_message_is_a_stub_once_the_parked_topic_has_it() {
    let mut ledger = ledger_of(1);
    let park = Park { of: of(0), attempts: 0, cause: ParkCause::MaxAge, reason: String::new() };
    let outcome = ledger.apply(Record::Park(park), Body::default(), 1, 0);
    let Outcome::Parked(parked) = outcome else { panic!("{outcome:?}") };
    assert!(!parked.half.is_stub, "it is written from memory");
    ledger.carried_out(1);
    assert!(ledger.find_parked(transaction(0)).unwrap().half.is_stub);
}

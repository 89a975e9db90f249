//! When a half message was stored, as people see it.

use std::sync::Arc;

use halfmsg_protocol::{
    Body, Decision, HalfMeta, HalfOffset, HalfRef, Ledger, Origin, Outcome, Park, ParkCause, Reopen,
};

use super::*;

/// Made at this time.
pub(crate) fn id(made_ms: u128) -> TransactionId {
    TransactionId::from_bytes((made_ms << 80 | 7 << 76 | 2 << 62).to_be_bytes())
}

fn meta(id: TransactionId) -> Arc<HalfMeta> {
    Arc::new(HalfMeta {
        id,
        application: "app".into(),
        purpose: "order".into(),
        topic: "target".into(),
        // The user's own, which says nothing of when it was stored.
        timestamp_ms: 5,
        check_after: None,
        local_transaction: None,
    })
}

fn of(id: TransactionId, epoch: u32) -> HalfRef {
    HalfRef { id, half: HalfOffset(0), epoch: Epoch(epoch) }
}

fn apply(ledger: &mut Ledger, record: Record) {
    let offset = ledger.position();
    let outcome = ledger.apply(record, Body::default(), offset, 1_000 * (offset + 1));
    assert!(!matches!(outcome, Outcome::Ignored(_)), "{outcome:?}");
}

/// Stored at 1,000 and 2,000 ms, the first one parked at 3,000 ms; with these ids.
fn parked(ids: [TransactionId; 2]) -> Ledger {
    let mut ledger = Ledger::new(0, []);
    for id in ids {
        apply(&mut ledger, Record::Half(meta(id)));
    }
    let (of, cause, reason) = (of(ids[0], 0), ParkCause::MaxAge, String::new());
    apply(&mut ledger, Record::Park(Park { of, attempts: 0, cause, reason }));
    ledger
}

/// The same, reopened at 4,000 ms.
pub(crate) fn reopened(ids: [TransactionId; 2]) -> Ledger {
    let mut ledger = parked(ids);
    let (of, meta) = (of(ids[0], 0), meta(ids[0]));
    let (operator, reason) = ("ann".into(), "mended".into());
    apply(&mut ledger, Record::Reopen(Box::new(Reopen { of, meta, operator, reason })));
    assert_eq!(ledger.open(of.half).map(|open| open.appended_ms), Some(4_000));
    ledger
}

#[test]
fn one_that_was_parked_or_reopened_is_as_old_as_it_is() {
    let view = |what| {
        let view = HalfView::of(&Seen { partition: 0, owned: true, stopped: None, what });
        let later = age(ms(&view)) - view.age_seconds;
        assert!((0..60).contains(&later), "{view:?}");
        ms(&view)
    };
    let (first, other) = (id(990), id(1_990));
    let is_parked = parked([first, other]);
    let what = is_parked.find_parked(first).expect("it is parked").clone();
    assert_eq!(view(What::Parked(what, true)), 990);
    let mut ledger = reopened([first, other]);
    let open = |id| What::Open(ledger.find_open(id).expect("it is open").clone(), None);
    assert_eq!((view(open(first)), view(open(other))), (990, 2_000));
    let (verdict, origin) = (Verdict::Rollback, Origin::Operator);
    for of in [of(first, 1), HalfRef { half: HalfOffset(1), ..of(other, 0) }] {
        let (operator, reason) = (None, String::new());
        apply(&mut ledger, Record::Decision(Decision { of, verdict, origin, operator, reason }));
    }
    let closed = |id| What::Closed(ledger.find_closed(id).expect("it is closed").clone());
    assert_eq!((view(closed(first)), view(closed(other))), (990, 2_000));
}

/// What the id does not tell, or not rightly.
#[test]
fn it_was_stored_before_it_was_parked() {
    for wrong in [id(9_000), TransactionId::from_bytes([1; 16])] {
        let ledger = parked([wrong, id(1_990)]);
        let what = ledger.find_parked(wrong).expect("it is parked").clone();
        let what = What::Parked(what, true);
        let view = HalfView::of(&Seen { partition: 0, owned: true, stopped: None, what });
        assert_eq!(ms(&view), 3_000);
    }
}

fn ms(view: &HalfView) -> i64 {
    DateTime::parse_from_rfc3339(&view.stored_at).expect("a moment").timestamp_millis()
}

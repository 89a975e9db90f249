//! What is carried out, reported and retried.

use super::*;

#[test]
fn a_commit_is_delivered_and_then_carried_out() {
    let mut rig = Rig::new();
    let of = rig.half(1);
    let commands = rig.read(decided(of, Verdict::Commit));
    let [Command::Deliver { at: 1, half, settled: None }] = &commands[..] else {
        panic!("{commands:?}")
    };
    assert_eq!((half.meta.id, half.offset), (of.id, of.half));
    assert_eq!(rig.core.progress(), Some(Progress { low_water: 0, position: 1 }));
    rig.step(Event::CarriedOut { at: 1 });
    assert_eq!(rig.core.progress(), Some(Progress { low_water: 2, position: 2 }));
}

#[test]
fn a_rollback_is_reported_with_its_origin_and_reason() {
    let mut rig = Rig::new();
    let of = rig.half(1);
    let commands = rig.read(Record::Decision(Decision {
        of,
        verdict: Verdict::Rollback,
        origin: Origin::Operator,
        operator: Some("ada".into()),
        reason: "a test order".into(),
    }));
    let [Command::Dropped { half, origin: Origin::Operator, reason }] = &commands[..] else {
        panic!("{commands:?}")
    };
    assert_eq!((half.meta.id, reason.as_str()), (of.id, "a test order"));
}

#[test]
fn an_ignored_record_is_noted_with_its_offset() {
    let mut rig = Rig::new();
    let of = rig.half(1);
    rig.read(decided(of, Verdict::Commit));
    let commands = rig.read(decided(of, Verdict::Rollback));
    let [Command::Note { id, at: 2, why: Ignored::Conflict }] = &commands[..] else {
        panic!("{commands:?}")
    };
    assert_eq!(*id, of.id);
}

#[test]
fn a_message_that_was_parked_is_settled_with_its_delivery_or_drop() {
    for verdict in [Verdict::Commit, Verdict::Rollback] {
        let mut rig = Rig::new();
        let of = rig.half(1);
        rig.read(park(of, 0, ParkCause::MaxAge));
        rig.step(Event::CarriedOut { at: 1 });
        rig.read(reopen(of));
        let again = HalfRef { epoch: Epoch(1), ..of };
        let commands = rig.read(decided(again, verdict));
        let settled = match (&commands[..], verdict) {
            ([Command::Deliver { at: 3, settled, .. }], Verdict::Commit) => *settled,
            ([Command::Settle { at: 3, settled }, Command::Dropped { .. }], _) => Some(*settled),
            _ => panic!("{commands:?}"),
        };
        assert_eq!(settled, Some(again));
        assert_eq!(rig.core.progress().unwrap().position, 3, "until the mark is written");
        rig.step(Event::CarriedOut { at: 3 });
        let progress = rig.core.progress().unwrap();
        assert_eq!(progress, Progress { low_water: 4, position: 4 });
        assert_eq!(rig.core.progress_stored(progress), [of.id]);
        assert_eq!(rig.core.progress_stored(progress), []);
    }
}

#[test]
fn an_answer_that_was_not_stored_is_asked_for_again() {
    let mut rig = Rig::new();
    let of = rig.asked_half(1);
    let first = rig.answer(of, Answer::Commit);
    assert!(rig.after(MAX_AGE).is_empty(), "it is being stored");
    rig.step(Event::AppendFailed { of });
    assert_eq!(asked(&rig.after(RETRY)), [of]);
    let second = rig.answer(of, Answer::Commit);
    assert_eq!(appended(&first), appended(&second));
    // It was stored after all, and once more.
    let commands = rig.read(appended(&first)[0].clone());
    assert!(matches!(&commands[..], [Command::Deliver { .. }]), "{commands:?}");
    let commands = rig.read(appended(&second)[0].clone());
    assert!(
        matches!(&commands[..], [Command::Note { why: Ignored::Duplicate, .. }]),
        "{commands:?}"
    );
}

#[test]
fn a_park_that_was_not_stored_is_stored_again() {
    let mut rig = Rig::with(CoreConfig { max_checks: 1, ..config() });
    let of = rig.asked_half(1);
    let park = parked_by(&rig.attempt(of));
    rig.step(Event::AppendFailed { of });
    assert!(rig.after(RETRY / 2).is_empty());
    assert_eq!(parked_by(&rig.after(RETRY / 2)), park);
    rig.read(Record::Park(park.clone()));
    let commands = rig.read(Record::Park(park));
    assert!(matches!(&commands[..], [Command::Note { why: Ignored::Stale, .. }]));
}

#[test]
fn a_refused_delivery_is_parked_and_holds_nothing_else_up() {
    let mut rig = Rig::new();
    let (first, second) = (rig.half(1), rig.half(2));
    rig.read(decided(first, Verdict::Commit));
    rig.read(decided(second, Verdict::Commit));
    let refused = Event::DeliveryRefused { at: 2, reason: "too large".into(), wall_ms: 9 };
    let commands = rig.step(refused.clone());
    let [Command::WriteParked { at: 2, parked }] = &commands[..] else { panic!("{commands:?}") };
    assert_eq!((parked.half.meta.id, parked.cause), (first.id, ParkCause::Undeliverable));
    assert_eq!((parked.reason.as_str(), parked.parked_ms), ("too large", 9));
    assert!(rig.step(refused).is_empty(), "once");
    rig.step(Event::CarriedOut { at: 3 });
    assert_eq!(rig.core.progress(), Some(Progress { low_water: 0, position: 2 }));
    let both = rig.core.progress_after(&[2]);
    rig.step(Event::CarriedOut { at: 2 });
    assert_eq!(rig.core.progress(), both);
    assert_eq!(both, Some(Progress { low_water: 4, position: 4 }));
}

#[test]
fn a_message_may_be_opened_again_only_once_every_owner_will_know_that_it_is_parked() {
    let mut rig = Rig::new();
    let of = rig.half(1);
    rig.read(decided(of, Verdict::Commit));
    let refused = Event::DeliveryRefused { at: 1, reason: "gone".into(), wall_ms: 9 };
    rig.step(refused);
    rig.step(Event::CarriedOut { at: 1 });
    let parked = rig.core.ledger().find_parked(of.id).expect("parked").clone();
    assert!(!rig.core.is_park_durable(&parked), "progress is not stored yet");
    let progress = rig.core.progress().expect("live");
    rig.core.progress_stored(progress);
    assert!(rig.core.is_park_durable(&parked));
}

#[test]
fn a_late_report_of_an_older_life_does_not_ask_a_second_time() {
    let mut rig = Rig::with(CoreConfig { max_checks: 1, ..config() });
    let of = rig.asked_half(1);
    let park = parked_by(&rig.attempt(of));
    rig.read(Record::Park(park));
    let again = HalfRef { epoch: Epoch(1), ..of };
    assert_eq!(asked(&rig.read(reopen(of))), [again]);
    rig.step(Event::AppendFailed { of });
    assert!(rig.after(RETRY).is_empty(), "the question is still under way");
    rig.step(Event::AppendFailed { of: again });
    assert!(rig.after(RETRY).is_empty(), "nothing was being appended");
}

#[test]
fn a_foreign_record_is_copied_and_passed() {
    let mut rig = Rig::new();
    let commands = rig.step(Event::Foreign { offset: 0 });
    assert!(matches!(&commands[..], [Command::CopyForeign { at: 0 }]), "{commands:?}");
    rig.next = 1;
    rig.half(1);
    assert_eq!(rig.core.progress(), Some(Progress { low_water: 0, position: 0 }));
    rig.step(Event::CarriedOut { at: 0 });
    assert_eq!(rig.core.progress(), Some(Progress { low_water: 1, position: 2 }));
}

#[test]
fn the_end_of_the_log_is_passed() {
    let mut rig = Rig::new();
    rig.step(Event::CaughtUp { position: 9 });
    assert_eq!(rig.core.progress(), Some(Progress { low_water: 9, position: 9 }));
}

//! What counts as an attempt, and when a half is given up.

use super::*;

#[test]
fn an_answer_becomes_a_record_and_only_the_record_changes_the_half() {
    let mut rig = Rig::new();
    for (n, answer, verdict) in
        [(1, Answer::Commit, Verdict::Commit), (2, Answer::Rollback, Verdict::Rollback)]
    {
        let of = rig.asked_half(n);
        let commands = rig.answer(of, answer);
        let [Record::Decision(decision)] = &appended(&commands)[..] else { panic!("{commands:?}") };
        assert_eq!((decision.of, decision.verdict), (of, verdict));
        assert_eq!(decision.origin, Origin::CheckBack);
        assert!(rig.core.ledger().open(of.half).is_some());
        rig.read(Record::Decision(decision.clone()));
        assert!(rig.core.ledger().open(of.half).is_none());
    }
}

#[test]
fn c15_an_attempt_counts_when_its_record_is_read() {
    let mut rig = Rig::new();
    let of = rig.asked_half(1);
    let commands = rig.answer(of, unknown());
    let [Record::Checked(checked)] = &appended(&commands)[..] else { panic!("{commands:?}") };
    assert_eq!((checked.attempt, checked.outcome), (1, CheckOutcome::Unknown));
    assert_eq!((checked.reason.as_str(), rig.attempts(of)), ("not yet", 0));
    rig.read(Record::Checked(checked.clone()));
    assert_eq!(rig.attempts(of), 1);
}

#[test]
fn c15_what_was_not_asked_does_not_count() {
    let mut rig = Rig::new();
    let of = rig.asked_half(1);
    for why in [NotAsked::Busy, NotAsked::NoListener].into_iter().cycle().take(100) {
        assert!(rig.answer(of, Answer::NotAsked(why)).is_empty());
        assert_eq!(rig.core.next_check(of.half), Some(rig.now + RETRY));
        assert_eq!(asked(&rig.after(RETRY)), [of]);
    }
    assert_eq!(rig.attempts(of), 0);
}

#[test]
fn c16_after_max_checks_it_is_parked_once() {
    let mut rig = Rig::new();
    let of = rig.asked_half(1);
    rig.attempt(of);
    rig.at_next_due();
    rig.attempt(of);
    rig.at_next_due();
    let park = parked_by(&rig.attempt(of));
    assert_eq!((park.of, park.attempts, park.cause), (of, 3, ParkCause::MaxChecks));
    assert_eq!(park.reason, "3 checks gave no answer: not yet");
    assert!(rig.after(MAX_AGE).is_empty(), "the PARK is on its way");
    let at = rig.next;
    let commands = rig.read(Record::Park(park));
    assert!(matches!(&commands[..], [Command::WriteParked { at: found, .. }] if *found == at));
    rig.step(Event::CarriedOut { at });
    assert!(rig.after(MAX_AGE).is_empty());
    assert_eq!((rig.core.ledger().parked_count(), rig.core.ledger().open_count()), (1, 0));
    // Resumed, it has all its attempts again.
    assert_eq!(asked(&rig.read(reopen(of))), [HalfRef { epoch: Epoch(1), ..of }]);
    assert_eq!(rig.attempts(of), 0);
}

#[test]
fn the_last_question_is_still_answered() {
    let mut rig = Rig::new();
    let of = rig.asked_half(1);
    rig.attempt(of);
    rig.at_next_due();
    rig.attempt(of);
    assert_eq!(asked(&rig.at_next_due()), [of]);
    let commands = rig.answer(of, Answer::Commit);
    assert!(matches!(appended(&commands)[..], [Record::Decision(_)]), "{commands:?}");
}

#[test]
fn no_listener_parks_only_after_the_grace() {
    let mut rig = Rig::new();
    let of = rig.asked_half(1);
    rig.after(GRACE - Duration::from_millis(1));
    assert!(rig.answer(of, Answer::NotAsked(NotAsked::NoListener)).is_empty());
    assert_eq!(asked(&rig.after(RETRY)), [of]);
    let park = parked_by(&rig.answer(of, Answer::NotAsked(NotAsked::NoListener)));
    assert_eq!((park.of, park.attempts, park.cause), (of, 0, ParkCause::NoListener));
    assert!(park.reason.contains("'app'") && park.reason.contains("'purpose'"), "{}", park.reason);
}

#[test]
fn a_process_that_stops_never_parks() {
    let mut rig = Rig::new();
    let of = rig.asked_half(1);
    rig.after(GRACE * 10);
    assert!(rig.answer(of, Answer::NotAsked(NotAsked::Busy)).is_empty());
    assert_eq!(asked(&rig.after(RETRY)), [of]);
}

#[test]
fn max_age_needs_a_real_attempt_by_this_owner() {
    let old = i64::try_from(MAX_AGE.as_millis()).unwrap() * 10;
    let mut rig = Rig::taken_over(config(), 0, 2, old);
    let of = of(1, 0);
    rig.read_at(0, Record::Half(meta(1, None)));
    let commands = rig.read_at(0, checked(of, 1));
    assert!(appended(&commands).is_empty(), "{commands:?}");
    assert_eq!(asked(&commands), [of], "asked before it is given up");
    assert!(rig.answer(of, Answer::NotAsked(NotAsked::Busy)).is_empty());
    assert_eq!(asked(&rig.after(RETRY)), [of]);
    rig.attempt(of);
    let park = parked_by(&rig.at_next_due());
    assert_eq!((park.attempts, park.cause), (2, ParkCause::MaxAge));
}

#[test]
fn max_age_counts_from_the_half() {
    let mut rig = Rig::with(CoreConfig { max_age: Duration::from_secs(30), ..config() });
    let of = rig.asked_half(1);
    rig.attempt(of);
    assert_eq!(asked(&rig.at_next_due()), [of], "it is 10 s old");
    rig.attempt(of);
    rig.at(Duration::from_secs(30));
    assert_eq!(asked(&rig.check_now(of)), [] as [HalfRef; 0]);
    assert!(rig.core.next_check(of.half).is_none(), "its PARK is on its way");
}

#[test]
fn an_answer_about_another_life_is_no_answer() {
    let mut rig = Rig::new();
    let of = rig.asked_half(1);
    rig.read(park(of, 0, ParkCause::MaxAge));
    rig.step(Event::BatchOver);
    let again = HalfRef { epoch: Epoch(1), ..of };
    assert_eq!(asked(&rig.read(reopen(of))), [again]);
    let wrong = HalfRef { id: id(2), ..again };
    for stale in [of, wrong] {
        assert!(rig.step(Event::Answered { of: stale, answer: Answer::Commit }).is_empty());
    }
    assert_eq!(appended(&rig.answer(again, Answer::Commit)).len(), 1);
    assert!(rig.answer(again, Answer::Commit).is_empty(), "answered already");
}

/// Another owner, not yet aware of its end, stored an attempt of its own.
#[test]
fn a_foreign_attempt_does_not_lead_to_a_second_question() {
    let mut rig = Rig::new();
    let of = rig.asked_half(1);
    rig.read(checked(of, 1));
    assert_eq!(rig.attempts(of), 1);
    assert!(rig.after(INTERVALS[0]).is_empty(), "the first question is still under way");
    let commands = rig.answer(of, Answer::Commit);
    assert!(matches!(appended(&commands)[..], [Record::Decision(_)]), "{commands:?}");
}

#[test]
fn after_a_foreign_attempt_the_next_one_has_the_next_number() {
    let mut rig = Rig::new();
    let of = rig.asked_half(1);
    rig.read(checked(of, 1));
    rig.attempt(of);
    assert_eq!(rig.attempts(of), 2);
    assert!(rig.core.next_check(of.half).is_some());
}

#[test]
fn an_attempt_that_came_too_late_is_not_waited_for() {
    let mut rig = Rig::new();
    let of = rig.asked_half(1);
    let commands = rig.answer(of, unknown());
    rig.read(checked(of, 1));
    let [ours] = &appended(&commands)[..] else { panic!("{commands:?}") };
    let notes = rig.read(ours.clone());
    assert!(matches!(&notes[..], [Command::Note { why: Ignored::Stale, .. }]), "{notes:?}");
    assert_eq!(asked(&rig.after(INTERVALS[0])), [of]);
}

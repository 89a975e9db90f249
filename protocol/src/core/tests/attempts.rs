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

/// As in a rolling upgrade: a replica of the former version owns the partition for days when one of the
/// new version stores a half that only it has a listener for.
#[test]
fn an_owner_of_long_standing_gives_a_new_half_the_whole_grace() {
    let mut rig = Rig::new();
    rig.after(Duration::from_secs(172_800));
    let of = rig.asked_half(1);
    assert!(rig.answer(of, no_listener()).is_empty(), "it was stored just now");
    assert_eq!(asked(&rig.after(GRACE - Duration::from_millis(1))), [of]);
    assert!(rig.answer(of, no_listener()).is_empty(), "the grace is not over");
    assert_eq!(asked(&rig.after(RETRY)), [of]);
    let park = parked_by(&rig.answer(of, no_listener()));
    assert_eq!((park.attempts, park.cause), (0, ParkCause::NoListener));
    assert!(park.reason.ends_with("for 120 s"), "{}", park.reason);
    // Whoever resumes it has as long again to start a replica that listens.
    let at = rig.next;
    rig.read(Record::Park(park));
    rig.step(Event::CarriedOut { at });
    let again = HalfRef { epoch: Epoch(1), ..of };
    rig.after(GRACE);
    assert_eq!(asked(&rig.read(reopen(of))), [again]);
    assert!(rig.answer(again, no_listener()).is_empty());
}

/// Else it would pin the log for ever where owners change more often than the grace is long.
#[test]
fn an_old_half_without_a_listener_does_not_wait_for_a_whole_grace_of_one_owner() {
    let grace = Duration::from_secs(3_600);
    let config = CoreConfig { no_listener_grace: grace, ..config() };
    let limit = i64::try_from((MAX_AGE + grace).as_millis()).unwrap();
    let minutes = |count: u64| Duration::from_secs(60 * count);
    for (age_ms, parks) in [(limit - 600_000, false), (limit, true), (10 * limit, true)] {
        let mut rig = Rig::taken_over(config.clone(), 0, 1, age_ms);
        let of = of(1, 0);
        assert_eq!(asked(&rig.read_at(0, Record::Half(meta(1, None)))), [of]);
        // A replica of the former version may be the first that comes up again.
        assert!(rig.answer(of, no_listener()).is_empty(), "its owner has only begun");
        assert_eq!(asked(&rig.after(minutes(5) - Duration::from_secs(1))), [of]);
        assert!(rig.answer(of, no_listener()).is_empty(), "not yet");
        assert_eq!(asked(&rig.after(RETRY)), [of]);
        let commands = rig.answer(of, no_listener());
        if parks {
            assert_eq!(parked_by(&commands).cause, ParkCause::NoListener);
        } else {
            assert!(commands.is_empty(), "it is younger than that: {commands:?}");
        }
    }
}

/// A replay may take minutes: its halves are as old as they were at the takeover, and what has passed
/// since.
#[test]
fn a_replayed_half_ages_from_the_takeover() {
    let mut rig = Rig::taken_over(config(), 0, 2, 0);
    let of = of(1, 0);
    rig.after(GRACE);
    rig.read_at(0, Record::Half(meta(1, None)));
    // Due since long: it is asked about as soon as all is known.
    assert_eq!(asked(&rig.step(Event::CaughtUp { position: 2 })), [of]);
    assert_eq!(parked_by(&rig.answer(of, no_listener())).cause, ParkCause::NoListener);
}

#[test]
fn what_cannot_be_read_is_asked_about_again_and_given_up_by_nobody() {
    let old = i64::try_from(MAX_AGE.as_millis()).unwrap() * 10;
    let mut rig = Rig::taken_over(config(), 0, 1, old);
    let of = of(1, 0);
    assert_eq!(asked(&rig.read_at(0, Record::Half(meta(1, None)))), [of]);
    for _ in 0..1_000 {
        assert!(rig.answer(of, Answer::NotAsked(NotAsked::Unread)).is_empty());
        let commands = rig.after(RETRY);
        assert!(appended(&commands).is_empty(), "nobody could park what cannot be read");
        assert_eq!(asked(&commands), [of]);
    }
    let commands = rig.answer(of, Answer::Commit);
    assert!(matches!(appended(&commands)[..], [Record::Decision(_)]), "{commands:?}");
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

/// As where a process loses a partition and takes it again while its call about the half hangs.
#[test]
fn one_that_nobody_could_ask_about_backs_off_and_is_not_given_up_for_its_age() {
    let now = i64::try_from(MAX_AGE.as_millis()).unwrap() * 10;
    for (why, was_failing) in
        [(NotAsked::NoPlace, true), (NotAsked::Blocked, true), (NotAsked::Blocked, false)]
    {
        let mut rig = Rig::taken_over(config(), 0, 2, now);
        let of = of(1, 0);
        rig.read_at(0, Record::Half(meta(1, None)));
        let told = if was_failing {
            Checked::failed(of, 0, "away".into())
        } else {
            Checked::unknown(of, 0, "not yet".into())
        };
        assert_eq!(asked(&rig.read_at(0, Record::Checked(told))), [of]);
        let attempts = rig.attempts(of);
        for times in 1..30 {
            assert!(rig.answer(of, Answer::NotAsked(why)).is_empty(), "nothing is told to the log");
            let due = rig.core.next_check(of.half).expect("it waits");
            assert_eq!(due, rig.now + config().check_backoff.after(times, of.id), "{why:?}");
            let commands = rig.at(due);
            assert!(appended(&commands).is_empty(), "{why:?}, {times} times: {commands:?}");
            assert_eq!(asked(&commands), [of]);
        }
        assert_eq!(rig.attempts(of), attempts);
        // Once it was really asked, its age counts.
        let commands = rig.answer(of, Answer::Failed("it hangs".into()));
        for record in appended(&commands) {
            rig.read(record);
        }
        let commands = rig.at(rig.now + MAX_AGE);
        assert_eq!(parked_by(&commands).cause, ParkCause::MaxAge);
    }
}

#[test]
fn what_was_put_off_counts_no_longer_once_it_was_answered_for() {
    let mut rig = Rig::new();
    let of = rig.asked_half(1);
    for _ in 0..5 {
        rig.answer(of, Answer::NotAsked(NotAsked::NoPlace));
        assert_eq!(asked(&rig.at_next_due()), [of]);
    }
    rig.attempt(of);
    assert_eq!(asked(&rig.at_next_due()), [of]);
    rig.answer(of, Answer::NotAsked(NotAsked::NoPlace));
    let due = rig.core.next_check(of.half).expect("it waits");
    assert_eq!(due, rig.now + config().check_backoff.after(1, of.id));
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

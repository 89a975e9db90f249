//! Checks that fail: no attempt is counted, however long they do, and the half is asked again.

use super::*;

const WALL: i64 = 1_753_000_000_000;

fn failed() -> Answer {
    Answer::Failed("the database is away".into())
}

impl Rig {
    /// It is asked and fails; what the log has to know is read back.
    fn failure(&mut self, of: HalfRef) {
        for record in appended(&self.answer(of, failed())) {
            self.read(record);
        }
    }

    fn failing_since(&self, of: HalfRef) -> Option<i64> {
        self.core.ledger().open(of.half).expect("it is open").failing_since_ms
    }
}

#[test]
fn no_attempt_is_counted_and_the_log_is_told_once() {
    let mut rig = Rig::new();
    let of = rig.asked_half(1);
    let commands = rig.answer(of, failed());
    let [Record::Checked(checked)] = &appended(&commands)[..] else { panic!("{commands:?}") };
    assert_eq!((checked.attempt, checked.outcome), (0, CheckOutcome::Failed));
    rig.read_at(7, Record::Checked(checked.clone()));
    assert_eq!((rig.attempts(of), rig.failing_since(of)), (0, Some(7)));
    // Far beyond the number of attempts that are allowed.
    for _ in 0..10 {
        assert_eq!(asked(&rig.at_next_due()), [of]);
        assert!(rig.answer(of, failed()).is_empty(), "the log knows");
    }
    assert_eq!((rig.attempts(of), rig.failing_since(of)), (0, Some(7)));
    assert_eq!(rig.core.ledger().failing_count(), 1);
    rig.at_next_due();
    let decided = appended(&rig.answer(of, Answer::Commit));
    rig.read(decided[0].clone());
    assert_eq!((rig.core.ledger().open_count(), rig.core.ledger().failing_count()), (0, 0));
}

#[test]
fn it_is_asked_again_after_longer_and_longer_up_to_the_longest_interval() {
    let mut rig = Rig::with(CoreConfig { max_age: Duration::MAX, ..config() });
    let of = rig.asked_half(1);
    let mut longest = Duration::ZERO;
    for times in 1..30 {
        rig.failure(of);
        let due = rig.core.next_check(of.half).expect("it waits");
        let backoff = config().check_backoff;
        assert_eq!(due, rig.now + backoff.after(times, of.id), "after {times} failures");
        longest = longest.max(due - rig.now);
        assert_eq!(asked(&rig.at(due)), [of]);
    }
    assert!(
        longest >= Duration::from_secs(240) && longest <= Duration::from_secs(300),
        "{longest:?}"
    );
}

#[test]
fn what_was_answered_before_and_after_still_counts() {
    let mut rig = Rig::new();
    let of = rig.asked_half(1);
    rig.attempt(of);
    rig.at_next_due();
    for _ in 0..5 {
        rig.failure(of);
        rig.at_next_due();
    }
    assert_eq!(rig.attempts(of), 1);
    rig.attempt(of);
    assert_eq!((rig.attempts(of), rig.failing_since(of)), (2, None));
    // The next failure is told again.
    rig.at_next_due();
    rig.failure(of);
    assert!(rig.failing_since(of).is_some());
    rig.at_next_due();
    let park = parked_by(&rig.attempt(of));
    assert_eq!((park.attempts, park.cause), (3, ParkCause::MaxChecks));
}

/// Halves that were stored before a database went away for longer than they may be old.
#[test]
fn age_alone_gives_nothing_up_that_cannot_be_asked() {
    let mut rig = Rig::new();
    let of = rig.asked_half(1);
    rig.attempt(of);
    assert_eq!(asked(&rig.at(MAX_AGE - Duration::from_secs(60))), [of]);
    rig.failure(of);
    for _ in 0..3 {
        let commands = rig.at((MAX_AGE + Duration::from_secs(60)).max(rig.now + MAX_AGE / 4));
        assert_eq!(asked(&commands), [of], "older than allowed, and asked all the same");
        rig.failure(of);
    }
    let park = parked_by(&rig.at(MAX_AGE * 2));
    assert_eq!((park.attempts, park.cause), (1, ParkCause::MaxAge));
    assert!(park.reason.contains("asked in vain for") && park.reason.contains("away"), "{park:?}");
}

#[test]
fn a_new_owner_knows_since_when_and_asks_before_it_gives_up() {
    let long_ago = WALL - 3 * i64::try_from(MAX_AGE.as_millis()).unwrap();
    let mut rig = Rig::taken_over(config(), 0, 2, WALL);
    let of = of(1, 0);
    rig.read_at(long_ago, Record::Half(meta(1, None)));
    let failure = Checked::failed(of, 0, "away".into());
    assert_eq!(asked(&rig.read_at(long_ago, Record::Checked(failure))), [of]);
    assert_eq!(rig.failing_since(of), Some(long_ago));
    assert!(rig.answer(of, failed()).is_empty());
    assert_eq!(parked_by(&rig.at_next_due()).cause, ParkCause::MaxAge);
}

#[test]
fn a_new_owner_waits_for_what_remains_of_the_interval() {
    let mut rig = Rig::taken_over(config(), 0, 2, WALL);
    rig.read_at(WALL - 60_000, Record::Half(meta(1, None)));
    let failure = Checked::failed(of(1, 0), 0, "away".into());
    assert!(rig.read_at(WALL - 7_000, Record::Checked(failure)).is_empty());
    let due = rig.core.next_check(HalfOffset(0)).expect("it waits");
    assert!(due >= Duration::from_secs(1) && due <= Duration::from_secs(3), "{due:?}");
}

/// A version that counted failures has written these.
#[test]
fn a_failure_that_was_counted_when_it_was_written_counts() {
    let mut rig = Rig::new();
    let of = rig.half(1);
    for attempt in 1..=2 {
        let (outcome, reason) = (CheckOutcome::Failed, String::new());
        rig.read(Record::Checked(Checked { of, attempt, outcome, reason, asked_by: None }));
        assert_eq!((rig.attempts(of), rig.failing_since(of)), (attempt, None));
    }
}

#[test]
fn a_failure_that_cannot_be_told_is_asked_again_soon() {
    let mut rig = Rig::new();
    let of = rig.asked_half(1);
    rig.answer(of, failed());
    rig.step(Event::AppendFailed { of });
    assert_eq!(rig.core.next_check(of.half), Some(rig.now + RETRY));
    assert_eq!(asked(&rig.after(RETRY)), [of]);
    assert_eq!(appended(&rig.answer(of, failed())).len(), 1, "the log does not know yet");
}

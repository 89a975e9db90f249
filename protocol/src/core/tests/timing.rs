//! When a half is checked.

use super::*;

#[test]
fn c12_not_before_check_after() {
    let mut rig = Rig::new();
    let of = rig.half(1);
    assert_eq!(rig.core.next_due(), Some(CHECK_AFTER));
    assert_eq!(rig.core.next_check(of.half), Some(CHECK_AFTER));
    assert!(rig.at(CHECK_AFTER - Duration::from_millis(1)).is_empty());
    assert_eq!(asked(&rig.at(CHECK_AFTER)), [of]);
    assert_eq!((rig.core.next_due(), rig.core.next_check(of.half)), (None, None));
}

#[test]
fn c12_a_value_of_the_message_is_honoured() {
    let mut rig = Rig::new();
    let late = rig.half_with(1, Some(Duration::from_secs(60)));
    let early = rig.half_with(2, Some(Duration::from_secs(2)));
    assert!(rig.at(Duration::from_millis(1_999)).is_empty());
    assert_eq!(asked(&rig.at(Duration::from_secs(2))), [early]);
    assert!(rig.at(Duration::from_millis(59_999)).is_empty());
    assert_eq!(asked(&rig.at(Duration::from_secs(60))), [late]);
}

#[test]
fn an_absurd_check_after_neither_panics_nor_asks() {
    let mut rig = Rig::new();
    rig.now = Duration::from_secs(1 << 40);
    rig.half_with(1, Some(Duration::from_millis(u64::MAX)));
    assert!(rig.after(MAX_AGE * 1_000).is_empty());
}

#[test]
fn a_decided_half_is_not_checked() {
    let mut rig = Rig::new();
    for (n, verdict) in [(1, Verdict::Commit), (2, Verdict::Rollback)] {
        let of = rig.half(n);
        rig.read(decided(of, verdict));
    }
    assert_eq!(rig.core.next_due(), None);
    assert!(rig.at(CHECK_AFTER * 10).is_empty());
}

#[test]
fn it_is_checked_again_after_an_interval_that_grows() {
    let mut rig = Rig::new();
    let of = rig.asked_half(1);
    for longest in INTERVALS {
        let begin = rig.now;
        rig.attempt(of);
        let wait = rig.core.next_check(of.half).unwrap() - begin;
        assert!(wait <= longest && wait >= longest * 4 / 5, "{wait:?}");
        assert!(rig.at(begin + wait - Duration::from_millis(1)).is_empty());
        assert_eq!(asked(&rig.at(begin + wait)), [of]);
    }
}

#[test]
fn check_now_asks_at_once() {
    let mut rig = Rig::new();
    let (first, second) = (rig.half(1), rig.half(2));
    assert_eq!(asked(&rig.check_now(second)), [second]);
    assert_eq!(rig.core.next_check(first.half), Some(CHECK_AFTER));
    assert_eq!(asked(&rig.at(CHECK_AFTER)), [first]);
}

#[test]
fn check_now_does_not_ask_twice() {
    let mut rig = Rig::new();
    let of = rig.asked_half(1);
    assert!(rig.check_now(of).is_empty(), "a question is under way");
    let commands = rig.answer(of, Answer::Commit);
    assert!(rig.check_now(of).is_empty(), "the answer is being stored");
    rig.read(appended(&commands)[0].clone());
    assert!(rig.check_now(of).is_empty(), "it is decided");
    let unknown = HalfRef { half: HalfOffset(77), ..of };
    assert!(rig.check_now(unknown).is_empty());
}

#[test]
fn check_now_counts_like_any_other_check() {
    let mut rig = Rig::new();
    let of = rig.asked_half(1);
    rig.attempt(of);
    assert_eq!(rig.attempts(of), 1);
    assert_eq!(asked(&rig.check_now(of)), [of]);
    rig.attempt(of);
    assert_eq!(asked(&rig.check_now(of)), [of]);
    let commands = rig.attempt(of);
    assert_eq!(parked_by(&commands).cause, ParkCause::MaxChecks);
}

#[test]
fn a_reopened_half_is_asked_at_once() {
    let mut rig = Rig::new();
    let of = rig.half(1);
    rig.read(park(of, 0, ParkCause::MaxAge));
    let commands = rig.read(reopen(of));
    assert_eq!(asked(&commands), [HalfRef { epoch: Epoch(1), ..of }]);
}

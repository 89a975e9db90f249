//! A half message that its client wrote more than once.

use super::*;

const WINDOW: Duration = Duration::from_secs(40);

fn rig() -> Rig {
    Rig::with(CoreConfig { copy_window: WINDOW, ..config() })
}

fn copy(rig: &mut Rig, n: u16) -> HalfRef {
    let of = of(n, rig.next);
    let commands = rig.read(Record::Half(meta(n, None)));
    assert!(matches!(&commands[..], [Command::Note { why: Ignored::Copy, .. }]), "{commands:?}");
    of
}

/// What the application says.
fn told(of: HalfRef, verdict: Verdict) -> Record {
    let (origin, reason) = (Origin::Producer, String::new());
    Record::Decision(Decision { of, verdict, origin, operator: None, reason })
}

#[test]
fn a_copy_is_no_message_of_its_own() {
    let mut rig = rig();
    let first = rig.half(1);
    copy(&mut rig, 1);
    assert_eq!(rig.core.ledger().open_count(), 1);
    let commands = rig.after(CHECK_AFTER);
    assert_eq!(asked(&commands), [first], "asked about once");
    rig.answer(first, Answer::Commit);
    let commands = rig.read(decided(first, Verdict::Commit));
    assert!(matches!(&commands[..], [Command::Deliver { .. }]), "{commands:?}");
    assert_eq!(rig.core.next_check(first.half), None);
    copy(&mut rig, 1);
    assert_eq!(rig.core.ledger().open_count(), 0, "also when it is decided");
}

#[test]
fn what_names_a_copy_means_the_message() {
    let mut rig = rig();
    let first = rig.half(1);
    let later = copy(&mut rig, 1);
    assert_eq!(asked(&rig.check_now(later)), [first]);
    rig.answer(first, unknown());
    let commands = rig.read(decided(later, Verdict::Commit));
    let [Command::Deliver { half, .. }] = &commands[..] else { panic!("{commands:?}") };
    assert_eq!(half.offset, first.half);
    let commands = rig.read(decided(later, Verdict::Rollback));
    assert!(matches!(&commands[..], [Command::Note { why: Ignored::Conflict, .. }]));
}

/// The one that takes over must not take a copy for a message that nobody decided.
#[test]
fn a_checked_half_is_held_until_no_copy_can_follow() {
    let mut rig = rig();
    let of = rig.asked_half(1);
    rig.answer(of, Answer::Rollback);
    rig.read(decided(of, Verdict::Rollback));
    let low_water = |rig: &Rig| rig.core.progress().expect("it is live").low_water;
    assert_eq!(low_water(&rig), 0);
    rig.after(WINDOW - Duration::from_millis(1));
    assert_eq!(low_water(&rig), 0);
    rig.at_next_due();
    assert_eq!(low_water(&rig), 2);
}

/// Its application decides when it is told where it stands: no copy follows.
#[test]
fn a_half_that_its_application_decides_is_not_held() {
    let mut rig = rig();
    let of = rig.half(1);
    rig.read(told(of, Verdict::Rollback));
    assert_eq!(rig.core.progress(), Some(Progress { low_water: 2, position: 2 }));
}

/// A replay that began at the other open half would take the copy for the first.
#[test]
fn no_replay_begins_between_two_copies() {
    let mut rig = rig();
    let of = rig.half(1);
    rig.half(2);
    let later = copy(&mut rig, 1);
    rig.read(told(later, Verdict::Rollback));
    assert_eq!(rig.core.progress(), Some(Progress { low_water: of.half.0, position: 4 }));
}

//! What a new owner does with a replayed log.

use super::*;

/// The wall clock of the takeover, in milliseconds.
const WALL: i64 = 1_753_000_000_000;
const MINUTE: i64 = 60_000;

#[test]
fn replay_carries_nothing_out_and_asks_nothing() {
    let mut rig = Rig::taken_over(config(), 0, 6, WALL);
    let (committed, dropped, open) = (of(1, 0), of(2, 1), of(3, 2));
    let log = [
        Record::Half(meta(1, None)),
        Record::Half(meta(2, None)),
        Record::Half(meta(3, None)),
        decided(committed, Verdict::Commit),
        decided(dropped, Verdict::Rollback),
    ];
    for record in log {
        assert!(rig.core.is_replaying());
        assert_eq!(rig.core.progress(), None);
        assert!(rig.read_at(WALL - MINUTE, record).is_empty());
        assert!(rig.after(Duration::from_millis(1)).is_empty());
    }
    assert!(rig.check_now(open).is_empty());
    // The last record below the stored position ends the replay; what is due is asked then.
    let commands = rig.read_at(WALL - MINUTE, decided(committed, Verdict::Rollback));
    assert!(!rig.core.is_replaying());
    assert_eq!(asked(&commands), [open]);
    assert_eq!(commands.len(), 1, "{commands:?}");
    assert_eq!(rig.core.progress(), Some(Progress { low_water: 2, position: 6 }));
}

#[test]
fn what_lies_beyond_the_stored_position_is_carried_out() {
    let mut rig = Rig::taken_over(config(), 0, 1, WALL);
    rig.read_at(WALL, Record::Half(meta(1, None)));
    let commands = rig.read_at(WALL, decided(of(1, 0), Verdict::Commit));
    assert!(matches!(&commands[..], [Command::Deliver { at: 1, .. }]), "{commands:?}");
}

#[test]
fn control_records_at_the_stored_position_do_not_keep_it_replaying() {
    let mut rig = Rig::taken_over(config(), 0, 3, WALL);
    rig.read_at(WALL - MINUTE, Record::Half(meta(1, None)));
    assert!(rig.core.is_replaying());
    assert_eq!(asked(&rig.step(Event::CaughtUp { position: 3 })), [of(1, 0)]);
    assert_eq!(rig.core.progress(), Some(Progress { low_water: 0, position: 3 }));
}

#[test]
fn a_foreign_record_is_not_copied_twice() {
    let mut rig = Rig::taken_over(config(), 0, 1, WALL);
    assert!(rig.step(Event::Foreign { offset: 0 }).is_empty());
    assert_eq!(rig.core.progress(), Some(Progress { low_water: 1, position: 1 }));
}

#[test]
fn a_replayed_half_waits_for_what_remains() {
    let mut rig = Rig::taken_over(config(), 0, 1, WALL);
    rig.read_at(WALL - 4_000, Record::Half(meta(1, None)));
    assert!(rig.at(Duration::from_millis(1_999)).is_empty());
    assert_eq!(asked(&rig.at(Duration::from_secs(2))), [of(1, 0)]);
}

/// Its age was that at the takeover; a long replay is part of its waiting time.
#[test]
fn what_remains_counts_from_the_takeover_however_long_the_replay_takes() {
    let mut rig = Rig::taken_over(config(), 0, 3, WALL);
    for n in 0..2 {
        rig.read_at(WALL - 4_000, Record::Half(meta(n, None)));
        assert_eq!(rig.core.next_due(), None, "nothing is asked before the replay has ended");
        assert_eq!(rig.core.next_check(HalfOffset(n.into())), Some(Duration::from_secs(2)));
        rig.after(Duration::from_millis(900));
    }
    rig.read_at(WALL - 4_000, decided(of(0, 0), Verdict::Commit));
    assert_eq!(rig.core.next_due(), Some(Duration::from_secs(2)));
    assert_eq!(asked(&rig.at(Duration::from_secs(2))), [of(1, 1)]);
}

/// Else a group that is restarted more often than the interval would never check it again.
#[test]
fn a_replayed_attempt_waits_for_what_remains() {
    let mut rig = Rig::taken_over(config(), 0, 2, WALL);
    rig.read_at(WALL - MINUTE, Record::Half(meta(1, None)));
    rig.read_at(WALL - 7_000, checked(of(1, 0), 1));
    let due = rig.core.next_check(HalfOffset(0)).expect("it is waiting");
    assert!(due >= Duration::from_secs(1) && due <= Duration::from_secs(3), "{due:?}");
    assert_eq!(asked(&rig.at(due)), [of(1, 0)]);
}

#[test]
fn a_replayed_half_with_all_its_attempts_is_parked() {
    let mut rig = Rig::taken_over(config(), 0, 4, WALL);
    rig.read_at(WALL, Record::Half(meta(1, None)));
    rig.read_at(WALL, checked(of(1, 0), 1));
    rig.read_at(WALL, checked(of(1, 0), 2));
    let park = parked_by(&rig.read_at(WALL, checked(of(1, 0), 3)));
    assert_eq!((park.attempts, park.cause), (3, ParkCause::MaxChecks));
}

/// No half is lost, none is asked later than `check_after` after the takeover, whatever the
/// clocks of the broker and of this machine say.
#[test]
fn c21_clock_jumps_lose_nothing_and_delay_nothing() {
    for jump in [-10 * MINUTE, -MINUTE, -1, 0, 1, MINUTE, 10 * MINUTE] {
        let config = CoreConfig { check_batch: 100, ..config() };
        let mut rig = Rig::taken_over(config, 0, 60, WALL + jump);
        let mut commands = Vec::new();
        // One per second over the last minute.
        for n in 0..60_u16 {
            let appended = WALL - MINUTE + i64::from(n) * 1_000;
            commands.extend(rig.read_at(appended, Record::Half(meta(n, None))));
        }
        for half in (0..60).map(HalfOffset) {
            let due = rig.core.next_check(half);
            assert!(due.is_none_or(|due| due <= CHECK_AFTER), "{jump} {half}: {due:?}");
        }
        commands.extend(rig.at(CHECK_AFTER));
        let seen: Vec<i64> = asked(&commands).iter().map(|of| of.half.0).collect();
        assert_eq!(seen, (0..60).collect::<Vec<i64>>(), "{jump}: each is asked once");
        assert_eq!(rig.core.ledger().open_count(), 60);
    }
}

#[test]
fn c21_a_jump_of_the_wall_clock_does_not_matter_to_live_halves() {
    let mut rig = Rig::taken_over(config(), 0, 0, WALL);
    for (n, appended) in [(1, WALL - 60 * MINUTE), (2, WALL + 60 * MINUTE)] {
        rig.read_at(appended, Record::Half(meta(n, None)));
        assert_eq!(rig.core.next_check(HalfOffset(i64::from(n) - 1)), Some(CHECK_AFTER));
    }
}

/// Takeover after takeover, each on a machine whose clock is a minute off the last: the age alone
/// parks nothing, a question comes once, and its attempt is what the next owner goes on from.
#[test]
fn c21_owners_with_different_clocks_neither_park_early_nor_ask_twice() {
    // Much less than the jumps: by the wrong clock every half is old enough to be given up.
    let config = CoreConfig { max_age: Duration::from_secs(20), ..config() };
    for jumps in [[MINUTE, -MINUTE, MINUTE], [-MINUTE, MINUTE, 0], [0, -MINUTE, -MINUTE]] {
        let mut log = vec![Record::Half(meta(1, None))];
        for (owner, jump) in jumps.into_iter().enumerate() {
            let position = i64::try_from(log.len()).unwrap();
            let mut rig = Rig::taken_over(config.clone(), 0, position, WALL + jump);
            let mut commands = Vec::new();
            for record in &log {
                commands.extend(rig.read_at(WALL, record.clone()));
            }
            if asked(&commands).is_empty() {
                commands.extend(rig.at_next_due());
            }
            assert_eq!(
                asked(&commands),
                [of(1, 0)],
                "owner {owner}: asked once, with all attempts"
            );
            assert_eq!(appended(&commands), [], "owner {owner}: parked before it was asked");
            let waited = rig.now;
            let longest = CHECK_AFTER.max(INTERVALS[1]);
            assert!(waited <= longest, "owner {owner}: asked after {waited:?}");
            assert!(asked(&rig.after(MAX_AGE)).is_empty(), "a question is under way");
            let answered = rig.answer(of(1, 0), unknown());
            let [Record::Checked(attempt)] = &appended(&answered)[..] else {
                panic!("{answered:?}")
            };
            assert_eq!(attempt.attempt, u32::try_from(owner).unwrap() + 1);
            // The owner dies before it reads its own record back.
            log.push(Record::Checked(attempt.clone()));
        }
    }
}

#[test]
fn absurd_times_do_not_panic() {
    for (wall, appended) in [(i64::MAX, i64::MIN), (i64::MIN, i64::MAX), (0, i64::MIN)] {
        let mut rig = Rig::taken_over(config(), 0, 1, wall);
        rig.read_at(appended, Record::Half(meta(1, None)));
        assert_eq!(rig.core.ledger().open_count(), 1);
        rig.at(MAX_AGE);
    }
}

#[test]
fn the_parked_topic_is_known_to_the_new_owner() {
    let mut first = Rig::new();
    let of = first.half(1);
    let commands = first.read(park(of, 0, ParkCause::MaxAge));
    let [Command::WriteParked { at, parked }] = &commands[..] else { panic!("{commands:?}") };
    first.step(Event::CarriedOut { at: *at });
    let takeover = Takeover {
        progress: first.core.progress().expect("not replaying"),
        parked: vec![ParkedState::Parked(parked.clone())],
        wall_ms: WALL,
        now: Duration::ZERO,
    };
    let core = ResolverCore::new(config(), takeover);
    let mut second = Rig { core, now: Duration::ZERO, next: first.next };
    assert_eq!(second.core.ledger().find_parked(of.id), Some(parked));
    assert_eq!(asked(&second.read(reopen(of))), [HalfRef { epoch: Epoch(1), ..of }]);
}

//! Random histories of records, random points of death: whatever the old owner had done, and
//! whatever of it is known, a new one that starts from stored progress and the parked topic ends
//! as if nobody had died. The log is trimmed meanwhile, also by requests that outlive their owner.
//!
//! # Layout
//! - [`checks`]: what must hold after every step, and at the end
//! - [`spec`]: what a log means, in the plainest words; compared with the ledger
//! - [`world`]: the log, the parked topic, stored progress, the target, and one owner
//! - [`steps`]: what can happen, chosen by proptest

use proptest::prelude::*;

mod checks;
mod spec;
mod steps;
mod world;

use spec::State;
use steps::{Step, run, steps, steps_with_refusals};
use world::World;

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    /// Deliveries are accepted: the log alone decides what becomes of every message.
    #[test]
    fn a_crash_anywhere_changes_nothing(steps in steps(), marks_first: bool) {
        let mut world = World::new(marks_first);
        run(&mut world, steps);
        world.finish();
        for half in &world.spec().halves {
            let times = world.delivered(half.id);
            match half.state {
                State::Committed { .. } if world.crashes == 0 => prop_assert_eq!(times, 1),
                State::Committed { .. } => prop_assert!(times >= 1, "{} is lost", half.offset),
                _ => prop_assert_eq!(times, 0, "{} is delivered: {:?}", half.offset, half.state),
            }
        }
        world.assert_agrees_with_the_spec();
        world.crash();
        world.finish();
        world.assert_agrees_with_the_spec();
    }

    /// Some deliveries are refused, by one owner and perhaps not by the next.
    #[test]
    fn a_refused_message_is_delivered_parked_or_decided_otherwise(
        steps in steps_with_refusals(),
        marks_first: bool,
    ) {
        let mut world = World::new(marks_first);
        run(&mut world, steps);
        world.finish();
        let (open, parked) = world.sets();
        for half in &world.spec().halves {
            let (commits, rollbacks) = world.decisions_about(half);
            let times = world.delivered(half.id);
            let held = open.contains(&half.offset) || parked.contains(&half.offset);
            prop_assert!(times == 0 || commits > 0, "{} is delivered undecided", half.offset);
            prop_assert!(times > 0 || held || rollbacks > 0, "{} is lost", half.offset);
            if !world.was_refused(half.id) {
                let committed = matches!(half.state, State::Committed { .. });
                prop_assert_eq!(times > 0, committed, "{}: {:?}", half.offset, half.state);
                let spec_held = matches!(half.state, State::Open { .. } | State::Parked { .. });
                prop_assert_eq!(held, spec_held, "{}: {:?}", half.offset, half.state);
            }
        }
        // The next owner finds the same.
        world.crash();
        world.finish();
        prop_assert_eq!(world.sets(), (open, parked));
    }
}

/// The generator reaches what it is for.
#[test]
fn histories_reach_every_state() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
    let mut runner = TestRunner::deterministic();
    let (mut reopened, mut refused, mut again, mut copied, mut reused) = (0, 0, 0, 0, 0);
    let (mut cut, mut cut_late) = (0, 0);
    for _ in 0..500 {
        let steps: Vec<Step> = steps_with_refusals().new_tree(&mut runner).unwrap().current();
        let mut world = World::new(false);
        run(&mut world, steps);
        (cut, cut_late) = (cut + world.cut, cut_late + world.cut_late);
        world.finish();
        let spec = world.spec();
        reopened += spec.halves.iter().filter(|half| half.reopened > 0).count();
        refused += spec.halves.iter().filter(|half| world.was_refused(half.id)).count();
        copied += spec.halves.iter().filter(|half| !half.copies.is_empty()).count();
        reused += spec.halves.iter().filter(|half| !half.others.is_empty()).count();
        again += spec.halves.iter().filter(|half| world.delivered(half.id) > 1).count();
    }
    let found = (reopened, refused, again, copied, reused);
    assert!(reopened > 30 && refused > 30 && again > 10, "{found:?}");
    assert!(copied > 100 && reused > 50, "{found:?}");
    assert!(cut > 20 && cut_late > 5, "cut {cut} times, {cut_late} for one who was dead");
}

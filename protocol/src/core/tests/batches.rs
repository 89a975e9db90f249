//! How many questions at once, and that no half is in two of them.

use super::*;

fn rig_with_halves(count: u16) -> (Rig, Vec<HalfRef>) {
    let mut rig = Rig::new();
    let halves = (0..count).map(|n| rig.half(n)).collect();
    (rig, halves)
}

#[test]
fn what_is_due_together_is_asked_together_within_the_bounds() {
    let (mut rig, halves) = rig_with_halves(7);
    let commands = rig.at(CHECK_AFTER);
    assert_eq!(questions(&commands), [&halves[0..2], &halves[2..4]]);
    assert!(rig.after(CHECK_AFTER).is_empty(), "both are under way");
    assert_eq!(questions(&rig.step(Event::BatchOver)), [&halves[4..6]]);
    assert_eq!(questions(&rig.step(Event::BatchOver)), [&halves[6..7]]);
    assert!(rig.step(Event::BatchOver).is_empty());
}

#[test]
fn c19_a_slow_question_holds_up_only_its_own_halves() {
    let (mut rig, halves) = rig_with_halves(6);
    rig.at(CHECK_AFTER);
    // The first question never ends; the others take turns in the second place.
    for of in &halves[2..4] {
        rig.step(Event::Answered { of: *of, answer: Answer::Rollback });
    }
    assert_eq!(questions(&rig.step(Event::BatchOver)), [&halves[4..6]]);
    assert!(rig.step(Event::Tick).is_empty());
    assert_eq!(rig.core.next_check(halves[0].half), None);
}

#[test]
fn the_longest_due_is_asked_first() {
    let mut rig = Rig::with(CoreConfig { check_batch: 1, check_batches: 1, ..config() });
    let late = rig.half_with(1, Some(Duration::from_secs(5)));
    let early = rig.half_with(2, Some(Duration::from_secs(3)));
    assert_eq!(asked(&rig.at(Duration::from_secs(10))), [early]);
    assert_eq!(asked(&rig.step(Event::BatchOver)), [late]);
}

#[test]
fn a_half_is_not_asked_again_before_its_answer() {
    let mut rig = Rig::new();
    let of = rig.asked_half(1);
    // The question is over without an answer about it: only an answer ends its phase.
    assert!(rig.step(Event::BatchOver).is_empty());
    assert!(rig.after(MAX_AGE).is_empty());
    assert_eq!(appended(&rig.step(Event::Answered { of, answer: Answer::Commit })).len(), 1);
}

#[test]
fn the_end_of_a_question_that_was_not_asked_is_ignored() {
    let (mut rig, halves) = rig_with_halves(5);
    rig.step(Event::BatchOver);
    rig.step(Event::BatchOver);
    assert_eq!(questions(&rig.at(CHECK_AFTER)), [&halves[0..2], &halves[2..4]]);
}

#[test]
fn c20_ten_thousand_halves_are_asked_once_each_within_the_bound() {
    let mut rig = Rig::with(CoreConfig { check_batch: 100, check_batches: 8, ..config() });
    for n in 0..10_000 {
        rig.half(n);
    }
    let mut under_way = questions(&rig.at(CHECK_AFTER));
    let mut seen = std::collections::HashSet::new();
    while let Some(batch) = under_way.pop() {
        assert!(under_way.len() < 8 && batch.len() <= 100);
        for of in batch {
            assert!(seen.insert(of.half), "{of:?} is asked twice");
            let commands = rig.step(Event::Answered { of, answer: Answer::Rollback });
            rig.read(appended(&commands)[0].clone());
        }
        under_way.extend(questions(&rig.step(Event::BatchOver)));
    }
    assert_eq!((seen.len(), rig.core.ledger().open_count()), (10_000, 0));
    assert_eq!(rig.core.next_due(), None);
}

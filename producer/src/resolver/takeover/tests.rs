//! What is handed over when, and how a partition is taken up whose log is not what it was.

use super::*;

fn found(start: i64, (low_water, position): (i64, i64), is_embedded: bool) -> Found {
    let stored = Some(Progress { low_water, position });
    let place = Place { start, end: 300, stored };
    Found::at(("halfmsg.g.store", 3), place, ParkedPartition::default(), is_embedded)
}

/// The coordinator of the last answers long after the others.
#[test]
fn one_that_is_silent_holds_up_no_other() {
    let mut took = Vec::new();
    // The machine may stand still once, or twice.
    while took.iter().all(|took| *took >= READY_DEADLINE / 2) {
        assert!(took.len() < 3, "it waits for nobody else: {took:?}");
        took.push(a_silent_one_holds_up_for());
    }
}

/// How long those that have answered wait.
fn a_silent_one_holds_up_for() -> Duration {
    let (ready, answers) = mpsc::channel();
    let silent = (0..4).map(|partition| (partition, Emitter::by_hand().0)).collect();
    let mut fences = Fences::of(silent, answers);
    let began = Instant::now();
    for (partition, answer) in [(2, Ok(())), (0, Err("refused".to_owned())), (1, Ok(()))] {
        ready.send((partition, answer)).expect("it is heard");
    }
    assert_eq!(fences.next().into_keys().collect::<Vec<_>>(), [1, 2]);
    let took = began.elapsed();
    let why = fences.why_not_all().expect("some are ours").expect("some are not");
    assert!(why.contains("[0, 3]") && why.contains("refused"), "{why}");
    ready.send((3, Ok(()))).expect("it is heard");
    assert_eq!(fences.next().into_keys().collect::<Vec<_>>(), [3]);
    assert!(fences.next().is_empty(), "nobody is left");
    took
}

#[test]
fn those_that_answer_soon_are_taken_over_together() {
    let (ready, answers) = mpsc::channel();
    let silent = (0..3).map(|partition| (partition, Emitter::by_hand().0)).collect();
    let mut fences = Fences::of(silent, answers);
    for partition in 0..3 {
        ready.send((partition, Ok(()))).expect("it is heard");
    }
    assert_eq!(fences.next().len(), 3);
    assert_eq!(fences.why_not_all(), Ok(None));
}

/// Half 100 is open, the outcome of 180 is not carried out, and all below 200 is deleted.
#[test]
fn a_log_that_lacks_outcomes_stops_its_partition_and_says_what_to_do() {
    let found = found(200, (100, 150), false);
    let why = found.stopped.expect("it is stopped");
    let named = ["halfmsg.g.store[3]", "L=100", "P=150", "begins at 200", "reset-progress 3"];
    for part in named {
        assert!(why.contains(part), "no {part} in {why}");
    }
    assert_eq!(found.cut, Some(why), "it counts");
    assert_eq!(found.progress, Progress { low_water: 300, position: 300 });
}

#[test]
fn a_log_that_lacks_what_was_open_goes_on_and_says_so() {
    let cut = found(120, (100, 150), false);
    assert_eq!(cut.progress, Progress { low_water: 120, position: 150 });
    assert_eq!(cut.stopped, None);
    assert!(cut.cut.is_some_and(|why| why.contains("L=100") && why.contains("begins at 120")));
    let whole = found(100, (100, 150), false);
    assert_eq!((whole.stopped, whole.cut), (None, None));
}

/// It forgets what is beyond its size, and nobody could store other progress in it.
#[test]
fn the_embedded_broker_that_forgot_outcomes_goes_on_and_says_so() {
    let found = found(200, (100, 150), true);
    assert_eq!(found.progress, Progress { low_water: 200, position: 200 });
    assert!(found.stopped.is_none() && found.cut.is_some());
}

#[test]
fn progress_of_another_log_stops_its_partition() {
    let found = found(0, (100, 400), false);
    assert!(found.stopped.is_some_and(|why| why.contains("another log")) && found.cut.is_none());
}

fn places(of: &[(i32, i64, bool)]) -> BTreeMap<i32, Place> {
    let place = |(partition, end, is_stored): &(i32, i64, bool)| {
        let stored = is_stored.then_some(Progress { low_water: 0, position: 0 });
        (*partition, Place { start: 0, end: *end, stored })
    };
    of.iter().map(place).collect()
}

/// The broker has forgotten the progress with the topic: only who has read the former log knows.
#[test]
fn a_log_that_ends_before_what_was_read_of_it_is_another() {
    let seen = BTreeMap::from([(0, 0), (1, 500), (2, 40)]);
    let none = |_| None;
    let anew = |places: &[(i32, i64, bool)], end_of: &dyn Fn(i32) -> Option<i64>| {
        made_anew("s", &self::places(places), &seen, end_of)
    };
    let why = anew(&[(1, 3, false)], &none).expect("it is another");
    for part in ["s[1] up to 500", "ends at 3", "another log", "reset-progress"] {
        assert!(why.contains(part), "no {part} in {why}");
    }
    // What this replica never owned is stopped for what it knows of the others.
    let others = |partition| (partition == 2).then_some(7);
    assert!(anew(&[(3, 0, false)], &others).is_some_and(|why| why.contains("s[2] up to 40")));
    for same in [[(0, 0, false), (1, 500, false)], [(1, 900, false), (3, 9, false)]] {
        assert_eq!(anew(&same, &|_| Some(40)), None, "it may have grown");
    }
    assert_eq!(anew(&[(1, 3, true)], &others), None, "somebody said where to go on");
    assert_eq!(anew(&[(3, 9, false)], &none), None, "nothing is known of the others");
}

#[test]
fn a_log_without_progress_is_told_unless_it_is_empty() {
    for (end, stored, unknown) in [(9, false, true), (0, false, false), (9, true, false)] {
        let place = places(&[(3, end, stored)])[&3];
        let found = Found::at(("s", 3), place, ParkedPartition::default(), false);
        assert_eq!((found.is_progress_unknown, found.stopped), (unknown, None));
    }
    let place = Place { start: 2, end: 9, stored: None };
    let mut found = Found::at(("s", 3), place, ParkedPartition::default(), false);
    found.stop("another log".into());
    assert_eq!(found.progress, Progress { low_water: 9, position: 9 }, "nothing of it is replayed");
}

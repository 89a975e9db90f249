//! Refused, suspected and held up: who waits, who is parked, and who goes on.

use super::*;

#[test]
fn a_refused_message_is_parked_in_its_place_and_the_others_are_delivered() {
    let mut rig = Rig::new(limits(true));
    rig.committed(3, 1);
    let job = rig.batch(true).unwrap();
    rig.commit(1);
    let ended = rig.end(job, JobEnd::Aborted(vec![(1, Trouble::Refused(why()))]));
    assert_eq!(ended.refused, [(3, why())]);
    let job = rig.batch(true).unwrap();
    assert_eq!(places(&job), [1, 3, 5, 7], "in the order of the log, so that progress covers all");
    assert!(matches!(job.items[1].work, Work::Park(_)));
    assert_eq!(job.progress.unwrap().position, 8);
    let ended = rig.end(job, JobEnd::Done(Vec::new()));
    assert_eq!(ended.done, [(1, true), (3, false), (5, true), (7, true)]);
}

#[test]
fn suspects_go_out_by_halves_until_the_one_to_blame_is_found() {
    let mut rig = Rig::new(limits(true));
    rig.committed(6, 1);
    let job = rig.batch(true).unwrap();
    let suspect = |index| (index, Trouble::Suspect(why()));
    assert!(rig.end(job, JobEnd::Aborted(vec![suspect(0), suspect(3)])).refused.is_empty());
    let job = rig.batch(true).unwrap();
    assert_eq!(places(&job), [1, 3], "half of those up to the last suspect");
    rig.end(job, JobEnd::Done(Vec::new()));
    let job = rig.batch(true).unwrap();
    assert_eq!(places(&job), [5], "half of the rest");
    rig.end(job, JobEnd::Done(Vec::new()));
    let job = rig.batch(true).unwrap();
    assert_eq!(places(&job), [7], "it must be this one");
    let ended = rig.end(job, JobEnd::Aborted(vec![suspect(0)]));
    assert_eq!(ended.refused, [(7, why())], "nobody else was in its batch");
    for expected in [&[7][..], &[9], &[11]] {
        let job = rig.batch(true).unwrap();
        assert_eq!(places(&job), expected, "with care at first");
        rig.end(job, JobEnd::Done(Vec::new()));
    }
}

/// Of one alone, that what stood before it is missing from the broker's sequence says nothing; it only has to be sent again.
#[test]
fn suspects_are_known_yet_when_their_target_was_held_meanwhile() {
    let mut rig = Rig::new(limits(true));
    rig.committed(4, 1);
    let job = rig.batch(true).unwrap();
    let suspect = |index| (index, Trouble::Suspect(why()));
    rig.end(job, JobEnd::Aborted(vec![suspect(0), suspect(1)]));
    let job = rig.batch(true).unwrap();
    assert_eq!(places(&job), [1], "half of the suspects");
    rig.end(job, JobEnd::Aborted(vec![(0, Trouble::Passing(why()))]));
    if let Some(job) = rig.batch(true) {
        assert!(job.items.is_empty(), "their target is held, and only progress is stored");
        rig.end(job, JobEnd::Done(Vec::new()));
    }
    rig.again();
    let job = rig.batch(true).unwrap();
    assert_eq!(places(&job), [1], "else the first of two suspects would hide the second for ever");
}

#[test]
fn a_suspect_is_found_in_whatever_order_failures_are_told() {
    let mut rig = Rig::new(limits(true));
    rig.committed(3, 1);
    let job = rig.batch(true).unwrap();
    // The record that parks the second was refused, which is told behind the third's delivery.
    let troubles = vec![(2, Trouble::Passing(why())), (1, Trouble::Suspect(why()))];
    rig.end(job, JobEnd::Aborted(troubles));
    let job = rig.batch(true).unwrap();
    assert_eq!(places(&job), [1], "half of those up to the suspect");
}

#[test]
fn a_foreign_record_that_is_too_large_is_kept_without_its_payload() {
    let mut rig = Rig::new(limits(true));
    rig.step(Event::Foreign { offset: 0 });
    rig.next = 1;
    rig.commit(1);
    let suspect = || vec![(0, Trouble::Suspect(why()))];
    let job = rig.batch(true).unwrap();
    assert_eq!(places(&job), [0, 2]);
    rig.end(job, JobEnd::Aborted(suspect()));
    let job = rig.batch(true).unwrap();
    assert_eq!(places(&job), [0], "by itself");
    rig.end(job, JobEnd::Aborted(suspect()));
    let job = rig.batch(true).unwrap();
    let Work::Foreign(kept) = &job.items[0].work else { panic!("it is still foreign") };
    assert_eq!((kept.key.as_str(), kept.payload.as_deref()), ("foreign-0-0", Some(&b""[..])));
    let names: Vec<&str> = kept.headers.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["halfmsg-foreign-at", "halfmsg-foreign-bytes", "halfmsg-foreign-reason"]);
    assert_eq!(rig.end(job, JobEnd::Done(Vec::new())).done, [(0, false)]);
}

#[test]
fn a_half_that_the_parked_topic_does_not_take_holds_its_partition() {
    let mut rig = Rig::new(limits(true));
    let refused = rig.commit(1);
    let job = rig.batch(true).unwrap();
    rig.end(job, JobEnd::Aborted(vec![(0, Trouble::Refused(why()))]));
    rig.commit(1);
    rig.lane.cautious = Some(1);
    for _ in 0..2 {
        let job = rig.batch(true).unwrap();
        assert!(places(&job) == [refused] && matches!(job.items[0].work, Work::Park(_)));
        let ended = rig.end(job, JobEnd::Aborted(vec![(0, Trouble::Suspect("too large".into()))]));
        assert!(ended.refused.is_empty() && ended.done.is_empty());
        assert_eq!(rig.lane.trouble(), Some("too large"));
        if let Some(job) = rig.batch(true) {
            assert!(job.items.is_empty(), "nothing but progress before it, which may be stored");
            rig.end(job, JobEnd::Done(Vec::new()));
        }
        rig.again();
    }
    assert_eq!(rig.core.progress().unwrap().position, refused);
}

#[test]
fn one_to_blame_among_hundreds_is_found_in_a_few_batches() {
    let linger = Duration::ZERO;
    let wide = Limits { batch_messages: 500, batch_bytes: 1_000_000, linger, ..limits(true) };
    for bad in [0, 237, 499] {
        let mut rig = Rig::new(wide);
        let bad = rig.committed(500, 1)[bad];
        let batches = rig.carry_all_out(&[bad]);
        // Nine halvings of 500, each with a half that is good at most, and as many doublings.
        assert!(batches <= 3 * 9 + 2, "{batches}");
    }
    let mut rig = Rig::new(wide);
    let all = rig.committed(100, 1);
    let batches = rig.carry_all_out(&all);
    assert!(
        batches <= 2 * 100 + 7,
        "all to blame: each and its entry in the parked topic: {batches}"
    );
}

#[test]
fn at_least_once_a_missing_target_holds_up_nobody_else() {
    let mut rig = Rig::new(limits(false));
    let first = rig.commit_to("missing", 1);
    let other = rig.commit(1);
    let job = rig.batch(true).unwrap();
    let ended = rig.end(job, JobEnd::Done(vec![(0, Trouble::Passing(why()))]));
    assert_eq!(ended.done, [(other, true)]);
    let second = rig.commit_to("missing", 1);
    let behind = rig.commit(1);
    let job = rig.batch(true).unwrap();
    assert_eq!(places(&job), [behind], "nothing for the missing one, so that its order is kept");
    rig.end(job, JobEnd::Done(Vec::new()));
    assert!(rig.batch(true).is_none() && !rig.lane.is_idle());
    rig.again();
    assert_eq!(places(&rig.batch(true).unwrap()), [first, second]);
}

#[test]
fn exactly_once_a_missing_target_holds_up_what_is_behind_it_only() {
    let mut rig = Rig::new(limits(true));
    let before = rig.commit(1);
    let first = rig.commit_to("missing", 1);
    let behind = rig.commit(1);
    let job = rig.batch(true).unwrap();
    rig.end(job, JobEnd::Aborted(vec![(1, Trouble::Passing(why()))]));
    let job = rig.batch(true).unwrap();
    assert_eq!(places(&job), [before], "at once");
    assert_eq!(job.progress.unwrap().position, first);
    rig.end(job, JobEnd::Done(Vec::new()));
    assert!(rig.batch(true).is_none());
    rig.again();
    let job = rig.batch(true).unwrap();
    assert_eq!(places(&job), [first, behind]);
    rig.end(job, JobEnd::Aborted(vec![(0, Trouble::Refused(why()))]));
    let job = rig.batch(true).unwrap();
    assert_eq!(places(&job), [first, behind], "parked, and the rest goes on");
}

#[test]
fn at_least_once_the_others_of_a_batch_are_done() {
    let mut rig = Rig::new(limits(false));
    rig.committed(3, 1);
    let job = rig.batch(true).unwrap();
    assert_eq!(job.progress, None, "it is stored by itself");
    let ended = rig.end(job, JobEnd::Done(vec![(0, Trouble::Passing(why()))]));
    assert_eq!(ended.done, [(3, true), (5, true)]);
    assert_eq!(rig.core.progress().unwrap().position, 1);
    assert!(rig.batch(true).is_none(), "not at once");
    rig.again();
    assert_eq!(places(&rig.batch(true).unwrap()), [1]);
}

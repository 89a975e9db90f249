//! The lane, batch by batch: what goes out together, in which order, and what follows from an end.

use std::sync::{Arc, mpsc};

use halfmsg_protocol::{
    Backoff, Body, Command, CoreConfig, Decision, Epoch, Event, HalfMeta, HalfOffset, HalfRef,
    Origin, Record, Takeover, TransactionId, Verdict,
};

use super::*;
use crate::parked::ParkedRecord;
use crate::resolver::emitter::{JobEnd, Trouble, Work};

mod blame;

const LONG: Duration = Duration::from_secs(1 << 30);
/// Longer than any test takes.
const HOUR: Duration = Duration::from_secs(3_600);

/// A lane beside the core whose outcomes it carries out.
struct Rig {
    core: ResolverCore,
    lane: Lane,
    todo: mpsc::Receiver<Job>,
    next: i64,
}

fn limits(exactly_once: bool) -> Limits {
    Limits {
        batch_messages: 100,
        batch_bytes: 1_000,
        linger: LONG,
        queued_messages: 6,
        queued_bytes: 600,
        exactly_once,
    }
}

impl Rig {
    fn new(limits: Limits) -> Self {
        let core = ResolverCore::new(
            CoreConfig {
                check_after: LONG,
                check_backoff: Backoff { initial: LONG, max: LONG },
                max_checks: 1,
                max_age: LONG,
                no_listener_grace: LONG,
                retry_delay: LONG,
                check_batch: 1,
                check_batch_bytes: 1,
                check_batches: 1,
                copy_window: Duration::ZERO,
            },
            Takeover {
                progress: Progress { low_water: 0, position: 0 },
                parked: Vec::new(),
                wall_ms: 0,
                now: Duration::ZERO,
            },
        );
        let (emitter, todo) = Emitter::by_hand();
        Self { core, lane: Lane::new(emitter, limits), todo, next: 0 }
    }

    fn step(&mut self, event: Event) {
        let mut commands = Vec::new();
        self.core.step(Duration::ZERO, event, &mut commands);
        for command in commands {
            let (at, work) = match command {
                Command::Deliver { at, half, settled } => (at, Work::Deliver(half, settled)),
                Command::WriteParked { at, parked } => (at, Work::Park(Box::new(parked))),
                Command::CopyForeign { at } => {
                    let body = Body { payload: Some(vec![0; 9].into()), ..Body::default() };
                    (at, Work::Foreign(Box::new(ParkedRecord::foreign(0, at, body))))
                }
                other => panic!("{other:?}"),
            };
            let since = Duration::from_secs(at.unsigned_abs());
            self.lane.push(Item { at, since, appended_ms: 0, work });
        }
    }

    fn read(&mut self, record: Record, payload: usize) -> i64 {
        let (offset, appended_ms) = (self.next, 0);
        self.next += 1;
        let body = Body { payload: Some(vec![0; payload].into()), ..Body::default() };
        self.step(Event::Record { offset, appended_ms, record, body });
        offset
    }

    /// So many committed messages; the offsets of their decisions.
    fn committed(&mut self, count: usize, payload: usize) -> Vec<i64> {
        (0..count).map(|_| self.commit(payload)).collect()
    }

    fn commit(&mut self, payload: usize) -> i64 {
        self.commit_to("topic", payload)
    }

    fn commit_to(&mut self, topic: &str, payload: usize) -> i64 {
        let id = TransactionId::from_bytes(i128::from(self.next).to_le_bytes());
        let half = self.read(
            Record::Half(Arc::new(HalfMeta {
                id,
                application: "app".into(),
                purpose: "purpose".into(),
                topic: topic.into(),
                timestamp_ms: 0,
                check_after: None,
                local_transaction: None,
            })),
            payload,
        );
        let of = HalfRef { id, half: HalfOffset(half), epoch: Epoch(0) };
        let (verdict, origin) = (Verdict::Commit, Origin::Producer);
        let decision = Decision { of, verdict, origin, operator: None, reason: String::new() };
        self.read(Record::Decision(decision), 0)
    }

    /// The batch that goes out now.
    fn batch(&mut self, idle: bool) -> Option<Job> {
        assert!(self.lane.begin(idle, &self.core));
        self.todo.try_recv().ok()
    }

    fn end(&mut self, job: Job, end: JobEnd) -> Ended {
        let ended = self.lane.ended(job.items, job.progress, end);
        self.hold_time();
        for (at, _) in &ended.done {
            self.step(Event::CarriedOut { at: *at });
        }
        for (at, reason) in &ended.refused {
            let (at, reason) = (*at, reason.clone());
            self.step(Event::DeliveryRefused { at, reason, wall_ms: 0 });
        }
        if let Some(progress) = ended.stored {
            let now = self.core.progress().expect("live");
            assert!(progress.position <= now.position && progress.low_water <= now.low_water);
            self.core.progress_stored(progress);
        }
        ended
    }

    /// What the lane waits for from now on does not pass while a test runs, however slow the machine is.
    fn hold_time(&mut self) {
        let Lane { not_before, stored_at, clears_alone_from, held, .. } = &mut self.lane;
        let of_all = [not_before, stored_at, clears_alone_from].into_iter().flatten();
        of_all.chain(held.values_mut()).for_each(|at| *at = Instant::now() + HOUR);
    }

    fn again(&mut self) {
        self.lane.not_before = None;
        self.lane.held.clear();
    }

    /// Carries everything out that is left, on a broker that refuses every batch in which one of
    /// these is; how many batches it took.
    fn carry_all_out(&mut self, bad: &[i64]) -> usize {
        let mut batches = 0;
        while let Some(job) = self.batch(true) {
            batches += usize::from(!job.items.is_empty());
            let delivers = |item: &&Item| matches!(item.work, Work::Deliver(..));
            let refuses = |item: &Item| bad.contains(&item.at);
            let end = if job.items.iter().filter(delivers).any(refuses) {
                let suspects = job.items.iter().enumerate().filter(|(_, item)| delivers(item));
                let suspects = suspects.map(|(at, _)| (at, Trouble::Suspect(why())));
                JobEnd::Aborted(suspects.collect())
            } else {
                JobEnd::Done(Vec::new())
            };
            let refused = self.end(job, end).refused;
            assert!(refused.iter().all(|(at, _)| bad.contains(at)), "{refused:?}");
        }
        assert!(self.lane.is_idle() && self.core.progress().unwrap().position == self.next);
        batches
    }
}

fn places(job: &Job) -> Vec<i64> {
    job.items.iter().map(|item| item.at).collect()
}

fn why() -> String {
    "why".into()
}

#[test]
fn a_batch_goes_out_at_once_when_nothing_more_is_to_be_read() {
    let mut rig = Rig::new(limits(true));
    let first = rig.batch(true).expect("progress is stored at once");
    rig.end(first, JobEnd::Done(Vec::new()));
    let decided = rig.committed(3, 1);
    assert!(rig.batch(false).is_none(), "there is more to read, and it may linger");
    let job = rig.batch(true).unwrap();
    assert_eq!(places(&job), decided);
    assert_eq!(job.progress, Some(Progress { low_water: 6, position: 6 }));
    rig.commit(1);
    assert!(rig.batch(true).is_none(), "one batch at a time");
    assert!(rig.lane.is_waiting());
    let ended = rig.end(job, JobEnd::Done(Vec::new()));
    assert_eq!(ended.done, [(1, true), (3, true), (5, true)]);
    assert_eq!(places(&rig.batch(true).unwrap()), [7]);
}

#[test]
fn a_batch_closes_on_count_bytes_and_time() {
    let mut rig = Rig::new(Limits { batch_messages: 2, ..limits(true) });
    rig.committed(3, 1);
    let job = rig.batch(false).unwrap();
    assert_eq!(places(&job), [1, 3]);
    assert_eq!(job.progress.unwrap().position, 5, "the third is still due");

    let mut rig = Rig::new(limits(true));
    rig.committed(4, 400);
    let job = rig.batch(false).unwrap();
    assert_eq!(places(&job), [1, 3], "a third would be more than 1,000 bytes");

    let mut rig = Rig::new(limits(true));
    rig.commit(5_000);
    assert_eq!(places(&rig.batch(false).unwrap()), [1], "a large message goes alone");

    let mut rig = Rig::new(Limits { linger: Duration::ZERO, ..limits(true) });
    rig.commit(1);
    assert_eq!(places(&rig.batch(false).unwrap()), [1]);
}

#[test]
fn a_lane_is_full_by_count_or_bytes_and_has_room_at_half() {
    let mut rig = Rig::new(limits(true));
    rig.committed(5, 1);
    assert!(!rig.lane.is_full() && !rig.lane.has_room());
    rig.commit(1);
    assert!(rig.lane.is_full());
    let mut rig = Rig::new(limits(true));
    rig.commit(600);
    assert!(rig.lane.is_full());
    assert!(rig.batch(true).is_some());
    assert!(!rig.lane.is_full() && rig.lane.has_room());
}

#[test]
fn an_aborted_batch_goes_out_again_whole_and_later() {
    let mut rig = Rig::new(limits(true));
    let decided = rig.committed(3, 1);
    let job = rig.batch(true).unwrap();
    rig.commit(1);
    let ended = rig.end(job, JobEnd::Aborted(Vec::new()));
    assert!(ended.done.is_empty() && ended.stored.is_none());
    assert!(rig.batch(true).is_none(), "not at once");
    rig.again();
    let job = rig.batch(true).unwrap();
    assert_eq!(places(&job), [&decided[..], &[7]].concat());
}

#[test]
fn what_an_aborted_batch_clears_is_tried_again_by_itself() {
    let mut rig = Rig::new(limits(true));
    let first = rig.batch(true).expect("progress is stored at once");
    rig.end(first, JobEnd::Done(Vec::new()));
    let settled = [1, 2].map(|id| TransactionId::from_bytes([id; 16]));
    let decided = rig.commit(1);
    rig.lane.clear(vec![settled[0]]);
    let job = rig.batch(true).unwrap();
    assert_eq!(job.clears, settled[..1]);
    rig.end(job, JobEnd::Aborted(Vec::new()));
    rig.again();
    rig.lane.clear(vec![settled[1]]);
    let job = rig.batch(true).unwrap();
    assert!(places(&job) == [decided] && job.clears.is_empty(), "they hold up no delivery");
    rig.end(job, JobEnd::Done(Vec::new()));
    assert!(rig.batch(true).is_none(), "not at once");
    rig.lane.clears_alone_from = Some(Instant::now());
    let job = rig.batch(true).unwrap();
    assert!(job.items.is_empty() && job.progress.is_none() && job.clears == settled);
    rig.end(job, JobEnd::Aborted(Vec::new()));
    let decided = rig.commit(1);
    let job = rig.batch(true).unwrap();
    assert_eq!(places(&job), [decided], "nor do they by themselves");
    rig.end(job, JobEnd::Done(Vec::new()));
    rig.lane.clears_alone_from = Some(Instant::now());
    let job = rig.batch(true).unwrap();
    assert_eq!(job.clears, settled);
    rig.end(job, JobEnd::Done(Vec::new()));
    assert!(rig.lane.clears.is_empty() && rig.lane.clears_alone_from.is_none());
}

#[test]
fn a_lane_tells_how_long_its_oldest_outcome_waits_and_why() {
    let mut rig = Rig::new(limits(false));
    assert_eq!((rig.lane.oldest(), rig.lane.trouble()), (None, None));
    rig.committed(2, 1);
    let (first, second) = (Duration::from_secs(1), Duration::from_secs(3));
    assert_eq!(rig.lane.oldest(), Some(first));
    let job = rig.batch(true).unwrap();
    assert_eq!(rig.lane.oldest(), Some(first), "it is under way");
    rig.commit_to("other", 1);
    rig.end(job, JobEnd::Done(vec![(1, Trouble::Passing(why()))]));
    assert_eq!((rig.lane.oldest(), rig.lane.trouble()), (Some(second), Some("why")));
    let job = rig.batch(true).unwrap();
    rig.end(job, JobEnd::Done(Vec::new()));
    assert_eq!(rig.lane.trouble(), Some("why"), "another one's end does not end it");
    rig.again();
    let job = rig.batch(true).unwrap();
    rig.end(job, JobEnd::Done(Vec::new()));
    assert_eq!((rig.lane.oldest(), rig.lane.trouble()), (None, None));
}

#[test]
fn progress_alone_is_stored_from_time_to_time() {
    let mut rig = Rig::new(limits(true));
    let job = rig.batch(true).unwrap();
    assert!(job.items.is_empty(), "the first time at once");
    rig.end(job, JobEnd::Done(Vec::new()));
    assert!(rig.batch(true).is_none(), "nothing has changed");
    assert!(rig.lane.is_current(&rig.core));
    rig.step(Event::CaughtUp { position: 9 });
    assert!(rig.batch(true).is_none(), "no hurry");
    assert!(!rig.lane.is_current(&rig.core));
    rig.lane.hurry();
    assert_eq!(rig.batch(true).unwrap().progress.unwrap().position, 9);
}

#[test]
fn a_lane_whose_emitter_is_gone_says_so() {
    let mut rig = Rig::new(limits(true));
    rig.commit(1);
    drop(rig.todo);
    assert!(!rig.lane.begin(true, &rig.core));
}

#[test]
fn after_a_large_batch_the_next_one_waits_for_company() {
    let mut rig = Rig::new(Limits { queued_messages: 1_000, ..limits(true) });
    rig.committed(LOAD_FROM, 1);
    let large = rig.batch(true).expect("nobody waits at first");
    rig.end(large, JobEnd::Done(Vec::new()));
    rig.commit(1);
    assert!(rig.batch(true).is_none(), "more are coming");
    rig.lane.limits.linger = Duration::ZERO;
    let small = rig.batch(true).expect("it has lingered");
    rig.end(small, JobEnd::Done(Vec::new()));
    rig.lane.limits.linger = LONG;
    rig.commit(1);
    assert!(rig.batch(true).is_some(), "after a small one it goes at once");
}

#[test]
fn bytes_on_their_way_are_counted_until_their_batch_has_ended() {
    let mut rig = Rig::new(limits(true));
    rig.committed(2, 100);
    let waiting = rig.lane.bytes();
    assert!(waiting >= 200, "{waiting}");
    let job = rig.batch(true).expect("nothing else is there");
    assert_eq!(rig.lane.bytes(), 2 * waiting, "the client has a copy");
    rig.end(job, JobEnd::Done(Vec::new()));
    assert_eq!(rig.lane.bytes(), 0);
}

/// At least once: the parked topic does not take the mark of a delivery that has succeeded.
#[test]
fn a_delivery_that_is_not_marked_yet_is_not_sent_again() {
    let mut rig = Rig::new(limits(false));
    let decided = rig.commit(1);
    let mut job = rig.batch(true).unwrap();
    let of =
        HalfRef { id: job.items[0].half().unwrap().meta.id, half: HalfOffset(0), epoch: Epoch(1) };
    let Work::Deliver(_, settled) = &mut job.items[0].work else { panic!("it delivers") };
    *settled = Some(of);
    let other = rig.commit(1);
    let ended = rig.end(job, JobEnd::Done(vec![(0, Trouble::Unmarked(why()))]));
    assert!(ended.done.is_empty() && ended.unmarked == [decided], "{ended:?}");
    assert_eq!(rig.core.progress().unwrap().position, decided, "the mark holds progress");
    assert_eq!(rig.lane.trouble(), Some("why"));
    let job = rig.batch(true).unwrap();
    assert_eq!(places(&job), [other], "and nothing else");
    rig.end(job, JobEnd::Done(Vec::new()));
    rig.again();
    let job = rig.batch(true).unwrap();
    assert!(matches!(job.items[..], [Item { work: Work::Settle(mark), .. }] if mark == of));
    let ended = rig.end(job, JobEnd::Done(Vec::new()));
    assert_eq!(ended.done, [(decided, false)]);
    assert_eq!(rig.core.progress().unwrap().position, rig.next);
}

//! The resolver core, event by event; time is a parameter.
//!
//! # Layout
//! - [`timing`]: when a half is checked
//! - [`attempts`]: what counts as an attempt, and when it is given up
//! - [`failing`]: checks that fail
//! - [`batches`]: how many questions at once
//! - [`copies`]: a half message that was written more than once
//! - [`delivery`]: what is carried out, and what is retried
//! - [`takeover`]: what a new owner does with a replayed log

use std::sync::Arc;

use super::asking::decision;
use super::*;
use crate::ids::Epoch;
use crate::ledger::{Ignored, ParkedState};
use crate::record::{
    CheckOutcome, Checked, Decision, HalfMeta, HalfRef, Origin, Park, ParkCause, Reopen, Verdict,
};
use crate::schedule::Backoff;

mod attempts;
mod batches;
mod copies;
mod delivery;
mod failing;
mod takeover;
mod timing;

const CHECK_AFTER: Duration = Duration::from_secs(6);
const RETRY: Duration = Duration::from_secs(1);
const GRACE: Duration = Duration::from_secs(120);
const MAX_AGE: Duration = Duration::from_secs(3_600);
/// The longest that the first and the second interval can be; the shortest is a fifth less.
const INTERVALS: [Duration; 2] = [Duration::from_secs(10), Duration::from_secs(20)];

fn config() -> CoreConfig {
    CoreConfig {
        check_after: CHECK_AFTER,
        check_backoff: Backoff { initial: INTERVALS[0], max: Duration::from_secs(300) },
        max_checks: 3,
        max_age: MAX_AGE,
        no_listener_grace: GRACE,
        retry_delay: RETRY,
        check_batch: 2,
        check_batch_bytes: usize::MAX,
        check_batches: 2,
        copy_window: Duration::ZERO,
    }
}

/// A core, its clock, and the log that it reads.
struct Rig {
    core: ResolverCore,
    now: Duration,
    next: i64,
}

impl Rig {
    fn new() -> Self {
        Self::with(config())
    }

    fn with(config: CoreConfig) -> Self {
        Self::taken_over(config, 0, 0, 0)
    }

    /// An owner that took over at the time zero.
    fn taken_over(config: CoreConfig, low_water: i64, position: i64, wall_ms: i64) -> Self {
        let progress = Progress { low_water, position };
        let takeover = Takeover { progress, parked: Vec::new(), wall_ms, now: Duration::ZERO };
        Self { core: ResolverCore::new(config, takeover), now: Duration::ZERO, next: low_water }
    }

    fn step(&mut self, event: Event) -> Vec<Command> {
        let mut commands = Vec::new();
        self.core.step(self.now, event, &mut commands);
        commands
    }

    /// The time is this; ticks.
    fn at(&mut self, now: Duration) -> Vec<Command> {
        assert!(now >= self.now, "the clock is monotonic");
        self.now = now;
        self.step(Event::Tick)
    }

    fn after(&mut self, time: Duration) -> Vec<Command> {
        self.at(self.now + time)
    }

    fn read(&mut self, record: Record) -> Vec<Command> {
        self.read_at(0, record)
    }

    /// Reads the next record, appended at that wall clock.
    fn read_at(&mut self, appended_ms: i64, record: Record) -> Vec<Command> {
        let offset = self.next;
        self.next += 1;
        self.step(Event::Record { offset, appended_ms, record, body: Body::default() })
    }

    fn half(&mut self, n: u16) -> HalfRef {
        self.half_with(n, None)
    }

    fn half_with(&mut self, n: u16, check_after: Option<Duration>) -> HalfRef {
        let of = of(n, self.next);
        let commands = self.read(Record::Half(meta(n, check_after)));
        assert!(asked(&commands).is_empty(), "{commands:?}");
        of
    }

    /// A half about which a question is under way.
    fn asked_half(&mut self, n: u16) -> HalfRef {
        let of = self.half(n);
        assert_eq!(asked(&self.check_now(of)), [of]);
        of
    }

    fn check_now(&mut self, of: HalfRef) -> Vec<Command> {
        self.step(Event::CheckNow { half: of.half })
    }

    /// One question about one half is answered and over.
    fn answer(&mut self, of: HalfRef, answer: Answer) -> Vec<Command> {
        let mut commands = self.step(Event::Answered { of, answer });
        commands.extend(self.step(Event::BatchOver));
        commands
    }

    /// It is asked, answers UNKNOWN, and the attempt is read back from the log.
    fn attempt(&mut self, of: HalfRef) -> Vec<Command> {
        let commands = self.answer(of, unknown());
        let [Record::Checked(checked)] = &appended(&commands)[..] else { panic!("{commands:?}") };
        self.read(Record::Checked(checked.clone()))
    }

    /// Waits until the next thing is due.
    fn at_next_due(&mut self) -> Vec<Command> {
        let due = self.core.next_due().expect("something is due");
        self.at(due.max(self.now))
    }

    fn attempts(&self, of: HalfRef) -> u32 {
        self.core.ledger().open(of.half).expect("it is open").attempts
    }
}

fn id(n: u16) -> TransactionId {
    TransactionId::from_bytes(u128::from(n).to_be_bytes())
}

fn of(n: u16, half: i64) -> HalfRef {
    HalfRef { id: id(n), half: HalfOffset(half), epoch: Epoch(0) }
}

fn meta(n: u16, check_after: Option<Duration>) -> Arc<HalfMeta> {
    Arc::new(HalfMeta {
        id: id(n),
        application: "app".into(),
        purpose: "purpose".into(),
        topic: "topic".into(),
        timestamp_ms: 0,
        check_after,
        local_transaction: None,
    })
}

fn decided(of: HalfRef, verdict: Verdict) -> Record {
    decision(of, verdict)
}

fn reopen(of: HalfRef) -> Record {
    let meta = Arc::new(HalfMeta { id: of.id, ..(*meta(0, None)).clone() });
    Record::Reopen(Box::new(Reopen { of, meta, operator: "ada".into(), reason: String::new() }))
}

fn park(of: HalfRef, attempts: u32, cause: ParkCause) -> Record {
    Record::Park(Park { of, attempts, cause, reason: String::new() })
}

fn checked(of: HalfRef, attempt: u32) -> Record {
    let outcome = CheckOutcome::Unknown;
    Record::Checked(Checked { of, attempt, outcome, reason: String::new(), asked_by: None })
}

fn unknown() -> Answer {
    Answer::Unknown("not yet".into())
}

fn no_listener() -> Answer {
    Answer::NotAsked(NotAsked::NoListener)
}

/// The halves that the commands ask about.
fn asked(commands: &[Command]) -> Vec<HalfRef> {
    questions(commands).into_iter().flatten().collect()
}

fn questions(commands: &[Command]) -> Vec<Vec<HalfRef>> {
    let ask = |command: &Command| match command {
        Command::Ask(batch) => Some(batch.iter().map(|question| question.of).collect()),
        _ => None,
    };
    commands.iter().filter_map(ask).collect()
}

fn appended(commands: &[Command]) -> Vec<Record> {
    let record = |command: &Command| match command {
        Command::Append(record) => Some(record.clone()),
        _ => None,
    };
    commands.iter().filter_map(record).collect()
}

/// The one PARK among the commands.
fn parked_by(commands: &[Command]) -> Park {
    match &appended(commands)[..] {
        [Record::Park(park)] => park.clone(),
        _ => panic!("one PARK expected: {commands:?}"),
    }
}

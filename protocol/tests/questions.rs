//! The checks of many halves under arbitrary answers, losses and interference: no half is in two
//! questions at once, the bounds hold, what counts as an attempt was one, and nothing open is
//! forgotten.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use halfmsg_protocol::{
    Answer, Backoff, Body, Command, CoreConfig, Decision, Epoch, Event, HalfMeta, HalfOffset,
    HalfRef, NotAsked, Origin, Progress, Record, Reopen, ResolverCore, Takeover, TransactionId,
    Verdict,
};
use proptest::prelude::*;

const BATCH: usize = 3;
const BATCHES: usize = 2;
const MAX_CHECKS: u32 = 3;

#[derive(Debug, Clone)]
enum Step {
    Half,
    Wait(u64),
    Answer(usize, Answer),
    /// The oldest record on its way is stored, and perhaps reported as lost; or it is lost.
    Stored {
        reported_lost: bool,
    },
    Lost,
    CheckNow(usize),
    Decide(usize),
    Reopen(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let answer = prop_oneof![
        2 => Just(Answer::Commit),
        1 => Just(Answer::Rollback),
        4 => Just(Answer::Unknown("unknown".into())),
        2 => Just(Answer::Failed("failed".into())),
        1 => Just(Answer::NotAsked(NotAsked::Busy)),
        1 => Just(Answer::NotAsked(NotAsked::NoListener)),
        1 => Just(Answer::NotAsked(NotAsked::NoPlace)),
        1 => Just(Answer::NotAsked(NotAsked::Blocked)),
    ];
    prop_oneof![
        2 => Just(Step::Half),
        4 => (0..60_000_u64).prop_map(Step::Wait),
        8 => (0..9_usize, answer).prop_map(|(which, answer)| Step::Answer(which, answer)),
        6 => any::<bool>().prop_map(|reported_lost| Step::Stored { reported_lost }),
        1 => Just(Step::Lost),
        2 => (0..9_usize).prop_map(Step::CheckNow),
        1 => (0..9_usize).prop_map(Step::Decide),
        2 => (0..9_usize).prop_map(Step::Reopen),
    ]
}

struct Rig {
    core: ResolverCore,
    now: Duration,
    next: i64,
    halves: Vec<HalfRef>,
    /// Questions under way, with the halves that are not answered yet.
    questions: Vec<Vec<HalfRef>>,
    on_their_way: Vec<Record>,
    /// Answers that count per half and life.
    asked: BTreeMap<(HalfOffset, Epoch), u32>,
    due_writes: BTreeSet<i64>,
}

impl Rig {
    fn new() -> Self {
        let config = CoreConfig {
            check_after: Duration::from_secs(6),
            check_backoff: Backoff {
                initial: Duration::from_secs(10),
                max: Duration::from_secs(60),
            },
            max_checks: MAX_CHECKS,
            max_age: Duration::from_secs(3_600),
            no_listener_grace: Duration::from_secs(120),
            retry_delay: Duration::from_secs(1),
            check_batch: BATCH,
            check_batch_bytes: usize::MAX,
            check_batches: BATCHES,
            copy_window: Duration::ZERO,
        };
        let progress = Progress { low_water: 0, position: 0 };
        let now = Duration::ZERO;
        let takeover = Takeover { progress, parked: Vec::new(), wall_ms: 0, now };
        Self {
            core: ResolverCore::new(config, takeover),
            now,
            next: 0,
            halves: Vec::new(),
            questions: Vec::new(),
            on_their_way: Vec::new(),
            asked: BTreeMap::new(),
            due_writes: BTreeSet::new(),
        }
    }

    fn step(&mut self, event: Event) {
        let mut commands = Vec::new();
        self.core.step(self.now, event, &mut commands);
        for command in commands {
            match command {
                Command::Ask(batch) => self.ask(batch.iter().map(|asked| asked.of).collect()),
                Command::Append(record) => self.on_their_way.push(record),
                Command::Deliver { at, .. }
                | Command::Settle { at, .. }
                | Command::WriteParked { at, .. } => {
                    assert!(self.due_writes.insert(at), "{at} is carried out twice");
                }
                Command::CopyForeign { .. } | Command::Note { .. } | Command::Dropped { .. } => {}
            }
        }
    }

    fn ask(&mut self, batch: Vec<HalfRef>) {
        for of in &batch {
            let open = self.core.ledger().open(of.half).expect("only what is open is asked about");
            assert_eq!((open.half.meta.id, open.epoch), (of.id, of.epoch));
            assert!(open.attempts < MAX_CHECKS, "{of:?} has had its attempts");
            let twice = self.questions.iter().flatten().any(|other| other == of);
            assert!(!twice, "{of:?} is asked about twice at once");
        }
        assert!(!batch.is_empty() && batch.len() <= BATCH, "{batch:?}");
        self.questions.push(batch);
        assert!(self.questions.len() <= BATCHES, "{:?}", self.questions);
    }

    fn read(&mut self, record: Record) {
        let offset = self.next;
        self.next += 1;
        self.step(Event::Record { offset, appended_ms: 0, record, body: Body::default() });
        let ledger = self.core.ledger();
        for open in ledger.open_from(HalfOffset(0)) {
            let life = (open.half.offset, open.epoch);
            assert!(open.attempts <= self.asked.get(&life).copied().unwrap_or(0), "{life:?}");
        }
    }

    fn half(&mut self) {
        let id = TransactionId::from_bytes(i128::from(self.next).to_be_bytes());
        self.halves.push(HalfRef { id, half: HalfOffset(self.next), epoch: Epoch(0) });
        self.read(Record::Half(meta(id)));
    }

    fn answer(&mut self, which: usize, answer: Answer) {
        let Some(which) = which.checked_rem(self.questions.len()) else { return };
        let of = self.questions[which].remove(0);
        if matches!(answer, Answer::Unknown(_)) {
            *self.asked.entry((of.half, of.epoch)).or_default() += 1;
        }
        self.step(Event::Answered { of, answer });
        if self.questions[which].is_empty() {
            self.questions.remove(which);
            self.step(Event::BatchOver);
        }
    }

    fn stored(&mut self, stored: bool, reported_lost: bool) {
        if self.on_their_way.is_empty() {
            return;
        }
        let record = self.on_their_way.remove(0);
        let of = match &record {
            Record::Decision(decision) => decision.of,
            Record::Checked(checked) => checked.of,
            Record::Park(park) => park.of,
            other => panic!("the resolver does not append {other:?}"),
        };
        if stored {
            self.read(record);
        }
        if reported_lost {
            self.step(Event::AppendFailed { of });
        }
    }

    fn run(&mut self, step: Step) {
        let pick = |which: usize, halves: &[HalfRef]| {
            which.checked_rem(halves.len()).map(|which| halves[which])
        };
        match step {
            Step::Half => self.half(),
            Step::Wait(millis) => {
                self.now += Duration::from_millis(millis);
                self.step(Event::Tick);
            }
            Step::Answer(which, answer) => self.answer(which, answer),
            Step::Stored { reported_lost } => self.stored(true, reported_lost),
            Step::Lost => self.stored(false, true),
            Step::CheckNow(which) => {
                if let Some(of) = pick(which, &self.halves) {
                    self.step(Event::CheckNow { half: of.half });
                }
            }
            Step::Decide(which) => {
                if let Some(of) = pick(which, &self.halves) {
                    let (verdict, origin) = (Verdict::Commit, Origin::Producer);
                    let reason = String::new();
                    let decision = Decision { of, verdict, origin, operator: None, reason };
                    self.read(Record::Decision(decision));
                }
            }
            Step::Reopen(which) => {
                let Some(of) = pick(which, &self.halves) else { return };
                let Some(parked) = self.core.ledger().find_parked(of.id) else { return };
                let of = HalfRef { epoch: parked.epoch, ..of };
                let (operator, reason) = (String::new(), String::new());
                self.read(Record::Reopen(Box::new(Reopen {
                    of,
                    meta: meta(of.id),
                    operator,
                    reason,
                })));
            }
        }
        self.assert_nothing_is_forgotten();
    }

    /// An open half waits for its time, is asked about, or has a record on its way.
    fn assert_nothing_is_forgotten(&self) {
        for open in self.core.ledger().open_from(HalfOffset(0)) {
            let (half, id) = (open.half.offset, open.half.meta.id);
            let waits = self.core.next_check(half).is_some();
            let asked =
                self.questions.iter().flatten().any(|of| of.half == half && of.epoch == open.epoch);
            let on_its_way = self.on_their_way.iter().any(|record| record.id() == id);
            assert!(waits || asked || on_its_way, "{half} is forgotten");
        }
    }

    /// Every question is answered UNKNOWN from now on: in the end everything is parked.
    fn finish(&mut self) {
        for _ in 0..200 {
            while !self.questions.is_empty() {
                self.answer(0, Answer::Unknown(String::new()));
            }
            while !self.on_their_way.is_empty() {
                self.stored(true, false);
            }
            match self.core.next_due() {
                Some(due) => self.now = self.now.max(due),
                None if self.questions.is_empty() && self.on_their_way.is_empty() => return,
                None => {}
            }
            self.step(Event::Tick);
        }
        panic!("it does not come to its end: {:?}", self.core.next_due());
    }
}

fn meta(id: TransactionId) -> Arc<HalfMeta> {
    Arc::new(HalfMeta {
        id,
        application: "app".into(),
        purpose: "purpose".into(),
        topic: "topic".into(),
        timestamp_ms: 0,
        check_after: None,
        local_transaction: None,
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn every_half_is_asked_in_turn_and_none_twice_at_once(
        steps in prop::collection::vec(step(), 1..150),
    ) {
        let mut rig = Rig::new();
        for step in steps {
            rig.run(step);
        }
        rig.finish();
        prop_assert_eq!(rig.core.ledger().open_count(), 0);
    }
}

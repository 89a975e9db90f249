//! The log, the parked topic, stored progress, the target, and one owner of the partition.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use halfmsg_protocol::{
    Backoff, Body, Command, CoreConfig, Event, HalfOffset, HalfRef, ParkedState, Progress, Record,
    ResolverCore, Takeover, TransactionId, Verdict,
};

use crate::spec::{Spec, SpecHalf};

/// Longer than a history; see [`World::finish`].
const COPY_WINDOW: Duration = Duration::from_secs(1 << 30);
const LONG: Duration = Duration::from_secs(1 << 40);
/// Far more than a history has steps.
const MAX_TURNS: u32 = 10_000;

/// What lies in the log; control records are gaps in the offsets.
enum Entry {
    Record(Box<Record>),
    Foreign,
}

struct Delivery {
    at: i64,
    id: TransactionId,
    mark: Option<HalfRef>,
}

/// A record on its way to the parked topic; these arrive in their order.
struct Write {
    /// The outcome that is carried out with it.
    at: Option<i64>,
    key: TransactionId,
    state: Option<ParkedState>,
}

pub(crate) struct Owner {
    pub(crate) core: ResolverCore,
    now: Duration,
    next: i64,
    deliveries: Vec<Delivery>,
    foreign: Vec<i64>,
    writes: VecDeque<Write>,
    /// Carried out, not reported yet.
    done: Vec<i64>,
    /// Progress that is stored, and not known to be.
    stored: Option<Progress>,
    /// Progress that is known to be stored.
    known: Option<Progress>,
}

/// A request to delete what lies below; its owner may be dead when it reaches the broker.
struct Cut {
    below: i64,
    asked_by: u32,
}

pub(crate) struct World {
    log: Vec<(i64, Entry)>,
    /// Records below are deleted; the list keeps them for the spec.
    start: i64,
    pub(crate) end: i64,
    cuts: Vec<Cut>,
    /// Requests that did delete something, and those of them whose owner was dead.
    pub(crate) cut: u32,
    pub(crate) cut_late: u32,
    pub(crate) progress: Progress,
    pub(crate) topic: BTreeMap<TransactionId, ParkedState>,
    delivered: BTreeMap<TransactionId, u32>,
    refused: BTreeSet<TransactionId>,
    pub(crate) crashes: u32,
    /// Marks of deliveries may reach the parked topic before the delivery reaches the target.
    marks_first: bool,
    pub(crate) owner: Owner,
}

fn config() -> CoreConfig {
    CoreConfig {
        check_after: LONG,
        check_backoff: Backoff { initial: LONG, max: LONG },
        max_checks: u32::MAX,
        max_age: LONG,
        no_listener_grace: LONG,
        retry_delay: Duration::from_secs(1),
        check_batch: 10,
        check_batch_bytes: usize::MAX,
        check_batches: 10,
        copy_window: COPY_WINDOW,
    }
}

impl Owner {
    fn new(progress: Progress, parked: Vec<ParkedState>) -> Self {
        let takeover = Takeover { progress, parked, wall_ms: 0, now: Duration::ZERO };
        Self {
            core: ResolverCore::new(config(), takeover),
            now: Duration::ZERO,
            next: progress.low_water,
            deliveries: Vec::new(),
            foreign: Vec::new(),
            writes: VecDeque::new(),
            done: Vec::new(),
            stored: None,
            known: None,
        }
    }
}

impl World {
    pub(crate) fn new(marks_first: bool) -> Self {
        let progress = Progress { low_water: 0, position: 0 };
        Self {
            log: Vec::new(),
            start: 0,
            end: 0,
            cuts: Vec::new(),
            cut: 0,
            cut_late: 0,
            progress,
            topic: BTreeMap::new(),
            delivered: BTreeMap::new(),
            refused: BTreeSet::new(),
            crashes: 0,
            marks_first,
            owner: Owner::new(progress, Vec::new()),
        }
    }

    pub(crate) fn end(&self) -> i64 {
        self.end
    }

    pub(crate) fn records(&self) -> impl Iterator<Item = (i64, &Record)> {
        self.log.iter().filter_map(|(offset, entry)| match entry {
            Entry::Record(record) => Some((*offset, &**record)),
            Entry::Foreign => None,
        })
    }

    pub(crate) fn spec(&self) -> Spec {
        Spec::of(self.records())
    }

    pub(crate) fn delivered(&self, id: TransactionId) -> u32 {
        self.delivered.get(&id).copied().unwrap_or(0)
    }

    pub(crate) fn was_refused(&self, id: TransactionId) -> bool {
        self.refused.contains(&id)
    }

    /// Commits and rollbacks that name this half, whether they count or not.
    pub(crate) fn decisions_about(&self, half: &SpecHalf) -> (usize, usize) {
        let is_named = |at: i64| half.offset == at || half.copies.contains(&at);
        let of = |verdict| {
            let about = |record: &Record| {
                matches!(record, Record::Decision(decision)
                    if is_named(decision.of.half.0) && decision.verdict == verdict)
            };
            self.records().filter(|(_, record)| about(record)).count()
        };
        (of(Verdict::Commit), of(Verdict::Rollback))
    }

    /// Offsets of the open and of the parked halves, as the owner sees them.
    pub(crate) fn sets(&self) -> (Vec<i64>, Vec<i64>) {
        let ledger = self.owner.core.ledger();
        let all = HalfOffset(0);
        (
            ledger.open_from(all).map(|open| open.half.offset.0).collect(),
            ledger.parked_from(all).map(|parked| parked.half.offset.0).collect(),
        )
    }

    /// The life of a refused message as an operator sees it: epoch and attempts.
    pub(crate) fn parked_life(&self, id: TransactionId) -> (u32, u32) {
        let ledger = self.owner.core.ledger();
        let open = ledger.find_open(id).map(|open| (open.epoch.0, open.attempts));
        let parked = ledger.find_parked(id).map(|parked| (parked.epoch.0, parked.attempts));
        open.or(parked).unwrap_or((0, 0))
    }

    pub(crate) fn append(&mut self, record: Record) {
        self.log.push((self.end, Entry::Record(Box::new(record))));
        self.end += 1;
    }

    pub(crate) fn append_foreign(&mut self) {
        self.log.push((self.end, Entry::Foreign));
        self.end += 1;
    }

    pub(crate) fn append_gap(&mut self) {
        self.end += 1;
    }

    /// The owner reads one record, or finds the end.
    pub(crate) fn read(&mut self) {
        let first = self.owner.next.max(self.start);
        let found = self.log.iter().find(|(offset, _)| *offset >= first);
        let (next, event) = match found {
            None => (self.end, Event::CaughtUp { position: self.end }),
            Some((offset, Entry::Foreign)) => (offset + 1, Event::Foreign { offset: *offset }),
            Some((offset, Entry::Record(record))) => {
                let (offset, record) = (*offset, Record::clone(record));
                let body = Body::default();
                (offset + 1, Event::Record { offset, appended_ms: 0, record, body })
            }
        };
        self.owner.next = next;
        self.step(event);
    }

    fn step(&mut self, event: Event) {
        let mut commands = Vec::new();
        self.owner.core.step(self.owner.now, event, &mut commands);
        for command in commands {
            self.command(command);
        }
        self.assert_progress_is_safe();
    }

    fn command(&mut self, command: Command) {
        let owner = &mut self.owner;
        let settled = |of: HalfRef, at| Some(ParkedState::Settled { of, at });
        match command {
            Command::Deliver { at, half, settled: mark } => {
                if let Some(of) = mark.filter(|_| self.marks_first) {
                    owner.writes.push_back(Write { at: None, key: of.id, state: settled(of, at) });
                }
                owner.deliveries.push(Delivery { at, id: half.meta.id, mark });
            }
            Command::Settle { at, settled: of } => {
                owner.writes.push_back(Write { at: Some(at), key: of.id, state: settled(of, at) });
            }
            Command::WriteParked { at, parked } => {
                let key = parked.half.meta.id;
                let state = Some(ParkedState::Parked(parked));
                owner.writes.push_back(Write { at: Some(at), key, state });
            }
            Command::CopyForeign { at } => owner.foreign.push(at),
            Command::Append(record) => panic!("nothing is due: {record:?}"),
            Command::Ask(_) | Command::Note { .. } | Command::Dropped { .. } => {}
        }
    }

    /// A delivery reaches its target.
    pub(crate) fn deliver(&mut self, which: usize) {
        let owner = &mut self.owner;
        if let Some(at) = owner.foreign.pop() {
            return owner.done.push(at);
        }
        let Some(which) = which.checked_rem(owner.deliveries.len()) else { return };
        let Delivery { at, id, mark } = owner.deliveries.swap_remove(which);
        *self.delivered.entry(id).or_default() += 1;
        match mark {
            None => owner.done.push(at),
            Some(of) => {
                let state = Some(ParkedState::Settled { of, at });
                owner.writes.push_back(Write { at: Some(at), key: id, state });
            }
        }
    }

    /// The target refuses a delivery for good.
    pub(crate) fn refuse(&mut self, which: usize) {
        let Some(which) = which.checked_rem(self.owner.deliveries.len()) else { return };
        let Delivery { at, id, .. } = self.owner.deliveries.swap_remove(which);
        self.refused.insert(id);
        self.step(Event::DeliveryRefused { at, reason: "refused".into(), wall_ms: 0 });
    }

    /// The next record reaches the parked topic.
    pub(crate) fn write(&mut self) {
        let Some(Write { at, key, state }) = self.owner.writes.pop_front() else { return };
        match state {
            Some(state) => drop(self.topic.insert(key, state)),
            None => drop(self.topic.remove(&key)),
        }
        self.owner.done.extend(at);
    }

    /// An acknowledgement reaches the owner.
    pub(crate) fn acknowledge(&mut self, which: usize) {
        let Some(which) = which.checked_rem(self.owner.done.len()) else { return };
        let at = self.owner.done.swap_remove(which);
        self.step(Event::CarriedOut { at });
    }

    pub(crate) fn tick(&mut self) {
        self.owner.now += Duration::from_secs(2);
        self.step(Event::Tick);
    }

    /// Progress is stored durably; the owner does not know it yet.
    pub(crate) fn store(&mut self) {
        if let Some(progress) = self.owner.core.progress() {
            let before = self.progress;
            assert!(progress.position >= before.position, "{before:?} to {progress:?}");
            assert!(progress.low_water >= before.low_water, "{before:?} to {progress:?}");
            self.progress = progress;
            self.owner.stored = Some(progress);
        }
    }

    /// Now it knows.
    pub(crate) fn report_stored(&mut self) {
        if let Some(progress) = self.owner.stored.take() {
            self.owner.known = Some(progress);
            for key in self.owner.core.progress_stored(progress) {
                self.owner.writes.push_back(Write { at: None, key, state: None });
            }
        }
    }

    /// The owner asks the broker to delete what nobody needs any more.
    pub(crate) fn trim(&mut self) {
        if let Some(Progress { low_water, .. }) = self.owner.known {
            self.cuts.push(Cut { below: low_water, asked_by: self.crashes });
        }
    }

    /// Such a request reaches the broker; whether anybody hears of it changes nothing.
    pub(crate) fn delete(&mut self, which: usize) {
        let Some(which) = which.checked_rem(self.cuts.len()) else { return };
        let Cut { below, asked_by } = self.cuts.swap_remove(which);
        if below > self.start {
            self.start = below;
            self.cut += 1;
            self.cut_late += u32::from(asked_by < self.crashes);
        }
        self.assert_log_is_whole();
    }

    /// The owner dies, and a new one takes over.
    pub(crate) fn crash(&mut self) {
        self.assert_log_is_whole();
        self.crashes += 1;
        self.owner = Owner::new(self.progress, self.topic.values().cloned().collect());
    }

    /// A replay begins at the stored low-water mark, and finds everything from there on.
    fn assert_log_is_whole(&self) {
        let (start, progress) = (self.start, self.progress);
        assert!(start <= progress.low_water, "cut below {start}, replayed from {progress:?}");
    }

    fn is_busy(&self) -> bool {
        let Owner { next, deliveries, foreign, writes, done, core, .. } = &self.owner;
        let due = core.ledger().progress().position < self.end;
        let idle = deliveries.is_empty() && foreign.is_empty() && writes.is_empty();
        *next < self.end || due || !idle || !done.is_empty()
    }

    /// Nobody dies any more, everything is accepted and comes to its end.
    pub(crate) fn finish(&mut self) {
        for turn in 0.. {
            if !self.is_busy() {
                break;
            }
            assert!(turn < MAX_TURNS, "it does not come to its end");
            self.tick();
            self.read();
            self.deliver(0);
            self.write();
            self.acknowledge(0);
        }
        // No copy comes any more.
        self.owner.now += COPY_WINDOW;
        self.tick();
        self.store();
        self.report_stored();
        while !self.owner.writes.is_empty() {
            self.write();
        }
        self.trim();
        while !self.cuts.is_empty() {
            self.delete(0);
        }
        assert_eq!(self.progress.position, self.end, "everything is carried out");
    }
}

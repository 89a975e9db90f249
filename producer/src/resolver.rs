//! Carries out what [`ResolverCore`] commands, for the partitions that this replica owns.
//!
//! One thread reads the store and feeds one core per partition; each partition has a lane, whose
//! thread sends its deliveries. It must never decide by itself, and never store progress past an
//! outcome that is not carried out.
//!
//! # Layout
//! - `assignment`: the consumer's context; partitions come and go
//! - `owned`: what is held of one partition
//! - `ownership`: taking over, giving up, losing, stopping; `wanted`: which partitions, and when
//! - `takeover`: fences the former owner, finds where a partition is taken up; `claim`: whether it
//!   still counts
//! - `reading`: polls the store; `replaying`: a long log, on two threads
//! - `carry`: feeds the cores and carries out what they command; `asking`: their questions
//! - `lane`: a partition's outcomes on their way, in batches
//! - `emitter`, `worker`: the thread that carries batches out; `delivery`: its client
//! - `progress`: storing (L, P) in at-least-once mode
//! - `trim`: deletes what no owner will need
//! - `skip`: goes on behind a record of a newer format
//! - `spans`: traces of deliveries and decisions
//! - `query`: what the views and operators ask; `watch`: what is told unasked
//! - `tell`: what an observer hears of the records that are read

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use halfmsg_protocol::{Answer, Body, Command, Decision, Event, HalfRef, Ledger, Progress};
use halfmsg_traces::opentelemetry::trace::SpanContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;

use crate::bodies::Bodies;
use crate::checker::Checker;
use crate::config::{Assignment, Emission, ProducerConfig};
use crate::life::{Life, Read};
use crate::log::StoreLog;
use crate::metrics::Metrics;
use crate::shared::Shared;
use crate::targets::Targets;

mod asking;
pub(crate) mod assignment;
mod carry;
mod claim;
pub(crate) mod delivery;
mod emitter;
mod lane;
mod owned;
mod ownership;
pub(crate) mod progress;
pub(crate) mod query;
mod reading;
mod replaying;
mod skip;
mod spans;
pub(crate) mod takeover;
mod tell;
mod trim;
mod wanted;
mod watch;
mod worker;

use assignment::{READ_AHEAD_BYTES, StoreContext};
use emitter::{Item, JobEnd};
use lane::Limits;
pub(crate) use owned::Owned;
use progress::ProgressWriter;
use query::Query;
use takeover::{Taken, TakeoverEnd};
use trim::{Cut, Trimming};
use wanted::Wanted;
use watch::Renewal;

/// Inputs taken in between two polls.
const INPUTS_PER_TURN: usize = 4_096;
/// How often due checks are looked for, and what others see is brought up to date.
const TICK: Duration = Duration::from_millis(20);
/// Between two lines about a replay that is long; the first comes when it begins.
const REPLAY_REPORT_INTERVAL: Duration = Duration::from_secs(5);

/// What reaches the resolver besides records.
pub(crate) enum Input {
    /// A batch of a lane has ended.
    Emitted {
        partition: i32,
        generation: u64,
        items: Vec<Item>,
        progress: Option<Progress>,
        end: JobEnd,
        /// The wall clock then, in milliseconds since the epoch.
        ended_ms: i64,
    },
    /// What operators have skipped by now in a partition that is stopped.
    Skipped { partition: i32, generation: u64, skipped: BTreeSet<i64> },
    /// Partitions that the takeover under way has made ours.
    Taken { generation: u64, taken: Vec<Taken> },
    /// It has ended.
    TakenOver(TakeoverEnd),
    /// The answer about one half, and the context that the message carries, if anybody takes spans.
    Answered {
        partition: i32,
        generation: u64,
        of: HalfRef,
        answer: Answer,
        context: Option<SpanContext>,
    },
    /// A question is over.
    BatchOver { partition: i32, generation: u64 },
    /// A record was not stored, as far as is known.
    AppendFailed { partition: i32, generation: u64, of: HalfRef },
    /// A request to trim is over: these are done; `is_left`: not all.
    Trimmed { done: Vec<Cut>, is_left: bool },
    /// Somebody wants to know, or wants a check now.
    Query(Query),
    /// Stop: finish what is under way, store progress, end.
    Stop,
}

/// What the resolver is made of.
pub(crate) struct Parts {
    pub(crate) config: ProducerConfig,
    pub(crate) log: Arc<StoreLog>,
    pub(crate) checker: Arc<Checker>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) targets: Arc<Targets>,
    pub(crate) bodies: Arc<Bodies>,
    pub(crate) metrics: Metrics,
    pub(crate) life: Life,
    pub(crate) runtime: tokio::runtime::Handle,
    pub(crate) inputs: mpsc::Receiver<Input>,
    pub(crate) to_self: mpsc::Sender<Input>,
    pub(crate) partitions: i32,
}

/// The thread's state.
pub(crate) struct Resolver {
    config: Arc<ProducerConfig>,
    store: String,
    log: Arc<StoreLog>,
    checker: Arc<Checker>,
    shared: Arc<Shared>,
    targets: Arc<Targets>,
    bodies: Arc<Bodies>,
    metrics: Metrics,
    life: Life,
    runtime: tokio::runtime::Handle,
    inputs: mpsc::Receiver<Input>,
    to_self: mpsc::Sender<Input>,
    consumer: Arc<BaseConsumer<StoreContext>>,
    limits: Limits,
    /// In at-least-once mode; else the lanes store progress.
    progress: Option<ProgressWriter>,
    owned: BTreeMap<i32, Owned>,
    /// How far this process has read each partition, also of those that it owns no more.
    seen: BTreeMap<i32, i64>,
    wanted: Wanted,
    generation: u64,
    /// The origin of the cores' monotonic clock, and the time on it at this turn.
    started: Instant,
    now: Duration,
    last_tick: Instant,
    trimming: Trimming,
    skips_looked_at: Instant,
    /// Held by a look at what operators have skipped, while it is under way.
    skip_look: Arc<()>,
    stop_asked: bool,
    /// The broker has said that the store may not be read.
    is_denied: bool,
    /// Since when a replay is under way, and when it was last reported.
    replay: Option<(Instant, Option<Instant>)>,
    /// The consumer is beyond repair and is made anew, or was; how often that was in a row.
    renewal: Option<Renewal>,
    is_renewed: bool,
    renewals: u32,
    /// The foreign record in hand.
    foreign: Body,
    /// The decision in hand, if somebody observes.
    decision: Option<Read<Decision>>,
    /// The context of the message whose answer is in hand, if anybody takes spans.
    asked_in: Option<SpanContext>,
    /// When the record in hand was appended, on the broker's clock.
    appended_ms: i64,
    commands: Vec<Command>,
    /// Partitions that the metrics show.
    shown: BTreeSet<i32>,
    /// When the parked messages were counted last.
    counted: Option<Instant>,
}

impl Resolver {
    pub(crate) fn new(parts: Parts) -> Result<Self, KafkaError> {
        let config = Arc::new(parts.config);
        let store = config.store_topic();
        let consumer = assignment::consumer(&config, parts.partitions, parts.metrics.clone())?;
        let mut wanted = Wanted::default();
        let now = Instant::now();
        match config.assignment {
            Assignment::All => wanted.add(0..parts.partitions, now),
            Assignment::Shared => consumer.subscribe(&[&store])?,
        }
        let progress = (config.emission == Emission::AtLeastOnce)
            .then(|| ProgressWriter::new(store.clone(), Arc::clone(&consumer)));
        Ok(Self {
            limits: Limits::of(&config),
            store,
            config,
            log: parts.log,
            checker: parts.checker,
            shared: parts.shared,
            targets: parts.targets,
            bodies: parts.bodies,
            metrics: parts.metrics,
            life: parts.life,
            runtime: parts.runtime,
            inputs: parts.inputs,
            to_self: parts.to_self,
            consumer,
            progress,
            owned: BTreeMap::new(),
            seen: BTreeMap::new(),
            wanted,
            generation: 0,
            started: now,
            now: Duration::ZERO,
            last_tick: now,
            trimming: Trimming::new(now),
            skips_looked_at: now,
            skip_look: Arc::new(()),
            stop_asked: false,
            is_denied: false,
            replay: None,
            renewal: None,
            is_renewed: true,
            renewals: 0,
            foreign: Body::default(),
            decision: None,
            asked_in: None,
            appended_ms: 0,
            commands: Vec::new(),
            shown: BTreeSet::new(),
            counted: None,
        })
    }

    /// Runs until [`Input::Stop`], or until nobody can send inputs any more.
    pub(crate) fn run(mut self) {
        while self.take_inputs() {
            self.now = self.started.elapsed();
            self.follow_assignment();
            let idle = self.read_store();
            self.keep_bodies();
            self.tick();
            self.throttle();
            self.begin_batches(idle);
            self.store_progress();
        }
        self.finish();
    }

    /// False when it is time to stop.
    fn take_inputs(&mut self) -> bool {
        for _ in 0..INPUTS_PER_TURN {
            if self.stop_asked {
                return false;
            }
            match self.inputs.try_recv() {
                Ok(Input::Stop) | Err(mpsc::TryRecvError::Disconnected) => return false,
                Ok(input) => self.input(input),
                Err(mpsc::TryRecvError::Empty) => return true,
            }
        }
        true
    }

    fn input(&mut self, input: Input) {
        match input {
            Input::Emitted { partition, generation, items, progress, end, ended_ms } => {
                self.emitted((partition, generation), items, progress, (end, ended_ms));
            }
            Input::Taken { generation, taken } => self.taken(generation, taken),
            Input::TakenOver(end) => self.taken_over(end),
            Input::Skipped { partition, generation, skipped } => {
                self.skipped(partition, generation, skipped);
            }
            Input::Answered { partition, generation, of, answer, context } => {
                self.metrics.checked(&answer);
                self.tell_checked(partition, of, &answer);
                self.asked_in = context;
                self.step(partition, Some(generation), Event::Answered { of, answer });
                self.asked_in = None;
            }
            Input::BatchOver { partition, generation } => {
                self.step(partition, Some(generation), Event::BatchOver);
            }
            Input::AppendFailed { partition, generation, of } => {
                self.step(partition, Some(generation), Event::AppendFailed { of });
            }
            Input::Trimmed { done, is_left } => self.trimmed(&done, is_left),
            Input::Query(query) => self.query(query),
            Input::Stop => self.stop_asked = true,
        }
    }

    fn tick(&mut self) {
        if self.last_tick.elapsed() < TICK {
            return;
        }
        self.last_tick = Instant::now();
        self.look_for_fatal();
        let now = self.now;
        let due: Vec<i32> = self
            .owned
            .iter()
            .filter(|(_, owned)| owned.core.next_due().is_some_and(|due| due <= now))
            .map(|(partition, _)| *partition)
            .collect();
        for partition in due {
            let generation = self.owned.get(&partition).map(|owned| owned.generation);
            self.step(partition, generation, Event::Tick);
        }
        self.note_seen();
        self.report_replay();
        self.trim();
        self.look_for_skips();
        self.let_readers_go();
        self.publish();
    }

    /// The end of a client takes longer than this thread may wait.
    fn let_readers_go(&self) {
        let unused = self.bodies.take_unused();
        if !unused.is_empty() {
            drop(self.runtime.spawn_blocking(move || drop(unused)));
        }
    }

    /// A line when a long replay begins, and others while it goes on, and one when all that the log held at the takeover is
    /// known.
    fn report_replay(&mut self) {
        let left: i64 = self.owned.values().map(Owned::left_to_replay).sum();
        let behind = self.owned.values().any(Owned::is_behind);
        self.metrics.replay_left(if behind { left } else { 0 });
        let Some((since, reported)) = self.replay else {
            return;
        };
        let is_told = match reported {
            Some(reported) => reported.elapsed() < REPLAY_REPORT_INTERVAL,
            None => left < replaying::LONG,
        };
        if !self.wanted.is_empty() || (behind && is_told) {
            return;
        }
        let ledgers = || self.owned.values().map(|owned| owned.core.ledger());
        let open = ledgers().map(Ledger::open_count).sum::<usize>();
        let (topic, seconds) = (&self.store, since.elapsed().as_secs_f64());
        if behind {
            tracing::info!(topic, left, open, seconds, "the store is being replayed");
            self.replay = Some((since, Some(Instant::now())));
            return;
        }
        tracing::info!(
            topic,
            partitions = self.owned.len(),
            open,
            parked = ledgers().map(Ledger::parked_count).sum::<usize>(),
            seconds,
            "the store's partitions are taken over"
        );
        self.replay = None;
    }

    /// Bodies beyond the budget stay in the store: what was read in advance, and what is on its way
    /// to its target, counts first.
    fn keep_bodies(&mut self) {
        let budget = self.config.body_budget_bytes;
        let budget = budget.saturating_sub(READ_AHEAD_BYTES).max(budget / 2);
        let share = budget / self.owned.len().max(1);
        for owned in self.owned.values_mut() {
            owned.core.keep_bodies(share.saturating_sub(owned.lane.bytes()) as u64);
        }
    }

    /// Begins the batches that are due. `idle`: there is nothing more to read now.
    fn begin_batches(&mut self, idle: bool) {
        let mut gone = Vec::new();
        for (partition, owned) in self.owned.iter_mut().filter(|(_, owned)| !owned.is_lost) {
            if !owned.lane.begin(idle, &owned.core) {
                gone.push(*partition);
            }
        }
        for partition in gone {
            self.lost(partition, "its lane cannot go on");
        }
    }

    fn store_progress(&mut self) {
        let Some(progress) = &mut self.progress else {
            return;
        };
        for (partition, progress) in progress.turn(&self.owned) {
            self.progress_stored(partition, progress);
        }
    }

    fn progress_stored(&mut self, partition: i32, progress: Progress) {
        if let Some(owned) = self.owned.get_mut(&partition) {
            owned.stored = Some(progress);
            let settled = owned.core.progress_stored(progress);
            owned.lane.clear(settled);
            for cause in owned.uncounted.stored(progress) {
                self.metrics.parked(cause);
            }
        }
    }
}

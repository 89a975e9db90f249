//! Carries out what [`ResolverCore`] commands, for the partitions that this replica owns.
//!
//! One thread reads the store, feeds one core per partition, sends deliveries and stores progress.
//! It must never decide by itself, and never store progress past an outcome that is not
//! acknowledged.
//!
//! # Layout
//! - `assignment`: the consumer's context; partitions come and go
//! - `ownership`: taking over, giving up, stopping
//! - `carry`: feeds the cores and carries out what they command
//! - `takeover`: where a partition is taken up, and what the parked topic says
//! - `outbox`: deliveries and parked records on their way, until they are acknowledged;
//!   `delivery`: their clients, and what errors mean
//! - `progress`: storing (L, P)
//! - `query`: what the views and operators ask

use std::collections::BTreeMap;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use halfmsg_kafka::TopicError;
use halfmsg_protocol::{
    Answer, Command, DecodeError, Event, HEADER, HalfRef, Ledger, Record, ResolverCore, codec,
};
use rdkafka::TopicPartitionList;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message};

use crate::checker::Checker;
use crate::config::{Assignment, ProducerConfig};
use crate::log::StoreLog;
use crate::metrics::Metrics;
use crate::parked::body_of;
use crate::shared::Shared;

pub(crate) mod assignment;
mod carry;
mod delivery;
pub(crate) mod outbox;
mod ownership;
pub(crate) mod progress;
pub(crate) mod query;
pub(crate) mod takeover;

use assignment::StoreContext;
use delivery::Ack;
use outbox::Outbox;
use progress::ProgressWriter;
use query::Query;

/// How long the thread waits for a record before it looks at everything else.
const POLL: Duration = Duration::from_millis(10);
/// Inputs taken in between two polls.
const INPUTS_PER_TURN: usize = 4_096;
/// How often due checks are looked for.
const TICK: Duration = Duration::from_millis(20);

/// What reaches the resolver besides records.
pub(crate) enum Input {
    /// A delivery or parked record was acknowledged or refused.
    Ack(Ack),
    /// Whether a target topic exists.
    TopicFound { topic: String, found: Result<(), TopicError> },
    /// The answer about one half.
    Answered { partition: i32, generation: u64, of: HalfRef, answer: Answer },
    /// A question is over.
    BatchOver { partition: i32, generation: u64 },
    /// A record was not stored, as far as is known.
    AppendFailed { partition: i32, generation: u64, of: HalfRef },
    /// Somebody wants to know, or wants a check now.
    Query(Query),
    /// Stop: finish what is under way, store progress, end.
    Stop,
}

/// A partition that this replica owns.
pub(crate) struct Owned {
    pub(crate) core: ResolverCore,
    /// Tells this ownership from an earlier one of the same partition.
    pub(crate) generation: u64,
    /// Why it is not read on, if it is not.
    pub(crate) stopped: Option<String>,
    /// Its log is not the one that progress was stored for: what is stored stays as it is.
    pub(crate) is_lost: bool,
    /// The end of the log when it was taken over.
    pub(crate) end_at_takeover: i64,
    /// The end of the log was reached since.
    pub(crate) caught_up: bool,
}

impl Owned {
    /// Whether the log held records at the takeover that are not read yet: what is open is not
    /// known before.
    pub(crate) fn is_behind(&self) -> bool {
        let known = self.caught_up || self.core.ledger().position() >= self.end_at_takeover;
        self.stopped.is_none() && !known
    }
}

/// What the resolver is made of.
pub(crate) struct Parts {
    pub(crate) config: ProducerConfig,
    pub(crate) log: Arc<StoreLog>,
    pub(crate) checker: Arc<Checker>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) metrics: Metrics,
    pub(crate) runtime: tokio::runtime::Handle,
    pub(crate) inputs: mpsc::Receiver<Input>,
    pub(crate) to_self: mpsc::Sender<Input>,
    pub(crate) partitions: i32,
}

/// The thread's state.
pub(crate) struct Resolver {
    config: ProducerConfig,
    store: String,
    log: Arc<StoreLog>,
    checker: Arc<Checker>,
    shared: Arc<Shared>,
    metrics: Metrics,
    runtime: tokio::runtime::Handle,
    inputs: mpsc::Receiver<Input>,
    to_self: mpsc::Sender<Input>,
    consumer: Arc<BaseConsumer<StoreContext>>,
    outbox: Outbox,
    progress: ProgressWriter,
    owned: BTreeMap<i32, Owned>,
    /// Assigned, and not taken over yet.
    to_take: Option<Vec<i32>>,
    retry_take_at: Instant,
    generation: u64,
    /// The origin of the cores' monotonic clock.
    started: Instant,
    last_tick: Instant,
    throttled: bool,
    stop_asked: bool,
    replay_reported: bool,
    commands: Vec<Command>,
}

impl Resolver {
    pub(crate) fn new(parts: Parts) -> Result<Self, KafkaError> {
        let Parts { config, log, checker, shared, metrics, runtime, inputs, to_self, partitions } =
            parts;
        let store = config.store_topic();
        let consumer = assignment::consumer(&config)?;
        let to_take = match config.assignment {
            Assignment::All => Some((0..partitions).collect()),
            Assignment::Shared => {
                consumer.subscribe(&[&store])?;
                None
            }
        };
        let now = Instant::now();
        Ok(Self {
            outbox: Outbox::new(&config, to_self.clone())?,
            progress: ProgressWriter::new(store.clone(), Arc::clone(&consumer)),
            store,
            config,
            log,
            checker,
            shared,
            metrics,
            runtime,
            inputs,
            to_self,
            consumer,
            owned: BTreeMap::new(),
            to_take,
            retry_take_at: now,
            generation: 0,
            started: now,
            last_tick: now,
            throttled: false,
            stop_asked: false,
            replay_reported: true,
            commands: Vec::new(),
        })
    }

    /// Runs until [`Input::Stop`], or until nobody can send inputs any more.
    pub(crate) fn run(mut self) {
        while self.take_inputs() {
            self.follow_assignment();
            self.poll();
            self.tick();
            self.throttle();
            self.store_progress();
            self.shared.publish(&self.owned, self.to_take.is_some());
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
            Input::Ack(ack) => self.acknowledged(ack),
            Input::TopicFound { topic, found } => self.topic_found(&topic, found),
            Input::Answered { partition, generation, of, answer } => {
                self.metrics.checked(&answer);
                if !matches!(answer, Answer::NotAsked(_)) {
                    crate::life::checked(of, &answer);
                }
                self.step(partition, Some(generation), Event::Answered { of, answer });
            }
            Input::BatchOver { partition, generation } => {
                self.step(partition, Some(generation), Event::BatchOver);
            }
            Input::AppendFailed { partition, generation, of } => {
                self.step(partition, Some(generation), Event::AppendFailed { of });
            }
            Input::Query(query) => self.query(query),
            Input::Stop => {}
        }
    }

    fn poll(&mut self) {
        let wait = if self.outbox.is_full() { Duration::ZERO } else { POLL };
        let polled = match self.consumer.poll(wait) {
            Some(Ok(message)) => {
                Polled::Record(message.partition(), message.offset(), read_record(&message))
            }
            Some(Err(error)) => Polled::Failed(error),
            None => return,
        };
        match polled {
            Polled::Record(partition, offset, read) => self.record(partition, offset, read),
            Polled::Failed(KafkaError::PartitionEOF(partition)) => self.caught_up(partition),
            Polled::Failed(error) => self.poll_failed(&error),
        }
    }

    fn record(&mut self, partition: i32, offset: i64, read: Read) {
        let event = match read {
            Read::Record(appended_ms, record, body) => {
                Event::Record { offset, appended_ms, record: *record, body }
            }
            Read::Foreign(error, body) => {
                tracing::error!(
                    topic = self.store, partition, offset, %error,
                    "a record of the store is none of ours; it is copied to the parked topic"
                );
                self.metrics.foreign();
                self.outbox.remember_foreign(partition, offset, body);
                Event::Foreign { offset }
            }
            Read::Newer(error) => return self.stop_partition(partition, offset, &error),
        };
        self.step(partition, None, event);
    }

    /// Leaves the partition where it is: it stays ours, and is not read on.
    fn stop_partition(&mut self, partition: i32, offset: i64, error: &DecodeError) {
        let reason = format!("{}[{partition}]@{offset}: {error}", self.store);
        tracing::error!(topic = self.store, partition, offset, %error, "the partition is stopped");
        self.halt(partition, reason);
    }

    fn halt(&mut self, partition: i32, reason: String) {
        let mut one = TopicPartitionList::new();
        one.add_partition(&self.store, partition);
        if let Err(error) = self.consumer.pause(&one) {
            tracing::error!(%error, partition, "the partition cannot be paused");
        }
        if let Some(owned) = self.owned.get_mut(&partition) {
            owned.stopped = Some(reason);
        }
    }

    /// Never passes what was not read: after a change of leaders the end can lie below the one that
    /// was seen at the takeover.
    fn caught_up(&mut self, partition: i32) {
        if let Some(owned) = self.owned.get_mut(&partition) {
            owned.caught_up = true;
        }
    }

    fn poll_failed(&mut self, error: &KafkaError) {
        match error {
            KafkaError::MessageConsumption(RDKafkaErrorCode::AutoOffsetReset) => {
                tracing::warn!(%error, "the store cannot be read on; its partitions are taken over anew");
                self.take_over_anew();
            }
            KafkaError::MessageConsumptionFatal(_) => {
                tracing::error!(%error, "the store cannot be read any more; the consumer is made anew");
                self.renew_consumer();
            }
            // The broker is away, or moves: librdkafka goes on by itself.
            error => tracing::debug!(%error, "reading the store"),
        }
    }

    fn tick(&mut self) {
        if self.last_tick.elapsed() < TICK {
            return;
        }
        self.last_tick = Instant::now();
        self.outbox.retry();
        let now = self.started.elapsed();
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
        self.report_replays();
    }

    /// One line when all that the log held at the takeover is known.
    fn report_replays(&mut self) {
        if self.replay_reported || self.owned.values().any(Owned::is_behind) {
            return;
        }
        self.replay_reported = true;
        let ledgers = || self.owned.values().map(|owned| owned.core.ledger());
        tracing::info!(
            topic = self.store,
            partitions = self.owned.len(),
            open = ledgers().map(Ledger::open_count).sum::<usize>(),
            parked = ledgers().map(Ledger::parked_count).sum::<usize>(),
            "the store's partitions are taken over"
        );
    }

    /// With too many deliveries under way the store is not read on; the group's membership and
    /// everything else go on.
    fn throttle(&mut self) {
        let full = self.outbox.is_full();
        if full == self.throttled {
            return;
        }
        let mut running = TopicPartitionList::new();
        for (partition, owned) in &self.owned {
            if owned.stopped.is_none() {
                running.add_partition(&self.store, *partition);
            }
        }
        let changed =
            if full { self.consumer.pause(&running) } else { self.consumer.resume(&running) };
        match changed {
            Ok(()) => self.throttled = full,
            Err(error) => tracing::warn!(%error, "reading the store cannot be paused or resumed"),
        }
    }

    fn store_progress(&mut self) {
        let stored = self.progress.turn(&self.owned);
        for (partition, progress) in stored {
            let Some(owned) = self.owned.get_mut(&partition) else { continue };
            for id in owned.core.progress_stored(progress) {
                self.outbox.clear(partition, id);
            }
        }
    }
}

/// What one poll gave.
enum Polled {
    Record(i32, i64, Read),
    Failed(KafkaError),
}

/// What a store record is.
enum Read {
    Record(i64, Box<Record>, halfmsg_protocol::Body),
    Foreign(DecodeError, halfmsg_protocol::Body),
    Newer(DecodeError),
}

fn read_record(message: &BorrowedMessage<'_>) -> Read {
    let mut body = body_of(message);
    let at = body.headers.iter().rposition(|(name, _)| name == HEADER);
    let decoded = match at.and_then(|at| body.headers[at].1.as_deref()) {
        Some(bytes) => codec::decode(bytes),
        None => Err(DecodeError::Foreign("it has no halfmsg header")),
    };
    match decoded {
        Ok(record) => {
            if let Some(at) = at {
                body.headers.remove(at);
            }
            Read::Record(message.timestamp().to_millis().unwrap_or(0), Box::new(record), body)
        }
        Err(error @ DecodeError::Foreign(_)) => Read::Foreign(error, body),
        Err(error @ DecodeError::Newer(_)) => Read::Newer(error),
    }
}

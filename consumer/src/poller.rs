//! The thread that talks to Kafka: it fetches, pauses, commits, and leaves the group.
//!
//! A thread with a `BaseConsumer`, because `StreamConsumer` has lost wake-ups. It must never
//! commit an offset before the worker has said that everything up to it is done.
//!
//! # Layout
//! - this file: the thread; `events`: what the client tells from within a poll

mod events;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use halfmsg_kafka::{TopicError, partition_count};
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::{Offset, TopicPartitionList};
use tokio::sync::mpsc::Sender;

use crate::config::{Assignment, ConsumerConfig};
use crate::consumer::ConsumerHandle;
use crate::health::{Cause, Failing, Health};
use crate::message::ReceivedMessage;
use crate::metrics::ConsumerMetrics;
use crate::worker::{Batch, Verdict};
use events::Events;

/// How long one poll waits; also how fast a stop is noticed.
const POLL: Duration = Duration::from_millis(100);
/// How long a question about metadata or committed offsets may take.
const ASK_DEADLINE: Duration = Duration::from_secs(5);
/// The pause after such a question failed.
const ASK_PAUSE: Duration = Duration::from_millis(500);
/// How much librdkafka may fetch ahead, in KiB.
const QUEUE_KIB: &str = "16384";
/// How often librdkafka computes the lag, in milliseconds.
const STATISTICS_MILLIS: &str = "5000";
/// How often it is asked for while nothing is fetched, which is how librdkafka learns of it.
const LAG_INTERVAL: Duration = Duration::from_secs(5);
/// A batch that is in hand for longer than so many attempts may take shows in the health.
const ATTEMPTS_IN_HAND: u32 = 4;
/// How long one such question may take.
const LAG_DEADLINE: Duration = Duration::from_millis(500);

/// What a poller needs.
pub(crate) struct Poller {
    pub(crate) config: ConsumerConfig,
    pub(crate) topics: Vec<String>,
    pub(crate) batches: Sender<Batch>,
    pub(crate) verdicts: Receiver<Verdict>,
    pub(crate) generation: Arc<AtomicU64>,
    pub(crate) stop: Arc<AtomicBool>,
    pub(crate) metrics: ConsumerMetrics,
    pub(crate) health: Health,
    pub(crate) handle: ConsumerHandle,
}

type Client = BaseConsumer<Events>;

/// The worker or the runtime is gone, or a stop was asked for.
struct Ended;

impl Poller {
    /// Runs until a stop or until the client is broken for good; then the client must be made
    /// anew. Blocks.
    pub(crate) fn run(self) -> Result<(), KafkaError> {
        let events = Events {
            generation: self.generation.clone(),
            paused: AtomicBool::new(false),
            denied: AtomicBool::new(false),
            metrics: self.metrics.clone(),
            health: self.health.clone(),
            commits: Failing::default(),
        };
        self.health.good(Cause::Offsets);
        let client: Client = self.client_config().create_with_context(events)?;
        let topics: Vec<&str> = self.topics.iter().map(String::as_str).collect();
        match self.config.assignment {
            Assignment::Shared => client.subscribe(&topics)?,
            Assignment::All => {
                let Some(partitions) = self.all_partitions(&client) else { return Ok(()) };
                client.assign(&partitions)?;
            }
        }
        self.health.good(Cause::Client);
        while !self.stop.load(Ordering::Acquire) {
            if self.handle.is_paused() {
                self.hold_still(&client)?;
            }
            let batch = self.collect(&client)?;
            if batch.messages.is_empty() {
                continue;
            }
            if let Err(Ended) = self.hand_over(&client, batch) {
                break;
            }
        }
        Ok(())
        // Dropping the client leaves the group, after the commits that are on their way.
    }

    fn client_config(&self) -> ClientConfig {
        let mut client = self.config.kafka.consumer(&self.config.subscriber);
        client
            .set("isolation.level", "read_committed")
            .set("queued.max.messages.kbytes", QUEUE_KIB)
            .set("statistics.interval.ms", STATISTICS_MILLIS)
            // A batch that is let go relies on all its partitions being revoked.
            .set("group.protocol", "classic")
            .set("partition.assignment.strategy", "range,roundrobin");
        if let Some(instance) = &self.config.instance_id {
            client.set("group.instance.id", instance);
        }
        client
    }

    /// All partitions of all topics at their committed offsets; `None` on a stop.
    fn all_partitions(&self, client: &Client) -> Option<TopicPartitionList> {
        while !self.stop.load(Ordering::Acquire) {
            match self.ask_for_partitions(client) {
                Ok(partitions) => return Some(partitions),
                Err(error) => {
                    if self.health.bad(Cause::Client, format!("waiting for Kafka: {error}")) {
                        tracing::warn!(%error, "waiting for the partitions");
                    }
                    std::thread::sleep(ASK_PAUSE);
                }
            }
        }
        None
    }

    fn ask_for_partitions(&self, client: &Client) -> Result<TopicPartitionList, TopicError> {
        let mut wanted = TopicPartitionList::new();
        for topic in &self.topics {
            let count = partition_count(client.client(), topic, ASK_DEADLINE)?;
            wanted.add_partition_range(topic, 0, count - 1);
        }
        let unavailable = |source| TopicError::Unavailable { topic: self.topics.join(","), source };
        let committed = client.committed_offsets(wanted, ASK_DEADLINE).map_err(unavailable)?;
        let mut start = TopicPartitionList::new();
        for element in committed.elements() {
            element.error().map_err(unavailable)?;
            let offset = match element.offset() {
                Offset::Offset(offset) => Offset::Offset(offset),
                _ => Offset::Beginning,
            };
            start
                .add_partition_offset(element.topic(), element.partition(), offset)
                .map_err(unavailable)?;
        }
        Ok(start)
    }

    /// What is there now, up to the bounds of a batch.
    fn collect(&self, client: &Client) -> Result<Batch, KafkaError> {
        let mut messages: Vec<ReceivedMessage> = Vec::new();
        let mut bytes = 0;
        let mut generation = self.generation.load(Ordering::Acquire);
        while messages.len() < self.config.max_batch && bytes < self.config.max_batch_bytes {
            let wait = if messages.is_empty() { POLL } else { Duration::ZERO };
            let polled = client.poll(wait);
            let now = self.generation.load(Ordering::Acquire);
            if now != generation {
                // The new owner, or this replica again, starts at the committed offsets.
                (generation, bytes) = (now, 0);
                messages.clear();
            }
            match polled {
                Some(Ok(message)) => {
                    let message = ReceivedMessage::own(&message);
                    bytes += message.size();
                    messages.push(message);
                }
                Some(Err(error)) => self.note(client, error)?,
                None => break,
            }
        }
        Ok(Batch { messages, generation })
    }

    /// Most errors of a poll pass by themselves; the others end this client.
    fn note(&self, client: &Client, error: KafkaError) -> Result<(), KafkaError> {
        if let Some((code, text)) = client.client().fatal_error() {
            tracing::error!(%code, text, "the Kafka client is broken");
            return Err(KafkaError::MessageConsumptionFatal(code));
        }
        match error {
            KafkaError::MessageConsumptionFatal(_) => Err(error),
            KafkaError::MessageConsumption(RDKafkaErrorCode::UnknownTopicOrPartition)
            | KafkaError::MessageConsumption(RDKafkaErrorCode::TopicAuthorizationFailed)
            | KafkaError::MessageConsumption(RDKafkaErrorCode::GroupAuthorizationFailed) => {
                tracing::warn!(%error, topics = ?self.topics, "cannot consume");
                let why = format!("cannot consume {}: {error}", self.topics.join(", "));
                client.context().denied.store(true, Ordering::Release);
                self.health.bad(Cause::Client, why);
                Ok(())
            }
            error => {
                tracing::debug!(%error, "poll");
                Ok(())
            }
        }
    }

    /// Gives the batch to the worker and waits for its end, polling if that takes long.
    fn hand_over(&self, client: &Client, batch: Batch) -> Result<(), Ended> {
        let generation = batch.generation;
        let mut next: HashMap<(String, i32), i64> = HashMap::new();
        for message in &batch.messages {
            next.insert((message.topic.clone(), message.partition), message.offset + 1);
        }
        self.batches.blocking_send(batch).map_err(|_| Ended)?;
        let verdict = self.verdict(client)?;
        if verdict == Verdict::Done && self.generation.load(Ordering::Acquire) == generation {
            self.commit(client, &next);
        }
        Ok(())
    }

    fn verdict(&self, client: &Client) -> Result<Verdict, Ended> {
        match self.verdicts.recv_timeout(self.config.patience) {
            Ok(verdict) => return Ok(verdict),
            Err(RecvTimeoutError::Disconnected) => return Err(Ended),
            Err(RecvTimeoutError::Timeout) => {}
        }
        self.begin_pause(client);
        let verdict = self.paused_until_verdict(client);
        self.health.good(Cause::InHand);
        self.end_pause(client);
        verdict
    }

    /// Polls with all partitions paused: `max.poll.interval.ms` is kept, rebalances are served.
    fn paused_until_verdict(&self, client: &Client) -> Result<Verdict, Ended> {
        let (begun, mut asked) = (Instant::now(), Instant::now());
        let bound = self.config.attempt_deadline.saturating_mul(ATTEMPTS_IN_HAND);
        loop {
            let began = Instant::now();
            if begun.elapsed() > bound {
                self.health.bad(Cause::InHand, format!("a batch has been in hand for {bound:?}"));
            }
            self.poll_paused(client).map_err(|_| Ended)?;
            self.ask_for_lag(client, &mut asked);
            match self.verdicts.recv_timeout(POLL.saturating_sub(began.elapsed())) {
                Ok(verdict) => return Ok(verdict),
                Err(RecvTimeoutError::Disconnected) => return Err(Ended),
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    /// The same until somebody lets the consumer go on.
    fn hold_still(&self, client: &Client) -> Result<(), KafkaError> {
        self.begin_pause(client);
        let (mut held, mut asked) = (Ok(()), Instant::now());
        while held.is_ok() && self.handle.is_paused() && !self.stop.load(Ordering::Acquire) {
            held = self.poll_paused(client);
            self.ask_for_lag(client, &mut asked);
        }
        self.end_pause(client);
        held
    }

    fn poll_paused(&self, client: &Client) -> Result<(), KafkaError> {
        match client.poll(POLL) {
            // Paused in vain: this message would be lost to the position, so go back to it.
            Some(Ok(message)) => {
                let ReceivedMessage { topic, partition, offset, .. } =
                    ReceivedMessage::own(&message);
                self.pause_all(client);
                let back = Offset::Offset(offset);
                client.seek(&topic, partition, back, ASK_DEADLINE).inspect_err(|error| {
                    tracing::error!(%error, topic, partition, "cannot go back: starting over");
                })
            }
            Some(Err(error)) => self.note(client, error),
            None => Ok(()),
        }
    }

    /// The lag of paused partitions, now and then. A broker that is away is not asked further.
    fn ask_for_lag(&self, client: &Client, asked: &mut Instant) {
        if asked.elapsed() < LAG_INTERVAL {
            return;
        }
        *asked = Instant::now();
        let Ok(positions) = client.position() else { return };
        for element in positions.elements() {
            let (topic, partition) = (element.topic(), element.partition());
            let Offset::Offset(taken) = element.offset() else { continue };
            let Ok((_, end)) = client.fetch_watermarks(topic, partition, LAG_DEADLINE) else {
                return;
            };
            self.metrics.lag_records.set(topic, partition, Some((end - taken).max(0)));
        }
    }

    fn begin_pause(&self, client: &Client) {
        client.context().paused.store(true, Ordering::Release);
        self.metrics.paused.set(1);
        self.pause_all(client);
    }

    fn end_pause(&self, client: &Client) {
        client.context().paused.store(false, Ordering::Release);
        self.metrics.paused.set(0);
        if let Err(error) = client.assignment().and_then(|all| client.resume(&all)) {
            tracing::warn!(%error, "cannot resume");
        }
    }

    fn pause_all(&self, client: &Client) {
        if let Err(error) = client.assignment().and_then(|all| client.pause(&all)) {
            tracing::warn!(%error, "cannot pause");
        }
    }

    fn commit(&self, client: &Client, next: &HashMap<(String, i32), i64>) {
        let mut offsets = TopicPartitionList::new();
        for ((topic, partition), offset) in next {
            let offset = Offset::Offset(*offset);
            if let Err(error) = offsets.add_partition_offset(topic, *partition, offset) {
                tracing::warn!(%error, topic, partition, "an offset that cannot be committed");
            }
        }
        if let Err(error) = client.commit(&offsets, CommitMode::Async) {
            client.context().committed(Err(error));
        }
    }
}

//! The thread that talks to Kafka: it fetches, pauses, commits, and leaves the group.
//!
//! A thread with a `BaseConsumer`, because `StreamConsumer` has lost wake-ups. It must never
//! commit an offset before the worker has said that everything up to it is done.
//!
//! # Layout
//! - this file: the thread; `events`: what the client tells from within a poll
//! - `all`: the partitions of a client that shares them with nobody
//! - `denied`: rights and topics that are missing, until they are there
//! - `paused`: polling while nothing is handed out
//! - `offsets`: committing, and waiting for the coordinator; `told`: what it was told and may not have
//! - `unconfirmed`: what was handed out beyond the offsets that are committed

mod all;
mod denied;
mod events;
mod offsets;
mod paused;
#[cfg(test)]
mod tests;
mod told;
mod unconfirmed;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use rdkafka::TopicPartitionList;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use tokio::sync::mpsc::Sender;

use crate::config::{Assignment, ConsumerConfig};
use crate::consumer::ConsumerHandle;
use crate::health::{Cause, Failing, Health};
use crate::message::ReceivedMessage;
use crate::metrics::ConsumerMetrics;
use crate::worker::{Batch, Verdict};
use all::AllPartitions;
use denied::Denied;
use events::Events;
use told::Told;
use unconfirmed::{Place, Unconfirmed};

/// How long one poll waits; also how fast a stop is noticed.
const POLL: Duration = Duration::from_millis(100);
/// How long a question about metadata or committed offsets may take.
pub(crate) const ASK_DEADLINE: Duration = Duration::from_secs(5);
/// The pause after such a question failed.
const ASK_PAUSE: Duration = Duration::from_millis(500);
/// How much librdkafka may fetch ahead, in KiB.
const QUEUE_KIB: &str = "16384";
/// How often librdkafka computes the lag, in milliseconds.
const STATISTICS_MILLIS: &str = "5000";
/// A batch that is in hand for longer than so many attempts may take shows in the health.
const ATTEMPTS_IN_HAND: u32 = 4;

/// What a poller needs.
pub(crate) struct Poller {
    pub(crate) config: ConsumerConfig,
    pub(crate) topics: Vec<String>,
    pub(crate) batches: Sender<Batch>,
    pub(crate) verdicts: Receiver<Verdict>,
    pub(crate) generation: Arc<AtomicU64>,
    pub(crate) stop: Arc<AtomicBool>,
    /// Whether there is anything to leave: until then, nobody waits for the end of this.
    pub(crate) consumes: Arc<AtomicBool>,
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
        self.health.good(Cause::Offsets);
        self.metrics.unconfirmed_partitions.set(0);
        let client: Client = self.client_config().create_with_context(self.events())?;
        let topics: Vec<&str> = self.topics.iter().map(String::as_str).collect();
        let mut all = match self.config.assignment {
            Assignment::Shared => {
                self.consumes.store(true, Ordering::Release);
                client.subscribe(&topics)?;
                None
            }
            Assignment::All => {
                let mut all = AllPartitions::of(&self.topics, self.config.partition_interval);
                let Some(partitions) = self.all_partitions(&client, &all) else { return Ok(()) };
                self.consumes.store(true, Ordering::Release);
                client.assign(&partitions)?;
                all.took(&partitions);
                Some(all)
            }
        };
        self.health.good(Cause::Client);
        while !self.stop.load(Ordering::Acquire) {
            if let Some(all) = &mut all {
                all.take_added(&client)?;
            }
            if self.handle.is_paused() {
                self.hold_still(&client)?;
            }
            self.look_for_rights(&client);
            self.commit_again(&client);
            self.until_confirmed(&client)?;
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

    fn events(&self) -> Events {
        Events {
            generation: self.generation.clone(),
            paused: AtomicBool::new(false),
            denied: Denied::default(),
            topics: self.topics.clone(),
            metrics: self.metrics.clone(),
            health: self.health.clone(),
            commits: Failing::default(),
            unconfirmed: Unconfirmed::default(),
            told: Told::default(),
        }
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
    fn all_partitions(&self, client: &Client, all: &AllPartitions) -> Option<TopicPartitionList> {
        while !self.stop.load(Ordering::Acquire) {
            match all.find(client, ASK_DEADLINE) {
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
            KafkaError::MessageConsumption(RDKafkaErrorCode::PollExceeded) => {
                tracing::warn!(
                    topics = ?self.topics,
                    "nobody polled for max.poll.interval.ms: the group has given the partitions away, and \
                     what was in hand is consumed again by others; is the machine overloaded?"
                );
                Ok(())
            }
            KafkaError::MessageConsumption(RDKafkaErrorCode::UnknownTopicOrPartition)
            | KafkaError::MessageConsumption(RDKafkaErrorCode::TopicAuthorizationFailed)
            | KafkaError::MessageConsumption(RDKafkaErrorCode::GroupAuthorizationFailed) => {
                tracing::warn!(%error, topics = ?self.topics, "cannot consume");
                let why = format!("cannot consume {}: {error}", self.topics.join(", "));
                let denied = &client.context().denied;
                match error.rdkafka_error_code() {
                    Some(RDKafkaErrorCode::GroupAuthorizationFailed) => denied.group(),
                    _ => denied.topic(),
                }
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
        let mut next: HashMap<Place, (i64, u64)> = HashMap::new();
        for message in &batch.messages {
            let place = (message.topic.clone(), message.partition);
            let (behind, messages) = next.entry(place).or_default();
            (*behind, *messages) = (message.offset + 1, *messages + 1);
        }
        self.batches.blocking_send(batch).map_err(|_| Ended)?;
        let verdict = self.verdict(client)?;
        if verdict == Verdict::Done && self.generation.load(Ordering::Acquire) == generation {
            self.done(client, next);
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
}

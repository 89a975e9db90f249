//! Starts the poller, the worker, the scheduler of retries and the background; starts the first two
//! anew when the client breaks; ends them all.
//!
//! # Layout
//! - this file: running; `builder`: what it is made of

mod builder;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use halfmsg_db::now;
use halfmsg_kafka::{TopicError, ensure_topic};
use sea_orm::DbBackend;
use tokio_util::sync::CancellationToken;

use crate::background::Background;
use crate::backoff;
use crate::config::ConsumerConfig;
use crate::dead_letter::{DeadLetterStore, DeadLetters};
use crate::deliver::Deliverer;
use crate::health::{Cause, Failing, Health};
use crate::inbox::Inbox;
use crate::metrics::ConsumerMetrics;
use crate::poller::Poller;
use crate::scheduler::{Scheduler, Taken, Wake};
use crate::sender::Sender;
use crate::worker::{Retries, Verdict, Worker};

pub use builder::ConsumerBuilder;

/// How long one attempt to make or verify a topic may take.
const TOPIC_DEADLINE: Duration = Duration::from_secs(10);

/// Why a consumer cannot run.
#[derive(Debug, thiserror::Error)]
pub enum ConsumerError {
    /// A setting that cannot work.
    #[error("consumer: {0}")]
    Config(String),
    /// A Kafka setting.
    #[error(transparent)]
    Kafka(#[from] halfmsg_kafka::ConfigError),
    /// Nothing was subscribed.
    #[error("consumer: subscribe to at least one topic")]
    NoTopic,
    /// A topic that cannot be used; its owner must change it.
    #[error(transparent)]
    Topic(#[from] TopicError),
    /// The operating system gives no thread.
    #[error("consumer: no thread: {0}")]
    Thread(#[from] std::io::Error),
}

/// Holds a running consumer still. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct ConsumerHandle(Arc<AtomicBool>);

impl ConsumerHandle {
    /// Takes no further messages and starts no retries; the batch in hand is finished. The
    /// partitions and the group are kept, the lag grows. Nothing remembers it across a restart.
    pub fn pause(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Goes on.
    pub fn resume(&self) {
        self.0.store(false, Ordering::Release);
    }

    /// Whether it is held still.
    pub fn is_paused(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// A consumer. Its tables must be in the database before it runs.
pub struct Consumer {
    pub(crate) config: ConsumerConfig,
    deliverer: Arc<Deliverer>,
    sender: Arc<Sender>,
    metrics: ConsumerMetrics,
    health: Health,
    handle: ConsumerHandle,
    wake: Wake,
}

impl Consumer {
    /// A consumer with these settings.
    pub fn builder(config: ConsumerConfig) -> ConsumerBuilder {
        ConsumerBuilder { config, handlers: HashMap::new(), metrics: None }
    }

    /// Its dead letters.
    pub fn dead_letters(&self) -> DeadLetters {
        let (database, subscriber) = (self.config.database.clone(), &self.config.subscriber);
        let store = DeadLetterStore::new(database, subscriber);
        DeadLetters {
            store: store.with_handlers_of(self.deliverer.handlers.keys()),
            deliverer: self.deliverer.clone(),
            sender: self.sender.clone(),
            metrics: self.metrics.clone(),
        }
    }

    /// What it remembers.
    pub fn inbox(&self) -> Inbox {
        Inbox::new(self.config.database.clone(), &self.config.subscriber)
    }

    /// Holds it still and lets it go on.
    pub fn handle(&self) -> ConsumerHandle {
        self.handle.clone()
    }

    /// Its metrics.
    pub fn metrics(&self) -> ConsumerMetrics {
        self.metrics.clone()
    }

    /// Keeps replies there in place of sending them.
    #[cfg(feature = "testkit")]
    pub(crate) fn keep_replies(&mut self, outbox: &crate::sender::Outbox) {
        let (database, subscriber) = (self.config.database.clone(), &self.config.subscriber);
        let sender = Sender::keeping(database, subscriber.clone(), self.metrics(), outbox.clone());
        self.sender = Arc::new(sender);
    }

    /// Its health.
    pub fn health(&self) -> Health {
        self.health.clone()
    }

    /// Consumes until `shutdown`; the batch in hand is finished, or released after
    /// `drain_deadline`. Kafka or the database being away only makes it wait; retries go on while
    /// Kafka is away.
    ///
    /// Cancelling ends it too, less gently: a transaction in progress is rolled back.
    ///
    /// # Errors
    /// A topic that cannot be used, or no thread.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), ConsumerError> {
        let stop = shutdown.child_token();
        let consuming = async {
            let consumed = self.consume(&stop).await;
            stop.cancel();
            consumed
        };
        let (scheduler, background) = (self.scheduler(stop.clone()), self.background(stop.clone()));
        let beside = async {
            tokio::select! {
                ((), ()) = async { tokio::join!(scheduler.run(), background.run()) } => {}
                () = self.overdue(&stop) => {}
            }
        };
        let (consumed, ()) = tokio::join!(consuming, beside);
        consumed
    }

    /// The topics, then one Kafka client after the other.
    async fn consume(&self, shutdown: &CancellationToken) -> Result<(), ConsumerError> {
        let mut topics: Vec<String> = self.deliverer.handlers.keys().cloned().collect();
        topics.sort();
        for topic in &topics {
            self.topic_ready(topic, shutdown).await?;
        }
        let mut retry = 0;
        while !shutdown.is_cancelled() {
            let began = tokio::time::Instant::now();
            self.session(&topics, shutdown).await?;
            if shutdown.is_cancelled() {
                break;
            }
            self.health.bad(Cause::Client, "the Kafka client broke; a new one starts".into());
            retry = if began.elapsed() > self.config.longest_backoff { 0 } else { retry + 1 };
            tracing::warn!(subscriber = self.config.subscriber, "starting a new Kafka client");
            self.wait(retry, shutdown).await;
        }
        Ok(())
    }

    /// Makes or verifies a topic, waiting for a cluster that is away.
    async fn topic_ready(
        &self,
        topic: &str,
        shutdown: &CancellationToken,
    ) -> Result<(), ConsumerError> {
        let spec = self.config.topic.spec(topic);
        let mut retry = 0;
        while !shutdown.is_cancelled() {
            match ensure_topic(&self.config.kafka, &spec, TOPIC_DEADLINE).await {
                Ok(_) => return Ok(()),
                Err(error) if error.is_passing() => {
                    if self.health.bad(Cause::Client, format!("waiting for Kafka: {error}"))
                        || retry == 0
                    {
                        tracing::warn!(%error, "waiting for Kafka");
                    }
                    self.wait(retry, shutdown).await;
                    retry += 1;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    async fn wait(&self, retry: u32, shutdown: &CancellationToken) {
        let pause = backoff::pause(self.config.first_backoff, self.config.longest_backoff, retry);
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = shutdown.cancelled() => {}
        }
    }

    /// One life of a Kafka client: until shutdown, or until the client breaks.
    async fn session(
        &self,
        topics: &[String],
        shutdown: &CancellationToken,
    ) -> Result<(), ConsumerError> {
        let (batches, mut incoming) = tokio::sync::mpsc::channel(1);
        let (verdicts, verdict) = mpsc::channel();
        let (ended, has_ended) = tokio::sync::oneshot::channel();
        let stop = StopOnDrop(Arc::new(AtomicBool::new(false)));
        let generation = Arc::new(AtomicU64::new(0));
        let consumes = Arc::new(AtomicBool::new(false));
        let poller = Poller {
            config: self.config.clone(),
            topics: topics.to_vec(),
            batches,
            verdicts: verdict,
            generation: generation.clone(),
            stop: stop.0.clone(),
            consumes: consumes.clone(),
            metrics: self.metrics.clone(),
            health: self.health.clone(),
            handle: self.handle.clone(),
        };
        std::thread::Builder::new().name("halfmsg-consumer".into()).spawn(move || {
            if let Err(error) = poller.run() {
                tracing::error!(%error, "the Kafka client of the consumer failed");
            }
            // Nobody waits when the consumer was cancelled.
            let _ = ended.send(());
        })?;
        let worker = self.worker(generation, shutdown.clone());
        loop {
            let batch = tokio::select! {
                batch = incoming.recv() => batch,
                () = shutdown.cancelled() => None,
            };
            let Some(batch) = batch else { break };
            let verdict = tokio::select! {
                verdict = worker.process(batch) => verdict,
                () = self.overdue(shutdown) => Verdict::Released,
            };
            if verdicts.send(verdict).is_err() {
                break;
            }
        }
        drop((stop, incoming, verdicts));
        // A client that cannot leave its group in time is left to the end of the process, and so is one that
        // has yet to hear of its partitions: it may be asking a broker that is away.
        let leaving = tokio::time::timeout(self.config.drain_deadline, has_ended);
        if consumes.load(Ordering::Acquire) && leaving.await.is_err() {
            tracing::warn!("the consumer did not leave its group in time");
        }
        Ok(())
    }

    pub(crate) fn worker(&self, generation: Arc<AtomicU64>, shutdown: CancellationToken) -> Worker {
        Worker {
            deliverer: self.deliverer.clone(),
            sender: self.sender.clone(),
            retries: self.retries(),
            concurrency: self.at_once(self.config.concurrency),
            spread: self.config.spread,
            wake: self.wake.clone(),
            metrics: self.metrics.clone(),
            health: self.health.clone(),
            generation,
            shutdown,
        }
    }

    /// SQLite has one writer: more would only wait for each other.
    fn at_once(&self, wanted: usize) -> usize {
        let one = self.config.database.get_database_backend() == DbBackend::Sqlite;
        if one { 1 } else { wanted }
    }

    fn retries(&self) -> Retries {
        Retries {
            quick_attempts: self.config.quick_attempts,
            first: self.config.first_backoff,
            longest: self.config.longest_backoff,
            levels: self.config.retry.clone(),
        }
    }

    pub(crate) fn scheduler(&self, shutdown: CancellationToken) -> Scheduler {
        Scheduler {
            deliverer: self.deliverer.clone(),
            sender: self.sender.clone(),
            retries: self.retries(),
            poll: self.config.retry_poll,
            max_batch: self.config.max_batch,
            max_batch_bytes: self.config.max_batch_bytes,
            concurrency: self.at_once(self.config.retry_concurrency),
            taken: Taken::default(),
            handle: self.handle.clone(),
            metrics: self.metrics.clone(),
            wake: self.wake.clone(),
            health: self.health.clone(),
            failing: Failing::default(),
            shutdown,
        }
    }

    fn background(&self, shutdown: CancellationToken) -> Background {
        Background {
            deliverer: self.deliverer.clone(),
            sender: self.sender.clone(),
            metrics: self.metrics.clone(),
            first_backoff: self.config.first_backoff,
            inbox_retention: self.config.inbox_retention,
            inbox_per_key: self.config.inbox_per_key,
            clean_interval: self.config.clean_interval,
            started: now(),
            shutdown,
        }
    }

    async fn overdue(&self, shutdown: &CancellationToken) {
        shutdown.cancelled().await;
        tokio::time::sleep(self.config.drain_deadline).await;
    }
}

/// Ends the thread when the session ends or is cancelled.
struct StopOnDrop(Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

#[cfg(test)]
mod tests;

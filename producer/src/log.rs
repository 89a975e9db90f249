//! Appends records to the half-message store and waits for their acknowledgements.
//!
//! Every waiter hears of its record's end exactly once, also when the client is replaced. A fatal
//! error ends an idempotent client for good: nothing is sent through it any more, a new one takes
//! its place, and what the old one had sent is still acknowledged through the old one.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use bytes::Bytes;
use halfmsg_kafka::{KafkaConfig, TopicError};
use halfmsg_protocol::{Body, HEADER, Record, codec};
use rdkafka::ClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Header, Message as _, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer, ProducerContext, ThreadedProducer};

use crate::clock;
use crate::config::RETRY_DELAY;
use crate::scan::is_denied;

mod waiter;

use waiter::Acked;
pub(crate) use waiter::{Waiter, Written};

#[cfg(test)]
mod tests;

pub(crate) struct LogContext {
    /// Cleared by the first acknowledgement: the client works.
    unproven: Arc<AtomicBool>,
    /// The in-process broker acknowledges with a time that is none.
    is_embedded: bool,
}

impl ClientContext for LogContext {}

impl ProducerContext for LogContext {
    type DeliveryOpaque = Arc<Waiter>;

    fn delivery(&self, result: &DeliveryResult<'_>, waiter: Arc<Waiter>) {
        waiter.done(match result {
            Ok(message) => {
                if self.unproven.load(Ordering::Relaxed) {
                    self.unproven.store(false, Ordering::Relaxed);
                }
                let told = message.timestamp().to_millis().filter(|_| !self.is_embedded);
                let appended_ms = told.unwrap_or_else(clock::wall_ms);
                Ok(Written { offset: message.offset(), appended_ms })
            }
            Err((error, _)) => Err(error.clone()),
        });
    }
}

type Client = ThreadedProducer<LogContext>;

/// The user's part of a record.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Part<'a> {
    pub(crate) key: Option<&'a [u8]>,
    pub(crate) headers: &'a [(String, Option<Bytes>)],
    pub(crate) payload: Option<&'a [u8]>,
}

impl<'a> From<&'a Body> for Part<'a> {
    fn from(body: &'a Body) -> Self {
        Self { key: body.key.as_deref(), headers: &body.headers, payload: body.payload.as_deref() }
    }
}

/// The client in use.
struct Current {
    client: Arc<Client>,
    /// A client that was made anew and has not shown yet that it works.
    unproven: Arc<AtomicBool>,
}

/// The store's producer. Shared by transactions, check-back and operators.
pub(crate) struct StoreLog {
    config: ClientConfig,
    is_embedded: bool,
    message_timeout: Duration,
    topic: String,
    current: RwLock<Current>,
    /// When the client was last made anew, or that was last tried.
    renewed: Mutex<Option<Instant>>,
}

impl StoreLog {
    /// Records that wait in memory, and their KiB; beyond, appending is refused.
    const QUEUE: &'static str = "100000";
    const QUEUE_KIB: &'static str = "65536";

    pub(crate) fn new(
        kafka: &KafkaConfig,
        topic: String,
        message_timeout: Duration,
        max_record_bytes: usize,
    ) -> Result<Self, KafkaError> {
        let mut config = kafka.producer();
        config
            .set("message.timeout.ms", message_timeout.as_millis().to_string())
            .set("queue.buffering.max.messages", Self::QUEUE)
            .set("queue.buffering.max.kbytes", Self::QUEUE_KIB)
            .set("message.max.bytes", max_record_bytes.to_string());
        let is_embedded = kafka.embedded;
        let current = RwLock::new(Current::make(&config, is_embedded, false)?);
        Ok(Self { config, is_embedded, message_timeout, topic, current, renewed: Mutex::default() })
    }

    /// The number of partitions of any topic of the cluster. Blocks up to the deadline.
    pub(crate) fn partition_count(
        &self,
        topic: &str,
        deadline: Duration,
    ) -> Result<i32, TopicError> {
        let client = Arc::clone(&self.current().client);
        halfmsg_kafka::partition_count(client.client(), topic, deadline)
    }

    /// Puts a record on its way; the waiter hears of its end, in every case.
    pub(crate) fn append(&self, partition: i32, record: &Record, body: &Body, waiter: Waiter) {
        self.send(partition, &codec::encode(record), body.into(), &Arc::new(waiter));
    }

    /// Appends and waits for the acknowledgement; the offset. Dropping it does not take the record back.
    pub(crate) async fn append_within(
        &self,
        partition: i32,
        record: &Record,
        body: &Body,
        deadline: Duration,
    ) -> Result<i64, AppendError> {
        let packed = codec::encode(record);
        let until = Instant::now() + deadline;
        let written = self.append_by(partition, &packed, body.into(), until).await?;
        Ok(written.offset)
    }

    /// The same for a record that is encoded already, until a point in time; also when it was written.
    pub(crate) async fn append_by(
        &self,
        partition: i32,
        packed: &[u8],
        part: Part<'_>,
        until: Instant,
    ) -> Result<Written, AppendError> {
        let waiter = Arc::new(Waiter::caller());
        self.send(partition, packed, part, &waiter);
        match tokio::time::timeout_at(until.into(), Acked(&waiter)).await {
            Ok(Ok(written)) => Ok(written),
            Ok(Err(error)) if is_queue_full(&error) => Err(AppendError::QueueFull),
            Ok(Err(error)) if is_denied(&error) => Err(AppendError::Failed(
                TopicError::Forbidden { topic: self.topic.clone(), right: "Write" }.to_string(),
            )),
            Ok(Err(error)) => Err(AppendError::Failed(error.to_string())),
            Err(_) => Err(AppendError::Failed("no acknowledgement within the deadline".into())),
        }
    }

    fn send(&self, partition: i32, packed: &[u8], part: Part<'_>, waiter: &Arc<Waiter>) {
        let sent = match self.try_send(partition, packed, part, waiter) {
            // It was not taken in: through a new client it is sent for the first time.
            Err(error) if is_fatal(&error) && self.renew() => {
                self.try_send(partition, packed, part, waiter)
            }
            sent => sent,
        };
        if let Err(error) = sent {
            waiter.done(Err(error));
        }
    }

    fn try_send(
        &self,
        partition: i32,
        packed: &[u8],
        part: Part<'_>,
        waiter: &Arc<Waiter>,
    ) -> Result<(), KafkaError> {
        let mut headers = OwnedHeaders::new_with_capacity(part.headers.len() + 1);
        for (key, value) in part.headers {
            headers = headers.insert(Header { key, value: value.as_deref() });
        }
        headers = headers.insert(Header { key: HEADER, value: Some(packed) });
        let mut message: BaseRecord<'_, [u8], [u8], Arc<Waiter>> =
            BaseRecord::with_opaque_to(&self.topic, Arc::clone(waiter))
                .partition(partition)
                .headers(headers);
        if let Some(key) = part.key {
            message = message.key(key);
        }
        if let Some(payload) = part.payload {
            message = message.payload(payload);
        }
        self.current().client.send(message).map_err(|(error, _)| error)
    }

    /// Why appending may fail now, if a fatal error is the reason.
    pub(crate) fn problem(&self) -> Option<String> {
        let current = self.current();
        if let Some((code, text)) = current.client.client().fatal_error() {
            return Some(format!("the store's client has failed ({code}: {text})"));
        }
        let unproven = current.unproven.load(Ordering::Relaxed);
        unproven.then(|| "the store's client was made anew and is not proven yet".into())
    }

    /// Looks after the client: one that has failed is made anew, one that reaches the cluster has
    /// proven itself. Blocks up to the deadline. The store's number of partitions.
    pub(crate) fn look_after(&self, deadline: Duration) -> Result<i32, TopicError> {
        let failed = self.current().client.client().fatal_error().is_some();
        if failed {
            self.renew();
        }
        let found = self.partition_count(&self.topic, deadline)?;
        let current = self.current();
        if current.client.client().fatal_error().is_none() {
            current.unproven.store(false, Ordering::Relaxed);
        }
        Ok(found)
    }

    /// Replaces a client that has failed, at most once in [`RETRY_DELAY`]: true if the one in use
    /// has not failed.
    fn renew(&self) -> bool {
        let mut renewed = self.renewed.lock().unwrap_or_else(PoisonError::into_inner);
        // Another may have been faster.
        let Some((code, text)) = self.current().client.client().fatal_error() else { return true };
        if renewed.is_some_and(|at| at.elapsed() < RETRY_DELAY) {
            return false;
        }
        *renewed = Some(Instant::now());
        tracing::error!(topic = self.topic, %code, text, "the store's client is made anew");
        match Current::make(&self.config, self.is_embedded, true) {
            Ok(made) => {
                let old = self.replace(made);
                retire(old.client, self.message_timeout);
                true
            }
            Err(error) => {
                tracing::error!(%error, topic = self.topic, "the store's client cannot be made");
                false
            }
        }
    }

    fn replace(&self, made: Current) -> Current {
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *current, made)
    }

    /// Waits until everything is acknowledged or has failed. Blocks up to the deadline.
    pub(crate) fn flush(&self, deadline: Duration) {
        let client = Arc::clone(&self.current().client);
        if let Err(error) = client.flush(deadline) {
            tracing::warn!(%error, "records of the store were not acknowledged before the end");
        }
    }

    fn current(&self) -> RwLockReadGuard<'_, Current> {
        self.current.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Current {
    fn make(config: &ClientConfig, is_embedded: bool, unproven: bool) -> Result<Self, KafkaError> {
        let unproven = Arc::new(AtomicBool::new(unproven));
        let context = LogContext { unproven: Arc::clone(&unproven), is_embedded };
        Ok(Self { client: Arc::new(config.create_with_context(context)?), unproven })
    }
}

/// Lets a client that has failed bring what it had sent to its end, and ends it: not here, because
/// both block.
fn retire(client: Arc<Client>, message_timeout: Duration) {
    std::thread::spawn(move || {
        if let Err(error) = client.flush(message_timeout) {
            tracing::debug!(%error, "a failed client had records under way; they fail with it");
        }
    });
}

/// Why a record is not known to be stored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AppendError {
    /// The client's own queue is full; the record was not sent.
    #[error("the client's queue is full")]
    QueueFull,
    /// Not acknowledged; it may be stored all the same.
    #[error("{0}")]
    Failed(String),
}

fn is_queue_full(error: &KafkaError) -> bool {
    matches!(error, KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull))
}

fn is_fatal(error: &KafkaError) -> bool {
    matches!(error, KafkaError::MessageProduction(RDKafkaErrorCode::Fatal))
}

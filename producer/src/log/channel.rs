//! One client of the store, and the next one where a fatal error has ended it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use halfmsg_kafka::TopicError;
use rdkafka::ClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::error::KafkaError;
use rdkafka::message::{DeliveryResult, Message as _};
use rdkafka::producer::{BaseRecord, Producer, ProducerContext, ThreadedProducer};

use super::waiter::{Waiter, Written};
use crate::clock;
use crate::config::RETRY_DELAY;

/// A record on its way.
pub(super) type Outgoing<'a> = BaseRecord<'a, [u8], [u8], Arc<Waiter>>;

/// One that was not taken in, and why.
pub(super) struct Refused<'a> {
    pub(super) error: KafkaError,
    pub(super) record: Outgoing<'a>,
}

pub(super) struct LogContext {
    /// Cleared by the first acknowledgement: the client works.
    unproven: Arc<AtomicBool>,
    /// Set by each acknowledgement.
    acked: Arc<AtomicBool>,
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
                if !self.acked.load(Ordering::Relaxed) {
                    self.acked.store(true, Ordering::Relaxed);
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

/// What every client of a channel is made of.
#[derive(Clone)]
pub(super) struct Settings {
    /// For people.
    pub(super) name: &'static str,
    pub(super) client: ClientConfig,
    pub(super) topic: String,
    /// How long what a failed client had sent may take to its end.
    pub(super) message_timeout: Duration,
    pub(super) is_embedded: bool,
}

/// The client in use.
struct Current {
    client: Arc<Client>,
    /// A client that was made anew and has not shown yet that it works.
    unproven: Arc<AtomicBool>,
    /// Something was acknowledged since [`Channel::stands_still`] was last asked.
    acked: Arc<AtomicBool>,
}

/// Sends through the client in use.
pub(super) struct Channel {
    settings: Settings,
    current: RwLock<Current>,
    /// When the client was last made anew, or that was last tried.
    renewed: Mutex<Option<Instant>>,
}

impl Channel {
    pub(super) fn new(settings: Settings) -> Result<Self, KafkaError> {
        let current = RwLock::new(Current::make(&settings, false)?);
        Ok(Self { settings, current, renewed: Mutex::default() })
    }

    #[cfg(test)]
    pub(super) fn setting(&self, name: &str) -> Option<&str> {
        self.settings.client.get(name)
    }

    /// Hands a record to the client, and if a fatal error has ended it, to a new one. An error means that it
    /// was not taken in; what becomes of one that was, its waiter is told.
    pub(super) fn send(&self, record: Outgoing<'_>) -> Result<(), KafkaError> {
        let Err(refused) = self.offer(record) else { return Ok(()) };
        let Refused { error, record } = *refused;
        // It was not taken in: through a new client it is sent for the first time.
        if is_fatal(&error) && self.renew() {
            return self.offer(record).map_err(|refused| refused.error);
        }
        Err(error)
    }

    /// Hands a record to the client; if it is not taken in, it comes back.
    pub(super) fn offer<'a>(&self, record: Outgoing<'a>) -> Result<(), Box<Refused<'a>>> {
        let sent = self.current().client.send(record);
        sent.map_err(|(error, record)| Box::new(Refused { error, record }))
    }

    /// The number of partitions of any topic of the cluster. Blocks up to the deadline.
    pub(super) fn partition_count(
        &self,
        topic: &str,
        deadline: Duration,
    ) -> Result<i32, TopicError> {
        let client = Arc::clone(&self.current().client);
        halfmsg_kafka::partition_count(client.client(), topic, deadline)
    }

    /// Why appending may fail now, if a fatal error is the reason.
    pub(super) fn problem(&self) -> Option<String> {
        let current = self.current();
        if let Some((code, text)) = current.client.client().fatal_error() {
            return Some(format!("{} has failed ({code}: {text})", self.settings.name));
        }
        let unproven = current.unproven.load(Ordering::Relaxed);
        unproven.then(|| format!("{} was made anew and is not proven yet", self.settings.name))
    }

    /// Whether records are under way of which none was acknowledged since this was last asked.
    pub(super) fn stands_still(&self) -> bool {
        let current = self.current();
        let has_acked = current.acked.swap(false, Ordering::Relaxed);
        !has_acked && current.client.in_flight_count() > 0
    }

    /// Records that are not acknowledged yet; of a client that was replaced, none.
    pub(super) fn under_way(&self) -> usize {
        usize::try_from(self.current().client.in_flight_count()).unwrap_or(0)
    }

    /// Looks after the client: one that has failed is made anew, one that reaches the cluster has
    /// proven itself. Blocks up to the deadline. The store's number of partitions.
    pub(super) fn look_after(&self, deadline: Duration) -> Result<i32, TopicError> {
        let failed = self.current().client.client().fatal_error().is_some();
        if failed {
            self.renew();
        }
        let found = self.partition_count(&self.settings.topic, deadline)?;
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
        let Settings { name, topic, .. } = &self.settings;
        tracing::error!(topic, %code, text, "{name} is made anew");
        match Current::make(&self.settings, true) {
            Ok(made) => {
                let old = self.replace(made);
                retire(old.client, self.settings.message_timeout);
                true
            }
            Err(error) => {
                tracing::error!(%error, topic, "{name} cannot be made");
                false
            }
        }
    }

    fn replace(&self, made: Current) -> Current {
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *current, made)
    }

    /// Waits until everything is acknowledged or has failed. Blocks up to the deadline.
    pub(super) fn flush(&self, deadline: Duration) {
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
    fn make(settings: &Settings, unproven: bool) -> Result<Self, KafkaError> {
        let unproven = Arc::new(AtomicBool::new(unproven));
        let acked = Arc::new(AtomicBool::new(false));
        let context = LogContext {
            unproven: Arc::clone(&unproven),
            acked: Arc::clone(&acked),
            is_embedded: settings.is_embedded,
        };
        let client = Arc::new(settings.client.create_with_context(context)?);
        Ok(Self { client, unproven, acked })
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

pub(super) fn is_fatal(error: &KafkaError) -> bool {
    use rdkafka::error::RDKafkaErrorCode::Fatal;
    matches!(error, KafkaError::MessageProduction(Fatal))
}

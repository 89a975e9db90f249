//! Appends records to the half-message store and waits for their acknowledgements.

use std::sync::mpsc;
use std::time::Duration;

use halfmsg_kafka::{KafkaConfig, TopicError};
use halfmsg_protocol::{Body, HEADER, HalfRef, Record, codec};
use rdkafka::ClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Header, Message as _, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer, ProducerContext, ThreadedProducer};
use tokio::sync::oneshot;

use crate::resolver::Input;
use crate::scan::is_denied;

/// Where an acknowledged record stands, or what the client said.
pub(crate) type Appended = Result<i64, KafkaError>;

/// Who waits for an acknowledgement.
pub(crate) enum Waiter {
    /// A caller.
    Caller(oneshot::Sender<Appended>),
    /// The resolver; only a failure interests it.
    Resolver { inputs: mpsc::Sender<Input>, partition: i32, generation: u64, of: HalfRef },
}

impl Waiter {
    fn done(self, result: Appended) {
        match self {
            // A caller that has gone away does not wait any more.
            Self::Caller(sender) => drop(sender.send(result)),
            Self::Resolver { inputs, partition, generation, of } => {
                if let Err(error) = result {
                    tracing::warn!(transaction_id = %of.id, partition, %error, "a record was not stored");
                    // The resolver may have ended; then nothing is left to retry here.
                    drop(inputs.send(Input::AppendFailed { partition, generation, of }));
                }
            }
        }
    }
}

pub(crate) struct LogContext;

impl ClientContext for LogContext {}

impl ProducerContext for LogContext {
    type DeliveryOpaque = Box<Waiter>;

    fn delivery(&self, result: &DeliveryResult<'_>, waiter: Box<Waiter>) {
        waiter.done(match result {
            Ok(message) => Ok(message.offset()),
            Err((error, _)) => Err(error.clone()),
        });
    }
}

/// The store's producer. Shared by transactions, check-back and operators.
pub(crate) struct StoreLog {
    producer: ThreadedProducer<LogContext>,
    topic: String,
}

impl StoreLog {
    /// Records that wait in memory; beyond, appending is refused.
    const QUEUE: &'static str = "100000";

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
            .set("message.max.bytes", max_record_bytes.to_string());
        Ok(Self { producer: config.create_with_context(LogContext)?, topic })
    }

    pub(crate) fn client(&self) -> &rdkafka::client::Client<LogContext> {
        self.producer.client()
    }

    /// Puts a record on its way; the waiter hears of its end, in every case.
    pub(crate) fn append(&self, partition: i32, record: &Record, body: &Body, waiter: Waiter) {
        let packed = codec::encode(record);
        let mut headers = OwnedHeaders::new_with_capacity(body.headers.len() + 1);
        for (key, value) in &body.headers {
            headers = headers.insert(Header { key, value: value.as_deref() });
        }
        headers = headers.insert(Header { key: HEADER, value: Some(packed.as_slice()) });
        let mut message: BaseRecord<'_, [u8], [u8], Box<Waiter>> =
            BaseRecord::with_opaque_to(&self.topic, Box::new(waiter))
                .partition(partition)
                .headers(headers);
        if let Some(key) = &body.key {
            message = message.key(key.as_ref());
        }
        if let Some(payload) = &body.payload {
            message = message.payload(payload.as_ref());
        }
        if let Err((error, message)) = self.producer.send(message) {
            message.delivery_opaque.done(Err(error));
        }
    }

    /// Appends and waits for the acknowledgement. Dropping it does not take the record back.
    pub(crate) async fn append_within(
        &self,
        partition: i32,
        record: &Record,
        body: &Body,
        deadline: Duration,
    ) -> Result<i64, AppendError> {
        let (sender, receiver) = oneshot::channel();
        self.append(partition, record, body, Waiter::Caller(sender));
        match tokio::time::timeout(deadline, receiver).await {
            Ok(Ok(Ok(offset))) => Ok(offset),
            Ok(Ok(Err(error))) if is_queue_full(&error) => Err(AppendError::QueueFull),
            Ok(Ok(Err(error))) if is_denied(&error) => Err(AppendError::Failed(
                TopicError::Forbidden { topic: self.topic.clone(), right: "Write" }.to_string(),
            )),
            Ok(Ok(Err(error))) => Err(AppendError::Failed(error.to_string())),
            Ok(Err(_)) => Err(AppendError::Failed("the client was closed".into())),
            Err(_) => Err(AppendError::Failed(format!("no acknowledgement within {deadline:?}"))),
        }
    }

    /// Waits until everything is acknowledged or has failed. Blocks up to the deadline.
    pub(crate) fn flush(&self, deadline: Duration) {
        if let Err(error) = self.producer.flush(deadline) {
            tracing::warn!(%error, "records of the store were not acknowledged before the end");
        }
    }
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

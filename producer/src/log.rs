//! Appends records to the half-message store and waits for their acknowledgements.
//!
//! Every waiter hears of its record's end exactly once, also when a client is replaced. A fatal
//! error ends an idempotent client for good: nothing is sent through it any more, a new one takes
//! its place, and what the old one had sent is still acknowledged through the old one.
//!
//! While records of many callers come densely they go through a second client, which lets them wait for
//! company: a request for each few would cost the broker and everybody more than the records do. A client
//! has one such wait for all, and a lone record must not have it. Records keep their order only if they go the same
//! way, or the first is acknowledged before the next is sent.
//!
//! # Layout
//! - `channel`: one client, and the next where a fatal error has ended it
//! - `patient`: the second client, made when it is wanted; `pace`: when that is
//! - `waiter`: who waits for the end of a record

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use halfmsg_kafka::{KafkaConfig, TopicError};
use halfmsg_protocol::{Body, HEADER, Record, codec};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::BaseRecord;

use crate::scan::is_denied;

mod channel;
mod pace;
mod patient;
mod waiter;

use channel::{Channel, Outgoing, Settings};
use pace::Pace;
use patient::Patient;
use waiter::Acked;
pub(crate) use waiter::{Waiter, Written};

#[cfg(test)]
mod tests;

/// With fewer transactions open no record waits: what holds them up then is that each caller waits for its
/// own acknowledgements, and it would wait longer. With 256 that cost a third of the rate, with 1,024 and more it
/// gained in most pairs (ARCHITECTURE.md).
const MANY_OPEN: usize = 768;
/// How long a record waits for company where records are dense and callers many, in milliseconds.
const COMPANY_MILLIS: &str = "1";
/// The client's own setting for that, and its other name: whoever sets it by hand has it for all.
const LINGER: [&str; 2] = ["linger.ms", "queue.buffering.max.ms"];

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

/// Which client a record goes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// It goes at once.
    Prompt,
    /// It waits for company.
    Patient,
}

/// The store's producer. Shared by transactions, check-back and operators.
pub(crate) struct StoreLog {
    topic: String,
    pace: Pace,
    prompt: Channel,
    patient: Patient,
}

impl StoreLog {
    /// Records that wait in memory in each of the two clients, and their KiB; beyond, appending is
    /// refused.
    const QUEUE: &'static str = "100000";
    const QUEUE_KIB: &'static str = "65536";

    pub(crate) fn new(
        kafka: &KafkaConfig,
        topic: String,
        message_timeout: Duration,
        max_record_bytes: usize,
    ) -> Result<Self, KafkaError> {
        let mut client = kafka.producer();
        client
            .set("message.timeout.ms", message_timeout.as_millis().to_string())
            .set("queue.buffering.max.messages", Self::QUEUE)
            .set("queue.buffering.max.kbytes", Self::QUEUE_KIB)
            .set("message.max.bytes", max_record_bytes.to_string());
        let settings = Settings {
            name: "the store's client",
            client,
            topic: topic.clone(),
            message_timeout,
            is_embedded: kafka.embedded,
        };
        let by_hand = LINGER.iter().any(|name| kafka.properties.contains_key(*name));
        let waits = (!by_hand).then(|| {
            let mut settings = settings.clone();
            settings.name = "the store's second client";
            settings.client.set(LINGER[0], COMPANY_MILLIS);
            settings
        });
        let prompt = Channel::new(settings)?;
        Ok(Self { topic, pace: Pace::new(), prompt, patient: Patient::new(waits) })
    }

    /// The number of partitions of any topic of the cluster. Blocks up to the deadline.
    pub(crate) fn partition_count(
        &self,
        topic: &str,
        deadline: Duration,
    ) -> Result<i32, TopicError> {
        self.prompt.partition_count(topic, deadline)
    }

    /// Puts a record on its way, in order with the others that come so; the waiter hears of its end, in
    /// every case.
    pub(crate) fn append(&self, partition: i32, record: &Record, body: &Body, waiter: Waiter) {
        let waiter = Arc::new(waiter);
        self.send(Way::Prompt, partition, &codec::encode(record), body.into(), &waiter);
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
        self.acked(&self.sent(Way::Prompt, partition, packed, part), until).await
    }

    /// The way of a caller's next record, or of several that keep their order, where so many transactions
    /// are open.
    pub(crate) fn way(&self, open: usize) -> Way {
        let is_dense = self.pace.another() && open >= MANY_OPEN;
        if is_dense && self.patient.is_usable() { Way::Patient } else { Way::Prompt }
    }

    /// Puts a record that is encoded already on its way, for [`StoreLog::acked`].
    pub(crate) fn sent(
        &self,
        way: Way,
        partition: i32,
        packed: &[u8],
        part: Part<'_>,
    ) -> Arc<Waiter> {
        let waiter = Arc::new(Waiter::caller());
        self.send(way, partition, packed, part, &waiter);
        waiter
    }

    /// Waits until a point in time for the end of a record that [`StoreLog::sent`] put on its way.
    /// Dropping it does not take the record back.
    pub(crate) async fn acked(
        &self,
        waiter: &Waiter,
        until: Instant,
    ) -> Result<Written, AppendError> {
        match tokio::time::timeout_at(until.into(), Acked(waiter)).await {
            Ok(Ok(written)) => Ok(written),
            Ok(Err(error)) if is_queue_full(&error) => Err(AppendError::QueueFull),
            Ok(Err(error)) if is_denied(&error) => Err(AppendError::Failed(
                TopicError::Forbidden { topic: self.topic.clone(), right: "Write" }.to_string(),
            )),
            Ok(Err(error)) => Err(AppendError::Failed(error.to_string())),
            Err(_) => Err(AppendError::Failed("no acknowledgement within the deadline".into())),
        }
    }

    fn send(&self, way: Way, partition: i32, packed: &[u8], part: Part<'_>, waiter: &Arc<Waiter>) {
        let mut headers = OwnedHeaders::new_with_capacity(part.headers.len() + 1);
        for (key, value) in part.headers {
            headers = headers.insert(Header { key, value: value.as_deref() });
        }
        headers = headers.insert(Header { key: HEADER, value: Some(packed) });
        let mut record: Outgoing<'_> = BaseRecord::with_opaque_to(&self.topic, Arc::clone(waiter))
            .partition(partition)
            .headers(headers);
        if let Some(key) = part.key {
            record = record.key(key);
        }
        if let Some(payload) = part.payload {
            record = record.payload(payload);
        }
        let sent = match way {
            Way::Prompt => self.prompt.send(record),
            Way::Patient => match self.patient.offer(record) {
                Ok(None) => Ok(()),
                Ok(Some(record)) => self.prompt.send(record),
                Err(error) => Err(error),
            },
        };
        if let Err(error) = sent {
            waiter.done(Err(error));
        }
    }

    /// Records that are not acknowledged yet, of both clients.
    pub(crate) fn under_way(&self) -> usize {
        self.prompt.under_way() + self.patient.under_way()
    }

    /// Why appending may fail now, if a fatal error is the reason.
    pub(crate) fn problem(&self) -> Option<String> {
        self.prompt.problem()
    }

    /// Looks after the client: one that has failed is made anew, one that reaches the cluster has
    /// proven itself. Blocks up to the deadline. The store's number of partitions.
    pub(crate) fn look_after(&self, deadline: Duration) -> Result<i32, TopicError> {
        self.prompt.look_after(deadline)
    }

    /// The same for the second client, if it is wanted. Nothing depends on it.
    pub(crate) fn look_after_second(&self, deadline: Duration) {
        self.patient.look_after(deadline);
    }

    /// Somebody wants the second client for the first time.
    pub(crate) async fn wants_second(&self) {
        self.patient.woken().await;
    }

    /// Waits until everything is acknowledged or has failed. Blocks up to the deadline; the second client
    /// has what the first leaves of it.
    pub(crate) fn flush(&self, deadline: Duration) {
        let until = Instant::now() + deadline;
        self.prompt.flush(deadline);
        self.patient.flush(until.saturating_duration_since(Instant::now()));
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

//! Deliveries and parked records on their way, each until it is acknowledged or refused for good.
//!
//! A broker that is away holds everything up and loses nothing; a target that refuses a message
//! holds up only that message.

use std::collections::HashMap;
use std::sync::{Arc, mpsc};
use std::time::Instant;

use bytes::Bytes;
use halfmsg_kafka::KafkaConfig;
use halfmsg_protocol::{Body, Half, HalfRef, TRANSACTION_ID_HEADER, TransactionId};
use rdkafka::ClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer, ProducerContext, ThreadedProducer};

use super::Input;
use crate::config::{ProducerConfig, RETRY_DELAY};
use crate::parked::ParkedRecord;

/// The record whose outcome is being carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Token {
    pub(crate) partition: i32,
    pub(crate) generation: u64,
    pub(crate) at: i64,
}

/// What is to be written first.
pub(crate) enum Work {
    /// The message to its target.
    Deliver(Arc<Half>),
    /// Nothing but the mark of a settled message.
    Settle,
    /// A record of the parked topic.
    Park(ParkedRecord),
}

/// A delivery report.
pub(crate) struct Ack {
    pub(crate) token: Token,
    result: Result<(), KafkaError>,
}

/// What an acknowledgement led to.
pub(crate) enum Settled {
    /// Carried out.
    Done { at: i64, delivered: bool },
    /// The target refuses the message for good.
    Refused { at: i64, reason: String },
    /// Not at its end yet, or not known any more.
    Nothing,
}

struct Item {
    work: Work,
    settled: Option<HalfRef>,
    /// The work itself is acknowledged; the mark is on its way.
    marking: bool,
    retry_at: Option<Instant>,
}

struct OutboxContext {
    inputs: mpsc::Sender<Input>,
}

impl ClientContext for OutboxContext {}

impl ProducerContext for OutboxContext {
    type DeliveryOpaque = Box<Option<Token>>;

    fn delivery(&self, result: &DeliveryResult<'_>, token: Box<Option<Token>>) {
        let result = match result {
            Ok(_) => Ok(()),
            Err((error, _)) => Err(error.clone()),
        };
        match *token {
            // The resolver may have ended; its successor carries the outcome out again.
            Some(token) => drop(self.inputs.send(Input::Ack(Ack { token, result }))),
            None => {
                if let Err(error) = result {
                    tracing::warn!(%error, "a settled message stays in the parked topic");
                }
            }
        }
    }
}

/// What is on its way.
pub(crate) struct Outbox {
    kafka: KafkaConfig,
    max_record_bytes: usize,
    max_items: usize,
    parked_topic: String,
    producer: ThreadedProducer<OutboxContext>,
    inputs: mpsc::Sender<Input>,
    items: HashMap<Token, Item>,
    foreign: HashMap<(i32, i64), Body>,
}

impl Outbox {
    pub(crate) fn new(
        config: &ProducerConfig,
        inputs: mpsc::Sender<Input>,
    ) -> Result<Self, KafkaError> {
        let max_record_bytes = crate::topics::parked_record_bytes(config);
        let max_items = config.max_deliveries;
        let producer = producer(&config.kafka, max_record_bytes, max_items, inputs.clone())?;
        Ok(Self {
            kafka: config.kafka.clone(),
            max_record_bytes,
            max_items,
            parked_topic: config.parked_topic(),
            producer,
            inputs,
            items: HashMap::new(),
            foreign: HashMap::new(),
        })
    }

    /// Whether the store must not be read on.
    pub(crate) fn is_full(&self) -> bool {
        self.items.len() >= self.max_items
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Forgets everything: the next owner carries it out again.
    pub(crate) fn abandon(&mut self) {
        self.items.clear();
        self.foreign.clear();
    }

    /// Begins to carry an outcome out.
    pub(crate) fn send(&mut self, token: Token, work: Work, settled: Option<HalfRef>) {
        let marking = matches!(work, Work::Settle);
        self.items.insert(token, Item { work, settled, marking, retry_at: None });
        self.try_send(token);
    }

    /// Keeps a record that is none of ours until it is to be copied.
    pub(crate) fn remember_foreign(&mut self, partition: i32, offset: i64, body: Body) {
        self.foreign.insert((partition, offset), body);
    }

    pub(crate) fn send_foreign(&mut self, token: Token) {
        let body = self.foreign.remove(&(token.partition, token.at)).unwrap_or_default();
        let record = ParkedRecord::foreign(token.partition, token.at, body);
        self.send(token, Work::Park(record), None);
    }

    /// Removes what the parked topic says of a settled message. If that fails, the next owner
    /// does it.
    pub(crate) fn clear(&self, partition: i32, id: TransactionId) {
        let record = ParkedRecord::cleared(id);
        if let Err(error) = self.send_parked(partition, &record, None) {
            tracing::warn!(%error, transaction_id = %id, "a settled message stays in the parked topic");
        }
    }

    /// Takes a delivery report in.
    pub(crate) fn acknowledged(&mut self, ack: Ack) -> Settled {
        let token = ack.token;
        let Some(item) = self.items.get_mut(&token) else { return Settled::Nothing };
        match ack.result {
            Ok(()) if item.settled.is_some() && !item.marking => {
                item.marking = true;
                self.try_send(token);
                Settled::Nothing
            }
            Ok(()) => {
                let delivered = matches!(item.work, Work::Deliver(_));
                self.items.remove(&token);
                Settled::Done { at: token.at, delivered }
            }
            Err(error) => self.failed(token, &error),
        }
    }

    /// Sends again what failed for a passing reason.
    pub(crate) fn retry(&mut self) {
        if self.producer.client().fatal_error().is_some() {
            self.renew();
        }
        let now = Instant::now();
        let due: Vec<Token> = self
            .items
            .iter()
            .filter(|(_, item)| item.retry_at.is_some_and(|at| at <= now))
            .map(|(token, _)| *token)
            .collect();
        for token in due {
            self.try_send(token);
        }
    }

    fn failed(&mut self, token: Token, error: &KafkaError) -> Settled {
        let Some(item) = self.items.get_mut(&token) else { return Settled::Nothing };
        if let (Work::Deliver(half), false, true) = (&item.work, item.marking, is_permanent(error))
        {
            let reason = format!("topic '{}' refuses it: {error}", half.meta.topic);
            tracing::error!(transaction_id = %half.meta.id, reason, "undeliverable; parking it");
            self.items.remove(&token);
            return Settled::Refused { at: token.at, reason };
        }
        tracing::warn!(
            partition = token.partition, offset = token.at, %error,
            "an outcome is not carried out yet; trying again"
        );
        item.retry_at = Some(Instant::now() + RETRY_DELAY);
        Settled::Nothing
    }

    fn try_send(&mut self, token: Token) {
        let Some(item) = self.items.get_mut(&token) else { return };
        item.retry_at = None;
        let Some(item) = self.items.get(&token) else { return };
        let sent = match (&item.work, item.marking, item.settled) {
            (Work::Deliver(half), false, _) => self.send_delivery(half, token),
            (Work::Park(record), _, _) => self.send_parked(token.partition, record, Some(token)),
            (_, _, Some(of)) => {
                let record = ParkedRecord::settled(of, token.at);
                self.send_parked(token.partition, &record, Some(token))
            }
            (_, _, None) => Ok(()),
        };
        if let Err(error) = sent {
            // Through the inputs like every report, so that there is one place that handles it.
            drop(self.inputs.send(Input::Ack(Ack { token, result: Err(error) })));
        }
    }

    /// The delivered record: the user's key, payload, headers and timestamp, and the transaction
    /// id as text, by which a consumer in any language deduplicates.
    fn send_delivery(&self, half: &Half, token: Token) -> Result<(), KafkaError> {
        let id = half.meta.id.to_string();
        let headers = headers(&half.body.headers)
            .insert(Header { key: TRANSACTION_ID_HEADER, value: Some(id.as_bytes()) });
        let mut record: BaseRecord<'_, [u8], [u8], Box<Option<Token>>> =
            BaseRecord::with_opaque_to(&half.meta.topic, Box::new(Some(token)))
                .headers(headers)
                .timestamp(half.meta.timestamp_ms);
        if let Some(key) = &half.body.key {
            record = record.key(key.as_ref());
        }
        if let Some(payload) = &half.body.payload {
            record = record.payload(payload.as_ref());
        }
        self.producer.send(record).map_err(|(error, _)| error)
    }

    fn send_parked(
        &self,
        partition: i32,
        parked: &ParkedRecord,
        token: Option<Token>,
    ) -> Result<(), KafkaError> {
        let mut record: BaseRecord<'_, [u8], [u8], Box<Option<Token>>> =
            BaseRecord::with_opaque_to(&self.parked_topic, Box::new(token))
                .partition(partition)
                .headers(headers(&parked.headers))
                .key(parked.key.as_bytes());
        if let Some(payload) = &parked.payload {
            record = record.payload(payload.as_ref());
        }
        self.producer.send(record).map_err(|(error, _)| error)
    }

    /// A client with a fatal error sends nothing any more: everything goes out again through a
    /// new one.
    fn renew(&mut self) {
        tracing::error!(error = ?self.producer.client().fatal_error(), "the delivery client is made anew");
        let made =
            producer(&self.kafka, self.max_record_bytes, self.max_items, self.inputs.clone());
        match made {
            Ok(made) => {
                self.producer = made;
                let now = Instant::now();
                self.items.values_mut().for_each(|item| item.retry_at = Some(now));
            }
            Err(error) => tracing::error!(%error, "the delivery client cannot be made"),
        }
    }
}

fn headers(from: &[(String, Option<Bytes>)]) -> OwnedHeaders {
    from.iter().fold(OwnedHeaders::new_with_capacity(from.len() + 1), |headers, (key, value)| {
        headers.insert(Header { key, value: value.as_deref() })
    })
}

fn producer(
    kafka: &KafkaConfig,
    max_record_bytes: usize,
    max_items: usize,
    inputs: mpsc::Sender<Input>,
) -> Result<ThreadedProducer<OutboxContext>, KafkaError> {
    let mut config = kafka.producer();
    config
        // The agreement with Java clients on which partition a key goes to.
        .set("partitioner", "murmur2_random")
        // A broker that is away holds deliveries up for as long as it takes.
        .set("message.timeout.ms", "0")
        .set("topic.metadata.propagation.max.ms", "5000")
        .set("message.max.bytes", max_record_bytes.to_string())
        .set("queue.buffering.max.messages", (2 * max_items + 1_000).to_string());
    config.create_with_context(OutboxContext { inputs })
}

/// Whether sending the same record again cannot help.
fn is_permanent(error: &KafkaError) -> bool {
    use RDKafkaErrorCode as Code;
    let KafkaError::MessageProduction(code) = error else { return false };
    matches!(
        code,
        Code::MessageSizeTooLarge
            | Code::InvalidMessageSize
            | Code::MessageBatchTooLarge
            | Code::UnknownTopic
            | Code::UnknownTopicOrPartition
            | Code::UnknownPartition
            | Code::InvalidTopic
            | Code::TopicAuthorizationFailed
            | Code::InvalidRecord
            | Code::InvalidTimestamp
            | Code::PolicyViolation
    )
}

//! Deliveries and parked records on their way, each until it is acknowledged or refused for good.
//!
//! A broker that is away holds everything up and loses nothing; a target that refuses a message
//! holds up only that message.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use bytes::Bytes;
use halfmsg_kafka::{KafkaConfig, TopicError, partition_count};
use halfmsg_protocol::{Body, Half, HalfRef, TRANSACTION_ID_HEADER, TransactionId};
use rdkafka::error::KafkaError;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer, PurgeConfig};

use super::Input;
use super::delivery::{Ack, BATCH, Blame, Client, blame, client};
use crate::config::{ProducerConfig, RETRY_DELAY};
use crate::parked::ParkedRecord;

/// Asking the cluster whether a topic exists.
const LOOKUP: Duration = Duration::from_secs(5);

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

/// What an acknowledgement led to.
pub(crate) enum Settled {
    /// Carried out.
    Done { at: i64, delivered: bool },
    /// The target refuses the message for good.
    Refused { token: Token, reason: String },
    /// Not at its end yet, or not known any more.
    Nothing,
}

struct Item {
    work: Work,
    settled: Option<HalfRef>,
    /// The work itself is acknowledged; the mark is on its way.
    marking: bool,
    /// The broker refused a batch that it was in: it goes out by itself, to tell who is to blame.
    alone: bool,
    retry_at: Option<Instant>,
}

/// What is on its way.
pub(crate) struct Outbox {
    kafka: KafkaConfig,
    max_record_bytes: usize,
    max_items: usize,
    parked_topic: String,
    producer: Arc<Client>,
    /// Sends one message per batch.
    single: Arc<Client>,
    inputs: mpsc::Sender<Input>,
    items: HashMap<Token, Item>,
    /// Deliveries that wait until it is known whether their topic exists.
    looked_up: HashMap<String, Vec<Token>>,
    foreign: HashMap<(i32, i64), Body>,
}

impl Outbox {
    pub(crate) fn new(
        config: &ProducerConfig,
        inputs: mpsc::Sender<Input>,
    ) -> Result<Self, KafkaError> {
        let max_record_bytes = crate::topics::parked_record_bytes(config);
        let max_items = config.max_deliveries;
        let limits = (max_record_bytes, max_items);
        let producer = client(&config.kafka, limits, BATCH, inputs.clone())?;
        let single = client(&config.kafka, limits, 1, inputs.clone())?;
        Ok(Self {
            kafka: config.kafka.clone(),
            max_record_bytes,
            max_items,
            parked_topic: config.parked_topic(),
            producer,
            single,
            inputs,
            items: HashMap::new(),
            looked_up: HashMap::new(),
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
        // What is queued must not go out long after another owner has gone on.
        self.producer.purge(PurgeConfig::default().queue());
        self.single.purge(PurgeConfig::default().queue());
        self.items.clear();
        self.looked_up.clear();
        self.foreign.clear();
    }

    /// Begins to carry an outcome out.
    pub(crate) fn send(&mut self, token: Token, work: Work, settled: Option<HalfRef>) {
        let marking = matches!(work, Work::Settle);
        self.items.insert(token, Item { work, settled, marking, alone: false, retry_at: None });
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
        let fatal =
            [&self.producer, &self.single].into_iter().find_map(|c| c.client().fatal_error());
        if let Some((code, text)) = fatal {
            tracing::error!(%code, text, "the delivery clients are made anew");
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

    /// Whether a topic exists is known now: its messages go out again, or are refused.
    pub(crate) fn found(&mut self, topic: &str, found: Result<(), TopicError>) -> Vec<Settled> {
        let waiting = self.looked_up.remove(topic).unwrap_or_default();
        let mut refused = Vec::new();
        for token in waiting {
            match &found {
                Err(error @ TopicError::Unknown(_)) => {
                    refused.extend(self.refuse(token, &error.to_string()));
                }
                Ok(()) | Err(_) => self.retry_later(token),
            }
        }
        refused
    }

    fn failed(&mut self, token: Token, error: &KafkaError) -> Settled {
        let Some(item) = self.items.get_mut(&token) else { return Settled::Nothing };
        if let (Work::Deliver(half), false) = (&item.work, item.marking) {
            match blame(error) {
                Blame::Topic => {
                    let topic = half.meta.topic.clone();
                    self.look_up(topic, token);
                    return Settled::Nothing;
                }
                Blame::Batch if item.alone => {
                    return self.refuse(token, &error.to_string()).unwrap_or(Settled::Nothing);
                }
                Blame::Batch => {
                    item.alone = true;
                    self.try_send(token);
                    return Settled::Nothing;
                }
                Blame::Nobody => {}
            }
        }
        tracing::warn!(
            partition = token.partition, offset = token.at, %error,
            "an outcome is not carried out yet; trying again"
        );
        self.retry_later(token);
        Settled::Nothing
    }

    fn refuse(&mut self, token: Token, error: &str) -> Option<Settled> {
        let Work::Deliver(half) = self.items.remove(&token)?.work else { return None };
        let reason = format!("topic '{}' refuses it: {error}", half.meta.topic);
        tracing::error!(transaction_id = %half.meta.id, reason, "undeliverable; parking it");
        Some(Settled::Refused { token, reason })
    }

    fn retry_later(&mut self, token: Token) {
        if let Some(item) = self.items.get_mut(&token) {
            item.retry_at = Some(Instant::now() + RETRY_DELAY);
        }
    }

    /// The client remembers for a while that a topic is missing, also when it is there again: the
    /// cluster is asked, which makes the client forget. Not here, because it blocks.
    fn look_up(&mut self, topic: String, token: Token) {
        let waiting = self.looked_up.entry(topic.clone()).or_default();
        waiting.push(token);
        if waiting.len() > 1 {
            return;
        }
        let (producer, inputs) = (Arc::clone(&self.producer), self.inputs.clone());
        std::thread::spawn(move || {
            let found = partition_count(producer.client(), &topic, LOOKUP).map(|_| ());
            // The resolver may have ended; its successor carries the outcome out again.
            drop(inputs.send(Input::TopicFound { topic, found }));
        });
    }

    fn try_send(&mut self, token: Token) {
        let Some(item) = self.items.get_mut(&token) else { return };
        item.retry_at = None;
        let Some(item) = self.items.get(&token) else { return };
        let sent = match (&item.work, item.marking, item.settled) {
            (Work::Deliver(half), false, _) => self.send_delivery(half, token, item.alone),
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
    fn send_delivery(&self, half: &Half, token: Token, alone: bool) -> Result<(), KafkaError> {
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
        let client = if alone { &self.single } else { &self.producer };
        client.send(record).map_err(|(error, _)| error)
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
        let limits = (self.max_record_bytes, self.max_items);
        let made = |batch| client(&self.kafka, limits, batch, self.inputs.clone());
        match (made(BATCH), made(1)) {
            (Ok(producer), Ok(single)) => {
                (self.producer, self.single) = (producer, single);
                let now = Instant::now();
                let waiting: HashSet<Token> = self.looked_up.values().flatten().copied().collect();
                for (token, item) in &mut self.items {
                    if !waiting.contains(token) {
                        item.retry_at = Some(now);
                    }
                }
            }
            (Err(error), _) | (_, Err(error)) => {
                tracing::error!(%error, "the delivery clients cannot be made");
            }
        }
    }
}

fn headers(from: &[(String, Option<Bytes>)]) -> OwnedHeaders {
    from.iter().fold(OwnedHeaders::new_with_capacity(from.len() + 1), |headers, (key, value)| {
        headers.insert(Header { key, value: value.as_deref() })
    })
}

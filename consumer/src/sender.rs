//! Sends replies that are committed, and forgets them once they are acknowledged.
//!
//! The replies of one key go one after the other, each behind the acknowledgement of the one before;
//! those of different keys together. It must never forget a reply that was not acknowledged.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};

use futures::future::join_all;
use halfmsg_kafka::KafkaConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord, Producer};
use sea_orm::{DatabaseConnection, DbErr};
use tokio::sync::Mutex;

use crate::metrics::ConsumerMetrics;
use crate::reply::{self, Answers, Chain, Stored, Unsent};

/// At most this many replies are read and sent in one go.
const BATCH: u64 = 1_000;
/// So many messages are asked for their replies in one statement.
const KEYS: usize = 1_000;
/// No further reply is read into memory behind so many bytes of payload.
const BYTES: usize = 8 * 1024 * 1024;
/// A reply that is not acknowledged in this time, in milliseconds, is sent again.
const TIMEOUT_MILLIS: &str = "10000";

/// Why replies wait: Kafka or the database is away. Trying again can help.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct NotSent(String);

impl From<DbErr> for NotSent {
    fn from(error: DbErr) -> Self {
        Self(error.to_string())
    }
}

/// What a test kit keeps in place of sending it. Cheap to clone.
#[cfg(feature = "testkit")]
#[derive(Debug, Clone, Default)]
pub(crate) struct Outbox(std::sync::Arc<std::sync::Mutex<Vec<crate::testkit::SentReply>>>);

#[cfg(feature = "testkit")]
impl Outbox {
    pub(crate) fn sent(&self) -> Vec<crate::testkit::SentReply> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    fn keep(&self, one: &Unsent) -> Sent {
        let reply = crate::testkit::SentReply { id: one.id, reply: one.reply.clone() };
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(reply);
        Sent::Acknowledged
    }
}

/// Where replies go.
#[derive(Clone)]
enum Outlet {
    Kafka(FutureProducer),
    #[cfg(feature = "testkit")]
    Kept(Outbox),
}

impl Outlet {
    async fn send(&self, one: &Unsent) -> Sent {
        match self {
            Self::Kafka(producer) => send_one(producer, one).await,
            #[cfg(feature = "testkit")]
            Self::Kept(outbox) => {
                let sent = outbox.keep(one);
                // The broker has it, and its acknowledgement is waited for: here the process may die.
                tokio::task::yield_now().await;
                sent
            }
        }
    }

    /// Together; those of a request that was too large once more, one by one, to find the one to
    /// blame.
    async fn send_all(&self, unsent: Vec<&Unsent>) -> Vec<Sent> {
        let mut sent = join_all(unsent.iter().copied().map(|one| self.send(one))).await;
        if unsent.len() > 1 {
            for (one, sent) in unsent.into_iter().zip(&mut sent) {
                if matches!(sent, Sent::TooLarge(_)) {
                    *sent = self.send(one).await;
                }
            }
        }
        sent
    }
}

/// The producer of a consumer's replies. It is made with the first of them.
pub(crate) struct Sender {
    kafka: KafkaConfig,
    database: DatabaseConnection,
    subscriber: String,
    metrics: ConsumerMetrics,
    outlet: Mutex<Option<Outlet>>,
}

/// What became of one reply.
enum Sent {
    Acknowledged,
    /// This one only, and not by trying again at once.
    Refused(String),
    /// It, or all that went in one request with it.
    TooLarge(String),
    Away(String),
}

impl Sender {
    pub(crate) fn new(
        kafka: KafkaConfig,
        database: DatabaseConnection,
        subscriber: String,
        metrics: ConsumerMetrics,
    ) -> Self {
        Self { kafka, database, subscriber, metrics, outlet: Mutex::default() }
    }

    /// One that sends nothing, for a test kit.
    #[cfg(feature = "testkit")]
    pub(crate) fn keeping(
        database: DatabaseConnection,
        subscriber: String,
        metrics: ConsumerMetrics,
        outbox: Outbox,
    ) -> Self {
        let outlet = Mutex::new(Some(Outlet::Kept(outbox)));
        let kafka = KafkaConfig::new("in-memory:9092");
        Self { kafka, database, subscriber, metrics, outlet }
    }

    /// Sends what these messages are owed, behind earlier replies of the same keys. Behind one that
    /// the broker refuses it is left to the background.
    ///
    /// Cancelled, what was acknowledged may be sent again.
    pub(crate) async fn send(&self, answers: &Answers) -> Result<(), NotSent> {
        let mut stuck = HashSet::new();
        for keys in answers.message_keys.chunks(KEYS) {
            let mut after = i64::MIN;
            loop {
                let (database, subscriber) = (&self.database, &self.subscriber);
                let own = reply::to_messages(database, subscriber, keys, after, BATCH).await?;
                let Some(last) = own.last() else { break };
                after = last.seq;
                self.through(&own, false, &mut stuck).await?;
            }
        }
        Ok(())
    }

    /// Sends what nobody else has: with `all`, whatever there is, as at a start.
    pub(crate) async fn send_left_behind(&self, all: bool) -> Result<(), NotSent> {
        let (mut stuck, mut after) = (HashSet::new(), i64::MIN);
        loop {
            let (database, subscriber) = (&self.database, &self.subscriber);
            let found = reply::left_behind(database, subscriber, after, all, BATCH).await?;
            let Some(last) = found.last() else { return Ok(()) };
            after = last.seq;
            self.through(&found, all, &mut stuck).await?;
        }
    }

    /// Sends a page of replies, and whatever goes before them in their chains, page by page. Chains
    /// whose first was refused are stuck, and passed over; with `again`, only if it is refused anew.
    async fn through(
        &self,
        wanted: &[Stored],
        again: bool,
        stuck: &mut HashSet<Chain>,
    ) -> Result<(), NotSent> {
        let Some(end) = wanted.last().map(|one| one.seq) else { return Ok(()) };
        let alone = wanted.iter().filter(|one| one.chain.is_none() && (again || !one.refused));
        self.in_portions(alone.collect(), stuck).await?;
        let mut chains: BTreeSet<Chain> =
            wanted.iter().filter_map(|one| one.chain.clone()).collect();
        let mut after = i64::MIN;
        loop {
            chains.retain(|chain| !stuck.contains(chain));
            if chains.is_empty() {
                return Ok(());
            }
            let (database, subscriber) = (&self.database, &self.subscriber);
            let page = reply::of_chains(database, subscriber, &chains, after, end, BATCH).await?;
            let Some(last) = page.last() else { return Ok(()) };
            after = last.seq;
            if !again {
                let refused = page.iter().filter(|one| one.refused);
                stuck.extend(refused.filter_map(|one| one.chain.clone()));
            }
            self.in_portions(page.iter().collect(), stuck).await?;
        }
    }

    /// Reads and sends so much at once as fits into [`BYTES`].
    async fn in_portions(
        &self,
        page: Vec<&Stored>,
        stuck: &mut HashSet<Chain>,
    ) -> Result<(), NotSent> {
        let mut rest = page.as_slice();
        while !rest.is_empty() {
            let mut bytes = 0_usize;
            let fits = rest.iter().take_while(|one| {
                let room = bytes < BYTES;
                bytes = bytes.saturating_add(one.bytes);
                room
            });
            let (portion, more) = rest.split_at(fits.count());
            rest = more;
            let goes = portion
                .iter()
                .filter(|one| one.chain.as_ref().is_none_or(|chain| !stuck.contains(chain)));
            let seqs: Vec<i64> = goes.map(|one| one.seq).collect();
            if !seqs.is_empty() {
                let unsent = reply::load(&self.database, &seqs).await?;
                stuck.extend(self.in_order(unsent).await?);
            }
        }
        Ok(())
    }

    /// In rounds: the first of every key, then the second of those whose first was acknowledged.
    /// Gives back the chains whose first was refused.
    async fn in_order(&self, unsent: Vec<Unsent>) -> Result<Vec<Chain>, NotSent> {
        let mut chains = chains(unsent);
        let mut stuck = Vec::new();
        while !chains.is_empty() {
            let outlet = self.outlet().await?;
            let heads = chains.iter().filter_map(VecDeque::front);
            let sent = outlet.send_all(heads.collect()).await;
            let (mut acknowledged, mut refused, mut away) = (Vec::new(), Vec::new(), None);
            let mut going_on = Vec::with_capacity(chains.len());
            for (mut chain, sent) in chains.into_iter().zip(sent) {
                let Some(one) = chain.pop_front() else { continue };
                match sent {
                    Sent::Acknowledged => {
                        acknowledged.push(one.seq);
                        going_on.push(chain);
                    }
                    Sent::Refused(cause) | Sent::TooLarge(cause) => refused.push((one, cause)),
                    Sent::Away(cause) => away = Some(cause),
                }
            }
            if !acknowledged.is_empty() {
                reply::forget(&self.database, &acknowledged).await?;
                self.metrics.replies.inc_by(acknowledged.len() as u64);
            }
            for (one, cause) in refused {
                self.note_refusal(&one, &cause).await?;
                stuck.extend(one.key_hash.map(|hash| (one.reply.topic.clone(), hash)));
            }
            if let Some(cause) = away {
                self.let_go_if_broken(&outlet).await;
                return Err(NotSent(cause));
            }
            chains = going_on;
            chains.retain(|chain| !chain.is_empty());
        }
        Ok(stuck)
    }

    async fn note_refusal(&self, one: &Unsent, cause: &str) -> Result<(), DbErr> {
        let topic = &one.reply.topic;
        tracing::error!(topic, id = %one.id, cause, "a reply was refused; it stays and is tried again");
        self.metrics.replies_refused.inc();
        reply::refused(&self.database, one.seq, cause).await
    }

    async fn outlet(&self) -> Result<Outlet, NotSent> {
        let mut present = self.outlet.lock().await;
        if let Some(outlet) = &*present {
            return Ok(outlet.clone());
        }
        let mut client = self.kafka.producer();
        client
            // The agreement with Java clients on which partition a key goes to.
            .set("partitioner", "murmur2_random")
            .set("topic.metadata.propagation.max.ms", "5000")
            .set("message.timeout.ms", TIMEOUT_MILLIS);
        let producer: FutureProducer =
            client.create().map_err(|error| NotSent(error.to_string()))?;
        let outlet = Outlet::Kafka(producer);
        *present = Some(outlet.clone());
        Ok(outlet)
    }

    /// A producer that met a fatal error sends nothing any more: the next reply makes a new one.
    async fn let_go_if_broken(&self, outlet: &Outlet) {
        let fatal = match outlet {
            Outlet::Kafka(producer) => producer.client().fatal_error(),
            #[cfg(feature = "testkit")]
            Outlet::Kept(_) => None,
        };
        if let Some((code, text)) = fatal {
            tracing::warn!(%code, text, "the producer of replies is broken; it is made anew");
            *self.outlet.lock().await = None;
        }
    }
}

/// By topic and key, each in the order of storing; a reply without a key is alone.
fn chains(unsent: Vec<Unsent>) -> Vec<VecDeque<Unsent>> {
    let mut keyed: BTreeMap<(String, i64), VecDeque<Unsent>> = BTreeMap::new();
    let mut chains = Vec::new();
    for one in unsent {
        match one.key_hash {
            Some(hash) => {
                keyed.entry((one.reply.topic.clone(), hash)).or_default().push_back(one);
            }
            None => chains.push(VecDeque::from([one])),
        }
    }
    chains.extend(keyed.into_values());
    chains
}

async fn send_one(producer: &FutureProducer, one: &Unsent) -> Sent {
    let reply = &one.reply;
    let headers = OwnedHeaders::new_with_capacity(reply.headers.len());
    let headers = reply.headers.iter().fold(headers, |headers, (name, value)| {
        headers.insert(Header { key: name, value: value.as_deref() })
    });
    let mut record: FutureRecord<'_, [u8], [u8]> = FutureRecord::to(&reply.topic).headers(headers);
    if let Some(key) = &reply.key {
        record = record.key(key.as_ref());
    }
    if let Some(payload) = &reply.payload {
        record = record.payload(payload.as_ref());
    }
    match producer.send_result(record) {
        Ok(delivery) => match delivery.await {
            Ok(Ok(_)) => Sent::Acknowledged,
            Ok(Err((error, _))) => judge(&error),
            Err(_) => Sent::Away("the producer of replies has ended".into()),
        },
        Err((error, _)) => judge(&error),
    }
}

fn judge(error: &KafkaError) -> Sent {
    match error.rdkafka_error_code() {
        Some(Code::MessageSizeTooLarge | Code::MessageBatchTooLarge) => {
            Sent::TooLarge(error.to_string())
        }
        Some(
            Code::UnknownTopic
            | Code::UnknownTopicOrPartition
            | Code::UnknownPartition
            | Code::InvalidTopic
            | Code::TopicAuthorizationFailed
            | Code::InvalidMessage
            | Code::InvalidMessageSize
            | Code::InvalidRecord
            | Code::InvalidTimestamp
            | Code::PolicyViolation,
        ) => Sent::Refused(error.to_string()),
        _ => Sent::Away(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reply::Reply;

    #[test]
    fn the_replies_of_a_key_are_one_chain() {
        let unsent = |seq, topic: &str, key_hash| Unsent {
            seq,
            id: uuid::Uuid::nil(),
            key_hash,
            reply: Reply::new(topic, ""),
        };
        let chains = chains(vec![
            unsent(1, "a", Some(7)),
            unsent(2, "a", None),
            unsent(3, "b", Some(7)),
            unsent(4, "a", Some(7)),
            unsent(5, "a", None),
        ]);
        let seqs = |chain: &VecDeque<Unsent>| chain.iter().map(|one| one.seq).collect::<Vec<_>>();
        let mut found: Vec<Vec<i64>> = chains.iter().map(seqs).collect();
        found.sort();
        assert_eq!(found, [vec![1, 4], vec![2], vec![3], vec![5]]);
    }

    #[test]
    fn a_request_that_is_too_large_condemns_nobody_yet() {
        for code in [Code::MessageBatchTooLarge, Code::MessageSizeTooLarge] {
            assert!(matches!(judge(&KafkaError::MessageProduction(code)), Sent::TooLarge(_)));
        }
        let unknown = judge(&KafkaError::MessageProduction(Code::UnknownTopic));
        assert!(matches!(unknown, Sent::Refused(_)));
    }
}

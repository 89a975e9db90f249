//! Where a reply goes, and what became of it. It must never call one refused that only went together with
//! one.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use futures::future::join_all;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use tokio::sync::RwLock;

use crate::reply::Unsent;

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
pub(super) enum Outlet {
    Kafka(FutureProducer, Turns),
    #[cfg(feature = "testkit")]
    Kept(Outbox),
    /// Takes everything but what goes to topics called `away`, `refused` and `large` (`lost`: `away`
    /// after two that were), and notes what it was given.
    #[cfg(test)]
    Without(Given, Turns),
}

/// The topics of what was given to an outlet that is none.
#[cfg(test)]
pub(crate) type Given = std::sync::Arc<std::sync::Mutex<Vec<String>>>;

impl Outlet {
    async fn send(&self, one: &Unsent) -> Sent {
        match self {
            Self::Kafka(producer, _) => send_one(producer, one).await,
            #[cfg(feature = "testkit")]
            Self::Kept(outbox) => {
                let sent = outbox.keep(one);
                // The broker has it, and its acknowledgement is waited for: here the process may die.
                tokio::task::yield_now().await;
                sent
            }
            #[cfg(test)]
            Self::Without(given, _) => {
                let mut given = given.lock().unwrap();
                given.push(one.reply.topic.clone());
                match one.reply.topic.as_str() {
                    "lost" if given.len() <= 2 => Sent::TooLarge("too large".into()),
                    "away" | "lost" => Sent::Away("no leader".into()),
                    "refused" => Sent::Refused("no right".into()),
                    "large" => Sent::TooLarge("too large".into()),
                    _ => Sent::Acknowledged,
                }
            }
        }
    }

    /// Together; those of a request that was too large once more, one by one, to find the one to
    /// blame.
    pub(super) async fn send_all(&self, unsent: Vec<&Unsent>) -> Vec<Sent> {
        let mut by_topic: BTreeMap<&str, Vec<(usize, &Unsent)>> = BTreeMap::new();
        for (index, one) in unsent.into_iter().enumerate() {
            by_topic.entry(&one.reply.topic).or_default().push((index, one));
        }
        let topics = by_topic.into_iter().map(|(topic, unsent)| self.send_to(topic, unsent));
        let mut sent: Vec<_> = join_all(topics).await.into_iter().flatten().collect();
        sent.sort_unstable_by_key(|(index, _)| *index);
        sent.into_iter().map(|(_, sent)| sent).collect()
    }

    async fn send_to(&self, topic: &str, unsent: Vec<(usize, &Unsent)>) -> Vec<(usize, Sent)> {
        let turn = self.turn(topic);
        let mut sent = {
            let _together = turn.read().await;
            join_all(unsent.iter().map(|(_, one)| self.send(one))).await
        };
        let mut away = None;
        for ((_, one), sent) in unsent.iter().zip(&mut sent) {
            if matches!(sent, Sent::TooLarge(_)) {
                // Each would wait as long as the one before it.
                *sent = match &away {
                    Some(away) => Sent::clone(away),
                    None => {
                        let _alone = turn.write().await;
                        self.send(one).await
                    }
                };
                away = matches!(sent, Sent::Away(_)).then(|| sent.clone());
            }
        }
        unsent.into_iter().map(|(index, _)| index).zip(sent).collect()
    }

    fn turn(&self, topic: &str) -> Arc<RwLock<()>> {
        match self {
            Self::Kafka(_, turns) => turns.of(topic),
            #[cfg(feature = "testkit")]
            Self::Kept(_) => Arc::default(),
            #[cfg(test)]
            Self::Without(_, turns) => turns.of(topic),
        }
    }
}

/// Whoever sends a reply by itself has its topic alone: two who do so at once, as a batch and the look at
/// what waits, would go in one request. Records of several topics never do, so nobody waits here for another
/// topic; but after a refused request the client itself lets all that is under way end before it goes on. Of who is dropped
/// while he sends, the record stays in the client: whoever shares a request with it may be called refused, and is tried again.
/// Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Turns(Arc<Mutex<BTreeMap<String, Weak<RwLock<()>>>>>);

impl Turns {
    fn of(&self, topic: &str) -> Arc<RwLock<()>> {
        let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(turn) = turns.get(topic).and_then(Weak::upgrade) {
            return turn;
        }
        // As many topics as are sent to at once, however many there are in the course of time.
        turns.retain(|_, turn| turn.strong_count() > 0);
        let turn = Arc::default();
        turns.insert(topic.to_owned(), Arc::downgrade(&turn));
        turn
    }
}

/// What became of one reply.
#[derive(Clone)]
pub(super) enum Sent {
    Acknowledged,
    /// This one only, and not by trying again at once.
    Refused(String),
    /// It, or all that went in one request with it.
    TooLarge(String),
    Away(String),
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
    // A name that the client itself does not take, of before they were looked at.
    if matches!(error, KafkaError::Nul(_)) {
        return Sent::Refused(error.to_string());
    }
    match error.rdkafka_error_code() {
        Some(Code::MessageSizeTooLarge | Code::MessageBatchTooLarge) => {
            Sent::TooLarge(error.to_string())
        }
        Some(
            Code::UnknownTopic
            | Code::UnknownTopicOrPartition
            | Code::UnknownPartition
            | Code::InvalidTopic
            | Code::InvalidArgument
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
    use std::time::Duration;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    #[test]
    fn a_request_that_is_too_large_condemns_nobody_yet() {
        for code in [Code::MessageBatchTooLarge, Code::MessageSizeTooLarge] {
            assert!(matches!(judge(&KafkaError::MessageProduction(code)), Sent::TooLarge(_)));
        }
        let unknown = judge(&KafkaError::MessageProduction(Code::UnknownTopic));
        assert!(matches!(unknown, Sent::Refused(_)));
    }

    fn reply_to(topic: &str) -> Unsent {
        let reply = crate::reply::Reply::new(topic, "{}");
        Unsent { seq: 1, id: uuid::Uuid::nil(), key_hash: None, reply }
    }

    #[tokio::test]
    async fn who_has_a_topic_alone_keeps_no_other_topic_waiting() {
        let broker = halfmsg_kafka::EmbeddedBroker::start().unwrap();
        for topic in ["a", "b"] {
            broker.create_topic(topic, 1).unwrap();
        }
        let producer: FutureProducer = broker.config().producer().create().unwrap();
        let turns = Turns::default();
        let outlet = Outlet::Kafka(producer, turns.clone());
        let turn = turns.of("a");
        let alone = turn.write().await;
        let (to_a, to_b) = (reply_to("a"), reply_to("b"));
        let mut waiting = std::pin::pin!(outlet.send_all(vec![&to_a]));
        assert!(futures::poll!(&mut waiting).is_pending());
        let sent = tokio::time::timeout(PATIENCE, outlet.send_all(vec![&to_b])).await;
        assert!(matches!(sent.expect("nobody holds b").as_slice(), [Sent::Acknowledged]));
        assert!(futures::poll!(&mut waiting).is_pending(), "another one has it alone");
        drop(alone);
        assert!(matches!(waiting.await[..], [Sent::Acknowledged]));
        // Nothing is kept of topics that nobody sends to.
        drop((turn, turns.of("c")));
        turns.of("d");
        assert_eq!(turns.0.lock().unwrap().keys().collect::<Vec<_>>(), ["d"]);
    }

    #[tokio::test]
    async fn what_was_too_large_together_is_sent_when_nobody_else_sends_to_its_topic() {
        let (given, turns) = (Given::default(), Turns::default());
        let outlet = Outlet::Without(given.clone(), turns.clone());
        let (first, second) = (reply_to("large"), reply_to("large"));
        let turn = turns.of("large");
        let others = turn.read().await;
        let mut sending = std::pin::pin!(outlet.send_all(vec![&first, &second]));
        assert!(futures::poll!(&mut sending).is_pending());
        assert_eq!(given.lock().unwrap().len(), 2, "together");
        drop(others);
        let sent = sending.await;
        assert!(matches!(sent[..], [Sent::TooLarge(_), Sent::TooLarge(_)]));
        assert_eq!(given.lock().unwrap().len(), 4, "and each by itself");
    }

    /// What is sent is told in the order in which it was given, whatever topics it goes to.
    #[tokio::test]
    async fn each_reply_has_its_own_end() {
        let given = Given::default();
        let outlet = Outlet::Without(given.clone(), Turns::default());
        let replies = ["b", "refused", "away", "a", "b"].map(reply_to);
        let sent = outlet.send_all(replies.iter().collect()).await;
        use Sent::{Acknowledged, Away, Refused};
        let as_expected =
            matches!(sent[..], [Acknowledged, Refused(_), Away(_), Acknowledged, Acknowledged]);
        assert!(as_expected, "{:?}", given.lock().unwrap());
    }

    #[tokio::test]
    async fn a_topic_that_goes_away_is_waited_for_once() {
        let given = Given::default();
        let outlet = Outlet::Without(given.clone(), Turns::default());
        let replies = ["lost", "lost"].map(reply_to);
        let sent = outlet.send_all(replies.iter().collect()).await;
        assert!(matches!(sent[..], [Sent::Away(_), Sent::Away(_)]));
        assert_eq!(given.lock().unwrap().len(), 3, "twice together, and the first by itself");
    }

    /// As the client itself refuses them, without a broker.
    #[tokio::test]
    async fn a_topic_that_the_client_refuses_is_not_a_broker_that_is_away() {
        let producer: FutureProducer =
            rdkafka::ClientConfig::new().set("bootstrap.servers", "nobody:1").create().unwrap();
        for topic in ["t".repeat(600), "a\0b".to_owned()] {
            let sent = send_one(&producer, &reply_to(&topic)).await;
            assert!(matches!(sent, Sent::Refused(_)), "{topic}");
        }
    }
}

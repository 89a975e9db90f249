//! Where a reply goes, and what became of it. It must never call one refused that only went together with
//! one.

use std::sync::Arc;

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
    /// Whoever sends one by itself holds the lock alone: two who do so at once, as a batch and the look at what
    /// waits, would go in one request.
    Kafka(FutureProducer, Arc<RwLock<()>>),
    #[cfg(feature = "testkit")]
    Kept(Outbox),
    /// Takes everything but what goes to topics called `away` and `refused`, and notes what it was given.
    #[cfg(test)]
    Without(Given),
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
            Self::Without(given) => {
                given.lock().unwrap().push(one.reply.topic.clone());
                match one.reply.topic.as_str() {
                    "away" => Sent::Away("no leader".into()),
                    "refused" => Sent::Refused("no right".into()),
                    _ => Sent::Acknowledged,
                }
            }
        }
    }

    /// Together; those of a request that was too large once more, one by one, to find the one to
    /// blame.
    pub(super) async fn send_all(&self, unsent: Vec<&Unsent>) -> Vec<Sent> {
        let mut sent = {
            let _together = match self.lock() {
                Some(lock) => Some(lock.read().await),
                None => None,
            };
            join_all(unsent.iter().copied().map(|one| self.send(one))).await
        };
        for (one, sent) in unsent.into_iter().zip(&mut sent) {
            if matches!(sent, Sent::TooLarge(_)) {
                let _alone = match self.lock() {
                    Some(lock) => Some(lock.write().await),
                    None => None,
                };
                *sent = self.send(one).await;
            }
        }
        sent
    }

    fn lock(&self) -> Option<&RwLock<()>> {
        match self {
            Self::Kafka(_, lock) => Some(lock),
            #[cfg(any(test, feature = "testkit"))]
            _ => None,
        }
    }
}

/// What became of one reply.
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
    use super::*;

    #[test]
    fn a_request_that_is_too_large_condemns_nobody_yet() {
        for code in [Code::MessageBatchTooLarge, Code::MessageSizeTooLarge] {
            assert!(matches!(judge(&KafkaError::MessageProduction(code)), Sent::TooLarge(_)));
        }
        let unknown = judge(&KafkaError::MessageProduction(Code::UnknownTopic));
        assert!(matches!(unknown, Sent::Refused(_)));
    }

    /// As the client itself refuses them, without a broker.
    #[tokio::test]
    async fn a_topic_that_the_client_refuses_is_not_a_broker_that_is_away() {
        let producer: FutureProducer =
            rdkafka::ClientConfig::new().set("bootstrap.servers", "nobody:1").create().unwrap();
        for topic in ["t".repeat(600), "a\0b".to_owned()] {
            let one = Unsent {
                seq: 1,
                id: uuid::Uuid::nil(),
                key_hash: None,
                reply: crate::reply::Reply::new(topic.clone(), "{}"),
            };
            let sent = send_one(&producer, &one).await;
            assert!(matches!(sent, Sent::Refused(_)), "{topic}");
        }
    }
}

//! The first contact with a cluster: which brokers and replicas there are; and if nobody answers,
//! why. A client that is not let in hears of it only in an event, beside a bare timeout.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::DeliveryResult;
use rdkafka::metadata::Metadata;
use rdkafka::producer::{BaseProducer, Producer, ProducerContext};

use crate::config::KafkaConfig;
use crate::topic_error::TopicError;

/// One question. A login that is refused is told only after it.
const LOOK: Duration = Duration::from_secs(2);
/// Time to take in what else the client has said.
const TAKE_IN: Duration = Duration::from_millis(20);

/// What a cluster says about a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seen {
    /// Brokers of the cluster.
    pub(crate) brokers: usize,
    /// The fewest replicas that a partition of the topic has; `None` if there is no such topic.
    pub(crate) replicas: Option<usize>,
}

/// A client that asks.
pub(crate) struct Probe(BaseProducer<Listening>);

impl Probe {
    /// Makes the client; nothing is sent yet.
    ///
    /// # Errors
    /// [`TopicError::Client`], for properties that do not go together and files that are missing.
    pub(crate) fn new(kafka: &KafkaConfig) -> Result<Self, TopicError> {
        let mut config = kafka.admin();
        // A broker that hangs up, as one does on a client that should have logged in, is news here.
        config.set("log.connection.close", "true");
        let made = config.create_with_context(Listening::default());
        made.map(Self).map_err(TopicError::Client)
    }

    /// Looks a topic up. Blocks up to [`LOOK`], or up to the deadline if that is shorter.
    ///
    /// # Errors
    /// [`TopicError::Login`], [`TopicError::Unreachable`], [`TopicError::Forbidden`].
    pub(crate) fn look(&self, topic: &str, deadline: Duration) -> Result<Seen, TopicError> {
        match self.0.client().fetch_metadata(Some(topic), deadline.min(LOOK)) {
            Ok(metadata) => {
                self.0.context().forget();
                seen(topic, &metadata)
            }
            Err(error) => {
                self.0.poll(TAKE_IN);
                Err(self.0.context().reason(topic, &error))
            }
        }
    }
}

fn seen(topic: &str, metadata: &Metadata) -> Result<Seen, TopicError> {
    use RDKafkaErrorCode as Code;
    let brokers = metadata.brokers().len();
    let absent = Ok(Seen { brokers, replicas: None });
    let Some(found) = metadata.topics().iter().find(|found| found.name() == topic) else {
        return absent;
    };
    match found.error().map(RDKafkaErrorCode::from) {
        None if found.partitions().is_empty() => absent,
        None => {
            let replicas = found.partitions().iter().map(|one| one.replicas().len()).min();
            Ok(Seen { brokers, replicas })
        }
        Some(Code::UnknownTopicOrPartition | Code::UnknownTopic) => absent,
        Some(Code::TopicAuthorizationFailed) => {
            Err(TopicError::Forbidden { topic: topic.to_owned(), right: "Describe" })
        }
        Some(code) => Err(TopicError::Unavailable {
            topic: topic.to_owned(),
            source: KafkaError::MetadataFetch(code),
        }),
    }
}

/// Remembers what the client says of its connections.
#[derive(Default)]
struct Listening(Mutex<Said>);

#[derive(Default)]
struct Said {
    login: Option<String>,
    other: Option<String>,
}

impl Listening {
    fn said(&self) -> std::sync::MutexGuard<'_, Said> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn forget(&self) {
        *self.said() = Said::default();
    }

    /// Why a question had no answer. The client says a thing once, however often it is asked.
    fn reason(&self, topic: &str, error: &KafkaError) -> TopicError {
        let said = self.said();
        if let Some(reason) = said.login.clone() {
            return TopicError::Login { reason };
        }
        let reason = said.other.clone().unwrap_or_else(|| error.to_string());
        TopicError::Unreachable { topic: topic.to_owned(), reason }
    }
}

impl ClientContext for Listening {
    fn log(&self, _: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(facility, message, "Kafka client");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        use RDKafkaErrorCode as Code;
        let mut said = self.said();
        match error.rdkafka_error_code() {
            Some(Code::Authentication | Code::SSL | Code::SaslAuthenticationFailed) => {
                said.login = Some(reason.to_owned());
            }
            // A broker that ends a connection with a TLS alert refuses this client's certificate.
            Some(Code::BrokerTransportFailure) if reason.contains("SSL routines") => {
                said.login = Some(reason.to_owned());
            }
            // It only repeats that no broker could be reached.
            Some(Code::AllBrokersDown) => {}
            _ => said.other = Some(reason.to_owned()),
        }
    }
}

impl ProducerContext for Listening {
    type DeliveryOpaque = ();

    fn delivery(&self, _: &DeliveryResult<'_>, (): ()) {}
}

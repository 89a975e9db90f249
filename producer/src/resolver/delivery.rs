//! The clients that deliveries and parked records go through, and what their errors mean.

use std::sync::{Arc, mpsc};

use halfmsg_kafka::KafkaConfig;
use rdkafka::ClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{ProducerContext, ThreadedProducer};

use super::Input;
use super::outbox::Token;

/// Messages in one batch.
pub(crate) const BATCH: usize = 10_000;
/// A delivery report.
pub(crate) struct Ack {
    pub(crate) token: Token,
    pub(crate) result: Result<(), KafkaError>,
}

/// Sends delivery reports to the resolver; those of records that nobody waits for have no token.
pub(crate) struct OutboxContext {
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

/// An idempotent producer.
pub(crate) type Client = ThreadedProducer<OutboxContext>;

/// A client that puts at most `batch` messages into one batch.
pub(crate) fn client(
    kafka: &KafkaConfig,
    (max_record_bytes, max_items): (usize, usize),
    batch: usize,
    inputs: mpsc::Sender<Input>,
) -> Result<Arc<Client>, KafkaError> {
    let mut config = kafka.producer();
    config
        // The agreement with Java clients on which partition a key goes to.
        .set("partitioner", "murmur2_random")
        // A broker that is away holds deliveries up for as long as it takes.
        .set("message.timeout.ms", "0")
        .set("topic.metadata.propagation.max.ms", "5000")
        .set("batch.num.messages", batch.to_string())
        .set("message.max.bytes", max_record_bytes.to_string())
        .set("queue.buffering.max.messages", (2 * max_items + 1_000).to_string());
    config.create_with_context(OutboxContext { inputs }).map(Arc::new)
}

/// Who is to blame for a failed delivery.
pub(crate) enum Blame {
    /// Its topic: it is missing, or not for us.
    Topic,
    /// A message of its batch, which the broker refuses as a whole.
    Batch,
    /// Nobody that sending again would not help.
    Nobody,
}

/// Reads an error.
pub(crate) fn blame(error: &KafkaError) -> Blame {
    use RDKafkaErrorCode as Code;
    let KafkaError::MessageProduction(code) = error else { return Blame::Nobody };
    match code {
        Code::UnknownTopic
        | Code::UnknownTopicOrPartition
        | Code::UnknownPartition
        | Code::InvalidTopic => Blame::Topic,
        Code::MessageSizeTooLarge
        | Code::InvalidMessageSize
        | Code::MessageBatchTooLarge
        | Code::TopicAuthorizationFailed
        | Code::InvalidRecord
        | Code::InvalidTimestamp
        | Code::PolicyViolation => Blame::Batch,
        _ => Blame::Nobody,
    }
}

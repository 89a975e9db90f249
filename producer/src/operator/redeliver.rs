//! A second copy of a message that was delivered, for a consumer that lost the first.

use std::sync::Arc;

use halfmsg_kafka::{TopicError, partition_count};
use halfmsg_protocol::Half;
use rdkafka::producer::{FutureProducer, FutureRecord, Producer};
use serde::Serialize;
use serde_json::json;

use super::journal::Act;
use super::{OperatorClient, WRITE_DEADLINE};
use crate::TransactionId;
use crate::admin::{AdminError, OperatorRequest};
use crate::config::ProducerConfig;
use crate::resolver::delivery::delivered_headers;
use crate::resolver::query::What;
use crate::snapshot::{self, Traced, Where};

/// Where the copy stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Redelivered {
    /// The message.
    pub transaction_id: String,
    /// Its target topic.
    pub topic: String,
    /// The partition of the copy.
    pub partition: i32,
    /// The offset of the copy.
    pub offset: i64,
}

impl OperatorClient {
    /// Sends a copy of a committed and delivered message to its target again: the same key,
    /// payload, headers, timestamp and transaction id. Its HALF must still be in the log.
    ///
    /// A consumer that knows the transaction id drops the copy: halfmsg's inbox does, unless its
    /// row is gone, because the inbox's retention is over or the database was restored from before
    /// the first delivery. A consumer without an inbox acts twice. Needs force.
    ///
    /// # Errors
    /// [`AdminError::Refused`] and others.
    pub async fn redeliver(
        &self,
        id: TransactionId,
        request: OperatorRequest,
    ) -> Result<Redelivered, AdminError> {
        request.validate()?;
        // What its target refused is parked, which the log alone does not tell.
        match self.desk.look_up(id).await?.map(|looked| looked.seen.what) {
            Ok(What::Open(..)) => return Err(refused(id, "is open: commit it")),
            Ok(What::Parked(..)) => {
                return Err(refused(id, "is parked: commit or resume it"));
            }
            Ok(What::Closed(_)) | Err(_) => {}
        }
        let config = Arc::clone(&self.desk.config);
        let everywhere = Where::Everywhere;
        let look = move |look: &_| {
            let Some(traced) = snapshot::trace(&config, id, everywhere, look)? else {
                return Ok(None);
            };
            let position = snapshot::position(&config, traced.partition, look)?;
            Ok(Some((traced, position)))
        };
        let (traced, position) = self.desk.look(look).await?.ok_or(AdminError::NotFound(id))?;
        let half = deliverable(id, &traced, position)?;
        if !request.force {
            return Err(AdminError::Refused(format!(
                "{id} was delivered already: a consumer without an inbox acts on the copy again; \
                 repeat with force if that is what you want"
            )));
        }
        let config = &*self.desk.config;
        let detail = json!({
            "transaction_id": id.to_string(), "topic": half.meta.topic, "forced": true,
        });
        let act = Act::begin(config, traced.partition, "redeliver", &request, detail).await?;
        act.end(send(config, &half).await).await
    }
}

/// The message, if a copy of it does no more than the first did.
fn deliverable(id: TransactionId, traced: &Traced, position: i64) -> Result<Arc<Half>, AdminError> {
    let trimmed = "began in a part of the log that was trimmed: it cannot be sent again";
    if traced.seen(id).is_none() {
        return Err(refused(id, trimmed));
    }
    let half = traced.half.clone().ok_or_else(|| refused(id, trimmed))?;
    match traced.committed_at(id) {
        None => Err(refused(id, "is not committed: it is not delivered")),
        Some(at) if at >= position => {
            Err(refused(id, "is committed, and its first delivery is not recorded as done yet"))
        }
        Some(_) => Ok(half),
    }
}

fn refused(id: TransactionId, why: &str) -> AdminError {
    AdminError::Refused(format!("{id} {why}"))
}

async fn send(config: &ProducerConfig, half: &Half) -> Result<Redelivered, AdminError> {
    let unsent = |error: &dyn std::fmt::Display| {
        AdminError::Unavailable(format!("the copy is not acknowledged: {error}"))
    };
    let mut client = config.kafka.producer();
    client
        // As the first copy went: the same key, the same partition.
        .set("partitioner", "murmur2_random")
        .set("message.timeout.ms", WRITE_DEADLINE.as_millis().to_string())
        .set("message.max.bytes", crate::topics::parked_record_bytes(config).to_string());
    let producer: FutureProducer = client.create().map_err(|error| unsent(&error))?;
    let (probe, topic) = (producer.clone(), half.meta.topic.clone());
    let counted = tokio::task::spawn_blocking(move || {
        partition_count(probe.client(), &topic, WRITE_DEADLINE)
    });
    match counted.await {
        Ok(Ok(_)) => {}
        Ok(Err(error @ TopicError::Unknown(_))) => {
            return Err(AdminError::Refused(error.to_string()));
        }
        Ok(Err(error)) => return Err(AdminError::Unreachable(error.to_string())),
        Err(error) => return Err(AdminError::Incomplete(error.to_string())),
    }
    let mut record: FutureRecord<'_, [u8], [u8]> = FutureRecord::to(&half.meta.topic)
        .headers(delivered_headers(half))
        .timestamp(half.meta.timestamp_ms);
    if let Some(key) = &half.body.key {
        record = record.key(key.as_ref());
    }
    if let Some(payload) = &half.body.payload {
        record = record.payload(payload.as_ref());
    }
    let sent = producer.send(record, WRITE_DEADLINE).await;
    let sent = sent.map_err(|(error, _)| unsent(&error))?;
    let (partition, offset) = (sent.partition, sent.offset);
    Ok(Redelivered {
        transaction_id: half.meta.id.to_string(),
        topic: half.meta.topic.clone(),
        partition,
        offset,
    })
}

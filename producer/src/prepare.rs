//! Stores a half message, or says why not: nothing else may have happened then.

use std::sync::Arc;
use std::time::Instant;

use halfmsg_protocol::{HalfMeta, codec};
use tokio::sync::OwnedSemaphorePermit;

use crate::error::{Invalid, PrepareError};
use crate::log::{AppendError, Way, Written};
use crate::message::{HalfMessage, Message};
use crate::producer::TransactionProducer;
use crate::{TransactionId, clock, spans};

/// Bytes of one store partition that may await a decision on the embedded broker, which keeps
/// 5 MiB and forgets what is older.
pub(crate) const EMBEDDED_BUDGET_BYTES: u64 = 4 * 1_024 * 1_024;

impl TransactionProducer {
    pub(crate) async fn prepare(
        &self,
        purpose: &str,
        message: &mut Message,
    ) -> Result<(HalfMessage, OwnedSemaphorePermit), PrepareError> {
        let began = Instant::now();
        let prepared = self.try_prepare(purpose, message).await;
        match &prepared {
            Ok(_) => self.inner.metrics.prepared(began.elapsed()),
            Err(error) => self.inner.metrics.prepare_failed(error),
        }
        prepared
    }

    async fn try_prepare(
        &self,
        purpose: &str,
        message: &mut Message,
    ) -> Result<(HalfMessage, OwnedSemaphorePermit), PrepareError> {
        let until = self.admit(&[message])?;
        let place = self.places(1, until).await?;
        let half = self.store(purpose, message, None, until).await?;
        Ok((half, place))
    }

    /// Checks what needs no waiting; until when the rest must be done.
    pub(crate) fn admit(&self, messages: &[&Message]) -> Result<Instant, PrepareError> {
        let config = &self.inner.config;
        // Closed by the shutdown; one atomic load, where the token takes a lock.
        if self.inner.tasks.is_closed() {
            return Err(PrepareError::ShuttingDown);
        }
        let local = config.prepare_deadline + config.local_deadline;
        for message in messages {
            message.validate(config.max_message_bytes, local, config.longest_check_after())?;
        }
        Ok(Instant::now() + config.prepare_deadline)
    }

    /// Stores one half message, and tells of it. With `local`, it is one of several of that local transaction.
    /// The message is lent, because each future that it is moved into keeps a place for it; after
    /// it, it may be without what it carried.
    pub(crate) async fn store(
        &self,
        purpose: &str,
        message: &mut Message,
        local: Option<TransactionId>,
        until: Instant,
    ) -> Result<HalfMessage, PrepareError> {
        let inner = &self.inner;
        let config = &inner.config;
        self.find_target(&message.topic, until).await?;
        let partition = inner.partitioner.choose(message.stays_with(), inner.partitions);
        self.check_budget(partition)?;
        if let Some(reason) = inner.shared.stuck(partition) {
            let deadline = config.prepare_deadline;
            return Err(PrepareError::Unavailable { deadline, reason, transaction_id: None });
        }
        if let Some(id) = message.id.filter(|id| !inner.used.take(*id)) {
            return Err(Invalid::IdUsed(id).into());
        }
        let id = message.id.unwrap_or_else(|| self.new_transaction_id());
        let span = spans::create(purpose, id, message);
        // What is alive while it waits is held by each of the many that wait.
        let (sent, purpose, topic) = {
            let meta = HalfMeta {
                id,
                application: config.application.clone(),
                purpose: purpose.to_owned(),
                topic: std::mem::take(&mut message.topic),
                timestamp_ms: message.timestamp_ms.unwrap_or_else(clock::wall_ms),
                check_after: message.check_after,
                local_transaction: local,
            };
            // Of an id that is given twice, the second HALF stands behind the first.
            let is_given = message.id.is_some();
            let way = if is_given { Way::Prompt } else { self.way(local.is_some()) };
            let packed = codec::encode_half(&meta);
            let sent = inner.log.sent(way, partition, &packed, message.part());
            (sent, meta.purpose, meta.topic)
        };
        let appended = inner.log.acked(&sent, until).await;
        let Written { offset, appended_ms } = match appended {
            Ok(written) => written,
            Err(error) => {
                let error = self.not_stored(id, error);
                spans::created(span, partition, Err(&error.to_string()));
                return Err(error);
            }
        };
        spans::created(span, partition, Ok(offset));
        let half = HalfMessage {
            transaction_id: id,
            local_transaction_id: local.unwrap_or(id),
            purpose,
            topic,
            key: message.key.take(),
            headers: std::mem::take(&mut message.headers),
            payload: message.payload.take(),
            partition,
            offset,
            epoch: 0,
            attempts: 0,
        };
        inner.life.stored(&half, appended_ms);
        Ok(half)
    }

    fn not_stored(&self, id: TransactionId, error: AppendError) -> PrepareError {
        match error {
            AppendError::QueueFull => {
                // It was never sent.
                self.inner.used.give_back(id);
                PrepareError::Backpressure(error.to_string())
            }
            AppendError::Failed(reason) => PrepareError::Unavailable {
                deadline: self.inner.config.prepare_deadline,
                reason,
                transaction_id: Some(id),
            },
        }
    }

    /// Places among the transactions under way, one for each message. They are waited for half of the time: who
    /// gets one later than that from a slow broker stores a half message and gives it up at once, and so does
    /// the next, who has waited as long; what nobody waits for fills the queue.
    pub(crate) async fn places(
        &self,
        messages: u32,
        until: Instant,
    ) -> Result<OwnedSemaphorePermit, PrepareError> {
        let acquired = Arc::clone(&self.inner.places).acquire_many_owned(messages);
        let left = until.saturating_duration_since(Instant::now());
        match tokio::time::timeout(left / 2, acquired).await {
            Ok(Ok(place)) => Ok(place),
            Ok(Err(_)) => Err(PrepareError::ShuttingDown),
            Err(_) => {
                let open = self.inner.config.max_transactions;
                Err(PrepareError::Backpressure(format!("{open} transactions are open")))
            }
        }
    }

    async fn find_target(&self, topic: &str, until: Instant) -> Result<(), PrepareError> {
        self.inner.targets.find(topic, until).await.map_err(|error| match error {
            halfmsg_kafka::TopicError::Unknown(topic) => PrepareError::UnknownTopic(topic),
            error => PrepareError::Unavailable {
                deadline: self.inner.config.prepare_deadline,
                reason: error.to_string(),
                transaction_id: None,
            },
        })
    }

    fn check_budget(&self, partition: i32) -> Result<(), PrepareError> {
        let retained = self.inner.shared.retained(partition);
        if self.inner.config.kafka.embedded && retained > EMBEDDED_BUDGET_BYTES {
            let what = format!(
                "{retained} bytes of partition {partition} await decisions, and the embedded \
                 broker keeps no more than {EMBEDDED_BUDGET_BYTES}"
            );
            return Err(PrepareError::Backpressure(what));
        }
        Ok(())
    }
}

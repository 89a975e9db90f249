//! The product report: how many of each product were ordered, confirmed, rejected and cancelled,
//! kept from the events of flow B by a subscriber of its own. It reads no table of orders, as a
//! service of somebody else would not.
//!
//! Each event is a fact about an order that is learned once, and the sums follow from the facts: so
//! events may come in any order and any number of times. A start that finds the report empty begins
//! a new generation: another consumer group with an inbox of its own, which reads the topics from
//! the beginning of what they keep. A replica whose generation is over changes nothing any more.
//!
//! # Layout
//! - this file: reading the topics
//! - [`fold`]: facts and sums, pure
//! - [`store`]: the tables

pub mod fold;
pub mod store;

use std::time::Duration;

use async_trait::async_trait;
use halfmsg_consumer::{
    Consumer, ConsumerBuilder, ConsumerConfig, ConsumerError, ConsumerFamilies, Context,
    HandlerError, MessageHandler, ReceivedMessage,
};
use halfmsg_service_kit::Letters;
use serde::Deserialize;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::answers::{OutboundPayload, decode, failed};
use crate::metrics::OrderMetrics;
use crate::model::OrderId;
use crate::payload::{CREATED, CreatedPayload, ROLLBACK, RollbackReason};
use crate::place::Topics;
use fold::{Ending, Fact};
use store::ReportStore;

/// Between two looks whether the generation is still this one, and after a failure.
const WATCH_INTERVAL: Duration = Duration::from_secs(2);
/// Messages in one transaction.
const MAX_BATCH: usize = 200;
/// One look at the database.
const DEADLINE: Duration = Duration::from_secs(5);

/// Keeps the report.
pub struct Reporter {
    /// How its consumers are to be run; the subscriber's name is the beginning of theirs.
    pub consumer: ConsumerConfig,
    /// What they count in, by the beginning of their names: generations come and go.
    pub families: ConsumerFamilies,
    /// The topics.
    pub topics: Topics,
    /// Where the report is.
    pub store: ReportStore,
    /// What is counted.
    pub metrics: OrderMetrics,
    /// Where the dead letters of the generation that is read are listed.
    pub letters: Letters,
}

impl Reporter {
    /// Reads the topics until `shutdown`. What is away is waited for; a topic that cannot be used
    /// is told in the log from time to time, and nothing but the report suffers.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut read = None;
        while !shutdown.is_cancelled() {
            match timeout(DEADLINE, self.begin(read)).await {
                Ok(Ok(generation)) => {
                    read = Some(generation);
                    self.read(generation, &shutdown).await;
                }
                Ok(Err(error)) => tracing::warn!(%error, "the report waits for its database"),
                Err(_) => tracing::warn!("the report waits for its database"),
            }
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = sleep(WATCH_INTERVAL) => {}
            }
        }
    }

    /// Each replica forgets the generation that it has read: the last of them leaves nothing.
    async fn begin(&self, read: Option<Uuid>) -> Result<Uuid, sea_orm::DbErr> {
        let begun = self.store.begin().await?;
        if begun.former.is_some() {
            tracing::info!(generation = %begun.generation, "the report is made anew");
        }
        let over = begun.former.into_iter().chain(read).filter(|of| *of != begun.generation);
        for former in over {
            self.store.forget_subscriber(&self.subscriber(former)).await?;
        }
        Ok(begun.generation)
    }

    fn subscriber(&self, generation: Uuid) -> String {
        format!("{}.{}", self.consumer.subscriber, generation.simple())
    }

    /// Until shutdown, the end of this generation, or a failure.
    async fn read(&self, generation: Uuid, shutdown: &CancellationToken) {
        let stop = shutdown.child_token();
        let subscriber = self.subscriber(generation);
        let handler = |kind| ReportHandler { kind, generation, metrics: self.metrics.clone() };
        let config = ConsumerConfig { subscriber, max_batch: MAX_BATCH, ..self.consumer.clone() };
        let consumer = Consumer::builder(config)
            .metrics(self.families.of(&self.consumer.subscriber))
            .subscribe(&self.topics.created, handler(Kind::Created))
            .subscribe(&self.topics.outbound, handler(Kind::Outbound))
            .subscribe(&self.topics.rollback, handler(Kind::Rollback));
        let reading = async {
            if let Err(error) = self.consume(consumer, &stop).await {
                tracing::error!(%error, "the report is not kept");
            }
            stop.cancel();
        };
        let watching = async {
            self.until_over(generation, &stop).await;
            stop.cancel();
        };
        tokio::join!(reading, watching);
    }

    async fn consume(
        &self,
        consumer: ConsumerBuilder,
        stop: &CancellationToken,
    ) -> Result<(), ConsumerError> {
        let consumer = consumer.build()?;
        let _listed = self.letters.list_while(consumer.dead_letters());
        consumer.run(stop.clone()).await
    }

    async fn until_over(&self, generation: Uuid, stop: &CancellationToken) {
        while !stop.is_cancelled() {
            tokio::select! {
                () = stop.cancelled() => return,
                () = sleep(WATCH_INTERVAL) => {}
            }
            match timeout(DEADLINE, self.store.generation()).await {
                Ok(Ok(current)) if current != Some(generation) => return,
                _ => {}
            }
        }
    }
}

/// Which topic it is.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind {
    Created,
    Outbound,
    Rollback,
}

/// Learns what the events of a topic say.
pub(crate) struct ReportHandler {
    pub(crate) kind: Kind,
    pub(crate) generation: Uuid,
    pub(crate) metrics: OrderMetrics,
}

/// What the report reads of `stock.rollback`.
#[derive(Deserialize)]
struct Rollback {
    order_id: OrderId,
    reason: Option<RollbackReason>,
}

impl Kind {
    /// What an event says; nothing if it is of no interest here.
    fn fact(self, message: &ReceivedMessage) -> Result<Option<(OrderId, Fact)>, HandlerError> {
        Ok(match self {
            Self::Created => {
                let payload: CreatedPayload = decode(message, CREATED)?;
                Some((payload.order_id, Fact::Ordered(payload.items)))
            }
            Self::Outbound => {
                let answer = OutboundPayload::of(message)?;
                let ending =
                    if answer.refusal.is_none() { Ending::Confirmed } else { Ending::Rejected };
                Some((answer.order_id, Fact::Answered(ending)))
            }
            // Orders of flow A that failed come this way too; they were never announced.
            Self::Rollback => {
                let Rollback { order_id, reason } = decode(message, ROLLBACK)?;
                let cancelled = reason == Some(RollbackReason::OrderCancelled);
                cancelled.then_some((order_id, Fact::Cancelled))
            }
        })
    }
}

#[async_trait]
impl MessageHandler for ReportHandler {
    async fn handle(
        &self,
        context: &Context<'_>,
        batch: &[ReceivedMessage],
    ) -> Result<(), HandlerError> {
        let mut facts = Vec::with_capacity(batch.len());
        for message in batch {
            facts.extend(self.kind.fact(message)?);
        }
        let tx = context.transaction();
        // Held to the end of the transaction: the report has one writer at a time, so that batches
        // of several topics cannot wait for each other in a circle.
        if store::lock_in_tx(tx).await? != Some(self.generation) {
            tracing::info!(generation = %self.generation, "this generation of the report is over");
            return Ok(());
        }
        let learned = store::learn_in_tx(tx, facts).await.map_err(failed)?;
        let metrics = self.metrics.clone();
        context.after_commit(move || metrics.reported(learned));
        Ok(())
    }
}

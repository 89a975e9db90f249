//! The product report: how many of each product were ordered, confirmed, rejected and cancelled,
//! kept from the events of flow B by a subscriber of its own. It reads no table of orders, as a
//! service of somebody else would not.
//!
//! Each event is a fact about an order that is learned once, and the sums follow from the facts: so
//! events may come in any order and any number of times. Whoever finds that one of the report's tables was
//! emptied, or products taken out of it, at the start or while it runs, begins a new generation: another
//! consumer group with an inbox of its own, which reads the topics from the beginning of what they
//! keep. A replica whose generation is over changes nothing any more.
//!
//! # Layout
//! - this file: reading the topics
//! - [`fold`]: facts and sums, pure
//! - [`store`]: the tables
//! - `cleaning`: what former generations have left goes away
//! - [`trouble`]: what `/health/ready` warns of

mod cleaning;
pub mod fold;
pub mod store;
pub mod trouble;

use std::time::Duration;

use async_trait::async_trait;
use halfmsg_consumer::{
    Consumer, ConsumerConfig, ConsumerFamilies, Context, HandlerError, Health, MessageHandler,
    ReceivedMessage,
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
use store::{Current, ReportStore};
use trouble::{Part, Trouble};

/// Between two looks whether the generation is still this one, and whole; and after a failure.
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
    /// What is told of it where the service says whether it is ready.
    pub trouble: Trouble,
}

impl Reporter {
    /// Reads the topics, and cleans up behind former generations, until `shutdown`. What is away is
    /// waited for; a topic that cannot be used is told in the log and by `/health/ready`, and nothing
    /// but the report suffers.
    pub async fn run(self, shutdown: CancellationToken) {
        let subscriber = &self.consumer.subscriber;
        let cleaning = cleaning::run(&self.store, subscriber, &self.trouble, &shutdown);
        tokio::join!(self.keep(&shutdown), cleaning);
    }

    async fn keep(&self, shutdown: &CancellationToken) {
        while !shutdown.is_cancelled() {
            match timeout(DEADLINE, self.store.begin()).await {
                Ok(Ok(begun)) => {
                    self.trouble.is_over(Part::Beginning);
                    if begun.former.is_some() {
                        tracing::info!(generation = %begun.generation, "the report is made anew");
                    }
                    self.read(begun.generation, shutdown).await;
                }
                Ok(Err(error)) => self.trouble.is(Part::Beginning, &error),
                Err(_) => self.trouble.is(Part::Beginning, &late()),
            }
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = sleep(WATCH_INTERVAL) => {}
            }
        }
    }

    /// Until shutdown, the end of this generation, a report that is not whole, or a failure.
    async fn read(&self, generation: Uuid, shutdown: &CancellationToken) {
        let stop = shutdown.child_token();
        let subscriber = store::subscriber(&self.consumer.subscriber, generation);
        let handler = |kind| ReportHandler { kind, generation, metrics: self.metrics.clone() };
        let config = ConsumerConfig { subscriber, max_batch: MAX_BATCH, ..self.consumer.clone() };
        let consumer = Consumer::builder(config)
            .metrics(self.families.of(&self.consumer.subscriber))
            .subscribe(&self.topics.created, handler(Kind::Created))
            .subscribe(&self.topics.outbound, handler(Kind::Outbound))
            .subscribe(&self.topics.rollback, handler(Kind::Rollback));
        let consumer = match consumer.build() {
            Ok(consumer) => consumer,
            Err(error) => return self.trouble.is(Part::Reading, &error),
        };
        let health = consumer.health();
        let reading = async {
            let _listed = self.letters.list_while(consumer.dead_letters());
            match consumer.run(stop.clone()).await {
                Ok(()) => self.trouble.is_over(Part::Reading),
                Err(error) => self.trouble.is(Part::Reading, &error),
            }
            stop.cancel();
        };
        let watching = async {
            self.until_over(generation, &health, &stop).await;
            stop.cancel();
        };
        tokio::join!(reading, watching);
        self.trouble.is_over(Part::Consuming);
    }

    async fn until_over(&self, generation: Uuid, health: &Health, stop: &CancellationToken) {
        while !stop.is_cancelled() {
            tokio::select! {
                () = stop.cancelled() => return,
                () = sleep(WATCH_INTERVAL) => {}
            }
            // It has been read for as long.
            self.trouble.is_over(Part::Reading);
            match health.check() {
                Ok(()) => self.trouble.is_over(Part::Consuming),
                Err(error) => self.trouble.is(Part::Consuming, &error),
            }
            match timeout(DEADLINE, self.store.whole_generation()).await {
                Ok(Ok(current)) if current != Some(generation) => return,
                Ok(Ok(_)) => self.trouble.is_over(Part::Beginning),
                Ok(Err(error)) => self.trouble.is(Part::Beginning, &error),
                Err(_) => self.trouble.is(Part::Beginning, &late()),
            }
        }
    }
}

/// What is told of a look at the database that took too long.
fn late() -> String {
    format!("no answer within {DEADLINE:?}")
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
        let current = store::lock_in_tx(tx).await?;
        let current = current.filter(|current| current.generation == self.generation);
        let Some(Current { reading, .. }) = current else {
            tracing::info!(generation = %self.generation, "this generation of the report is over");
            return Ok(());
        };
        let learned = store::learn_in_tx(tx, reading, facts).await.map_err(failed)?;
        let metrics = self.metrics.clone();
        context.after_commit(move || metrics.reported(learned));
        Ok(())
    }
}

//! Puts a consumer together.

use std::collections::HashMap;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::{Consumer, ConsumerError, ConsumerHandle};
use crate::config::ConsumerConfig;
use crate::deliver::Deliverer;
use crate::handler::MessageHandler;
use crate::health::Health;
use crate::metrics::{ConsumerFamilies, ConsumerMetrics};
use crate::scheduler::Wake;
use crate::sender::Sender;

/// A consumer that is being put together.
pub struct ConsumerBuilder {
    pub(super) config: ConsumerConfig,
    pub(super) handlers: HashMap<String, Arc<dyn MessageHandler>>,
    pub(super) metrics: Option<ConsumerMetrics>,
}

impl ConsumerBuilder {
    /// Gives the messages of a topic to a handler; a second handler of a topic replaces the first.
    #[must_use]
    pub fn subscribe(mut self, topic: impl Into<String>, handler: impl MessageHandler) -> Self {
        self.handlers.insert(topic.into(), Arc::new(handler));
        self
    }

    /// Counts in these, so that several consumers of a process are registered together; else in some
    /// of its own, by the subscriber's name.
    #[must_use]
    pub fn metrics(mut self, metrics: ConsumerMetrics) -> Self {
        self.metrics = Some(metrics);
        self
    }

    /// The consumer, not yet running.
    ///
    /// # Errors
    /// [`ConsumerError::Config`], [`ConsumerError::Kafka`], [`ConsumerError::NoTopic`].
    pub fn build(self) -> Result<Consumer, ConsumerError> {
        if let Some(mistake) = self.config.mistake() {
            return Err(ConsumerError::Config(mistake));
        }
        self.config.kafka.validate()?;
        if self.handlers.is_empty() {
            return Err(ConsumerError::NoTopic);
        }
        let subscriber = &self.config.subscriber;
        let metrics = self.metrics.unwrap_or_else(|| ConsumerFamilies::default().of(subscriber));
        let deliverer = Arc::new(Deliverer {
            database: self.config.database.clone(),
            subscriber: self.config.subscriber.clone(),
            inbox_by_key: self.config.inbox_per_key.is_some(),
            handlers: self.handlers,
            attempt_deadline: self.config.attempt_deadline,
            key_order: self.config.key_order,
            metrics: metrics.clone(),
        });
        let sender = Arc::new(Sender::new(
            self.config.kafka.clone(),
            self.config.database.clone(),
            self.config.subscriber.clone(),
            metrics.clone(),
        ));
        Ok(Consumer {
            config: self.config,
            deliverer,
            sender,
            metrics,
            health: Health::starting(),
            handle: ConsumerHandle::default(),
            wake: Wake::default(),
        })
    }

    /// Builds and runs.
    ///
    /// # Errors
    /// As [`ConsumerBuilder::build`] and [`Consumer::run`].
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), ConsumerError> {
        self.build()?.run(shutdown).await
    }
}

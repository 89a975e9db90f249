//! What can be watched.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Counters and gauges of one consumer. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct ConsumerMetrics {
    pub(crate) messages: Counter,
    pub(crate) duplicates: Counter,
    pub(crate) retries: Counter,
    pub(crate) dead_letters: Counter,
    pub(crate) lag_records: Gauge,
    pub(crate) paused: Gauge,
}

impl ConsumerMetrics {
    /// Registers all of them under `halfmsg_consumer_…`.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("halfmsg_consumer");
        registry.register("messages", "Messages that had their effect", self.messages.clone());
        registry.register(
            "duplicates",
            "Messages skipped because the inbox had them",
            self.duplicates.clone(),
        );
        registry.register("retries", "Attempts that failed", self.retries.clone());
        registry.register("dead_letters", "Messages given up on", self.dead_letters.clone());
        registry.register(
            "lag_records",
            "Records behind the end of this replica's partitions, every 5 s",
            self.lag_records.clone(),
        );
        registry.register(
            "paused",
            "1 while the database is away or a batch is slow",
            self.paused.clone(),
        );
    }

    /// Messages that had their effect.
    pub fn messages(&self) -> u64 {
        self.messages.get()
    }

    /// Messages skipped because the inbox had them.
    pub fn duplicates(&self) -> u64 {
        self.duplicates.get()
    }

    /// Attempts that failed.
    pub fn retries(&self) -> u64 {
        self.retries.get()
    }

    /// Messages given up on.
    pub fn dead_letters(&self) -> u64 {
        self.dead_letters.get()
    }
}

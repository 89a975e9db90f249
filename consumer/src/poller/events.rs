//! What librdkafka tells from within a poll: rebalances, the end of commits, the lag.
//!
//! It must never block: it runs in the poller's thread, inside a call of the client.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rdkafka::TopicPartitionList;
use rdkafka::client::ClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext, Rebalance};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::statistics::Statistics;

use crate::health::{Cause, Failing, Health};
use crate::metrics::ConsumerMetrics;

/// What librdkafka tells from within a poll.
pub(super) struct Events {
    pub(super) generation: Arc<AtomicU64>,
    pub(super) paused: AtomicBool,
    /// The broker said that this client has no right to the group or a topic.
    pub(super) denied: AtomicBool,
    pub(super) metrics: ConsumerMetrics,
    pub(super) health: Health,
    pub(super) commits: Failing,
}

impl ClientContext for Events {
    fn stats(&self, statistics: Statistics) {
        // Nothing is fetched then: these figures stand still, and `ask_for_lag` has better ones.
        if self.paused.load(Ordering::Acquire) {
            return;
        }
        for topic in statistics.topics.values() {
            for (partition, found) in &topic.partitions {
                // What was given to the worker, else where fetching begins.
                let taken =
                    if found.app_offset >= 0 { found.app_offset } else { found.next_offset };
                // -1 is the client's own partition; others are another replica's.
                let is_ours =
                    *partition >= 0 && found.desired && taken >= 0 && found.ls_offset >= 0;
                let lag = is_ours.then(|| (found.ls_offset - taken).max(0));
                self.metrics.lag_records.set(&topic.topic, *partition, lag);
            }
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "Kafka client");
    }
}

impl ConsumerContext for Events {
    fn pre_rebalance(&self, _: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        // From here on nothing that was fetched before may be committed.
        self.generation.fetch_add(1, Ordering::AcqRel);
        self.metrics.lag_records.clear();
        self.commits.passed(&self.health, Cause::Offsets);
        tracing::debug!(?rebalance, "rebalance");
    }

    fn post_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        let Rebalance::Assign(partitions) = rebalance else { return };
        if self.denied.swap(false, Ordering::AcqRel) {
            self.health.good(Cause::Client);
        }
        // Said either way: librdkafka remembers that a partition was paused when it went away.
        let done = if self.paused.load(Ordering::Acquire) {
            consumer.pause(partitions)
        } else {
            consumer.resume(partitions)
        };
        if let Err(error) = done {
            tracing::warn!(%error, "new partitions are not paused or resumed");
        }
    }

    fn commit_callback(&self, result: KafkaResult<()>, _: &TopicPartitionList) {
        self.committed(result);
    }
}

impl Events {
    /// Not lost: a later commit covers it, or the inbox skips the repetition.
    pub(super) fn committed(&self, result: KafkaResult<()>) {
        match result {
            Ok(()) => self.commits.passed(&self.health, Cause::Offsets),
            Err(error) => {
                tracing::debug!(%error, "offsets not committed");
                let text = format!("offsets cannot be committed: {error}");
                self.commits.failed(&self.health, Cause::Offsets, text);
            }
        }
    }
}

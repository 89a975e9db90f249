//! What librdkafka tells from within a poll: rebalances, what is committed, the lag.
//!
//! It must never block: it runs in the poller's thread, inside a call of the client.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rdkafka::client::ClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext, Rebalance};
use rdkafka::error::KafkaError;
use rdkafka::statistics::Statistics;

use crate::health::{Cause, Failing, Health};
use crate::metrics::ConsumerMetrics;
use crate::poller::denied::Denied;
use crate::poller::told::Told;
use crate::poller::unconfirmed::{Place, Unconfirmed};

/// What librdkafka tells from within a poll.
pub(super) struct Events {
    pub(super) generation: Arc<AtomicU64>,
    pub(super) paused: AtomicBool,
    pub(super) denied: Denied,
    /// What is subscribed to.
    pub(super) topics: Vec<String>,
    pub(super) metrics: ConsumerMetrics,
    pub(super) health: Health,
    pub(super) commits: Failing,
    pub(super) unconfirmed: Unconfirmed,
    pub(super) told: Told,
}

impl ClientContext for Events {
    fn stats_raw(&self, statistics: &[u8]) {
        match serde_json::from_slice(statistics) {
            Ok(statistics) => self.stats(statistics),
            Err(error) => {
                tracing::warn!(%error, "the client's figures cannot be read: the lag is not known")
            }
        }
    }

    fn stats(&self, statistics: Statistics) {
        self.hold_against(&statistics);
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
        self.unconfirmed.clear();
        self.told.clear();
        self.metrics.unconfirmed_partitions.set(0);
        self.commits.passed(&self.health, Cause::Offsets);
        tracing::debug!(?rebalance, "rebalance");
    }

    fn post_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        let Rebalance::Assign(partitions) = rebalance else { return };
        let elements = partitions.elements();
        let is_assigned = |topic: &String| elements.iter().any(|one| one.topic() == topic);
        if self.denied.assigned(self.topics.iter().all(is_assigned)) {
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
}

impl Events {
    /// What was told the coordinator, against what it has by the client's figures. What is missing is not
    /// lost: a later commit covers it, or the inbox skips the repetition.
    fn hold_against(&self, statistics: &Statistics) {
        let confirmed = |(topic, partition): &Place| {
            let found = statistics.topics.get(topic)?.partitions.get(partition)?;
            Some(found.committed_offset)
        };
        let missing = self.told.look(confirmed);
        self.metrics.unconfirmed_partitions.set(i64::try_from(missing.len()).unwrap_or(i64::MAX));
        let Some((topic, partition)) = missing.first() else {
            return self.commits.passed(&self.health, Cause::Offsets);
        };
        let text = format!(
            "the group's coordinator does not take the offsets of {} partitions, {topic}[{partition}] \
             among them: after a restart much would be read again",
            missing.len()
        );
        self.commits.failed(&self.health, Cause::Offsets, text);
    }
}

//! The store's consumer and its context: partitions come and go through the group, and the thread
//! hears of it between two polls, so that it can finish what is under way first.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{ClientContext, Statistics, TopicPartitionList};

use crate::config::{Assignment, ProducerConfig};
use crate::metrics::Metrics;

/// Finishing what is under way before partitions go to another replica.
pub(crate) const REVOKE_DEADLINE: Duration = Duration::from_secs(2);

/// A change of the partitions that are ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    /// These are ours; the group waits until they are assigned.
    Assigned(Vec<i32>),
    /// None is ours any more; the group waits until they are given up.
    Revoked,
}

/// How often librdkafka computes the lag, in milliseconds.
const STATISTICS_MILLIS: &str = "5000";

/// Callbacks of the store's consumer.
#[derive(Default)]
pub(crate) struct StoreContext {
    metrics: Metrics,
    changes: Mutex<Vec<Change>>,
    closing: AtomicBool,
}

impl StoreContext {
    pub(crate) fn take_changes(&self) -> Vec<Change> {
        std::mem::take(&mut *self.changes.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// From now on partitions are given up at once when the group asks for them.
    pub(crate) fn close(&self) {
        self.closing.store(true, Ordering::Relaxed);
    }

    fn note(&self, change: Change) {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner).push(change);
    }
}

impl ClientContext for StoreContext {
    fn stats(&self, statistics: Statistics) {
        for topic in statistics.topics.values() {
            for (partition, found) in &topic.partitions {
                // What was read, else where reading begins.
                let read = if found.app_offset >= 0 { found.app_offset } else { found.next_offset };
                // -1 is the client's own partition; others are another replica's.
                let is_ours = *partition >= 0 && found.desired && read >= 0 && found.hi_offset >= 0;
                let lag = is_ours.then(|| (found.hi_offset - read).max(0));
                self.metrics.lag(*partition, lag);
            }
        }
    }
}

impl ConsumerContext for StoreContext {
    fn rebalance(
        &self,
        consumer: &BaseConsumer<Self>,
        code: RDKafkaRespErr,
        partitions: &mut TopicPartitionList,
    ) {
        match code {
            _ if self.closing.load(Ordering::Relaxed) => {
                if let Err(error) = consumer.unassign() {
                    tracing::debug!(%error, "giving partitions up while closing");
                }
            }
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => {
                self.note(Change::Assigned(partitions_of(partitions)));
            }
            _ => self.note(Change::Revoked),
        }
    }
}

/// The partition numbers of a list.
fn partitions_of(list: &TopicPartitionList) -> Vec<i32> {
    list.elements().iter().map(|element| element.partition()).collect()
}

/// Gives the consumer these partitions and no others.
///
/// librdkafka ends the process (an assertion in `rd_kafka_assignment_partition_stopped`) if a
/// partition is taken from it again while it still waits for the end of the fetching that the last
/// assignment has stopped. That end is queued before the answer to any later question, so two
/// questions are asked here before the next assignment can come.
pub(crate) fn assign<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    partitions: &TopicPartitionList,
) -> Result<(), KafkaError> {
    let assigned = consumer.assign(partitions);
    settle(consumer);
    assigned
}

/// Takes all partitions from the consumer; see [`assign`].
pub(crate) fn unassign<C: ConsumerContext>(consumer: &BaseConsumer<C>) -> Result<(), KafkaError> {
    let unassigned = consumer.unassign();
    settle(consumer);
    unassigned
}

fn settle<C: ConsumerContext>(consumer: &BaseConsumer<C>) {
    for _ in 0..2 {
        if let Err(error) = consumer.assignment() {
            tracing::debug!(%error, "asking for the assignment");
        }
    }
}

/// Bytes that the store's consumer reads in advance, of all partitions.
pub(super) const READ_AHEAD_BYTES: usize = 16 * 1_024 * 1_024;

/// The store's consumer. Offsets are always given: one that is outside the log is an error, and
/// never a silent jump.
pub(crate) fn consumer(
    config: &ProducerConfig,
    metrics: Metrics,
) -> Result<Arc<BaseConsumer<StoreContext>>, KafkaError> {
    let mut client = config.kafka.consumer(&config.store_topic());
    client
        .set("enable.partition.eof", "true")
        .set("statistics.interval.ms", STATISTICS_MILLIS)
        .set("auto.offset.reset", "error")
        // What is fetched in advance is held in memory.
        .set("queued.max.messages.kbytes", (READ_AHEAD_BYTES / 1_024).to_string())
        // Giving all partitions up before others come is what the resolver is made for.
        .set("group.protocol", "classic")
        .set("partition.assignment.strategy", "range,roundrobin");
    if let (Assignment::Shared, Some(id)) = (config.assignment, &config.instance_id) {
        client.set("group.instance.id", id);
    }
    Ok(Arc::new(client.create_with_context(StoreContext { metrics, ..StoreContext::default() })?))
}

#[cfg(test)]
mod tests {
    use halfmsg_kafka::EmbeddedBroker;
    use rdkafka::Offset;

    use super::*;

    /// Without the questions in between the client ends the process at once.
    #[test]
    fn assignments_may_follow_each_other_at_once() {
        let broker = EmbeddedBroker::start().expect("a loopback port");
        broker.create_topic("t", 4).expect("a topic");
        let consumer: BaseConsumer = broker.config().consumer("g").create().expect("a client");
        consumer.fetch_metadata(Some("t"), REVOKE_DEADLINE).expect("the topic is known");
        let mut all = TopicPartitionList::new();
        for partition in 0..4 {
            all.add_partition_offset("t", partition, Offset::Beginning).expect("an offset");
        }
        for round in 0..200 {
            assign(&consumer, &all).expect("assigned");
            if round % 3 == 0 {
                unassign(&consumer).expect("taken back");
            }
            drop(consumer.poll(Duration::from_millis(round % 4)));
        }
        assert_eq!(consumer.assignment().expect("an answer").count(), 4);
    }
}

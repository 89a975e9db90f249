//! The store's consumer and its context: partitions come and go through the group, and the thread
//! hears of it between two polls, so that it can finish what is under way first.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{ClientContext, TopicPartitionList};

use crate::config::{Assignment, ProducerConfig};

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

/// Callbacks of the store's consumer.
#[derive(Default)]
pub(crate) struct StoreContext {
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

impl ClientContext for StoreContext {}

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

/// The store's consumer. Offsets are always given: one that is outside the log is an error, and
/// never a silent jump.
pub(crate) fn consumer(
    config: &ProducerConfig,
) -> Result<Arc<BaseConsumer<StoreContext>>, KafkaError> {
    let mut client = config.kafka.consumer(&config.store_topic());
    client
        .set("enable.partition.eof", "true")
        .set("auto.offset.reset", "error")
        // What is fetched in advance is held in memory.
        .set("queued.max.messages.kbytes", "32768")
        // A long replay of one partition waits for as few fetches as may be.
        .set("fetch.message.max.bytes", "4194304")
        // Giving all partitions up before others come is what the resolver is made for.
        .set("group.protocol", "classic")
        .set("partition.assignment.strategy", "range,roundrobin");
    if let (Assignment::Shared, Some(id)) = (config.assignment, &config.instance_id) {
        client.set("group.instance.id", id);
    }
    Ok(Arc::new(client.create_with_context(StoreContext::default())?))
}

//! The store's consumer and its context: partitions come and go through the group, and the thread
//! hears of it between two polls, so that it can finish what is under way first.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rdkafka::ClientConfig;
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
    store: String,
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
    fn stats_raw(&self, statistics: &[u8]) {
        match serde_json::from_slice(statistics) {
            Ok(statistics) => self.stats(statistics),
            Err(error) => {
                // Old ones must not look like new ones.
                self.metrics.lag_unknown();
                tracing::warn!(%error, "the client's figures cannot be read: the lag is not known");
            }
        }
    }

    fn stats(&self, statistics: Statistics) {
        // The client may know other topics: theirs say nothing of the store's partitions.
        if let Some(topic) = statistics.topics.get(&self.store) {
            for (partition, found) in &topic.partitions {
                // -1 is the client's own partition; others are another replica's.
                if *partition < 0 || !found.desired {
                    self.metrics.lag(*partition, None);
                    continue;
                }
                // What was read, else where reading begins. Where nothing was fetched yet, what is known
                // already holds: reading to the end is known without these figures.
                let read = if found.app_offset >= 0 { found.app_offset } else { found.next_offset };
                if read >= 0 && found.hi_offset >= 0 {
                    self.metrics.lag(*partition, Some((found.hi_offset - read).max(0)));
                }
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

/// Bytes that the store's consumer reads in advance, of all partitions: as many as wait to be taken
/// before nothing more is asked for, and what the answers under way then add to them. A record that is
/// larger than an answer may be comes all the same (KIP-74), alone, from each broker.
pub(super) const READ_AHEAD_BYTES: usize = 16 * 1_024 * 1_024;
const QUEUED_BYTES: usize = READ_AHEAD_BYTES / 2;
/// The least of one partition in one answer: of more than 512 partitions more may be read in advance.
const LEAST_FETCH_BYTES: usize = 16 * 1_024;

/// What one answer may bring of one partition. Every broker may have one under way, but each partition
/// is in one of them only: so all of them together stay within what is left of [`READ_AHEAD_BYTES`].
fn fetch_bytes(partitions: i32) -> usize {
    let partitions = usize::try_from(partitions).unwrap_or(1).max(1);
    ((READ_AHEAD_BYTES - QUEUED_BYTES) / partitions).max(LEAST_FETCH_BYTES)
}

/// The settings of the store's consumer that bound what it reads in advance, of so many partitions.
fn bound(client: &mut ClientConfig, partitions: i32) {
    // The other name of the same setting: which of the two would count is not said.
    let wish = client.get("fetch.message.max.bytes").or(client.get("max.partition.fetch.bytes"));
    let wish = wish.and_then(|bytes| bytes.parse::<usize>().ok()).unwrap_or(usize::MAX);
    client
        .remove("max.partition.fetch.bytes")
        // librdkafka counts 1,000 bytes as one of these.
        .set("queued.max.messages.kbytes", (QUEUED_BYTES / 1_000).to_string())
        .set("fetch.message.max.bytes", fetch_bytes(partitions).min(wish).to_string());
}

/// The store's consumer. Offsets are always given: one that is outside the log is an error, and
/// never a silent jump.
pub(crate) fn consumer(
    config: &ProducerConfig,
    partitions: i32,
    metrics: Metrics,
) -> Result<Arc<BaseConsumer<StoreContext>>, KafkaError> {
    let mut client = config.kafka.consumer(&config.store_topic());
    bound(&mut client, partitions);
    client
        .set("enable.partition.eof", "true")
        .set("statistics.interval.ms", STATISTICS_MILLIS)
        .set("auto.offset.reset", "error")
        // Giving all partitions up before others come is what the resolver is made for.
        .set("group.protocol", "classic")
        .set("partition.assignment.strategy", "range,roundrobin");
    if let (Assignment::Shared, Some(id)) = (config.assignment, &config.instance_id) {
        client.set("group.instance.id", id);
    }
    let store = config.store_topic();
    let context = StoreContext { store, metrics, ..StoreContext::default() };
    Ok(Arc::new(client.create_with_context(context)?))
}

#[cfg(test)]
mod tests {
    use halfmsg_kafka::EmbeddedBroker;
    use rdkafka::Offset;
    use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

    use super::*;

    /// Long enough for a busy machine; only a failing test waits as long.
    const PATIENCE: Duration = Duration::from_secs(120);

    #[test]
    fn what_is_read_in_advance_has_a_bound_however_many_brokers_answer() {
        let number = |client: &ClientConfig, name: &str| -> usize {
            client.get(name).expect("it is set").parse().expect("a number")
        };
        for partitions in [1, 8, 64, 512] {
            let mut client = ClientConfig::new();
            bound(&mut client, partitions);
            let queued = number(&client, "queued.max.messages.kbytes") * 1_000;
            let fetched = number(&client, "fetch.message.max.bytes");
            let all = queued + fetched * usize::try_from(partitions).expect("small");
            assert!(all <= READ_AHEAD_BYTES, "{partitions} partitions: {all}");
            assert!(all > READ_AHEAD_BYTES / 10 * 9, "{partitions} partitions: {all}");
        }
        let mut client = ClientConfig::new();
        client.set("max.partition.fetch.bytes", "5000");
        bound(&mut client, 8);
        assert_eq!(number(&client, "fetch.message.max.bytes"), 5_000, "less is allowed");
        assert_eq!(client.get("max.partition.fetch.bytes"), None);
        let mut client = ClientConfig::new();
        client.set("fetch.message.max.bytes", "50000000");
        bound(&mut client, 8);
        assert_eq!(number(&client, "fetch.message.max.bytes"), fetch_bytes(8), "more is not");
    }

    /// As many partitions as leave each a small part of an answer, and a record larger than that.
    #[test]
    fn a_record_larger_than_an_answer_may_be_is_read_all_the_same() {
        const PARTITIONS: i32 = 512;
        let broker = EmbeddedBroker::start().expect("a loopback port");
        let config = ProducerConfig::new(broker.config(), "tests", "group");
        let store = config.store_topic();
        broker.create_topic(&store, PARTITIONS).expect("a topic");
        let producer: BaseProducer = broker.config().producer().create().expect("a client");
        let large = vec![7; 40 * LEAST_FETCH_BYTES];
        for payload in [&large[..1], &large, &large[..1]] {
            let record: BaseRecord<'_, [u8], [u8]> = BaseRecord::to(&store);
            let sent = producer.send(record.partition(3).payload(payload));
            sent.map_err(|(error, _)| error).expect("room in the queue");
        }
        producer.flush(PATIENCE).expect("stored");
        let consumer = consumer(&config, PARTITIONS, Metrics::default()).expect("a client");
        consumer.fetch_metadata(Some(&store), PATIENCE).expect("the topic is known");
        let mut place = TopicPartitionList::new();
        place.add_partition_offset(&store, 3, Offset::Beginning).expect("an offset");
        consumer.assign(&place).expect("assigned");
        let until = std::time::Instant::now() + PATIENCE;
        let mut read = Vec::new();
        while read.len() < 3 && std::time::Instant::now() < until {
            if let Some(Ok(message)) = consumer.poll(Duration::from_millis(50)) {
                read.push(message.payload_len());
            }
        }
        assert_eq!(read, [1, large.len(), 1]);
    }

    /// Whatever is assigned how often: what is ours has a lag, what is not has none.
    #[test]
    fn the_lag_of_what_is_assigned_again_is_known() {
        let broker = EmbeddedBroker::start().expect("a loopback port");
        broker.create_topic("t", 4).expect("a topic");
        let metrics = Metrics::default();
        let store = "t".to_owned();
        let context = StoreContext { store, metrics: metrics.clone(), ..StoreContext::default() };
        let mut client = broker.config().consumer("g");
        let consumer: BaseConsumer<StoreContext> = client
            .set("statistics.interval.ms", "50")
            .create_with_context(context)
            .expect("a client");
        consumer.fetch_metadata(Some("t"), PATIENCE).expect("the topic is known");
        for ours in [0..3, 0..3, 1..3, 0..4, 0..0, 2..4] {
            let mut places = TopicPartitionList::new();
            for partition in ours.clone() {
                places.add_partition_offset("t", partition, Offset::Beginning).expect("an offset");
            }
            assign(&consumer, &places).expect("assigned");
            // What it says now must be what it says from now on; of what is not ours it is silent.
            for partition in ours.clone() {
                metrics.lag(partition, None);
            }
            let until = std::time::Instant::now() + PATIENCE;
            while metrics.lags() != ours.clone().map(|partition| (partition, 0)).collect() {
                assert!(std::time::Instant::now() < until, "{ours:?}: {:?}", metrics.lags());
                drop(consumer.poll(Duration::from_millis(10)));
            }
        }
    }

    /// Without the questions in between the client ends the process at once.
    #[test]
    fn assignments_may_follow_each_other_at_once() {
        let broker = EmbeddedBroker::start().expect("a loopback port");
        broker.create_topic("t", 4).expect("a topic");
        let consumer: BaseConsumer = broker.config().consumer("g").create().expect("a client");
        consumer.fetch_metadata(Some("t"), PATIENCE).expect("the topic is known");
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

//! Every partition of every topic, for a client that shares them with nobody: at the start, and those
//! that are added later.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use halfmsg_kafka::{TopicError, partition_count};
use rdkafka::consumer::Consumer;
use rdkafka::error::KafkaError;
use rdkafka::{Offset, TopicPartitionList};

use super::Client;

/// How long a look for added partitions may take; nothing is fetched meanwhile.
const LOOK_DEADLINE: Duration = Duration::from_millis(500);

/// The partitions that a client has.
pub(super) struct AllPartitions {
    /// Of each topic, how many it has: the first ones.
    counts: HashMap<String, i32>,
    interval: Duration,
    looked: Instant,
}

impl AllPartitions {
    /// None yet, of these topics.
    pub(super) fn of(topics: &[String], interval: Duration) -> Self {
        let counts = topics.iter().map(|topic| (topic.clone(), 0)).collect();
        Self { counts, interval, looked: Instant::now() }
    }

    /// Those that it does not have, at their committed offsets.
    pub(super) fn find(
        &self,
        client: &Client,
        deadline: Duration,
    ) -> Result<TopicPartitionList, TopicError> {
        let mut found = TopicPartitionList::new();
        for (topic, first) in &self.counts {
            for partition in *first..partition_count(client.client(), topic, deadline)? {
                found.add_partition(topic, partition);
            }
        }
        if found.count() == 0 {
            return Ok(found);
        }
        let topics = || self.counts.keys().map(String::as_str).collect::<Vec<_>>().join(",");
        let unavailable = |source| TopicError::Unavailable { topic: topics(), source };
        let committed = client.committed_offsets(found, deadline).map_err(unavailable)?;
        let mut start = TopicPartitionList::new();
        for element in committed.elements() {
            element.error().map_err(unavailable)?;
            let offset = match element.offset() {
                Offset::Offset(offset) => Offset::Offset(offset),
                _ => Offset::Beginning,
            };
            start
                .add_partition_offset(element.topic(), element.partition(), offset)
                .map_err(unavailable)?;
        }
        Ok(start)
    }

    /// It has these now.
    pub(super) fn took(&mut self, partitions: &TopicPartitionList) {
        for element in partitions.elements() {
            let count = self.counts.entry(element.topic().to_owned()).or_default();
            *count = (*count).max(element.partition() + 1);
        }
    }

    /// Begins with partitions that were added, now and then. What nobody can tell, the next look does.
    pub(super) fn take_added(&mut self, client: &Client) -> Result<(), KafkaError> {
        if self.looked.elapsed() < self.interval {
            return Ok(());
        }
        self.looked = Instant::now();
        let added = match self.find(client, LOOK_DEADLINE) {
            Ok(added) => added,
            Err(error) => {
                tracing::debug!(%error, "nobody can tell whether partitions were added");
                return Ok(());
            }
        };
        if added.count() > 0 {
            client.incremental_assign(&added)?;
            self.took(&added);
            tracing::info!(?added, "partitions were added");
        }
        Ok(())
    }
}

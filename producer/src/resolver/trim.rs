//! Deletes the records of the store that no owner will ever need: those below the low-water mark
//! that is stored. It must never look at a mark that is not stored yet.

use std::time::{Duration, Instant};

use halfmsg_kafka::KafkaConfig;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::error::KafkaError;
use rdkafka::{Offset, TopicPartitionList};

use super::Resolver;

/// One request.
const REQUEST_DEADLINE: Duration = Duration::from_secs(5);
/// What stopping may take beyond draining.
const STOP_DEADLINE: Duration = Duration::from_secs(2);

impl Resolver {
    /// From time to time; in the background.
    pub(super) fn trim(&mut self) {
        let due = |interval| self.trimmed_at.elapsed() >= interval;
        if !self.config.trim_interval.is_some_and(due) {
            return;
        }
        if let Some(cut) = self.cut() {
            let (kafka, store) = (self.config.kafka.clone(), self.store.clone());
            self.runtime.spawn(async move { delete(&kafka, &store, &cut).await });
        }
    }

    /// Once more when stopping in good order.
    pub(super) fn trim_last(&mut self) {
        if let Some(cut) = self.cut() {
            let deleted = delete(&self.config.kafka, &self.store, &cut);
            // Not done in time: the next owner does it.
            drop(
                self.runtime.block_on(async { tokio::time::timeout(STOP_DEADLINE, deleted).await }),
            );
        }
    }

    /// How far each partition may be cut; nothing if there is nothing to cut.
    fn cut(&mut self) -> Option<TopicPartitionList> {
        self.trimmed_at = Instant::now();
        // The embedded broker cannot delete records; it keeps 5 MiB and forgets what is older.
        if self.config.kafka.embedded || self.config.trim_interval.is_none() {
            return None;
        }
        let mut cut = TopicPartitionList::new();
        for (partition, owned) in self.owned.iter_mut().filter(|(_, owned)| !owned.is_lost) {
            let Some(stored) = owned.stored.filter(|stored| stored.low_water > owned.trimmed_below)
            else {
                continue;
            };
            let offset = Offset::Offset(stored.low_water);
            if cut.add_partition_offset(&self.store, *partition, offset).is_ok() {
                owned.trimmed_below = stored.low_water;
            }
        }
        (cut.count() > 0).then_some(cut)
    }
}

/// An element may carry an error although the request succeeded.
async fn delete(kafka: &KafkaConfig, store: &str, cut: &TopicPartitionList) {
    let deleted = async {
        let admin: AdminClient<DefaultClientContext> = kafka.admin().create()?;
        let options = AdminOptions::new()
            .operation_timeout(Some(REQUEST_DEADLINE))
            .request_timeout(Some(REQUEST_DEADLINE));
        let done = admin.delete_records(cut, &options).await?;
        done.elements().iter().try_for_each(|element| element.error())
    };
    let deleted: Result<(), KafkaError> = deleted.await;
    match deleted {
        Ok(()) => tracing::debug!(topic = store, partitions = cut.count(), "the store is trimmed"),
        Err(error) => tracing::warn!(
            topic = store, %error,
            "the store cannot be trimmed, so it grows: grant DELETE on the topic, or look at the \
             brokers; it is tried again"
        ),
    }
}

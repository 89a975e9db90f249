//! How far a group has carried its store out, as it is stored in Kafka.

use std::time::Duration;

use halfmsg_kafka::{KafkaConfig, partition_count};
use halfmsg_producer::ProducerConfig;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::{Offset, TopicPartitionList};

use super::{PATIENCE, until};

/// One look-up.
const LOOKUP: Duration = Duration::from_secs(10);

/// Waits until the outcome of every record that the store holds now is carried out and that is
/// stored as progress; of partitions in `but`, nothing is expected.
pub(crate) async fn carried_out(config: &ProducerConfig, but: &[i32]) {
    carried_out_within(PATIENCE, config, but).await;
}

/// The same with a deadline of its own.
pub(crate) async fn carried_out_within(within: Duration, config: &ProducerConfig, but: &[i32]) {
    let (kafka, store) = (config.kafka.clone(), config.store_topic());
    let ends =
        until(within, "the store to be looked up", async || blocking(&kafka, &store, ends).await)
            .await;
    until(within, "every decision to be carried out", async || {
        let stored = blocking(&kafka, &store, positions).await?;
        let behind: Vec<_> = (0_i32..)
            .zip(ends.iter().zip(stored))
            .filter(|(partition, (end, at))| !but.contains(partition) && at < *end)
            .collect();
        if behind.is_empty() { Ok(()) } else { Err(format!("(end, P) by partition: {behind:?}")) }
    })
    .await;
}

/// What is stored as progress of one partition: offset and metadata.
pub(crate) type Stored = (i64, String);

/// The progress that is stored for a partition.
pub(crate) async fn stored(config: &ProducerConfig, partition: i32) -> Stored {
    let found = as_member(config, move |consumer, store| {
        let mut wanted = TopicPartitionList::new();
        wanted.add_partition(store, partition);
        let found = consumer.committed_offsets(wanted, LOOKUP)?;
        let element = found.find_partition(store, partition).expect("it was asked for");
        Ok((element.offset().to_raw().unwrap_or(-1), element.metadata().to_owned()))
    });
    found.await
}

/// Stores this instead; the group must have no members.
pub(crate) async fn store_by_hand(config: &ProducerConfig, partition: i32, progress: Stored) {
    let stored = as_member(config, move |consumer, store| {
        let mut offsets = TopicPartitionList::new();
        let mut element = offsets.add_partition(store, partition);
        element.set_offset(Offset::Offset(progress.0))?;
        element.set_metadata(progress.1.as_str());
        consumer.commit(&offsets, CommitMode::Sync)
    });
    stored.await;
}

/// Does something with a consumer of the group; waits until the group has no other.
async fn as_member<T: Send + 'static>(
    config: &ProducerConfig,
    act: impl Fn(&BaseConsumer, &str) -> KafkaResult<T> + Clone + Send + 'static,
) -> T {
    until(PATIENCE, "the progress of a group without members", async || {
        let (kafka, store, act) = (config.kafka.clone(), config.store_topic(), act.clone());
        let acted = tokio::task::spawn_blocking(move || {
            let consumer: BaseConsumer = kafka.consumer(&store).create()?;
            act(&consumer, &store)
        });
        acted.await.expect("no panic").map_err(|error: KafkaError| error.to_string())
    })
    .await
}

async fn blocking<T: Send + 'static>(
    kafka: &KafkaConfig,
    store: &str,
    look: fn(&BaseConsumer, &str) -> Result<T, String>,
) -> Result<T, String> {
    let (kafka, store) = (kafka.clone(), store.to_owned());
    let looked = tokio::task::spawn_blocking(move || {
        // The group of a store has the store's name.
        let consumer: BaseConsumer =
            kafka.consumer(&store).create().map_err(|error| error.to_string())?;
        look(&consumer, &store)
    });
    looked.await.map_err(|error| error.to_string())?
}

fn partitions(consumer: &BaseConsumer, store: &str) -> Result<i32, String> {
    partition_count(consumer.client(), store, LOOKUP).map_err(|error| error.to_string())
}

/// The end of each partition's log.
fn ends(consumer: &BaseConsumer, store: &str) -> Result<Vec<i64>, String> {
    let end = |partition| {
        let bounds = consumer.fetch_watermarks(store, partition, LOOKUP);
        bounds.map(|(_, end)| end).map_err(|error| error.to_string())
    };
    (0..partitions(consumer, store)?).map(end).collect()
}

/// P of each partition: what is below it is carried out.
fn positions(consumer: &BaseConsumer, store: &str) -> Result<Vec<i64>, String> {
    let mut wanted = TopicPartitionList::new();
    for partition in 0..partitions(consumer, store)? {
        wanted.add_partition(store, partition);
    }
    let found = consumer.committed_offsets(wanted, LOOKUP).map_err(|error| error.to_string())?;
    let position = |element: rdkafka::topic_partition_list::TopicPartitionListElem<'_>| {
        let Offset::Offset(_) = element.offset() else { return Ok(-1) };
        let position = element.metadata().strip_prefix("v1;P=");
        let position = position.and_then(|position| position.parse().ok());
        position.ok_or_else(|| format!("metadata {:?}", element.metadata()))
    };
    found.elements().into_iter().map(position).collect()
}

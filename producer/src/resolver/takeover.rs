//! Where a partition is taken up: its stored progress, its log, and what the parked topic says.

use std::time::Duration;

use halfmsg_protocol::{ParkedState, Progress, Takeover};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::topic_partition_list::TopicPartitionListElem;
use rdkafka::{Offset, TopicPartitionList};

use super::assignment::StoreContext;
use crate::config::ProducerConfig;
use crate::parked;

/// One look-up of offsets or watermarks.
pub(crate) const LOOKUP: Duration = Duration::from_secs(5);
/// Reading the parked topic.
const PARKED_DEADLINE: Duration = Duration::from_secs(30);

/// A partition as it was found.
pub(crate) struct Found {
    pub(crate) partition: i32,
    pub(crate) progress: Progress,
    /// The end of its log.
    pub(crate) end: i64,
    /// Why it must not be read, if it must not.
    pub(crate) stopped: Option<String>,
    parked: Vec<ParkedState>,
}

impl Found {
    pub(crate) fn takeover(self, wall_ms: i64, now: Duration) -> Takeover {
        Takeover { progress: self.progress, parked: self.parked, wall_ms, now }
    }
}

/// Looks everything up. Blocks; fails as a whole, to be tried again.
pub(crate) fn read(
    config: &ProducerConfig,
    consumer: &BaseConsumer<StoreContext>,
    partitions: &[i32],
) -> Result<Vec<Found>, KafkaError> {
    let store = config.store_topic();
    // Without it the first record comes half a second late.
    consumer.fetch_metadata(Some(&store), LOOKUP)?;
    let mut wanted = TopicPartitionList::new();
    for partition in partitions {
        wanted.add_partition(&store, *partition);
    }
    let committed = consumer.committed_offsets(wanted, LOOKUP)?;
    let mut parked = parked::read_partitions(
        &config.kafka,
        &config.parked_topic(),
        partitions,
        PARKED_DEADLINE,
    )?;
    let mut found = Vec::with_capacity(partitions.len());
    let mut unknown = Vec::new();
    for partition in partitions {
        let (start, end) = consumer.fetch_watermarks(&store, *partition, LOOKUP)?;
        let stored = match committed.find_partition(&store, *partition) {
            Some(element) => {
                // An error is not "nothing stored": the takeover is tried again.
                element.error()?;
                match element.offset() {
                    Offset::Offset(low_water) => Some(parse(low_water, &metadata_of(&element))),
                    _ => None,
                }
            }
            None => None,
        };
        if stored.is_none() && end > start {
            unknown.push(*partition);
        }
        let (progress, stopped) = place(&store, *partition, stored, start, end);
        let parked = parked.remove(partition).unwrap_or_default();
        found.push(Found { partition: *partition, progress, end, stopped, parked });
    }
    if !unknown.is_empty() {
        tracing::warn!(
            topic = store, partitions = ?unknown,
            "no progress is stored for a log that is not empty (the group is new, or its offsets \
             expired): what was committed in it may be delivered again"
        );
    }
    Ok(found)
}

/// The metadata of a committed offset: `v1;P=<position>`.
pub(crate) fn metadata(progress: Progress) -> String {
    format!("v1;P={}", progress.position)
}

/// Somebody else may have stored what is not UTF-8, at which the client panics.
fn metadata_of(element: &TopicPartitionListElem<'_>) -> String {
    let read = || element.metadata().to_owned();
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(read)).unwrap_or_default()
}

fn parse(low_water: i64, metadata: &str) -> Progress {
    let position = metadata
        .strip_prefix("v1;P=")
        .and_then(|position| position.parse::<i64>().ok())
        .filter(|position| *position >= low_water)
        .unwrap_or(low_water);
    Progress { low_water, position }
}

/// Where to begin, given stored progress and the log's bounds.
fn place(
    store: &str,
    partition: i32,
    stored: Option<Progress>,
    start: i64,
    end: i64,
) -> (Progress, Option<String>) {
    match stored {
        None => {
            if end > start {
                tracing::warn!(
                    topic = store,
                    partition,
                    start,
                    end,
                    "no progress is stored for a log that is not empty (a new group, or its \
                     offsets expired): what was committed in it may be delivered again"
                );
            }
            (Progress { low_water: start, position: start }, None)
        }
        Some(stored) if stored.position > end || stored.low_water > end => {
            let reason = format!(
                "{store}[{partition}]: progress is stored at {} and {}, but the log ends at {end}: \
                 this is another log (was the topic made anew?)",
                stored.low_water, stored.position
            );
            tracing::error!(reason, "the partition is stopped");
            (Progress { low_water: end, position: end }, Some(reason))
        }
        Some(stored) => {
            let low_water = stored.low_water.max(start);
            (Progress { low_water, position: stored.position.max(low_water) }, None)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(low_water: i64, position: i64) -> Progress {
        Progress { low_water, position }
    }

    #[test]
    fn progress_goes_through_the_metadata() {
        assert_eq!(parse(7, &metadata(at(7, 13))), at(7, 13));
        assert_eq!(parse(7, ""), at(7, 7));
        assert_eq!(parse(7, "v1;P=3"), at(7, 7));
        assert_eq!(parse(7, "v9;Q=30"), at(7, 7));
    }

    #[test]
    fn begins_where_progress_and_log_meet() {
        assert_eq!(place("s", 0, None, 5, 9), (at(5, 5), None));
        assert_eq!(place("s", 0, Some(at(6, 8)), 5, 9), (at(6, 8), None));
        assert_eq!(place("s", 0, Some(at(2, 8)), 5, 9), (at(5, 8), None));
        assert_eq!(place("s", 0, Some(at(2, 3)), 5, 9), (at(5, 5), None));
        assert_eq!(place("s", 0, Some(at(9, 9)), 5, 9), (at(9, 9), None));
    }

    #[test]
    fn another_log_stops_the_partition() {
        for stored in [at(10, 10), at(3, 10)] {
            let (_, stopped) = place("s", 4, Some(stored), 0, 9);
            assert!(stopped.is_some_and(|reason| reason.contains("s[4]")));
        }
    }
}

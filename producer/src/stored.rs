//! A group's progress (L, P) as the brokers keep it: committed offset and metadata.

use std::collections::BTreeMap;
use std::time::Duration;

use halfmsg_kafka::KafkaConfig;
use halfmsg_protocol::Progress;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::KafkaError;
use rdkafka::topic_partition_list::TopicPartitionListElem;
use rdkafka::{Offset, TopicPartitionList};

use crate::scan::{Unread, is_denied};

/// A partition of the store: where its log begins and ends, and how far it is carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) start: i64,
    pub(crate) end: i64,
    /// Nothing if nothing was ever stored, or it expired.
    pub(crate) stored: Option<Progress>,
}

impl Place {
    /// Where a replay begins and which outcomes are carried out; an error, in words, if progress
    /// was stored for another log.
    pub(crate) fn begin(&self) -> Result<Progress, String> {
        let Self { start, end, stored } = *self;
        match stored {
            None => Ok(Progress { low_water: start, position: start }),
            Some(at) if at.position > end || at.low_water > end => Err(format!(
                "progress is stored at {} and {}, but the log ends at {end}: this is another log \
                 (was the topic made anew?)",
                at.low_water, at.position
            )),
            Some(at) => {
                let low_water = at.low_water.max(start);
                Ok(Progress { low_water, position: at.position.max(low_water) })
            }
        }
    }

    /// What is missing of the log although a replay needs it. Only for who knows that no owner stores
    /// progress meanwhile: one that does may also have trimmed between the two look-ups.
    pub(crate) fn cut(&self) -> Option<Cut> {
        let Progress { low_water, position } =
            self.stored.filter(|at| at.low_water < self.start)?;
        let missing = format!(
            "progress is stored at L={low_water} and P={position}, but the log begins at {}: somebody \
             has deleted records that were needed (kafka-delete-records.sh, or a retention that was \
             changed?)",
            self.start
        );
        Some(if position < self.start { Cut::Outcomes(missing) } else { Cut::Open(missing) })
    }
}

/// Records are gone that a replay needs, and what is missing, in words. Trimming never does that: it
/// deletes below a stored L only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Cut {
    /// All that is gone was carried out, but it held a half message that was open.
    Open(String),
    /// What is gone may hold outcomes that are not carried out.
    Outcomes(String),
}

/// A client that looks offsets of the group up. It never joins, so it disturbs nobody; and it does
/// not wait for transactions (`read_uncommitted`), in which the owners store their progress.
///
/// # Errors
/// What the client says.
pub(crate) fn client(kafka: &KafkaConfig, store: &str) -> Result<BaseConsumer, KafkaError> {
    kafka.consumer(store).set("isolation.level", "read_uncommitted").create()
}

/// Looks partitions up: all of them, or an error. Blocks up to the deadline for each request.
///
/// # Errors
/// What the brokers say.
pub(crate) fn places<C: ConsumerContext>(
    client: &BaseConsumer<C>,
    store: &str,
    partitions: &[i32],
    deadline: Duration,
) -> Result<BTreeMap<i32, Place>, KafkaError> {
    let (places, unseen) = places_but(client, store, partitions, deadline)?;
    unseen.into_values().next().map_or(Ok(places), Err)
}

/// Looks partitions up, and names those whose log cannot be looked at: each of them may take the
/// deadline. Blocks likewise.
///
/// # Errors
/// What the group's coordinator says; and that of a log that this client has no right to.
pub(crate) fn places_but<C: ConsumerContext>(
    client: &BaseConsumer<C>,
    store: &str,
    partitions: &[i32],
    deadline: Duration,
) -> Result<(BTreeMap<i32, Place>, Unread), KafkaError> {
    let mut wanted = TopicPartitionList::new();
    for partition in partitions {
        wanted.add_partition(store, *partition);
    }
    // Before the ends: progress that is newer than the end would look like another log's.
    let committed = client.committed_offsets(wanted, deadline)?;
    let (mut places, mut unseen) = (BTreeMap::new(), Unread::new());
    for partition in partitions {
        let stored = match committed.find_partition(store, *partition) {
            Some(element) => {
                // An error is not "nothing stored".
                element.error()?;
                match element.offset() {
                    Offset::Offset(low_water) => Some(parse(low_water, &metadata_of(&element))),
                    _ => None,
                }
            }
            None => None,
        };
        match client.fetch_watermarks(store, *partition, deadline) {
            Ok((start, end)) => drop(places.insert(*partition, Place { start, end, stored })),
            Err(error) if is_denied(&error) => return Err(error),
            Err(error) => drop(unseen.insert(*partition, error)),
        }
    }
    Ok((places, unseen))
}

/// Committed offsets that say this progress.
pub(crate) fn offsets(
    store: &str,
    positions: impl IntoIterator<Item = (i32, Progress)>,
) -> Result<TopicPartitionList, KafkaError> {
    let mut offsets = TopicPartitionList::new();
    for (partition, progress) in positions {
        debug_assert!(progress.low_water <= progress.position, "L is never beyond P");
        let mut element = offsets.add_partition(store, partition);
        element.set_offset(Offset::Offset(progress.low_water))?;
        element.set_metadata(format!("v1;P={}", progress.position));
    }
    Ok(offsets)
}

/// Somebody else may have stored what is not UTF-8, at which the client panics.
fn metadata_of(element: &TopicPartitionListElem<'_>) -> String {
    let read = || element.metadata().to_owned();
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(read)).unwrap_or_default()
}

/// The metadata of a committed offset is `v1;P=<position>`.
fn parse(low_water: i64, metadata: &str) -> Progress {
    let position = metadata
        .strip_prefix("v1;P=")
        .and_then(|position| position.parse::<i64>().ok())
        .filter(|position| *position >= low_water)
        .unwrap_or(low_water);
    Progress { low_water, position }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(low_water: i64, position: i64) -> Progress {
        Progress { low_water, position }
    }

    #[test]
    fn reads_what_the_resolver_writes() {
        let written = offsets("s", [(0, at(7, 13))]).expect("offsets within bounds");
        assert_eq!(parse(7, &metadata_of(&written.elements()[0])), at(7, 13));
        assert_eq!(parse(7, ""), at(7, 7));
        assert_eq!(parse(7, "v1;P=3"), at(7, 7));
        assert_eq!(parse(7, "v9;Q=30"), at(7, 7));
    }

    #[test]
    fn begins_where_progress_and_log_meet() {
        let begin = |stored| Place { start: 5, end: 9, stored }.begin();
        assert_eq!(begin(None), Ok(at(5, 5)));
        assert_eq!(begin(Some(at(6, 8))), Ok(at(6, 8)));
        assert_eq!(begin(Some(at(2, 8))), Ok(at(5, 8)));
        assert_eq!(begin(Some(at(2, 3))), Ok(at(5, 5)));
        assert_eq!(begin(Some(at(9, 9))), Ok(at(9, 9)));
        for other in [at(10, 10), at(6, 10)] {
            assert!(begin(Some(other)).is_err_and(|why| why.contains("another log")));
        }
    }

    #[test]
    fn a_log_that_lacks_what_a_replay_needs_is_cut() {
        let cut = |stored| Place { start: 5, end: 9, stored }.cut();
        for whole in [None, Some(at(5, 5)), Some(at(5, 8)), Some(at(9, 9))] {
            assert_eq!(cut(whole), None);
        }
        for done in [at(4, 5), at(0, 9)] {
            let found = cut(Some(done));
            assert!(matches!(&found, Some(Cut::Open(_))), "{done:?}: {found:?}");
        }
        for undone in [at(4, 4), at(2, 4)] {
            let found = cut(Some(undone));
            assert!(matches!(&found, Some(Cut::Outcomes(_))), "{undone:?}: {found:?}");
        }
        let Some(Cut::Outcomes(why)) = cut(Some(at(2, 4))) else { panic!("it is cut") };
        for figure in ["L=2", "P=4", "begins at 5"] {
            assert!(why.contains(figure), "{why}");
        }
    }
}

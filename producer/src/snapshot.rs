//! The state of store partitions at this moment, read straight from the brokers: stored progress,
//! the parked topic, and the store from the low-water mark to its end.
//!
//! It works whoever owns the partitions, and if nobody does. It must never join the group, store
//! anything, or keep what it read: the next look reads again.
//!
//! Progress is read first, then the parked topic, then the log's records to an end that is looked
//! up last. What moves in between makes the parked topic newer than the replay, which the ledger
//! knows how to take; nothing that is open or parked can be missed.
//!
//! # Layout
//! - `part`: one partition as it was found, and what is made of its records
//! - `walk`: reads ranges of the store, within bounds
//! - `trace`: the whole life of one message

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use halfmsg_kafka::{TopicError, partition_count};
use halfmsg_protocol::TransactionId;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::Message;

mod part;
#[cfg(test)]
mod tests;
mod trace;
mod walk;

pub(crate) use part::Part;
pub(crate) use trace::{LATELY, Step, Traced, Where, trace};
pub(crate) use walk::{Found, Look, Walk, read, walk};

use crate::config::ProducerConfig;
use crate::operator::journal::told::Acts;
use crate::parked::{self, foreign::ForeignCopies};
use crate::scan::{self, Patience, Unread};
use crate::stored::{self, Place};

/// How long one look may take and how much it may read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SnapshotLimits {
    /// For the whole look.
    pub deadline: Duration,
    /// Records of the store that one look reads, by their offsets.
    pub max_records: u64,
}

impl Default for SnapshotLimits {
    fn default() -> Self {
        Self { deadline: Duration::from_secs(10), max_records: 5_000_000 }
    }
}

/// How far a look has come, in offsets of the store. Told from time to time, and when the look ends, however
/// that is, with `read` as large as `of`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SnapshotProgress {
    /// Read so far.
    pub read: u64,
    /// To be read in all.
    pub of: u64,
}

/// Hears how far a look has come.
pub(crate) type Report = Arc<dyn Fn(SnapshotProgress) + Send + Sync>;

/// Why there is no picture.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SnapshotError {
    #[error("Kafka does not answer: {0}")]
    Unreachable(String),
    #[error("{0}")]
    NoTopic(String),
    #[error(
        "{records} records would have to be read, more than the {max} that one look may: none was; \
         allow more, or ask the replica that owns the partition"
    )]
    TooMany { records: u64, max: u64 },
    #[error(
        "{read} of {of} records were read within {deadline:?}{last}: allow more time, or ask the \
         replica that owns the partition"
    )]
    TooSlow { read: u64, of: u64, deadline: Duration, last: String },
    /// Nobody waits for it any more, or the log's beginning was trimmed meanwhile.
    #[error("the look was given up: {0}")]
    GivenUp(&'static str),
}

/// Which partitions, and of which message key, headers and payload are kept.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wanted {
    /// All but these.
    pub(crate) except: BTreeSet<i32>,
    /// Of them, this one and those behind it.
    pub(crate) least: i32,
    /// Only this one.
    pub(crate) only: Option<i32>,
    /// The message whose body is wanted; of all others only the key is kept.
    pub(crate) body_of: Option<TransactionId>,
    /// What was delivered from here on counts, and is read if it lies below the low-water mark;
    /// whatever log progress was stored for.
    pub(crate) from: Option<i64>,
}

/// What a look found.
#[derive(Default)]
pub(crate) struct Taken {
    pub(crate) parts: Vec<Part>,
    /// Partitions that could not be looked at, and why: nobody leads them, or their part of the parked
    /// topic.
    pub(crate) missing: BTreeMap<i32, String>,
}

/// Looks. Blocks, within the look's bounds. A partition that nobody leads is missing, and keeps no
/// other from being looked at.
///
/// # Errors
/// [`SnapshotError`]; of a partition there is no half a picture.
pub(crate) fn take(
    config: &ProducerConfig,
    wanted: &Wanted,
    look: &Look,
) -> Result<Taken, SnapshotError> {
    let store = config.store_topic();
    let client = stored::client(&config.kafka, &store).map_err(|error| unreachable(&error))?;
    let partitions: Vec<i32> = match wanted.only {
        Some(one) => {
            check_partition(&client, &store, one, look)?;
            vec![one]
        }
        None => (wanted.least.max(0)..count(&client, &store, look)?)
            .filter(|partition| !wanted.except.contains(partition))
            .collect(),
    };
    let mut missing = Missing { of: BTreeMap::new() };
    // Before anybody waits for an answer that nobody gives.
    let leaderless = scan::without_leader(&client, &store, &partitions, look.step());
    missing.add(&store, leaderless.map_err(|error| unreachable(&error))?);
    let led = missing.others(&partitions);
    let places = stored::places_but(&client, &store, &led, look.step());
    let (before, unseen) = places.map_err(|error| unreachable(&error))?;
    missing.add(&store, unseen);
    let topic = config.parked_topic();
    let seen = missing.others(&led);
    let patience = Patience::Whole(look.left());
    let (mut parked, unread) = parked::read(&config.kafka, &topic, &seen, patience)
        .map_err(|error| unreachable(&error))?;
    // All of it: the topic itself is missing.
    if let Some(error @ SnapshotError::NoTopic(_)) = unread.values().next().map(unreachable)
        && unread.len() == seen.len()
    {
        return Err(error);
    }
    missing.add(&topic, unread);
    let mut parts = BTreeMap::new();
    for (partition, mut place) in before {
        if missing.of.contains_key(&partition) {
            continue;
        }
        match client.fetch_watermarks(&store, partition, look.step()) {
            Ok(bounds) => (place.start, place.end) = bounds,
            Err(error) => {
                missing.add(&store, [(partition, error)]);
                continue;
            }
        }
        let parked = parked.remove(&partition).unwrap_or_default();
        parts.insert(partition, Part::new(partition, place, parked, wanted));
    }
    read_on(config, &mut parts, wanted, look)?;
    Ok(Taken { parts: parts.into_values().collect(), missing: missing.of })
}

/// The copies of foreign records that the parked topic has, from this place of the store on, and the
/// partitions of it that could not be read. Blocks, within the look's time.
///
/// # Errors
/// [`SnapshotError`].
pub(crate) fn foreign(
    config: &ProducerConfig,
    (from, limit): ((i32, i64), usize),
    look: &Look,
) -> Result<(ForeignCopies, BTreeMap<i32, String>), SnapshotError> {
    of_parked(config, from.0, look, |topic, partitions, patience| {
        parked::foreign::read(&config.kafka, topic, partitions, (from, limit), patience)
    })
}

/// What the journal in the parked topic tells, and the partitions of it that could not be read. Blocks,
/// within the look's time.
///
/// # Errors
/// [`SnapshotError`].
pub(crate) fn journal(
    config: &ProducerConfig,
    acts: Acts,
    look: &Look,
) -> Result<(Acts, BTreeMap<i32, String>), SnapshotError> {
    of_parked(config, 0, look, |topic, partitions, patience| {
        acts.read(&config.kafka, topic, partitions, patience)
    })
}

/// What this reads of the parked topic, from this partition on.
fn of_parked<T>(
    config: &ProducerConfig,
    least: i32,
    look: &Look,
    read: impl FnOnce(&str, &[i32], Patience) -> Result<(T, Unread), KafkaError>,
) -> Result<(T, BTreeMap<i32, String>), SnapshotError> {
    let (store, topic) = (config.store_topic(), config.parked_topic());
    let client = stored::client(&config.kafka, &store).map_err(|error| unreachable(&error))?;
    let partitions: Vec<i32> = (least.max(0)..count(&client, &topic, look)?).collect();
    let read = read(&topic, &partitions, Patience::Whole(look.left()));
    let (found, unread) = read.map_err(|error| unreachable(&error))?;
    let mut missing = Missing { of: BTreeMap::new() };
    missing.add(&topic, unread);
    Ok((found, missing.of))
}

struct Missing {
    of: BTreeMap<i32, String>,
}

impl Missing {
    fn add(&mut self, topic: &str, unread: impl IntoIterator<Item = (i32, KafkaError)>) {
        for (partition, error) in unread {
            self.of.insert(partition, format!("{topic}[{partition}] cannot be read: {error}"));
        }
    }

    fn others(&self, of: &[i32]) -> Vec<i32> {
        of.iter().filter(|partition| !self.of.contains_key(partition)).copied().collect()
    }
}

/// Reads a partition on to its present end. Unlike a new look it still knows what was open, parked
/// and closed before, however fast the owner carries it out and clears it away. Blocks.
///
/// # Errors
/// [`SnapshotError`].
pub(crate) fn go_on(
    config: &ProducerConfig,
    mut part: Part,
    wanted: &Wanted,
    look: &Look,
) -> Result<Part, SnapshotError> {
    let partition = part.partition;
    part.place.end = place(config, partition, look)?.end;
    let mut parts = BTreeMap::from([(partition, part)]);
    read_on(config, &mut parts, wanted, look)?;
    let read = parts.remove(&partition);
    read.ok_or_else(|| no_partition(&config.store_topic(), partition))
}

fn read_on(
    config: &ProducerConfig,
    parts: &mut BTreeMap<i32, Part>,
    wanted: &Wanted,
    look: &Look,
) -> Result<(), SnapshotError> {
    let store = config.store_topic();
    let to_read = parts.values().filter(|part| part.stopped.is_none());
    let to_read = to_read.filter(|part| part.ledger.position() < part.place.end);
    let ranges: BTreeMap<i32, Range<i64>> =
        to_read.map(|part| (part.partition, part.ledger.position()..part.place.end)).collect();
    walk(&config.kafka, &store, &ranges, look, |message| {
        match parts.get_mut(&message.partition()) {
            Some(part) => part.take_in(message, &store, wanted),
            None => Walk::Leave,
        }
    })?;
    for part in parts.values_mut().filter(|part| part.stopped.is_none()) {
        // A transaction's end marks are no records.
        part.ledger.pass(part.place.end);
    }
    Ok(())
}

/// Where a partition's log begins and ends. Blocks.
pub(crate) fn bounds(
    config: &ProducerConfig,
    partition: i32,
    look: &Look,
) -> Result<Range<i64>, SnapshotError> {
    let place = place(config, partition, look)?;
    Ok(place.start..place.end)
}

/// The offset below which a partition is known to be carried out. Blocks.
pub(crate) fn position(
    config: &ProducerConfig,
    partition: i32,
    look: &Look,
) -> Result<i64, SnapshotError> {
    let place = place(config, partition, look)?;
    Ok(place.begin().map_or(place.start, |begin| begin.position))
}

fn place(config: &ProducerConfig, partition: i32, look: &Look) -> Result<Place, SnapshotError> {
    let store = config.store_topic();
    let client = stored::client(&config.kafka, &store).map_err(|error| unreachable(&error))?;
    check_partition(&client, &store, partition, look)?;
    let places = stored::places(&client, &store, &[partition], look.step());
    let mut places = places.map_err(|error| unreachable(&error))?;
    places.remove(&partition).ok_or_else(|| no_partition(&store, partition))
}

fn check_partition(
    client: &BaseConsumer,
    store: &str,
    partition: i32,
    look: &Look,
) -> Result<(), SnapshotError> {
    let there = (0..count(client, store, look)?).contains(&partition);
    if there { Ok(()) } else { Err(no_partition(store, partition)) }
}

fn no_partition(store: &str, partition: i32) -> SnapshotError {
    SnapshotError::NoTopic(format!("the store {store} has no partition {partition}"))
}

fn count(client: &BaseConsumer, store: &str, look: &Look) -> Result<i32, SnapshotError> {
    partition_count(client.client(), store, look.step()).map_err(|error| match error {
        TopicError::Unknown(_) => SnapshotError::NoTopic(error.to_string()),
        TopicError::Unavailable { source, .. } => unreachable(&source),
        other => SnapshotError::Unreachable(other.to_string()),
    })
}

fn unreachable(error: &KafkaError) -> SnapshotError {
    match error.rdkafka_error_code() {
        Some(Code::UnknownTopic | Code::UnknownTopicOrPartition | Code::UnknownPartition) => {
            SnapshotError::NoTopic(format!("the group's topics are not all there: {error}"))
        }
        _ => SnapshotError::Unreachable(error.to_string()),
    }
}

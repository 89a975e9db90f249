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
//! - `walk`: reads ranges of the store, within bounds
//! - `trace`: the whole life of one message

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use halfmsg_kafka::{TopicError, partition_count};
use halfmsg_protocol::{
    Body, HalfOffset, Ledger, Open, Outcome, ParkedHalf, ParkedState, Progress, TransactionId,
};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::{BorrowedMessage, Message};

mod trace;
mod walk;

pub(crate) use trace::{Step, Traced, Where, trace};
pub(crate) use walk::{Found, Look, Walk, read, walk};

use crate::config::ProducerConfig;
use crate::parked::{self, ParkedPartition};
use crate::resolver::query::{Seen, What};
use crate::scan::Patience;
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

/// How far a look has come, in offsets of the store.
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

/// A partition as it was found.
pub(crate) struct Part {
    pub(crate) partition: i32,
    pub(crate) ledger: Ledger,
    pub(crate) place: Place,
    /// Records below are carried out.
    pub(crate) position: i64,
    /// Where and why nothing behind is read, by this look and by any owner.
    pub(crate) stopped: Option<String>,
    /// Committed, and its delivery is not stored as progress: by the offset of the decision.
    pub(crate) undelivered: BTreeMap<i64, HalfOffset>,
    /// Decisions that deliver and are carried out, from [`Wanted::from`] on.
    pub(crate) delivered: u64,
    /// What the parked topic holds: half and offset of the PARK.
    parked: HashSet<(HalfOffset, i64)>,
    /// Records of a newer format that are passed.
    skipped: BTreeSet<i64>,
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
    /// Read from here, if that is below the low-water mark, and whatever log progress was stored
    /// for.
    pub(crate) from: Option<i64>,
}

/// Looks. Blocks, within the look's bounds.
///
/// # Errors
/// [`SnapshotError`]; there is no half a picture.
pub(crate) fn take(
    config: &ProducerConfig,
    wanted: &Wanted,
    look: &Look,
) -> Result<Vec<Part>, SnapshotError> {
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
    let before = stored::places(&client, &store, &partitions, look.step());
    let before = before.map_err(|error| unreachable(&error))?;
    let topic = config.parked_topic();
    let patience = Patience::Whole(look.left());
    let (mut parked, unread) = parked::read(&config.kafka, &topic, &partitions, patience)
        .map_err(|error| unreachable(&error))?;
    if let Some(error) = unread.values().next() {
        return Err(unreachable(error));
    }
    let mut parts = BTreeMap::new();
    for (partition, mut place) in before {
        let bounds = client.fetch_watermarks(&store, partition, look.step());
        (place.start, place.end) = bounds.map_err(|error| unreachable(&error))?;
        let parked = parked.remove(&partition).unwrap_or_default();
        parts.insert(partition, Part::new(partition, place, parked, wanted));
    }
    read_on(config, &mut parts, wanted, look)?;
    Ok(parts.into_values().collect())
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

impl Part {
    fn new(partition: i32, place: Place, found: ParkedPartition, wanted: &Wanted) -> Self {
        let at = |offset| Progress { low_water: offset, position: offset };
        let (begin, stopped) = match (place.begin(), wanted.from) {
            (Ok(begin), _) => (begin, None),
            (Err(_), Some(_)) => (at(place.start), None),
            (Err(why), None) => (at(place.end), Some(format!("partition {partition}: {why}"))),
        };
        let from =
            wanted.from.map_or(begin.low_water, |from| from.clamp(place.start, begin.low_water));
        let ParkedPartition { states, skipped } = found;
        let entries = states.iter().filter_map(|state| match state {
            ParkedState::Parked(parked) => Some((parked.half.offset, parked.parked_at)),
            ParkedState::Settled { .. } => None,
        });
        Self {
            partition,
            place,
            position: begin.position,
            stopped,
            undelivered: BTreeMap::new(),
            delivered: 0,
            parked: entries.collect(),
            skipped,
            ledger: Ledger::new(from, states),
        }
    }

    fn take_in(&mut self, message: &BorrowedMessage<'_>, store: &str, wanted: &Wanted) -> Walk {
        let offset = message.offset();
        match read(message) {
            Found::Record { record, appended_ms } => {
                let id = record.id();
                let body = match wanted.body_of {
                    Some(wanted) if wanted == id => parked::users_body(message),
                    _ => Body { key: walk::key(message), ..Body::default() },
                };
                let outcome = self.ledger.apply(record, body, offset, appended_ms);
                match (&outcome, offset < self.position) {
                    (Outcome::Deliver { .. }, true) => {
                        self.delivered += u64::from(wanted.from.is_some_and(|from| offset >= from));
                    }
                    (Outcome::Deliver { half, .. }, false) => {
                        self.undelivered.insert(offset, half.offset);
                    }
                    _ => {}
                }
                if offset < self.position {
                    self.ledger.replayed(offset);
                }
            }
            Found::Foreign => self.ledger.pass(offset + 1),
            Found::Newer(_) if self.skipped.contains(&offset) => self.ledger.pass(offset + 1),
            Found::Newer(error) => {
                self.stopped = Some(format!("{store}[{}]@{offset}: {error}", self.partition));
                return Walk::Leave;
            }
        }
        Walk::On
    }

    /// Parked ones that a next owner could not know from the parked topic.
    pub(crate) fn unwritten(&self) -> impl Iterator<Item = &ParkedHalf> {
        let is_written = |parked: &ParkedHalf| {
            self.is_durable(parked) || self.parked.contains(&(parked.half.offset, parked.parked_at))
        };
        self.ledger.parked_from(HalfOffset(0)).filter(move |parked| !is_written(parked))
    }

    /// Whether every owner to come knows that it is parked, as the resolver's core has it.
    fn is_durable(&self, parked: &ParkedHalf) -> bool {
        parked.parked_at < self.position
    }

    fn seen(&self, what: What) -> Seen {
        Seen { partition: self.partition, owned: false, stopped: self.stopped.clone(), what }
    }

    pub(crate) fn open(&self, open: &Open) -> Seen {
        self.seen(What::Open(open.clone(), None))
    }

    pub(crate) fn parked(&self, parked: &ParkedHalf) -> Seen {
        self.seen(What::Parked(parked.clone(), self.is_durable(parked)))
    }

    /// The message of this identity, if this partition has it.
    pub(crate) fn find(&self, id: TransactionId) -> Option<Seen> {
        if let Some(open) = self.ledger.find_open(id) {
            return Some(self.open(open));
        }
        match self.ledger.find_parked(id) {
            Some(parked) => Some(self.parked(parked)),
            None => {
                self.ledger.find_closed(id).map(|closed| self.seen(What::Closed(closed.clone())))
            }
        }
    }
}

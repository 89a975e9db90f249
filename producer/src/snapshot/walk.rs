//! Reads ranges of the store, record by record, within the bounds of one look.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::{Duration, Instant};

use bytes::Bytes;
use halfmsg_kafka::KafkaConfig;
use halfmsg_protocol::{DecodeError, Record, codec};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::{Offset, TopicPartitionList};
use tokio_util::sync::CancellationToken;

use super::{Report, SnapshotError, SnapshotLimits, SnapshotProgress, unreachable};
use crate::parked::packed;

/// One wait for a record.
const POLL: Duration = Duration::from_millis(50);
/// One request about offsets, if the look has not more than twice this time in all.
const STEP: Duration = Duration::from_secs(5);
/// Records between two reports.
const REPORT_EVERY: u64 = 4_096;

/// The bounds of one look, and who hears of it.
pub(crate) struct Look {
    limits: SnapshotLimits,
    until: Instant,
    cancelled: CancellationToken,
    report: Option<Report>,
}

impl Look {
    /// Begins now.
    pub(crate) fn new(
        limits: SnapshotLimits,
        cancelled: CancellationToken,
        report: Option<Report>,
    ) -> Self {
        Self { limits, until: Instant::now() + limits.deadline, cancelled, report }
    }

    /// What is left of its time; never nothing, which clients take for "for ever".
    pub(crate) fn left(&self) -> Duration {
        self.until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1))
    }

    /// The time for one request: half of it all, so that one who has more patience with a slow broker
    /// than the default is not given up on by its first request.
    pub(crate) fn step(&self) -> Duration {
        self.left().min(STEP.max(self.limits.deadline / 2))
    }

    fn report(&self, progress: SnapshotProgress) {
        if let Some(report) = &self.report {
            report(progress);
        }
    }
}

/// What follows from a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Walk {
    /// The next one.
    On,
    /// Nothing more of this partition.
    Leave,
    /// Nothing more of any other partition.
    Stay,
}

/// What a record of the store is.
pub(crate) enum Found {
    Record { record: Record, appended_ms: i64 },
    Foreign,
    Newer(DecodeError),
}

/// Reads our header, without copying what is the user's.
pub(crate) fn read(message: &BorrowedMessage<'_>) -> Found {
    match packed(message).map(codec::decode) {
        Some(Ok(record)) => {
            Found::Record { record, appended_ms: message.timestamp().to_millis().unwrap_or(0) }
        }
        Some(Err(error @ DecodeError::Newer(_))) => Found::Newer(error),
        Some(Err(DecodeError::Foreign(_))) | None => Found::Foreign,
    }
}

/// Its ordering key.
pub(crate) fn key(message: &BorrowedMessage<'_>) -> Option<Bytes> {
    message.key().map(Bytes::copy_from_slice)
}

/// Shows every record of these ranges, each partition's in its order. Blocks.
///
/// # Errors
/// [`SnapshotError`], saying how far it came.
pub(crate) fn walk(
    kafka: &KafkaConfig,
    store: &str,
    ranges: &BTreeMap<i32, Range<i64>>,
    look: &Look,
    show: impl FnMut(&BorrowedMessage<'_>) -> Walk,
) -> Result<(), SnapshotError> {
    let mut walker = Walker::new(store, ranges, look)?;
    if walker.ends.is_empty() {
        return Ok(());
    }
    let of = walker.progress.of;
    let walked = walk_on(kafka, store, ranges, &mut walker, show);
    look.report(SnapshotProgress { read: of, of });
    walked
}

fn walk_on(
    kafka: &KafkaConfig,
    store: &str,
    ranges: &BTreeMap<i32, Range<i64>>,
    walker: &mut Walker<'_>,
    mut show: impl FnMut(&BorrowedMessage<'_>) -> Walk,
) -> Result<(), SnapshotError> {
    let look = walker.look;
    let consumer = consumer(kafka, store, ranges, look).map_err(|error| unreachable(&error))?;
    let mut last = String::new();
    while !walker.ends.is_empty() {
        if look.cancelled.is_cancelled() {
            return Err(SnapshotError::GivenUp("nobody waits for it"));
        }
        if Instant::now() > look.until {
            let SnapshotProgress { read, of } = walker.progress;
            let deadline = look.limits.deadline;
            return Err(SnapshotError::TooSlow { read, of, deadline, last });
        }
        match consumer.poll(POLL) {
            Some(Ok(message)) => walker.message(&consumer, &message, &mut show),
            Some(Err(KafkaError::PartitionEOF(partition))) => walker.leave(&consumer, partition),
            Some(Err(KafkaError::MessageConsumption(RDKafkaErrorCode::AutoOffsetReset))) => {
                return Err(SnapshotError::GivenUp("the log was trimmed meanwhile; look again"));
            }
            // The broker moves or is away for a moment; the deadline ends what does not pass.
            Some(Err(error)) => last = format!(" ({error})"),
            None => look.report(walker.progress),
        }
    }
    Ok(())
}

struct Walker<'a> {
    store: &'a str,
    look: &'a Look,
    /// Where each partition that is still read ends.
    ends: BTreeMap<i32, i64>,
    progress: SnapshotProgress,
}

impl<'a> Walker<'a> {
    fn new(
        store: &'a str,
        ranges: &BTreeMap<i32, Range<i64>>,
        look: &'a Look,
    ) -> Result<Self, SnapshotError> {
        let length = |range: &Range<i64>| u64::try_from(range.end - range.start).unwrap_or(0);
        let of = ranges.values().map(length).sum();
        let max = look.limits.max_records;
        if of > max {
            return Err(SnapshotError::TooMany { records: of, max });
        }
        let ends = ranges.iter().filter(|(_, range)| !range.is_empty());
        let ends = ends.map(|(partition, range)| (*partition, range.end)).collect();
        Ok(Self { store, look, ends, progress: SnapshotProgress { read: 0, of } })
    }

    fn message(
        &mut self,
        consumer: &BaseConsumer,
        message: &BorrowedMessage<'_>,
        show: &mut impl FnMut(&BorrowedMessage<'_>) -> Walk,
    ) {
        let partition = message.partition();
        let Some(end) = self.ends.get(&partition).copied() else { return };
        if message.offset() >= end {
            return self.leave(consumer, partition);
        }
        self.progress.read += 1;
        if self.progress.read.is_multiple_of(REPORT_EVERY) {
            self.look.report(self.progress);
        }
        match show(message) {
            Walk::On => {}
            Walk::Leave => return self.leave(consumer, partition),
            Walk::Stay => {
                let others: Vec<i32> =
                    self.ends.keys().copied().filter(|other| *other != partition).collect();
                for other in others {
                    self.leave(consumer, other);
                }
            }
        }
        if message.offset() + 1 >= end {
            self.leave(consumer, partition);
        }
    }

    fn leave(&mut self, consumer: &BaseConsumer, partition: i32) {
        if self.ends.remove(&partition).is_none() {
            return;
        }
        let mut one = TopicPartitionList::new();
        one.add_partition(self.store, partition);
        if let Err(error) = consumer.pause(&one) {
            tracing::debug!(%error, partition, "a partition that was read is fetched on");
        }
    }
}

/// Like the owners, it does not see what belongs to no finished transaction.
fn consumer(
    kafka: &KafkaConfig,
    store: &str,
    ranges: &BTreeMap<i32, Range<i64>>,
    look: &Look,
) -> Result<BaseConsumer, KafkaError> {
    let mut client = kafka.consumer(store);
    client
        .set("isolation.level", "read_committed")
        .set("enable.partition.eof", "true")
        .set("auto.offset.reset", "error");
    let consumer: BaseConsumer = client.create()?;
    // Without it the first record comes half a second late.
    consumer.fetch_metadata(Some(store), look.step())?;
    let mut assignment = TopicPartitionList::new();
    for (partition, range) in ranges.iter().filter(|(_, range)| !range.is_empty()) {
        assignment.add_partition_offset(store, *partition, Offset::Offset(range.start))?;
    }
    consumer.assign(&assignment)?;
    Ok(consumer)
}

//! Counts, when a run is over, what its target holds: nothing may be missing.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use anyhow::ensure;
use halfmsg_kafka::KafkaConfig;
use rdkafka::Offset;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::Message as _;

use super::phase::number;
use super::topics::{PARTITIONS, every_partition};

/// Reading the whole target once more.
const DEADLINE: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(100);

/// What the target holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Audit {
    /// Messages that are not there.
    pub(crate) lost: u64,
    /// Messages that are there once more.
    pub(crate) duplicates: u64,
}

/// Reads the target from its beginning to its end; `count` messages must be there. Blocks.
pub(crate) fn audit(kafka: &KafkaConfig, target: &str, count: u64) -> anyhow::Result<Audit> {
    let consumer: BaseConsumer = kafka
        .consumer("bench-audit")
        .set("isolation.level", "read_committed")
        .set("enable.partition.eof", "true")
        .create()?;
    consumer.assign(&every_partition(&consumer, target, Offset::Beginning)?)?;
    let mut tally = Tally::new(count);
    let mut ended = HashSet::new();
    let until = Instant::now() + DEADLINE;
    while ended.len() < PARTITIONS as usize {
        ensure!(Instant::now() < until, "the target cannot be read to its end within {DEADLINE:?}");
        match consumer.poll(POLL) {
            Some(Ok(message)) => tally.count(message.payload().and_then(number)),
            Some(Err(KafkaError::PartitionEOF(partition))) => {
                ended.insert(partition);
            }
            // Transient: the client goes on by itself, up to the deadline.
            Some(Err(_)) | None => {}
        }
    }
    Ok(tally.result())
}

struct Tally {
    seen: Vec<bool>,
    distinct: u64,
    duplicates: u64,
}

impl Tally {
    fn new(count: u64) -> Self {
        let seen = vec![false; usize::try_from(count).unwrap_or(usize::MAX)];
        Self { seen, distinct: 0, duplicates: 0 }
    }

    /// A number that was never sent counts as a duplicate: it must not be there either.
    fn count(&mut self, number: Option<u64>) {
        let slot = number.and_then(|number| self.seen.get_mut(usize::try_from(number).ok()?));
        match slot {
            Some(seen) if !*seen => {
                *seen = true;
                self.distinct += 1;
            }
            _ => self.duplicates += 1,
        }
    }

    fn result(&self) -> Audit {
        Audit { lost: self.seen.len() as u64 - self.distinct, duplicates: self.duplicates }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_what_is_missing_and_what_is_there_twice() {
        let mut tally = Tally::new(3);
        for number in [Some(0), Some(2), Some(2), Some(3), None] {
            tally.count(number);
        }
        assert_eq!(tally.result(), Audit { lost: 1, duplicates: 3 });
    }
}

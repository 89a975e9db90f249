//! The readers of the store's partitions: one for each that bodies are asked of, so that a partition
//! whose leader is away holds up no other. It must never hold its lock while somebody reads.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use halfmsg_kafka::KafkaConfig;

use super::StoreReader;
use crate::config::ProducerConfig;

/// Each has a client with its threads and connections, and what it has fetched in advance.
const MOST_READERS: usize = 16;
/// A reader that nobody has asked for so long is let go.
const IDLE_FOR: Duration = Duration::from_secs(60);
/// Until others have read what they want of the same partition, or of too many others.
pub(super) const TURN_DEADLINE: Duration = Duration::from_secs(30);

/// Readers by partition.
pub(super) struct Readers {
    kafka: KafkaConfig,
    topic: String,
    pool: Mutex<Pool>,
    freed: Condvar,
    idle_for: Duration,
    turn_deadline: Duration,
}

#[derive(Default)]
struct Pool {
    busy: BTreeSet<i32>,
    /// Since when nobody reads with them.
    idle: BTreeMap<i32, (Instant, StoreReader)>,
}

impl Pool {
    fn take_unused(&mut self, idle_for: Duration) -> Vec<StoreReader> {
        let unused = self.idle.extract_if(.., |_, (since, _)| since.elapsed() >= idle_for);
        unused.map(|(_, (_, reader))| reader).collect()
    }

    /// The one that nobody has asked for longest, if there are more than the bound.
    fn take_surplus(&mut self) -> Option<StoreReader> {
        if self.busy.len() + self.idle.len() <= MOST_READERS {
            return None;
        }
        let oldest = self.idle.iter().min_by_key(|(_, (since, _))| *since);
        let oldest = oldest.map(|(partition, _)| *partition)?;
        self.idle.remove(&oldest).map(|(_, reader)| reader)
    }
}

impl Readers {
    pub(super) fn new(config: &ProducerConfig) -> Self {
        Self {
            kafka: config.kafka.clone(),
            topic: config.store_topic(),
            pool: Mutex::default(),
            freed: Condvar::new(),
            idle_for: IDLE_FOR,
            turn_deadline: TURN_DEADLINE,
        }
    }

    pub(super) fn topic(&self) -> &str {
        &self.topic
    }

    /// Reads with the partition's reader; nothing if others did not let it within
    /// [`TURN_DEADLINE`].
    pub(super) fn with<T>(
        &self,
        partition: i32,
        read: impl FnOnce(&mut StoreReader) -> T,
    ) -> Option<T> {
        let must_wait =
            |pool: &mut Pool| pool.busy.contains(&partition) || pool.busy.len() >= MOST_READERS;
        let turn = self.freed.wait_timeout_while(self.lock(), self.turn_deadline, must_wait);
        let (mut pool, waited) = turn.unwrap_or_else(PoisonError::into_inner);
        if waited.timed_out() {
            return None;
        }
        pool.busy.insert(partition);
        let mut turn = Turn { readers: self, partition, reader: None };
        let reader = pool.idle.remove(&partition).map(|(_, reader)| reader);
        let gone = (pool.take_unused(self.idle_for), pool.take_surplus());
        // The end of a client takes its time.
        drop(pool);
        drop(gone);
        let mut reader =
            reader.unwrap_or_else(|| StoreReader::of(&self.kafka, &self.topic, partition));
        let result = read(&mut reader);
        turn.reader = Some(reader);
        Some(result)
    }

    /// Those that nobody has asked for [`IDLE_FOR`]. Dropping them blocks.
    pub(super) fn take_unused(&self) -> Vec<StoreReader> {
        self.lock().take_unused(self.idle_for)
    }

    fn lock(&self) -> MutexGuard<'_, Pool> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A partition that somebody reads; whatever happens to them, others may go on.
struct Turn<'a> {
    readers: &'a Readers,
    partition: i32,
    reader: Option<StoreReader>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut pool = self.readers.lock();
        pool.busy.remove(&self.partition);
        if let Some(reader) = self.reader.take() {
            pool.idle.insert(self.partition, (Instant::now(), reader));
        }
        drop(pool);
        self.readers.freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn readers() -> Readers {
        let kafka = KafkaConfig::new("127.0.0.1:1");
        Readers::new(&ProducerConfig::new(kafka, "tests", "group"))
    }

    #[test]
    fn a_partition_that_is_read_holds_up_itself_alone() {
        let readers = Readers { turn_deadline: Duration::from_millis(20), ..readers() };
        let read = readers.with(0, |_| {
            assert!(readers.with(0, |_| ()).is_none(), "one at a time");
            readers.with(1, |_| ()).is_some()
        });
        assert_eq!(read, Some(true));
        assert!(readers.with(0, |_| ()).is_some(), "it is free again");
    }

    #[test]
    fn readers_are_kept_up_to_the_bound_and_while_they_are_used() {
        let mut readers = readers();
        for partition in 0..20 {
            readers.with(partition, |reader| assert_eq!(reader.partition, partition));
        }
        let kept: Vec<i32> = readers.lock().idle.keys().copied().collect();
        assert_eq!(kept, (4..20).collect::<Vec<_>>());
        assert!(readers.take_unused().is_empty(), "not yet");
        readers.idle_for = Duration::ZERO;
        assert_eq!(readers.take_unused().len(), MOST_READERS);
        assert!(readers.lock().idle.is_empty());
    }

    #[test]
    fn no_more_read_at_once_than_the_bound() {
        fn deeper(readers: &Readers, partition: i32) -> i32 {
            readers.with(partition, |_| deeper(readers, partition + 1)).unwrap_or(partition)
        }
        let readers = Readers { turn_deadline: Duration::from_millis(20), ..readers() };
        assert_eq!(usize::try_from(deeper(&readers, 0)), Ok(MOST_READERS));
    }

    #[test]
    fn a_reader_that_panics_leaves_the_partition_to_others() {
        let readers = readers();
        let read = || readers.with(0, |_| panic!("expected"));
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(read));
        assert!(panicked.is_err() && readers.lock().busy.is_empty());
        assert!(readers.with(0, |_| ()).is_some());
    }
}

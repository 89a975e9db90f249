//! Reads bodies again that were let go from memory: of open halves from the store, of parked ones
//! from the parked topic. Everything here blocks, as long as there is progress within a deadline. What
//! was read is kept when the rest could not be: the next attempt goes on there.
//!
//! # Layout
//! - `store_reader`: single records of one partition of the store
//! - `readers`: the readers of all partitions, and whose turn it is

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use halfmsg_kafka::KafkaConfig;
use halfmsg_protocol::{Body, Half, TransactionId};
use rdkafka::error::KafkaError;

use crate::config::ProducerConfig;
use crate::parked;
use crate::scan::Patience;

mod readers;
mod store_reader;

use readers::{Readers, TURN_DEADLINE};
pub(crate) use store_reader::StoreReader;

/// Until the next body of a batch is there, or the next record of the parked topic.
const DEADLINE: Duration = Duration::from_secs(10);

/// Why a body cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    #[error("the store cannot be read: {0}")]
    Kafka(#[from] KafkaError),
    #[error("{topic}[{partition}]@{offset}: the record is gone; was the topic cut by hand?")]
    Gone { topic: String, partition: i32, offset: i64 },
    #[error("{topic}[{partition}]@{offset}: not read within {patience:?}")]
    Late { topic: String, partition: i32, offset: i64, patience: Duration },
    #[error("{topic}[{partition}]: others have read it for {TURN_DEADLINE:?}")]
    Busy { topic: String, partition: i32 },
    #[error("given up")]
    GivenUp,
}

/// A body that could not be read, and those behind it were not looked for.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub(crate) struct Unread {
    /// The offset of the record that has it.
    pub(crate) stored_at: i64,
    pub(crate) error: BodyError,
}

/// Whole halves, by their `stored_at`.
pub(crate) type Whole = BTreeMap<i64, Arc<Half>>;

/// Bodies for the check-back, views and operators.
pub(crate) struct Bodies {
    kafka: KafkaConfig,
    parked_topic: String,
    store: Readers,
}

impl Bodies {
    pub(crate) fn new(config: &ProducerConfig) -> Self {
        let store = Readers::new(config);
        Self { kafka: config.kafka.clone(), parked_topic: config.parked_topic(), store }
    }

    /// The whole halves of those of these open ones that are stubs, by their `stored_at`.
    pub(crate) fn open(&self, partition: i32, halves: &[&Arc<Half>]) -> Result<Whole, Unread> {
        let Some(stub) = halves.iter().find(|half| half.is_stub) else { return Ok(Whole::new()) };
        let read = self.store.with(partition, |store| store.whole(halves, || false));
        read.unwrap_or_else(|| {
            let error = BodyError::Busy { topic: self.store.topic().to_owned(), partition };
            Err(Unread { stored_at: stub.stored_at, error })
        })
    }

    /// The same, of those that can be read; and which cannot, the first that was tried first.
    pub(crate) fn open_but(&self, partition: i32, halves: &[&Arc<Half>]) -> (Whole, Vec<Unread>) {
        let Some(stub) = halves.iter().find(|half| half.is_stub) else {
            return (Whole::new(), Vec::new());
        };
        let read = self.store.with(partition, |store| store.whole_but(halves));
        read.unwrap_or_else(|| {
            let error = BodyError::Busy { topic: self.store.topic().to_owned(), partition };
            (Whole::new(), vec![Unread { stored_at: stub.stored_at, error }])
        })
    }

    /// Readers of the store that nobody has asked for a while. Dropping them blocks.
    pub(crate) fn take_unused(&self) -> Vec<StoreReader> {
        self.store.take_unused()
    }

    /// The body of a parked message.
    pub(crate) fn parked(&self, partition: i32, id: TransactionId) -> Result<Body, BodyError> {
        let patience = Patience::Idle(DEADLINE);
        let found = parked::read_body(&self.kafka, &self.parked_topic, partition, id, patience)?;
        let topic = || self.parked_topic.clone();
        found.ok_or_else(|| BodyError::Gone { topic: topic(), partition, offset: -1 })
    }
}

//! What the records of a group's store and parked topic say.

use halfmsg_producer::{ProducerConfig, TransactionId};
use halfmsg_protocol::{HEADER, Record, codec};

use super::topic::{Entry, read_all};

/// Every record of the store that is ours.
pub(crate) async fn read_store(config: &ProducerConfig) -> Vec<Record> {
    let entries = read_all(&config.kafka, &config.store_topic()).await;
    entries.into_iter().filter_map(ours).collect()
}

fn ours(entry: Entry) -> Option<Record> {
    codec::decode(entry.header(HEADER)?).ok()
}

/// How many PARK records the store has about this half.
pub(crate) fn parks_in(store: &[Record], id: TransactionId) -> usize {
    let parks = store.iter().filter(|record| matches!(record, Record::Park(_)));
    parks.filter(|record| record.id() == id).count()
}

/// The numbers of the attempts that the store counts about this half.
pub(crate) fn attempts_in(store: &[Record], id: TransactionId) -> Vec<u32> {
    let attempt = |record: &Record| match record {
        Record::Checked(checked) if checked.of.id == id => Some(checked.attempt),
        _ => None,
    };
    store.iter().filter_map(attempt).collect()
}

/// The records of the parked topic about this half, oldest first; those with a payload and those
/// that delete.
pub(crate) async fn parked_records(config: &ProducerConfig, id: TransactionId) -> Vec<Entry> {
    let key = id.to_string().into_bytes();
    let entries = read_all(&config.kafka, &config.parked_topic()).await;
    entries.into_iter().filter(|entry| entry.key.as_ref() == Some(&key)).collect()
}

//! What arrives in a target topic.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use halfmsg_kafka::KafkaConfig;
use halfmsg_producer::{ProducerConfig, TransactionId};
use halfmsg_protocol::TRANSACTION_ID_HEADER;
use uuid::Uuid;

use super::progress::carried_out;
use super::topic::{Entry, from_the_beginning, write};
use super::{PATIENCE, until};

/// One poll.
const POLL: Duration = Duration::from_millis(20);
/// The header of a record that stands behind everything that was delivered.
const MARKER: &str = "test-marker";

/// A delivered message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Delivered {
    pub(crate) transaction_id: TransactionId,
    /// The record, without our header.
    pub(crate) entry: Entry,
}

impl Delivered {
    /// The payload as text.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(self.entry.payload.as_deref().unwrap_or_default()).into_owned()
    }
}

/// Reads a topic from its beginning, on a thread of its own, until it is dropped.
pub(crate) struct Reader {
    kafka: KafkaConfig,
    topic: String,
    partitions: usize,
    seen: Arc<Mutex<Vec<Entry>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Reader {
    /// Begins to read (read_committed).
    pub(crate) async fn start(kafka: &KafkaConfig, topic: &str) -> Self {
        let (config, name) = (kafka.clone(), topic.to_owned());
        let made = tokio::task::spawn_blocking(move || from_the_beginning(&config, &name)).await;
        let (consumer, partitions) = made.expect("no panic").expect("the topic can be read");
        let seen = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let (entries, stopped) = (Arc::clone(&seen), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                // Errors pass, or the test that waits for a message says what is missing.
                if let Some(Ok(message)) = consumer.poll(POLL) {
                    let entry = Entry::of(&message);
                    entries.lock().unwrap_or_else(PoisonError::into_inner).push(entry);
                }
            }
        });
        let (kafka, topic, thread) = (kafka.clone(), topic.to_owned(), Some(thread));
        Self { kafka, topic, partitions, seen, stop, thread }
    }

    /// What has arrived so far, in the order of each partition.
    pub(crate) fn seen(&self) -> Vec<Delivered> {
        let entries = self.entries();
        entries.into_iter().filter(|entry| entry.header(MARKER).is_none()).map(delivered).collect()
    }

    /// Waits until this payload has arrived.
    pub(crate) async fn sees(&self, text: &str) -> Delivered {
        until(PATIENCE, &format!("'{text}' to be delivered"), async || {
            let seen = self.seen();
            let found = seen.iter().find(|message| message.text() == text).cloned();
            found.ok_or_else(|| format!("{} others were", seen.len()))
        })
        .await
    }

    /// Everything that this group delivers of what it has stored by now: waits until every outcome
    /// is carried out, then for markers behind the deliveries.
    pub(crate) async fn everything_of(&self, config: &ProducerConfig) -> Vec<Delivered> {
        self.everything_but(config, &[]).await
    }

    /// The same, with store partitions that are expected to stand still.
    pub(crate) async fn everything_but(
        &self,
        config: &ProducerConfig,
        stopped: &[i32],
    ) -> Vec<Delivered> {
        carried_out(config, stopped).await;
        let marker = Uuid::new_v4().to_string();
        let partitions = i32::try_from(self.partitions).expect("a few");
        for partition in 0..partitions {
            let headers = vec![(MARKER.to_owned(), Some(marker.clone().into_bytes()))];
            let entry = Entry { partition, headers, ..Entry::default() };
            write(&self.kafka, &self.topic, &entry).await;
        }
        until(PATIENCE, "the markers to arrive", async || {
            let entries = self.entries();
            let is_marker = |entry: &&Entry| entry.header(MARKER) == Some(marker.as_bytes());
            let arrived = entries.iter().filter(is_marker).count();
            if arrived == self.partitions { Ok(()) } else { Err(format!("{arrived} did")) }
        })
        .await;
        self.seen()
    }

    /// The records, in the order of each partition.
    pub(crate) fn entries(&self) -> Vec<Entry> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic there has been printed already.
            drop(thread.join());
        }
    }
}

fn delivered(mut entry: Entry) -> Delivered {
    let id = entry.header(TRANSACTION_ID_HEADER).and_then(|id| std::str::from_utf8(id).ok());
    let id = id.and_then(|id| id.parse().ok());
    let transaction_id = id.unwrap_or_else(|| panic!("no transaction id in {entry:?}"));
    entry.headers.retain(|(name, _)| name != TRANSACTION_ID_HEADER);
    Delivered { transaction_id, entry }
}

/// How often each payload was delivered.
pub(crate) fn counts(delivered: &[Delivered]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for message in delivered {
        *counts.entry(message.text()).or_default() += 1;
    }
    counts
}

/// Each of these once, and nothing else.
pub(crate) fn once_each(texts: impl IntoIterator<Item = String>) -> BTreeMap<String, usize> {
    texts.into_iter().map(|text| (text, 1)).collect()
}

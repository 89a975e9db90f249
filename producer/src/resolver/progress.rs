//! Stores progress (L, P) as committed offset and metadata in at-least-once mode: one commit under
//! way at a time, and nothing counts as stored before the broker has said so. In exactly-once mode
//! the lanes store it with their batches.
//!
//! A commit blocks as long as the group's coordinator is away, and the client reports the end of
//! one that does not block to nobody: so it has a thread of its own.

use std::collections::BTreeMap;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Instant;

use halfmsg_protocol::Progress;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::KafkaError;

use super::Owned;
use super::assignment::StoreContext;
use super::lane::PROGRESS_INTERVAL;
use crate::stored::offsets;

type Positions = BTreeMap<i32, Progress>;

/// Writes progress.
pub(crate) struct ProgressWriter {
    store: String,
    jobs: mpsc::Sender<(u64, Positions)>,
    thread: JoinHandle<()>,
    answers: mpsc::Receiver<(u64, Result<(), KafkaError>)>,
    stored: Positions,
    under_way: Option<(u64, Positions)>,
    last_job: u64,
    last: Option<Instant>,
}

impl ProgressWriter {
    /// Starts the thread; it ends when this is dropped.
    pub(crate) fn new(store: String, consumer: Arc<BaseConsumer<StoreContext>>) -> Self {
        let (jobs, todo) = mpsc::channel::<(u64, Positions)>();
        let (done, answers) = mpsc::channel();
        let topic = store.clone();
        let thread = std::thread::spawn(move || {
            while let Ok((job, positions)) = todo.recv() {
                let result = commit(&consumer, &topic, &positions);
                if done.send((job, result)).is_err() {
                    return;
                }
            }
        });
        Self {
            store,
            jobs,
            thread,
            answers,
            stored: BTreeMap::new(),
            under_way: None,
            last_job: 0,
            last: None,
        }
    }

    /// Ends the thread, after the commit under way: then nothing holds the consumer any more.
    ///
    /// A commit that is still under way waits for a coordinator that may be away for long: its
    /// thread is left to itself then, and ends with it.
    pub(crate) fn end(self) {
        drop(self.jobs);
        if self.under_way.is_some() {
            return;
        }
        if self.thread.join().is_err() {
            tracing::error!("the thread that stores progress panicked");
        }
    }

    /// The partition is taken over: nothing is known to be stored.
    pub(crate) fn forget(&mut self, partition: i32) {
        self.stored.remove(&partition);
        self.under_way = None;
        self.last = None;
    }

    /// The next turn commits at once.
    pub(crate) fn hurry(&mut self) {
        self.last = None;
    }

    /// Whether everything that may be stored is stored.
    pub(crate) fn is_current(&self, owned: &BTreeMap<i32, Owned>) -> bool {
        self.under_way.is_none() && self.changed(owned).is_empty()
    }

    /// Takes the answer of a commit in, begins the next; returns what is now stored.
    pub(crate) fn turn(&mut self, owned: &BTreeMap<i32, Owned>) -> Positions {
        let stored = self.answer();
        if self.under_way.is_none()
            && self.last.is_none_or(|last| last.elapsed() >= PROGRESS_INTERVAL)
        {
            self.last = Some(Instant::now());
            let changed = self.changed(owned);
            if !changed.is_empty() {
                self.begin(changed);
            }
        }
        stored
    }

    fn answer(&mut self) -> Positions {
        while let Ok((job, result)) = self.answers.try_recv() {
            let Some((_, positions)) = self.under_way.take_if(|(under_way, _)| *under_way == job)
            else {
                continue;
            };
            match result {
                Ok(()) => {
                    self.stored.extend(&positions);
                    return positions;
                }
                Err(error) => {
                    tracing::warn!(%error, topic = self.store, "progress is not stored yet");
                }
            }
        }
        BTreeMap::new()
    }

    fn changed(&self, owned: &BTreeMap<i32, Owned>) -> Positions {
        owned
            .iter()
            .filter(|(_, owned)| !owned.is_lost)
            .filter_map(|(partition, owned)| Some((*partition, owned.core.progress()?)))
            .filter(|(partition, progress)| self.stored.get(partition) != Some(progress))
            .collect()
    }

    fn begin(&mut self, positions: Positions) {
        self.last_job += 1;
        if self.jobs.send((self.last_job, positions.clone())).is_ok() {
            self.under_way = Some((self.last_job, positions));
        }
    }
}

fn commit(
    consumer: &BaseConsumer<StoreContext>,
    store: &str,
    positions: &Positions,
) -> Result<(), KafkaError> {
    let offsets =
        offsets(store, positions.iter().map(|(partition, progress)| (*partition, *progress)))?;
    consumer.commit(&offsets, CommitMode::Sync)
}

//! Reads the target of a run on a thread of its own, as a read-committed consumer would.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::bail;
use halfmsg_kafka::KafkaConfig;
use rdkafka::Offset;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::Message as _;

use super::phase::{Phase, number};
use super::topics::every_partition;

/// From one message to the next; and to the first, which may be a check-back's.
const SEEN_DEADLINE: Duration = Duration::from_secs(60);
/// How often it is looked whether the last one was seen; no part of any figure.
const LOOK: Duration = Duration::from_millis(5);
/// One wait for a message.
const POLL: Duration = Duration::from_millis(20);

struct Watched {
    phase: Arc<Phase>,
    latencies: Vec<Duration>,
    last: Instant,
}

/// The reader's thread and what it has seen.
pub(crate) struct Reader {
    watched: Arc<Mutex<Watched>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Reader {
    /// Begins to read.
    pub(crate) fn start(kafka: &KafkaConfig, target: &str) -> anyhow::Result<Self> {
        let consumer: BaseConsumer = kafka
            .consumer("bench-reader")
            .set("isolation.level", "read_committed")
            // What it reads in advance is no memory of the engine's.
            .set("queued.max.messages.kbytes", "4096")
            .set("fetch.wait.max.ms", "10")
            .create()?;
        consumer.assign(&every_partition(&consumer, target, Offset::Beginning)?)?;
        let phase = Arc::new(Phase::new(0, 0, None));
        let watched = Watched { phase, latencies: Vec::new(), last: Instant::now() };
        let (watched, stop) = (Arc::new(Mutex::new(watched)), Arc::new(AtomicBool::new(false)));
        let thread = {
            let (watched, stop) = (Arc::clone(&watched), Arc::clone(&stop));
            let named = std::thread::Builder::new().name("bench-reader".into());
            named.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    if let Some(Ok(message)) = consumer.poll(POLL) {
                        note(&watched, message.payload().unwrap_or_default());
                    }
                }
            })?
        };
        Ok(Self { watched, stop, thread: Some(thread) })
    }

    /// What is seen from here on belongs to this phase.
    pub(crate) fn watch(&self, phase: &Arc<Phase>) {
        let mut watched = lock(&self.watched);
        watched.phase = Arc::clone(phase);
        watched.latencies = Vec::with_capacity(usize::try_from(phase.count()).unwrap_or(0));
    }

    /// Waits until every message of the phase was seen: when the last one was, and the time from
    /// each one's commit call, sorted.
    pub(crate) async fn wait(&self) -> anyhow::Result<(Instant, Vec<Duration>)> {
        let mut progress = (0, Instant::now());
        loop {
            {
                let mut watched = lock(&self.watched);
                let (seen, count) = (watched.latencies.len() as u64, watched.phase.count());
                if seen > progress.0 {
                    progress = (seen, Instant::now());
                }
                if seen >= count {
                    let mut latencies = std::mem::take(&mut watched.latencies);
                    latencies.sort_unstable();
                    return Ok((watched.last, latencies));
                }
                if progress.1.elapsed() > SEEN_DEADLINE {
                    let missing = count - seen;
                    bail!(
                        "{missing} of {count} messages are missing, none came for {SEEN_DEADLINE:?}"
                    );
                }
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            eprintln!("the reader's thread panicked");
        }
    }
}

fn note(watched: &Mutex<Watched>, payload: &[u8]) {
    let Some(number) = number(payload) else { return };
    let mut watched = lock(watched);
    if let Some(latency) = watched.phase.seen(number) {
        watched.latencies.push(latency);
        watched.last = Instant::now();
    }
}

fn lock(watched: &Mutex<Watched>) -> MutexGuard<'_, Watched> {
    watched.lock().unwrap_or_else(PoisonError::into_inner)
}

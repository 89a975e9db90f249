//! Reads the target of a benchmark on a thread of its own, and keeps the times.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::bail;
use halfmsg_kafka::KafkaConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::Message as _;
use rdkafka::{Offset, TopicPartitionList};

#[derive(Default)]
struct Seen {
    committing: HashMap<u64, Duration>,
    latencies: Vec<Duration>,
    distinct: u64,
    last: Duration,
}

/// The reader's thread and what it has seen.
pub(crate) struct Reader {
    seen: Arc<Mutex<Seen>>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Reader {
    /// Begins to read; times count from `epoch`.
    pub(crate) fn start(
        kafka: &KafkaConfig,
        target: &str,
        partitions: i32,
        epoch: Instant,
    ) -> anyhow::Result<Self> {
        let mut config = kafka.consumer("bench-reader");
        let consumer: BaseConsumer = config
            .set("isolation.level", "read_committed")
            .set("fetch.wait.max.ms", "10")
            .create()?;
        let mut all = TopicPartitionList::new();
        for partition in 0..partitions {
            all.add_partition_offset(target, partition, Offset::Beginning)?;
        }
        consumer.fetch_metadata(Some(target), Duration::from_secs(10))?;
        consumer.assign(&all)?;
        let (seen, stop) =
            (Arc::new(Mutex::new(Seen::default())), Arc::new(AtomicBool::new(false)));
        let thread = {
            let (seen, stop) = (Arc::clone(&seen), Arc::clone(&stop));
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    if let Some(Ok(message)) = consumer.poll(Duration::from_millis(20)) {
                        note(&seen, message.payload().unwrap_or_default(), epoch.elapsed());
                    }
                }
            })
        };
        Ok(Self { seen, stop, thread })
    }

    /// This transaction's commit is being called.
    pub(crate) fn committing(&self, number: u64, at: Duration) {
        lock(&self.seen).committing.insert(number, at);
    }

    /// Waits until so many different messages are seen; the time of the last.
    pub(crate) async fn wait(&self, count: u64, deadline: Duration) -> anyhow::Result<Duration> {
        let until = Instant::now() + deadline;
        loop {
            {
                let seen = lock(&self.seen);
                if seen.distinct >= count {
                    return Ok(seen.last);
                }
                if Instant::now() > until {
                    bail!("{} of {count} messages were seen", seen.distinct);
                }
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Percentiles of commit call to message seen.
    pub(crate) fn latency(&self) -> String {
        let mut all = lock(&self.seen).latencies.clone();
        all.sort_unstable();
        let at = |share: f64| {
            let index = ((all.len().saturating_sub(1)) as f64 * share) as usize;
            all.get(index).copied().unwrap_or_default().as_secs_f64() * 1e3
        };
        format!("p50 {:.1} ms, p99 {:.1} ms", at(0.5), at(0.99))
    }

    pub(crate) fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        if self.thread.join().is_err() {
            println!("the reader's thread panicked");
        }
    }
}

fn note(seen: &Mutex<Seen>, payload: &[u8], at: Duration) {
    let Some(number) = payload.first_chunk::<8>().map(|bytes| u64::from_le_bytes(*bytes)) else {
        return;
    };
    let mut seen = lock(seen);
    if let Some(committing) = seen.committing.remove(&number) {
        seen.latencies.push(at.saturating_sub(committing));
        seen.distinct += 1;
        seen.last = at;
    }
}

fn lock(seen: &Mutex<Seen>) -> std::sync::MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

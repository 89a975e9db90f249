//! The other side: a producer that writes steadily, and looks at the disk and at its own memory
//! meanwhile. What must hold is counted in bytes and messages, so a slow machine takes longer and
//! fails no bound.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use halfmsg_kafka::KafkaConfig;
use halfmsg_producer::{
    HalfFilter, HalfMessage, HalfState, ListenerResult, LocalTransactionState, Message,
    ProducerConfig, Transaction, TransactionListener, TransactionProducer,
};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::{FIGURES, Figures, PAYLOAD_BYTES, SETTINGS, commits, config};
use crate::suite::bounds::bounds;
use crate::suite::disk::bytes_of;
use crate::suite::progress::carried_out;
use crate::suite::{Env, PATIENCE, until};

const PURPOSE: &str = "soak";
/// Senders, each with one transaction at a time, and the time from one to its next: 400 a second.
const SENDERS: usize = 16;
const PACE: Duration = Duration::from_millis(40);
/// From one look at disk and memory to the next.
const LOOK: Duration = Duration::from_millis(200);

/// How often a half is left open, some 15 s of load each, if [`CYCLES_SETTING`] does not say it.
const CYCLES: usize = 2;
const CYCLES_SETTING: &str = "HALFMSG_TEST_SOAK_CYCLES";
/// Transactions while a half is open and others are left to the check-back.
const MIXED: u64 = 2_000;
/// While only the one is open.
const HELD: u64 = 1_000;
/// Of a round with nothing left open, and such rounds of a cycle.
const ROUND: u64 = 1_000;
const ROUNDS: usize = 3;
/// The store comes back to this after each round.
const BOUND_BYTES: u64 = 12 << 20;
/// And is never beyond this within one: the round, as much again that is begun until it is looked
/// at, and what frames them.
const CEILING_BYTES: u64 = BOUND_BYTES + 2 * ROUND * PAYLOAD_BYTES as u64 + (2 << 20);
/// All that is written is more than so many times that.
const SEVERAL: u64 = 3;
/// What the memory may grow by behind the first cycle, in which more than this is written.
const GROWTH_BYTES: u64 = 40 << 20;

/// The number that a payload carries.
pub(super) fn number(payload: &[u8]) -> u64 {
    u64::from_be_bytes(*payload.first_chunk().expect("a payload with its number"))
}

fn message(target: &str, number: u64) -> Message {
    let mut payload = vec![b'.'; PAYLOAD_BYTES];
    payload[..8].copy_from_slice(&number.to_be_bytes());
    Message::new(target, payload)
}

/// Answers by number, and counts.
#[derive(Clone, Default)]
struct ByNumber(Arc<AtomicU64>);

#[async_trait]
impl TransactionListener for ByNumber {
    type Arg = ();

    async fn execute_local_transaction(
        &self,
        _: &HalfMessage,
        (): (),
    ) -> ListenerResult<LocalTransactionState> {
        Ok(LocalTransactionState::Unknown)
    }

    async fn check_local_transaction(
        &self,
        half: &HalfMessage,
    ) -> ListenerResult<LocalTransactionState> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Ok(match commits(number(half.payload.as_deref().unwrap_or_default())) {
            true => LocalTransactionState::Commit,
            false => LocalTransactionState::Rollback,
        })
    }
}

/// What all senders share.
struct Load {
    producer: TransactionProducer,
    target: String,
    next: AtomicU64,
    leaves_some: AtomicBool,
    unknown: Mutex<BTreeSet<u64>>,
    stop: CancellationToken,
}

impl Load {
    async fn send(self: Arc<Self>) {
        let mut pace = tokio::time::interval(PACE);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !self.stop.is_cancelled() {
            pace.tick().await;
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(transaction) = self.begin(message(&self.target, number), number).await else {
                continue;
            };
            // Not acknowledged: the check says the same.
            match (number % 10, self.leaves_some.load(Ordering::Relaxed)) {
                (8, true) => drop(transaction.check().await),
                (9, true) => drop(transaction.leave_open()),
                _ if commits(number) => drop(transaction.commit().await),
                _ => drop(transaction.rollback().await),
            }
        }
    }

    async fn begin(&self, message: Message, number: u64) -> Option<Transaction> {
        let begun = self.producer.begin(PURPOSE, message).await;
        if begun.is_err() && commits(number) {
            self.unknown.lock().unwrap_or_else(PoisonError::into_inner).insert(number);
        }
        begun.ok()
    }

    /// Waits until so many more are begun.
    async fn goes_on(&self, more: u64) {
        let wanted = self.next.load(Ordering::Relaxed) + more;
        // However slow the machine, twenty a second are.
        let within = PATIENCE * u32::try_from(1 + more / 1_000).expect("a few");
        until(within, &format!("{more} more"), async || {
            let begun = self.next.load(Ordering::Relaxed);
            if begun >= wanted { Ok(()) } else { Err(format!("{begun} of {wanted}")) }
        })
        .await;
    }

    /// Begins one that nobody asks about, and which is committed at the end.
    async fn leaves_open(&self) -> Transaction {
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            if commits(number) {
                let message = message(&self.target, number).check_after(PATIENCE * 60);
                if let Some(open) = self.begin(message, number).await {
                    return open;
                }
            }
        }
    }
}

/// The most that was seen since [`Peaks::begin`].
#[derive(Default)]
struct Peaks {
    disk: AtomicU64,
    rss: AtomicU64,
    begun: AtomicU64,
}

impl Peaks {
    /// What was seen until now, on the disk; from here on what is asked about from here on.
    fn begin(&self) -> u64 {
        self.begun.fetch_add(1, Ordering::Relaxed);
        self.disk.swap(0, Ordering::Relaxed)
    }

    /// Looks until it is stopped.
    async fn watch(self: Arc<Self>, config: ProducerConfig, stop: CancellationToken) {
        while !stop.is_cancelled() {
            // A broker that does not answer in time is looked at again.
            let begun = self.begun.load(Ordering::Relaxed);
            let looked = bytes_of(&config.kafka, &config.store_topic()).await;
            if let Ok(bytes) = looked
                && begun == self.begun.load(Ordering::Relaxed)
            {
                self.disk.fetch_max(bytes, Ordering::Relaxed);
            }
            self.rss.fetch_max(rss_bytes(), Ordering::Relaxed);
            tokio::time::sleep(LOOK).await;
        }
    }
}

fn rss_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux tells");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kib.expect("kibibytes") * 1_024
}

/// Waits, while the load goes on, until the store has come back to its bound.
async fn is_trimmed(config: &ProducerConfig) {
    until(PATIENCE * 2, "the store to be trimmed", async || {
        let bytes = bytes_of(&config.kafka, &config.store_topic()).await?;
        if bytes <= BOUND_BYTES { Ok(()) } else { Err(format!("{} KiB", bytes >> 10)) }
    })
    .await;
}

/// The half is in the log.
async fn is_there(config: &ProducerConfig, open: &Transaction) {
    let receipt = open.receipt();
    let bounds = until(PATIENCE, "the log's bounds", async || bounds(config).await).await;
    let (start, end) = bounds[usize::try_from(receipt.partition).expect("a partition")];
    assert!((start..end).contains(&receipt.offset), "{receipt:?} is not in {start}..{end}");
}

/// Run as a test like others it has no settings, and must do nothing.
pub(crate) async fn soak_process(_: Env) {
    let found = SETTINGS.map(|name| std::env::var(name).ok());
    let [Some(brokers), Some(group), Some(target)] = found else {
        assert!(found.iter().all(Option::is_none), "some settings only: {found:?}");
        return;
    };
    let config = config(KafkaConfig::new(brokers), group);
    let listener = ByNumber::default();
    let producer = TransactionProducer::builder(config.clone())
        .listener(PURPOSE, listener.clone())
        .start()
        .await
        .expect("it starts");
    until(PATIENCE, "the producer to be ready", async || producer.health()).await;
    let load = Arc::new(Load {
        producer: producer.clone(),
        target,
        next: AtomicU64::new(0),
        leaves_some: AtomicBool::new(false),
        unknown: Mutex::default(),
        stop: CancellationToken::new(),
    });
    let mut senders = JoinSet::new();
    (0..SENDERS).for_each(|_| drop(senders.spawn(Arc::clone(&load).send())));
    let mut figures = soak(&config, &load).await;
    load.stop.cancel();
    senders.join_all().await;
    until(PATIENCE, "nothing to be open", async || {
        let filter = HalfFilter { state: Some(HalfState::Open), limit: 1, cursor: None };
        let open = producer.admin().list(filter).await.map_err(|error| error.to_string())?;
        if open.items.is_empty() { Ok(()) } else { Err(format!("{:?}", open.items)) }
    })
    .await;
    // What it has not read yet when it stops is the next owner's, and there is none.
    carried_out(&config, &[]).await;
    figures.asked = listener.0.load(Ordering::Relaxed);
    figures.numbers = load.next.load(Ordering::Relaxed);
    figures.unknown = load.unknown.lock().unwrap_or_else(PoisonError::into_inner).clone();
    println!("{FIGURES}{}", serde_json::to_string(&figures).expect("numbers"));
    assert!(figures.written_bytes > SEVERAL * CEILING_BYTES, "too little: {figures:?}");
    producer.shutdown().await;
}

pub(super) fn cycles() -> usize {
    let set = std::env::var(CYCLES_SETTING);
    let cycles = set.map_or(CYCLES, |set| set.parse().expect("HALFMSG_TEST_SOAK_CYCLES: a number"));
    assert!(cycles >= CYCLES, "the memory of the first cycle is compared with that of later ones");
    cycles
}

async fn soak(config: &ProducerConfig, load: &Load) -> Figures {
    let (began, peaks) = (Instant::now(), Arc::new(Peaks::default()));
    let watch = tokio::spawn(Arc::clone(&peaks).watch(config.clone(), load.stop.clone()));
    let (mut warm_rss_bytes, mut warm_at) = (0, 0);
    let (mut steady_peak_bytes, mut peak_bytes) = (0, 0);
    for cycle in 0..cycles() {
        let open = load.leaves_open().await;
        load.leaves_some.store(true, Ordering::Relaxed);
        load.goes_on(MIXED).await;
        load.leaves_some.store(false, Ordering::Relaxed);
        is_there(config, &open).await;
        load.goes_on(HELD).await;
        is_there(config, &open).await;
        until(PATIENCE, "the commit to be stored", async || open.commit().await).await;
        is_trimmed(config).await;
        for _ in 0..ROUNDS {
            peak_bytes = peak_bytes.max(peaks.begin());
            load.goes_on(ROUND).await;
            // Until here it is bounded by what was written: the next may wait for the copies of what
            // the check-back decided because the machine stood still.
            let peak = peaks.begin();
            assert!(peak <= CEILING_BYTES, "{} KiB of {}", peak >> 10, CEILING_BYTES >> 10);
            steady_peak_bytes = steady_peak_bytes.max(peak);
            is_trimmed(config).await;
        }
        if cycle == 0 {
            warm_rss_bytes = peaks.rss.swap(0, Ordering::Relaxed).max(rss_bytes());
            warm_at = load.next.load(Ordering::Relaxed);
        }
    }
    let numbers = load.next.load(Ordering::Relaxed);
    let peak_rss_bytes = peaks.rss.load(Ordering::Relaxed).max(rss_bytes());
    let (growth, since) =
        (peak_rss_bytes.saturating_sub(warm_rss_bytes), (numbers - warm_at) * PAYLOAD_BYTES as u64);
    assert!(growth < GROWTH_BYTES, "{} MiB more behind the first cycle", growth >> 20);
    assert!(since > GROWTH_BYTES, "too little was written meanwhile: {} MiB", since >> 20);
    watch.abort();
    Figures {
        numbers,
        unknown: BTreeSet::new(),
        seconds: began.elapsed().as_secs_f64(),
        written_bytes: numbers * PAYLOAD_BYTES as u64,
        steady_peak_bytes,
        peak_bytes: peak_bytes.max(steady_peak_bytes).max(peaks.begin()),
        warm_rss_bytes,
        peak_rss_bytes,
        asked: 0,
    }
}

//! Row 32 on Kafka: the store under a steady load, trimmed, takes a bounded part of the disk, and its
//! producer a bounded memory, although many times as much is written; an open half is never
//! trimmed away.
//!
//! The producer is a process of its own (`process`), so that its memory is its own: this test
//! program again, told by its environment to run one test only.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Stdio;
use std::time::{Duration, Instant};

use halfmsg_kafka::KafkaConfig;
use halfmsg_producer::ProducerConfig;
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use serde::{Deserialize, Serialize};
use tokio::process::Command;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::topic::from_the_beginning;
use super::turns::alone;
use super::{Env, PATIENCE, until};

mod process;

pub(crate) use process::soak_process;

/// The name of the test that the process runs.
const TEST: &str = "soak_process";
/// Brokers, group and target, in this order.
const SETTINGS: [&str; 3] =
    ["HALFMSG_TEST_SOAK_BROKERS", "HALFMSG_TEST_SOAK_GROUP", "HALFMSG_TEST_SOAK_TARGET"];
/// Before the figures that the process prints.
const FIGURES: &str = "soak: ";
/// For each cycle of the soak, whose steps have deadlines of their own.
const DEADLINE: Duration = Duration::from_secs(1_800);
/// One poll of the target.
const POLL: Duration = Duration::from_millis(20);

/// Of the store: one may be held by an open half, the other is not.
const STORE_PARTITIONS: i32 = 2;
/// What a partition's log is deleted by; Kafka takes no less.
const SEGMENT_BYTES: &str = "1048576";
const PAYLOAD_BYTES: usize = 8_192;

/// What the process found.
#[derive(Debug, Serialize, Deserialize)]
struct Figures {
    /// Numbers below this one were sent.
    numbers: u64,
    /// Of those that commit, the ones that are not known to be stored.
    unknown: BTreeSet<u64>,
    seconds: f64,
    /// Of payloads, in the store.
    written_bytes: u64,
    /// The most that the store took while nothing was left open or to the check-back.
    steady_peak_bytes: u64,
    /// And in all.
    peak_bytes: u64,
    /// The memory after the first of the cycles, and the most after that.
    warm_rss_bytes: u64,
    peak_rss_bytes: u64,
    asked: u64,
}

/// Whether the transaction of this number commits.
fn commits(number: u64) -> bool {
    !matches!(number % 10, 6 | 7 | 9)
}

fn config(kafka: KafkaConfig, group: String) -> ProducerConfig {
    let mut config = ProducerConfig::new(kafka, "soak", group);
    config.topic_prefix = "test".into();
    config.store_partitions = STORE_PARTITIONS;
    config.start_deadline = PATIENCE;
    // Short, as the copies of what the check-back decided are waited for as long and ten seconds;
    // who is told that nothing is stored may find it delivered by the check.
    config.prepare_deadline = Duration::from_secs(4);
    config.decision_deadline = Duration::from_secs(4);
    config.store_timeout = Duration::from_secs(4);
    config.local_deadline = Duration::from_millis(500);
    config.check_after = Duration::from_secs(5);
    config.trim_interval = Some(Duration::from_millis(200));
    config.max_message_bytes = 8 * PAYLOAD_BYTES;
    // Not all that is open at the same time.
    config.body_budget_bytes = 256 * PAYLOAD_BYTES;
    config
}

/// Several hundred halves a second, committed, rolled back and asked about, with one left open for
/// parts of it.
pub(crate) async fn c32_soak_long_the_store_stays_small(env: Env) {
    let _alone = alone().await;
    let (group, target) = (env.named("group"), env.topic("target").await);
    let config = config(env.kafka(), group.clone());
    env.broker.expect_topic(&config.parked_topic()).await;
    let settings = [
        ("retention.ms", "-1"),
        ("retention.bytes", "-1"),
        ("message.timestamp.type", "LogAppendTime"),
        ("segment.bytes", SEGMENT_BYTES),
    ];
    env.broker.create_topic(&config.store_topic(), STORE_PARTITIONS, &settings).await;
    let reader = Counting::start(&config.kafka, &target);
    let figures = run(&config.kafka.brokers, &group, &target).await;
    println!("{figures:#?}");
    let expected: BTreeSet<u64> =
        (0..figures.numbers).filter(|n| commits(*n) && !figures.unknown.contains(n)).collect();
    let counts = reader.has_all(&expected).await;
    let again: Vec<_> = counts.iter().filter(|(_, times)| **times > 1).collect();
    let wrong: Vec<_> =
        counts.keys().filter(|n| !expected.contains(n) && !figures.unknown.contains(n)).collect();
    assert!(again.is_empty(), "delivered again: {again:?}");
    assert!(wrong.is_empty(), "never committed: {wrong:?}");
    assert!(figures.asked > 0, "nothing was left to the check-back: {figures:?}");
}

/// The process, to its end.
async fn run(brokers: &str, group: &str, target: &str) -> Figures {
    let program = std::env::current_exe().expect("this program");
    let ran = Command::new(program)
        .args(["--exact", TEST, "--nocapture"])
        .envs(SETTINGS.into_iter().zip([brokers, group, target]))
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let cycles = u32::try_from(process::cycles()).expect("few");
    let ran = tokio::time::timeout(DEADLINE * cycles, ran).await.expect("it ends in time");
    let output = ran.expect("it starts");
    let (out, errors) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}\n{out}\n{errors}", output.status);
    // The test's name may stand before them on the line.
    let figures = out.lines().find_map(|line| Some(line.split_once(FIGURES)?.1));
    let figures = figures.unwrap_or_else(|| panic!("no figures: {out}\n{errors}"));
    serde_json::from_str(figures).expect("figures")
}

/// Counts what is delivered, by number, and keeps no payload.
struct Counting {
    stop: DropGuard,
    counted: tokio::sync::watch::Receiver<BTreeMap<u64, u32>>,
    thread: tokio::task::JoinHandle<Result<BTreeMap<u64, u32>, KafkaError>>,
}

impl Counting {
    fn start(kafka: &KafkaConfig, target: &str) -> Self {
        let (sender, counted) = tokio::sync::watch::channel(BTreeMap::new());
        let stop = CancellationToken::new();
        let (kafka, target, stopped) = (kafka.clone(), target.to_owned(), stop.clone());
        let thread = tokio::task::spawn_blocking(move || {
            let (consumer, _) = from_the_beginning(&kafka, &target)?;
            while !stopped.is_cancelled() {
                let Some(Ok(message)) = consumer.poll(POLL) else { continue };
                let number = process::number(message.payload().unwrap_or_default());
                sender.send_modify(|counts| *counts.entry(number).or_default() += 1);
            }
            to_the_end(&kafka, &target)
        });
        Self { stop: stop.drop_guard(), counted, thread }
    }

    /// Waits until all of these are delivered; what is then, by number, to the topic's ends: something may have
    /// come again behind the last of them.
    async fn has_all(self, expected: &BTreeSet<u64>) -> BTreeMap<u64, u32> {
        until(PATIENCE, "all to be delivered", async || {
            let counts = self.counted.borrow();
            let missing = expected.iter().filter(|number| !counts.contains_key(number)).count();
            if missing == 0 { Ok(()) } else { Err(format!("{missing} are missing")) }
        })
        .await;
        drop(self.stop);
        self.thread.await.expect("no panic").expect("the target can be read")
    }
}

/// How often each number is in the topic now. Blocks.
fn to_the_end(kafka: &KafkaConfig, target: &str) -> Result<BTreeMap<u64, u32>, KafkaError> {
    let (consumer, partitions) = from_the_beginning(kafka, target)?;
    let (mut counts, mut ended) = (BTreeMap::new(), BTreeSet::new());
    let mut last = Instant::now();
    while ended.len() < partitions {
        match consumer.poll(POLL) {
            Some(Ok(message)) => {
                let number = process::number(message.payload().unwrap_or_default());
                *counts.entry(number).or_default() += 1;
                last = Instant::now();
            }
            Some(Err(KafkaError::PartitionEOF(partition))) => drop(ended.insert(partition)),
            Some(Err(_)) | None => {
                assert!(last.elapsed() < PATIENCE, "the target's end is not read")
            }
        }
    }
    Ok(counts)
}

//! Rows 32 and 33 on Kafka: the store is trimmed and never an open half with it, and memory has a
//! bound.

use std::time::Duration;

use halfmsg_producer::{AdminError, HalfDetail, HalfState, HistoryEntry, ProducerConfig};
use rdkafka::consumer::{BaseConsumer, Consumer};
use serde_json::Value;
use tokio::process::Command;

use super::reader::{counts, once_each};
use super::setup::{Setup, answered, operator, text};
use super::told::Do;
use super::turns::alone;
use super::{Env, PATIENCE, until};

/// One look-up.
const LOOKUP: Duration = Duration::from_secs(10);
/// What a process takes besides the bodies of open halves: clients, their queues, one batch per
/// partition, what is asked about at the moment, and an unoptimised program.
const OVERHEAD_BYTES: u64 = 192 * 1_024 * 1_024;
/// The default of `body_budget_bytes`.
const BUDGET_BYTES: u64 = 128 * 1_024 * 1_024;

/// The first and the next offset of every partition of the store.
pub(crate) async fn bounds(config: &ProducerConfig) -> Result<Vec<(i64, i64)>, String> {
    let (kafka, store) = (config.kafka.clone(), config.store_topic());
    let partitions = config.store_partitions;
    let look = move || {
        let consumer: BaseConsumer = kafka.consumer("bounds").create()?;
        (0..partitions)
            .map(|partition| consumer.fetch_watermarks(&store, partition, LOOKUP))
            .collect()
    };
    let looked: Result<Vec<_>, rdkafka::error::KafkaError> =
        tokio::task::spawn_blocking(look).await.expect("it does not panic");
    looked.map_err(|error| error.to_string())
}

/// What is carried out is deleted while the store is in use; a half that is open stays, and so
/// does all behind it, until it is decided.
pub(crate) async fn c32_trimming_never_removes_an_open_half(env: Env) {
    const ROUNDS: usize = 5;
    const EACH: usize = 200;
    let mut config = env.group().await;
    config.trim_interval = Some(Duration::from_millis(100));
    let mut setup = Setup::with(env, config, Do::Unknown).await;
    let open = setup.leave_open(0..1).await[0];
    let held = usize::try_from(open.partition).expect("a partition");
    for round in 0..ROUNDS {
        let first = 1 + round * EACH;
        setup.send_all(EACH, |_| Do::Commit).await;
        until(PATIENCE, "everything but the open half's log to be trimmed", async || {
            let bounds = bounds(&setup.config).await?;
            let trimmed = bounds.iter().enumerate().all(|(partition, (start, end))| {
                if partition == held { *start <= open.offset } else { start == end && *end > 0 }
            });
            if trimmed { Ok(()) } else { Err(format!("from {first}: {bounds:?}, open {open:?}")) }
        })
        .await;
    }
    // The next owner finds it, and has nothing else to replay than what lies behind it.
    setup.restart().await;
    let shown = setup.shows(open.transaction_id, "the open half", |half| half.half.state == "open");
    assert_eq!(shown.await.payload, Some(text(0)));
    setup.told.check(text(0), &[Do::Commit]);
    let admin = setup.producer.admin();
    let asked = answered(async || admin.check(open.transaction_id, operator(false)).await).await;
    asked.expect("it is open");
    setup.reader.sees(&text(0)).await;
    until(PATIENCE, "the rest to be trimmed", async || {
        let bounds = bounds(&setup.config).await?;
        if bounds.iter().all(|(start, end)| start == end) {
            Ok(())
        } else {
            Err(format!("{bounds:?}"))
        }
    })
    .await;
    let delivered = setup.reader.everything_of(&setup.config).await;
    let found = counts(&delivered);
    assert_eq!(
        found.keys().cloned().collect::<std::collections::BTreeSet<_>>(),
        once_each((0..EACH).map(text)).keys().cloned().collect()
    );
    assert_eq!(found[&text(0)], ROUNDS + 1, "sent in each round, and once as the open half");
    setup.producer.shutdown().await;
}

/// Parked, resumed and parked again: when the store holds nothing of that any more, it is still told, by this
/// owner and the next.
pub(crate) async fn c32_a_parked_message_keeps_its_history(env: Env) {
    const MAX_CHECKS: u32 = 2;
    let mut config = env.group().await;
    config.trim_interval = Some(Duration::from_millis(100));
    config.max_checks = MAX_CHECKS;
    let mut setup = Setup::with(env, config, Do::Unknown).await;
    let id = setup.leave_open(0..1).await[0].transaction_id;
    setup.ask_soon().await;
    setup.listed(HalfState::Parked, 1).await;
    let admin = setup.producer.admin();
    setup.told.check(text(0), &[Do::Fail, Do::Unknown]);
    match answered(async || admin.resume(id, operator(false)).await).await {
        // The machine stood still behind its record.
        Ok(_) | Err(AdminError::Unseen(_)) => {}
        Err(other) => panic!("it is parked: {other}"),
    }
    let again = |half: &HalfDetail| (half.half.state, half.half.epoch) == ("parked", 1);
    setup.shows(id, "the second life to end", again).await;
    until(PATIENCE, "the store to be trimmed", async || {
        let bounds = bounds(&setup.config).await?;
        let trimmed = bounds.iter().all(|(start, end)| start == end);
        if trimmed { Ok(()) } else { Err(format!("{bounds:?}")) }
    })
    .await;
    let life = ["attempt 1: unknown", "attempt 2: unknown", "max_checks"];
    let failed = "failed, and counts as no attempt";
    let expected = [&["partition"][..], &life, &["ann: seen in the books", failed], &life].concat();
    for _ in 0..2 {
        let shown = setup.shows(id, "the parked message", again).await;
        let told = shown.history.iter().zip(&expected);
        let is_told = |(entry, expected): (&HistoryEntry, &&str)| {
            entry.detail.contains(*expected) && entry.at.is_some()
        };
        let is_all = shown.history.len() == expected.len() && told.into_iter().all(is_told);
        assert!(is_all, "{expected:#?}: {:#?}", shown.history);
        let times: Vec<_> = shown.history.iter().map(|entry| &entry.at).collect();
        assert!(times.is_sorted(), "{times:?}");
        assert_eq!(shown.payload, Some(text(0)));
        setup.restart().await;
    }
    setup.producer.shutdown().await;
}

/// One run of the benchmark in a process of its own; what it found.
async fn bench(env: &Env, arguments: &[&str]) -> Value {
    let output = Command::new(env!("CARGO_BIN_EXE_halfmsg"))
        .args(["bench", "--one", "--brokers", &env.kafka().brokers, "--latency-seconds", "0"])
        .args(arguments)
        // What was given back is not kept for later: it would be counted with what is in use.
        .env("MALLOC_CONF", "dirty_decay_ms:0,muzzy_decay_ms:0")
        .kill_on_drop(true)
        .output()
        .await
        .expect("the benchmark starts");
    let (out, err) = (&output.stdout, String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}: {err}", output.status);
    let figures: Value = serde_json::from_slice(out).expect("figures as JSON");
    assert_eq!((&figures["lost"], &figures["duplicates"]), (&0.into(), &0.into()), "{figures}");
    figures
}

/// 1 GiB of open payload: stored, left open, taken over by a new process' producer, asked about and
/// delivered, each once.
pub(crate) async fn c33_long_memory_stays_within_the_budget(env: Env) {
    let _alone = alone().await;
    let halves = ["--halves", "16384", "--payload-bytes", "65536"];
    let figures = bench(&env, &[&["--mode", "memory"][..], &halves].concat()).await;
    let peak = figures["peak_rss_bytes"].as_u64().expect("Linux tells");
    assert!(peak < BUDGET_BYTES + OVERHEAD_BYTES, "{} MiB: {figures}", peak >> 20);
    assert_eq!(figures["asked"], 16_384, "each was asked about once: {figures}");
}

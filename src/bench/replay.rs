//! A long log that is taken over, beside a bare consumer that reads the same log and does nothing with it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use halfmsg_kafka::KafkaConfig;
use halfmsg_producer::ProducerConfig;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::{Offset, TopicPartitionList};

use super::check_back::prepare;
use super::engine::{CommitAll, Engine};
use super::large::{NO_CHECK, config, start};
use super::phase::Phase;
use super::reader::Reader;
use super::report::Figures;
use super::run::finish;
use super::topics::Topics;
use super::{BenchArgs, usage};

/// Open halves in front of the log that is replayed, so that all of it must be.
const OLD_OPEN: u64 = 1;
/// What is still to be replayed, as the engine tells it.
const LEFT: &str = "replay_left_records ";
/// Between two looks at that; its own age is no less.
const LOOK: Duration = Duration::from_millis(20);
/// Until the next record.
const PATIENCE: Duration = Duration::from_secs(60);

/// Carries transactions out behind a half that stays open, leaves others open behind them, stops, and
/// starts again. The rate is that of the replay from when it is first seen under way to the partition's being
/// known, of the records that were left then.
pub(crate) async fn replay(args: &BenchArgs, topics: &mut Topics) -> anyhow::Result<Figures> {
    let load_average = usage::load_average();
    let one_partition = |mut config: ProducerConfig| {
        config.store_partitions = 1;
        config.trim_interval = None;
        config.max_transactions = 4_096;
        config
    };
    let listener = CommitAll::default();
    let reader = Reader::start(&topics.kafka, &topics.target)?;
    let settings = one_partition(config(args, topics, NO_CHECK)?);
    let store = settings.store_topic();
    let engine = start(args, topics, settings.clone(), &listener).await?;
    prepare(&engine, &Arc::new(Phase::new(0, OLD_OPEN, None)), 1).await?;
    let phase = Arc::new(Phase::new(OLD_OPEN, args.transactions, None));
    reader.watch(&phase);
    engine.transact(&phase, args.in_flight).await?;
    reader.wait().await?;
    let open = Arc::new(Phase::new(phase.end(), args.halves, None));
    prepare(&engine, &open, args.in_flight).await?;
    engine.producer.shutdown().await;

    let kafka = topics.kafka.clone();
    let bare = tokio::task::spawn_blocking(move || bare_rate(&kafka, &store)).await??;
    let began = Instant::now();
    let engine = Engine::begin(topics, settings, args.payload_bytes, listener.clone()).await?;
    let Seen { records, since, cpu_before } = replay_seen(&engine).await?;
    let (replayed, whole) = (since.elapsed(), began.elapsed());
    let cpu_seconds = usage::cpu_seconds().zip(cpu_before).map(|(after, before)| after - before);
    engine.producer.shutdown().await;
    eprintln!("from the start to the partition's being known: {whole:.2?}");
    let audit = finish(topics, phase.end()).await?;
    Ok(Figures {
        load_average,
        cpu_seconds,
        peak_rss_bytes: usage::peak_rss_bytes(),
        // The halves that stay open are not delivered.
        lost: audit.lost.saturating_sub(OLD_OPEN),
        duplicates: audit.duplicates,
        asked: Some(listener.asked.load(Ordering::Relaxed)),
        bare_per_second: Some(bare),
        ..Figures::of(args.mode, records, replayed)
    })
}

/// The first look at which something was left to be replayed.
struct Seen {
    records: u64,
    since: Instant,
    cpu_before: Option<f64>,
}

/// Waits until the engine is ready.
async fn replay_seen(engine: &Engine) -> anyhow::Result<Seen> {
    let mut registry = Registry::default();
    engine.producer.register_metrics(&mut registry);
    let (mut left, mut changed, mut seen) = (0, Instant::now(), None);
    loop {
        let found = left_in(&registry)?;
        if found != left {
            (left, changed) = (found, Instant::now());
            let cpu_before = usage::cpu_seconds();
            seen = seen.or(Some(Seen { records: left, since: changed, cpu_before }));
        }
        if engine.producer.health().is_ok() {
            return seen.context("the log is too short to be seen replayed: --transactions");
        }
        ensure!(changed.elapsed() < PATIENCE, "{left} records are not replayed for {PATIENCE:?}");
        tokio::time::sleep(LOOK).await;
    }
}

fn left_in(registry: &Registry) -> anyhow::Result<u64> {
    let mut text = String::new();
    encode(&mut text, registry)?;
    let told = |line: &str| line.split_once(LEFT).map(|(_, value)| value.trim().to_owned());
    let value = text.lines().filter(|line| !line.starts_with('#')).find_map(told);
    Ok(value.context("the engine does not tell how much is left")?.parse()?)
}

/// Records per second of a consumer that only polls, from the first record to the last of what there is.
/// Blocks.
fn bare_rate(kafka: &KafkaConfig, store: &str) -> anyhow::Result<f64> {
    let mut settings = kafka.consumer("bench-bare");
    settings.set("isolation.level", "read_committed").set("enable.partition.eof", "true");
    let consumer: BaseConsumer = settings.create()?;
    let mut place = TopicPartitionList::new();
    place.add_partition_offset(store, 0, Offset::Beginning)?;
    consumer.assign(&place)?;
    let (mut records, mut first, mut last) = (0_u64, None, Instant::now());
    loop {
        match consumer.poll(PATIENCE).context("nothing comes")? {
            Ok(_) => {
                records += 1;
                last = Instant::now();
                first.get_or_insert(last);
            }
            Err(KafkaError::PartitionEOF(_)) => break,
            Err(error) => return Err(error.into()),
        }
    }
    let took = last.duration_since(first.context("the log is empty")?);
    Ok(records as f64 / took.as_secs_f64().max(1e-3))
}

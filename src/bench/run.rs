//! One run in its own process: warm-up, full speed, latency at two loads, and the audit.

use std::sync::Arc;
use std::time::Duration;

use halfmsg_producer::Emission;

use super::audit::{Audit, audit};
use super::bare::{self, Bare};
use super::engine::{self, CommitAll, Engine};
use super::phase::Phase;
use super::reader::Reader;
use super::report::{Figures, Latency};
use super::topics::Topics;
use super::{BenchArgs, Mode, check_back, large, replay, usage};

/// Of the transactions at full speed, so many warm up.
const WARM_UP_SHARE: u64 = 10;
/// The second latency is taken at this share of the speed just measured.
const HIGH_LOAD: f64 = 0.7;

/// What a run drives.
enum Subject {
    Bare(Bare),
    Engine(Engine),
}

impl Subject {
    async fn start(args: &BenchArgs, topics: &mut Topics) -> anyhow::Result<Self> {
        let exactly_once =
            matches!(args.mode, Mode::ReferenceEos | Mode::BareEos | Mode::EngineEos);
        let linger_millis = match args.mode {
            Mode::ReferenceAlo | Mode::ReferenceEos => Some(bare::DEFAULT_LINGER_MILLIS),
            _ => None,
        };
        if linger_millis.is_some() || matches!(args.mode, Mode::BareAlo | Mode::BareEos) {
            return Ok(Self::Bare(Bare::start(topics, exactly_once, linger_millis).await?));
        }
        let mut config = engine::config(topics, args.in_flight)?;
        // Nobody waits for a check here: a machine may stand still for as long as the store is asked.
        config.prepare_deadline = config.store_timeout;
        config.decision_deadline = config.store_timeout;
        config.check_after = 2 * config.store_timeout;
        config.emission = if exactly_once { Emission::ExactlyOnce } else { Emission::AtLeastOnce };
        let listener = CommitAll::default();
        Ok(Self::Engine(Engine::start(topics, config, args.payload_bytes, listener).await?))
    }

    async fn transact(&self, args: &BenchArgs, phase: &Arc<Phase>) -> anyhow::Result<()> {
        match self {
            Self::Bare(bare) => tokio::task::block_in_place(|| {
                bare.transact(phase, args.in_flight, args.payload_bytes)
            }),
            Self::Engine(engine) => engine.transact(phase, args.in_flight).await,
        }
    }

    async fn stop(self) -> anyhow::Result<()> {
        match self {
            Self::Bare(bare) => tokio::task::block_in_place(|| bare.stop()),
            Self::Engine(engine) => {
                engine.producer.shutdown().await;
                Ok(())
            }
        }
    }
}

/// Runs one kind once; its topics are deleted after it, also if it fails.
pub(crate) async fn one(args: &BenchArgs) -> anyhow::Result<Figures> {
    let mut topics = Topics::new(&args.brokers, &args.kafka_properties).await?;
    let figures = match args.mode {
        Mode::CheckBack => check_back::measure(args, &mut topics).await,
        Mode::Memory => large::memory(args, &mut topics).await,
        Mode::Replay => replay::replay(args, &mut topics).await,
        _ => measure(args, &mut topics).await,
    };
    topics.delete().await;
    figures
}

async fn measure(args: &BenchArgs, topics: &mut Topics) -> anyhow::Result<Figures> {
    let load_average = usage::load_average();
    let reader = Reader::start(&topics.kafka, &topics.target)?;
    let subject = Subject::start(args, topics).await?;
    let mut run = Run { args, subject, reader, next: 0 };
    run.phase(args.transactions.div_ceil(WARM_UP_SHARE), None).await?;

    let (cpu_before, threads_before) = (usage::cpu_seconds(), usage::cpu_by_thread());
    let (seconds, _) = run.phase(args.transactions, None).await?;
    let cpu_seconds = usage::cpu_seconds().zip(cpu_before).map(|(after, before)| after - before);
    let cpu_by_thread = usage::since(&threads_before, usage::cpu_by_thread());
    let peak_rss_bytes = usage::peak_rss_bytes();
    let per_second = args.transactions as f64 / seconds.as_secs_f64();

    let low = run.latency(args.rate).await?;
    let high = run.latency((per_second * HIGH_LOAD) as u64).await?;
    let sent = run.next;
    run.subject.stop().await?;
    let audit = finish(topics, sent).await?;
    Ok(Figures {
        mode: args.mode,
        load_average,
        transactions: args.transactions,
        per_second,
        low,
        high,
        cpu_seconds,
        cpu_by_thread,
        peak_rss_bytes,
        lost: audit.lost,
        duplicates: audit.duplicates,
        asked: None,
        bare_per_second: None,
    })
}

struct Run<'a> {
    args: &'a BenchArgs,
    subject: Subject,
    reader: Reader,
    /// The number of the next phase's first transaction.
    next: u64,
}

impl Run<'_> {
    /// From the first transaction to the last message seen, and the latencies, sorted.
    async fn phase(
        &mut self,
        count: u64,
        rate: Option<u64>,
    ) -> anyhow::Result<(Duration, Vec<Duration>)> {
        let phase = Arc::new(Phase::new(self.next, count, rate));
        self.next = phase.end();
        self.reader.watch(&phase);
        self.subject.transact(self.args, &phase).await?;
        let (last, latencies) = self.reader.wait().await?;
        Ok((last.saturating_duration_since(phase.started()), latencies))
    }

    async fn latency(&mut self, rate: u64) -> anyhow::Result<Option<Latency>> {
        let count = rate * self.args.latency_seconds;
        if count == 0 {
            return Ok(None);
        }
        let (_, latencies) = self.phase(count, Some(rate)).await?;
        Ok(Some(Latency::of(rate, &latencies)))
    }
}

/// The audit, off the runtime's threads.
pub(crate) async fn finish(topics: &Topics, sent: u64) -> anyhow::Result<Audit> {
    let (kafka, target) = (topics.kafka.clone(), topics.target.clone());
    tokio::task::spawn_blocking(move || audit(&kafka, &target, sent)).await?
}

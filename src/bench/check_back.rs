//! Half messages that nobody decided: how fast the check-back resolves them, and whether twice.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::ensure;
use tokio::task::JoinSet;

use super::BenchArgs;
use super::engine::{self, CommitAll, Engine, PURPOSE};
use super::phase::Phase;
use super::reader::Reader;
use super::report::Figures;
use super::run::finish;
use super::topics::Topics;
use super::usage;

/// Prepares, leaves open, and waits for the check-back: from the first due time to the last
/// message seen.
pub(crate) async fn measure(args: &BenchArgs, topics: &mut Topics) -> anyhow::Result<Figures> {
    let load_average = usage::load_average();
    let reader = Reader::start(&topics.kafka, &topics.target)?;
    let listener = CommitAll::default();
    let asked = Arc::clone(&listener.asked);
    // Emission stays the default: exactly-once, except on the in-process broker.
    let config = engine::config(topics, args.in_flight)?;
    let check_after = config.check_after;
    let engine = Engine::start(topics, config, args.payload_bytes, listener).await?;
    let phase = Arc::new(Phase::new(0, args.halves, None));
    reader.watch(&phase);
    let first_due = Instant::now() + check_after;
    prepare(&engine, &phase, args.in_flight).await?;
    ensure!(
        Instant::now() < first_due,
        "{} halves cannot be stored within {check_after:?}: take fewer",
        args.halves
    );
    let (cpu_before, threads_before) = (usage::cpu_seconds(), usage::cpu_by_thread());
    let (last, _) = reader.wait().await?;
    let cpu_seconds = usage::cpu_seconds().zip(cpu_before).map(|(after, before)| after - before);
    let cpu_by_thread = usage::since(&threads_before, usage::cpu_by_thread());
    let peak_rss_bytes = usage::peak_rss_bytes();
    engine.producer.shutdown().await;
    let seconds = last.saturating_duration_since(first_due).max(Duration::from_millis(1));
    let audit = finish(topics, phase.end()).await?;
    Ok(Figures {
        mode: args.mode,
        load_average,
        per_second: args.halves as f64 / seconds.as_secs_f64(),
        transactions: args.halves,
        low: None,
        high: None,
        cpu_seconds,
        cpu_by_thread,
        peak_rss_bytes,
        lost: audit.lost,
        duplicates: audit.duplicates,
        asked: Some(asked.load(Ordering::Relaxed)),
        bare_per_second: None,
    })
}

/// Stores the halves of a phase and leaves them open.
pub(crate) async fn prepare(
    engine: &Engine,
    phase: &Arc<Phase>,
    in_flight: u64,
) -> anyhow::Result<()> {
    let next = Arc::new(AtomicU64::new(0));
    let mut callers = JoinSet::new();
    for _ in 0..in_flight.min(phase.count()) {
        let (engine, phase, next) = (engine.clone(), Arc::clone(phase), Arc::clone(&next));
        callers.spawn(async move {
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= phase.count() {
                    return anyhow::Ok(());
                }
                let number = phase.number(index);
                phase.committing(number);
                engine.producer.begin(PURPOSE, engine.message(number)).await?.leave_open();
            }
        });
    }
    while let Some(ended) = callers.join_next().await {
        ended??;
    }
    Ok(())
}

//! What must stay bounded: memory with more open payload than the budget. And what this run shares with
//! that of a long log.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use halfmsg_producer::{Assignment, ProducerConfig};

use super::check_back::prepare;
use super::engine::{self, CommitAll, Engine};
use super::phase::Phase;
use super::reader::Reader;
use super::report::Figures;
use super::run::finish;
use super::topics::Topics;
use super::{BenchArgs, usage};

/// While halves are stored, nobody asks about them.
pub(super) const NO_CHECK: Duration = Duration::from_secs(24 * 3_600);
/// Callers in the memory run: what they hold is not what is measured.
const FEW: u64 = 64;

pub(super) fn config(
    args: &BenchArgs,
    topics: &Topics,
    check_after: Duration,
) -> anyhow::Result<ProducerConfig> {
    let mut config = engine::config(topics, args.in_flight.min(FEW))?;
    config.check_after = check_after;
    if check_after == NO_CHECK {
        // A gigabyte that is written at once makes a disk stand still for seconds.
        config.prepare_deadline = config.store_timeout;
        config.decision_deadline = config.store_timeout;
    }
    // Nothing of the group's own waits is measured.
    config.assignment = Assignment::All;
    Ok(config)
}

/// Stores halves and leaves them open, stops, starts again, and lets the check-back commit them
/// all: memory is what the process took at most.
pub(crate) async fn memory(args: &BenchArgs, topics: &mut Topics) -> anyhow::Result<Figures> {
    let load_average = usage::load_average();
    let phase = Arc::new(Phase::new(0, args.halves, None));
    let engine =
        start(args, topics, config(args, topics, NO_CHECK)?, &CommitAll::default()).await?;
    prepare(&engine, &phase, FEW).await?;
    engine.producer.shutdown().await;
    let stored = usage::rss_bytes();

    let reader = Reader::start(&topics.kafka, &topics.target)?;
    reader.watch(&phase);
    let listener = CommitAll::default();
    let short = engine::config(topics, FEW)?.check_after;
    let began = Instant::now();
    let engine = start(args, topics, config(args, topics, short)?, &listener).await?;
    let replayed = usage::rss_bytes();
    let (last, _) = reader.wait().await?;
    let peak_rss_bytes = usage::peak_rss_bytes();
    engine.producer.shutdown().await;
    eprintln!("resident: {stored:?} bytes when all is stored, {replayed:?} after the replay");
    let seconds = last.saturating_duration_since(began);
    let audit = finish(topics, phase.end()).await?;
    let asked = Some(listener.asked.load(Ordering::Relaxed));
    let lost = audit.lost;
    Ok(Figures {
        load_average,
        peak_rss_bytes,
        lost,
        duplicates: audit.duplicates,
        asked,
        ..Figures::of(args.mode, args.halves, seconds)
    })
}

pub(super) async fn start(
    args: &BenchArgs,
    topics: &mut Topics,
    config: ProducerConfig,
    listener: &CommitAll,
) -> anyhow::Result<Engine> {
    Engine::start(topics, config, args.payload_bytes, listener.clone()).await
}

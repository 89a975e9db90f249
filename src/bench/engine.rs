//! The engine as a service uses it: a task per transaction, `begin`, then `commit`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use async_trait::async_trait;
use halfmsg_producer::{
    HalfMessage, ListenerResult, LocalTransactionState, Message, ProducerConfig,
    TransactionListener, TransactionProducer,
};
use tokio::task::JoinSet;

use super::phase::{PACE_TICK, Phase, payload};
use super::topics::{PARTITIONS, Topics};

/// Taking the store's partitions over.
const READY_DEADLINE: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(20);
/// Deadline of preparing and of deciding.
const PATIENCE: Duration = Duration::from_secs(10);
/// The purpose of every message.
pub(crate) const PURPOSE: &str = "bench";

/// Answers every check with commit, and counts.
#[derive(Clone, Default)]
pub(crate) struct CommitAll {
    pub(crate) asked: Arc<AtomicU64>,
}

#[async_trait]
impl TransactionListener for CommitAll {
    type Arg = ();

    async fn execute_local_transaction(
        &self,
        _half: &HalfMessage,
        (): (),
    ) -> ListenerResult<LocalTransactionState> {
        Ok(LocalTransactionState::Unknown)
    }

    async fn check_local_transaction(
        &self,
        _half: &HalfMessage,
    ) -> ListenerResult<LocalTransactionState> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        Ok(LocalTransactionState::Commit)
    }
}

/// The settings of a run: the defaults, except that a machine which is busy with other things must
/// not fail it by the deadlines of a service.
pub(crate) fn config(topics: &Topics, in_flight: u64) -> anyhow::Result<ProducerConfig> {
    let mut config = ProducerConfig::new(topics.kafka.clone(), "bench", topics.group.as_str());
    config.store_partitions = PARTITIONS;
    config.max_transactions = usize::try_from(in_flight)?;
    config.prepare_deadline = PATIENCE;
    config.decision_deadline = PATIENCE;
    config.check_after = PATIENCE + 2 * config.local_deadline;
    Ok(config)
}

/// A producer, and what it sends.
#[derive(Clone)]
pub(crate) struct Engine {
    pub(crate) producer: TransactionProducer,
    target: String,
    payload_bytes: usize,
}

impl Engine {
    /// Starts it, and waits until it has taken its partitions over.
    pub(crate) async fn start(
        topics: &mut Topics,
        config: ProducerConfig,
        payload_bytes: usize,
        listener: CommitAll,
    ) -> anyhow::Result<Self> {
        let engine = Self::begin(topics, config, payload_bytes, listener).await?;
        let until = Instant::now() + READY_DEADLINE;
        while let Err(problem) = engine.producer.health() {
            ensure!(Instant::now() < until, "not ready: {problem}");
            tokio::time::sleep(LOOK).await;
        }
        Ok(engine)
    }

    /// Starts it. It has not taken anything over yet.
    pub(crate) async fn begin(
        topics: &mut Topics,
        config: ProducerConfig,
        payload_bytes: usize,
        listener: CommitAll,
    ) -> anyhow::Result<Self> {
        for topic in [config.store_topic(), config.parked_topic()] {
            topics.engine_creates(&topic)?;
        }
        let producer = TransactionProducer::builder(config)
            .listener(PURPOSE, listener)
            .start()
            .await
            .context("starting the producer")?;
        Ok(Self { producer, target: topics.target.clone(), payload_bytes })
    }

    /// The message of a transaction.
    pub(crate) fn message(&self, number: u64) -> Message {
        Message::new(&self.target, payload(number, self.payload_bytes))
    }

    async fn transact_one(&self, phase: &Phase, number: u64) -> anyhow::Result<()> {
        let transaction = self.producer.begin(PURPOSE, self.message(number)).await?;
        phase.committing(number);
        transaction.commit().await?;
        Ok(())
    }

    /// Carries a phase's transactions through to their COMMIT's acknowledgement.
    pub(crate) async fn transact(&self, phase: &Arc<Phase>, in_flight: u64) -> anyhow::Result<()> {
        if phase.is_paced() { self.paced(phase).await } else { self.full(phase, in_flight).await }
    }

    /// So many callers, each with one transaction after the other.
    async fn full(&self, phase: &Arc<Phase>, in_flight: u64) -> anyhow::Result<()> {
        let next = Arc::new(AtomicU64::new(0));
        let mut callers = JoinSet::new();
        for _ in 0..in_flight.min(phase.count()) {
            let (engine, phase, next) = (self.clone(), Arc::clone(phase), Arc::clone(&next));
            callers.spawn(async move {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= phase.count() {
                        return anyhow::Ok(());
                    }
                    engine.transact_one(&phase, phase.number(index)).await?;
                }
            });
        }
        while let Some(ended) = callers.join_next().await {
            ended??;
        }
        Ok(())
    }

    /// A caller for each transaction, when it is due.
    async fn paced(&self, phase: &Arc<Phase>) -> anyhow::Result<()> {
        let mut callers = JoinSet::new();
        let mut begun = 0;
        let mut ticks = tokio::time::interval(PACE_TICK);
        while begun < phase.count() {
            while begun < phase.due() {
                let (engine, phase, number) =
                    (self.clone(), Arc::clone(phase), phase.number(begun));
                callers.spawn(async move { engine.transact_one(&phase, number).await });
                begun += 1;
            }
            while let Some(ended) = callers.try_join_next() {
                ended??;
            }
            ticks.tick().await;
        }
        while let Some(ended) = callers.join_next().await {
            ended??;
        }
        Ok(())
    }
}

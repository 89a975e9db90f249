//! Where a partition's replay begins: setting a group's stored progress by hand.

use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use serde::Serialize;
use serde_json::json;

use halfmsg_protocol::{HalfOffset, Progress};

use super::OperatorClient;
use super::journal::Act;
use crate::admin::{AdminError, HalfView, OperatorRequest};
use crate::config::ProducerConfig;
use crate::snapshot::{Part, Wanted};
use crate::stored;
use crate::stored::offsets;

/// Halves that a plan names; of more it gives the number.
const NAMED: usize = 100;

/// Where progress is to stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResetTo {
    /// At the beginning of the log.
    Start,
    /// At its end.
    End,
    /// At this offset.
    Offset(i64),
}

/// What a reset would do.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ResetPlan {
    /// The store's partition.
    pub partition: i32,
    /// Where its log begins and ends.
    pub log: (i64, i64),
    /// What is stored now: L and P.
    pub stored: Option<(i64, i64)>,
    /// Where progress would stand.
    pub to: i64,
    /// Open halves below, which nobody would ask about or deliver any more.
    pub forgotten: usize,
    /// The first of them.
    pub forgotten_halves: Vec<HalfView>,
    /// Committed ones whose delivery is not stored as done, and which would not be delivered.
    pub undelivered: usize,
    /// Parked ones that are not written to the parked topic yet, and would be forgotten.
    pub unparked: usize,
    /// Committed ones that would be delivered again, at most.
    pub delivered_again: u64,
}

impl ResetPlan {
    /// Whether messages would be lost.
    pub fn loses(&self) -> bool {
        self.forgotten + self.undelivered + self.unparked > 0
    }
}

impl OperatorClient {
    /// What a reset would do, without doing it. Of an offset below the low-water mark the whole log is
    /// looked at: it may lie between two copies of one half message.
    ///
    /// # Errors
    /// [`AdminError::Refused`] for an offset outside the log or between two copies, and others.
    pub async fn plan_reset(&self, partition: i32, to: ResetTo) -> Result<ResetPlan, AdminError> {
        let from = match to {
            ResetTo::Start => 0,
            ResetTo::Offset(offset) => offset,
            ResetTo::End => i64::MAX,
        };
        let wanted = Wanted { only: Some(partition), from: Some(from), ..Wanted::default() };
        let parts = self.desk.snapshot_of_all(wanted).await?;
        let Some(part) = parts.first() else {
            return Err(AdminError::Refused(format!("the store has no partition {partition}")));
        };
        let (start, end) = (part.place.start, part.place.end);
        let target = match to {
            ResetTo::Start => start,
            ResetTo::End => end,
            ResetTo::Offset(offset) if (start..=end).contains(&offset) => offset,
            ResetTo::Offset(offset) => {
                return Err(AdminError::Refused(format!(
                    "offset {offset} is not in the log, which goes from {start} to {end}"
                )));
            }
        };
        // The first copy of one that the log does not hold any more is known from the parked topic.
        let between = part.ledger.between_copies(target).filter(|(before, _)| *before >= start);
        if let Some((before, behind)) = between {
            return Err(AdminError::Refused(format!(
                "a half message stands in the log before offset {target}, and a copy of it behind: a \
                 replay from there would take the copy for a message that nobody has decided; \
                 take {before} or {behind}"
            )));
        }
        Ok(plan(part, target))
    }

    /// Sets the progress of a partition to what the plan says: L and P stand there afterwards.
    /// The brokers refuse it while replicas of the group run. Losing messages needs force.
    ///
    /// # Errors
    /// [`AdminError::Refused`] and others.
    pub async fn reset_progress(
        &self,
        plan: &ResetPlan,
        request: OperatorRequest,
    ) -> Result<(), AdminError> {
        request.validate()?;
        if plan.loses() && !request.force {
            return Err(AdminError::Refused(format!(
                "{} open halves would be forgotten, {} committed ones not delivered, {} parked \
                 ones forgotten: settle them first, or repeat with force",
                plan.forgotten, plan.undelivered, plan.unparked
            )));
        }
        let config = &*self.desk.config;
        let detail = json!({
            "partition": plan.partition, "from": plan.stored, "to": plan.to,
            "forgotten": plan.forgotten, "undelivered": plan.undelivered, "forced": plan.loses(),
        });
        let act = Act::begin(config, plan.partition, "reset-progress", &request, detail).await?;
        let (config, partition, to) = (self.desk.config.clone(), plan.partition, plan.to);
        let stored = tokio::task::spawn_blocking(move || store(&config, partition, to)).await;
        let stored = stored.map_err(|error| AdminError::Unavailable(error.to_string()));
        act.end(stored.and_then(|stored| stored)).await
    }
}

fn plan(part: &Part, to: i64) -> ResetPlan {
    let forgotten: Vec<_> =
        part.ledger.open_from(HalfOffset(0)).filter(|open| open.half.stored_at < to).collect();
    // A decision whose HALF lies below is one about an unknown half, wherever it stands.
    let lost = |(at, half): (&i64, &HalfOffset)| *at < to || half.0 < to;
    let named = forgotten.iter().take(NAMED);
    ResetPlan {
        partition: part.partition,
        log: (part.place.start, part.place.end),
        stored: part.place.stored.map(|stored| (stored.low_water, stored.position)),
        to,
        forgotten: forgotten.len(),
        forgotten_halves: named.map(|open| HalfView::of(&part.open(open))).collect(),
        undelivered: part.undelivered.iter().filter(|entry| lost(*entry)).count(),
        unparked: part.unwritten().filter(|parked| parked.parked_at < to).count(),
        delivered_again: part.delivered,
    }
}

/// Blocks.
fn store(config: &ProducerConfig, partition: i32, to: i64) -> Result<(), AdminError> {
    let topic = config.store_topic();
    commit(config, &topic, partition, to).map_err(|error| match error.rdkafka_error_code() {
        Some(
            Code::UnknownMemberId
            | Code::IllegalGeneration
            | Code::RebalanceInProgress
            | Code::FencedInstanceId,
        ) => AdminError::Refused(format!(
            "replicas of the group are running ({error}): stop all of them first, and wait until \
             the brokers have noticed (the session timeout, 10 s)"
        )),
        _ => AdminError::Unavailable(format!("progress is not stored: {error}")),
    })
}

fn commit(config: &ProducerConfig, topic: &str, partition: i32, to: i64) -> Result<(), KafkaError> {
    let client: BaseConsumer = stored::client(&config.kafka, topic)?;
    let progress = Progress { low_water: to, position: to };
    client.commit(&offsets(topic, [(partition, progress)])?, CommitMode::Sync)
}

//! Counters and gauges of the producer and its resolver.

use halfmsg_protocol::{Answer, Ignored, NotAsked, Origin, ParkCause, Verdict};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct DecisionLabels {
    origin: &'static str,
    verdict: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct PartitionLabel {
    partition: i32,
}

/// Seconds, with parts of them.
type Seconds = Gauge<f64, AtomicU64>;

/// Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Metrics {
    prepared: Counter,
    prepare_failures: Counter,
    decisions: Family<DecisionLabels, Counter>,
    checks: Family<OutcomeLabel, Counter>,
    ignored: Family<ReasonLabel, Counter>,
    parked: Family<ReasonLabel, Counter>,
    delivered: Counter,
    dropped: Counter,
    foreign: Counter,
    open: Family<PartitionLabel, Gauge>,
    oldest_open: Family<PartitionLabel, Seconds>,
    oldest_outcome: Seconds,
    batches: Family<OutcomeLabel, Counter>,
    lost_lanes: Counter,
    replay_left: Gauge,
}

impl Metrics {
    pub(crate) fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("halfmsg");
        registry.register("prepared", "Half messages stored", self.prepared.clone());
        registry.register(
            "prepare_failures",
            "Half messages that were not stored",
            self.prepare_failures.clone(),
        );
        registry.register(
            "decisions",
            "Decisions sent, by origin and verdict",
            self.decisions.clone(),
        );
        registry.register("checks", "Checks by outcome", self.checks.clone());
        registry.register(
            "ignored_records",
            "Store records that changed nothing, by reason",
            self.ignored.clone(),
        );
        registry.register(
            "parked",
            "Half messages parked for good, by cause; each once",
            self.parked.clone(),
        );
        registry.register("delivered", "Committed messages delivered", self.delivered.clone());
        registry.register("dropped", "Rolled-back messages dropped", self.dropped.clone());
        registry.register(
            "foreign_records",
            "Store records that are none of ours",
            self.foreign.clone(),
        );
        registry.register(
            "open_halves",
            "Open half messages, by the partitions that this replica owns",
            self.open.clone(),
        );
        registry.register(
            "oldest_open_half_seconds",
            "Since the oldest open half message was prepared, likewise; 0 if none is open",
            self.oldest_open.clone(),
        );
        registry.register(
            "oldest_outcome_seconds",
            "Age of the oldest outcome (a delivery, say) that is not carried out; 0 if there is none",
            self.oldest_outcome.clone(),
        );
        registry.register(
            "batches",
            "Batches of deliveries by outcome; in exactly-once mode each is a Kafka transaction",
            self.batches.clone(),
        );
        registry.register(
            "lost_lanes",
            "Times that a partition was fenced by another owner, or its client failed",
            self.lost_lanes.clone(),
        );
        registry.register(
            "replay_left_records",
            "Records of the store that are still to be replayed after a takeover",
            self.replay_left.clone(),
        );
    }

    pub(crate) fn prepared(&self) {
        self.prepared.inc();
    }

    pub(crate) fn prepare_failed(&self) {
        self.prepare_failures.inc();
    }

    pub(crate) fn decided(&self, origin: Origin, verdict: Verdict) {
        let labels = DecisionLabels { origin: origin.as_str(), verdict: verdict.as_str() };
        self.decisions.get_or_create(&labels).inc();
    }

    pub(crate) fn checked(&self, answer: &Answer) {
        let outcome = match answer {
            Answer::Commit => "commit",
            Answer::Rollback => "rollback",
            Answer::Unknown(_) => "unknown",
            Answer::Failed(_) => "failed",
            Answer::NotAsked(NotAsked::NoListener) => "no_listener",
            Answer::NotAsked(NotAsked::Busy) => "busy",
        };
        self.checks.get_or_create(&OutcomeLabel { outcome }).inc();
    }

    pub(crate) fn ignored(&self, why: Ignored) {
        let reason = match why {
            Ignored::Duplicate => "duplicate",
            Ignored::Conflict => "conflict",
            Ignored::LateUnknown => "late_unknown",
            Ignored::Mismatch => "mismatch",
            Ignored::Stale => "stale",
        };
        self.ignored.get_or_create(&ReasonLabel { reason }).inc();
    }

    pub(crate) fn parked(&self, cause: ParkCause) {
        self.parked.get_or_create(&ReasonLabel { reason: cause.as_str() }).inc();
    }

    pub(crate) fn delivered(&self) {
        self.delivered.inc();
    }

    pub(crate) fn dropped(&self) {
        self.dropped.inc();
    }

    pub(crate) fn foreign(&self) {
        self.foreign.inc();
    }

    pub(crate) fn batch_ended(&self, done: bool) {
        let outcome = if done { "done" } else { "aborted" };
        self.batches.get_or_create(&OutcomeLabel { outcome }).inc();
    }

    pub(crate) fn lane_lost(&self) {
        self.lost_lanes.inc();
    }

    pub(crate) fn replay_left(&self, records: i64) {
        self.replay_left.set(records);
    }

    /// Open halves of a partition, and the age of the oldest.
    pub(crate) fn open(&self, partition: i32, count: usize, oldest_ms: i64) {
        let label = PartitionLabel { partition };
        self.open.get_or_create(&label).set(i64::try_from(count).unwrap_or(i64::MAX));
        let age = Duration::from_millis(u64::try_from(oldest_ms).unwrap_or(0));
        self.oldest_open.get_or_create(&label).set(age.as_secs_f64());
    }

    /// The partition is not this replica's any more.
    pub(crate) fn not_owned(&self, partition: i32) {
        let label = PartitionLabel { partition };
        self.open.remove(&label);
        self.oldest_open.remove(&label);
    }

    pub(crate) fn oldest_outcome(&self, age: Duration) {
        self.oldest_outcome.set(age.as_secs_f64());
    }

    /// Decisions that contradicted an earlier one.
    pub(crate) fn conflicts(&self) -> u64 {
        self.ignored.get_or_create(&ReasonLabel { reason: "conflict" }).get()
    }
}

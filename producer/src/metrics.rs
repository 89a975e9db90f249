//! Counters and gauges of the producer and its resolver.

use halfmsg_protocol::{Answer, Ignored, NotAsked, Origin, ParkCause, Verdict};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use crate::error::PrepareError;

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

const CHECK_OUTCOMES: [&str; 9] = [
    "commit",
    "rollback",
    "unknown",
    "failed",
    "no_listener",
    "busy",
    "no_place",
    "blocked",
    "unread",
];
const IGNORED_REASONS: [&str; 7] =
    ["duplicate", "conflict", "late_unknown", "mismatch", "stale", "copy", "reused"];
const DONE: &str = "done";
const ABORTED: &str = "aborted";

/// Seconds, with parts of them.
type Seconds = Gauge<f64, AtomicU64>;

/// Half a millisecond, doubling 15 times, to 16 s: storing a half message.
fn prepare_buckets() -> Histogram {
    Histogram::new(exponential_buckets(0.000_5, 2.0, 16))
}

/// A millisecond, doubling 19 times, to 9 min: what waits for a takeover or for its target is longer.
fn delivery_buckets() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 20))
}

/// Cheap to clone.
#[derive(Clone)]
pub(crate) struct Metrics {
    prepared: Counter,
    prepare_failures: Family<ReasonLabel, Counter>,
    prepare_seconds: Histogram,
    commit_to_delivered: Histogram,
    lag: Family<PartitionLabel, Gauge>,
    decisions: Family<DecisionLabels, Counter>,
    checks: Family<OutcomeLabel, Counter>,
    ignored: Family<ReasonLabel, Counter>,
    parked: Family<ReasonLabel, Counter>,
    delivered: Counter,
    dropped: Counter,
    foreign: Counter,
    open: Family<PartitionLabel, Gauge>,
    failing: Family<PartitionLabel, Gauge>,
    parked_now: Family<PartitionLabel, Gauge>,
    oldest_open: Family<PartitionLabel, Seconds>,
    oldest_outcome: Seconds,
    batches: Family<OutcomeLabel, Counter>,
    lost_lanes: Counter,
    trim_failures: Counter,
    cut_logs: Counter,
    unknown_progress: Counter,
    stopped: Gauge,
    untaken: Gauge,
    replay_left: Gauge,
}

impl Default for Metrics {
    /// Every series that is known in advance begins at 0: of one that appears with its first event,
    /// a scraper sees no increase.
    fn default() -> Self {
        let metrics = Self {
            prepared: Counter::default(),
            prepare_failures: Family::default(),
            prepare_seconds: prepare_buckets(),
            commit_to_delivered: delivery_buckets(),
            lag: Family::default(),
            decisions: Family::default(),
            checks: Family::default(),
            ignored: Family::default(),
            parked: Family::default(),
            delivered: Counter::default(),
            dropped: Counter::default(),
            foreign: Counter::default(),
            open: Family::default(),
            failing: Family::default(),
            parked_now: Family::default(),
            oldest_open: Family::default(),
            oldest_outcome: Seconds::default(),
            batches: Family::default(),
            lost_lanes: Counter::default(),
            trim_failures: Counter::default(),
            cut_logs: Counter::default(),
            unknown_progress: Counter::default(),
            stopped: Gauge::default(),
            untaken: Gauge::default(),
            replay_left: Gauge::default(),
        };
        for origin in [Origin::Producer, Origin::CheckBack, Origin::Operator] {
            for verdict in [Verdict::Commit, Verdict::Rollback] {
                metrics.decisions.get_or_create(&DecisionLabels::of(origin, verdict)).inc_by(0);
            }
        }
        for outcome in CHECK_OUTCOMES {
            metrics.checks.get_or_create(&OutcomeLabel { outcome }).inc_by(0);
        }
        for reason in PrepareError::REASONS {
            metrics.prepare_failures.get_or_create(&ReasonLabel { reason }).inc_by(0);
        }
        for reason in IGNORED_REASONS {
            metrics.ignored.get_or_create(&ReasonLabel { reason }).inc_by(0);
        }
        use ParkCause::{MaxAge, MaxChecks, NoListener, Undeliverable};
        for cause in [MaxChecks, MaxAge, NoListener, Undeliverable] {
            metrics.parked.get_or_create(&ReasonLabel { reason: cause.as_str() }).inc_by(0);
        }
        for outcome in [DONE, ABORTED] {
            metrics.batches.get_or_create(&OutcomeLabel { outcome }).inc_by(0);
        }
        metrics
    }
}

impl DecisionLabels {
    fn of(origin: Origin, verdict: Verdict) -> Self {
        Self { origin: origin.as_str(), verdict: verdict.as_str() }
    }
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
            "prepare_seconds",
            "Storing a half message, from the call to its acknowledgement, the wait for a place included",
            self.prepare_seconds.clone(),
        );
        registry.register(
            "commit_to_delivered_seconds",
            "From the store's broker taking a commit, on its clock, to this replica's knowing that \
             the message is delivered (in exactly-once mode, its Kafka transaction committed)",
            self.commit_to_delivered.clone(),
        );
        registry.register(
            "resolver_lag_records",
            "Records of the store that this replica has not read yet, by its partitions, every 5 s and at the end of the log",
            self.lag.clone(),
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
            "failing_halves",
            "Those of them whose checks fail, and count as no attempts",
            self.failing.clone(),
        );
        registry.register(
            "parked_halves",
            "Half messages that are parked and wait for a person, likewise",
            self.parked_now.clone(),
        );
        registry.register(
            "oldest_open_half_seconds",
            "Since the oldest open half message was prepared first, likewise; 0 if none is open",
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
            "trim_failures",
            "Times that the store could not be trimmed, or not all of it",
            self.trim_failures.clone(),
        );
        registry.register(
            "cut_logs",
            "Times that a partition was taken over of whose log records were missing that were needed",
            self.cut_logs.clone(),
        );
        registry.register(
            "unknown_progress",
            "Times that a partition was taken over whose log holds records and for which no progress was stored",
            self.unknown_progress.clone(),
        );
        registry.register(
            "stopped_partitions",
            "Partitions of this replica that are not read on until a person has looked at them",
            self.stopped.clone(),
        );
        registry.register(
            "untaken_partitions",
            "Partitions that are this replica's to take, and are not taken over yet",
            self.untaken.clone(),
        );
        registry.register(
            "replay_left_records",
            "Records of the store that are still to be replayed after a takeover",
            self.replay_left.clone(),
        );
    }

    /// A half message is stored, after this long.
    pub(crate) fn prepared(&self, after: Duration) {
        self.prepared.inc();
        self.prepare_seconds.observe(after.as_secs_f64());
    }

    pub(crate) fn prepare_failed(&self, error: &PrepareError) {
        let reason = error.reason();
        self.prepare_failures.get_or_create(&ReasonLabel { reason }).inc();
    }

    pub(crate) fn decided(&self, origin: Origin, verdict: Verdict) {
        self.decisions.get_or_create(&DecisionLabels::of(origin, verdict)).inc();
    }

    pub(crate) fn checked(&self, answer: &Answer) {
        let outcome = match answer {
            Answer::Commit => "commit",
            Answer::Rollback => "rollback",
            Answer::Unknown(_) => "unknown",
            Answer::Failed(_) => "failed",
            Answer::NotAsked(NotAsked::NoListener) => "no_listener",
            Answer::NotAsked(NotAsked::Busy) => "busy",
            Answer::NotAsked(NotAsked::NoPlace) => "no_place",
            Answer::NotAsked(NotAsked::Blocked) => "blocked",
            Answer::NotAsked(NotAsked::Unread) => "unread",
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
            Ignored::Copy => "copy",
            Ignored::Reused { .. } => "reused",
        };
        self.ignored.get_or_create(&ReasonLabel { reason }).inc();
    }

    pub(crate) fn parked(&self, cause: ParkCause) {
        self.parked.get_or_create(&ReasonLabel { reason: cause.as_str() }).inc();
    }

    pub(crate) fn delivered(&self) {
        self.delivered.inc();
    }

    /// The time since its commit was stored, of a message that is delivered.
    pub(crate) fn delivered_after(&self, time: Duration) {
        self.commit_to_delivered.observe(time.as_secs_f64());
    }

    /// What a partition's log holds beyond what was read of it.
    pub(crate) fn lag(&self, partition: i32, records: Option<i64>) {
        let label = PartitionLabel { partition };
        match records {
            Some(records) => {
                self.lag.get_or_create(&label).set(records);
            }
            None => {
                self.lag.remove(&label);
            }
        }
    }

    /// Nothing is known of what is behind.
    pub(crate) fn lag_unknown(&self) {
        self.lag.clear();
    }

    pub(crate) fn dropped(&self) {
        self.dropped.inc();
    }

    pub(crate) fn foreign(&self) {
        self.foreign.inc();
    }

    pub(crate) fn batch_ended(&self, done: bool) {
        let outcome = if done { DONE } else { ABORTED };
        self.batches.get_or_create(&OutcomeLabel { outcome }).inc();
    }

    pub(crate) fn lane_lost(&self) {
        self.lost_lanes.inc();
    }

    pub(crate) fn trim_failed(&self) {
        self.trim_failures.inc();
    }

    /// A partition is taken over of whose log something is missing that was needed.
    pub(crate) fn log_cut(&self) {
        self.cut_logs.inc();
    }

    /// A partition is taken over whose log holds records, and nobody has stored how far they are carried
    /// out.
    pub(crate) fn progress_unknown(&self) {
        self.unknown_progress.inc();
    }

    /// Partitions that are ours and stand still: those that are stopped, and those not taken over.
    pub(crate) fn standing_still(&self, stopped: usize, untaken: usize) {
        self.stopped.set(number(stopped));
        self.untaken.set(number(untaken));
    }

    pub(crate) fn replay_left(&self, records: i64) {
        self.replay_left.set(records);
    }

    /// Halves of a partition that are parked now.
    pub(crate) fn parked_now(&self, partition: i32, count: usize) {
        self.parked_now.get_or_create(&PartitionLabel { partition }).set(number(count));
    }

    /// Open halves of a partition, and those whose checks fail.
    pub(crate) fn open(&self, partition: i32, count: usize, failing: usize) {
        let label = PartitionLabel { partition };
        self.open.get_or_create(&label).set(number(count));
        self.failing.get_or_create(&label).set(number(failing));
    }

    /// The age of the oldest open half of a partition.
    pub(crate) fn oldest_open(&self, partition: i32, oldest_ms: i64) {
        let label = PartitionLabel { partition };
        let age = Duration::from_millis(u64::try_from(oldest_ms).unwrap_or(0));
        self.oldest_open.get_or_create(&label).set(age.as_secs_f64());
    }

    /// The partition is not this replica's any more.
    pub(crate) fn not_owned(&self, partition: i32) {
        let label = PartitionLabel { partition };
        self.open.remove(&label);
        self.failing.remove(&label);
        self.parked_now.remove(&label);
        self.oldest_open.remove(&label);
        self.lag.remove(&label);
    }

    pub(crate) fn oldest_outcome(&self, age: Duration) {
        self.oldest_outcome.set(age.as_secs_f64());
    }

    /// The lag of each partition that has one.
    #[cfg(test)]
    pub(crate) fn lags(&self) -> std::collections::BTreeMap<i32, i64> {
        let known =
            |partition| Some((partition, self.lag.get(&PartitionLabel { partition })?.get()));
        (0..100).filter_map(known).collect()
    }

    /// Decisions that contradicted an earlier one.
    pub(crate) fn conflicts(&self) -> u64 {
        self.ignored.get_or_create(&ReasonLabel { reason: "conflict" }).get()
    }
}

fn number(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text::encode;

    use super::*;
    use crate::error::Invalid;

    fn text(metrics: &Metrics) -> String {
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        let mut text = String::new();
        encode(&mut text, &registry).expect("text");
        text
    }

    /// A caller's mistake and a broker that is away are two things; each begins at 0.
    #[test]
    fn what_is_not_stored_is_counted_by_its_reason() {
        let unavailable = PrepareError::Unavailable {
            deadline: Duration::from_secs(2),
            reason: "no broker".into(),
            transaction_id: None,
        };
        let errors = [
            PrepareError::Invalid(Invalid::Topic("a b".into())),
            PrepareError::UnknownTopic("t".into()),
            PrepareError::NoListener("p".into()),
            PrepareError::Backpressure("full".into()),
            unavailable,
            PrepareError::ShuttingDown,
        ];
        let metrics = Metrics::default();
        for (at, error) in errors.iter().enumerate() {
            let line = |count| {
                let reason = error.reason();
                format!("halfmsg_prepare_failures_total{{reason=\"{reason}\"}} {count}\n")
            };
            assert!(text(&metrics).contains(&line(0)), "{error}: {}", text(&metrics));
            metrics.prepare_failed(error);
            assert!(text(&metrics).contains(&line(1)), "{error}: {}", text(&metrics));
            assert_eq!(error.reason(), PrepareError::REASONS[at]);
        }
        assert_eq!(errors.len(), PrepareError::REASONS.len());
    }
}

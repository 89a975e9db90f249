//! What can be watched.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// Counters, gauges and a histogram of one consumer. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ConsumerMetrics {
    outcomes: Family<Outcome, Counter>,
    pub(crate) failures: Counter,
    pub(crate) lag_records: Family<Partition, Gauge>,
    pub(crate) in_flight: Gauge,
    handler_seconds: Histogram,
    pub(crate) retry_depth: Gauge,
    pub(crate) dead_letters_open: Gauge,
    pub(crate) replies_waiting: Gauge,
    pub(crate) replies: Counter,
    pub(crate) replies_refused: Counter,
    pub(crate) forgotten: Counter,
    pub(crate) paused: Gauge,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

/// A partition, as a label.
#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(crate) struct Partition {
    pub(crate) topic: String,
    pub(crate) partition: i32,
}

const APPLIED: Outcome = Outcome { outcome: "applied" };
const DUPLICATE: Outcome = Outcome { outcome: "duplicate" };
const RETRIED: Outcome = Outcome { outcome: "retried" };
const HELD: Outcome = Outcome { outcome: "held" };
const DEAD: Outcome = Outcome { outcome: "dead" };

/// The bounds of the histogram: 1 ms, doubling 15 times, to 33 s.
fn latency() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 16))
}

impl Default for ConsumerMetrics {
    fn default() -> Self {
        // Known in advance, so that a scraper sees the first increase.
        let outcomes: Family<Outcome, Counter> = Family::default();
        for outcome in [APPLIED, DUPLICATE, RETRIED, HELD, DEAD] {
            outcomes.get_or_create(&outcome).inc_by(0);
        }
        Self {
            outcomes,
            failures: Counter::default(),
            lag_records: Family::default(),
            in_flight: Gauge::default(),
            handler_seconds: latency(),
            retry_depth: Gauge::default(),
            dead_letters_open: Gauge::default(),
            replies_waiting: Gauge::default(),
            replies: Counter::default(),
            replies_refused: Counter::default(),
            forgotten: Counter::default(),
            paused: Gauge::default(),
        }
    }
}

impl ConsumerMetrics {
    /// Registers all of them under `halfmsg_consumer_…`.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("halfmsg_consumer");
        let help = "Messages by what became of them: applied, duplicate (the inbox had them), \
                    retried (into the retry table), held (behind one of their key), dead";
        registry.register("messages", help, self.outcomes.clone());
        registry.register("failures", "Attempts that failed", self.failures.clone());
        let help = "Records of this replica's partitions that it has not taken yet, every 5 s";
        registry.register("lag_records", help, self.lag_records.clone());
        registry.register("in_flight", "Messages in hand", self.in_flight.clone());
        let help = "Time of a handler's call that succeeded, without the commit";
        registry.register("handler_seconds", help, self.handler_seconds.clone());
        let help = "Messages of all replicas in the retry table, every 5 s";
        registry.register("retry_depth", help, self.retry_depth.clone());
        let help = "Dead letters of all replicas that nobody has replayed or discarded, every 5 s";
        registry.register("dead_letters_open", help, self.dead_letters_open.clone());
        let help = "Replies of all replicas that are not acknowledged, every 5 s";
        registry.register("replies_waiting", help, self.replies_waiting.clone());
        registry.register("replies", "Replies acknowledged", self.replies.clone());
        let help = "Replies that the broker refused, each time";
        registry.register("replies_refused", help, self.replies_refused.clone());
        let help = "Rows of the inbox that were cleaned away";
        registry.register("inbox_forgotten", help, self.forgotten.clone());
        let help = "1 while the database is away, a batch is slow, or somebody paused it";
        registry.register("paused", help, self.paused.clone());
    }

    /// Messages that had their effect.
    pub fn messages(&self) -> u64 {
        self.outcome(&APPLIED).get()
    }

    /// Messages skipped because the inbox had them.
    pub fn duplicates(&self) -> u64 {
        self.outcome(&DUPLICATE).get()
    }

    /// Attempts that failed.
    pub fn failures(&self) -> u64 {
        self.failures.get()
    }

    /// Messages that were put into the retry table.
    pub fn retried(&self) -> u64 {
        self.outcome(&RETRIED).get()
    }

    /// Messages that were put behind an earlier one of their key.
    pub fn held(&self) -> u64 {
        self.outcome(&HELD).get()
    }

    /// Messages given up on.
    pub fn dead_letters(&self) -> u64 {
        self.outcome(&DEAD).get()
    }

    /// Replies acknowledged.
    pub fn replies(&self) -> u64 {
        self.replies.get()
    }

    pub(crate) fn applied(&self, count: usize) {
        self.outcome(&APPLIED).inc_by(count as u64);
    }

    pub(crate) fn duplicate(&self, count: usize) {
        self.outcome(&DUPLICATE).inc_by(count as u64);
    }

    pub(crate) fn put_behind(&self, count: usize) {
        self.outcome(&HELD).inc_by(count as u64);
    }

    pub(crate) fn to_be_retried(&self) {
        self.outcome(&RETRIED).inc();
    }

    pub(crate) fn dead(&self) {
        self.outcome(&DEAD).inc();
    }

    pub(crate) fn handled_in(&self, time: Duration) {
        self.handler_seconds.observe(time.as_secs_f64());
    }

    fn outcome(&self, outcome: &Outcome) -> Counter {
        self.outcomes.get_or_create_owned(outcome)
    }
}

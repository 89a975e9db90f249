//! What can be watched.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// The metrics of the consumers of a process, told apart by the label `subscriber`. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ConsumerFamilies {
    messages: Family<Outcome, Counter>,
    failures: Family<Subscriber, Counter>,
    lag_records: Family<Partition, Gauge>,
    in_flight: Family<Subscriber, Gauge>,
    handler_seconds: Family<Subscriber, Histogram>,
    retry_depth: Family<Subscriber, Gauge>,
    dead_letters_open: Family<Subscriber, Gauge>,
    replies_waiting: Family<Subscriber, Gauge>,
    replies: Family<Subscriber, Counter>,
    replies_refused: Family<Subscriber, Counter>,
    forgotten: Family<Subscriber, Counter>,
    paused: Family<Subscriber, Gauge>,
    unconfirmed_partitions: Family<Subscriber, Gauge>,
}

/// Counters, gauges and a histogram of one consumer. Cheap to clone, and each ready to be counted in
/// without a look at labels.
#[derive(Debug, Clone)]
pub struct ConsumerMetrics {
    families: ConsumerFamilies,
    applied: Counter,
    duplicate: Counter,
    retried: Counter,
    held: Counter,
    dead: Counter,
    pub(crate) failures: Counter,
    pub(crate) lag_records: Lag,
    pub(crate) in_flight: Gauge,
    handler_seconds: Histogram,
    pub(crate) retry_depth: Gauge,
    pub(crate) dead_letters_open: Gauge,
    pub(crate) replies_waiting: Gauge,
    pub(crate) replies: Counter,
    pub(crate) replies_refused: Counter,
    pub(crate) forgotten: Counter,
    pub(crate) paused: Gauge,
    pub(crate) unconfirmed_partitions: Gauge,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Subscriber {
    subscriber: String,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Outcome {
    subscriber: String,
    outcome: &'static str,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, PartialOrd, Ord, EncodeLabelSet)]
struct Partition {
    subscriber: String,
    topic: String,
    partition: i32,
}

/// The lag of one consumer's partitions.
#[derive(Debug, Clone)]
pub(crate) struct Lag {
    subscriber: String,
    family: Family<Partition, Gauge>,
    shown: Arc<Mutex<BTreeSet<Partition>>>,
}

/// The bounds of the histogram: 1 ms, doubling 15 times, to 33 s.
fn latency() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 16))
}

impl Default for ConsumerFamilies {
    fn default() -> Self {
        Self {
            messages: Family::default(),
            failures: Family::default(),
            lag_records: Family::default(),
            in_flight: Family::default(),
            handler_seconds: Family::new_with_constructor(latency),
            retry_depth: Family::default(),
            dead_letters_open: Family::default(),
            replies_waiting: Family::default(),
            replies: Family::default(),
            replies_refused: Family::default(),
            forgotten: Family::default(),
            paused: Family::default(),
            unconfirmed_partitions: Family::default(),
        }
    }
}

impl ConsumerFamilies {
    /// Registers all of them under `halfmsg_consumer_…`, once for all consumers.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("halfmsg_consumer");
        let help = "Messages by what became of them: applied, duplicate (the inbox had them), \
                    retried (into the retry table), held (behind one of their key), dead";
        registry.register("messages", help, self.messages.clone());
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
        let help =
            "Partitions whose offsets the coordinator was told 5 s ago and has not, every 5 s";
        registry.register("unconfirmed_partitions", help, self.unconfirmed_partitions.clone());
    }

    /// Those of one consumer, by this value of the label. Every series that is known in advance begins
    /// at 0: of one that appears with its first event, a scraper sees no increase.
    pub fn of(&self, subscriber: &str) -> ConsumerMetrics {
        let label = Subscriber { subscriber: subscriber.to_owned() };
        let outcome = |outcome| {
            let label = Outcome { subscriber: subscriber.to_owned(), outcome };
            self.messages.get_or_create_owned(&label)
        };
        ConsumerMetrics {
            families: self.clone(),
            applied: outcome("applied"),
            duplicate: outcome("duplicate"),
            retried: outcome("retried"),
            held: outcome("held"),
            dead: outcome("dead"),
            failures: self.failures.get_or_create_owned(&label),
            lag_records: Lag {
                subscriber: subscriber.to_owned(),
                family: self.lag_records.clone(),
                shown: Arc::default(),
            },
            in_flight: self.in_flight.get_or_create_owned(&label),
            handler_seconds: self.handler_seconds.get_or_create_owned(&label),
            retry_depth: self.retry_depth.get_or_create_owned(&label),
            dead_letters_open: self.dead_letters_open.get_or_create_owned(&label),
            replies_waiting: self.replies_waiting.get_or_create_owned(&label),
            replies: self.replies.get_or_create_owned(&label),
            replies_refused: self.replies_refused.get_or_create_owned(&label),
            forgotten: self.forgotten.get_or_create_owned(&label),
            paused: self.paused.get_or_create_owned(&label),
            unconfirmed_partitions: self.unconfirmed_partitions.get_or_create_owned(&label),
        }
    }
}

impl Lag {
    /// The records of a partition that are not taken; of one that is not ours any more, nothing.
    pub(crate) fn set(&self, topic: &str, partition: i32, records: Option<i64>) {
        let (subscriber, topic) = (self.subscriber.clone(), topic.to_owned());
        let label = Partition { subscriber, topic, partition };
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        match records {
            Some(records) => {
                self.family.get_or_create(&label).set(records);
                shown.insert(label);
            }
            None => {
                self.family.remove(&label);
                shown.remove(&label);
            }
        }
    }

    /// No partition is ours any more.
    pub(crate) fn clear(&self) {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        for label in std::mem::take(&mut *shown) {
            self.family.remove(&label);
        }
    }
}

impl ConsumerMetrics {
    /// Registers all of them under `halfmsg_consumer_…`, with those of every consumer of the same
    /// [`ConsumerFamilies`].
    pub fn register(&self, registry: &mut Registry) {
        self.families.register(registry);
    }

    /// Messages that had their effect.
    pub fn messages(&self) -> u64 {
        self.applied.get()
    }

    /// Messages skipped because the inbox had them.
    pub fn duplicates(&self) -> u64 {
        self.duplicate.get()
    }

    /// Attempts that failed.
    pub fn failures(&self) -> u64 {
        self.failures.get()
    }

    /// Messages that were put into the retry table.
    pub fn retried(&self) -> u64 {
        self.retried.get()
    }

    /// Messages that were put behind an earlier one of their key.
    pub fn held(&self) -> u64 {
        self.held.get()
    }

    /// Messages given up on.
    pub fn dead_letters(&self) -> u64 {
        self.dead.get()
    }

    /// Replies acknowledged.
    pub fn replies(&self) -> u64 {
        self.replies.get()
    }

    pub(crate) fn applied(&self, count: usize) {
        self.applied.inc_by(count as u64);
    }

    pub(crate) fn duplicate(&self, count: usize) {
        self.duplicate.inc_by(count as u64);
    }

    pub(crate) fn put_behind(&self, count: usize) {
        self.held.inc_by(count as u64);
    }

    pub(crate) fn to_be_retried(&self) {
        self.retried.inc();
    }

    pub(crate) fn dead(&self) {
        self.dead.inc();
    }

    pub(crate) fn handled_in(&self, time: Duration) {
        self.handler_seconds.observe(time.as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn consumers_share_families_and_not_their_partitions() {
        let families = ConsumerFamilies::default();
        let (one, other) = (families.of("one"), families.of("other"));
        one.applied(2);
        one.lag_records.set("t", 0, Some(7));
        other.lag_records.set("t", 0, Some(8));
        one.lag_records.clear();
        let mut registry = Registry::default();
        one.register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).expect("text");
        let has = |line: &str| text.lines().any(|found| found == line);
        let messages = |subscriber: &str, count: u64| {
            let labels = format!("{{subscriber=\"{subscriber}\",outcome=\"applied\"}}");
            format!("halfmsg_consumer_messages_total{labels} {count}")
        };
        assert!(has(&messages("one", 2)) && has(&messages("other", 0)), "{text}");
        let lags: Vec<_> = text.lines().filter(|line| line.contains("lag_records{")).collect();
        assert_eq!(lags.len(), 1, "{text}");
        assert!(lags[0].contains("subscriber=\"other\"") && lags[0].ends_with(" 8"), "{text}");
    }
}

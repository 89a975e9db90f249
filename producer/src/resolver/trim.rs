//! Deletes the records of the store that no owner will ever need: those below the low-water mark
//! that is stored. It must never look at a mark that is not stored yet, and never take a log for cut
//! before the broker has said so.

use std::sync::Arc;
use std::time::{Duration, Instant};

use halfmsg_kafka::KafkaConfig;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::error::KafkaError;
use rdkafka::{Offset, TopicPartitionList};

use super::{Input, Resolver};

/// One request.
const REQUEST_DEADLINE: Duration = Duration::from_secs(5);
/// What stopping may take beyond draining.
const STOP_DEADLINE: Duration = Duration::from_secs(2);
/// What failed is tried again after so long at most, however long `trim_interval` is and although the
/// mark may not have moved.
const RETRY_INTERVAL: Duration = Duration::from_secs(60);

/// Where the log of a partition is to be cut, in one ownership of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cut {
    partition: i32,
    generation: u64,
    below: i64,
}

/// When it is time.
pub(super) struct Trimming {
    tried_at: Instant,
    /// Not all that the last request asked for is known to be done.
    is_left: bool,
    /// Held by a request while it is under way.
    request: Arc<()>,
}

impl Trimming {
    pub(super) fn new(now: Instant) -> Self {
        Self { tried_at: now, is_left: false, request: Arc::default() }
    }

    /// One request at a time.
    fn is_due(&self, interval: Option<Duration>, now: Instant) -> bool {
        let Some(interval) = interval else { return false };
        let interval = if self.is_left { interval.min(RETRY_INTERVAL) } else { interval };
        let is_under_way = Arc::strong_count(&self.request) > 1;
        !is_under_way && now.saturating_duration_since(self.tried_at) >= interval
    }

    /// What is returned is held until the request is over.
    fn begin(&mut self, now: Instant, asks: bool) -> Arc<()> {
        (self.tried_at, self.is_left) = (now, asks);
        Arc::clone(&self.request)
    }

    fn ended(&mut self, is_left: bool) {
        self.is_left = is_left;
    }
}

impl Resolver {
    /// From time to time; in the background.
    pub(super) fn trim(&mut self) {
        let now = Instant::now();
        if !self.trimming.is_due(self.config.trim_interval, now) {
            return;
        }
        let cuts = self.cuts();
        let request = self.trimming.begin(now, !cuts.is_empty());
        if cuts.is_empty() {
            return;
        }
        let (kafka, store, inputs) =
            (self.config.kafka.clone(), self.store.clone(), self.to_self.clone());
        self.runtime.spawn(async move {
            let _until_the_end = request;
            let done = delete(&kafka, &store, &cuts).await;
            let is_left = done.len() < cuts.len();
            // The resolver may have ended meanwhile; its successor trims.
            drop(inputs.send(Input::Trimmed { done, is_left }));
        });
    }

    /// A request to trim is over: so far it is done.
    pub(super) fn trimmed(&mut self, done: &[Cut], is_left: bool) {
        self.trimming.ended(is_left);
        if is_left {
            self.metrics.trim_failed();
        }
        for cut in done {
            if let Some(owned) = self.owned.get_mut(&cut.partition)
                && owned.generation == cut.generation
            {
                owned.trimmed_below = owned.trimmed_below.max(cut.below);
                owned.core.deleted(cut.below);
            }
        }
    }

    /// Once more when stopping in good order.
    pub(super) fn trim_last(&mut self) {
        let cuts = self.cuts();
        if !cuts.is_empty() {
            let deleted = delete(&self.config.kafka, &self.store, &cuts);
            // Not done in time: the next owner does it.
            drop(
                self.runtime.block_on(async { tokio::time::timeout(STOP_DEADLINE, deleted).await }),
            );
        }
    }

    /// How far each partition may be cut and is not yet, as far as is known.
    fn cuts(&self) -> Vec<Cut> {
        // The embedded broker cannot delete records; it keeps 5 MiB and forgets what is older.
        if self.config.kafka.embedded || self.config.trim_interval.is_none() {
            return Vec::new();
        }
        let owned = self.owned.iter().filter(|(_, owned)| !owned.is_lost);
        let cut = owned.filter_map(|(partition, owned)| {
            let below = owned.stored?.low_water;
            let cut = Cut { partition: *partition, generation: owned.generation, below };
            (below > owned.trimmed_below).then_some(cut)
        });
        cut.collect()
    }
}

/// Those that are done.
async fn delete(kafka: &KafkaConfig, store: &str, cuts: &[Cut]) -> Vec<Cut> {
    let deleted = async {
        let mut below = TopicPartitionList::new();
        for cut in cuts {
            below.add_partition_offset(store, cut.partition, Offset::Offset(cut.below))?;
        }
        let admin: AdminClient<DefaultClientContext> = kafka.admin().create()?;
        let options = AdminOptions::new()
            .operation_timeout(Some(REQUEST_DEADLINE))
            .request_timeout(Some(REQUEST_DEADLINE));
        admin.delete_records(&below, &options).await
    };
    let (done, failure) = match deleted.await {
        Ok(answer) => judged(store, cuts, &answer),
        Err(error) => (Vec::new(), Some(error)),
    };
    match failure {
        None => tracing::debug!(topic = store, partitions = done.len(), "the store is trimmed"),
        Some(error) => tracing::warn!(
            topic = store, %error, partitions = cuts.len() - done.len(),
            "the store cannot be trimmed, so it grows: grant DELETE on the topic, or look at the \
             brokers; it is tried again"
        ),
    }
    done
}

/// Those that are done, and why another is not: an element may carry an error although the request
/// succeeded.
fn judged(
    store: &str,
    cuts: &[Cut],
    answer: &TopicPartitionList,
) -> (Vec<Cut>, Option<KafkaError>) {
    let (mut done, mut failure) = (Vec::new(), None);
    for cut in cuts {
        match answer.find_partition(store, cut.partition).map(|element| element.error()) {
            Some(Ok(())) => done.push(*cut),
            Some(Err(error)) => failure = Some(error),
            None => {
                let why = format!("the broker says nothing of partition {}", cut.partition);
                failure = Some(KafkaError::AdminOpCreation(why));
            }
        }
    }
    (done, failure)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Option<Duration> = Some(Duration::from_secs(24 * 3_600));
    const MILLISECOND: Duration = Duration::from_millis(1);

    #[test]
    fn what_failed_is_tried_again_soon_although_nothing_more_is_to_be_cut() {
        let began = Instant::now();
        let mut trimming = Trimming::new(began);
        assert!(!trimming.is_due(None, began + RETRY_INTERVAL * 10_000), "it is switched off");
        assert!(!trimming.is_due(DAY, began + RETRY_INTERVAL));
        let mut now = began + DAY.unwrap();
        assert!(trimming.is_due(DAY, now));
        for _ in 0..3 {
            let request = trimming.begin(now, true);
            assert!(!trimming.is_due(DAY, now + DAY.unwrap()), "one at a time");
            trimming.ended(true);
            drop(request);
            assert!(!trimming.is_due(DAY, now + RETRY_INTERVAL - MILLISECOND));
            let short = Some(2 * MILLISECOND);
            assert!(!trimming.is_due(short, now + MILLISECOND));
            assert!(trimming.is_due(short, now + 2 * MILLISECOND), "as often as all others");
            now += RETRY_INTERVAL;
            assert!(trimming.is_due(DAY, now));
        }
        let request = trimming.begin(now, true);
        trimming.ended(false);
        drop(request);
        assert!(!trimming.is_due(DAY, now + RETRY_INTERVAL), "it is done");
        assert!(trimming.is_due(DAY, now + DAY.unwrap()));
        // Its task may panic and tell nothing.
        drop(trimming.begin(now, true));
        assert!(trimming.is_due(DAY, now + RETRY_INTERVAL));
        // Where there was nothing to ask for, nothing is left.
        drop(trimming.begin(now, false));
        assert!(!trimming.is_due(DAY, now + RETRY_INTERVAL));
    }

    #[test]
    fn only_what_the_broker_says_is_done() {
        let cut = |partition| Cut { partition, generation: 1, below: 7 };
        let mut answer = TopicPartitionList::new();
        answer.add_partition_offset("store", 0, Offset::Offset(7)).unwrap();
        let (done, failure) = judged("store", &[cut(0)], &answer);
        assert!(done == [cut(0)] && failure.is_none(), "{failure:?}");
        let (done, failure) = judged("store", &[cut(0), cut(1)], &answer);
        assert!(done == [cut(0)] && failure.is_some(), "it says nothing of the second");
    }
}

//! Knows which target topics exist: a message for one that does not is refused at prepare.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use halfmsg_kafka::TopicError;

use crate::log::StoreLog;

/// How long a topic that was seen is taken to exist.
const SEEN_FOR: Duration = Duration::from_secs(60);
/// Topics remembered; beyond, all are forgotten and looked up anew.
const TOPICS_KEPT: usize = 10_000;

/// A look at a missing topic that is older says nothing about now.
const MISSING_REMEMBERED: Duration = Duration::from_secs(60);
/// A committed message is refused for good only once its topic has been missing for so long: a broker
/// that lags behind the others knows neither a topic nor a right that is new.
pub(crate) const MISSING_FOR: Duration = Duration::from_secs(10);

/// Topics that are missing, or denied, and since when.
#[derive(Default)]
struct Missing(HashMap<String, (Instant, Instant)>);

impl Missing {
    /// It is missing now: for how long it has been, as far as anybody looked.
    fn note(&mut self, topic: &str, now: Instant) -> Duration {
        if self.0.len() >= TOPICS_KEPT && !self.0.contains_key(topic) {
            self.0.clear();
        }
        let (since, last) = self.0.entry(topic.to_owned()).or_insert((now, now));
        if now.duration_since(*last) > MISSING_REMEMBERED {
            *since = now;
        }
        *last = now;
        now.duration_since(*since)
    }
}

/// The target topics that were seen, and those that are missing.
pub(crate) struct Targets {
    log: Arc<StoreLog>,
    seen: RwLock<HashMap<String, Instant>>,
    missing: Mutex<Missing>,
    /// Those that deliveries may not write to.
    denied: Mutex<Missing>,
    /// One look-up at a time: hundreds of callers that miss the same topic at once would each ask,
    /// on the connection that their messages wait behind.
    looking: tokio::sync::Mutex<()>,
}

impl Targets {
    pub(crate) fn new(log: Arc<StoreLog>) -> Self {
        let looking = tokio::sync::Mutex::default();
        let (missing, denied) = (Mutex::default(), Mutex::default());
        Self { log, seen: RwLock::default(), missing, denied, looking }
    }

    /// Looks the topic up, unless it was seen lately.
    pub(crate) async fn find(
        self: &Arc<Self>,
        topic: &str,
        until: Instant,
    ) -> Result<(), TopicError> {
        if self.was_seen(topic) {
            return Ok(());
        }
        let Ok(_looking) = tokio::time::timeout_at(until.into(), self.looking.lock()).await else {
            return Err(TopicError::Unavailable {
                topic: topic.to_owned(),
                source: rdkafka::error::KafkaError::Canceled,
            });
        };
        let deadline = until.saturating_duration_since(Instant::now());
        let (targets, name) = (Arc::clone(self), topic.to_owned());
        match tokio::task::spawn_blocking(move || targets.look(&name, deadline)).await {
            Ok(found) => found,
            Err(_) => Err(TopicError::Unavailable {
                topic: topic.to_owned(),
                source: rdkafka::error::KafkaError::Canceled,
            }),
        }
    }

    /// The same from a thread that may block.
    pub(crate) fn look(&self, topic: &str, deadline: Duration) -> Result<(), TopicError> {
        if self.was_seen(topic) {
            return Ok(());
        }
        self.log.partition_count(topic, deadline)?;
        self.remember(topic);
        Ok(())
    }

    /// A delivery found it missing: for how long it has been, in all partitions' looks.
    pub(crate) fn missing_for(&self, topic: &str) -> Duration {
        self.missing.lock().unwrap_or_else(PoisonError::into_inner).note(topic, Instant::now())
    }

    /// A delivery was not allowed to write to it: for how long none has been. It may be readable all the same.
    pub(crate) fn denied_for(&self, topic: &str) -> Duration {
        self.denied.lock().unwrap_or_else(PoisonError::into_inner).note(topic, Instant::now())
    }

    /// Deliveries to these have been made: what was refused before says nothing of now.
    pub(crate) fn allowed<'a>(&self, topics: impl Iterator<Item = &'a str>) {
        let mut denied = self.denied.lock().unwrap_or_else(PoisonError::into_inner);
        // As good as always.
        if denied.0.is_empty() {
            return;
        }
        for topic in topics {
            denied.0.remove(topic);
        }
    }

    /// The same as if none had been for so long.
    #[cfg(test)]
    pub(crate) fn denied_since(&self, topic: &str, since: Instant) {
        let mut denied = self.denied.lock().unwrap_or_else(PoisonError::into_inner);
        denied.0.insert(topic.to_owned(), (since, Instant::now()));
    }

    /// It is to be looked up again: a delivery to it has failed.
    pub(crate) fn forget(&self, topic: &str) {
        self.seen.write().unwrap_or_else(PoisonError::into_inner).remove(topic);
    }

    fn was_seen(&self, topic: &str) -> bool {
        let seen = self.seen.read().unwrap_or_else(PoisonError::into_inner);
        seen.get(topic).is_some_and(|at| at.elapsed() < SEEN_FOR)
    }

    fn remember(&self, topic: &str) {
        let mut seen = self.seen.write().unwrap_or_else(PoisonError::into_inner);
        if seen.len() >= TOPICS_KEPT {
            seen.clear();
        }
        seen.insert(topic.to_owned(), Instant::now());
        self.missing.lock().unwrap_or_else(PoisonError::into_inner).0.remove(topic);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_is_missing_for_as_long_as_looks_find_nothing() {
        let (mut missing, start) = (Missing::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(missing.note("gone", at(0)), Duration::ZERO);
        assert_eq!(missing.note("gone", at(1)), Duration::from_secs(1));
        assert_eq!(missing.note("other", at(1)), Duration::ZERO);
        assert!(missing.note("gone", at(10)) >= MISSING_FOR);
        // Nobody has looked for so long that it may have been there meanwhile.
        assert_eq!(missing.note("gone", at(71)), Duration::ZERO);
    }

    #[test]
    fn a_target_that_takes_a_message_is_denied_no_longer() {
        let kafka = halfmsg_kafka::KafkaConfig::new("127.0.0.1:1");
        let log = StoreLog::new(&kafka, "store".into(), MISSING_FOR, 1_000_000);
        let targets = Targets::new(Arc::new(log.expect("a client")));
        targets.denied_since("flaps", Instant::now() - MISSING_FOR);
        assert!(targets.denied_for("flaps") >= MISSING_FOR);
        targets.allowed(["other"].into_iter());
        assert!(targets.denied_for("flaps") >= MISSING_FOR);
        targets.allowed(["flaps"].into_iter());
        assert!(targets.denied_for("flaps") < MISSING_FOR);
    }

    #[test]
    fn no_more_topics_are_remembered_than_the_bound() {
        let (mut missing, now) = (Missing::default(), Instant::now());
        for number in 0..=TOPICS_KEPT {
            missing.note(&number.to_string(), now);
        }
        assert_eq!(missing.0.len(), 1);
    }
}

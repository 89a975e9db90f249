//! Knows which target topics exist: a message for one that does not is refused at prepare.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use halfmsg_kafka::TopicError;

use crate::log::StoreLog;

/// How long a topic that was seen is taken to exist.
const SEEN_FOR: Duration = Duration::from_secs(60);
/// Topics remembered; beyond, all are forgotten and looked up anew.
const TOPICS_KEPT: usize = 10_000;

/// The target topics that were seen.
pub(crate) struct Targets {
    log: Arc<StoreLog>,
    seen: RwLock<HashMap<String, Instant>>,
    /// One look-up at a time: hundreds of callers that miss the same topic at once would each ask,
    /// on the connection that their messages wait behind.
    looking: tokio::sync::Mutex<()>,
}

impl Targets {
    pub(crate) fn new(log: Arc<StoreLog>) -> Self {
        Self { log, seen: RwLock::default(), looking: tokio::sync::Mutex::default() }
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
    }
}

//! Whether messages are being consumed: one slot for each cause, set and cleared by its own side.
//!
//! A side must never clear another one's slot: a database that answers says nothing of Kafka.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What fails for so long shows; what passes before is the ordinary course of things.
const BOUND: Duration = Duration::from_secs(30);

/// What can keep messages from being consumed, in the order in which it is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Cause {
    /// The Kafka client starts, is broken, or has no right to what it reads.
    Client,
    /// A batch waits for the database.
    Database,
    /// A batch waits for its replies to be sent.
    Replies,
    /// A message that failed cannot be set aside.
    SetAside,
    /// The retry table is not worked on.
    Retries,
    /// Offsets are not committed: a restart would read much again.
    Offsets,
    /// A batch does not come to its end.
    InHand,
}

/// Whether messages are being consumed. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Health(Arc<Mutex<BTreeMap<Cause, String>>>);

impl Health {
    pub(crate) fn starting() -> Self {
        let starting = (Cause::Client, "the consumer is starting".to_owned());
        Self(Arc::new(Mutex::new(BTreeMap::from([starting]))))
    }

    /// `Ok`, or what it is waiting for: all of it.
    ///
    /// # Errors
    /// The reasons, in words.
    pub fn check(&self) -> Result<(), String> {
        let causes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if causes.is_empty() {
            return Ok(());
        }
        Err(causes.values().map(String::as_str).collect::<Vec<_>>().join("; "))
    }

    /// True if this cause is new.
    pub(crate) fn bad(&self, cause: Cause, text: String) -> bool {
        let mut causes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        causes.insert(cause, text).is_none()
    }

    /// True if this cause was there.
    pub(crate) fn good(&self, cause: Cause) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&cause).is_some()
    }
}

/// Since when something has failed in a row; it shows once that is too long.
#[derive(Debug, Default)]
pub(crate) struct Failing(Mutex<Option<Instant>>);

impl Failing {
    pub(crate) fn failed(&self, health: &Health, cause: Cause, text: impl Into<String>) {
        self.failed_at(Instant::now(), health, cause, text);
    }

    pub(crate) fn failed_at(
        &self,
        at: Instant,
        health: &Health,
        cause: Cause,
        text: impl Into<String>,
    ) {
        let since = *self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(at);
        if at.duration_since(since) >= BOUND {
            let text = text.into();
            if health.bad(cause, text.clone()) {
                tracing::warn!(?cause, text, "failing for {BOUND:?}");
            }
        }
    }

    pub(crate) fn passed(&self, health: &Health, cause: Cause) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
        health.good(cause);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_side_does_not_clear_what_another_has_set() {
        let health = Health::starting();
        assert!(health.bad(Cause::Database, "database".into()));
        assert!(health.good(Cause::Client));
        assert_eq!(health.check(), Err("database".into()));
        assert!(health.good(Cause::Database));
        assert!(!health.good(Cause::Database));
        assert_eq!(health.check(), Ok(()));
    }

    #[test]
    fn what_fails_for_too_long_shows_until_it_passes() {
        let (health, failing, began) = (Health::starting(), Failing::default(), Instant::now());
        health.good(Cause::Client);
        failing.failed_at(began, &health, Cause::Retries, "why");
        failing.failed_at(began + BOUND / 2, &health, Cause::Retries, "why");
        assert_eq!(health.check(), Ok(()));
        failing.failed_at(began + BOUND, &health, Cause::Retries, "why");
        assert_eq!(health.check(), Err("why".into()));
        failing.passed(&health, Cause::Retries);
        assert_eq!(health.check(), Ok(()));
    }
}

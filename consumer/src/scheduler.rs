//! Hands retries that are due to their handlers.
//!
//! A retry, the end of its row and the inbox are one transaction, in which the row is locked: other
//! replicas pass it over. So nothing has to be given back when a replica dies.

use std::sync::Arc;
use std::time::Duration;

use chrono::TimeDelta;
use halfmsg_db::{begin_write, now};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::consumer::ConsumerHandle;
use crate::deliver::{AttemptError, Deliverer};
use crate::give_up::{self, Fate};
use crate::health::{Cause, Failing, Health};
use crate::message::ReceivedMessage;
use crate::metrics::ConsumerMetrics;
use crate::reply::Answers;
use crate::retry::{self, Bounds, Turns, Waiting};
use crate::sender::Sender;
use crate::worker::Retries;
use crate::{backoff, dead_letter, inbox};

/// Tells the scheduler that the retry table has something new. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wake(Arc<Notify>);

impl Wake {
    pub(crate) fn notify(&self) {
        self.0.notify_one();
    }

    async fn notified(&self) {
        self.0.notified().await;
    }
}

/// Works on the retry table until shutdown.
pub(crate) struct Scheduler {
    pub(crate) deliverer: Arc<Deliverer>,
    pub(crate) sender: Arc<Sender>,
    pub(crate) retries: Retries,
    pub(crate) poll: Duration,
    pub(crate) max_batch: usize,
    pub(crate) max_batch_bytes: usize,
    pub(crate) handle: ConsumerHandle,
    pub(crate) metrics: ConsumerMetrics,
    pub(crate) wake: Wake,
    pub(crate) health: Health,
    pub(crate) failing: Failing,
    pub(crate) shutdown: CancellationToken,
}

/// What one attempt did.
enum Round {
    /// Nothing was due, or others have it.
    Idle,
    Applied(usize, Answers),
}

/// How the attempts go: the number of messages in one, which shrinks around a failure and grows
/// again, and the failures in a row that no message is to blame for.
struct Pace {
    size: usize,
    /// The database was away.
    outages: u32,
    /// A handler met a lock.
    contended: u32,
}

impl Scheduler {
    /// Runs until shutdown; what is in hand then is finished, unless it is cancelled: then it is
    /// rolled back and stays due.
    pub(crate) async fn run(&self) {
        let mut pace = Pace { size: self.max_batch, outages: 0, contended: 0 };
        while !self.shutdown.is_cancelled() {
            let pause = match self.due_in().await {
                Some(Duration::ZERO) => self.step(&mut pace).await,
                Some(pause) => pause.min(self.poll),
                None => self.poll,
            };
            if pause.is_zero() {
                continue;
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.wake.notified() => {}
                () = self.shutdown.cancelled() => {}
            }
        }
    }

    /// Hands out what is due now and ends.
    #[cfg(feature = "testkit")]
    pub(crate) async fn work_off(&self) {
        let mut pace = Pace { size: self.max_batch, outages: 0, contended: 0 };
        while self.due_in().await == Some(Duration::ZERO) {
            tokio::time::sleep(self.step(&mut pace).await.min(self.retries.longest)).await;
        }
    }

    /// Until the next retry; `None` if there is none, or nobody can tell.
    async fn due_in(&self) -> Option<Duration> {
        if self.handle.is_paused() {
            self.works();
            return None;
        }
        match retry::next_due(&self.deliverer.database, &self.turns()).await {
            Ok(due) => {
                // What is due is told by its attempt.
                if due.is_none_or(|at| at > now()) {
                    self.works();
                }
                due.map(|at| (at - now()).max(TimeDelta::zero()).to_std().unwrap_or_default())
            }
            Err(error) => {
                tracing::debug!(%error, "the retry table cannot be read");
                self.fails(&error.to_string());
                None
            }
        }
    }

    fn turns(&self) -> Turns<'_> {
        let Deliverer { subscriber, key_order, handlers, .. } = &*self.deliverer;
        let topics = handlers.keys().map(String::as_str).collect();
        Turns { subscriber, order: *key_order, topics }
    }

    /// One attempt, and the pause behind it.
    async fn step(&self, pace: &mut Pace) -> Duration {
        let mut claimed = Vec::new();
        let error = match self.attempt(pace.size, &mut claimed).await {
            Ok(Round::Idle) => {
                self.works();
                return self.poll;
            }
            Ok(Round::Applied(messages, answers)) => {
                self.works();
                self.metrics.applied(messages);
                let size = (pace.size * 2).min(self.max_batch);
                *pace = Pace { size, outages: 0, contended: 0 };
                if let Err(error) = self.sender.send(&answers).await {
                    tracing::warn!(%error, "the replies to a retried message wait");
                }
                return Duration::ZERO;
            }
            Err(error) => error,
        };
        self.metrics.failures.inc();
        let blameless = match error {
            AttemptError::Transient(_) => Some(&mut pace.outages),
            AttemptError::Contended(_) if pace.contended + 1 < self.retries.quick_attempts => {
                Some(&mut pace.contended)
            }
            _ => None,
        };
        if let Some(in_a_row) = blameless {
            tracing::debug!(%error, "retries wait for the database");
            self.fails(&error.to_string());
            let pause = backoff::pause(self.retries.first, self.retries.longest, *in_a_row);
            *in_a_row = in_a_row.saturating_add(1);
            return pause;
        }
        (pace.outages, pace.contended) = (0, 0);
        match claimed.as_slice() {
            [] => {
                self.fails(&error.to_string());
                self.poll
            }
            [one] => self.failed(one, &error).await,
            several => {
                let overdue = matches!(error, AttemptError::Overdue(_));
                pace.size = if overdue { 1 } else { several.len().div_ceil(2) };
                Duration::ZERO
            }
        }
    }

    async fn attempt(
        &self,
        size: usize,
        claimed: &mut Vec<Waiting>,
    ) -> Result<Round, AttemptError> {
        let Deliverer { database, subscriber, .. } = &*self.deliverer;
        let bounds = Bounds { messages: size, bytes: self.max_batch_bytes };
        let attempt = async {
            let transaction = begin_write(database).await?;
            *claimed = retry::claim_in_tx(&transaction, &self.turns(), bounds).await?;
            if claimed.is_empty() {
                return Ok(Round::Idle);
            }
            let messages: Vec<ReceivedMessage> =
                claimed.iter().map(|waiting| waiting.message.clone()).collect();
            let handled = self.deliverer.handle_in_tx(&transaction, &messages).await?;
            inbox::renew_in_tx(&transaction, subscriber, &messages).await?;
            let replayed: Vec<_> = claimed.iter().filter_map(|one| one.dead_letter_id).collect();
            dead_letter::replayed_in_tx(&transaction, &replayed).await?;
            if !retry::take_in_tx(&transaction, subscriber, claimed).await? {
                let taken = "a replica that keeps no order has taken one of these messages";
                return Err(AttemptError::Transient(taken.into()));
            }
            transaction.commit().await?;
            Ok(Round::Applied(messages.len(), handled.committed()))
        };
        self.deliverer.bounded(attempt).await
    }

    /// One message failed once more.
    async fn failed(&self, waiting: &Waiting, error: &AttemptError) -> Duration {
        let mut failures = waiting.failures.clone();
        failures.note(error.to_string());
        let (fate, level) = self.fate(waiting, error);
        let ReceivedMessage { topic, partition, offset, .. } = &waiting.message;
        let (transaction_id, key) = waiting.message.named();
        let (attempts, cause) = (failures.attempts, &failures.cause);
        match give_up::decide(&self.deliverer, waiting, &failures, fate, level).await {
            Ok(true) if fate == Fate::Dead => {
                self.metrics.dead();
                tracing::error!(
                    transaction_id,
                    key,
                    topic,
                    partition,
                    offset,
                    attempts,
                    cause,
                    "a message is a dead letter"
                );
            }
            Ok(true) => {
                tracing::warn!(
                    transaction_id,
                    key,
                    topic,
                    partition,
                    offset,
                    attempts,
                    cause,
                    "a retry failed"
                );
            }
            Ok(false) => {}
            Err(error) => {
                tracing::warn!(transaction_id, key, topic, partition, offset, %error, "a failed retry cannot be noted");
                self.fails(&error.to_string());
                return self.retries.longest.min(self.poll);
            }
        }
        self.works();
        Duration::ZERO
    }

    fn works(&self) {
        self.failing.passed(&self.health, Cause::Retries);
    }

    fn fails(&self, cause: &str) {
        let text = format!("the retry table is not worked on: {cause}");
        self.failing.failed(&self.health, Cause::Retries, text);
    }

    /// What becomes of it, and its level then. One that only waited behind another has the quick
    /// attempts first that every message has, and then all its levels.
    fn fate(&self, waiting: &Waiting, error: &AttemptError) -> (Fate, u32) {
        let Retries { quick_attempts, first, longest, levels } = &self.retries;
        let (level, before) = (waiting.level, waiting.failures.attempts);
        if matches!(error, AttemptError::Undecodable(_)) {
            return (Fate::Dead, level);
        }
        if before.saturating_add(1) < *quick_attempts {
            return (Fate::Retry(backoff::pause(*first, *longest, before)), level);
        }
        let done = if before < *quick_attempts { level } else { level.saturating_add(1) };
        (levels.delay(done).map_or(Fate::Dead, Fate::Retry), done)
    }
}

#[cfg(test)]
mod tests;

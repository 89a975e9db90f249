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
use crate::message::ReceivedMessage;
use crate::metrics::ConsumerMetrics;
use crate::reply::Answers;
use crate::retry::{self, Waiting};
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
    pub(crate) handle: ConsumerHandle,
    pub(crate) metrics: ConsumerMetrics,
    pub(crate) wake: Wake,
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
    in_a_row: u32,
}

impl Scheduler {
    /// Runs until shutdown; what is in hand then is finished, unless it is cancelled: then it is
    /// rolled back and stays due.
    pub(crate) async fn run(&self) {
        let mut pace = Pace { size: self.max_batch, in_a_row: 0 };
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
        let mut pace = Pace { size: self.max_batch, in_a_row: 0 };
        while self.due_in().await == Some(Duration::ZERO) {
            tokio::time::sleep(self.step(&mut pace).await.min(self.retries.longest)).await;
        }
    }

    /// Until the next retry; `None` if there is none, or nobody can tell.
    async fn due_in(&self) -> Option<Duration> {
        if self.handle.is_paused() {
            return None;
        }
        let Deliverer { database, subscriber, key_order, .. } = &*self.deliverer;
        match retry::next_due(database, subscriber, *key_order).await {
            Ok(due) => {
                due.map(|at| (at - now()).max(TimeDelta::zero()).to_std().unwrap_or_default())
            }
            Err(error) => {
                tracing::debug!(%error, "the retry table cannot be read");
                None
            }
        }
    }

    /// One attempt, and the pause behind it.
    async fn step(&self, pace: &mut Pace) -> Duration {
        let mut claimed = Vec::new();
        let error = match self.attempt(pace.size, &mut claimed).await {
            Ok(Round::Idle) => return self.poll,
            Ok(Round::Applied(messages, answers)) => {
                self.metrics.applied(messages);
                *pace = Pace { size: (pace.size * 2).min(self.max_batch), in_a_row: 0 };
                if let Err(error) = self.sender.send(&answers).await {
                    tracing::warn!(%error, "the replies to a retried message wait");
                }
                return Duration::ZERO;
            }
            Err(error) => error,
        };
        self.metrics.failures.inc();
        let blameless = match error {
            AttemptError::Transient(_) => true,
            AttemptError::Contended(_) => pace.in_a_row + 1 < self.retries.quick_attempts,
            _ => false,
        };
        if blameless {
            tracing::debug!(%error, "retries wait for the database");
            pace.in_a_row = pace.in_a_row.saturating_add(1);
            let retry = pace.in_a_row - 1;
            return backoff::pause(self.retries.first, self.retries.longest, retry);
        }
        pace.in_a_row = 0;
        match claimed.as_slice() {
            [] => self.poll,
            [one] => self.failed(one, &error).await,
            several => {
                pace.size = several.len().div_ceil(2);
                Duration::ZERO
            }
        }
    }

    async fn attempt(
        &self,
        size: usize,
        claimed: &mut Vec<Waiting>,
    ) -> Result<Round, AttemptError> {
        let Deliverer { database, subscriber, key_order, .. } = &*self.deliverer;
        let attempt = async {
            let transaction = begin_write(database).await?;
            let limit = u64::try_from(size).unwrap_or(u64::MAX);
            *claimed = retry::claim_in_tx(&transaction, subscriber, *key_order, limit).await?;
            if claimed.is_empty() {
                return Ok(Round::Idle);
            }
            let messages: Vec<ReceivedMessage> =
                claimed.iter().map(|waiting| waiting.message.clone()).collect();
            let handled = self.deliverer.handle_in_tx(&transaction, &messages).await?;
            inbox::renew_in_tx(&transaction, subscriber, &messages).await?;
            let replayed: Vec<_> = claimed.iter().filter_map(|one| one.dead_letter_id).collect();
            dead_letter::replayed_in_tx(&transaction, &replayed).await?;
            retry::take_in_tx(&transaction, claimed).await?;
            transaction.commit().await?;
            Ok(Round::Applied(messages.len(), handled.committed()))
        };
        self.deliverer.bounded(attempt).await
    }

    /// One message failed once more.
    async fn failed(&self, waiting: &Waiting, error: &AttemptError) -> Duration {
        let mut failures = waiting.failures.clone();
        failures.note(error.to_string());
        let next = match error {
            AttemptError::Undecodable(_) => None,
            _ => self.retries.levels.delay(waiting.level.saturating_add(1)),
        };
        let fate = next.map_or(Fate::Dead, Fate::Retry);
        let ReceivedMessage { topic, partition, offset, .. } = &waiting.message;
        let (transaction_id, key) = waiting.message.named();
        let (attempts, cause) = (failures.attempts, &failures.cause);
        match give_up::decide(&self.deliverer, waiting, &failures, fate).await {
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
                return self.retries.longest.min(self.poll);
            }
        }
        Duration::ZERO
    }
}

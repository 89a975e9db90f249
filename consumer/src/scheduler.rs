//! Hands retries that are due to their handlers.
//!
//! A retry, the end of its row and the inbox are one transaction, in which the row is locked: other
//! replicas pass it over. So nothing has to be given back when a replica dies, and several work at once
//! in one replica as they do in several: a slow retry holds up no others until so many are slow.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::TimeDelta;
use futures::future::join_all;
use halfmsg_db::now;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::consumer::ConsumerHandle;
use crate::deliver::{AttemptError, Deliverer, Stopwatch};
use crate::give_up::{self, Fate};
use crate::handler::LOCKED_FOR;
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
    pub(crate) concurrency: usize,
    pub(crate) taken: Taken,
    pub(crate) handle: ConsumerHandle,
    pub(crate) metrics: ConsumerMetrics,
    pub(crate) wake: Wake,
    pub(crate) health: Health,
    pub(crate) failing: Failing,
    pub(crate) shutdown: CancellationToken,
}

/// What the parts of this replica have in hand, from the claim to the decision: what fails is unlocked in
/// between, and still due.
#[derive(Debug, Clone, Default)]
pub(crate) struct Taken(Arc<Mutex<HashSet<Uuid>>>);

impl Taken {
    /// None of these if another part has one of them.
    fn take(&self, ids: Vec<Uuid>) -> Option<InHand> {
        let mut taken = self.rows();
        if ids.iter().any(|id| taken.contains(id)) {
            return None;
        }
        taken.extend(ids.iter().copied());
        Some(InHand { taken: self.clone(), ids })
    }

    fn rows(&self) -> MutexGuard<'_, HashSet<Uuid>> {
        // Nothing in it is ever half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Gives back what was taken.
struct InHand {
    taken: Taken,
    ids: Vec<Uuid>,
}

impl Drop for InHand {
    fn drop(&mut self) {
        let mut taken = self.taken.rows();
        for id in &self.ids {
            taken.remove(id);
        }
    }
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
        join_all((0..self.concurrency).map(|_| self.work())).await;
    }

    async fn work(&self) {
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
                // What is due is told by its attempt, also if that is another loop's.
                if due.is_none_or(|at| at > now()) && self.taken.rows().is_empty() {
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
        let taken = self.taken.rows().iter().copied().collect();
        Turns { subscriber, order: *key_order, topics, taken }
    }

    /// One attempt, and the pause behind it.
    async fn step(&self, pace: &mut Pace) -> Duration {
        let (mut claimed, mut in_hand) = (Vec::new(), None);
        let error = match self.attempt(pace.size, &mut claimed, &mut in_hand).await {
            Ok(Round::Idle) => {
                if self.taken.rows().is_empty() {
                    self.works();
                }
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
        if matches!(error, AttemptError::Late(_) | AttemptError::Unable(_)) {
            pace.size = 1;
        }
        let blameless = match error {
            AttemptError::Transient(_) | AttemptError::Late(_) => Some(&mut pace.outages),
            // The one that was alone may be what the database cannot do.
            AttemptError::Unable(_) if claimed.len() != 1 => Some(&mut pace.outages),
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
        let locked = locked(&claimed, &error);
        if !locked.is_empty() {
            return self.met_a_lock(&locked, &error).await;
        }
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
        in_hand: &mut Option<InHand>,
    ) -> Result<Round, AttemptError> {
        let (subscriber, by_key) = (&self.deliverer.subscriber, self.deliverer.inbox_by_key);
        let bounds = Bounds { messages: size, bytes: self.max_batch_bytes };
        let watch = Stopwatch::default();
        let attempt = async {
            let transaction = self.deliverer.begin().await?;
            *claimed = retry::claim_in_tx(&transaction, &self.turns(), bounds).await?;
            if claimed.is_empty() {
                return Ok(Round::Idle);
            }
            *in_hand = self.taken.take(claimed.iter().map(|one| one.id).collect());
            if in_hand.is_none() {
                return Ok(Round::Idle);
            }
            let messages: Vec<ReceivedMessage> =
                claimed.iter().map(|waiting| waiting.message.clone()).collect();
            let handled = self.deliverer.handle_in_tx(&transaction, &messages, &watch).await?;
            // Whoever holds one of these rows holds up that message only: it goes alone the next time.
            let late = AttemptError::of_barrier;
            inbox::renew_in_tx(&transaction, subscriber, by_key, &messages).await.map_err(late)?;
            let replayed: Vec<_> = claimed.iter().filter_map(|one| one.dead_letter_id).collect();
            dead_letter::replayed_in_tx(&transaction, &replayed).await.map_err(late)?;
            let order = self.deliverer.key_order;
            if !retry::take_in_tx(&transaction, subscriber, order, claimed).await.map_err(late)? {
                let taken = "a replica that keeps no order has taken one of these messages";
                return Err(AttemptError::Transient(taken.into()));
            }
            transaction.commit().await?;
            Ok(Round::Applied(messages.len(), handled.committed()))
        };
        self.deliverer.bounded(&watch, attempt).await
    }

    /// These wait for somebody else's lock. The others that were claimed are still due.
    async fn met_a_lock(&self, locked: &[&Waiting], error: &AttemptError) -> Duration {
        match give_up::put_off_locked(&self.deliverer, locked, &error.to_string()).await {
            Ok(()) => {
                tracing::debug!(messages = locked.len(), %error, "retries wait for somebody else's lock");
                self.works();
                Duration::ZERO
            }
            Err(error) => {
                for one in locked {
                    let ReceivedMessage { topic, partition, offset, .. } = &one.message;
                    let (transaction_id, key) = one.message.named();
                    tracing::warn!(transaction_id, key, topic, partition, offset, %error, "a retry cannot be put off");
                }
                self.fails(&error.to_string());
                self.retries.longest.min(self.poll)
            }
        }
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

/// Those that the lock of somebody else is to blame for, or that the database could not handle while it
/// answered, and for so short a time that it counts as no attempt.
fn locked<'a>(claimed: &'a [Waiting], error: &AttemptError) -> Vec<&'a Waiting> {
    let young = |one: &&Waiting| one.failures.age() < LOCKED_FOR;
    match error {
        AttemptError::Contended(_) | AttemptError::Unable(_) if claimed.len() == 1 => {
            claimed.iter().filter(young).collect()
        }
        AttemptError::Locked { keys, .. } => {
            let named = claimed.iter().filter(|one| keys.contains(&one.message.inbox_key()));
            named.filter(young).collect()
        }
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests;

//! Takes a batch to its end: every message has its effect, or waits for a retry, or is a dead letter,
//! and what it is owed in replies is sent.
//!
//! It must never let a batch end with a message that is none of these, because its offset is
//! committed then.

mod chunks;

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::future::try_join_all;
use tokio_util::sync::CancellationToken;

use crate::backoff;
use crate::config::{RetryLevels, Spread};
use crate::deliver::{AttemptError, Deliverer};
use crate::give_up::{self, Fate, SetAside};
use crate::health::{Cause, Health};
use crate::message::ReceivedMessage;
use crate::metrics::ConsumerMetrics;
use crate::reply::Answers;
use crate::retry::Failures;
use crate::scheduler::Wake;
use crate::sender::Sender;
use chunks::{
    Locked, OrderingKey, Pending, named, next_chunk, ordering_key, parts, with_their_keys,
};

/// Messages in hand, and the generation of the assignment that they were fetched in.
pub(crate) struct Batch {
    pub(crate) messages: Vec<ReceivedMessage>,
    pub(crate) generation: u64,
}

/// How a batch ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Its offsets can be committed.
    Done,
    /// It was let go, in parts done: whoever has its partitions gets it again.
    Released,
}

/// The bounds of the retries.
#[derive(Debug, Clone)]
pub(crate) struct Retries {
    pub(crate) quick_attempts: u32,
    pub(crate) first: Duration,
    pub(crate) longest: Duration,
    pub(crate) levels: RetryLevels,
}

/// Works on one batch at a time, several parts of it at once.
pub(crate) struct Worker {
    pub(crate) deliverer: Arc<Deliverer>,
    pub(crate) sender: Arc<Sender>,
    pub(crate) retries: Retries,
    pub(crate) concurrency: usize,
    pub(crate) spread: Spread,
    pub(crate) wake: Wake,
    pub(crate) metrics: ConsumerMetrics,
    pub(crate) health: Health,
    /// The generation of the present assignment; a batch of an older one is let go.
    pub(crate) generation: Arc<AtomicU64>,
    pub(crate) shutdown: CancellationToken,
}

/// The batch must be let go.
struct LetGo;

impl Worker {
    /// Works until the batch is done or must be let go. Cancelled, the batch counts as let go.
    pub(crate) async fn process(&self, batch: Batch) -> Verdict {
        let _in_flight = InFlight::of(&self.metrics, batch.messages.len());
        let parts = parts(batch.messages, self.concurrency, self.spread);
        let ends = parts.into_iter().map(|part| self.to_its_end(part, batch.generation));
        let ended = try_join_all(ends).await;
        // Whatever it waited for is over, or somebody else's to wait for.
        for cause in [Cause::Database, Cause::Replies, Cause::SetAside] {
            self.health.good(cause);
        }
        ended.map_or(Verdict::Released, |_| Verdict::Done)
    }

    async fn to_its_end(&self, part: Vec<ReceivedMessage>, generation: u64) -> Result<(), LetGo> {
        let mut size = part.len();
        let pending = |message| Pending { message, failures: Failures::default(), locks: 0 };
        let mut queue: VecDeque<Pending> = part.into_iter().map(pending).collect();
        loop {
            let waiting = self.pass(queue, size, generation).await?;
            let Some(retry) = waiting.iter().map(|pending| pending.failures.attempts).max() else {
                return Ok(());
            };
            self.pause(retry.saturating_sub(1), generation).await?;
            (queue, size) = (waiting, 1);
        }
    }

    /// Goes once through the queue, in chunks that shrink around a failure and grow again, and
    /// gives back what has to wait: messages that failed, and later ones of the same key.
    async fn pass(
        &self,
        mut queue: VecDeque<Pending>,
        mut size: usize,
        generation: u64,
    ) -> Result<VecDeque<Pending>, LetGo> {
        let most = queue.len();
        let mut waiting = VecDeque::new();
        let mut blocked: HashSet<OrderingKey> = HashSet::new();
        let (mut transient, mut contended) = (0, 0);
        while let Some(mut chunk) = next_chunk(&mut queue, size, &blocked, &mut waiting) {
            if self.must_let_go(generation) {
                return Err(LetGo);
            }
            let messages: Vec<_> = chunk.iter().map(|one| one.message.clone()).collect();
            let error = match self.deliverer.deliver(&messages).await {
                Ok(delivered) => {
                    self.metrics.applied(delivered.fresh);
                    self.metrics.duplicate(delivered.duplicates);
                    self.metrics.put_behind(delivered.held);
                    self.healthy();
                    self.answer(&delivered.answers, generation).await?;
                    (transient, contended) = (0, 0);
                    size = (size * 2).min(most);
                    continue;
                }
                Err(error) => error,
            };
            self.metrics.failures.inc();
            match (error, chunk.len()) {
                (AttemptError::Transient(cause), _) => {
                    self.put_back(&mut queue, chunk);
                    self.unhealthy(&cause);
                    self.pause(transient, generation).await?;
                    transient = transient.saturating_add(1);
                }
                // One of them may be what the database cannot do.
                (AttemptError::Unable(cause), 2..) => {
                    size = 1;
                    self.put_back(&mut queue, chunk);
                    self.unhealthy(&cause);
                    self.pause(transient, generation).await?;
                    transient = transient.saturating_add(1);
                }
                (AttemptError::Unable(cause), _) => {
                    self.unhealthy(&cause);
                    let so_far = chunk.first().map_or(0, |one| one.locks);
                    let left = self.met_a_lock_alone(chunk, &cause, generation).await?;
                    if !left.is_empty() {
                        self.pause(so_far, generation).await?;
                    }
                    blocked.extend(left.iter().filter_map(|one| ordering_key(&one.message)));
                    waiting.extend(left);
                }
                (AttemptError::Contended(_), 2..)
                    if contended + 1 < self.retries.quick_attempts =>
                {
                    self.put_back(&mut queue, chunk);
                    self.pause(contended, generation).await?;
                    contended += 1;
                }
                // Halving would wait for as many deadlines as there are halves.
                (AttemptError::Overdue(_) | AttemptError::Late(_), 2..) => {
                    size = 1;
                    self.put_back(&mut queue, chunk);
                }
                // It waits for whoever holds its row, and counts nothing; the others go on.
                (AttemptError::Late(cause), _) => {
                    self.unhealthy(&cause);
                    blocked.extend(chunk.iter().filter_map(|one| ordering_key(&one.message)));
                    waiting.extend(chunk);
                }
                (AttemptError::Locked { keys, cause }, _) if named(&chunk, &keys) => {
                    let order = self.deliverer.key_order;
                    let (locked, others) = with_their_keys(chunk, &keys, order);
                    let left = self.met_a_lock(locked, &cause, generation).await?;
                    blocked.extend(left.iter().filter_map(|one| ordering_key(&one.message)));
                    waiting.extend(left);
                    self.put_back(&mut queue, others);
                }
                (_, 2..) => {
                    size = chunk.len().div_ceil(2);
                    self.put_back(&mut queue, chunk);
                }
                (AttemptError::Contended(cause), _) => {
                    let left = self.met_a_lock_alone(chunk, &cause, generation).await?;
                    blocked.extend(left.iter().filter_map(|one| ordering_key(&one.message)));
                    waiting.extend(left);
                }
                (error, _) => {
                    let Some(one) = chunk.pop() else { continue };
                    if let Some(one) = self.failed(one, error, generation).await? {
                        blocked.extend(ordering_key(&one.message));
                        waiting.push_back(one);
                    }
                }
            }
        }
        Ok(waiting)
    }

    fn put_back(&self, queue: &mut VecDeque<Pending>, chunk: Vec<Pending>) {
        for one in chunk.into_iter().rev() {
            queue.push_front(one);
        }
    }

    /// A message that was alone when it met a lock, or a statement that the database could not do: a few
    /// quick attempts, then it waits in the retry table, and counts nothing for
    /// [`LOCKED_FOR`](crate::LOCKED_FOR). A database that cannot store it there either is to blame itself.
    async fn met_a_lock_alone(
        &self,
        mut alone: Vec<Pending>,
        cause: &str,
        generation: u64,
    ) -> Result<Vec<Pending>, LetGo> {
        alone.iter_mut().for_each(|one| one.locks = one.locks.saturating_add(1));
        if alone.iter().all(|one| one.locks < self.retries.quick_attempts) {
            return Ok(alone);
        }
        let locked = alone.into_iter().map(Locked::named).collect();
        self.met_a_lock(locked, cause, generation).await
    }

    /// What somebody else has locked waits for that in the retry table: nothing else waits for it, and it
    /// is no attempt. Gives back, in its order, what is not there.
    async fn met_a_lock(
        &self,
        locked: Vec<Locked>,
        cause: &str,
        generation: u64,
    ) -> Result<Vec<Pending>, LetGo> {
        let noted: Vec<_> = locked.iter().map(|one| one.noted(cause)).collect();
        match give_up::set_aside_locked(&self.deliverer, &noted).await {
            Ok(SetAside { turns, behind, known }) => {
                self.health.good(Cause::SetAside);
                // Nothing else of this batch may be left to say so.
                self.healthy();
                (0..turns).for_each(|_| self.metrics.to_be_retried());
                self.metrics.put_behind(behind);
                self.metrics.duplicate(known.len());
                self.wake.notify();
                tracing::debug!(turns, behind, cause, "messages wait for somebody else's lock");
                // What was handled before may still owe its replies.
                self.answer(&Answers { message_keys: known }, generation).await?;
                Ok(Vec::new())
            }
            Err(error) => {
                for Locked { pending, .. } in &locked {
                    let ReceivedMessage { topic, partition, offset, .. } = &pending.message;
                    let (transaction_id, key) = pending.message.named();
                    tracing::warn!(transaction_id, key, topic, partition, offset, %error, "cannot set a message aside");
                }
                let text = format!("{} messages cannot be set aside: {error}", locked.len());
                self.health.bad(Cause::SetAside, text);
                Ok(locked.into_iter().map(|one| one.pending).collect())
            }
        }
    }

    /// Notes the failure of one message; `None` if a retry or a dead letter stands for it now.
    async fn failed(
        &self,
        mut one: Pending,
        error: AttemptError,
        generation: u64,
    ) -> Result<Option<Pending>, LetGo> {
        one.failures.note(error.to_string());
        let undecodable = matches!(error, AttemptError::Undecodable(_));
        let message = &one.message;
        let (topic, partition, offset) = (&message.topic, message.partition, message.offset);
        let (transaction_id, key) = message.named();
        let (attempts, cause) = (one.failures.attempts, &one.failures.cause);
        if !undecodable && attempts < self.retries.quick_attempts {
            tracing::debug!(
                transaction_id,
                key,
                topic,
                partition,
                offset,
                attempts,
                cause,
                "a message failed"
            );
            return Ok(Some(one));
        }
        let fate = match self.retries.levels.delay(0) {
            Some(delay) if !undecodable => Fate::Retry(delay),
            _ => Fate::Dead,
        };
        let set_aside = give_up::set_aside(&self.deliverer, message, &one.failures, fate).await;
        if set_aside.is_ok() {
            self.health.good(Cause::SetAside);
            self.healthy();
        }
        match set_aside {
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
                self.metrics.to_be_retried();
                self.wake.notify();
                tracing::warn!(
                    transaction_id,
                    key,
                    topic,
                    partition,
                    offset,
                    attempts,
                    cause,
                    "a message will be retried"
                );
            }
            // Another replica has had it meanwhile, and may not have sent its replies.
            Ok(false) => {
                self.metrics.duplicate(1);
                let answers = Answers { message_keys: vec![message.inbox_key()] };
                self.answer(&answers, generation).await?;
            }
            Err(error) => {
                tracing::warn!(transaction_id, key, topic, partition, offset, %error, "cannot set a message aside");
                let text = format!("{topic}-{partition}@{offset} cannot be set aside: {error}");
                self.health.bad(Cause::SetAside, text);
                return Ok(Some(one));
            }
        }
        Ok(None)
    }

    /// Sends replies; until that is done, their messages' offsets are not committed.
    async fn answer(&self, answers: &Answers, generation: u64) -> Result<(), LetGo> {
        let mut retry = 0;
        while let Err(error) = self.sender.send(answers).await {
            if self.health.bad(Cause::Replies, format!("replies cannot be sent: {error}")) {
                tracing::warn!(%error, "replies wait to be sent; nothing is lost");
            }
            self.pause(retry, generation).await?;
            retry = retry.saturating_add(1);
        }
        if retry > 0 && self.health.good(Cause::Replies) {
            tracing::info!("replies are sent again");
        }
        Ok(())
    }

    /// Waits before a retry.
    async fn pause(&self, retry: u32, generation: u64) -> Result<(), LetGo> {
        let pause = backoff::pause(self.retries.first, self.retries.longest, retry);
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = self.shutdown.cancelled() => {}
        }
        if self.must_let_go(generation) { Err(LetGo) } else { Ok(()) }
    }

    fn must_let_go(&self, generation: u64) -> bool {
        self.shutdown.is_cancelled() || self.generation.load(Ordering::Acquire) != generation
    }

    fn healthy(&self) {
        if self.health.good(Cause::Database) {
            tracing::info!(subscriber = self.deliverer.subscriber, "consuming");
        }
    }

    fn unhealthy(&self, cause: &str) {
        if self.health.bad(Cause::Database, format!("waiting for the database: {cause}")) {
            let subscriber = &self.deliverer.subscriber;
            tracing::warn!(subscriber, cause, "waiting for the database; nothing is lost");
        }
    }
}

/// Counts what is in hand, also if that is dropped half-way.
struct InFlight<'a> {
    metrics: &'a ConsumerMetrics,
    messages: i64,
}

impl<'a> InFlight<'a> {
    fn of(metrics: &'a ConsumerMetrics, messages: usize) -> Self {
        let messages = i64::try_from(messages).unwrap_or(i64::MAX);
        metrics.in_flight.inc_by(messages);
        Self { metrics, messages }
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.metrics.in_flight.dec_by(self.messages);
    }
}

#[cfg(test)]
pub(crate) mod tests;

//! Takes a batch to its end: every message has its effect, or is a dead letter.
//!
//! It must never let a batch end with a message that is neither, because its offset is committed
//! then.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use halfmsg_db::now;
use tokio_util::sync::CancellationToken;

use crate::backoff;
use crate::consumer::Health;
use crate::dead_letter::{self, Failure};
use crate::deliver::{AttemptError, Deliverer};
use crate::message::ReceivedMessage;
use crate::metrics::ConsumerMetrics;

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

/// A message on its way, with what went wrong with it so far.
struct Pending {
    message: ReceivedMessage,
    attempts: u32,
    first_failed_at: Option<DateTime<Utc>>,
    cause: String,
}

/// The bounds of the retries.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Retries {
    pub(crate) max_attempts: u32,
    pub(crate) first: Duration,
    pub(crate) longest: Duration,
}

/// Works on one batch at a time.
pub(crate) struct Worker {
    pub(crate) deliverer: Arc<Deliverer>,
    pub(crate) retries: Retries,
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
        match self.to_its_end(batch).await {
            Ok(()) => Verdict::Done,
            Err(LetGo) => Verdict::Released,
        }
    }

    async fn to_its_end(&self, batch: Batch) -> Result<(), LetGo> {
        let mut size = batch.messages.len();
        let pending =
            |message| Pending { message, attempts: 0, first_failed_at: None, cause: String::new() };
        let mut queue: VecDeque<Pending> = batch.messages.into_iter().map(pending).collect();
        loop {
            let waiting = self.pass(queue, size, batch.generation).await?;
            let Some(retry) = waiting.iter().map(|pending| pending.attempts).max() else {
                return Ok(());
            };
            self.pause(retry.saturating_sub(1), batch.generation).await?;
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
        let mut blocked: HashSet<(String, Bytes)> = HashSet::new();
        let mut transient = 0;
        while let Some(mut chunk) = next_chunk(&mut queue, size, &blocked, &mut waiting) {
            if self.must_let_go(generation) {
                return Err(LetGo);
            }
            let messages: Vec<_> = chunk.iter().map(|one| one.message.clone()).collect();
            let error = match self.deliverer.deliver(&messages).await {
                Ok(delivered) => {
                    self.metrics.messages.inc_by(delivered.fresh as u64);
                    self.metrics.duplicates.inc_by(delivered.duplicates as u64);
                    self.healthy();
                    transient = 0;
                    size = (size * 2).min(most);
                    continue;
                }
                Err(error) => error,
            };
            self.metrics.retries.inc();
            match (error, chunk.len()) {
                (AttemptError::Transient(cause), _) => {
                    self.put_back(&mut queue, chunk);
                    self.unhealthy(&cause);
                    self.pause(transient, generation).await?;
                    transient = transient.saturating_add(1);
                }
                (_, 2..) => {
                    size = chunk.len().div_ceil(2);
                    self.put_back(&mut queue, chunk);
                }
                (error, _) => {
                    let Some(one) = chunk.pop() else { continue };
                    if let Some(one) = self.failed(one, error).await {
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

    /// Notes the failure of one message; `None` if it is a dead letter now.
    async fn failed(&self, mut one: Pending, error: AttemptError) -> Option<Pending> {
        one.attempts = one.attempts.saturating_add(1);
        one.cause = error.to_string();
        let first_failed_at = *one.first_failed_at.get_or_insert_with(now);
        let message = &one.message;
        let (topic, partition, offset) = (&message.topic, message.partition, message.offset);
        let last = one.attempts >= self.retries.max_attempts;
        if !last && !matches!(error, AttemptError::Undecodable(_)) {
            tracing::warn!(
                topic, partition, offset, attempt = one.attempts, cause = %one.cause,
                "a message failed and will be tried again"
            );
            return Some(one);
        }
        let failure = Failure { cause: &one.cause, attempts: one.attempts, first_failed_at };
        match dead_letter::bury(&self.deliverer, message, failure).await {
            Ok(()) => {
                self.metrics.dead_letters.inc();
                tracing::error!(
                    topic, partition, offset, attempts = one.attempts, cause = %one.cause,
                    "a message was given up on: it is a dead letter now"
                );
                None
            }
            Err(error) => {
                tracing::warn!(topic, partition, offset, %error, "cannot store a dead letter");
                Some(one)
            }
        }
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
        if self.health.set(Ok(())) {
            tracing::info!(subscriber = self.deliverer.subscriber, "consuming");
        }
    }

    fn unhealthy(&self, cause: &str) {
        if self.health.set(Err(format!("waiting for the database: {cause}"))) {
            let subscriber = &self.deliverer.subscriber;
            tracing::warn!(subscriber, cause, "waiting for the database; nothing is lost");
        }
    }
}

/// Takes up to `size` messages from the front; those of a blocked key go to `waiting`.
fn next_chunk(
    queue: &mut VecDeque<Pending>,
    size: usize,
    blocked: &HashSet<(String, Bytes)>,
    waiting: &mut VecDeque<Pending>,
) -> Option<Vec<Pending>> {
    let mut chunk = Vec::new();
    while chunk.len() < size.max(1) {
        let Some(one) = queue.pop_front() else { break };
        if ordering_key(&one.message).is_some_and(|key| blocked.contains(&key)) {
            waiting.push_back(one);
        } else {
            chunk.push(one);
        }
    }
    (!chunk.is_empty()).then_some(chunk)
}

/// What keeps its order: the messages of one key in one topic.
fn ordering_key(message: &ReceivedMessage) -> Option<(String, Bytes)> {
    message.key.clone().map(|key| (message.topic.clone(), key))
}

#[cfg(test)]
mod tests;

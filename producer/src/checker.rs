//! Asks listeners what became of local transactions: in batches, within a deadline, and never
//! twice at once about the same half in this process.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use halfmsg_protocol::{Answer, NotAsked, TransactionId};
use halfmsg_traces::context::{carried, within};
use tokio::sync::Semaphore;

use crate::listener::{ErasedListener, ListenerResult, LocalTransactionState};
use crate::message::HalfMessage;
use crate::spans;

/// A half to ask about, and the application that it belongs to.
pub(crate) struct Asked {
    pub(crate) application: String,
    pub(crate) half: HalfMessage,
}

/// The listeners of this process, by purpose.
pub(crate) struct Checker {
    application: String,
    listeners: HashMap<String, Arc<dyn ErasedListener>>,
    deadline: Duration,
    calls: Semaphore,
    busy: Mutex<HashSet<TransactionId>>,
}

impl Checker {
    pub(crate) fn new(
        application: String,
        listeners: HashMap<String, Arc<dyn ErasedListener>>,
        deadline: Duration,
        concurrency: usize,
    ) -> Self {
        let calls = Semaphore::new(concurrency);
        Self { application, listeners, deadline, calls, busy: Mutex::default() }
    }

    pub(crate) fn listener(&self, purpose: &str) -> Option<&Arc<dyn ErasedListener>> {
        self.listeners.get(purpose)
    }

    /// Asks about one.
    pub(crate) async fn ask_one(&self, asked: Asked) -> Answer {
        let answers = self.ask(vec![asked]).await;
        answers.into_iter().next().unwrap_or(Answer::NotAsked(NotAsked::Busy))
    }

    /// Asks about these; the answers are in their order. Each purpose's listener gets its part in
    /// one call.
    pub(crate) async fn ask(&self, asked: Vec<Asked>) -> Vec<Answer> {
        let mut answers = vec![Answer::NotAsked(NotAsked::Busy); asked.len()];
        let mut by_purpose: HashMap<String, Vec<(usize, HalfMessage)>> = HashMap::new();
        let claims = Claims::new(self);
        for (index, Asked { application, half }) in asked.into_iter().enumerate() {
            if application != self.application || !self.listeners.contains_key(&half.purpose) {
                answers[index] = Answer::NotAsked(NotAsked::NoListener);
            } else if claims.claim(half.transaction_id) {
                by_purpose.entry(half.purpose.clone()).or_default().push((index, half));
            }
        }
        let calls = by_purpose.into_iter().map(|(purpose, part)| async move {
            let (indices, halves): (Vec<usize>, Vec<HalfMessage>) = part.into_iter().unzip();
            (indices, self.call(&purpose, halves).await)
        });
        for (indices, given) in futures::future::join_all(calls).await {
            for (index, answer) in indices.into_iter().zip(given) {
                answers[index] = answer;
            }
        }
        answers
    }

    async fn call(&self, purpose: &str, halves: Vec<HalfMessage>) -> Vec<Answer> {
        let Some(check) = spans::Check::begin(purpose, &halves) else {
            return self.call_listener(purpose, halves).await;
        };
        let answers = within(&check.context(), self.call_listener(purpose, halves)).await;
        check.answered(&answers);
        answers
    }

    async fn call_listener(&self, purpose: &str, halves: Vec<HalfMessage>) -> Vec<Answer> {
        let count = halves.len();
        let Some(listener) = self.listeners.get(purpose).cloned() else {
            return vec![Answer::NotAsked(NotAsked::NoListener); count];
        };
        let Ok(_place) = self.calls.acquire().await else {
            return vec![Answer::NotAsked(NotAsked::Busy); count];
        };
        // A task of its own, so that a panic is the listener's and not ours.
        let mut call = tokio::spawn(carried(async move { listener.check(&halves).await }));
        let failure = match tokio::time::timeout(self.deadline, &mut call).await {
            Ok(Ok(given)) if given.len() == count => return answers(purpose, given),
            Ok(Ok(given)) => {
                format!("the listener gave {} answers for {count} halves", given.len())
            }
            Ok(Err(error)) if error.is_panic() => "the listener panicked".to_owned(),
            Ok(Err(_)) => return vec![Answer::NotAsked(NotAsked::Busy); count],
            Err(_) => {
                call.abort();
                format!("the listener took longer than {:?}", self.deadline)
            }
        };
        tracing::warn!(purpose, halves = count, failure, "a check failed");
        vec![Answer::Failed(failure); count]
    }
}

/// One line for a batch, with the first reason: a database that is away fails all of it alike.
fn answers(purpose: &str, given: Vec<ListenerResult<LocalTransactionState>>) -> Vec<Answer> {
    let answers: Vec<Answer> = given.into_iter().map(answer).collect();
    let failures = answers.iter().filter_map(|answer| match answer {
        Answer::Failed(failure) => Some(failure),
        _ => None,
    });
    if let Some(failure) = failures.clone().next() {
        tracing::warn!(purpose, halves = failures.count(), failure, "a check failed");
    }
    answers
}

fn answer(given: ListenerResult<LocalTransactionState>) -> Answer {
    match given {
        Ok(LocalTransactionState::Commit) => Answer::Commit,
        Ok(LocalTransactionState::Rollback) => Answer::Rollback,
        Ok(LocalTransactionState::Unknown) => {
            Answer::Unknown("the listener does not know yet".to_owned())
        }
        Err(error) => Answer::Failed(error.to_string()),
    }
}

/// The halves that one call asks about; given back when it ends, also by cancellation.
struct Claims<'a> {
    checker: &'a Checker,
    claimed: Mutex<Vec<TransactionId>>,
}

impl<'a> Claims<'a> {
    fn new(checker: &'a Checker) -> Self {
        Self { checker, claimed: Mutex::default() }
    }

    fn claim(&self, id: TransactionId) -> bool {
        let mut busy = self.checker.busy.lock().unwrap_or_else(PoisonError::into_inner);
        let free = busy.insert(id);
        if free {
            self.claimed.lock().unwrap_or_else(PoisonError::into_inner).push(id);
        }
        free
    }
}

impl Drop for Claims<'_> {
    fn drop(&mut self) {
        let mut busy = self.checker.busy.lock().unwrap_or_else(PoisonError::into_inner);
        for id in self.claimed.get_mut().unwrap_or_else(PoisonError::into_inner).drain(..) {
            busy.remove(&id);
        }
    }
}

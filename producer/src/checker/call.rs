//! One call of a listener: its deadline, its panics, what it answers.

use std::sync::Arc;
use std::time::Duration;

use halfmsg_protocol::{Answer, NotAsked};
use halfmsg_traces::context::{carried, within};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tracing::field::display;

use super::calling::Calling;
use super::claims::Claim;
use super::{Checker, Kind};
use crate::life;
use crate::listener::{ListenerResult, LocalTransactionState};
use crate::message::HalfMessage;
use crate::spans;

tokio::task_local! {
    /// When a check that is under way should have given its answers.
    static ANSWERS_BY: Instant;
}

/// What a check has left of its time: nine tenths of `check_deadline` from the beginning of the call
/// on, so that its answers arrive before it is given up. `None` outside of a check.
///
/// Known in the task of the call; a task that the listener spawns is outside of it.
pub fn check_time_left() -> Option<Duration> {
    ANSWERS_BY.try_with(|by| by.saturating_duration_since(Instant::now())).ok()
}

/// The error with which [`check_local_transactions`](crate::TransactionListener::check_local_transactions)
/// names a half that it did not get to in its time: nothing is wrong with it, and it is asked about
/// again at once, in another call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("there was no time left to ask about it")]
pub struct NotReached;

/// How a call ended.
pub(super) enum Called {
    /// One answer for each half, in their order; [`NotAsked::Busy`] says that it was not reached.
    Answered(Vec<Answer>),
    /// It gave none.
    Failed(String),
    /// It gave none, was given up, and goes on: its halves cannot be asked about before it ends.
    Blocked(String),
    /// There was no place for it in time.
    NoPlace,
    /// The process is stopping.
    Ended,
}

/// The halves of a call, held until it has ended.
pub(super) struct Part {
    pub(super) halves: Arc<Vec<HalfMessage>>,
    pub(super) claims: Vec<Arc<Claim>>,
    pub(super) kind: Kind,
}

impl Checker {
    /// Asks a purpose's listener about these, within the deadline and the bounds on calls at once;
    /// one that may be in vain waits for its place until then.
    pub(super) async fn call(&self, purpose: &str, part: Part, until: Instant) -> Called {
        let halves = Arc::clone(&part.halves);
        let Some(check) = spans::Check::begin(purpose, &halves) else {
            return self.call_listener(purpose, part, until).await;
        };
        let called = within(&check.context(), self.call_listener(purpose, part, until)).await;
        match &called {
            Called::Answered(answers) => check.answered(answers),
            Called::Failed(why) | Called::Blocked(why) => {
                check.answered(&vec![Answer::Failed(why.clone()); halves.len()]);
            }
            Called::NoPlace | Called::Ended => {}
        }
        called
    }

    /// A place among the calls at once, within this time. Those that may be in vain leave one to those
    /// that are not, where there is more than one; and the suspects leave one to those of which it is
    /// not known yet, where there are more than two. Nothing ever closes these places.
    async fn places(&self, kind: Kind, until: Instant) -> Option<Vec<OwnedSemaphorePermit>> {
        let bounds: &[&Arc<Semaphore>] = match kind {
            Kind::Clean | Kind::NotReached => &[&self.calls],
            Kind::Failed | Kind::Doubted => &[&self.calls_in_vain, &self.calls],
            Kind::Suspect => &[&self.calls_of_suspects, &self.calls_in_vain, &self.calls],
        };
        let all = async {
            let mut places = Vec::with_capacity(bounds.len());
            for bound in bounds {
                places.push(Arc::clone(bound).acquire_owned().await.ok()?);
            }
            Some(places)
        };
        tokio::time::timeout_at(until, all).await.ok()?
    }

    async fn call_listener(&self, purpose: &str, part: Part, until: Instant) -> Called {
        let Part { halves, claims, kind } = part;
        let Some(listener) = self.listeners.get(purpose).cloned() else { return Called::Ended };
        let Some(places) = self.places(kind, until).await else { return Called::NoPlace };
        let (count, deadline) = (halves.len(), self.deadline);
        let by = Instant::now() + deadline - deadline / 10;
        let asked = Arc::clone(&halves);
        let of_call = claims.clone();
        let check = async move {
            let _claims = of_call;
            // Here, because the errors' texts are the listener's as well, and may panic.
            let given = listener.check(&asked).await;
            given.into_iter().map(answer).collect::<Vec<Answer>>()
        };
        let mut call = Calling::begin(carried(ANSWERS_BY.scope(by, check)), places, claims);
        let failure = match call.within(deadline).await {
            Some(Ok(answers)) if answers.len() == count => {
                log_failures(purpose, &halves, &answers);
                if !answers.iter().all(is_not_reached) {
                    return Called::Answered(answers);
                }
                format!("the listener reached none of {count} halves within {deadline:?}")
            }
            Some(Ok(given)) => {
                format!("the listener gave {} answers for {count} halves", given.len())
            }
            Some(Err(error)) if error.is_panic() => "the listener panicked".to_owned(),
            Some(Err(_)) => return Called::Ended,
            None if call.give_up().await => format!("the listener took longer than {deadline:?}"),
            None => {
                let failure = format!("the listener took longer than {deadline:?}, and {BLOCKS}");
                failed(purpose, &halves.iter().collect::<Vec<_>>(), &failure);
                return Called::Blocked(failure);
            }
        };
        failed(purpose, &halves.iter().collect::<Vec<_>>(), &failure);
        Called::Failed(failure)
    }
}

/// What is said of a half that cannot be asked about for the sake of an earlier call.
pub(crate) const BLOCKS: &str = "goes on although it was given up: it blocks its thread, so its halves \
                                 are not asked about again before it ends; let what blocks run in \
                                 tokio::task::spawn_blocking, or give it a deadline of its own";

pub(super) fn is_not_reached(answer: &Answer) -> bool {
    matches!(answer, Answer::NotAsked(NotAsked::Busy))
}

fn log_failures(purpose: &str, halves: &[HalfMessage], answers: &[Answer]) {
    let failures = answers.iter().zip(halves).filter_map(|(answer, half)| match answer {
        Answer::Failed(failure) => Some((failure, half)),
        _ => None,
    });
    let (failures, failing): (Vec<&String>, Vec<&HalfMessage>) = failures.unzip();
    if let Some(failure) = failures.first() {
        failed(purpose, &failing, failure);
    }
}

/// One line for a batch, with the first reason: a database that is away fails all of it alike. One
/// half that fails alone is named.
fn failed(purpose: &str, failing: &[&HalfMessage], failure: &str) {
    let (transaction_id, key) = match failing {
        [one] => (Some(display(one.transaction_id)), life::text(one.key.as_deref())),
        _ => (None, None),
    };
    tracing::warn!(transaction_id, key, purpose, halves = failing.len(), failure, "a check failed");
}

fn answer(given: ListenerResult<LocalTransactionState>) -> Answer {
    match given {
        Ok(LocalTransactionState::Commit) => Answer::Commit,
        Ok(LocalTransactionState::Rollback) => Answer::Rollback,
        Ok(LocalTransactionState::Unknown) => {
            Answer::Unknown("the listener does not know yet".to_owned())
        }
        Err(error) if error.is::<NotReached>() => Answer::NotAsked(NotAsked::Busy),
        Err(error) => Answer::Failed(error.to_string()),
    }
}

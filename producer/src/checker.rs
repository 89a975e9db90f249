//! Asks listeners what became of local transactions: in batches, within a deadline, and never
//! twice at once about the same half in this process.
//!
//! # Layout
//! - `asking`: one purpose's part of a question, in as many calls as it takes
//! - `call`: one call of a listener; `calling`: its task, and its place among the calls at once
//! - `claims`: which halves are being asked about
//! - `pace`: how many halves a call asks about, and which are asked about last, and alone

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use halfmsg_protocol::{Answer, NotAsked};
use tokio::sync::Semaphore;

use crate::life;
use crate::listener::ErasedListener;
use crate::message::HalfMessage;

mod asking;
mod call;
mod calling;
mod claims;
mod pace;
#[cfg(test)]
mod tests;

use asking::{Placed, Tell};
pub(crate) use call::BLOCKS;
pub use call::{NotReached, check_time_left};
use claims::{Claims, Taken};
use pace::{Kind, Pace};

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
    calls: Arc<Semaphore>,
    /// Those that may be in vain, which take all places but one (of one, that); of them, half for the
    /// suspects, at least one.
    calls_in_vain: Arc<Semaphore>,
    calls_of_suspects: Arc<Semaphore>,
    claims: Arc<Claims>,
    /// By purpose.
    paces: Mutex<HashMap<String, Pace>>,
    /// Whoever asks panics, outside of any listener.
    #[cfg(test)]
    pub(crate) panics: std::sync::atomic::AtomicBool,
}

impl Checker {
    pub(crate) fn new(
        application: String,
        listeners: HashMap<String, Arc<dyn ErasedListener>>,
        deadline: Duration,
        concurrency: usize,
    ) -> Self {
        let in_vain = concurrency.saturating_sub(1).max(1);
        Self {
            application,
            listeners,
            deadline,
            calls: Arc::new(Semaphore::new(concurrency)),
            calls_in_vain: Arc::new(Semaphore::new(in_vain)),
            calls_of_suspects: Arc::new(Semaphore::new((in_vain / 2).max(1))),
            claims: Arc::default(),
            paces: Mutex::default(),
            #[cfg(test)]
            panics: Default::default(),
        }
    }

    pub(crate) fn listener(&self, purpose: &str) -> Option<&Arc<dyn ErasedListener>> {
        self.listeners.get(purpose)
    }

    /// Asks about one.
    pub(crate) async fn ask_one(&self, asked: Asked) -> Answer {
        let answers = self.ask(vec![asked]).await;
        answers.into_iter().next().unwrap_or(Answer::NotAsked(NotAsked::Busy))
    }

    /// Asks about these; the answers are in their order.
    pub(crate) async fn ask(&self, asked: Vec<Asked>) -> Vec<Answer> {
        let answers = Mutex::new(vec![Answer::NotAsked(NotAsked::Busy); asked.len()]);
        let note = |index: usize, answer: Answer| {
            answers.lock().unwrap_or_else(PoisonError::into_inner)[index] = answer;
        };
        self.ask_each(asked, &note).await;
        answers.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks about these, and tells the answer of each, by its place, as soon as it is known: one whose
    /// check hangs holds up no other's answer. Each is told exactly once, unless this is cancelled.
    pub(crate) async fn ask_each(&self, asked: Vec<Asked>, tell: Tell<'_>) {
        #[cfg(test)]
        assert!(!self.panics.load(std::sync::atomic::Ordering::Relaxed), "expected");
        let mut by_purpose: HashMap<String, Vec<Placed>> = HashMap::new();
        let mut blocked = Vec::new();
        for (at, Asked { application, half }) in asked.into_iter().enumerate() {
            if application != self.application || !self.listeners.contains_key(&half.purpose) {
                tell(at, Answer::NotAsked(NotAsked::NoListener));
                continue;
            }
            match self.claims.claim(half.transaction_id) {
                Ok(claim) => {
                    let part = by_purpose.entry(half.purpose.clone()).or_default();
                    part.push(Placed { at, half, claim });
                }
                Err(Taken::Asked) => tell(at, Answer::NotAsked(NotAsked::Busy)),
                Err(Taken::Blocked) => {
                    blocked.push((half.transaction_id, half.key));
                    tell(at, Answer::NotAsked(NotAsked::Blocked));
                }
            }
        }
        if let Some((transaction_id, key)) = blocked.first() {
            // The log may know nothing of it: the question of that call may have been cancelled.
            let (key, halves) = (life::text(key.as_deref()), blocked.len());
            tracing::warn!(%transaction_id, key, halves, "not asked about: an earlier call about it {BLOCKS}");
        }
        let parts = by_purpose.into_iter().map(|(purpose, part)| async move {
            self.ask_purpose(&purpose, part, tell).await;
        });
        futures::future::join_all(parts).await;
    }

    fn paced<T>(&self, purpose: &str, act: impl FnOnce(&mut Pace) -> T) -> T {
        let mut paces = self.paces.lock().unwrap_or_else(PoisonError::into_inner);
        match paces.get_mut(purpose) {
            Some(pace) => act(pace),
            // At most one for each listener.
            None => act(paces.entry(purpose.to_owned()).or_default()),
        }
    }
}

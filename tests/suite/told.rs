//! A listener that does as it is told, by payload, and remembers what it was asked.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use async_trait::async_trait;
use halfmsg_producer::{
    HalfMessage, ListenerResult, LocalTransactionState, TransactionId, TransactionListener,
};
use tokio_util::sync::CancellationToken;

/// The purpose of all half messages of the library's cases.
pub(crate) const PURPOSE: &str = "test";

/// What the listener is to do when it is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Do {
    /// Commit.
    Commit,
    /// Roll back.
    Rollback,
    /// Answer that it is not known.
    Unknown,
    /// Fail.
    Fail,
    /// Panic.
    Panic,
    /// Answer nothing until [`Told::release`].
    Block,
}

/// The listener. Cheap to clone; all clones are one.
#[derive(Clone)]
pub(crate) struct Told {
    state: Arc<Mutex<State>>,
    released: CancellationToken,
}

struct State {
    /// Answers by payload, in order; the last one stays.
    scripts: HashMap<Vec<u8>, VecDeque<Do>>,
    otherwise: Do,
    executed: Vec<TransactionId>,
    checked: Vec<Asked>,
}

/// A check that really reached the listener.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) half: HalfMessage,
    pub(crate) at: Instant,
}

impl Told {
    /// A listener that answers this about every half that it was told nothing of.
    pub(crate) fn otherwise(otherwise: Do) -> Self {
        let state =
            State { scripts: HashMap::new(), otherwise, executed: Vec::new(), checked: Vec::new() };
        Self { state: Arc::new(Mutex::new(state)), released: CancellationToken::new() }
    }

    /// From now on answers checks about this payload so, one after the other; the last one stays.
    pub(crate) fn check(&self, payload: impl Into<Vec<u8>>, answers: &[Do]) {
        self.state().scripts.insert(payload.into(), answers.iter().copied().collect());
    }

    /// From now on answers this about every half that it was told nothing of.
    pub(crate) fn set_otherwise(&self, otherwise: Do) {
        self.state().otherwise = otherwise;
    }

    /// Local transactions that were run.
    pub(crate) fn executed(&self) -> Vec<TransactionId> {
        self.state().executed.clone()
    }

    /// Checks that were made.
    pub(crate) fn checked(&self) -> Vec<Asked> {
        self.state().checked.clone()
    }

    /// The checks about one half.
    pub(crate) fn checks_of(&self, id: TransactionId) -> Vec<Asked> {
        self.checked().into_iter().filter(|asked| asked.half.transaction_id == id).collect()
    }

    /// Lets go of everything that is blocked, now and later.
    pub(crate) fn release(&self) {
        self.released.cancel();
    }

    /// Whether somebody besides the caller's own clone still holds the listener.
    pub(crate) fn is_held(&self) -> bool {
        Arc::strong_count(&self.state) > 1
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn act(&self, what: Do) -> ListenerResult<LocalTransactionState> {
        match what {
            Do::Commit => Ok(LocalTransactionState::Commit),
            Do::Rollback => Ok(LocalTransactionState::Rollback),
            Do::Unknown => Ok(LocalTransactionState::Unknown),
            Do::Fail => Err("told to fail".into()),
            Do::Panic => panic!("told to panic"),
            Do::Block => {
                self.released.cancelled().await;
                Err("released".into())
            }
        }
    }
}

#[async_trait]
impl TransactionListener for Told {
    type Arg = Do;

    async fn execute_local_transaction(
        &self,
        half: &HalfMessage,
        arg: Do,
    ) -> ListenerResult<LocalTransactionState> {
        self.state().executed.push(half.transaction_id);
        self.act(arg).await
    }

    async fn check_local_transaction(
        &self,
        half: &HalfMessage,
    ) -> ListenerResult<LocalTransactionState> {
        let answer = {
            let mut state = self.state();
            state.checked.push(Asked { half: half.clone(), at: Instant::now() });
            let otherwise = state.otherwise;
            let payload = half.payload.as_deref().unwrap_or_default();
            match state.scripts.get_mut(payload) {
                Some(script) if script.len() > 1 => script.pop_front().unwrap_or(otherwise),
                Some(script) => script.front().copied().unwrap_or(otherwise),
                None => otherwise,
            }
        };
        self.act(answer).await
    }
}

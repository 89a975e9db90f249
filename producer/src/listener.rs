//! The user's side of a transaction: run it, and say later what became of it.

use std::any::{Any, type_name};
use std::sync::Arc;

use async_trait::async_trait;

use crate::checker::{NotReached, check_time_left};
use crate::message::HalfMessage;

/// What a listener may fail with. It is logged; what a local transaction failed with leads to its
/// check, and a check that failed is made again and counts as no attempt.
pub type ListenerError = Box<dyn std::error::Error + Send + Sync>;
/// What a listener's single methods return.
pub type ListenerResult<T> = Result<T, ListenerError>;

/// What became of a local transaction (RocketMQ's `LocalTransactionState`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LocalTransactionState {
    /// It is committed: deliver the message.
    Commit,
    /// It is not, and never will be: drop the message.
    Rollback,
    /// It cannot be told yet: ask again.
    Unknown,
}

/// Runs local transactions of one purpose, and answers for them (RocketMQ's
/// `TransactionListener`).
///
/// A check must make its answer true before it gives it: where it finds no trace of the local
/// transaction, it writes one that the local transaction cannot get past (the fence), so that
/// "not found" cannot become "committed" a moment later.
#[async_trait]
pub trait TransactionListener: Send + Sync + 'static {
    /// What `send_in_transaction` hands to the local transaction.
    type Arg: Send + 'static;

    /// Runs the local transaction; the half message is stored.
    ///
    /// An error, a panic, or taking longer than the local deadline is
    /// [`LocalTransactionState::Unknown`] and leads to an immediate check. It is not cancelled at
    /// the deadline: it runs to its end, and the fence stops it.
    ///
    /// # Errors
    /// Whatever kept it from knowing its own outcome.
    async fn execute_local_transaction(
        &self,
        half: &HalfMessage,
        arg: Self::Arg,
    ) -> ListenerResult<LocalTransactionState>;

    /// Says what became of the local transaction of this half.
    ///
    /// `Unknown` is an answer: it looked, and cannot tell yet. It counts as one of `max_checks`.
    ///
    /// # Errors
    /// Whatever kept it from looking: its database is away, say. So does a panic, or taking longer than
    /// `check_deadline`. None of these counts: the half is asked about again after the same intervals
    /// (`check_backoff`), and is shown as failing meanwhile. It is given up only once it is older than
    /// `max_age` and its checks have failed for as long.
    async fn check_local_transaction(
        &self,
        half: &HalfMessage,
    ) -> ListenerResult<LocalTransactionState>;

    /// Says what became of these, one answer per half in their order, each as
    /// [`TransactionListener::check_local_transaction`] would. May be cancelled at the check deadline, or
    /// when another replica takes the half's partition over. It must not block its thread: a call that
    /// cannot be cancelled keeps its place among `check_concurrency` until it ends (for a minute at
    /// most), and its halves, which fail meanwhile, are not asked about again before; but if it was about
    /// several, each is asked about alone after that minute.
    ///
    /// A call that is cancelled, panics or gives another number of answers says nothing of any single
    /// half: its halves are asked about again by halves, until the one to blame is alone. Only that
    /// one has failed then, and it is asked about alone from then on, until it is answered. One that
    /// runs out of time ([`check_time_left`]) may give the answers it has, and [`NotReached`] as the
    /// error of the others: they are asked about at once, in another call.
    ///
    /// By default asks for one after the other, as long as there is time.
    async fn check_local_transactions(
        &self,
        halves: &[HalfMessage],
    ) -> Vec<ListenerResult<LocalTransactionState>> {
        let mut answers: Vec<ListenerResult<LocalTransactionState>> =
            Vec::with_capacity(halves.len());
        for half in halves {
            let check = self.check_local_transaction(half);
            let answer = match check_time_left() {
                None => Ok(check.await),
                Some(left) if left.is_zero() && !answers.is_empty() => break,
                Some(left) => tokio::time::timeout(left, check).await,
            };
            match answer {
                Ok(answer) => answers.push(answer),
                // The first one had the whole time.
                Err(_) if answers.is_empty() => {
                    answers.push(Err("it took longer than it may".into()))
                }
                Err(_) => break,
            }
        }
        answers.resize_with(halves.len(), || Err(NotReached.into()));
        answers
    }
}

/// A listener whose argument type is forgotten.
#[async_trait]
pub(crate) trait ErasedListener: Send + Sync + 'static {
    fn takes(&self, arg: &(dyn Any + Send)) -> Result<(), &'static str>;

    async fn execute(
        &self,
        half: &HalfMessage,
        arg: Box<dyn Any + Send>,
    ) -> ListenerResult<LocalTransactionState>;

    async fn check(&self, halves: &[HalfMessage]) -> Vec<ListenerResult<LocalTransactionState>>;
}

struct Erased<L>(L);

#[async_trait]
impl<L: TransactionListener> ErasedListener for Erased<L> {
    fn takes(&self, arg: &(dyn Any + Send)) -> Result<(), &'static str> {
        if arg.is::<L::Arg>() { Ok(()) } else { Err(type_name::<L::Arg>()) }
    }

    async fn execute(
        &self,
        half: &HalfMessage,
        arg: Box<dyn Any + Send>,
    ) -> ListenerResult<LocalTransactionState> {
        let arg = arg.downcast::<L::Arg>().map_err(|_| "an argument of another type")?;
        self.0.execute_local_transaction(half, *arg).await
    }

    async fn check(&self, halves: &[HalfMessage]) -> Vec<ListenerResult<LocalTransactionState>> {
        self.0.check_local_transactions(halves).await
    }
}

pub(crate) fn erase<L: TransactionListener>(listener: L) -> Arc<dyn ErasedListener> {
    Arc::new(Erased(listener))
}

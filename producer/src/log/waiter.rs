//! Who waits for the end of a record: one allocation that the client carries along with it.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError, mpsc};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use halfmsg_protocol::HalfRef;
use halfmsg_traces::Span;
use rdkafka::error::KafkaError;

use crate::life;
use crate::resolver::Input;

/// Where an acknowledged record stands, and since when by the store's clock: what whoever reads it
/// finds as its timestamp.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Written {
    pub(crate) offset: i64,
    /// Milliseconds since the epoch.
    pub(crate) appended_ms: i64,
}

/// That, or what the client said.
pub(crate) type Appended = Result<Written, KafkaError>;

/// Who waits for an acknowledgement.
pub(crate) enum Waiter {
    /// A caller; see [`Acked`].
    Caller(Mutex<State>),
    /// The resolver; only a failure interests it.
    Resolver {
        inputs: mpsc::Sender<Input>,
        partition: i32,
        generation: u64,
        of: HalfRef,
        /// The message's ordering key, for the log.
        key: Option<Bytes>,
        /// That of a decision, if somebody takes spans. It ends with the wait.
        span: Mutex<Option<Span>>,
    },
}

/// How far a caller's wait is.
pub(crate) enum State {
    /// On its way; woken when it ends, if anybody waits.
    Pending(Option<Waker>),
    /// At its end, and not taken yet.
    Done(Appended),
    /// Taken by the caller.
    Taken,
}

impl Waiter {
    pub(crate) fn caller() -> Self {
        Self::Caller(Mutex::new(State::Pending(None)))
    }

    /// The record has come to its end. A second end is none: the first one holds.
    pub(crate) fn done(&self, result: Appended) {
        match self {
            Self::Caller(state) => {
                let waker = {
                    let mut state = lock(state);
                    let State::Pending(waker) = &mut *state else { return };
                    let waker = waker.take();
                    *state = State::Done(result);
                    waker
                };
                // A caller that has gone away does not wait any more.
                if let Some(waker) = waker {
                    waker.wake();
                }
            }
            Self::Resolver { inputs, partition, generation, of, key, span } => {
                let span = span.lock().unwrap_or_else(PoisonError::into_inner).take();
                if let (Some(mut span), Err(error)) = (span, &result) {
                    halfmsg_traces::failed(&mut span, "not_stored", &error.to_string());
                }
                if let Err(error) = result {
                    let key = life::text(key.as_deref());
                    tracing::warn!(
                        transaction_id = %of.id, key, partition, %error,
                        "a record was not stored"
                    );
                    let (partition, generation, of) = (*partition, *generation, *of);
                    // The resolver may have ended; then nothing is left to retry here.
                    drop(inputs.send(Input::AppendFailed { partition, generation, of }));
                }
            }
        }
    }
}

/// Waits for the end of a caller's record. Dropping it gives the wait up, not the record.
pub(crate) struct Acked<'a>(pub(crate) &'a Waiter);

impl Future for Acked<'_> {
    type Output = Appended;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Appended> {
        let Waiter::Caller(state) = self.0 else { return Poll::Ready(Err(KafkaError::Canceled)) };
        let mut state = lock(state);
        match &mut *state {
            State::Pending(Some(waker)) => waker.clone_from(context.waker()),
            State::Pending(waiting) => *waiting = Some(context.waker().clone()),
            State::Done(_) => {
                if let State::Done(result) = std::mem::replace(&mut *state, State::Taken) {
                    return Poll::Ready(result);
                }
            }
            State::Taken => return Poll::Ready(Err(KafkaError::Canceled)),
        }
        Poll::Pending
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn written(offset: i64) -> Appended {
        Ok(Written { offset, appended_ms: 1 })
    }

    #[tokio::test]
    async fn an_end_before_the_wait_is_not_missed() {
        let waiter = Waiter::caller();
        waiter.done(written(7));
        assert_eq!(Acked(&waiter).await, written(7));
    }

    #[tokio::test]
    async fn an_end_from_another_thread_wakes_the_caller() {
        let waiter = Arc::new(Waiter::caller());
        let other = Arc::clone(&waiter);
        let mut acked = std::pin::pin!(Acked(&waiter));
        assert!(futures::poll!(&mut acked).is_pending());
        std::thread::spawn(move || other.done(written(8)));
        assert_eq!(acked.await, written(8));
    }

    #[tokio::test]
    async fn the_first_end_holds() {
        let waiter = Waiter::caller();
        waiter.done(Err(KafkaError::Canceled));
        waiter.done(written(9));
        assert_eq!(Acked(&waiter).await, Err(KafkaError::Canceled));
    }
}

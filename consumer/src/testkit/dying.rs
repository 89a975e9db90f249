//! A process that dies where it waits: a future is dropped there, and the next try dies one wait later.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;

/// So many tries may die: more waits than a test of a handler has.
const MOST_WAITS: u32 = 500;
/// What answers at once is not waited for: so many must run through, one after the other, each with one
/// wait more, before all waits count as tried.
const SURVIVORS: u32 = 5;
/// With fewer deaths nothing was tried: on a machine where a database answers before it is waited for, all
/// may run through by chance. Then it is begun anew, so often.
const LEAST_DEATHS: u32 = 2;
const MOST_ROUNDS: u32 = 20;

/// The future's output, or nothing if it waits for the so many-th time (from 1): it is dropped there, as
/// it ends with a process that dies.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// use halfmsg_consumer::testkit::dies_at;
///
/// let work = || async {
///     tokio::task::yield_now().await;
///     "done"
/// };
/// assert_eq!(dies_at(1, work()).await, None);
/// assert_eq!(dies_at(2, work()).await, Some("done"));
/// # }
/// ```
pub async fn dies_at<T>(waits: u32, work: impl Future<Output = T>) -> Option<T> {
    let mut work = pin!(work);
    let mut waited = 0;
    poll_fn(|context| match work.as_mut().poll(context) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => {
            waited += 1;
            if waited >= waits { Poll::Ready(None) } else { Poll::Pending }
        }
    })
    .await
}

/// One number of waits after the other, until the work has run through.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// use halfmsg_consumer::testkit::{EveryWait, dies_at};
///
/// let mut tries = EveryWait::default();
/// while let Some(waits) = tries.next_try() {
///     let work = async {
///         tokio::task::yield_now().await;
///         tokio::task::yield_now().await;
///     };
///     tries.died(dies_at(waits, work).await.is_none());
/// }
/// # }
/// ```
#[derive(Debug, Default)]
pub struct EveryWait {
    waits: u32,
    deaths: u32,
    survivors: u32,
    rounds: u32,
}

impl EveryWait {
    /// At which wait to die next; nothing if every wait was tried.
    ///
    /// # Panics
    /// If the work never runs through, or hardly ever died, from the first wait on, time and again.
    pub fn next_try(&mut self) -> Option<u32> {
        if self.survivors >= SURVIVORS {
            if self.deaths >= LEAST_DEATHS {
                return None;
            }
            self.rounds += 1;
            assert!(self.rounds < MOST_ROUNDS, "it died {} times", self.deaths);
            *self = Self { rounds: self.rounds, ..Self::default() };
        }
        self.waits += 1;
        assert!(self.waits < MOST_WAITS, "it never ran through");
        Some(self.waits)
    }

    /// Whether it died there.
    pub fn died(&mut self, died: bool) {
        self.deaths += u32::from(died);
        self.survivors = if died { 0 } else { self.survivors + 1 };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ran_through_by_chance_is_tried_again_from_the_first_wait_on() {
        let mut tries = EveryWait::default();
        let mut tried = Vec::new();
        while let Some(waits) = tries.next_try() {
            // Of the first round, none but the first wait is met.
            tried.push(waits);
            tries.died(if tried.len() <= 6 { waits == 1 } else { waits <= 3 });
        }
        assert_eq!(tried, [1, 2, 3, 4, 5, 6, 1, 2, 3, 4, 5, 6, 7, 8]);
    }

    #[test]
    #[should_panic(expected = "it died 0 times")]
    fn what_never_dies_was_not_tried() {
        let mut tries = EveryWait::default();
        while tries.next_try().is_some() {
            tries.died(false);
        }
    }
}

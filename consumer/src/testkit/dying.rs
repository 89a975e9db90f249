//! A process that dies where it waits: a future is dropped there, and the next try dies one wait later.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;

/// So many tries may die: more waits than a test of a handler has.
const MOST_WAITS: u32 = 500;
/// What answers at once is not waited for: so many must run through, one after the other, each with one
/// wait more, before all waits count as tried.
const SURVIVORS: u32 = 5;
/// With fewer deaths nothing was tried.
const LEAST_DEATHS: u32 = 2;

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
}

impl EveryWait {
    /// At which wait to die next; nothing if every wait was tried.
    ///
    /// # Panics
    /// If the work never runs through, or hardly ever died.
    pub fn next_try(&mut self) -> Option<u32> {
        if self.survivors >= SURVIVORS {
            assert!(self.deaths >= LEAST_DEATHS, "it died {} times", self.deaths);
            return None;
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

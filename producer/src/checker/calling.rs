//! The task of one call, its places among the calls at once, and its claims on halves. It must never
//! give either back while the task runs, but for one that ignores for [`PLACE_KEPT`] that it was given
//! up: then the places, and the claims if there are several.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::{JoinError, JoinHandle};
use tokio::time::{Instant, timeout, timeout_at};

use super::claims::Claim;

/// A task that is given up ends at its next await, which is at once unless it blocks its thread: so
/// long its question waits for that.
pub(super) const ABORT_PATIENCE: Duration = Duration::from_secs(1);
/// A call that ignores that it was given up keeps its places so long, or until it ends. Beyond, a
/// listener that blocks for ever would take one place after the other until no check is made at all;
/// and one half that blocks would keep its neighbours from being asked about, each alone, for ever.
pub(super) const PLACE_KEPT: Duration = Duration::from_secs(60);

/// A call that is under way. Dropped before its end, it is given up.
pub(super) struct Calling<T: Send + 'static> {
    task: Option<JoinHandle<T>>,
    places: Vec<OwnedSemaphorePermit>,
    claims: Vec<Arc<Claim>>,
}

impl<T: Send + 'static> Calling<T> {
    /// A task of its own, so that a panic is the listener's and not ours.
    pub(super) fn begin(
        call: impl Future<Output = T> + Send + 'static,
        places: Vec<OwnedSemaphorePermit>,
        claims: Vec<Arc<Claim>>,
    ) -> Self {
        Self { task: Some(tokio::spawn(call)), places, claims }
    }

    /// What it gives, if that comes in time.
    pub(super) async fn within(&mut self, deadline: Duration) -> Option<Result<T, JoinError>> {
        let given = timeout(deadline, self.task.as_mut()?).await.ok()?;
        self.task = None;
        Some(given)
    }

    /// Gives it up; false if it goes on all the same.
    pub(super) async fn give_up(&mut self) -> bool {
        let Some(task) = &self.task else { return true };
        task.abort();
        let is_over = self.within(ABORT_PATIENCE).await.is_some();
        if !is_over {
            self.claims.iter().for_each(|claim| claim.is_blocked());
        }
        is_over
    }
}

impl<T: Send + 'static> Drop for Calling<T> {
    fn drop(&mut self) {
        let Some(mut task) = self.task.take() else { return };
        task.abort();
        let (places, claims) = (std::mem::take(&mut self.places), std::mem::take(&mut self.claims));
        let until = Instant::now() + PLACE_KEPT;
        // Without a runtime there is no task that could go on.
        let Ok(runtime) = Handle::try_current() else { return };
        runtime.spawn(async move {
            if timeout(ABORT_PATIENCE, &mut task).await.is_ok() {
                return;
            }
            // Its question may have been dropped before anybody knew.
            claims.iter().for_each(|claim| claim.is_blocked());
            if timeout_at(until, &mut task).await.is_err() && claims.len() > 1 {
                claims.iter().for_each(|claim| claim.give_up());
            }
            drop(places);
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use halfmsg_protocol::TransactionId;
    use tokio::sync::{Semaphore, oneshot};

    use super::*;
    use crate::checker::claims::{Claims, Taken};

    /// What blocks for ever is a task that no abort ends. Beyond the time that its place is kept, the
    /// halves of a call of several may be asked about again, and one that is to blame alone may not.
    #[tokio::test(start_paused = true)]
    async fn what_a_call_that_never_ends_gives_back() {
        for halves in [1, 2] {
            let places = Arc::new(Semaphore::new(1));
            let place = Arc::clone(&places).acquire_owned().await.unwrap();
            let claims = Arc::new(Claims::default());
            let claim = |number| claims.claim(TransactionId::from_bytes([number; 16]));
            let of_call: Vec<_> = (0..halves).map(|number| claim(number).unwrap()).collect();
            // As the task has them.
            let _of_task = of_call.clone();
            let ((end, ended), (begin, begun)) = (mpsc::channel::<()>(), oneshot::channel());
            let task =
                tokio::task::spawn_blocking(move || begin.send(()).is_ok() && ended.recv().is_ok());
            begun.await.unwrap();
            let mut call = Calling { task: Some(task), places: vec![place], claims: of_call };
            let (over, ()) = tokio::join!(call.give_up(), async {
                tokio::task::yield_now().await;
                tokio::time::advance(ABORT_PATIENCE).await;
            });
            assert!(!over);
            drop(call);
            tokio::task::yield_now().await;
            tokio::time::advance(ABORT_PATIENCE).await;
            tokio::task::yield_now().await;
            tokio::time::advance(PLACE_KEPT - ABORT_PATIENCE - Duration::from_millis(1)).await;
            assert_eq!(places.available_permits(), 0);
            assert_eq!(claim(0).unwrap_err(), Taken::Blocked);
            tokio::time::advance(Duration::from_millis(2)).await;
            drop(places.acquire().await.unwrap());
            assert_eq!(claim(0).is_ok(), halves > 1);
            drop(end);
        }
    }

    #[test]
    fn a_claim_that_was_given_up_frees_no_later_one() {
        let claims = Arc::new(Claims::default());
        let id = TransactionId::from_bytes([1; 16]);
        let first = claims.claim(id).unwrap();
        first.give_up();
        let second = claims.claim(id).unwrap();
        drop(first);
        assert_eq!(claims.claim(id).unwrap_err(), Taken::Asked);
        drop(second);
        assert!(claims.claim(id).is_ok());
    }
}

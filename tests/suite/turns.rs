//! Whose turn it is: so many cases run at once, one of them at most of those that need the machine for
//! themselves.
//!
//! Two cores carry several idle services, but not two soaks; and a start that is to take at most
//! ten seconds must not be measured beside one.
//!
//! `scripts/test` gives each case a thread, so that those which wait here keep no other from running. A
//! heavy case must never queue for a place again: the heavy ones behind it would wait for all that do.

use std::cell::RefCell;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{Mutex, MutexGuard, Semaphore, SemaphorePermit};

type Place = SemaphorePermit<'static>;

/// Cases at once: most of them wait, for servers and for times.
static PLACES: Semaphore = Semaphore::const_new(4);
/// The heavy case that runs, and the place that it has from the one before it.
static HEAVY: Mutex<Option<Place>> = Mutex::const_new(None);
/// Heavy cases that wait.
static WAITING: AtomicUsize = AtomicUsize::new(0);

tokio::task_local! {
    /// That of the case that runs here.
    static PLACE: RefCell<Option<Place>>;
}

/// Runs a case once there is a place for it.
pub(crate) async fn in_turn(case: impl Future<Output = ()>) {
    let place = PLACES.acquire().await.expect("it is never closed");
    PLACE.scope(RefCell::new(Some(place)), case).await;
}

/// The turn of a heavy case, while it lives.
pub(crate) struct Alone(MutexGuard<'static, Option<Place>>);

/// Waits until no other heavy case runs. Meanwhile this one's place is somebody else's; then it has that of
/// the heavy one before it.
pub(crate) async fn alone() -> Alone {
    let place = PLACE.with(RefCell::take);
    if let Ok(mut first) = HEAVY.try_lock() {
        *first = place;
        return Alone(first);
    }
    drop(place);
    WAITING.fetch_add(1, Ordering::SeqCst);
    let turn = HEAVY.lock().await;
    WAITING.fetch_sub(1, Ordering::SeqCst);
    Alone(turn)
}

impl Drop for Alone {
    fn drop(&mut self) {
        if WAITING.load(Ordering::SeqCst) == 0 {
            drop(self.0.take());
        }
    }
}

//! Some cases need the machine for themselves: one of them at a time.
//!
//! Two cores carry several idle services, but not two soaks; and a start that is to take at most
//! ten seconds must not be measured beside one.

use tokio::sync::{Mutex, MutexGuard};

static HEAVY: Mutex<()> = Mutex::const_new(());

/// Waits until no other heavy case runs; this one does while the guard lives.
pub(crate) async fn alone() -> MutexGuard<'static, ()> {
    HEAVY.lock().await
}

//! Waiting for a condition, with a deadline.

use std::fmt::Display;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

/// Long enough for a loaded machine; only a failing test waits as long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);
/// Between two looks.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// Looks until there is something to return.
///
/// # Panics
/// Past the deadline, with what was waited for and what the last look saw instead.
pub(crate) async fn until<T, E: Display>(
    within: Duration,
    what: &str,
    mut look: impl AsyncFnMut() -> Result<T, E>,
) -> T {
    let deadline = Instant::now() + within;
    loop {
        let seen = timeout_at(deadline + within, look()).await;
        match seen {
            Ok(Ok(found)) => return found,
            Ok(Err(instead)) if Instant::now() >= deadline => {
                panic!("{what}: not within {within:?}: {instead}")
            }
            Ok(Err(_)) => sleep(LOOK_INTERVAL).await,
            Err(_) => panic!("{what}: a look did not end within {within:?}"),
        }
    }
}

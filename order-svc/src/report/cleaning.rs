//! Cleans up behind former generations of the report, beside the reading of the present one. Each
//! replica does; they leave each other's rows to each other.

use std::time::Duration;

use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::store::ReportStore;
use super::trouble::{Part, Trouble};
use super::{DEADLINE, WATCH_INTERVAL, late};

/// Between two looks whether something is left.
const LOOK_INTERVAL: Duration = Duration::from_secs(30);
/// Between two statements that delete: everybody else writes meanwhile.
const PAUSE: Duration = Duration::from_millis(20);

/// Until `shutdown`. `subscriber` is the beginning of the generations' subscribers.
pub(super) async fn run(
    store: &ReportStore,
    subscriber: &str,
    trouble: &Trouble,
    shutdown: &CancellationToken,
) {
    while !shutdown.is_cancelled() {
        let cleaned = tokio::select! {
            () = shutdown.cancelled() => return,
            cleaned = timeout(DEADLINE, store.clean(subscriber)) => cleaned,
        };
        let pause = match cleaned {
            Ok(Ok(deleted)) => {
                trouble.is_over(Part::Cleaning);
                if deleted > 0 { PAUSE } else { LOOK_INTERVAL }
            }
            Ok(Err(error)) => {
                trouble.is(Part::Cleaning, &error);
                WATCH_INTERVAL
            }
            Err(_) => {
                trouble.is(Part::Cleaning, &late());
                WATCH_INTERVAL
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = sleep(pause) => {}
        }
    }
}

//! Forgets Idempotency-Keys and fences that are older than promised; counts orders that are stuck.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use halfmsg_service_kit::db;
use tokio_util::sync::CancellationToken;

use crate::metrics::OrderMetrics;
use crate::store::OrderStore;
use crate::store::idempotency::CLEAN_BATCH;

/// How long a key is kept, in hours.
pub const KEEP_KEYS_HOURS: i64 = 24;
/// How long the fence of a cancellation is kept: longer than a half message can stay open before
/// somebody looks at it. One that is older is unknown to its check.
pub const KEEP_FENCES: Duration = Duration::from_secs(90 * 24 * 3600);
/// Between two counts of stuck orders.
const COUNT_INTERVAL: Duration = Duration::from_secs(2);
/// Between two cleanings.
const INTERVAL: Duration = Duration::from_secs(600);
/// Batches of one cleaning; what is left waits for the next.
const MAX_BATCHES: usize = 200;

/// Cleans from time to time, until the token is cancelled.
pub(crate) async fn run(store: OrderStore, shutdown: CancellationToken) {
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = clean(&store) => {}
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(INTERVAL) => {}
        }
    }
}

/// Counts orders that have waited for their stock for longer than `after`, until the token is
/// cancelled.
pub(crate) async fn count_stuck(
    store: OrderStore,
    metrics: OrderMetrics,
    after: Duration,
    shutdown: CancellationToken,
) {
    let after = TimeDelta::from_std(after).unwrap_or(TimeDelta::MAX);
    while !shutdown.is_cancelled() {
        let now = db::now();
        let before = now.checked_sub_signed(after).unwrap_or(DateTime::<Utc>::MIN_UTC);
        match store.stuck(before).await {
            Ok((orders, oldest)) => {
                let age = oldest.map_or(0, |since| (now - since).num_seconds().max(0));
                metrics.stuck(orders, age);
            }
            Err(error) => tracing::debug!(%error, "stuck orders are counted later"),
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(COUNT_INTERVAL) => {}
        }
    }
}

async fn clean(store: &OrderStore) {
    if let Err(error) = store.forget_fences(KEEP_FENCES).await {
        tracing::debug!(%error, "old fences are forgotten later");
    }
    let before = db::now() - TimeDelta::hours(KEEP_KEYS_HOURS);
    for _ in 0..MAX_BATCHES {
        match store.forget_keys(before).await {
            Ok(forgotten) if forgotten < CLEAN_BATCH => return,
            Ok(_) => {}
            Err(error) => {
                tracing::debug!(%error, "old keys are forgotten later");
                return;
            }
        }
    }
}

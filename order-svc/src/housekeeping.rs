//! Forgets Idempotency-Keys that are older than promised.

use std::time::Duration;

use chrono::TimeDelta;
use halfmsg_service_kit::db;
use tokio_util::sync::CancellationToken;

use crate::store::OrderStore;
use crate::store::idempotency::CLEAN_BATCH;

/// How long a key is kept, in hours.
pub const KEEP_KEYS_HOURS: i64 = 24;
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

async fn clean(store: &OrderStore) {
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

//! Which messages of a batch somebody else's lock is to blame for, so that the others do not wait with them.
//!
//! Here is only looked: nothing may be changed, and nothing locked for longer than the look takes.

use halfmsg_consumer::{HandlerError, ReceivedMessage};
use tokio::time::sleep;

use crate::store::{SHARED_LOCK_WAIT, StockStore, StoreError};

/// The error of a batch whose transaction has failed, and holds no lock any more. `skus` are those of each of
/// its messages.
///
/// A product that is only in use for a moment is not to blame, nor one that several use in turn: nobody waits
/// apart for that. So this looks twice, and for who it is. A lock that is not of a product (an order that somebody else is working on) is left to the runtime, which
/// finds the order.
pub(crate) async fn blame(
    store: &StockStore,
    error: StoreError,
    batch: &[ReceivedMessage],
    skus: &[Vec<String>],
) -> HandlerError {
    if error.is_contended() {
        let all = skus.iter().flatten().cloned();
        match store.held_elsewhere(all, sleep(SHARED_LOCK_WAIT)).await {
            Ok(held) if !held.is_empty() => {
                let wait = |skus: &[String]| skus.iter().any(|sku| held.contains(sku));
                let locked = batch.iter().zip(skus).filter(|(_, skus)| wait(skus));
                let locked = locked.map(|(message, _)| message);
                let held: Vec<&str> = held.iter().map(String::as_str).collect();
                let cause = format!("{}: {error}", held.join(", "));
                return HandlerError::locked(locked, cause);
            }
            Ok(_) => {}
            Err(error) => tracing::debug!(%error, "nobody can tell which products are held"),
        }
    }
    failed(error)
}

fn failed(error: StoreError) -> HandlerError {
    match error {
        StoreError::Database(error) => HandlerError::Database(error),
        error => HandlerError::Failed(error.to_string()),
    }
}

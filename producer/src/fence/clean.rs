//! Forgets fences that are older than promised.
//!
//! It must never delete a row that the mark does not cover yet: a check would take what was deleted
//! for what never was.

use std::time::Duration;

use chrono::TimeDelta;
use halfmsg_db::{begin_write, now, set_lock_timeout_in_tx};
use sea_orm::DatabaseConnection;

use super::FenceError;
use super::table::{self, Mark, made_at};

/// The shortest retention: a half must be settled by then, by checks or by a person.
pub const MIN_RETENTION: Duration = Duration::from_secs(24 * 3_600);
/// Rows deleted in one transaction of [`clean`].
pub const CLEAN_BATCH: u64 = 500;
/// Transactions of one [`clean`]; what is left waits for the next.
pub const MAX_CLEAN_BATCHES: usize = 200;
/// Its wait for a lock.
const LOCK_TIMEOUT: Duration = Duration::from_millis(500);

/// Deletes the rows of transactions that began longer than `retention` ago, and says how many.
///
/// First the mark is moved and committed, so that halves that old are unknown to a check and
/// refused by [`enter_in_tx`](super::enter_in_tx) from then on. The time is counted back from the
/// newest row if the clock of this process is ahead of it: a wrong clock cannot shut everybody out.
///
/// Call it from time to time, from any replica; it may run twice at once. Cancelled, whole batches
/// are deleted.
///
/// # Errors
/// [`FenceError`]; whole batches may be deleted. [`FenceError::Retention`] below [`MIN_RETENTION`].
pub async fn clean(db: &DatabaseConnection, retention: Duration) -> Result<u64, FenceError> {
    if retention < MIN_RETENTION {
        return Err(FenceError::Retention(retention));
    }
    let Some(newest) = table::newest(db).await? else {
        return Ok(0);
    };
    let kept = TimeDelta::from_std(retention).unwrap_or(TimeDelta::MAX);
    let Some(before) = now().min(made_at(newest)).checked_sub_signed(kept) else {
        return Ok(0);
    };
    let mark = move_mark(db, Mark::at(before)).await?;
    let mut deleted = 0;
    for _ in 0..MAX_CLEAN_BATCHES {
        let tx = begin_write(db).await?;
        set_lock_timeout_in_tx(&tx, LOCK_TIMEOUT).await?;
        let batch = table::delete_in_tx(&tx, mark, CLEAN_BATCH).await?;
        tx.commit().await?;
        deleted += batch;
        if batch < CLEAN_BATCH {
            break;
        }
    }
    Ok(deleted)
}

async fn move_mark(db: &DatabaseConnection, to: Mark) -> Result<Mark, FenceError> {
    let tx = begin_write(db).await?;
    set_lock_timeout_in_tx(&tx, LOCK_TIMEOUT).await?;
    let mark = table::move_mark_in_tx(&tx, to).await?;
    tx.commit().await?;
    Ok(mark)
}

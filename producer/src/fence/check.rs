//! The check-back's side of the fence: it reads the rows of a batch at once, and where there is
//! none, it writes the tombstone that the local transaction cannot get past.
//!
//! It must never wait long for a running local transaction: that one half is unknown, no other.

use std::collections::{BTreeSet, HashMap};
use std::future::Future;
use std::time::Duration;

use halfmsg_db::{begin_write, set_lock_timeout_in_tx};
use halfmsg_protocol::TransactionId;
use sea_orm::{DatabaseConnection, DatabaseTransaction, DbBackend};
use tokio::time::{Instant, sleep, timeout};

use super::FenceError;
use super::table::{self, State};
use crate::life;
use crate::listener::{ListenerResult, LocalTransactionState};
use crate::message::HalfMessage;

/// The bounds of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FenceOptions {
    /// How long the tombstone of one half waits for a running local transaction. On SQLite, which
    /// has one writer, it is the busy timeout of the pool that counts: give checks a pool of their
    /// own, with this timeout.
    pub lock_timeout: Duration,
    /// All of a check; what is not reached by then is unknown. Shorter than the producer's
    /// `check_deadline`, at which the whole batch is given up.
    pub budget: Duration,
}

impl Default for FenceOptions {
    fn default() -> Self {
        Self { lock_timeout: Duration::from_millis(100), budget: Duration::from_secs(2) }
    }
}

/// What a tombstone may take beyond its wait for a lock, before its half is left unknown.
const WRITE_GRACE: Duration = Duration::from_millis(400);
/// Between two attempts on a database that can only be asked not to wait.
const LOCK_POLL: Duration = Duration::from_millis(10);

/// Says of each half what became of its local transaction, after making sure that it can say so; in
/// the order of `halves`.
///
/// `Commit` if it entered the fence and committed. `Rollback` if there is a tombstone, which this
/// writes where there is no row. `Unknown` if it is under way, if somebody else's lock is in the way,
/// or if the half has no row and is older than what was cleaned away. An error, a [`FenceError`], if
/// the database is away or refuses, if there was no time left for this half, or if the table was
/// emptied: nothing is known then of the local transaction, and no attempt is counted.
///
/// Rows that exist are read in one statement; tombstones are written one by one, in the order of
/// their keys, each in its own transaction, and each with its share of the time to wait for locks.
/// Cancelled, some tombstones are written, which the next check reads.
pub async fn check(
    db: &DatabaseConnection,
    halves: &[HalfMessage],
    options: FenceOptions,
) -> Vec<ListenerResult<LocalTransactionState>> {
    let ids: BTreeSet<TransactionId> =
        halves.iter().map(|half| half.local_transaction_id).collect();
    let ids: Vec<TransactionId> = ids.into_iter().collect();
    let known = states(db, &ids, options).await;
    let answer = |half: &HalfMessage| match &known {
        Ok(known) => match known.get(&half.local_transaction_id) {
            Some(state) => Ok(told(half, state.clone())?),
            None => Ok(LocalTransactionState::Unknown),
        },
        Err(error) => Err(error.clone().into()),
    };
    halves.iter().map(answer).collect()
}

/// The same about one half.
///
/// # Errors
/// As for [`check`].
pub async fn check_one(
    db: &DatabaseConnection,
    half: &HalfMessage,
    options: FenceOptions,
) -> ListenerResult<LocalTransactionState> {
    let mut answers = check(db, std::slice::from_ref(half), options).await;
    answers.pop().unwrap_or(Ok(LocalTransactionState::Unknown))
}

type Known = HashMap<TransactionId, Result<State, FenceError>>;

/// What is known of these, which are in the order of their keys.
async fn states(
    db: &DatabaseConnection,
    ids: &[TransactionId],
    options: FenceOptions,
) -> Result<Known, FenceError> {
    let mut known = Known::with_capacity(ids.len());
    if ids.is_empty() {
        return Ok(known);
    }
    let began = Instant::now();
    let until = began + options.budget;
    // Waiting for locks takes half of the time at most: the rest is for those who need not wait.
    let until_waited = began + options.budget / 2;
    let rows = bounded(options.budget, table::read(db, ids)).await?;
    let mut states = rows.states;
    let mut missing = Vec::new();
    for id in ids {
        match states.remove(id) {
            Some(state) => drop(known.insert(*id, state)),
            None if rows.mark.covers(*id) => {
                known.insert(*id, Err(FenceError::Forgotten(*id)));
            }
            None => missing.push(*id),
        }
    }
    for (at, id) in missing.iter().enumerate() {
        let left = until.saturating_duration_since(Instant::now());
        let to_wait = until_waited.saturating_duration_since(Instant::now());
        let to_write = u32::try_from(missing.len() - at).unwrap_or(u32::MAX);
        let wait = options.lock_timeout.min(to_wait / to_write);
        let state = bounded(left.min(wait + WRITE_GRACE), close(db, *id, wait)).await;
        known.insert(*id, state);
    }
    Ok(known)
}

/// What its row says of a half, or what kept the database from telling.
fn told(
    half: &HalfMessage,
    state: Result<State, FenceError>,
) -> Result<LocalTransactionState, FenceError> {
    match state {
        Ok(State::Entered) => Ok(LocalTransactionState::Commit),
        Ok(State::Tombstone) => Ok(LocalTransactionState::Rollback),
        Err(error @ (FenceError::Contended(_) | FenceError::Forgotten(_))) => {
            let (transaction_id, key) = (half.transaction_id, life::text(half.key.as_deref()));
            tracing::warn!(%transaction_id, key, %error, "what became of it is not known yet");
            Ok(LocalTransactionState::Unknown)
        }
        Err(error) => Err(error),
    }
}

async fn bounded<T>(
    within: Duration,
    work: impl Future<Output = Result<T, FenceError>>,
) -> Result<T, FenceError> {
    timeout(within, work).await.unwrap_or(Err(FenceError::TimedOut(within)))
}

/// Makes sure that this transaction has a row, and says whose it is.
async fn close(
    db: &DatabaseConnection,
    id: TransactionId,
    wait: Duration,
) -> Result<State, FenceError> {
    let until = Instant::now() + wait;
    loop {
        let tx = begin_write(db).await?;
        let closed = close_in_tx(&tx, id, wait).await;
        if matches!(closed, Ok(Closed::Now)) {
            tx.commit().await?;
            return Ok(State::Tombstone);
        }
        // If it fails the connection is lost, and the transaction with it.
        drop(tx.rollback().await);
        match closed {
            Err(FenceError::Contended(_))
                if db.get_database_backend() == DbBackend::MySql
                    && Instant::now() + LOCK_POLL < until =>
            {
                sleep(LOCK_POLL).await;
            }
            Ok(Closed::Now) => return Ok(State::Tombstone),
            Ok(Closed::Before(state)) => return Ok(state),
            Err(error) => return Err(error),
        }
    }
}

enum Closed {
    /// By a tombstone of this transaction.
    Now,
    /// There is a row.
    Before(State),
}

async fn close_in_tx(
    tx: &DatabaseTransaction,
    id: TransactionId,
    wait: Duration,
) -> Result<Closed, FenceError> {
    set_lock_timeout_in_tx(tx, wait).await?;
    table::refuse_to_wait_in_tx(tx, id).await?;
    if !table::insert_in_tx(tx, id, State::Tombstone).await? {
        let state = table::lock_state_in_tx(tx, id).await?;
        return state.map(Closed::Before).ok_or(FenceError::Forgotten(id));
    }
    // Only now: what is cleaned away before the insert has moved the mark before that.
    if table::mark_in(tx).await?.covers(id) {
        return Err(FenceError::Forgotten(id));
    }
    tracing::debug!(transaction_id = %id, "the check-back shut a local transaction out");
    Ok(Closed::Now)
}

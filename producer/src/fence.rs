//! A fence of your own: the table `halfmsg_fence` keeps a check-back and its local transaction apart.
//!
//! For a local transaction that creates no row which could be its fence. [`enter_in_tx`] is its first
//! statement; [`check`] is the listener's answer. Of the two, whoever writes the row of the
//! transaction id first has decided: a check that finds none writes a tombstone, which the local
//! transaction cannot get past. So "not found" cannot become "committed" a moment later.
//!
//! On PostgreSQL, SQLite, MariaDB (tested with 10.11) and MySQL from 8.0 (by its documentation, not
//! tested), in the database of the local transaction (its primary: a replica that lags has no say). The table is made by `halfmsg_migrations::producer`.
//! Rows are deleted by [`clean`] only, which leaves a mark; a half that is older than the mark and
//! has no row is unknown for ever, and its local transaction is refused. A table that was emptied by
//! other means has lost its mark: nobody enters, and every check is unknown, until the mark is there
//! again, with the present as its moment. The fence lasts as long as the database's commits do.
//!
//! ```no_run
//! use halfmsg_producer::fence::{self, FenceOptions};
//! use halfmsg_producer::{HalfMessage, ListenerResult, LocalTransactionState, TransactionListener};
//! use sea_orm::{ConnectionTrait, DatabaseConnection, DbBackend, Statement};
//!
//! struct Bookings {
//!     db: DatabaseConnection,
//! }
//!
//! #[async_trait::async_trait]
//! impl TransactionListener for Bookings {
//!     type Arg = String; // the room
//!
//!     async fn execute_local_transaction(
//!         &self,
//!         half: &HalfMessage,
//!         room: String,
//!     ) -> ListenerResult<LocalTransactionState> {
//!         let tx = fence::begin_write(&self.db).await?;
//!         fence::enter_in_tx(&tx, half.local_transaction_id).await?; // an error: dropping tx rolls it back
//!         let book = "UPDATE room SET booked = booked + 1 WHERE name = $1";
//!         let book = Statement::from_sql_and_values(DbBackend::Postgres, book, [room.into()]);
//!         tx.execute_raw(book).await?;
//!         tx.commit().await?;
//!         Ok(LocalTransactionState::Commit)
//!     }
//!
//!     async fn check_local_transaction(
//!         &self,
//!         half: &HalfMessage,
//!     ) -> ListenerResult<LocalTransactionState> {
//!         fence::check_one(&self.db, half, FenceOptions::default()).await
//!     }
//!
//!     async fn check_local_transactions(
//!         &self,
//!         halves: &[HalfMessage],
//!     ) -> Vec<ListenerResult<LocalTransactionState>> {
//!         fence::check(&self.db, halves, FenceOptions::default()).await
//!     }
//! }
//! ```
//!
//! # Layout
//! - this file: entering, and what can go wrong
//! - `check`: the check-back's side
//! - `clean`: forgetting old rows
//! - `table`: the statements

mod check;
mod clean;
mod table;

use std::time::Duration;

use halfmsg_db::DbFault;
use halfmsg_protocol::TransactionId;
use sea_orm::{DatabaseTransaction, DbErr};

pub use check::{FenceOptions, check, check_one};
pub use clean::{CLEAN_BATCH, MAX_CLEAN_BATCHES, MIN_RETENTION, clean};
pub use halfmsg_db::begin_write;

use table::State;

/// Why the fence was not entered, or does not tell.
#[derive(Debug, Clone, thiserror::Error)]
pub enum FenceError {
    /// A check-back has answered that this local transaction never commits. Roll it back; its
    /// message is dropped.
    #[error("{0} is fenced: a check-back has answered for it already; roll back")]
    Fenced(TransactionId),
    /// This local transaction has committed before. Roll the database's transaction back, and leave
    /// the message to its check, which commits it: to roll the message back would drop the first one,
    /// of which it is a copy.
    #[error(
        "{0} has committed before: roll the database's transaction back, and leave the message to its \
         check"
    )]
    AlreadyEntered(TransactionId),
    /// What happened before to a transaction as old as this one has been cleaned away. Roll back.
    #[error("{0} is older than what the fence remembers: roll back")]
    Forgotten(TransactionId),
    /// Somebody else holds a lock for too long, or this transaction was chosen to make way. Roll
    /// back; a check may be repeated.
    #[error("the fence is busy: {0}")]
    Contended(DbErr),
    /// The database is away or overloaded. Roll back; a check may be repeated.
    #[error("the database of the fence is unavailable: {0}")]
    Unavailable(DbErr),
    /// No answer in time. A tombstone may have been written; a check may be repeated.
    #[error("the fence did not answer within {0:?}")]
    TimedOut(Duration),
    /// Neither waiting nor repeating helps: the table is missing, or not the fence's.
    #[error("the database refuses the fence: {0}; run the migration of halfmsg_fence")]
    Refused(DbErr),
    /// The table was emptied by other means than [`clean`], so that it cannot tell what never was
    /// from what was deleted.
    #[error(
        "the mark is missing from halfmsg_fence: the table was emptied; insert the nil transaction \
         id with state 'cleaned' and the present as created_at"
    )]
    NoMark,
    /// Too short a retention: halves may still be open.
    #[error("a retention of {0:?} is too short: at least {MIN_RETENTION:?}")]
    Retention(Duration),
}

impl FenceError {
    /// Whether the same check, or a new attempt at the local transaction, may succeed later.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Contended(_) | Self::Unavailable(_) | Self::TimedOut(_))
    }
}

impl From<DbErr> for FenceError {
    fn from(error: DbErr) -> Self {
        match DbFault::of(&error) {
            DbFault::Unavailable => Self::Unavailable(error),
            DbFault::Contended => Self::Contended(error),
            DbFault::UniqueViolation | DbFault::Other => Self::Refused(error),
        }
    }
}

/// Enters the fence: the first statement of the local transaction of this half.
///
/// If the transaction commits, every check answers `Commit`; if it is rolled back, the row is gone
/// with it, and a check shuts it out. Waits for a check that is writing its tombstone, as long as the
/// database lets a statement wait for a lock.
///
/// Begin the transaction with [`begin_write`]: SeaORM's own `begin`, cancelled on MySQL or MariaDB,
/// can give a connection back with a transaction that nobody ends. Under REPEATABLE READ it is
/// correct too as long as this is the first statement. Cancelled, roll back.
///
/// # Errors
/// [`FenceError`]. Whatever it is, the transaction must be rolled back: it is not entered.
pub async fn enter_in_tx(
    tx: &DatabaseTransaction,
    transaction_id: TransactionId,
) -> Result<(), FenceError> {
    if table::insert_in_tx(tx, transaction_id, State::Entered).await? {
        // Only now: what is cleaned away before the insert has moved the mark before that.
        return match table::mark_in(tx).await? {
            mark if mark.covers(transaction_id) => Err(FenceError::Forgotten(transaction_id)),
            _ => Ok(()),
        };
    }
    Err(match table::lock_state_in_tx(tx, transaction_id).await? {
        Some(State::Tombstone) => FenceError::Fenced(transaction_id),
        Some(State::Entered) => FenceError::AlreadyEntered(transaction_id),
        // It was there a statement ago: only cleaning deletes.
        None => FenceError::Forgotten(transaction_id),
    })
}

//! The database as halfmsg uses it: PostgreSQL, MySQL, MariaDB or SQLite, through SeaORM.
//!
//! It knows no table; it must never retry anything by itself, because only the caller knows
//! whether a repetition is harmless.
//!
//! # Layout
//! - [`connect`](connect()): opens a pool, waiting a bounded time for a server that is starting
//! - [`fault`]: [`DbFault`], what an error means for the caller
//! - [`tx`]: [`begin_write`] and what is set inside a transaction
//! - [`turn`]: the queue of SQLite's writers
//! - [`now`]: the present, in the precision that every database keeps

mod connect;
pub mod fault;
pub mod turn;
pub mod tx;

pub use connect::{ConnectError, DbOptions, connect, most_connections, redacted};
pub use fault::DbFault;
pub use turn::{Turn, writers_turn};
pub use tx::{begin_write, set_lock_timeout_in_tx, set_timeouts_in_tx};

use chrono::{DateTime, SubsecRound, Utc};

/// The present, cut to microseconds: what is written is then what will be read, on any
/// database, so that a timestamp can be compared and used in a cursor.
pub fn now() -> DateTime<Utc> {
    Utc::now().trunc_subsecs(6)
}

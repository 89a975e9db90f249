//! Write transactions.

use std::time::Duration;

use sea_orm::{
    ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbBackend, DbErr, IsolationLevel,
    RuntimeErr, SqliteTransactionMode, TransactionOptions, TransactionTrait,
};

use crate::turn::{Turn, writers_turn};

/// Begins a transaction that is going to write.
///
/// PostgreSQL, MySQL and MariaDB: READ COMMITTED, said explicitly, because a server may be
/// configured otherwise (the latter two are by default) and the barriers rely on a statement seeing
/// what was committed before it. SQLite: BEGIN IMMEDIATE,
/// because a deferred transaction that reads first and writes then fails with SQLITE_BUSY at
/// once, without waiting for its busy timeout; and the writers of a pool come one after the other.
///
/// Dropping the transaction rolls it back; cancelled, nothing is left open.
///
/// # Errors
/// [`DbFault::Contended`](crate::DbFault) when SQLite's writer does not make way in time.
pub async fn begin_write(connection: &DatabaseConnection) -> Result<DatabaseTransaction, DbErr> {
    let options = match connection.get_database_backend() {
        DbBackend::Sqlite => TransactionOptions {
            sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate),
            ..Default::default()
        },
        _ => TransactionOptions {
            isolation_level: Some(IsolationLevel::ReadCommitted),
            ..Default::default()
        },
    };
    match connection.get_database_backend() {
        DbBackend::Postgres => connection.begin_with_options(options).await,
        _ => {
            let turn = writers_turn(connection).await;
            begin_apart(connection.clone(), options, turn).await
        }
    }
}

/// In a task of its own, which nobody cancels. MySQL's driver knows of a transaction only when BEGIN
/// is answered: given up before that, the connection goes back to its pool inside a transaction, and
/// what the next one writes with it is not committed. A BEGIN of SQLite that is given up goes on
/// waiting for the writer: until it ends nobody else of its pool asks.
async fn begin_apart(
    connection: DatabaseConnection,
    options: TransactionOptions,
    turn: Turn,
) -> Result<DatabaseTransaction, DbErr> {
    let begun = tokio::spawn(async move {
        let begun = connection.begin_with_options(options).await;
        drop(turn);
        begun
    });
    // It panicked, or the runtime is shutting down.
    let ended = |error| Err(DbErr::Conn(RuntimeErr::Internal(format!("BEGIN: {error}"))));
    begun.await.unwrap_or_else(ended)
}

/// Bounds how long each later statement of this transaction waits for a lock (PostgreSQL).
///
/// MySQL and MariaDB have no such setting for one transaction, and this does nothing: who must not
/// wait there asks with NOWAIT first.
///
/// SQLite knows one lock only, taken by [`begin_write`]; its wait is the pool's
/// `sqlite_busy_timeout`, and this does nothing.
///
/// # Errors
/// What the database says.
pub async fn set_lock_timeout_in_tx(
    transaction: &DatabaseTransaction,
    timeout: Duration,
) -> Result<(), DbErr> {
    if transaction.get_database_backend() == DbBackend::Postgres {
        let set = format!("SET LOCAL lock_timeout = {}", millis(timeout));
        transaction.execute_unprepared(&set).await?;
    }
    Ok(())
}

/// The same, and bounds how long this transaction stays open without a statement (PostgreSQL): then the
/// server ends its connection, and whoever waits for its locks goes on, also where this process stands still
/// or its machine is gone. Whatever the pool's `idle_transaction_timeout` is.
///
/// # Errors
/// What the database says.
pub async fn set_timeouts_in_tx(
    transaction: &DatabaseTransaction,
    lock: Duration,
    idle: Duration,
) -> Result<(), DbErr> {
    if transaction.get_database_backend() == DbBackend::Postgres {
        let (lock, idle) = (millis(lock), millis(idle));
        let set = format!(
            "SET LOCAL lock_timeout = {lock}; \
             SET LOCAL idle_in_transaction_session_timeout = {idle}"
        );
        transaction.execute_unprepared(&set).await?;
    }
    Ok(())
}

/// As PostgreSQL takes a time; 0 would mean no limit at all.
pub(crate) fn millis(time: Duration) -> u128 {
    time.as_millis().clamp(1, i32::MAX as u128)
}

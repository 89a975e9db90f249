//! Writers of SQLite, one after the other in the order in which they came.
//!
//! SQLite has one writer, and no queue for the others: each looks again at intervals that grow to
//! 100 ms, so that under contention the one who has waited longest looks least often, and some never
//! come to it. Here only the first of a pool asks SQLite; the others wait behind it, and hold neither a
//! connection nor a thread meanwhile. [`begin_write`](crate::begin_write) does so by itself; a single
//! statement that writes without a transaction takes its turn by [`writers_turn`], or it would be the one
//! that looks least often. It must never be what keeps a writer out: who has waited for the busy timeout
//! asks SQLite itself.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use sea_orm::sqlx::SqlitePool;
use sea_orm::sqlx::sqlite::SqliteConnectOptions;
use sea_orm::{DatabaseConnection, DatabaseConnectionType};
use tokio::sync::OwnedMutexGuard;
use tokio::time::timeout;

/// A writer's turn, to be held until SQLite has answered.
#[derive(Debug)]
#[must_use = "it is over when this is dropped"]
pub struct Turn {
    _first: Option<OwnedMutexGuard<()>>,
}

struct Queue {
    /// What tells a pool from another, and from one that is gone.
    pool: Weak<SqliteConnectOptions>,
    turns: Arc<tokio::sync::Mutex<()>>,
    longest: Duration,
}

/// As many as the process has pools.
static QUEUES: Mutex<Vec<Queue>> = Mutex::new(Vec::new());

/// Writers of this pool wait in turn from now on, up to `longest`.
pub(crate) fn queue_up(connection: &DatabaseConnection, longest: Duration) {
    let Some(pool) = sqlite(connection) else { return };
    let pool = Arc::downgrade(&pool.connect_options());
    let mut queues = QUEUES.lock().unwrap_or_else(PoisonError::into_inner);
    queues.retain(|queue| queue.pool.strong_count() > 0);
    queues.push(Queue { pool, turns: Arc::default(), longest });
}

/// Waits until the writers before this one have begun, at most for the busy timeout; not at all on other
/// databases. Cancelled, it leaves the queue.
///
/// Nothing may be begun with [`begin_write`](crate::begin_write) while it is held: that waits for a turn
/// of its own.
pub async fn writers_turn(connection: &DatabaseConnection) -> Turn {
    match sqlite(connection).and_then(queue_of) {
        Some((turns, longest)) => Turn { _first: timeout(longest, turns.lock_owned()).await.ok() },
        None => Turn { _first: None },
    }
}

fn queue_of(pool: &SqlitePool) -> Option<(Arc<tokio::sync::Mutex<()>>, Duration)> {
    let options = pool.connect_options();
    let queues = QUEUES.lock().unwrap_or_else(PoisonError::into_inner);
    let of = queues.iter().find(|queue| std::ptr::eq(queue.pool.as_ptr(), Arc::as_ptr(&options)));
    of.map(|queue| (Arc::clone(&queue.turns), queue.longest))
}

fn sqlite(connection: &DatabaseConnection) -> Option<&SqlitePool> {
    matches!(connection.inner, DatabaseConnectionType::SqlxSqlitePoolConnection(_))
        .then(|| connection.get_sqlite_connection_pool())
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use sea_orm::ConnectionTrait;
    use tokio::task::JoinSet;

    use crate::{DbOptions, begin_write, connect};

    use super::*;

    /// Longer than any writer here has to wait.
    const PATIENCE: Duration = Duration::from_secs(60);

    async fn database(busy: Duration) -> (tempfile::TempDir, DatabaseConnection) {
        let directory = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", directory.path().join("a.db").display());
        let options = DbOptions {
            sqlite_busy_timeout: busy,
            acquire_timeout: PATIENCE,
            ..DbOptions::default()
        };
        let database = connect(&url, &options).await.unwrap();
        database.execute_unprepared("CREATE TABLE came (number INTEGER)").await.unwrap();
        (directory, database)
    }

    #[tokio::test]
    async fn writers_write_in_the_order_in_which_they_came() {
        let (_directory, database) = database(PATIENCE).await;
        let holder = begin_write(&database).await.unwrap();
        let mut writers = JoinSet::new();
        let mut waiting = Vec::new();
        for number in 0..40 {
            let database = database.clone();
            let mut writer = Box::pin(async move {
                let insert = format!("INSERT INTO came VALUES ({number})");
                if number % 3 == 0 {
                    let _turn = writers_turn(&database).await;
                    database.execute_unprepared(&insert).await.unwrap();
                    return;
                }
                let transaction = begin_write(&database).await.unwrap();
                transaction.execute_unprepared(&insert).await.unwrap();
                transaction.commit().await.unwrap();
            });
            // It takes its place in the queue, or before SQLite.
            assert!(polled(&mut writer).await.is_pending());
            waiting.push(writer);
        }
        for writer in waiting {
            writers.spawn(writer);
        }
        holder.commit().await.unwrap();
        timeout(PATIENCE, writers.join_all()).await.unwrap();
        let sql = "SELECT group_concat(number, ' ') FROM came";
        let row = database
            .query_one_raw(sea_orm::Statement::from_string(sea_orm::DbBackend::Sqlite, sql));
        let came: String = row.await.unwrap().unwrap().try_get_by_index(0).unwrap();
        let expected: Vec<String> = (0..40).map(|number: i32| number.to_string()).collect();
        assert_eq!(came, expected.join(" "));
    }

    #[tokio::test]
    async fn who_gives_up_holds_up_nobody_and_a_long_wait_ends() {
        let (_directory, database) = database(Duration::from_millis(50)).await;
        let holder = begin_write(&database).await.unwrap();
        let mut first = Box::pin(begin_write(&database));
        let mut second = Box::pin(begin_write(&database));
        assert!(polled(&mut first).await.is_pending());
        assert!(polled(&mut second).await.is_pending());
        drop(first);
        let began = Instant::now();
        assert!(timeout(PATIENCE, second).await.unwrap().is_err(), "the holder has not ended");
        assert!(began.elapsed() < PATIENCE);
        holder.rollback().await.unwrap();
        let third = timeout(PATIENCE, begin_write(&database)).await.unwrap().unwrap();
        third.rollback().await.unwrap();
    }

    /// Polls once.
    async fn polled<T>(work: &mut (impl Future<Output = T> + Unpin)) -> std::task::Poll<T> {
        std::future::poll_fn(|context| {
            std::task::Poll::Ready(std::pin::Pin::new(&mut *work).poll(context))
        })
        .await
    }
}

//! Opens a pool of connections.

use std::time::Duration;

use sea_orm::sqlx::Executor;
use sea_orm::sqlx::sqlite::{SqliteJournalMode, SqliteSynchronous};
use sea_orm::{ConnectOptions, Database, DatabaseConnection, DbErr};
use tokio::time::{Instant, sleep};

use crate::fault::DbFault;
use crate::turn;

/// The bounds of a pool. All of them have a default.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DbOptions {
    /// At most this many connections.
    pub max_connections: u32,
    /// How long a request waits for a free connection, or for one to be made.
    pub acquire_timeout: Duration,
    /// How long a writer of SQLite waits for its turn among those of its pool, and then for the
    /// others.
    pub sqlite_busy_timeout: Duration,
    /// After this time PostgreSQL cancels a statement, and MySQL and MariaDB end a statement's wait
    /// for a lock (in whole seconds, rounded up); zero leaves it to the server's configuration.
    pub statement_timeout: Duration,
    /// How long [`connect()`] waits for a server that is not there yet.
    pub start_deadline: Duration,
    /// What PostgreSQL lists as the connection's application.
    pub application: String,
}

impl Default for DbOptions {
    fn default() -> Self {
        Self {
            max_connections: 10,
            acquire_timeout: Duration::from_secs(2),
            sqlite_busy_timeout: Duration::from_secs(5),
            statement_timeout: Duration::from_secs(10),
            start_deadline: Duration::from_secs(60),
            application: "halfmsg".into(),
        }
    }
}

/// Why there is no pool.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// None of the databases that are known here.
    #[error(
        "DATABASE_URL '{0}' is not understood: use postgres://user:password@host:5432/name, \
         mysql://user:password@host:3306/name or sqlite:///path/to/file.db"
    )]
    Unsupported(String),
    /// The server refuses this user, password or database name.
    #[error("the database at {url} refuses the connection: {source}")]
    Refused {
        /// The address without its password.
        url: String,
        /// What the server said.
        source: DbErr,
    },
    /// Nothing answered within the deadline.
    #[error("the database at {url} did not answer within {waited:?}: {source}")]
    Away {
        /// The address without its password.
        url: String,
        /// The deadline.
        waited: Duration,
        /// The last error.
        source: DbErr,
    },
}

/// The first pause between two attempts at start; it doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause between two attempts at start.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// The addresses that [`connect()`] takes.
const SCHEMES: &[&str] = &["postgres://", "postgresql://", "mysql://", "sqlite:"];

/// Opens a pool on `postgres://`, `postgresql://`, `mysql://` (MariaDB too) or `sqlite:` and waits, up to
/// `start_deadline`, for a server that is still starting.
///
/// SQLite's file is created if it is missing, and runs in WAL mode with `synchronous=FULL`,
/// because a committed outcome must survive the loss of power. Cancelling leaves nothing behind.
///
/// # Errors
/// [`ConnectError`], whose text never contains the password.
pub async fn connect(url: &str, options: &DbOptions) -> Result<DatabaseConnection, ConnectError> {
    let shown = redacted(url);
    if !SCHEMES.iter().any(|known| url.starts_with(known)) {
        return Err(ConnectError::Unsupported(shown));
    }
    let deadline = Instant::now() + options.start_deadline;
    let mut pause = FIRST_PAUSE;
    loop {
        let source = match Database::connect(pool_options(url, options)).await {
            Ok(connection) => {
                turn::queue_up(&connection, options.sqlite_busy_timeout);
                return Ok(connection);
            }
            Err(error) => error,
        };
        if !DbFault::of(&source).is_transient() {
            return Err(ConnectError::Refused { url: shown, source });
        }
        if Instant::now() + pause >= deadline {
            let waited = options.start_deadline;
            return Err(ConnectError::Away { url: shown, waited, source });
        }
        tracing::info!(database = %shown, error = %source, "waiting for the database");
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

fn pool_options(url: &str, options: &DbOptions) -> ConnectOptions {
    let mut pool = ConnectOptions::new(url);
    pool.max_connections(options.max_connections)
        .min_connections(1)
        .acquire_timeout(options.acquire_timeout)
        .sqlx_logging(false)
        .record_stmt_in_spans(false)
        .set_application_name(options.application.clone());
    if !options.statement_timeout.is_zero() {
        pool.statement_timeout(options.statement_timeout);
        bound_lock_waits(&mut pool, options.statement_timeout);
    }
    let busy_timeout = options.sqlite_busy_timeout;
    pool.map_sqlx_sqlite_opts(move |sqlite| {
        sqlite
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(busy_timeout)
    });
    pool
}

/// After so long without a statement MySQL and MariaDB close a connection. Their driver may wait for
/// ever for the answer to a statement whose caller has gone away in the middle (sqlx 0.9, which
/// pings what comes back to the pool): without a bound each such connection is lost to its pool.
const SILENT_SECONDS: u64 = 20;

/// MySQL waits for a lock 50 s by default, and longer than anybody who asked.
fn bound_lock_waits(pool: &mut ConnectOptions, timeout: Duration) {
    let seconds = timeout.as_secs() + u64::from(timeout.subsec_nanos() > 0);
    pool.map_sqlx_mysql_pool_opts(move |mysql| {
        mysql.after_connect(move |connection, _| {
            Box::pin(async move {
                let set = format!(
                    "SET SESSION innodb_lock_wait_timeout = {seconds}, wait_timeout = {SILENT_SECONDS}"
                );
                connection.execute(sea_orm::sqlx::AssertSqlSafe(set)).await.map(|_| ())
            })
        })
    });
}

/// The address without its password and without its query, fit for a log.
pub fn redacted(url: &str) -> String {
    let url = url.split_once('?').map_or(url, |(head, _)| head);
    let Some((scheme, rest)) = url.split_once("://") else {
        return url.to_owned();
    };
    // The last '@', because an unescaped password may contain one.
    match rest.rsplit_once('@') {
        Some((credentials, host)) => {
            let user = credentials.split_once(':').map_or(credentials, |(user, _)| user);
            format!("{scheme}://{user}@{host}")
        }
        None => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use sea_orm::ConnectionTrait;

    use super::*;
    use crate::{begin_write, set_lock_timeout_in_tx};

    #[test]
    fn never_shows_a_password() {
        assert_eq!(redacted("postgres://me:se@cret@db:5432/x?a=b"), "postgres://me@db:5432/x");
        assert_eq!(redacted("postgres://db/x?password=secret"), "postgres://db/x");
        assert_eq!(redacted("sqlite:///tmp/x.db"), "sqlite:///tmp/x.db");
    }

    #[tokio::test]
    async fn refuses_what_it_does_not_know() {
        let error = connect("oracle://me:secret@h/x", &DbOptions::default()).await.unwrap_err();
        assert!(matches!(error, ConnectError::Unsupported(_)));
        assert!(!error.to_string().contains("secret"));
    }

    #[tokio::test]
    async fn gives_up_on_a_server_that_is_not_there() {
        let options = DbOptions {
            start_deadline: Duration::from_millis(300),
            acquire_timeout: Duration::from_millis(100),
            ..DbOptions::default()
        };
        let error = connect("postgres://me:secret@127.0.0.1:1/x", &options).await.unwrap_err();
        assert!(matches!(error, ConnectError::Away { .. }), "{error}");
        assert!(!error.to_string().contains("secret"));
    }

    #[tokio::test]
    async fn sqlite_is_durable_and_a_second_writer_is_contended() {
        let directory = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", directory.path().join("a.db").display());
        let options =
            DbOptions { sqlite_busy_timeout: Duration::from_millis(50), ..DbOptions::default() };
        let connection = connect(&url, &options).await.unwrap();
        for (pragma, wanted) in [("journal_mode", "wal"), ("synchronous", "2")] {
            let row = connection
                .query_one_raw(sea_orm::Statement::from_string(
                    sea_orm::DbBackend::Sqlite,
                    format!("SELECT CAST({pragma} AS TEXT) FROM pragma_{pragma}"),
                ))
                .await
                .unwrap()
                .unwrap();
            assert_eq!(row.try_get_by_index::<String>(0).unwrap(), wanted, "{pragma}");
        }
        let first = begin_write(&connection).await.unwrap();
        set_lock_timeout_in_tx(&first, Duration::from_millis(10)).await.unwrap();
        let error = begin_write(&connection).await.unwrap_err();
        assert_eq!(DbFault::of(&error), DbFault::Contended, "{error}");
        first.rollback().await.unwrap();
        begin_write(&connection).await.unwrap().commit().await.unwrap();
    }
}

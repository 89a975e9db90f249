//! Opens a pool of connections.

use std::time::Duration;

use sea_orm::sqlx::Executor;
use sea_orm::sqlx::sqlite::{SqliteJournalMode, SqliteSynchronous};
use sea_orm::{ConnectOptions, Database, DatabaseConnection, DatabaseConnectionType, DbErr};
use tokio::time::{Instant, sleep};

use crate::fault::DbFault;
use crate::{turn, tx};

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
    /// After this time without a statement inside a transaction PostgreSQL ends the connection, and with it
    /// what the transaction has locked: its process may stand still, or its machine be gone. It must be longer
    /// than whatever a program does between two statements; a consumer's attempts have a bound of their own,
    /// `attempt_deadline` and 5 s. Zero leaves it to the server's configuration. MySQL and MariaDB end a
    /// connection after 20 s without a statement.
    pub idle_transaction_timeout: Duration,
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
            idle_transaction_timeout: Duration::from_secs(60),
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

/// At most how many connections this pool has.
pub fn most_connections(connection: &DatabaseConnection) -> u32 {
    let most = match connection.inner {
        DatabaseConnectionType::SqlxPostgresPoolConnection(_) => {
            connection.get_postgres_connection_pool().options().get_max_connections()
        }
        DatabaseConnectionType::SqlxMySqlPoolConnection(_) => {
            connection.get_mysql_connection_pool().options().get_max_connections()
        }
        DatabaseConnectionType::SqlxSqlitePoolConnection(_) => {
            connection.get_sqlite_connection_pool().options().get_max_connections()
        }
        // None of those that `connect` makes.
        _ => 1,
    };
    most.max(1)
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
    }
    bound_silence(&mut pool, options.idle_transaction_timeout);
    bound_mysql_waits(&mut pool, options.statement_timeout);
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

/// What PostgreSQL asks of a client that says nothing: after 30 s, and three times more at intervals of 10 s.
/// The default of an operating system is two hours, for which a machine that has lost its power would keep
/// what its connections have locked.
const KEEPALIVES: [(&str, &str); 3] = [
    ("tcp_keepalives_idle", "30"),
    ("tcp_keepalives_interval", "10"),
    ("tcp_keepalives_count", "3"),
];

/// A process that stands still, or whose machine is gone, keeps no lock for longer than this.
fn bound_silence(pool: &mut ConnectOptions, timeout: Duration) {
    pool.map_sqlx_postgres_opts(move |postgres| {
        let postgres = postgres.options(KEEPALIVES);
        if timeout.is_zero() {
            return postgres;
        }
        postgres.options([("idle_in_transaction_session_timeout", tx::millis(timeout))])
    });
}

/// After so long without a statement MySQL and MariaDB close a connection, also one inside a transaction,
/// which then keeps no lock. And their driver may wait for ever for the answer to a statement whose caller
/// has gone away in the middle (sqlx 0.9, which pings what comes back to the pool): without a bound each such
/// connection is lost to its pool.
const SILENT_SECONDS: u64 = 20;

/// MySQL waits for a lock 50 s by default, and longer than anybody who asked.
fn bound_mysql_waits(pool: &mut ConnectOptions, lock_wait: Duration) {
    let mut set = format!("SET SESSION wait_timeout = {SILENT_SECONDS}");
    if !lock_wait.is_zero() {
        let seconds = lock_wait.as_secs() + u64::from(lock_wait.subsec_nanos() > 0);
        set.push_str(&format!(", innodb_lock_wait_timeout = {seconds}"));
    }
    pool.map_sqlx_mysql_pool_opts(move |mysql| {
        let set = set.clone();
        mysql.after_connect(move |connection, _| {
            let set = set.clone();
            Box::pin(async move {
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
        let options = DbOptions {
            sqlite_busy_timeout: Duration::from_millis(50),
            acquire_timeout: Duration::from_secs(60),
            ..DbOptions::default()
        };
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

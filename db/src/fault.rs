//! What a database error means for the caller.

use sea_orm::sqlx;
use sea_orm::{DbErr, RuntimeErr, SqlErr};

/// The four things that a caller can do something about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DbFault {
    /// The database is away, full, starting or overloaded: wait and try again. Whether the
    /// statement took effect is unknown if it was a commit.
    Unavailable,
    /// Somebody else holds a lock for too long, or this transaction was chosen to make way:
    /// nothing happened; try again.
    Contended,
    /// The row is there already.
    UniqueViolation,
    /// A mistake in the statement or in the data: trying again does not help.
    Other,
}

/// SQLSTATE codes after which nothing happened and a repetition can succeed: serialization
/// failure, deadlock, lock not available, statement cancelled by its timeout.
const CONTENDED_STATES: &[&str] = &["40001", "40P01", "55P03", "57014"];

/// SQLSTATE classes of a server that cannot work now: connection, resources, operator
/// intervention (shutdown, starting up), system error.
const UNAVAILABLE_CLASSES: &[&str] = &["08", "53", "57", "58"];

/// Of these classes, a bound that one statement has run into (`temp_file_limit`, say): it always will.
const LIMIT_STATE: &str = "53400";

/// Writes refused because the server is a standby: a failover is under way.
const READ_ONLY_STATE: &str = "25006";

/// The server has ended a transaction that was silent, or open, for too long, and its connection.
const ENDED_STATES: &[&str] = &["25P03", "25P04"];

/// MySQL's and MariaDB's error numbers of the same, where the SQLSTATE does not tell: lock wait
/// timeout (MariaDB's NOWAIT too), deadlock, MySQL's NOWAIT, statement interrupted or cancelled by
/// its timeout, and a snapshot that another transaction has overtaken.
const MYSQL_CONTENDED: &[u16] = &[1205, 1213, 3572, 1317, 3024, 1969, 1020];

/// The same for a server that cannot work now: full (table, disk), no more connections for this
/// user, read-only, connection killed.
const MYSQL_UNAVAILABLE: &[u16] = &[1021, 1114, 1203, 1226, 1290, 1836, 1927];

/// SQLite's primary result codes BUSY and LOCKED.
const SQLITE_CONTENDED: &[i32] = &[5, 6];

/// SQLite's primary result codes IOERR, FULL and CANTOPEN.
const SQLITE_UNAVAILABLE: &[i32] = &[10, 13, 14];

/// What sqlx says of a statement with more values than the protocol counts: it never reached the
/// server, and never will.
const TOO_MANY_ARGUMENTS: &str = "too many arguments for query";

impl DbFault {
    /// Classifies an error.
    pub fn of(error: &DbErr) -> Self {
        if matches!(error.sql_err(), Some(SqlErr::UniqueConstraintViolation(_))) {
            return Self::UniqueViolation;
        }
        match error {
            DbErr::ConnectionAcquire(_) => Self::Unavailable,
            DbErr::Conn(RuntimeErr::SqlxError(source))
            | DbErr::Exec(RuntimeErr::SqlxError(source))
            | DbErr::Query(RuntimeErr::SqlxError(source)) => Self::of_sqlx(source),
            DbErr::Conn(RuntimeErr::Internal(_)) => Self::Unavailable,
            _ => Self::Other,
        }
    }

    /// Whether waiting and repeating can help.
    pub fn is_transient(self) -> bool {
        matches!(self, Self::Unavailable | Self::Contended)
    }

    fn of_sqlx(error: &sqlx::Error) -> Self {
        match error {
            sqlx::Error::Database(source) => {
                let code = source.code().unwrap_or_default();
                if source.try_downcast_ref::<sqlx::sqlite::SqliteError>().is_some() {
                    Self::of_sqlite(code.parse().unwrap_or_default())
                } else if let Some(mysql) =
                    source.try_downcast_ref::<sqlx::mysql::MySqlDatabaseError>()
                {
                    Self::of_mysql(mysql.number(), &code)
                } else {
                    Self::of_sqlstate(&code)
                }
            }
            // The driver's own refusal of a statement, in the same words as a broken connection.
            sqlx::Error::Protocol(text) if text.contains(TOO_MANY_ARGUMENTS) => Self::Other,
            sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::Protocol(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::WorkerCrashed => Self::Unavailable,
            _ => Self::Other,
        }
    }

    fn of_sqlite(extended: i32) -> Self {
        let primary = extended & 0xff;
        if SQLITE_CONTENDED.contains(&primary) {
            Self::Contended
        } else if SQLITE_UNAVAILABLE.contains(&primary) {
            Self::Unavailable
        } else {
            Self::Other
        }
    }

    fn of_mysql(number: u16, code: &str) -> Self {
        if MYSQL_CONTENDED.contains(&number) {
            Self::Contended
        } else if MYSQL_UNAVAILABLE.contains(&number) {
            Self::Unavailable
        } else {
            Self::of_sqlstate(code)
        }
    }

    fn of_sqlstate(code: &str) -> Self {
        if CONTENDED_STATES.contains(&code) {
            Self::Contended
        } else if code == READ_ONLY_STATE
            || ENDED_STATES.contains(&code)
            || (code != LIMIT_STATE
                && UNAVAILABLE_CLASSES.iter().any(|class| code.starts_with(class)))
        {
            Self::Unavailable
        } else {
            Self::Other
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_sqlstates() {
        for code in ["40001", "40P01", "55P03", "57014"] {
            assert_eq!(DbFault::of_sqlstate(code), DbFault::Contended, "{code}");
        }
        for code in ["08006", "53300", "57P01", "57P03", "25006", "25P03", "25P04"] {
            assert_eq!(DbFault::of_sqlstate(code), DbFault::Unavailable, "{code}");
        }
        for code in ["42601", "23514", "53400", ""] {
            assert_eq!(DbFault::of_sqlstate(code), DbFault::Other, "{code}");
        }
    }

    #[test]
    fn a_statement_that_the_driver_refuses_is_not_a_database_that_is_away() {
        let text = "PgConnection::run(): too many arguments for query: 70000";
        let refused = sqlx::Error::Protocol(text.into());
        assert_eq!(DbFault::of_sqlx(&refused), DbFault::Other);
        let broken = sqlx::Error::Protocol("unexpected message".into());
        assert_eq!(DbFault::of_sqlx(&broken), DbFault::Unavailable);
    }

    #[test]
    fn reads_mysql_numbers() {
        for (number, state) in [(1205, "HY000"), (1213, "40001"), (3572, "HY000")] {
            assert_eq!(DbFault::of_mysql(number, state), DbFault::Contended, "{number}");
        }
        for (number, state) in [(1040, "08004"), (1114, "HY000"), (1290, "HY000")] {
            assert_eq!(DbFault::of_mysql(number, state), DbFault::Unavailable, "{number}");
        }
        for (number, state) in [(1045, "28000"), (1064, "42000"), (4025, "23000")] {
            assert_eq!(DbFault::of_mysql(number, state), DbFault::Other, "{number}");
        }
    }

    #[test]
    fn reads_extended_sqlite_codes() {
        assert_eq!(DbFault::of_sqlite(5), DbFault::Contended);
        assert_eq!(DbFault::of_sqlite(517), DbFault::Contended, "BUSY_SNAPSHOT");
        assert_eq!(DbFault::of_sqlite(262), DbFault::Contended, "LOCKED_SHAREDCACHE");
        assert_eq!(DbFault::of_sqlite(13), DbFault::Unavailable);
        assert_eq!(DbFault::of_sqlite(275), DbFault::Other, "CONSTRAINT_CHECK");
    }
}

//! A database of one case's own.

use halfmsg_service_kit::db::{DbOptions, connect};
use sea_orm::{ConnectionTrait, DatabaseConnection};
use tempfile::TempDir;
use uuid::Uuid;

use super::PATIENCE;

/// Which database it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A file in a temporary directory.
    Sqlite,
    /// A new database on the server that DATABASE_URL names.
    Postgres,
    /// A new database on the server that MARIADB_URL names.
    Mariadb,
}

/// An empty database; it is gone when dropped.
pub(crate) struct Database {
    url: String,
    _place: Place,
}

#[expect(dead_code, reason = "held until the end, for what dropping it removes")]
enum Place {
    Directory(TempDir),
    Server(OnServer),
}

/// A database on a server that is not ours.
struct OnServer {
    server: String,
    drop: String,
}

impl Database {
    /// An empty one.
    pub(crate) async fn new(kind: Kind) -> Self {
        match kind {
            Kind::Sqlite => Self::sqlite(),
            Kind::Postgres => {
                let drop = |name: &str| format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)");
                Self::on_server("DATABASE_URL", "postgres", drop).await
            }
            Kind::Mariadb => {
                // A transaction that a failed test left open would hold it for a day.
                let set = "SET STATEMENT lock_wait_timeout = 10 FOR";
                let drop = |name: &str| format!("{set} DROP DATABASE IF EXISTS {name}");
                Self::on_server("MARIADB_URL", "mysql", drop).await
            }
        }
    }

    /// Its address.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Opens a pool on it.
    pub(crate) async fn connect(&self, options: &DbOptions) -> DatabaseConnection {
        connect(&self.url, options).await.expect("the database answers")
    }

    fn sqlite() -> Self {
        let directory = tempfile::Builder::new().prefix("halfmsg-db-").tempdir();
        let directory = directory.expect("a temporary directory");
        let url = format!("sqlite://{}", directory.path().join("test.db").display());
        Self { url, _place: Place::Directory(directory) }
    }

    /// On the server that `variable` names; `scheme` is how its address begins.
    async fn on_server(variable: &str, scheme: &str, drop: impl Fn(&str) -> String) -> Self {
        let server = std::env::var(variable).unwrap_or_default();
        assert!(
            server.starts_with(scheme),
            "{variable} is not set to a {scheme} server: run the real tier with scripts/test real, \
             or start a server with scripts/postgres or scripts/mariadb and set what it prints"
        );
        let name = format!("halfmsg_test_{}", Uuid::new_v4().simple());
        run_on(&server, format!("CREATE DATABASE {name}")).await.expect("the role may create it");
        let (address, query) = match server.split_once('?') {
            Some((address, query)) => (address, format!("?{query}")),
            None => (server.as_str(), String::new()),
        };
        let (host, _) = address.rsplit_once('/').expect("the address names a database");
        let url = format!("{host}/{name}{query}");
        Self { url, _place: Place::Server(OnServer { server, drop: drop(&name) }) }
    }
}

impl Drop for OnServer {
    fn drop(&mut self) {
        let (server, sql) = (self.server.clone(), self.drop.clone());
        // A thread with a runtime of its own: the case's may be shutting down already.
        let dropping = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(run_on(&server, sql))
        });
        match dropping.join() {
            Ok(Ok(())) => {}
            failed => eprintln!("a database stays behind: {}: {failed:?}", self.drop),
        }
    }
}

/// Of a test's own pools: a server whose disk stands still is waited for.
pub(crate) fn patient() -> DbOptions {
    DbOptions { acquire_timeout: PATIENCE, statement_timeout: PATIENCE, ..DbOptions::default() }
}

async fn run_on(server: &str, sql: String) -> Result<(), String> {
    let options = DbOptions { max_connections: 1, ..patient() };
    let connection = connect(server, &options).await.map_err(|error| error.to_string())?;
    let ran = connection.execute_unprepared(&sql).await;
    ran.map_err(|error| error.to_string())?;
    connection.close().await.map_err(|error| error.to_string())
}

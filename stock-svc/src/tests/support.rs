//! A database for a test, and waiting.

use std::time::{Duration, Instant};

use halfmsg_migrations::{StockMigrator, migrate};
use halfmsg_service_kit::db;
use sea_orm::{ConnectionTrait, DatabaseConnection};
use tempfile::TempDir;
use tokio::time::sleep;
use uuid::Uuid;

use crate::store::StockStore;

/// Long enough for a busy machine; only a failing test waits as long.
pub(super) const PATIENCE: Duration = Duration::from_secs(120);
pub(super) const TOKEN: &str = "s3cret";

/// Waits until the condition holds.
pub(super) async fn until(what: &str, condition: impl AsyncFn() -> bool) {
    let began = Instant::now();
    while !condition().await {
        assert!(began.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// An empty database with the schema.
pub(super) struct TestDb {
    pub(super) url: String,
    _directory: TempDir,
}

impl TestDb {
    pub(super) async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let url = match std::env::var("HALFMSG_TEST_POSTGRES") {
            Ok(server) => {
                let name = format!("t{}", Uuid::now_v7().simple());
                let server_db = db::connect(&server, &db::DbOptions::default()).await.unwrap();
                server_db.execute_unprepared(&format!("CREATE DATABASE {name}")).await.unwrap();
                let (base, _) = server.rsplit_once('/').unwrap();
                format!("{base}/{name}")
            }
            Err(_) => format!("sqlite://{}", directory.path().join("stock.db").display()),
        };
        let found = Self { url, _directory: directory };
        migrate::<StockMigrator>(&found.connect().await).await.unwrap();
        found
    }

    pub(super) async fn connect(&self) -> DatabaseConnection {
        let options = db::DbOptions {
            acquire_timeout: PATIENCE,
            sqlite_busy_timeout: PATIENCE,
            statement_timeout: PATIENCE,
            ..db::DbOptions::default()
        };
        db::connect(&self.url, &options).await.unwrap()
    }
}

/// The stock there, of which every operation may take as long as a busy machine needs.
pub(super) fn store_of(database: &DatabaseConnection) -> StockStore {
    StockStore::new(database.clone()).with_deadline(PATIENCE)
}

//! A database for a test, and waiting.

use std::time::{Duration, Instant};

use halfmsg_migrations::{StockMigrator, migrate};
use halfmsg_service_kit::db;
use sea_orm::{ConnectionTrait, DatabaseConnection};
use tempfile::TempDir;
use tokio::time::sleep;
use uuid::Uuid;

/// Long enough for a busy machine, short enough to fail.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);
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
        db::connect(&self.url, &db::DbOptions::default()).await.unwrap()
    }
}

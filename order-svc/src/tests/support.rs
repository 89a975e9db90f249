//! What the tests stand on: a database, and the half messages and orders of tests.
//!
//! # Layout
//! - [`stub`]: stock-svc as far as order-svc sees it
//! - [`shop`]: a broker and the service on top of it all

mod shop;
mod stub;

use std::future::Future;
use std::time::Duration;

use halfmsg_migrations::{OrderMigrator, migrate};
use halfmsg_producer::{
    HalfMessage, ListenerResult, LocalTransactionState, ProducerConfig, TransactionId, testkit,
};
use halfmsg_service_kit::db;
use sea_orm::{ConnectionTrait, DatabaseConnection};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use crate::draft::Draft;
use crate::listener::{LocalTimes, OrderListener};
use crate::model::{Flow, Item, NewOrder, OrderId};
use crate::payload::{PURPOSE, RollbackPayload};
use crate::stock::StockClient;
use crate::store::{OrderStore, StoreLimits};
pub(super) use shop::{CHECKED_SOON, Shop, order_request};
pub(super) use stub::StubStock;

/// Long enough for a busy machine; only a failing test waits as long.
pub(super) const PATIENCE: Duration = Duration::from_secs(120);
/// Bounds that no busy machine exceeds: after an error of an operation that had its effect all the same, what
/// comes next would be another case.
pub(super) const UNHURRIED: StoreLimits = StoreLimits {
    deadline: PATIENCE,
    local_deadline: PATIENCE,
    lock_timeout: PATIENCE,
    check_budget: PATIENCE,
};
pub(super) const TOPIC: &str = "stock.rollback";
pub(super) const TOKEN: &str = "s3cret";

/// Waits until the condition gives a value.
pub(super) async fn until<T, F>(what: &str, mut condition: impl FnMut() -> F) -> T
where
    F: Future<Output = Option<T>>,
{
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = condition().await {
            return value;
        }
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// What checks have said; one that failed is as good as none.
pub(super) fn known(
    answers: Vec<ListenerResult<LocalTransactionState>>,
) -> Vec<LocalTransactionState> {
    let known = |answer: ListenerResult<_>| answer.unwrap_or(LocalTransactionState::Unknown);
    answers.into_iter().map(known).collect()
}

/// An empty database with the schema.
pub(super) struct TestDb {
    pub(super) url: String,
    directory: TempDir,
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
            Err(_) => format!("sqlite://{}", directory.path().join("orders.db").display()),
        };
        let found = Self { url, directory };
        migrate::<OrderMigrator>(&found.patient().await).await.unwrap();
        found
    }

    pub(super) async fn connect(&self, busy_timeout: Duration) -> DatabaseConnection {
        let options = db::DbOptions {
            max_connections: 5,
            sqlite_busy_timeout: busy_timeout,
            acquire_timeout: PATIENCE,
            statement_timeout: PATIENCE,
            ..db::DbOptions::default()
        };
        db::connect(&self.url, &options).await.unwrap()
    }

    /// Connections that wait for any other writer.
    pub(super) async fn patient(&self) -> DatabaseConnection {
        self.connect(PATIENCE).await
    }

    pub(super) async fn store(&self) -> OrderStore {
        self.store_with(UNHURRIED).await
    }

    /// One with these bounds.
    pub(super) async fn store_with(&self, limits: StoreLimits) -> OrderStore {
        let checks = self.connect(limits.lock_timeout).await;
        OrderStore::new(self.patient().await, checks, limits)
    }

    pub(super) fn is_sqlite(&self) -> bool {
        self.url.starts_with("sqlite")
    }

    fn directory(&self) -> &TempDir {
        &self.directory
    }
}

/// An order of this many apples.
pub(super) fn apples(quantity: u32) -> NewOrder {
    let items = vec![Item { sku: "apple".into(), quantity }];
    NewOrder { user_id: "u-1".into(), items, flow: Flow::Rollback }
}

pub(super) fn transaction() -> TransactionId {
    TransactionId::from_uuid(Uuid::now_v7())
}

pub(super) fn draft() -> Draft {
    Draft::new(OrderId::generate(), transaction(), &apples(2))
}

/// The half message of a draft, as the check-back sees it.
pub(super) fn half_of(draft: &Draft) -> HalfMessage {
    let (user_id, items) = (draft.user_id.clone(), draft.items.clone());
    let order = NewOrder { user_id, items, flow: draft.flow };
    let message = RollbackPayload::new(draft.id, &order).to_message(TOPIC, draft.transaction_id);
    HalfMessage {
        transaction_id: draft.transaction_id,
        local_transaction_id: draft.transaction_id,
        purpose: PURPOSE.into(),
        topic: message.topic,
        key: message.key,
        headers: message.headers,
        payload: message.payload,
        partition: 0,
        offset: 0,
        epoch: 0,
        attempts: 0,
    }
}

pub(super) fn listener(store: &OrderStore, stock: &StubStock) -> OrderListener {
    let times = LocalTimes { stock: PATIENCE, stall: Duration::from_millis(50) };
    OrderListener::new(store.clone(), StockClient::new(&stock.url).unwrap(), times)
}

/// Settings of a kit. Its clock is virtual, but what a listener does takes its real time, and may take as
/// much as a busy machine needs.
pub(super) fn kit_config() -> ProducerConfig {
    let config = testkit::config("order-svc");
    ProducerConfig {
        local_deadline: PATIENCE,
        check_deadline: PATIENCE,
        check_after: 2 * PATIENCE,
        ..config
    }
}

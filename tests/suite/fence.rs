//! Rows 8 and 14: the orders table is the fence. Its row decides, and a check that comes first
//! keeps the local transaction out.

use std::time::Duration;

use async_trait::async_trait;
use halfmsg_migrations::{OrderMigrator, migrate};
use halfmsg_producer::{
    HalfMessage, ListenerResult, LocalTransactionState, Message, ProducerConfig, TransactionId,
    TransactionListener, TransactionProducer,
};
use halfmsg_service_kit::db::DbOptions;
use order_svc::draft::{Draft, Prices};
use order_svc::listener::{LocalOrder, LocalTimes, OrderListener};
use order_svc::model::{Flow, Item, NewOrder, Order, OrderId, OrderStatus};
use order_svc::payload::{PURPOSE, RollbackPayload};
use order_svc::reason::VoidReason;
use order_svc::stock::StockClient;
use order_svc::store::{OrderStore, StoreLimits, Stored};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::database::Database;
use super::reader::{Delivered, Reader};
use super::setup::operator;
use super::{Env, PATIENCE, until};

/// Connections of a case's pools: requests, and the check-back.
const CONNECTIONS: (u32, u32) = (8, 4);
/// Nobody listens there: a local transaction fails before it deducts.
const NO_STOCK: &str = "http://127.0.0.1:9";

/// Orders in a database of their own, and the listener that answers for them.
pub(crate) struct Orders {
    pub(crate) store: OrderStore,
    pub(crate) listener: OrderListener,
    _database: Database,
}

impl Orders {
    /// Empty tables. However long a local transaction or a check has to wait, it is not given up.
    pub(crate) async fn new(env: &Env) -> Self {
        let (local_deadline, lock_timeout, check_budget) = (PATIENCE, PATIENCE, PATIENCE);
        let limits =
            StoreLimits { local_deadline, lock_timeout, check_budget, ..Default::default() };
        Self::with(env, limits).await
    }

    /// Empty tables, with these bounds of the check.
    pub(crate) async fn with(env: &Env, limits: StoreLimits) -> Self {
        let database = env.database().await;
        let limits = StoreLimits { deadline: PATIENCE, ..limits };
        let options = |max_connections, sqlite_busy_timeout| DbOptions {
            max_connections,
            sqlite_busy_timeout,
            acquire_timeout: PATIENCE,
            statement_timeout: PATIENCE,
            ..DbOptions::default()
        };
        let requests = database.connect(&options(CONNECTIONS.0, PATIENCE)).await;
        let checks = database.connect(&options(CONNECTIONS.1, limits.lock_timeout)).await;
        migrate::<OrderMigrator>(&requests).await.expect("the schema can be made");
        let store = OrderStore::new(requests, checks, limits);
        let stock = StockClient::new(NO_STOCK).expect("an address");
        let times = LocalTimes { stock: PATIENCE, stall: Duration::from_secs(1) };
        let listener = OrderListener::new(store.clone(), stock, times);
        Self { store, listener, _database: database }
    }

    /// The row of an order.
    pub(crate) async fn row(&self, id: OrderId) -> Option<Order> {
        until(PATIENCE, "the row to be read", async || self.store.find(id).await).await
    }
}

/// What is ordered in every case.
pub(crate) fn apples() -> NewOrder {
    let items = vec![Item { sku: "apple".into(), quantity: 2 }];
    NewOrder { user_id: "u-1".into(), items, flow: Flow::Rollback }
}

/// The half message of an order.
pub(crate) fn message(id: OrderId, topic: &str) -> Message {
    RollbackPayload::new(id, &apples())
        .to_message(topic, TransactionId::from_uuid(uuid::Uuid::now_v7()))
}

/// The order as it is stored if its local transaction wins.
pub(crate) fn confirmed(id: OrderId, transaction_id: TransactionId) -> Order {
    let prices = Prices::from([("apple".to_owned(), 120)]);
    draft(id, transaction_id).standing(&prices).expect("a small amount")
}

/// The order that is to be written.
fn draft(id: OrderId, transaction_id: TransactionId) -> Draft {
    Draft::new(id, transaction_id, &apples())
}

/// Starts a producer with this listener, and a reader of the target.
pub(crate) async fn start(
    config: &ProducerConfig,
    target: &str,
    listener: impl TransactionListener,
) -> (TransactionProducer, Reader) {
    let builder = TransactionProducer::builder(config.clone()).listener(PURPOSE, listener);
    let producer = builder.start().await.expect("the producer starts");
    (producer, Reader::start(&config.kafka, target).await)
}

/// What a local transaction of row 8 does to the database, whatever its call then says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Really {
    Confirms,
    Voids,
    /// Its database transaction is rolled back.
    Nothing,
}

/// A local transaction whose call lies; its check is the orders' own.
#[derive(Clone)]
struct Lying {
    store: OrderStore,
    check: OrderListener,
}

struct Lie {
    id: OrderId,
    really: Really,
    /// Whether the call comes back as if all were well.
    says_well: bool,
}

#[async_trait]
impl TransactionListener for Lying {
    type Arg = Lie;

    async fn execute_local_transaction(
        &self,
        half: &HalfMessage,
        lie: Lie,
    ) -> ListenerResult<LocalTransactionState> {
        let transaction_id = half.transaction_id;
        match lie.really {
            Really::Confirms => {
                let order = confirmed(lie.id, transaction_id);
                assert_eq!(
                    self.store.insert_order(&order, Instant::now()).await?,
                    Stored::Inserted
                );
            }
            Really::Voids => {
                let reason = VoidReason::AfterDeductFailed.to_text("");
                self.store
                    .write_void(&draft(lie.id, transaction_id).void(reason, None, false))
                    .await?;
            }
            Really::Nothing => {}
        }
        // A call that came back well is no outcome either: only the row is, and it is not read here.
        if lie.says_well {
            Ok(LocalTransactionState::Unknown)
        } else {
            Err("the connection was lost while it committed".into())
        }
    }

    async fn check_local_transaction(
        &self,
        half: &HalfMessage,
    ) -> ListenerResult<LocalTransactionState> {
        self.check.check_local_transaction(half).await
    }
}

/// A transaction that was committed although its call failed, one that was rolled back although
/// its call returned: the message follows the row. Here a void order is what delivers it.
pub(crate) async fn c08_the_row_decides_not_the_call(env: Env) {
    let orders = Orders::new(&env).await;
    let config = env.group().await;
    let target = env.topic("target").await;
    let lying = Lying { store: orders.store.clone(), check: orders.listener.clone() };
    let (producer, reader) = start(&config, &target, lying).await;
    let mut expected = Vec::new();
    for (really, says_well, status) in [
        (Really::Confirms, false, OrderStatus::Confirmed),
        (Really::Confirms, true, OrderStatus::Confirmed),
        (Really::Voids, false, OrderStatus::Void),
        (Really::Voids, true, OrderStatus::Void),
        // Nothing is there: the check makes its answer true by writing it void.
        (Really::Nothing, false, OrderStatus::Void),
        (Really::Nothing, true, OrderStatus::Void),
    ] {
        let id = OrderId::generate();
        let lie = Lie { id, really, says_well };
        let sent = producer.send_in_transaction(PURPOSE, message(id, &target), lie).await;
        let sent = sent.expect("it is stored");
        assert!(sent.decision_recorded, "{really:?} {says_well}: {sent:?}");
        let row = orders.row(id).await.expect("every order has a row");
        assert_eq!((row.status, row.transaction_id), (status, sent.transaction_id), "{really:?}");
        if status == OrderStatus::Void {
            expected.push(sent.transaction_id);
        }
    }
    delivered_are(&reader, &config, expected).await;
    producer.shutdown().await;
}

/// The check finds no order and writes it void; the local transaction, which comes later, is
/// refused and leaves nothing behind.
pub(crate) async fn c14_fence_first_business_second(env: Env) {
    let orders = Orders::new(&env).await;
    let config = env.group().await;
    let target = env.topic("target").await;
    let (producer, reader) = start(&config, &target, orders.listener.clone()).await;
    let id = OrderId::generate();
    let begun = producer.begin(PURPOSE, message(id, &target)).await.expect("it is stored");
    let transaction_id = begun.receipt().transaction_id;
    let asked = begun.check().await;
    assert_eq!(asked.state, LocalTransactionState::Commit);
    assert!(asked.decision_recorded);
    let tombstone = orders.row(id).await.expect("the check wrote it");
    assert_eq!((tombstone.status, tombstone.total_cents), (OrderStatus::Void, 0));

    let late = orders.store.insert_order(&confirmed(id, transaction_id), Instant::now()).await;
    assert_eq!(late.expect("the database answers"), Stored::Fenced);
    assert_eq!(orders.row(id).await, Some(tombstone.clone()));
    let (tell, told) = oneshot::channel();
    let local = LocalOrder { id, order: apples(), fault: None, tell };
    let row = orders.listener.run_local(transaction_id, local).await;
    assert_eq!(row.expect("the database answers"), tombstone);
    assert_eq!(told.await.expect("it is told"), tombstone);
    assert_eq!(orders.row(id).await, Some(tombstone));

    let against = producer.admin().rollback(transaction_id, operator(true)).await;
    assert!(against.is_err(), "an operator overruled the fence: {against:?}");
    delivered_are(&reader, &config, vec![transaction_id]).await;
    producer.shutdown().await;
}

/// Exactly these messages are delivered, each once.
pub(crate) async fn delivered_are(
    reader: &Reader,
    config: &ProducerConfig,
    mut expected: Vec<TransactionId>,
) {
    let delivered = reader.everything_of(config).await;
    let mut found: Vec<_> =
        delivered.iter().map(|message: &Delivered| message.transaction_id).collect();
    found.sort_unstable();
    expected.sort_unstable();
    assert_eq!(found, expected);
}

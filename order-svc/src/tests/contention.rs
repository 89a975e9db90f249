//! Another writer is in the way: an order that has time left waits for it, and is not void.

use std::time::Duration;

use halfmsg_producer::{
    HalfMessage, LocalTransactionState, ProducerConfig, TransactionListener, TransactionProducer,
};
use halfmsg_service_kit::db::{DbOptions, begin_write, connect};
use sea_orm::{ConnectionTrait, DatabaseConnection, DatabaseTransaction};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::support::{
    StubStock, TOPIC, TestDb, UNHURRIED, apples, draft, half_of, kit_config, listener, transaction,
};
use crate::draft::{Draft, Prices};
use crate::listener::LocalOrder;
use crate::model::{Flow, NewOrder, OrderId, OrderStatus};
use crate::payload::{PURPOSE, RollbackPayload};
use crate::saga::{LocalSaga, SagaListener};
use crate::store::cancel::Cancelled;
use crate::store::{OrderStore, StoreLimits, Stored};

/// One operation's deadline: shorter than the other writer takes.
const DEADLINE: Duration = Duration::from_millis(300);
/// What the other writer takes.
const IN_THE_WAY: Duration = Duration::from_millis(900);
/// A local transaction's deadline: longer than that, and than a crowd of orders takes on a busy machine.
const LOCAL: Duration = Duration::from_secs(120);

/// Its pool waits for a connection as long as the service's does: an order that waits for its turn holds none.
async fn store(db: &TestDb) -> OrderStore {
    let limits = StoreLimits { deadline: DEADLINE, local_deadline: LOCAL, ..UNHURRIED };
    let options =
        DbOptions { max_connections: 5, sqlite_busy_timeout: LOCAL, ..DbOptions::default() };
    let requests = connect(&db.url, &options).await.unwrap();
    let checks = db.connect(limits.lock_timeout).await;
    OrderStore::new(requests, checks, limits)
}

/// Another process that is writing, for as long as it is held.
async fn in_the_way(database: &DatabaseConnection, is_sqlite: bool) -> DatabaseTransaction {
    let writer = begin_write(database).await.unwrap();
    if !is_sqlite {
        writer.execute_unprepared("LOCK TABLE orders IN SHARE ROW EXCLUSIVE MODE").await.unwrap();
    }
    writer
}

#[tokio::test]
async fn an_order_outlasts_a_writer_in_its_way() {
    let (db, stock) = (TestDb::new().await, StubStock::start().await);
    let (store, other) = (store(&db).await, db.connect(LOCAL).await);
    let listener = listener(&store, &stock);
    let config = ProducerConfig { local_deadline: LOCAL, check_after: 2 * LOCAL, ..kit_config() };
    let builder = TransactionProducer::builder(config).listener(PURPOSE, listener);
    let kit = builder.test_kit().unwrap();
    let writer = in_the_way(&other, db.is_sqlite()).await;
    let (id, order) = (OrderId::generate(), apples(2));
    let message = RollbackPayload::new(id, &order).to_message(TOPIC, kit.new_transaction_id());
    let (tell, told) = oneshot::channel();
    let local = LocalOrder { id, order, fault: None, tell };
    let held = async {
        tokio::time::sleep(IN_THE_WAY).await;
        writer.rollback().await.unwrap();
    };
    let (sent, ()) = tokio::join!(kit.send_in_transaction(PURPOSE, message, local), held);
    assert_eq!(sent.unwrap().state, LocalTransactionState::Rollback, "it stands");
    assert_eq!(told.await.unwrap().status, OrderStatus::Confirmed);
    kit.settle_all().await.unwrap();
    assert!(kit.delivered().is_empty() && kit.audit().await.unwrap().is_empty());
}

#[tokio::test]
async fn so_do_an_order_of_flow_b_and_a_cancellation() {
    let db = TestDb::new().await;
    let (store, other) = (store(&db).await, db.connect(LOCAL).await);
    let order = NewOrder { flow: Flow::Saga, ..apples(2) };
    let order = Draft::new(OrderId::generate(), transaction(), &order);
    let order = order.standing(&Prices::from([("apple".to_owned(), 120)])).unwrap();
    let listener = SagaListener::new(store.clone());
    let half = HalfMessage { transaction_id: order.transaction_id, ..half_of(&draft()) };
    for cancel in [false, true] {
        let writer = in_the_way(&other, db.is_sqlite()).await;
        let held = async {
            tokio::time::sleep(IN_THE_WAY).await;
            writer.rollback().await.unwrap();
        };
        if cancel {
            let (done, ()) = tokio::join!(store.cancel(order.id, transaction()), held);
            assert!(matches!(done.unwrap(), Cancelled::Now(_)));
        } else {
            let (tell, _) = oneshot::channel();
            let local = LocalSaga { order: order.clone(), fault: None, tell };
            let run = listener.execute_local_transaction(&half, local);
            let (state, ()) = tokio::join!(run, held);
            state.unwrap();
            let row = db.store().await.find(order.id).await.unwrap().unwrap();
            assert_eq!(row.status, OrderStatus::PendingStock);
        }
    }
}

/// Many orders at once, and writers of another pool that never pause: each order comes to its turn.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_order_of_a_crowd_ends_void() {
    const ORDERS: usize = 150;
    let db = TestDb::new().await;
    let (store, other) = (store(&db).await, db.connect(LOCAL).await);
    other.execute_unprepared("CREATE TABLE busy (number INTEGER)").await.unwrap();
    let stop = CancellationToken::new();
    let mut writers = JoinSet::new();
    for _ in 0..3 {
        let (other, stop) = (other.clone(), stop.clone());
        writers.spawn(async move {
            while !stop.is_cancelled() {
                let tx = begin_write(&other).await.unwrap();
                tx.execute_unprepared("INSERT INTO busy VALUES (1)").await.unwrap();
                tx.commit().await.unwrap();
            }
        });
    }
    let mut orders = JoinSet::new();
    for _ in 0..ORDERS {
        let (store, draft) = (store.clone(), draft());
        orders.spawn(async move {
            let order = draft.standing(&Prices::from([("apple".to_owned(), 120)])).unwrap();
            store.insert_order(&order, Instant::now()).await
        });
    }
    let stored = orders.join_all().await;
    stop.cancel();
    writers.join_all().await;
    let stood = stored.iter().filter(|one| matches!(one, Ok(Stored::Inserted))).count();
    assert_eq!(stood, ORDERS, "{stored:?}");
}

//! The restorer where the process dies and messages come twice, without Kafka.

use halfmsg_consumer::testkit::{self, ConsumerKit, Counts, Crash};
use halfmsg_consumer::{Consumer, ReceivedMessage};
use uuid::Uuid;

use super::support::{TestDb, store_of};
use crate::metrics::StockMetrics;
use crate::model::{Item, Items};
use crate::restore::Restorer;
use crate::store::StockStore;
use crate::store::barrier::Deduct;

const TOPIC: &str = "stock.rollback";

struct World {
    _db: TestDb,
    store: StockStore,
    kit: ConsumerKit,
}

impl World {
    /// Ten apples.
    async fn new() -> Self {
        let db = TestDb::new().await;
        let connection = db.connect().await;
        let store = store_of(&connection);
        store.put_product("apple", "Apple", 100).await.unwrap();
        store.receive("apple", "first", 10).await.unwrap();
        let builder = Consumer::builder(testkit::config(connection, "stock-svc"));
        let kit = builder.subscribe(TOPIC, Restorer::new(store.clone(), StockMetrics::default()));
        Self { _db: db, store, kit: kit.test_kit().unwrap() }
    }

    async fn deduct(&self, order_id: Uuid) -> Deduct {
        self.store.deduct(order_id, &three_apples(), false).await.unwrap()
    }

    /// What order-svc sends when the order does not stand.
    fn rollback(&self, order_id: Uuid) -> ReceivedMessage {
        let items = serde_json::json!([{"sku": "apple", "quantity": 3}]);
        let payload = serde_json::json!({"order_id": order_id, "user_id": "u-1", "items": items});
        self.kit.message(TOPIC, payload.to_string())
    }

    async fn available(&self) -> i64 {
        self.store.product("apple").await.unwrap().unwrap().available
    }
}

fn three_apples() -> Items {
    Items::new(vec![Item { sku: "apple".into(), quantity: 3 }]).unwrap()
}

#[tokio::test]
async fn what_was_taken_comes_back_once_wherever_the_process_dies() {
    for crash in [Crash::BeforeCommit, Crash::AfterCommit] {
        let world = World::new().await;
        let order_id = Uuid::now_v7();
        world.deduct(order_id).await;
        assert_eq!(world.available().await, 7);
        let asked = [world.rollback(order_id)];
        world.kit.deliver_and_crash(&asked, crash).await.unwrap();
        let before = if crash == Crash::AfterCommit { 10 } else { 7 };
        assert_eq!(world.available().await, before, "{crash:?}");
        world.kit.deliver(&asked).await;
        world.kit.deliver(&asked).await;
        // With another transaction id the inbox does not know it: the deduction's row does.
        let again = world.kit.deliver(&[world.rollback(order_id)]).await;
        assert_eq!(again, Counts { applied: 1, ..Counts::default() });
        assert_eq!(world.available().await, 10, "{crash:?}");
    }
}

#[tokio::test]
async fn one_message_that_cannot_be_read_costs_no_other() {
    let world = World::new().await;
    let orders: Vec<Uuid> = (0..3).map(|_| Uuid::now_v7()).collect();
    for order_id in &orders {
        world.deduct(*order_id).await;
    }
    let mut batch: Vec<_> = orders.iter().map(|order_id| world.rollback(*order_id)).collect();
    batch.insert(1, world.kit.message(TOPIC, "garbage"));
    let counts = world.kit.deliver(&batch).await;
    assert_eq!(counts, Counts { applied: 3, dead: 1, ..Counts::default() });
    assert_eq!(world.available().await, 10);
}

#[tokio::test]
async fn a_deduct_behind_its_restore_takes_nothing() {
    let world = World::new().await;
    let early = Uuid::now_v7();
    world.kit.deliver(&[world.rollback(early)]).await;
    assert!(matches!(world.deduct(early).await, Deduct::OrderVoid(_)));
    assert_eq!(world.available().await, 10);
}

//! The listener where the process dies, stalls or is not heard, without Kafka: an order that does not
//! stand gives back what it took, and one that stands keeps it.

use halfmsg_producer::testkit::{Fault, KitError, TestKit};
use halfmsg_producer::{ProducerBuilder, TransactionProducer};
use tokio::sync::oneshot;

use super::support::{StubStock, TOPIC, TestDb, apples, kit_config, listener};
use crate::fault::Fault as Induced;
use crate::listener::LocalOrder;
use crate::model::{OrderId, OrderStatus};
use crate::payload::{PURPOSE, RollbackPayload};
use crate::store::OrderStore;

struct World {
    store: OrderStore,
    stock: StubStock,
    _db: TestDb,
}

impl World {
    async fn new() -> Self {
        let db = TestDb::new().await;
        Self { store: db.store().await, stock: StubStock::start().await, _db: db }
    }

    fn start(&self) -> ProducerBuilder {
        let listener = listener(&self.store, &self.stock);
        TransactionProducer::builder(kit_config()).listener(PURPOSE, listener)
    }

    /// Places an order with this fault, starts again after a crash, and lets everything settle.
    async fn order(&self, fault: Fault, induced: Option<Induced>) -> Placed {
        let (id, order) = (OrderId::generate(), apples(2));
        let mut kit = self.start().test_kit().unwrap();
        kit.inject(fault);
        let message = RollbackPayload::new(id, &order).to_message(TOPIC, kit.new_transaction_id());
        let (tell, _) = oneshot::channel();
        let local = LocalOrder { id, order, fault: induced, tell };
        let sent = kit.send_in_transaction(PURPOSE, message, local).await.map(|_| ());
        if matches!(sent, Err(KitError::Crashed)) {
            kit = self.start().test_kit_on(kit.into_store()).unwrap();
        }
        kit.settle_all().await.unwrap();
        Placed { id, kit, crashed: matches!(sent, Err(KitError::Crashed)) }
    }

    /// Nothing is open, every answer is still the same, and the message agrees with the order.
    async fn assert_agreement(&self, placed: &Placed, what: &str) -> bool {
        let Placed { id, kit, .. } = placed;
        assert!(kit.open().is_empty() && kit.parked().is_empty(), "{what}");
        assert_eq!(kit.audit().await.unwrap(), [], "{what}");
        let row = self.store.find(*id).await.unwrap();
        let confirmed = row.is_some_and(|order| order.status == OrderStatus::Confirmed);
        let deducted = self.stock.has_deducted(&id.to_string());
        let restored = !kit.delivered().is_empty();
        assert!(!(confirmed && restored), "{what}: it stands and was given back");
        assert!(confirmed || restored || !deducted, "{what}: it took and gave nothing back");
        confirmed
    }
}

struct Placed {
    id: OrderId,
    kit: TestKit,
    crashed: bool,
}

#[tokio::test]
async fn stock_and_order_agree_at_every_fault() {
    let world = World::new().await;
    for fault in Fault::ALL {
        for induced in [None, Some(Induced::AfterDeduct), Some(Induced::DeductRefused)] {
            let placed = world.order(fault, induced).await;
            let what = format!("{fault:?} with {induced:?}");
            let confirmed = world.assert_agreement(&placed, &what).await;
            let stands = [Fault::CrashAfterLocal, Fault::DecisionLost].contains(&fault)
                || [Fault::ContradictingDecision, Fault::DeliveredTwice].contains(&fault);
            assert_eq!(confirmed, stands && induced.is_none(), "{what}");
        }
    }
}

#[tokio::test]
async fn stock_and_order_agree_wherever_the_local_transaction_dies() {
    let world = World::new().await;
    let mut died = 0;
    for waits in 1..=40 {
        let placed = world.order(Fault::CrashDuringLocal { waits }, None).await;
        world.assert_agreement(&placed, &format!("at wait {waits}")).await;
        died += usize::from(placed.crashed);
    }
    assert!(died >= 2, "two calls of another service are waited for: {died}");
}

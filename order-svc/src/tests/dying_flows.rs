//! Flows B and C and the consumers where the process dies, at every wait: an order and its messages
//! agree, and every event counts once.

use halfmsg_consumer::testkit::{self as consuming, ConsumerKit, EveryWait, dies_at};
use halfmsg_consumer::{Consumer, ReceivedMessage};
use halfmsg_producer::testkit::{Fault, KitError, TestKit};
use halfmsg_producer::{ProducerBuilder, TransactionProducer};
use sea_orm::{ConnectionTrait, DatabaseConnection};
use serde_json::json;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::support::{TOPIC, TestDb, apples, kit_config, transaction};
use crate::answers::AnswerHandler;
use crate::cancel::{CancelListener, LocalCancel};
use crate::draft::{Draft, Prices};
use crate::events::Hub;
use crate::metrics::OrderMetrics;
use crate::model::{Flow, NewOrder, Order, OrderId, OrderStatus};
use crate::payload::{CANCEL_PURPOSE, CREATED_PURPOSE, CreatedPayload, RollbackPayload};
use crate::report::fold::{Amount, Sums};
use crate::report::store::ReportStore;
use crate::report::{Kind, ReportHandler};
use crate::saga::{LocalSaga, SagaListener};
use crate::store::OrderStore;

const CREATED: &str = "order.created";
const OUTBOUND: &str = "stock.outbound";

fn pending() -> Order {
    let order = NewOrder { flow: Flow::Saga, ..apples(2) };
    let draft = Draft::new(OrderId::generate(), transaction(), &order);
    draft.standing(&Prices::from([("apple".to_owned(), 120)])).unwrap()
}

struct World {
    _db: TestDb,
    store: OrderStore,
    connection: DatabaseConnection,
}

impl World {
    async fn new() -> Self {
        let db = TestDb::new().await;
        let connection = db.patient().await;
        Self { store: db.store().await, connection, _db: db }
    }

    fn start(&self) -> ProducerBuilder {
        TransactionProducer::builder(kit_config())
            .listener(CREATED_PURPOSE, SagaListener::new(self.store.clone()))
            .listener(CANCEL_PURPOSE, CancelListener::new(self.store.clone()))
    }

    /// Runs one local transaction with this fault, starts again after a crash, and lets everything
    /// settle. Says whether it crashed.
    async fn settled(&self, run: Run<'_>, fault: Fault) -> (TestKit, bool) {
        let mut kit = self.start().test_kit().unwrap();
        kit.inject(fault);
        let sent = match run {
            Run::Create(order) => {
                let message = CreatedPayload::new(order).to_message(CREATED, order.transaction_id);
                let (tell, _) = oneshot::channel();
                let local = LocalSaga { order: order.clone(), fault: None, tell };
                kit.send_in_transaction(CREATED_PURPOSE, message, local).await
            }
            Run::Cancel(order) => {
                let payload = RollbackPayload::of_cancelled(order);
                let message = payload.to_message(TOPIC, kit.new_transaction_id());
                let (tell, _) = oneshot::channel();
                let local = LocalCancel { id: order.id, tell };
                kit.send_in_transaction(CANCEL_PURPOSE, message, local).await
            }
        };
        let crashed = matches!(sent, Err(KitError::Crashed));
        if crashed {
            kit = self.start().test_kit_on(kit.into_store()).unwrap();
        }
        kit.settle_all().await.unwrap();
        assert!(kit.open().is_empty() && kit.parked().is_empty(), "{fault:?}");
        assert_eq!(kit.audit().await.unwrap(), [], "{fault:?}");
        (kit, crashed)
    }

    async fn status(&self, id: OrderId) -> Option<OrderStatus> {
        self.store.find(id).await.unwrap().map(|order| order.status)
    }

    /// Creates or cancels with this fault and holds the end against the message.
    async fn assert_agreement(&self, cancels: bool, fault: Fault) -> bool {
        let order = pending();
        let (kit, crashed) = if cancels {
            self.store.insert_order(&order, Instant::now()).await.unwrap();
            self.settled(Run::Cancel(&order), fault).await
        } else {
            self.settled(Run::Create(&order), fault).await
        };
        let status = self.status(order.id).await;
        let delivered = !kit.delivered().is_empty();
        let done = match (cancels, status) {
            (true, Some(OrderStatus::Cancelled)) | (false, Some(OrderStatus::PendingStock)) => true,
            (true, Some(OrderStatus::PendingStock)) | (false, Some(OrderStatus::Void) | None) => {
                false
            }
            other => panic!("{fault:?}: {other:?}"),
        };
        assert_eq!(delivered, done, "{fault:?}: {status:?}");
        if cancels && !done {
            // Whoever asks again gets it, with one message.
            let (kit, _) = self.settled(Run::Cancel(&order), Fault::DecisionLost).await;
            assert_eq!(self.status(order.id).await, Some(OrderStatus::Cancelled), "{fault:?}");
            assert_eq!(kit.delivered().len(), 1, "{fault:?}");
        }
        crashed
    }

    fn answers(&self) -> ConsumerKit {
        let handler = AnswerHandler::new(OrderMetrics::default(), Hub::default());
        let config = consuming::config(self.connection.clone(), "answers");
        Consumer::builder(config).subscribe(OUTBOUND, handler).test_kit().unwrap()
    }

    async fn report(&self, store: &ReportStore) -> ConsumerKit {
        let generation = store.begin().await.unwrap().generation;
        let handler = |kind| ReportHandler { kind, generation, metrics: OrderMetrics::default() };
        let subscriber = format!("report.{generation}");
        Consumer::builder(consuming::config(self.connection.clone(), subscriber))
            .subscribe(CREATED, handler(Kind::Created))
            .subscribe(OUTBOUND, handler(Kind::Outbound))
            .subscribe(TOPIC, handler(Kind::Rollback))
            .test_kit()
            .unwrap()
    }
}

#[derive(Clone, Copy)]
enum Run<'a> {
    Create(&'a Order),
    Cancel(&'a Order),
}

fn answer(kit: &ConsumerKit, order: &Order, outcome: &str) -> ReceivedMessage {
    let payload = json!({"order_id": order.id, "outcome": outcome, "items": []});
    kit.message(OUTBOUND, payload.to_string())
}

#[tokio::test]
async fn order_and_message_agree_at_every_fault_of_flows_b_and_c() {
    let world = World::new().await;
    for cancels in [false, true] {
        for fault in Fault::ALL {
            world.assert_agreement(cancels, fault).await;
        }
    }
}

#[tokio::test]
async fn order_and_message_agree_at_every_wait_of_flows_b_and_c() {
    let world = World::new().await;
    for cancels in [false, true] {
        let mut tries = EveryWait::default();
        while let Some(waits) = tries.next_try() {
            let fault = Fault::CrashDuringLocal { waits };
            tries.died(world.assert_agreement(cancels, fault).await);
        }
    }
}

/// The answers of stock-svc: at every wait, the status moves once.
#[tokio::test]
async fn an_answer_moves_its_order_once_wherever_the_process_dies() {
    let world = World::new().await;
    let mut tries = EveryWait::default();
    while let Some(waits) = tries.next_try() {
        let (deducted, refused, cancelled) = (pending(), pending(), pending());
        for order in [&deducted, &refused, &cancelled] {
            world.store.insert_order(order, Instant::now()).await.unwrap();
        }
        world.store.cancel(cancelled.id, transaction()).await.unwrap();
        let kit = world.answers();
        let batch = [
            answer(&kit, &deducted, "deducted"),
            answer(&kit, &refused, "refused"),
            answer(&kit, &cancelled, "deducted"),
        ];
        let died = kit.deliver_and_die(&batch, waits).await;
        let again = world.answers();
        again.deliver(&batch).await;
        let counts = again.settle_all().await.unwrap();
        assert_eq!(counts.dead, 0, "at wait {waits}");
        for (order, expected) in [
            (&deducted, OrderStatus::Confirmed),
            (&refused, OrderStatus::Rejected),
            (&cancelled, OrderStatus::Cancelled),
        ] {
            assert_eq!(world.status(order.id).await, Some(expected), "at wait {waits}");
        }
        tries.died(died);
    }
}

/// The report: at every wait of its handler, and of the beginning of a generation, its sums are those
/// of the events.
#[tokio::test]
async fn the_report_counts_every_event_once_wherever_the_process_dies() {
    let world = World::new().await;
    let store = ReportStore::new(world.connection.clone());
    let (stands, cancelled) = (pending(), pending());
    let expected = Sums {
        ordered: Amount { quantity: 4, cents: 480 },
        confirmed: Amount { quantity: 2, cents: 240 },
        cancelled: Amount { quantity: 2, cents: 240 },
        ..Sums::default()
    };
    let mut tries = EveryWait::default();
    while let Some(waits) = tries.next_try() {
        // What the round before has left is made anew: because an operator says so, then because
        // somebody has emptied it.
        let rebuilt = dies_at(waits, store.rebuild()).await.is_some();
        let kit = world.report(&store).await;
        kit.deliver(&[kit.message(CREATED, payload_of(&stands))]).await;
        world.connection.execute_unprepared("DELETE FROM report_product").await.unwrap();
        // Whoever looks whether it is whole changes nothing, wherever it dies.
        let seen = dies_at(waits, store.whole_generation()).await;
        assert!(seen.is_none_or(|whole| whole.unwrap().is_none()), "at wait {waits}");
        let began = rebuilt && dies_at(waits, store.begin()).await.is_some();
        let kit = world.report(&store).await;
        let created = |order: &Order| kit.message(CREATED, payload_of(order));
        let rollback = RollbackPayload::of_cancelled(&cancelled).to_message(TOPIC, transaction());
        let batch = [
            created(&stands),
            created(&cancelled),
            answer(&kit, &stands, "deducted"),
            answer(&kit, &cancelled, "deducted"),
            kit.message(TOPIC, rollback.payload.unwrap()),
        ];
        let died = kit.deliver_and_die(&batch, waits).await;
        let again = world.report(&store).await;
        again.deliver(&batch).await;
        again.settle_all().await.unwrap();
        let rows = store.products(None, 10).await.unwrap();
        assert_eq!(rows.len(), 1, "at wait {waits}");
        assert_eq!(rows[0].sums, expected, "at wait {waits}");
        tries.died(died || !began);
    }
}

fn payload_of(order: &Order) -> Vec<u8> {
    serde_json::to_vec(&CreatedPayload::new(order)).unwrap()
}

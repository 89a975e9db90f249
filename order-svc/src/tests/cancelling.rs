//! Cancellations under way: how many there may be.

use std::time::Duration;

use halfmsg_kafka::EmbeddedBroker;
use halfmsg_producer::{ProducerConfig, TransactionProducer};
use halfmsg_service_kit::db::begin_write;
use sea_orm::ConnectionTrait;
use tokio::time::Instant;

use super::support::{PATIENCE, StubStock, TOPIC, TestDb, apples, listener, transaction, until};
use crate::cancel::{self, CancelListener, Canceller};
use crate::draft::{Draft, Prices};
use crate::metrics::OrderMetrics;
use crate::model::{Order, OrderId, OrderStatus};
use crate::payload::{CANCEL_PURPOSE, CREATED_PURPOSE, PURPOSE};
use crate::place::{Parts, PlaceLimits, Placer, Topics};
use crate::saga::SagaListener;
use crate::stock::StockClient;

/// From the request to its answer: sooner than the local transaction ends.
const ANSWER: Duration = Duration::from_millis(300);

fn standing() -> Order {
    let draft = Draft::new(OrderId::generate(), transaction(), &apples(2));
    draft.standing(&Prices::from([("apple".to_owned(), 120)])).unwrap()
}

/// A cancellation that goes on behind its answer is one of those that may be under way.
#[tokio::test(flavor = "multi_thread")]
async fn one_that_goes_on_behind_its_answer_keeps_its_place() {
    let (db, stock) = (TestDb::new().await, StubStock::start().await);
    let (store, other) = (db.store().await, db.patient().await);
    let broker = EmbeddedBroker::start().unwrap();
    for topic in ["halfmsg.order-svc.store", "halfmsg.order-svc.parked", TOPIC] {
        broker.create_topic(topic, 2).unwrap();
    }
    // However slow the machine, the first local transaction outlasts all that is asked meanwhile.
    let config = ProducerConfig {
        prepare_deadline: PATIENCE,
        store_timeout: PATIENCE,
        local_deadline: PATIENCE,
        check_after: 3 * PATIENCE,
        ..ProducerConfig::new(broker.config(), "order-svc", "order-svc")
    };
    let (orders, saga) = (listener(&store, &stock), SagaListener::new(store.clone()));
    let producer = TransactionProducer::builder(config)
        .listener(PURPOSE, orders.clone())
        .listener(CREATED_PURPOSE, saga.clone())
        .listener(CANCEL_PURPOSE, CancelListener::new(store.clone()))
        .start()
        .await
        .unwrap();
    let placer = Placer::new(Parts {
        producer: producer.clone(),
        store: store.clone(),
        listener: orders,
        saga,
        stock: StockClient::new(&stock.url).unwrap(),
        stock_deadline: PATIENCE,
        topics: Topics { rollback: TOPIC.into(), created: "c".into(), outbound: "o".into() },
        limits: PlaceLimits { answer: ANSWER, lease: 3 * PATIENCE },
        metrics: OrderMetrics::default(),
    });
    let parts = cancel::Parts {
        producer: producer.clone(),
        store: store.clone(),
        placer: placer.clone(),
        topic: TOPIC.into(),
        answer: ANSWER,
        metrics: OrderMetrics::default(),
    };
    let canceller = Canceller::with_places(parts, 1);
    let [first, second] = [standing(), standing()];
    for order in [&first, &second] {
        store.insert_order(order, Instant::now()).await.unwrap();
    }
    // Somebody else writes: the local transaction waits for it.
    let writer = begin_write(&other).await.unwrap();
    if !db.is_sqlite() {
        writer.execute_unprepared("LOCK TABLE orders IN SHARE ROW EXCLUSIVE MODE").await.unwrap();
    }
    let answer = canceller.cancel(first.id, None).await.unwrap_err();
    assert_eq!(answer.code(), "outcome_unknown");
    let answer = canceller.cancel(second.id, None).await.unwrap_err();
    assert_eq!(answer.code(), "overloaded", "its place is not free yet");
    writer.rollback().await.unwrap();
    until("the second order is cancelled", async || {
        let cancelled = canceller.cancel(second.id, None).await.ok()?;
        (cancelled.status == OrderStatus::Cancelled).then_some(())
    })
    .await;
    let found = store.find(first.id).await.unwrap().unwrap();
    assert_eq!(found.status, OrderStatus::Cancelled);
    placer.drain(PATIENCE).await;
    producer.shutdown().await;
}

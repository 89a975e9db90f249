//! Flows B and C at the database: what decides, in every order, and what the report makes of it.

use halfmsg_consumer::HandlerError;
use halfmsg_producer::{HalfMessage, LocalTransactionState, TransactionId, TransactionListener};
use halfmsg_service_kit::db::begin_write;
use sea_orm::ConnectionTrait;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::support::{TestDb, apples, known, transaction};
use crate::answers::failed;
use crate::cancel::{CancelListener, LocalCancel};
use crate::draft::{Draft, Prices};
use crate::model::{Flow, NewOrder, Order, OrderId, OrderStatus};
use crate::payload::{CANCEL_PURPOSE, CREATED_PURPOSE, CreatedPayload, PricedItem};
use crate::reason::VoidReason;
use crate::report::fold::{Amount, Ending, Fact};
use crate::report::store::{ReportStore, learn_in_tx, lock_in_tx};
use crate::saga::{LocalSaga, SagaListener};
use crate::store::cancel::{Answered, Cancelled, StockAnswer, answer_in_tx};
use crate::store::{OrderStore, Stored};

use LocalTransactionState::{Commit, Rollback};

fn pending() -> Order {
    let order = NewOrder { flow: Flow::Saga, ..apples(2) };
    let draft = Draft::new(OrderId::generate(), transaction(), &order);
    draft.standing(&Prices::from([("apple".to_owned(), 120)])).unwrap()
}

fn half(id: TransactionId, purpose: &str, payload: Option<&CreatedPayload>) -> HalfMessage {
    HalfMessage {
        transaction_id: id,
        local_transaction_id: id,
        purpose: purpose.into(),
        topic: "t".into(),
        key: None,
        headers: Vec::new(),
        payload: payload.map(|payload| serde_json::to_vec(payload).unwrap().into()),
        partition: 0,
        offset: 0,
        epoch: 0,
        attempts: 0,
    }
}

fn created(order: &Order) -> HalfMessage {
    half(order.transaction_id, CREATED_PURPOSE, Some(&CreatedPayload::new(order)))
}

async fn answer(db: &TestDb, id: OrderId, refusal: Option<&str>) -> Answered {
    let connection = db.patient().await;
    let tx = begin_write(&connection).await.unwrap();
    let answer = StockAnswer { order_id: id, refusal: refusal.map(str::to_owned) };
    let answered = answer_in_tx(&tx, &answer).await.unwrap();
    tx.commit().await.unwrap();
    answered
}

async fn status(store: &OrderStore, id: OrderId) -> OrderStatus {
    store.find(id).await.unwrap().unwrap().status
}

#[tokio::test]
async fn a_check_that_finds_no_order_shuts_it_out_and_drops_its_message() {
    let db = TestDb::new().await;
    let store = db.store().await;
    let (listener, order) = (SagaListener::new(store.clone()), pending());
    let half = created(&order);
    assert_eq!(listener.check_local_transaction(&half).await.unwrap(), Rollback);
    let tombstone = store.find(order.id).await.unwrap().unwrap();
    assert_eq!((tombstone.status, tombstone.flow), (OrderStatus::Void, Flow::Saga));
    assert!(tombstone.stock_untouched);
    assert_eq!(store.insert_order(&order, Instant::now()).await.unwrap(), Stored::Fenced);
    let (tell, told) = oneshot::channel();
    let local = LocalSaga { order: order.clone(), fault: None, tell };
    assert_eq!(listener.execute_local_transaction(&half, local).await.unwrap(), Rollback);
    assert_eq!(told.await.unwrap().reason, Some(VoidReason::Fenced.to_text("")));
}

#[tokio::test]
async fn whatever_an_order_becomes_later_its_message_is_delivered() {
    let db = TestDb::new().await;
    let store = db.store().await;
    let listener = SagaListener::new(store.clone());
    for end in [None, Some("confirmed"), Some("rejected"), Some("cancelled")] {
        let order = pending();
        let (tell, _) = oneshot::channel();
        let local = LocalSaga { order: order.clone(), fault: None, tell };
        let half = created(&order);
        assert_eq!(listener.execute_local_transaction(&half, local).await.unwrap(), Commit);
        match end {
            Some("confirmed") => {
                answer(&db, order.id, None).await;
            }
            Some("rejected") => {
                answer(&db, order.id, Some("unknown_sku")).await;
            }
            Some(_) => drop(store.cancel(order.id, transaction()).await.unwrap()),
            None => {}
        }
        let state = listener.check_local_transaction(&half).await.unwrap();
        assert_eq!(state, Commit, "{end:?}");
        let expected = end.unwrap_or("pending_stock");
        assert_eq!(status(&store, order.id).await.as_str(), expected);
    }
}

#[tokio::test]
async fn the_first_answer_stands_and_a_cancellation_stands_above_it() {
    let db = TestDb::new().await;
    let store = db.store().await;
    let (first, second, third) = (pending(), pending(), pending());
    for order in [&first, &second, &third] {
        store.insert_order(order, Instant::now()).await.unwrap();
    }
    let refusal = Some("insufficient_stock: 1 is there");
    let Answered::Now(OrderStatus::Confirmed, at) = answer(&db, first.id, None).await else {
        panic!("it is the first answer")
    };
    let confirmed = store.find(first.id).await.unwrap().unwrap();
    assert_eq!(
        confirmed.updated_at.timestamp_millis(),
        at.timestamp_millis(),
        "what is told is what is stored"
    );
    assert_eq!(answer(&db, first.id, None).await, Answered::Before(OrderStatus::Confirmed));
    let contradicts = answer(&db, first.id, refusal).await;
    assert_eq!(contradicts, Answered::Contradicts(OrderStatus::Confirmed));
    let second_answer = answer(&db, second.id, refusal).await;
    assert!(matches!(second_answer, Answered::Now(OrderStatus::Rejected, _)), "{second_answer:?}");
    let rejected = store.find(second.id).await.unwrap().unwrap();
    assert_eq!(rejected.reason.as_deref(), refusal);
    assert!(matches!(store.cancel(second.id, transaction()).await.unwrap(), Cancelled::Not(_)));
    assert!(matches!(store.cancel(third.id, transaction()).await.unwrap(), Cancelled::Now(_)));
    for refusal in [None, refusal, Some("order_void")] {
        assert_eq!(answer(&db, third.id, refusal).await, Answered::Cancelled);
    }
    assert_eq!(status(&store, third.id).await, OrderStatus::Cancelled);
    assert_eq!(answer(&db, OrderId::generate(), None).await, Answered::Missing);
}

#[tokio::test]
async fn of_two_cancellations_one_sends_its_message() {
    let db = TestDb::new().await;
    let store = db.store().await;
    let (listener, order) = (CancelListener::new(store.clone()), pending());
    store.insert_order(&order, Instant::now()).await.unwrap();
    let (winner, loser) = (transaction(), transaction());
    for (id, expected) in [(winner, Commit), (loser, Rollback)] {
        let (tell, told) = oneshot::channel();
        let half = half(id, CANCEL_PURPOSE, None);
        let local = LocalCancel { id: order.id, tell };
        let state = listener.execute_local_transaction(&half, local).await.unwrap();
        assert_eq!(state, expected);
        assert_eq!(matches!(told.await.unwrap(), Cancelled::Now(_)), expected == Commit);
        assert_eq!(listener.check_local_transaction(&half).await.unwrap(), expected);
    }
}

#[tokio::test]
async fn a_cancellation_whose_check_came_first_leaves_the_order() {
    let db = TestDb::new().await;
    let store = db.store().await;
    let (listener, order, late) = (CancelListener::new(store.clone()), pending(), transaction());
    store.insert_order(&order, Instant::now()).await.unwrap();
    let half = half(late, CANCEL_PURPOSE, None);
    assert_eq!(listener.check_local_transaction(&half).await.unwrap(), Rollback);
    assert_eq!(store.cancel(order.id, late).await.unwrap(), Cancelled::Fenced);
    assert_eq!(status(&store, order.id).await, OrderStatus::PendingStock);
    assert_eq!(store.cancel(OrderId::generate(), transaction()).await.unwrap(), Cancelled::Missing);
    assert!(matches!(store.cancel(order.id, transaction()).await.unwrap(), Cancelled::Now(_)));
}

/// Two cancellations, their checks and an answer at once: one end, which all of them agree on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancellations_checks_and_answers_race_to_one_end() {
    let db = TestDb::new().await;
    let store = db.store().await;
    let mut ends = [0, 0, 0];
    for round in 0..40_usize {
        let order = pending();
        store.insert_order(&order, Instant::now()).await.unwrap();
        let ids = [transaction(), transaction()];
        let refusal = round.is_multiple_of(2).then_some("insufficient_stock");
        let cancels = ids.map(|id| until_known(&store, order.id, id));
        let [first, second] = cancels;
        let (answered, first, second) = tokio::join!(answer(&db, order.id, refusal), first, second);
        let is_now = |done: &&Result<_, _>| matches!(done, Ok(Cancelled::Now(_)));
        let won = [&first, &second].into_iter().filter(is_now).count();
        let halves = ids.map(|id| half(id, CANCEL_PURPOSE, None));
        let mut states = known(store.cancelled(&halves).await);
        while states.contains(&LocalTransactionState::Unknown) {
            states = known(store.cancelled(&halves).await);
        }
        let committed = states.iter().filter(|state| **state == Commit).count();
        let end = status(&store, order.id).await;
        assert_eq!(committed, usize::from(end == OrderStatus::Cancelled), "{end:?} {answered:?}");
        assert!(won <= committed, "{first:?} {second:?}");
        match end {
            OrderStatus::Cancelled => ends[0] += 1,
            OrderStatus::Rejected => ends[1] += 1,
            // Both cancellations were fenced, or met a busy database.
            _ => ends[2] += 1,
        }
    }
    assert!(ends[0] > 0, "{ends:?}");
}

/// A cancellation and, at the same time, its own check.
async fn until_known(
    store: &OrderStore,
    order: OrderId,
    id: TransactionId,
) -> Result<Cancelled, crate::store::StoreError> {
    let halves = [half(id, CANCEL_PURPOSE, None)];
    let (done, _) = tokio::join!(store.cancel(order, id), store.cancelled(&halves));
    done
}

#[tokio::test]
async fn stuck_orders_are_counted_and_the_oldest_is_known() {
    let db = TestDb::new().await;
    let store = db.store().await;
    let order = pending();
    let now = halfmsg_service_kit::db::now();
    assert_eq!(store.stuck(now).await.unwrap(), (0, None));
    store.insert_order(&order, Instant::now()).await.unwrap();
    let later = order.created_at + chrono::TimeDelta::seconds(1);
    assert_eq!(store.stuck(order.created_at).await.unwrap(), (0, Some(order.created_at)));
    assert_eq!(store.stuck(later).await.unwrap(), (1, Some(order.created_at)));
    answer(&db, order.id, None).await;
    assert_eq!(store.stuck(later).await.unwrap(), (0, None));
}

async fn learn(db: &TestDb, facts: Vec<(OrderId, Fact)>) -> u64 {
    try_to_learn(db, facts).await.unwrap()
}

async fn try_to_learn(db: &TestDb, facts: Vec<(OrderId, Fact)>) -> Result<u64, HandlerError> {
    let connection = db.patient().await;
    let tx = begin_write(&connection).await.unwrap();
    let current = lock_in_tx(&tx).await.unwrap().expect("a generation");
    let learned = learn_in_tx(&tx, current.reading, facts).await.map_err(failed)?;
    tx.commit().await.unwrap();
    Ok(learned)
}

#[tokio::test]
async fn the_report_is_the_sum_of_what_is_known_and_begins_anew_where_it_is_empty() {
    let db = TestDb::new().await;
    let report = ReportStore::new(db.patient().await);
    let first = report.begin().await.unwrap();
    assert_eq!(first.former, None);
    // Nothing is learned yet, which is no reason for another replica to begin anew.
    let other_replica = report.begin().await.unwrap();
    assert_eq!((other_replica.generation, other_replica.former), (first.generation, None));
    let item = |sku: &str, quantity| PricedItem { sku: sku.into(), quantity, unit_price_cents: 5 };
    let (one, other) = (OrderId::generate(), OrderId::generate());
    let facts = vec![
        (other, Fact::Cancelled),
        (one, Fact::Answered(Ending::Confirmed)),
        (one, Fact::Ordered(vec![item("a", 3), item("b", 1)])),
        (other, Fact::Ordered(vec![item("a", 10)])),
    ];
    for expected in [4, 0] {
        assert_eq!(learn(&db, facts.clone()).await, expected);
        let rows = report.products(None, 10).await.unwrap();
        assert_eq!(rows.iter().map(|row| row.sku.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        let sums = rows[0].sums;
        assert_eq!(sums.ordered, Amount { quantity: 13, cents: 65 });
        assert_eq!(sums.confirmed, Amount { quantity: 3, cents: 15 });
        assert_eq!(sums.cancelled, Amount { quantity: 10, cents: 50 });
        assert_eq!(sums.rejected, Amount::default());
    }
    // What is there is gone on with; what was emptied is begun anew, by hand or by the call.
    let again = report.begin().await.unwrap();
    assert_eq!((again.generation, again.former), (first.generation, None));
    let connection = db.patient().await;
    connection.execute_unprepared("DELETE FROM report_order").await.unwrap();
    let second = report.begin().await.unwrap();
    assert_eq!(second.former, Some(first.generation));
    assert!(report.products(None, 10).await.unwrap().is_empty());
    assert_eq!(learn(&db, facts).await, 4);
    let third = report.rebuild().await.unwrap();
    assert_eq!(report.whole_generation().await.unwrap(), Some(third));
    assert!(third != second.generation && report.products(None, 10).await.unwrap().is_empty());
}

/// Whatever somebody takes out, and whatever is learned behind it.
#[tokio::test]
async fn a_report_that_is_not_whole_begins_anew() {
    let db = TestDb::new().await;
    let connection = db.patient().await;
    let report = ReportStore::new(connection.clone());
    let item = |sku: &str| PricedItem { sku: sku.into(), quantity: 1, unit_price_cents: 5 };
    let ordered =
        |id, skus: &[&str]| (id, Fact::Ordered(skus.iter().map(|sku| item(sku)).collect()));
    let [one, two, three] = [(); 3].map(|()| OrderId::generate());
    let known = || vec![ordered(one, &["a", "b"]), (one, Fact::Answered(Ending::Confirmed))];
    let new = [
        vec![],
        vec![ordered(two, &["a"])],
        vec![ordered(two, &["a", "b"])],
        vec![ordered(two, &["a", "b"]), ordered(three, &["c"])],
        // Of the very order that was gone.
        vec![(one, Fact::Cancelled)],
    ];
    for (taken, harmless) in [
        ("DELETE FROM report_product", false),
        ("DELETE FROM report_product WHERE sku = 'b'", false),
        ("DELETE FROM report_order", false),
        ("DELETE FROM report_product WHERE sku = 'z'", true),
    ] {
        for facts in &new {
            let before = report.rebuild().await.unwrap();
            assert_eq!(learn(&db, known()).await, 2);
            assert_eq!(learn(&db, known()).await, 0);
            assert_eq!(report.whole_generation().await.unwrap(), Some(before));
            connection.execute_unprepared(taken).await.unwrap();
            // What is taken from a product that is gone is refused, and changes nothing.
            let _ = try_to_learn(&db, facts.clone()).await;
            let begun = report.begin().await.unwrap();
            let what = format!("{taken}, then {facts:?}");
            if harmless {
                assert_eq!((begun.generation, begun.former), (before, None), "{what}");
                continue;
            }
            assert_eq!(begun.former, Some(before), "{what}");
            assert!(report.products(None, 10).await.unwrap().is_empty(), "{what}");
            // Once, and no other replica does it again.
            let other = report.begin().await.unwrap();
            assert_eq!((other.generation, other.former), (begun.generation, None), "{what}");
        }
    }
}

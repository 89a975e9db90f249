//! Requests that meet.

use std::collections::BTreeMap;
use std::time::Instant;

use halfmsg_service_kit::db::begin_write;
use sea_orm::{ConnectionTrait, DatabaseConnection, DbBackend, Statement};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;
use uuid::Uuid;

use super::{
    DEADLINE, available, item, items, moved, movements, product, request, restore, restore_one,
    retried, store_of,
};
use crate::model::DeductionState;
use crate::store::barrier::{Deduct, Restore, deduct_in_tx, restore_in_tx};
use crate::store::receipts::Received;

/// The restore waits for the deduct, and then gives back exactly what it took.
pub async fn a_restore_that_meets_an_uncommitted_deduct(database: &DatabaseConnection) {
    let store = store_of(database);
    let (sku, order) = (product(&store, 10).await, Uuid::now_v7());
    let deducting = begin_write(database).await.unwrap();
    let done = deduct_in_tx(&deducting, order, &items(&[(&sku, 3)]), false).await.unwrap();
    assert_eq!(done, Deduct::Deducted { before: false });
    let restoring = restoring(database, order, &sku);
    until_it_waits(database, &restoring).await;
    deducting.commit().await.unwrap();
    assert_eq!(ended(restoring).await, Restore::Restored(vec![item(&sku, 3)]));
    assert_eq!(available(&store, &sku).await, 10);
    assert_eq!(movements(&store, order).await, moved(&sku, &[("deduct", 3), ("restore", 3)]));
}

/// The restore waits, finds the barrier free, and closes it.
pub async fn a_restore_that_meets_a_deduct_that_is_rolled_back(database: &DatabaseConnection) {
    let store = store_of(database);
    let (sku, order) = (product(&store, 10).await, Uuid::now_v7());
    let wanted = items(&[(&sku, 3)]);
    let deducting = begin_write(database).await.unwrap();
    deduct_in_tx(&deducting, order, &wanted, false).await.unwrap();
    let restoring = restoring(database, order, &sku);
    until_it_waits(database, &restoring).await;
    deducting.rollback().await.unwrap();
    assert_eq!(ended(restoring).await, Restore::Voided);
    let late = store.deduct(order, &wanted, false).await.unwrap();
    assert_eq!(late, Deduct::OrderVoid(DeductionState::Void));
    assert_eq!(available(&store, &sku).await, 10);
    assert_eq!(movements(&store, order).await, moved(&sku, &[("void", 0)]));
}

/// The deduct waits for the restore, and then takes nothing.
pub async fn a_deduct_that_meets_an_uncommitted_restore(database: &DatabaseConnection) {
    let store = store_of(database);
    let (sku, order) = (product(&store, 10).await, Uuid::now_v7());
    let restoring = begin_write(database).await.unwrap();
    let voided = restore_in_tx(&restoring, &[request(order, &sku)]).await.unwrap();
    assert_eq!(voided, [Restore::Voided]);
    let deducting = {
        let (store, wanted) = (store.clone(), items(&[(&sku, 3)]));
        tokio::spawn(async move { store.deduct(order, &wanted, false).await.unwrap() })
    };
    until_it_waits(database, &deducting).await;
    restoring.commit().await.unwrap();
    assert_eq!(ended(deducting).await, Deduct::OrderVoid(DeductionState::Void));
    assert_eq!(available(&store, &sku).await, 10);
}

/// Many orders at once for more than there is: exactly what is there is taken.
pub async fn a_hot_product_is_never_oversold(database: &DatabaseConnection) {
    const ORDERS: usize = 16;
    const STOCK: i64 = 10;
    let store = store_of(database);
    for quantity in [1, 3] {
        let sku = product(&store, STOCK).await;
        let mut tasks = JoinSet::new();
        for _ in 0..ORDERS {
            let (store, wanted, order) =
                (store.clone(), items(&[(&sku, quantity)]), Uuid::now_v7());
            tasks.spawn(async move { retried(|| store.deduct(order, &wanted, false)).await });
        }
        let answers = timeout(DEADLINE, tasks.join_all()).await.unwrap();
        let taken = answers.iter().filter(|done| matches!(done, Deduct::Deducted { .. })).count();
        let refused = answers.iter().filter(|done| matches!(done, Deduct::Refused { .. })).count();
        assert_eq!(taken as i64, STOCK / quantity);
        assert_eq!(taken + refused, ORDERS);
        assert_eq!(available(&store, &sku).await, STOCK % quantity);
    }
}

/// The same request many times at once takes its items once.
pub async fn one_order_deducted_by_many_at_once(database: &DatabaseConnection) {
    let store = store_of(database);
    let (sku, order) = (product(&store, 10).await, Uuid::now_v7());
    let mut tasks = JoinSet::new();
    for _ in 0..8 {
        let (store, wanted) = (store.clone(), items(&[(&sku, 3)]));
        tasks.spawn(async move { retried(|| store.deduct(order, &wanted, false)).await });
    }
    let answers = timeout(DEADLINE, tasks.join_all()).await.unwrap();
    let first = answers.iter().filter(|done| **done == Deduct::Deducted { before: false });
    assert_eq!(first.count(), 1);
    assert!(answers.iter().all(|done| matches!(done, Deduct::Deducted { .. })), "{answers:?}");
    assert_eq!(available(&store, &sku).await, 7);
}

/// A receipt that is sent many times at once adds once.
pub async fn one_receipt_by_many_at_once(database: &DatabaseConnection) {
    let store = store_of(database);
    let sku = product(&store, 0).await;
    let mut tasks = JoinSet::new();
    for _ in 0..8 {
        let (store, sku) = (store.clone(), sku.clone());
        tasks.spawn(async move { retried(|| store.receive(&sku, "racing", 1)).await });
    }
    let answers = timeout(DEADLINE, tasks.join_all()).await.unwrap();
    let added = answers.iter().filter(|done| matches!(done, Received::Added { .. })).count();
    assert_eq!((added, available(&store, &sku).await), (1, 1));
}

/// Deducts and restores of the same orders, in every order and more than once, by many at once:
/// received = available + what is deducted and not restored.
pub async fn conservation_under_load(database: &DatabaseConnection) {
    const ORDERS: usize = 60;
    const WORKERS: usize = 8;
    const STOCK: i64 = 40;
    let store = store_of(database);
    let mut skus = Vec::new();
    for _ in 0..3 {
        skus.push(product(&store, STOCK).await);
    }
    let orders: Vec<Uuid> = (0..ORDERS).map(|_| Uuid::now_v7()).collect();
    let mut tasks = JoinSet::new();
    for worker in 0..WORKERS {
        let (database, orders, skus) = (database.clone(), orders.clone(), skus.clone());
        tasks.spawn(async move {
            for step in 0..ORDERS {
                work(&database, &orders, &skus, worker, (step * 7 + worker * 13) % ORDERS).await;
            }
        });
    }
    timeout(DEADLINE, tasks.join_all()).await.unwrap();
    let mut left: BTreeMap<&str, i64> = skus.iter().map(|sku| (sku.as_str(), STOCK)).collect();
    for order in orders {
        for (kind, sku, quantity) in movements(&store, order).await {
            *left.get_mut(sku.as_str()).unwrap() += match kind.as_str() {
                "deduct" => -quantity,
                "restore" => quantity,
                _ => 0,
            };
        }
    }
    for (sku, left) in left {
        assert!(left >= 0, "{sku}: {left}");
        assert_eq!(available(&store, sku).await, left, "{sku}");
    }
}

/// One step of a worker. The same order always asks for the same items; a third is never restored.
async fn work(
    database: &DatabaseConnection,
    orders: &[Uuid],
    skus: &[String],
    worker: usize,
    at: usize,
) {
    let (one, other) = (&skus[at % 3], &skus[(at + 1) % 3]);
    if worker.is_multiple_of(2) || at.is_multiple_of(3) {
        let store = store_of(database);
        let wanted = items(&[(one, 2), (other, 1)]);
        retried(|| store.deduct(orders[at], &wanted, false)).await;
    } else {
        let next = (at + 1) % orders.len();
        let batch = [request(orders[at], one), request(orders[next], other)];
        let batch = if next.is_multiple_of(3) { &batch[..1] } else { &batch };
        retried(|| restore(database, batch)).await;
    }
}

fn restoring(database: &DatabaseConnection, order: Uuid, sku: &str) -> JoinHandle<Restore> {
    let (database, sku) = (database.clone(), sku.to_owned());
    tokio::spawn(async move { restore_one(&database, order, &sku).await })
}

async fn ended<T>(task: JoinHandle<T>) -> T {
    timeout(DEADLINE, task).await.unwrap().unwrap()
}

/// Until the task waits for another transaction. SQLite does not tell: there the task cannot even
/// begin its transaction, so there is nothing to wait for.
async fn until_it_waits<T>(database: &DatabaseConnection, task: &JoinHandle<T>) {
    let began = Instant::now();
    while database.get_database_backend() == DbBackend::Postgres {
        let sql = "SELECT count(*) FROM pg_stat_activity \
                   WHERE datname = current_database() AND wait_event_type = 'Lock'";
        let row = database.query_one_raw(Statement::from_string(DbBackend::Postgres, sql)).await;
        let waiting: i64 = row.unwrap().unwrap().try_get_by_index(0).unwrap();
        if waiting > 0 {
            break;
        }
        assert!(began.elapsed() < DEADLINE, "nobody waits");
    }
    tokio::task::yield_now().await;
    assert!(!task.is_finished(), "it does not wait for the other transaction");
}

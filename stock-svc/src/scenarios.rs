//! What must hold at the barrier, on any database: conformance row 35, and conservation under
//! load. Only for tests, here and of others (feature `scenarios`).
//!
//! Every scenario takes a connection to a database with the schema, and works on products and
//! orders of its own, so that all can run on one. A scenario that does not hold panics.
//!
//! # Layout
//! - [`order`](mod@order): one request after the other
//! - [`race`]: requests that meet
//! - [`group`]: deductions that share a transaction
//! - [`held_up`]: and what others hold of their products
#![allow(clippy::unwrap_used, reason = "only tests run it, and a scenario ends by panicking")]

pub mod group;
pub mod held_up;
pub mod order;
pub mod race;

use std::time::{Duration, Instant};

use halfmsg_migrations::{StockMigrator, migrate};
use halfmsg_service_kit::db::{DbOptions, begin_write, connect};
use sea_orm::DatabaseConnection;
use uuid::Uuid;

use crate::model::{Item, Items};
use crate::store::barrier::{Restore, RestoreRequest, restore_in_tx};
use crate::store::movements::MovementFilter;
use crate::store::receipts::Received;
use crate::store::{StockStore, StoreError};

/// Within this a scenario must have gone on.
const DEADLINE: Duration = Duration::from_secs(120);

/// All scenarios, on the database at `url`, which gets the schema if it has none.
///
/// # Panics
/// If one does not hold.
pub async fn all(url: &str) {
    let database = patient(url).await;
    migrate::<StockMigrator>(&database).await.unwrap();
    order::restore_before_deduct(&database).await;
    order::deduct_after_restore(&database).await;
    order::restore_twice_and_deduct_twice(&database).await;
    order::a_refused_deduct_repeated_after_stock_came_in(&database).await;
    order::other_items_change_nothing(&database).await;
    order::all_or_none(&database).await;
    order::a_batch_is_as_one_after_the_other(&database).await;
    order::a_receipt_counts_once(&database).await;
    order::a_seed_counts_once(&database).await;
    race::a_restore_that_meets_an_uncommitted_deduct(&database).await;
    race::a_restore_that_meets_a_deduct_that_is_rolled_back(&database).await;
    race::a_deduct_that_meets_an_uncommitted_restore(&database).await;
    race::a_hot_product_is_never_oversold(&database).await;
    race::one_order_deducted_by_many_at_once(&database).await;
    race::one_receipt_by_many_at_once(&database).await;
    race::conservation_under_load(&database).await;
    group::those_that_wait_go_together(&database).await;
    group::a_taken_barrier_holds_up_one(&database).await;
    group::an_unreadable_row_costs_no_other(&database).await;
    group::who_hangs_up_holds_up_nobody(&database).await;
    group::a_locked_product_holds_up_its_own(&database).await;
    group::a_crowd_sells_what_there_is(&database).await;
    group::a_group_dies_whole(&database).await;
    let others = patient(url).await;
    held_up::who_wants_what_is_free_again_is_answered(&database, url).await;
    held_up::waiting_never_uses_the_pool_up(&database, &others).await;
    held_up::a_batch_leaves_out_what_is_held(&database, &others).await;
    held_up::what_is_only_in_use_is_not_held(&database, &others).await;
    held_up::dies_wherever_it_waits(url, &others).await;
    others.close().await.unwrap();
    database.close().await.unwrap();
}

/// One whose operations may take as long as a busy machine needs: after an error of one that had its effect
/// all the same, what comes next is another case.
fn store_of(database: &DatabaseConnection) -> StockStore {
    StockStore::new(database.clone()).with_deadline(DEADLINE)
}

/// A pool that waits as patiently.
async fn patient(url: &str) -> DatabaseConnection {
    let options = DbOptions {
        acquire_timeout: DEADLINE,
        sqlite_busy_timeout: DEADLINE,
        ..DbOptions::default()
    };
    connect(url, &options).await.unwrap()
}

/// A sku that nobody else uses.
fn new_sku() -> String {
    format!("s{}", Uuid::now_v7().simple())
}

/// A product of its own with some stock.
async fn product(store: &StockStore, quantity: i64) -> String {
    let sku = new_sku();
    store.put_product(&sku, "a product", 100).await.unwrap();
    if quantity > 0 {
        let received = store.receive(&sku, "first", quantity).await.unwrap();
        assert_eq!(received, Received::Added { available: quantity });
    }
    sku
}

fn item(sku: &str, quantity: i64) -> Item {
    Item { sku: sku.to_owned(), quantity }
}

fn items(list: &[(&str, i64)]) -> Items {
    Items::new(list.iter().map(|(sku, quantity)| item(sku, *quantity)).collect()).unwrap()
}

async fn available(store: &StockStore, sku: &str) -> i64 {
    store.product(sku).await.unwrap().unwrap().available
}

/// What a message asks for, with a sku that only the trace of a void order may use.
fn request(order_id: Uuid, sku: &str) -> RestoreRequest {
    RestoreRequest { order_id, skus: vec![sku.to_owned()], reason: Some("test".into()) }
}

/// As the consumer does, but for the inbox.
async fn restore(
    database: &DatabaseConnection,
    requests: &[RestoreRequest],
) -> Result<Vec<Restore>, StoreError> {
    let transaction = begin_write(database).await?;
    let answers = restore_in_tx(&transaction, requests).await?;
    transaction.commit().await?;
    Ok(answers)
}

async fn restore_one(database: &DatabaseConnection, order_id: Uuid, sku: &str) -> Restore {
    let mut answers = restore(database, &[request(order_id, sku)]).await.unwrap();
    assert_eq!(answers.len(), 1);
    answers.remove(0)
}

/// Kind, sku and quantity of an order's movements, in their order.
async fn movements(store: &StockStore, order_id: Uuid) -> Vec<(String, String, i64)> {
    let filter = MovementFilter { order_id: Some(order_id), limit: 500, ..Default::default() };
    let found = store.movements(filter).await.unwrap();
    found.into_iter().map(|one| (one.kind, one.sku, one.quantity)).collect()
}

/// [`movements`] of one product as they are expected.
fn moved(sku: &str, expected: &[(&str, i64)]) -> Vec<(String, String, i64)> {
    let owned = |(kind, quantity): &(&str, i64)| ((*kind).to_owned(), sku.to_owned(), *quantity);
    expected.iter().map(owned).collect()
}

/// As a client and the consumer do: a busy database is asked again.
async fn retried<T, F>(mut work: impl FnMut() -> F) -> T
where
    F: Future<Output = Result<T, StoreError>>,
{
    let began = Instant::now();
    loop {
        match work().await {
            Ok(done) => return done,
            Err(error) if error.is_transient() && began.elapsed() < DEADLINE => {}
            Err(error) => panic!("{error}"),
        }
    }
}

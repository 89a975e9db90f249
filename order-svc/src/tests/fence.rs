//! The fence: whoever writes the order's row first has decided.

use std::time::Duration;

use bytes::Bytes;
use halfmsg_producer::{LocalTransactionState, TransactionListener};
use halfmsg_service_kit::db::begin_write;
use sea_orm::ConnectionTrait;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::support::{
    PATIENCE, TestDb, UNHURRIED, apples, draft, half_of, known, listener, transaction,
};
use crate::decision::Fate;
use crate::draft::{Draft, Prices};
use crate::fault::Fault;
use crate::listener::LocalOrder;
use crate::model::{OrderId, OrderStatus};
use crate::reason::VoidReason;
use crate::store::{OrderStore, StoreError, StoreLimits, Stored};
use crate::tests::support::StubStock;

use LocalTransactionState::{Commit, Rollback, Unknown};

fn prices() -> Prices {
    Prices::from([("apple".to_owned(), 120)])
}

fn local(draft: &Draft, fault: Option<Fault>) -> LocalOrder {
    let (tell, _) = oneshot::channel();
    LocalOrder { id: draft.id, order: apples(2), fault, tell }
}

#[tokio::test]
async fn a_tombstone_stops_the_local_transaction_which_leaves_nothing_behind() {
    let (db, stock) = (TestDb::new().await, StubStock::start().await);
    let store = db.store().await;
    let (listener, draft) = (listener(&store, &stock), draft());
    let half = half_of(&draft);
    assert_eq!(listener.check_local_transaction(&half).await.unwrap(), Commit);
    let tombstone = store.find(draft.id).await.unwrap().unwrap();
    assert_eq!(tombstone.status, OrderStatus::Void);
    assert_eq!(tombstone.user_id.as_deref(), Some("u-1"));
    assert_eq!((tombstone.items[0].quantity, tombstone.items[0].unit_price_cents), (2, None));

    let confirmed = draft.standing(&prices()).unwrap();
    assert_eq!(store.insert_order(&confirmed, Instant::now()).await.unwrap(), Stored::Fenced);
    let state = listener.execute_local_transaction(&half, local(&draft, None)).await.unwrap();
    assert_eq!(state, Commit);
    assert_eq!(store.find(draft.id).await.unwrap(), Some(tombstone));
}

#[tokio::test]
async fn a_check_after_the_local_transaction_agrees_with_it() {
    let (db, stock) = (TestDb::new().await, StubStock::start().await);
    let store = db.store().await;
    let listener = listener(&store, &stock);
    for (fault, expected) in [
        (None, Rollback),
        (Some(Fault::PriceLookup), Rollback),
        (Some(Fault::DeductRefused), Rollback),
        (Some(Fault::AfterDeduct), Commit),
        (Some(Fault::OrderInsert), Commit),
    ] {
        let draft = draft();
        let half = half_of(&draft);
        let executed = listener.execute_local_transaction(&half, local(&draft, fault)).await;
        assert_eq!(executed.unwrap(), expected, "{fault:?}");
        assert_eq!(listener.check_local_transaction(&half).await.unwrap(), expected, "{fault:?}");
    }
}

#[tokio::test]
async fn a_batch_gives_each_half_its_own_answer() {
    let (db, stock) = (TestDb::new().await, StubStock::start().await);
    let store = db.store().await;
    let listener = listener(&store, &stock);
    let (stands, missing, foreign) = (draft(), draft(), draft());
    for draft in [&stands, &foreign] {
        store.insert_order(&draft.standing(&prices()).unwrap(), Instant::now()).await.unwrap();
    }
    let mut undecodable = half_of(&draft());
    undecodable.payload = Some(Bytes::from_static(b"\xff not json"));
    let mut empty = half_of(&draft());
    empty.payload = None;
    let mut other = half_of(&foreign);
    other.transaction_id = transaction();
    let halves = [half_of(&missing), undecodable, half_of(&stands), other, empty];
    let states = known(listener.check_local_transactions(&halves).await);
    assert_eq!(states, [Commit, Unknown, Rollback, Unknown, Unknown]);
}

#[tokio::test]
async fn a_running_local_transaction_makes_its_own_half_unknown_within_the_lock_timeout() {
    let (db, stock) = (TestDb::new().await, StubStock::start().await);
    let lock_timeout = StoreLimits::default().lock_timeout;
    let store = db.store_with(StoreLimits { lock_timeout, ..UNHURRIED }).await;
    let listener = listener(&store, &stock);
    let (running, stands, missing) = (draft(), draft(), draft());
    store.insert_order(&stands.standing(&prices()).unwrap(), Instant::now()).await.unwrap();
    let connection = db.patient().await;
    let tx = begin_write(&connection).await.unwrap();
    let order = running.standing(&prices()).unwrap();
    crate::store::insert_order_in_tx(&tx, &order).await.unwrap();

    let halves = [half_of(&running), half_of(&stands), half_of(&missing)];
    let started = Instant::now();
    let states = known(listener.check_local_transactions(&halves).await);
    // Nothing else would end its wait before the batch's time is up.
    assert!(started.elapsed() < PATIENCE / 2, "{:?}", started.elapsed());
    // SQLite has one writer, so no tombstone at all can be written meanwhile.
    let of_missing = if db.is_sqlite() { Unknown } else { Commit };
    assert_eq!(states, [Unknown, Rollback, of_missing]);
    let found = store.fence_check(std::slice::from_ref(&running)).await;
    assert!(matches!(found[0], Err(StoreError::Contended(_))), "{found:?}");

    tx.commit().await.unwrap();
    let states = known(listener.check_local_transactions(&halves).await);
    assert_eq!(states, [Rollback, Rollback, Commit]);
}

#[tokio::test]
async fn an_order_voided_before_its_half_was_known_is_delivered_and_adopted() {
    let (db, stock) = (TestDb::new().await, StubStock::start().await);
    let store = db.store().await;
    let listener = listener(&store, &stock);
    let draft = draft();
    let unclaimed = Draft {
        transaction_id: halfmsg_producer::TransactionId::from_uuid(draft.id.as_uuid()),
        ..draft.clone()
    };
    let void = unclaimed.void(VoidReason::Abandoned.to_text(""), None, false);
    let row = store.write_void(&void).await.unwrap();
    assert!(Fate::from(&row).is_unclaimed());
    assert_eq!(listener.check_local_transaction(&half_of(&draft)).await.unwrap(), Commit);
    let row = store.find(draft.id).await.unwrap().unwrap();
    assert_eq!(row.transaction_id, draft.transaction_id);
}

#[tokio::test]
async fn a_void_row_never_replaces_an_order() {
    let db = TestDb::new().await;
    let (store, draft) = (db.store().await, draft());
    let order = draft.standing(&prices()).unwrap();
    assert_eq!(store.insert_order(&order, Instant::now()).await.unwrap(), Stored::Inserted);
    let void = draft.void(VoidReason::OrderInsertFailed.to_text(""), None, false);
    assert_eq!(store.write_void(&void).await.unwrap(), order);
    assert_eq!(store.find(draft.id).await.unwrap(), Some(order));
}

#[tokio::test]
async fn a_failed_database_transaction_leaves_no_part_of_an_order() {
    let db = TestDb::new().await;
    let (store, draft) = (db.store().await, draft());
    let mut order = draft.standing(&prices()).unwrap();
    order.items.push(order.items[0].clone());
    assert!(matches!(
        store.insert_order(&order, Instant::now()).await,
        Err(StoreError::Refused(_))
    ));
    assert_eq!(store.find(draft.id).await.unwrap(), None);
    let lines = "SELECT 1 FROM order_line";
    let connection = db.patient().await;
    let statement =
        sea_orm::Statement::from_string(connection.get_database_backend(), lines.to_owned());
    assert!(connection.query_all_raw(statement).await.unwrap().is_empty());
}

/// The check races the local transaction, side by side: exactly one of them writes each row.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_side_wins_each_race() {
    let db = TestDb::new().await;
    let store = db.store().await;
    let mut won = [0; 2];
    for round in 0..60_u64 {
        let draft = draft();
        let order = draft.standing(&prices()).unwrap();
        let (ours, theirs) = (store.clone(), store.clone());
        let pause = Duration::from_micros(round * 37 % 1_500);
        let insert = tokio::spawn(async move {
            tokio::time::sleep(pause).await;
            ours.insert_order(&order, Instant::now()).await
        });
        let (checked, stored) = (check_until_known(&theirs, &draft).await, insert.await.unwrap());
        let row = store.find(draft.id).await.unwrap().unwrap();
        match stored.unwrap() {
            Stored::Inserted => {
                assert_eq!((row.status, checked), (OrderStatus::Confirmed, Rollback))
            }
            Stored::Fenced => assert_eq!((row.status, checked), (OrderStatus::Void, Commit)),
        }
        won[usize::from(checked == Commit)] += 1;
    }
    assert_eq!(won.iter().sum::<u32>(), 60, "{won:?}");
}

async fn check_until_known(store: &OrderStore, draft: &Draft) -> LocalTransactionState {
    super::support::until("the order's fate", async || {
        let found = store.fence_check(std::slice::from_ref(draft)).await;
        let found = found[0].as_ref().ok()?;
        Some(found.fate.decides(draft.transaction_id, draft.flow).unwrap())
    })
    .await
}

#[tokio::test]
async fn nothing_is_asked_of_an_empty_batch() {
    let db = TestDb::new().await;
    assert!(db.store().await.fence_check(&[]).await.is_empty());
    assert_eq!(db.store().await.find(OrderId::generate()).await.unwrap(), None);
}

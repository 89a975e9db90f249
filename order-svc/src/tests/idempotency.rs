//! Idempotency-Key at the store, with the clock in the test's hand.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use halfmsg_service_kit::db;
use tokio::time::Instant;

use super::support::{TestDb, apples, transaction};
use crate::draft::{Draft, Prices};
use crate::model::{OrderId, OrderStatus};
use crate::store::idempotency::{Claim, RepeatKey, StoredAnswer};
use crate::store::{OrderStore, Stored};

const LEASE: Duration = Duration::from_secs(15);

fn key(key: &str, body: &str) -> RepeatKey {
    RepeatKey { key: key.into(), body_hash: body.into() }
}

async fn claim(store: &OrderStore, body: &str, now: DateTime<Utc>) -> Claim {
    store.claim_key(&key("k", body), &apples(2), now, LEASE).await.unwrap()
}

async fn first(store: &OrderStore, now: DateTime<Utc>) -> OrderId {
    match claim(store, "b", now).await {
        Claim::Place(id) => id,
        other => panic!("the first claim is {other:?}"),
    }
}

fn after_lease(now: DateTime<Utc>) -> DateTime<Utc> {
    now + TimeDelta::from_std(LEASE).unwrap() + TimeDelta::milliseconds(1)
}

#[tokio::test]
async fn the_first_runs_and_the_others_wait_then_hear_its_answer() {
    let db = TestDb::new().await;
    let (store, now) = (db.store().await, db::now());
    let id = first(&store, now).await;
    assert_eq!(claim(&store, "b", now).await, Claim::Running(Some(id)));
    let answer = StoredAnswer { order_id: id, status: 201, body: "{}".into() };
    store.keep_answer("u-1", "k", &answer).await.unwrap();
    assert_eq!(claim(&store, "b", now).await, Claim::Answered(answer.clone()));
    assert_eq!(claim(&store, "b", after_lease(now)).await, Claim::Answered(answer));
}

#[tokio::test]
async fn another_body_is_another_order() {
    let db = TestDb::new().await;
    let (store, now) = (db.store().await, db::now());
    let id = first(&store, now).await;
    assert_eq!(claim(&store, "other", now).await, Claim::OtherBody(id));
    assert_eq!(claim(&store, "other", after_lease(now)).await, Claim::OtherBody(id));
    // Another user's key of the same name is another key.
    let mut order = apples(2);
    order.user_id = "u-2".into();
    let theirs = store.claim_key(&key("k", "other"), &order, now, LEASE).await.unwrap();
    assert!(matches!(theirs, Claim::Place(_)));
}

#[tokio::test]
async fn after_the_lease_the_successor_voids_the_order_that_never_came_and_begins_anew() {
    let db = TestDb::new().await;
    let (store, now) = (db.store().await, db::now());
    let old = first(&store, now).await;
    let Claim::Place(new) = claim(&store, "b", after_lease(now)).await else {
        panic!("the successor places an order")
    };
    assert_ne!(old, new);
    let row = store.find(old).await.unwrap().unwrap();
    assert_eq!((row.status, row.stock_untouched), (OrderStatus::Void, false));
    // The first one, still alive, comes too late.
    let draft = Draft::new(old, transaction(), &apples(2));
    let order = draft.standing(&Prices::from([("apple".to_owned(), 1)])).unwrap();
    assert_eq!(store.insert_order(&order, Instant::now()).await.unwrap(), Stored::Fenced);
    // Its answer is not the successor's.
    let late = StoredAnswer { order_id: old, status: 409, body: "{}".into() };
    store.keep_answer("u-1", "k", &late).await.unwrap();
    assert_eq!(claim(&store, "b", after_lease(now)).await, Claim::Running(Some(new)));
}

#[tokio::test]
async fn after_the_lease_the_fate_of_an_order_that_came_is_the_answer() {
    let db = TestDb::new().await;
    let (store, now) = (db.store().await, db::now());
    let id = first(&store, now).await;
    let draft = Draft::new(id, transaction(), &apples(2));
    let order = draft.standing(&Prices::from([("apple".to_owned(), 1)])).unwrap();
    store.insert_order(&order, Instant::now()).await.unwrap();
    assert_eq!(claim(&store, "b", now).await, Claim::Running(Some(id)));
    assert_eq!(claim(&store, "b", after_lease(now)).await, Claim::Settled(order));
}

#[tokio::test]
async fn a_released_key_is_free_unless_it_was_answered() {
    let db = TestDb::new().await;
    let (store, now) = (db.store().await, db::now());
    let id = first(&store, now).await;
    store.release_key("u-1", "k", OrderId::generate()).await.unwrap();
    assert_eq!(claim(&store, "b", now).await, Claim::Running(Some(id)));
    store.release_key("u-1", "k", id).await.unwrap();
    let id = first(&store, now).await;
    let answer = StoredAnswer { order_id: id, status: 409, body: "{}".into() };
    store.keep_answer("u-1", "k", &answer).await.unwrap();
    store.release_key("u-1", "k", id).await.unwrap();
    assert_eq!(claim(&store, "b", now).await, Claim::Answered(answer));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_at_once_one_places_an_order() {
    let db = TestDb::new().await;
    let (store, now) = (db.store().await, db::now());
    for now in [now, after_lease(now)] {
        let claims = (0..8).map(|_| {
            let store = store.clone();
            tokio::spawn(async move {
                // On PostgreSQL a claim that meets another one may be told to come again.
                store.claim_key(&key("k", "b"), &apples(2), now, LEASE).await.ok()
            })
        });
        let claims = futures::future::join_all(claims.collect::<Vec<_>>()).await;
        let placed = claims
            .into_iter()
            .filter(|claim| matches!(claim.as_ref().unwrap(), Some(Claim::Place(_))));
        assert_eq!(placed.count(), 1);
    }
}

#[tokio::test]
async fn old_keys_are_forgotten_and_young_ones_are_not() {
    let db = TestDb::new().await;
    let (store, now) = (db.store().await, db::now());
    let id = first(&store, now).await;
    let hour = TimeDelta::hours(1);
    assert_eq!(store.forget_keys(now - hour).await.unwrap(), 0);
    assert_eq!(claim(&store, "b", now).await, Claim::Running(Some(id)));
    assert_eq!(store.forget_keys(now + hour).await.unwrap(), 1);
    assert_ne!(first(&store, now).await, id);
}

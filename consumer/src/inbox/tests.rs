//! What is remembered, and what is forgotten.

use halfmsg_db::begin_write;

use super::*;
use crate::config::KeyOrder;
use crate::message::example;
use crate::worker::tests::world;

#[tokio::test]
async fn places_of_one_topic_are_forgotten_and_nothing_else() {
    let world = world(0, KeyOrder::Keep).await;
    let database = world.worker.deliverer.database.clone();
    let id = "0198c0de-0000-7000-8000-000000000001";
    let of = |topic: &str, offset| ReceivedMessage { topic: topic.into(), ..example(offset, None) };
    let mut messages: Vec<_> = (0..2_500).map(|offset| of("a_b", offset)).collect();
    // Another topic's, though they begin alike; and one that has an id.
    messages.extend([of("a_b-3", 1), of("axb", 1), of("a_b.c", 1)]);
    messages.push(ReceivedMessage { topic: "a_b".into(), ..example(9, Some(id)) });
    let transaction = begin_write(&database).await.unwrap();
    let fresh = remember_in_tx(&transaction, "s", false, &messages).await.unwrap();
    assert_eq!(fresh.len(), messages.len());
    remember_in_tx(&transaction, "another", false, &messages[..1]).await.unwrap();
    transaction.commit().await.unwrap();
    let inbox = Inbox::new(database.clone(), "s");
    assert_eq!(inbox.forget_places("a_b").await.unwrap(), 2_500);
    assert_eq!(inbox.forget_places("a_b").await.unwrap(), 0);
    let left = Query::select().column("message_key").from("inbox").to_owned();
    assert_eq!(database.query_all(&left).await.unwrap().len(), 5);
}

#[tokio::test]
async fn of_a_key_the_newest_are_remembered() {
    const KEEP: u64 = 10;
    let world = world(0, KeyOrder::Keep).await;
    let database = world.worker.deliverer.database.clone();
    let of = |offset: i64, key: Option<String>| ReceivedMessage {
        key: key.map(Into::into),
        ..example(offset, None)
    };
    let remember = async |subscriber: &str, messages: &[ReceivedMessage]| {
        let transaction = begin_write(&database).await.unwrap();
        let fresh = remember_in_tx(&transaction, subscriber, true, messages).await.unwrap();
        transaction.commit().await.unwrap();
        fresh.len()
    };
    // 25 of a hot key one after the other, 15 of another one together, and many keys with few.
    for offset in 0..25 {
        remember("s", &[of(offset, Some("hot".into()))]).await;
    }
    let together: Vec<_> = (100..115).map(|n| of(n, Some("together".into()))).collect();
    remember("s", &together).await;
    let few: Vec<_> = (200..500).map(|n| of(n, Some(format!("k{}", n % 150)))).collect();
    remember("s", &few).await;
    let keyless: Vec<_> = (500..520).map(|n| of(n, None)).collect();
    remember("s", &keyless).await;
    let theirs: Vec<_> = (0..25).map(|n| of(n, Some("hot".into()))).collect();
    remember("another", &theirs[..1]).await;
    // What is young stays, however many there are; it is, unless the machine stood still.
    let mut subscriber = "young".to_owned();
    loop {
        let began = now();
        for offset in 0..25 {
            remember(subscriber.as_str(), &[of(offset, Some("hot".into()))]).await;
        }
        let forgotten = clean_by_key(&database, subscriber.as_str(), KEEP, 4).await.unwrap();
        if now() - began < LEAST_AGE {
            assert_eq!(forgotten, 0);
            break;
        }
        subscriber.push_str(" again");
    }
    make_older(&database).await;
    // The oldest of all waits for a retry.
    let transaction = begin_write(&database).await.unwrap();
    let place = crate::retry::Place { next_at: None, dead_letter_id: None };
    let none = crate::retry::Failures::default();
    crate::retry::store_in_tx(&transaction, "s", &theirs[0], &none, place).await.unwrap();
    transaction.commit().await.unwrap();
    // In statements of four: 25 less the newest ten, and less that one.
    assert_eq!(clean_by_key(&database, "s", KEEP, 4).await.unwrap(), 14);
    assert_eq!(clean_by_key(&database, "s", KEEP, 4).await.unwrap(), 0);
    // What is forgotten has its effect again; the rest has none, nor what waits.
    assert_eq!(remember("s", &theirs).await, 14);
    assert_eq!(remember("s", &few).await + remember("s", &keyless).await, 0);
    // Of what came together, nobody can tell the newest: nothing, until others come.
    assert_eq!(remember("s", &together).await, 0);
    for offset in 600..610 {
        remember("s", &[of(offset, Some("together".into()))]).await;
    }
    make_older(&database).await;
    // The fourteen, which came together, are the newest now: the ten before them go.
    assert_eq!(clean_by_key(&database, "s", KEEP, 1_000).await.unwrap(), 15 + 10);
}

#[tokio::test]
async fn more_keys_than_one_look_finds_are_all_bounded() {
    const KEYS: i64 = 250;
    let world = world(0, KeyOrder::Keep).await;
    let database = world.worker.deliverer.database.clone();
    for round in 0..3 {
        let of = |n: i64| ReceivedMessage {
            key: Some(format!("k{n}").into()),
            ..example(round * KEYS + n, None)
        };
        let messages: Vec<_> = (0..KEYS).map(of).collect();
        let transaction = begin_write(&database).await.unwrap();
        remember_in_tx(&transaction, "s", true, &messages).await.unwrap();
        transaction.commit().await.unwrap();
    }
    make_older(&database).await;
    let forgotten = clean_by_key(&database, "s", 2, CLEAN_BATCH).await.unwrap();
    assert_eq!(forgotten, u64::try_from(KEYS).unwrap());
}

/// Retries of a key that succeed are none of its newest: they push nothing out, and go in their turn.
#[tokio::test]
async fn a_retry_pushes_nothing_of_its_key_out_and_keeps_its_place() {
    let world = world(0, KeyOrder::GiveUp).await;
    let database = world.worker.deliverer.database.clone();
    let all: Vec<_> =
        (0..20).map(|n| ReceivedMessage { key: Some("k".into()), ..example(n, None) }).collect();
    for one in &all {
        let transaction = begin_write(&database).await.unwrap();
        remember_in_tx(&transaction, "s", true, std::slice::from_ref(one)).await.unwrap();
        transaction.commit().await.unwrap();
    }
    let transaction = begin_write(&database).await.unwrap();
    let gone = ReceivedMessage { key: Some("k".into()), ..example(20, None) };
    let retried = [&all[3..6], &[gone]].concat();
    renew_in_tx(&transaction, "s", true, &retried).await.unwrap();
    transaction.commit().await.unwrap();
    make_older(&database).await;
    let forgets = async |keep| clean_by_key(&database, "s", keep, CLEAN_BATCH).await.unwrap();
    // Those before them, they themselves, those behind them.
    assert_eq!([forgets(17).await, forgets(14).await, forgets(10).await], [3, 3, 4]);
    let transaction = begin_write(&database).await.unwrap();
    let fresh = remember_in_tx(&transaction, "s", true, &all).await.unwrap();
    assert_eq!(fresh, all[..10]);
    // One whose row was gone is remembered until its age ends it.
    assert!(remember_in_tx(&transaction, "s", true, &retried[3..]).await.unwrap().is_empty());
    transaction.rollback().await.unwrap();
    // Nothing else is left but that one and ten.
    assert_eq!(clean(&database, "s", now(), CLEAN_BATCH).await.unwrap(), 11);
}

#[test]
fn a_clock_that_is_set_back_makes_nothing_older_than_what_came_before() {
    let (received, clock) = (Forward(AtomicI64::new(i64::MIN)), now());
    assert_eq!(received.at(clock), clock);
    assert_eq!(received.at(clock - TimeDelta::hours(1)), clock);
    let later = clock + TimeDelta::microseconds(1);
    assert_eq!(received.at(later), later);
}

/// By age alone it is the clock's; by key nothing is later than what the next one will be.
#[tokio::test]
async fn what_is_bounded_by_key_is_received_at_moments_that_never_go_back() {
    let world = world(0, KeyOrder::Keep).await;
    let database = world.worker.deliverer.database.clone();
    let one = ReceivedMessage { key: Some("k".into()), ..example(0, None) };
    let transaction = begin_write(&database).await.unwrap();
    remember_in_tx(&transaction, "s", true, &[one]).await.unwrap();
    transaction.commit().await.unwrap();
    let select = Query::select().column("received_at").from("inbox").to_owned();
    let row = database.query_one(&select).await.unwrap().unwrap();
    let at: DateTime<Utc> = row.try_get("", "received_at").unwrap();
    assert!(RECEIVED.0.load(Ordering::Relaxed) >= at.timestamp_micros(), "{at}");
}

/// All by more than the least age, in their order.
pub(crate) async fn make_older(database: &DatabaseConnection) {
    let found = Query::select()
        .columns(["subscriber", "message_key", "received_at"])
        .from("inbox")
        .to_owned();
    let by = LEAST_AGE + TimeDelta::seconds(1);
    let transaction = begin_write(database).await.unwrap();
    for row in transaction.query_all(&found).await.unwrap() {
        let of = |column| row.try_get::<String>("", column).unwrap();
        let at: DateTime<Utc> = row.try_get("", "received_at").unwrap();
        let mut update = Query::update();
        update
            .table("inbox")
            .value("received_at", at - by)
            .and_where(Expr::col("subscriber").eq(of("subscriber")))
            .and_where(Expr::col("message_key").eq(of("message_key")));
        transaction.execute(&update).await.unwrap();
    }
    transaction.commit().await.unwrap();
}

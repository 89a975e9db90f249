//! What the operations with an identity in their path are asked about, and how it comes to be: orders,
//! half messages that are open or parked, dead letters that stay and dead letters that can be mended.

use std::collections::BTreeMap;

use rdkafka::producer::{FutureProducer, FutureRecord};
use sea_orm::ConnectionTrait;
use serde_json::json;
use uuid::Uuid;

use crate::suite::services::dead_letters::contradict;
use crate::suite::services::http::Answer;
use crate::suite::services::operators::park;
use crate::suite::services::shop::Shop;
use crate::suite::services::shop::settled::database;
use crate::suite::{PATIENCE, until};

/// Enough for every deduction that is asked for by an example.
const RECEIVED: i64 = 1_000_000;
/// Nothing a consumer could read.
const GARBAGE: &str = "[]";

/// By operation and parameter; the empty operation stands for all others.
pub(super) type Targets = BTreeMap<(&'static str, &'static str), String>;

/// By service.
pub(super) async fn targets(shop: &mut Shop) -> BTreeMap<&'static str, Targets> {
    shop.seed("apple", 100, RECEIVED).await;
    let parked = park(shop, "parked").await;
    let shop = &*shop;
    let mended = mended_restore(shop).await;
    let answered = mended_answer(shop).await;
    for topic in [&shop.ground.outbound_topic, &shop.ground.rollback_topic] {
        for _ in 0..3 {
            produce(shop, topic, GARBAGE).await;
        }
    }
    let order = |answer: Answer| answer.order_id().to_string();
    let shown = shop.place(&[("apple", 1)]).send().await.expect(201);
    let cancelled = shop.place(&[("apple", 1)]).send().await.expect(201);
    let lost = || shop.place(&[("apple", 1)]).fault("decision-lost");
    let committed = lost().saga().send().await.expect(202);
    let (dropped, checked) = (lost().send().await.expect(201), lost().send().await.expect(201));
    let own = letters(shop, Of::Orders, 3, &[&answered]).await;
    let stocks = letters(shop, Of::Stock, 3, &[&mended]).await;
    let orders = Targets::from([
        (("", "id"), order(shown)),
        (("cancel_order", "id"), order(cancelled)),
        (("", "transaction_id"), checked.transaction_id()),
        (("commit_half", "transaction_id"), committed.transaction_id()),
        (("rollback_half", "transaction_id"), dropped.transaction_id()),
        (("resume_half", "transaction_id"), parked),
        (("show_dead_letter", "id"), own[0].clone()),
        (("replay_dead_letter", "id"), answered),
        (("discard_dead_letter", "id"), own[1].clone()),
        (("console_show_dead_letter", "id"), stocks[0].clone()),
        (("console_replay_dead_letter", "id"), mended.clone()),
        (("console_discard_dead_letter", "id"), stocks[2].clone()),
    ]);
    let stock = Targets::from([
        (("", "sku"), "apple".into()),
        (("", "id"), stocks[0].clone()),
        (("replay_dead_letter", "id"), mended),
        (("discard_dead_letter", "id"), stocks[1].clone()),
    ]);
    BTreeMap::from([("order-svc", orders), ("stock-svc", stock)])
}

/// Whose dead letters.
#[derive(Clone, Copy)]
enum Of {
    Orders,
    Stock,
}

/// A restore that failed while a table was away, and would succeed now.
async fn mended_restore(shop: &Shop) -> String {
    let stock = database(shop.ground.stock.url()).await;
    let rename = async |from: &str, to: &str| {
        let statement = format!("ALTER TABLE {from} RENAME TO {to}");
        stock.execute_unprepared(&statement).await.expect("the table is there");
    };
    rename("deduction", "deduction_away").await;
    let item = json!({"sku": "apple", "quantity": 1});
    let restore = json!({"order_id": Uuid::now_v7(), "user_id": "ann", "items": [item]});
    produce(shop, &shop.ground.rollback_topic, &restore.to_string()).await;
    let id = letters(shop, Of::Stock, 1, &[]).await.remove(0);
    rename("deduction_away", "deduction").await;
    id
}

/// An answer that contradicted its order, which was cancelled since: now it says nothing wrong.
async fn mended_answer(shop: &Shop) -> String {
    let order = shop.place(&[("apple", 1)]).saga().send().await.expect(202).order_id();
    shop.becomes(order, "confirmed").await;
    contradict(shop, order).await;
    let id = letters(shop, Of::Orders, 1, &[]).await.remove(0);
    shop.cancel(order).await.expect(200);
    id
}

async fn produce(shop: &Shop, topic: &str, payload: &str) {
    let producer: FutureProducer = shop.ground.kafka().producer().create().expect("a producer");
    let record: FutureRecord<'_, str, str> = FutureRecord::to(topic).payload(payload);
    producer.send(record, PATIENCE).await.expect("it is acknowledged");
}

/// Waits for so many dead letters at least, without those that are known.
async fn letters(shop: &Shop, of: Of, least: usize, known: &[&str]) -> Vec<String> {
    until(PATIENCE, &format!("{least} dead letters"), async || {
        let answer = match of {
            Of::Orders => shop.get("/dead-letters").await,
            Of::Stock => shop.get_stock("/dead-letters").await,
        };
        let items = answer.body["items"].as_array().cloned().unwrap_or_default();
        let ids = items.iter().filter_map(|one| one["id"].as_str());
        let ids: Vec<_> = ids.filter(|id| !known.contains(id)).map(str::to_owned).collect();
        if ids.len() >= least { Ok(ids) } else { Err(answer.text) }
    })
    .await
}

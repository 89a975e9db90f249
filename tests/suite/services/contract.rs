//! The OpenAPI documents, held against the services that give them: every operation is asked with
//! what its document allows and with what it does not, and every answer must be one that is
//! documented, with the documented type, headers and body.
//!
//! # Layout
//! - this file: the case, and what it has to begin with; `document`: a document and its judgement
//! - `data`: values from schemas; `trial`: what is asked of one service

mod data;
mod document;
mod trial;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rdkafka::producer::{FutureProducer, FutureRecord};
use serde_json::{Value, json};

use super::shop::Shop;
use crate::suite::{Env, PATIENCE, until};
use document::Document;
use trial::Trial;

const SEED: u64 = 20_261_121;
/// Enough for every deduction that is asked for by an example.
const RECEIVED: i64 = 1_000_000;
/// A check that comes before the operator would settle what he is to settle.
const LATE_CHECK_MS: &str = "600000";
/// The whole trial of both services: some ten seconds, on a machine that does nothing else.
const WITHIN: Duration = Duration::from_secs(150);
/// Nothing a consumer could read.
const GARBAGE: &str = "[]";
/// What only a message that mends itself would answer with success, and a message that is parked.
const UNREACHED: [&str; 3] = ["replay_dead_letter", "console_replay_dead_letter", "resume_half"];

/// Both services keep what their documents say; and a document that says something else is noticed.
pub(crate) async fn contract_is_kept(env: Env) {
    let builder = Shop::builder(env).await;
    let shop = builder.order("HALFMSG_CHECK_AFTER_MS", LATE_CHECK_MS).open().await;
    let began = Instant::now();
    let targets = targets(&shop).await;
    let mut complaints = Vec::new();
    for (service, base) in [("order-svc", shop.order_url("")), ("stock-svc", shop.stock_url(""))] {
        let document = match service {
            "order-svc" => shop.get("/openapi.json").await,
            _ => shop.get_stock("/openapi.json").await,
        };
        let document = Document::read(document.expect(200).body);
        let document = document.unwrap_or_else(|wrong| panic!("{service}'s document: {wrong}"));
        let mut trial = Trial::new(&document, base, &shop.http, targets[service].clone());
        trial.run(SEED).await;
        complaints.extend(trial.complaints.iter().map(|what| format!("{service}: {what}")));
        let unmet = document.operations.iter().filter(|operation| {
            !UNREACHED.contains(&operation.id.as_str()) && !trial.succeeded.contains(&operation.id)
        });
        complaints.extend(unmet.map(|one| format!("{service}: {} never succeeded", one.id)));
        println!("{service}: {} requests, {:?} since the start", trial.asked, began.elapsed());
        if service == "order-svc" {
            a_breach_is_noticed(&document, &trial).await;
        }
    }
    assert!(complaints.is_empty(), "{} complaints: {complaints:#?}", complaints.len());
    assert!(began.elapsed() < WITHIN, "it took {:?}", began.elapsed());
}

/// What the operations with an identity in their path are asked about, by service, operation and
/// parameter; the empty operation stands for all others.
type Targets = BTreeMap<(&'static str, &'static str), String>;

async fn targets(shop: &Shop) -> BTreeMap<&'static str, Targets> {
    shop.seed("apple", 100, RECEIVED).await;
    garbage(shop).await;
    let order = |answer: super::http::Answer| answer.order_id().to_string();
    let shown = shop.place(&[("apple", 1)]).send().await.expect(201);
    let cancelled = shop.place(&[("apple", 1)]).send().await.expect(201);
    let lost = || shop.place(&[("apple", 1)]).fault("decision-lost");
    let committed = lost().saga().send().await.expect(202);
    let (dropped, checked) = (lost().send().await.expect(201), lost().send().await.expect(201));
    let own = letters(shop, "/dead-letters", true).await;
    let stocks = letters(shop, "/dead-letters", false).await;
    let orders = Targets::from([
        (("", "id"), order(shown)),
        (("cancel_order", "id"), order(cancelled)),
        (("", "transaction_id"), checked.transaction_id()),
        (("commit_half", "transaction_id"), committed.transaction_id()),
        (("rollback_half", "transaction_id"), dropped.transaction_id()),
        (("show_dead_letter", "id"), own[0].clone()),
        (("replay_dead_letter", "id"), own[0].clone()),
        (("discard_dead_letter", "id"), own[1].clone()),
        (("console_show_dead_letter", "id"), stocks[0].clone()),
        (("console_replay_dead_letter", "id"), stocks[0].clone()),
        (("console_discard_dead_letter", "id"), stocks[2].clone()),
    ]);
    let stock = Targets::from([
        (("", "sku"), "apple".into()),
        (("", "id"), stocks[0].clone()),
        (("discard_dead_letter", "id"), stocks[1].clone()),
    ]);
    BTreeMap::from([("order-svc", orders), ("stock-svc", stock)])
}

/// Three dead letters at least for each service.
async fn garbage(shop: &Shop) {
    let producer: FutureProducer = shop.ground.kafka().producer().create().expect("a producer");
    for topic in [&shop.ground.outbound_topic, &shop.ground.rollback_topic] {
        for _ in 0..3 {
            let record: FutureRecord<'_, str, str> = FutureRecord::to(topic).payload(GARBAGE);
            producer.send(record, PATIENCE).await.expect("it is acknowledged");
        }
    }
}

async fn letters(shop: &Shop, path: &str, own: bool) -> Vec<String> {
    until(PATIENCE, "three dead letters", async || {
        let answer = if own { shop.get(path).await } else { shop.get_stock(path).await };
        let items = answer.body["items"].as_array().cloned().unwrap_or_default();
        let ids = items.iter().filter_map(|one| one["id"].as_str()).map(str::to_owned);
        let ids: Vec<_> = ids.collect();
        if ids.len() >= 3 { Ok(ids) } else { Err(answer.text) }
    })
    .await
}

/// The judgement is able to fail: what was in order is a breach of a document that says less or
/// something else.
async fn a_breach_is_noticed(document: &Document, trial: &Trial<'_>) {
    let doctored = |change: &dyn Fn(&mut Value)| {
        let mut json = document.json().clone();
        change(&mut json);
        Document::read(json).expect("it is a document all the same")
    };
    let judged = |document: &Document, status: u16| {
        let answer = trial.remembered.get(&("show_order".to_owned(), status));
        let answer = answer.unwrap_or_else(|| panic!("show_order never answered {status}"));
        document.judge(document.operation("show_order"), answer)
    };
    assert_eq!((judged(document, 200), judged(document, 404)), (Ok(()), Ok(())));
    let show = "/paths/~1orders~1{id}/get/responses";
    let fewer = doctored(&|json| {
        let answers = json.pointer_mut(show).and_then(Value::as_object_mut);
        answers.expect("the answers of show_order").remove("404");
    });
    assert!(judged(&fewer, 404).is_err() && judged(&fewer, 200).is_ok());
    let typed = doctored(&|json| {
        json["components"]["schemas"]["Order"]["properties"]["total_cents"]["type"] =
            json!("string");
    });
    assert!(judged(&typed, 200).is_err() && judged(&typed, 404).is_ok());
    let coded = doctored(&|json| {
        let code = "/404/content/application~1problem+json/schema/allOf/1/properties/code/enum";
        *json.pointer_mut(&format!("{show}{code}")).expect("its codes") = json!(["gone"]);
    });
    assert!(judged(&coded, 404).is_err());
    let without = doctored(&|json| {
        let methods = json["paths"]["/orders"].as_object_mut();
        methods.expect("the methods of /orders").remove("post");
    });
    let mut other = trial.with(&without);
    other.other_methods("/orders").await;
    assert!(!other.complaints.is_empty(), "a method that is not documented is noticed");
}

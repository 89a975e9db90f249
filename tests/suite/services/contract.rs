//! The OpenAPI documents, held against the services that give them: every operation is asked with
//! what its document allows and with what it does not, and every answer must be one that is
//! documented, with the documented type, headers and body.
//!
//! # Layout
//! - this file: the case; `targets`: what it has to begin with
//! - `document`: a document and its judgement; `data`: values from schemas
//! - `trial`: what is asked of one service; `request`: how

mod data;
mod document;
mod request;
mod targets;
mod trial;

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::shop::Shop;
use super::watching::Watching;
use crate::suite::{Env, PATIENCE};
use document::Document;
use request::Requests;
use targets::{Targets, targets};
use trial::Trial;

const SEED: u64 = 20_261_121;
/// A check that comes before the operator would settle what he is to settle.
const LATE_CHECK_MS: &str = "600000";
/// The whole trial of both services: some ten seconds, on a machine that does nothing else.
const WITHIN: Duration = Duration::from_secs(600);
/// The id of no event: whoever names it is told everything again.
const NO_EVENT: &str = "nobody-0";
/// What order-svc cannot answer without stock-svc.
const NEED_STOCK: [&str; 6] = [
    "console_dead_letters",
    "console_discard_dead_letter",
    "console_movements",
    "console_replay_dead_letter",
    "console_show_dead_letter",
    "console_stock",
];

/// Both services keep what their documents say; and a document that says something else is noticed.
pub(crate) async fn contract_is_kept(env: Env) {
    // Failures are asked for that take as long as a deadline.
    let builder = Shop::builder(env).await.checked_soon();
    let builder = builder.order("HALFMSG_CHECK_AFTER_MS", LATE_CHECK_MS);
    // One check is enough to be parked, one failure to be a dead letter.
    let builder = builder.order("HALFMSG_MAX_CHECKS", "1").both("HALFMSG_RETRY_LEVELS_MS", "none");
    let mut shop = builder.open().await;
    let began = Instant::now();
    let targets = targets(&mut shop).await;
    let mut complaints = Vec::new();
    for (service, base) in [("order-svc", shop.order_url("")), ("stock-svc", shop.stock_url(""))] {
        let document = match service {
            "order-svc" => shop.get("/openapi.json").await,
            _ => shop.get_stock("/openapi.json").await,
        };
        let document = Document::read(document.expect(200).body);
        let document = document.unwrap_or_else(|wrong| panic!("{service}'s document: {wrong}"));
        let targets = targets[service].clone();
        let requests = Requests { document: &document, base, http: &shop.http, targets };
        let mut trial = Trial::new(requests);
        trial.run(SEED).await;
        let all = trial.complaints.iter().cloned().chain(trial.not_reached());
        complaints.extend(all.map(|what| format!("{service}: {what}")));
        println!("{service}: {} requests, {:?} since the start", trial.asked, began.elapsed());
        if service == "order-svc" {
            complaints.extend(events_are_documented(&shop, &document).await);
            a_breach_is_noticed(&document, &trial).await;
        }
    }
    complaints.extend(kept_without_stock(&mut shop, &targets["order-svc"]).await);
    assert!(complaints.is_empty(), "{} complaints: {complaints:#?}", complaints.len());
    assert!(began.elapsed() < WITHIN, "it took {:?}", began.elapsed());
}

/// While stock-svc is away, order-svc's answers are documented ones too: 503 where it is needed, and
/// nowhere else.
async fn kept_without_stock(shop: &mut Shop, targets: &Targets) -> Vec<String> {
    shop.stock.process().signal("TERM");
    shop.stock.process().end(PATIENCE).await;
    let document = Document::read(shop.get("/openapi.json").await.expect(200).body);
    let document = document.unwrap_or_else(|wrong| panic!("order-svc's document: {wrong}"));
    let (base, targets) = (shop.order_url(""), targets.clone());
    let mut trial = Trial::new(Requests { document: &document, base, http: &shop.http, targets });
    let said = trial.run_while_away().await;
    let said: Vec<_> = said.iter().map(String::as_str).collect();
    assert_eq!(said, NEED_STOCK);
    trial.complaints
}

/// Every event that the document has was told, and each is as it says.
async fn events_are_documented(shop: &Shop, document: &Document) -> Vec<String> {
    let hello = Watching::from(shop, None).await.next().await.expect("a greeting");
    let mut missing = document.events();
    assert!(missing.len() > 10 && missing.remove(&hello.name), "{hello:?}, {missing:?}");
    let mut told = vec![hello];
    let mut watching = Watching::from(shop, Some(NO_EVENT)).await;
    let all = async {
        while !missing.is_empty() {
            let event = watching.next().await.expect("the stream goes on");
            missing.remove(&event.name);
            told.push(event);
        }
    };
    let within = tokio::time::timeout(PATIENCE, all).await;
    within.unwrap_or_else(|_| panic!("it was never told of {missing:?}"));
    let wrong = told.iter().filter_map(|told| {
        let said = document.judge_events(&json!([told.fields]));
        said.err().map(|why| format!("order-svc: {told:?}: {why}"))
    });
    wrong.collect()
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
    let of = |name: &str, data: Value| json!([{"id": "x-1", "event": name, "data": data}]);
    let reset = of("reset", json!(r#"{"reason":"too_old","faults":true}"#));
    assert_eq!(document.judge_events(&reset), Ok(()));
    for wrong in [
        of("reset", json!(r#"{"reason":"a whim","faults":true}"#)),
        of("reset", json!(r#"{"faults":true}"#)),
        of("reset", json!({"reason": "too_old", "faults": true})),
        of("reset", json!("no JSON")),
        of("dropped", json!(r#"{"reason":"too_old","faults":true}"#)),
        of("another", json!(r#"{"reason":"too_old","faults":true}"#)),
    ] {
        assert!(document.judge_events(&wrong).is_err(), "{wrong}");
    }
    let without = doctored(&|json| {
        let methods = json["paths"]["/orders"].as_object_mut();
        methods.expect("the methods of /orders").remove("post");
    });
    let mut other = trial.with(&without);
    other.other_methods("/orders").await;
    assert!(!other.complaints.is_empty(), "a method that is not documented is noticed");
}

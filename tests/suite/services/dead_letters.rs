//! What the services have given up on: of stock-svc seen and settled from the command line, of
//! order-svc by HTTP.

use rdkafka::producer::{FutureProducer, FutureRecord};
use serde_json::{Value, json};
use uuid::Uuid;

use super::cli::{Ended, environment, run};
use super::http::{Answer, send};
use super::shop::{Shop, TOKEN, stood_still};
use crate::suite::topic::{Entry, write};
use crate::suite::{Env, PATIENCE, until};

/// Nothing that can be restored.
const PAYLOADS: [&str; 2] = ["{\"order_id\":7}", "[]"];

/// Listed, shown, replayed in vain by the running service, discarded; and the exit codes.
pub(crate) async fn cli_settles_dead_letters(env: Env) {
    let mut shop = Shop::open(env).await;
    let mut environment = environment(&shop);
    environment.push(("DATABASE_URL".into(), shop.ground.stock_url()));
    let subscriber = shop.ground.stock_group.clone();
    let command = async |arguments: &[&str]| -> Ended {
        let place = ["--subscriber", &subscriber, "--output", "json"];
        run(&environment, &[&["dead-letters"], arguments, &place].concat()).await
    };
    let producer: FutureProducer = shop.ground.kafka().producer().create().expect("a producer");
    for payload in PAYLOADS {
        let record: FutureRecord<'_, str, str> =
            FutureRecord::to(&shop.ground.rollback_topic).payload(payload);
        producer.send(record, PATIENCE).await.expect("it is acknowledged");
    }
    let listed = async |filter: &[&str], count: usize, attempts: i64| -> Vec<Value> {
        until(PATIENCE, "the dead letters", async || {
            let list = command(&[&["list"], filter].concat()).await.expect(0).json();
            let items = list["items"].as_array().expect("a list").clone();
            let seen = items.iter().all(|one| one["attempts"].as_i64() >= Some(attempts));
            if items.len() == count && seen { Ok(items) } else { Err(list.to_string()) }
        })
        .await
    };
    let letters = listed(&[], 2, 1).await;
    assert!(letters.iter().all(|letter| letter.get("payload").is_none()), "{letters:?}");
    let id = letters[0]["id"].as_str().expect("an id").to_owned();
    let shown = command(&["show", &id]).await.expect(0).json();
    assert_eq!(shown["state"], "open");
    assert!(PAYLOADS.map(Value::from).contains(&shown["payload"]), "{shown}");
    let queued = command(&["replay", "--cause", "decoded", "--rate", "50"]).await.expect(0).json();
    assert_eq!(queued["queued"], 2);
    listed(&["--state", "open"], 2, 2).await;
    // What is queued while the service is down waits for it.
    shop.stock.kill();
    assert_eq!(command(&["replay", &id]).await.expect(0).json()["queued"], 1);
    let other = letters[1]["id"].as_str().expect("an id").to_owned();
    assert_eq!(command(&["replay", &other]).await.expect(0).json()["queued"], 1);
    // Or is discarded before, for good.
    command(&["discard", &other, "--reason", "not again"]).await.expect(0);
    command(&["discard", &other, "--reason", "twice"]).await.expect(4);
    shop.restart_stock().await;
    listed(&["--state", "open"], 1, 3).await;
    let done = command(&["discard", &id, "--reason", "garbage"]).await.expect(0).json();
    assert_eq!(done["discard_reason"], "garbage");
    command(&["replay", &id]).await.expect(4);
    listed(&["--state", "discarded"], 2, 2).await;
    let unknown = "01985f2e-7c1a-7f00-8000-000000000000";
    command(&["show", unknown]).await.expect(3);
    command(&["discard", unknown, "--reason", "x"]).await.expect(3);
    for wrong in [&["replay"][..], &["replay", &id, "--all"], &["discard", &id, "--reason", " "]] {
        command(wrong).await.expect(2);
    }
}

/// An answer of stock-svc that nothing but a contradiction leads to.
pub(super) async fn contradict(shop: &Shop, order: Uuid) {
    let payload = json!({"order_id": order, "outcome": "refused", "code": "a_test", "items": []});
    let header = |name: &str, value: String| (name.to_owned(), Some(value.into_bytes()));
    let answer = Entry {
        key: Some(order.to_string().into_bytes()),
        headers: vec![
            header("ce_type", "halfmsg.stock.outbound.v1".into()),
            header("halfmsg-transaction-id", Uuid::now_v7().to_string()),
        ],
        payload: Some(payload.to_string().into_bytes()),
        ..Entry::default()
    };
    write(&shop.ground.kafka(), &shop.ground.outbound_topic, &answer).await;
}

/// An operator's call about the dead letters of order-svc, however slow its database is.
async fn settle(shop: &Shop, path: &str, body: Option<Value>, token: &str) -> Answer {
    until(PATIENCE, path, async || {
        let request = shop.http.post(shop.order_url(&format!("/dead-letters{path}")));
        let request = if token.is_empty() { request } else { request.bearer_auth(token) };
        let request = body.iter().fold(request, |request, body| request.json(body));
        let answer = send(request).await.expect("order-svc answers");
        if stood_still(&answer) { Err(answer.text) } else { Ok(answer) }
    })
    .await
}

/// Those of order-svc's own consumers: answers that contradict an order, and what neither they nor
/// the report can read. Listed, shown, replayed once it can have its effect, queued, discarded; each
/// only with the token, and told in the log.
pub(crate) async fn dead_letters_of_order_svc_are_settled(env: Env) {
    let mut shop = Shop::open(env).await;
    shop.seed("apple", 100, 10).await;
    let order = shop.place(&[("apple", 1)]).saga().send().await.expect(202).order_id();
    shop.becomes(order, "confirmed").await;
    contradict(&shop, order).await;
    let producer: FutureProducer = shop.ground.kafka().producer().create().expect("a producer");
    let garbage: FutureRecord<'_, str, str> =
        FutureRecord::to(&shop.ground.outbound_topic).payload("[]");
    producer.send(garbage, PATIENCE).await.expect("it is acknowledged");
    let listed = async |filter: &str, count: usize| -> Vec<String> {
        until(PATIENCE, &format!("{count} dead letters{filter}"), async || {
            let list = shop.get(&format!("/dead-letters{filter}")).await.expect(200);
            let items = list.body["items"].as_array().expect("a list");
            let bare = items.iter().all(|one| one.get("payload").is_none());
            let ids = items.iter().filter_map(|one| one["id"].as_str()).map(str::to_owned);
            let ids: Vec<_> = ids.collect();
            if ids.len() == count && bare { Ok(ids) } else { Err(list.text) }
        })
        .await
    };
    // The garbage is one of the answers' consumer and one of the report's.
    let contradiction = listed("?cause=contradicts", 1).await.remove(0);
    listed("?state=open", 3).await;
    let path = format!("/dead-letters/{contradiction}");
    assert!(shop.get(&path).await.expect(200).body.get("payload").is_none());
    let shown = send(shop.http.get(shop.order_url(&path)).bearer_auth(TOKEN)).await;
    let shown = shown.expect("order-svc answers").expect(200).body;
    assert!(shown["payload"].as_str().is_some_and(|payload| payload.contains("a_test")), "{shown}");

    let replay = format!("/{contradiction}/replay");
    for token in ["", "wrong"] {
        settle(&shop, &replay, None, token).await.expect_problem(401, "unauthorized");
    }
    settle(&shop, &replay, None, TOKEN).await.expect_problem(409, "replay_failed");
    shop.cancel(order).await.expect(200);
    let done = settle(&shop, &replay, None, TOKEN).await.expect(200);
    assert_eq!((&done.body["before"], &done.body["state"]), (&json!(false), &json!("replayed")));
    let again = settle(&shop, &replay, None, TOKEN).await.expect(200);
    assert_eq!(again.body["before"], true);
    assert_eq!(shop.becomes(order, "cancelled").await["status"], "cancelled");

    let all = json!({"topic": shop.ground.outbound_topic, "rate_per_second": 100});
    settle(&shop, "/replay", Some(all.clone()), "").await.expect_problem(401, "unauthorized");
    assert_eq!(settle(&shop, "/replay", Some(all), TOKEN).await.expect(202).body["queued"], 2);
    // In vain: they are open again.
    let open = listed("?state=open", 2).await;
    let why = json!({"reason": "garbage", "operator": "olga"});
    for id in &open {
        let discard = format!("/{id}/discard");
        settle(&shop, &discard, Some(why.clone()), "").await.expect_problem(401, "unauthorized");
        let blank = json!({"reason": " "});
        let blank = settle(&shop, &discard, Some(blank), TOKEN).await;
        blank.expect_problem(422, "invalid_request");
        let gone = settle(&shop, &discard, Some(why.clone()), TOKEN).await.expect(200).body;
        assert_eq!(gone["discard_reason"], "olga: garbage");
        let twice = settle(&shop, &discard, Some(why.clone()), TOKEN).await;
        twice.expect_problem(409, "not_open");
    }
    listed("?state=discarded", 2).await;
    listed("?state=open", 0).await;
    let log = shop.order.process().log();
    for told in ["olga discarded a dead letter", "replayed a dead letter: done", "queued 2 dead"] {
        assert!(log.contains(told), "the log tells '{told}': {log}");
    }
}

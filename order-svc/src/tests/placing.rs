//! Placing orders through the routes, the real producer and the embedded broker.

use axum::body::Body;
use axum::http::Request;
use serde_json::{Value, json};
use tower::ServiceExt;

use super::support::{CHECKED_SOON, PATIENCE, Shop, TOKEN, order_request, until};
use crate::answer::REPLAYED;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_stands_and_its_half_is_dropped() {
    let shop = Shop::open().await;
    let mut delivered = shop.delivered();
    let answer = shop.order(2, &[]).await;
    assert_eq!(answer.status, 201, "{answer:?}");
    let id = answer.text("id").to_owned();
    assert_eq!(answer.headers["location"], format!("/orders/{id}").as_str());
    assert_eq!(answer.body["status"], "confirmed");
    assert_eq!(answer.body["flow"], "rollback");
    assert_eq!(answer.body["total_cents"], 240);
    let line = json!([{"sku": "apple", "quantity": 2, "unit_price_cents": 120}]);
    assert_eq!(answer.body["items"], line);
    assert!(answer.body.get("reason").is_none() && answer.body.get("stock_untouched").is_none());
    assert!(shop.stock.has_deducted(&id));
    assert_eq!(shop.get(&format!("/orders/{id}")).await.body, answer.body);
    let list = shop.get("/orders?status=confirmed").await;
    assert_eq!(list.body, json!({"items": [answer.body], "next_cursor": null}));
    assert_eq!(shop.decided(&answer).await, "rolled_back");
    assert_eq!(delivered.count(&id), 0);
    shop.service.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_failure_has_its_answer_and_its_stock_comes_back() {
    let shop = Shop::open().await;
    failures_have_their_answers(
        shop,
        &[
            ("price-lookup", 502, "price_lookup_failed", false),
            ("deduct-refused", 409, "insufficient_stock", false),
            ("deduct-timeout", 504, "deduct_timeout", true),
            ("after-deduct", 500, "after_deduct_failed", true),
            ("order-insert", 500, "order_insert_failed", true),
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_that_stalls_is_fenced_and_its_stock_comes_back() {
    let shop = Shop::open_with(&CHECKED_SOON).await;
    failures_have_their_answers(shop, &[("slow-local", 409, "fenced", true)]).await;
}

/// Of each: the fault, the answer's status and code, and whether something is to come back.
async fn failures_have_their_answers(shop: Shop, faults: &[(&str, u16, &str, bool)]) {
    let mut delivered = shop.delivered();
    for (fault, status, code, restored) in faults.iter().copied() {
        let answer = shop.fault(fault).await;
        assert_eq!((answer.status, answer.text("code")), (status, code), "{fault}: {answer:?}");
        assert_eq!(answer.headers["content-type"], "application/problem+json");
        let id = answer.text("order_id").to_owned();
        let order = shop.get(&format!("/orders/{id}")).await;
        assert_eq!(order.body["status"], "void", "{fault}: {order:?}");
        assert_eq!(order.body["total_cents"], 0);
        assert!(order.text("reason").starts_with(code), "{order:?}");
        assert_eq!(order.body["transaction_id"], answer.body["transaction_id"]);
        assert_eq!(shop.stock.has_deducted(&id), restored, "{fault}");
        let decision = if restored { "committed" } else { "rolled_back" };
        assert_eq!(shop.decided(&answer).await, decision, "{fault}");
        if restored {
            delivered.wait_for(&id).await;
        }
        assert_eq!(delivered.count(&id), usize::from(restored), "{fault}");
    }
    shop.service.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_decision_is_found_by_the_check_back() {
    let shop = Shop::open_with(&CHECKED_SOON).await;
    let mut delivered = shop.delivered();
    let answer = shop.fault("decision-lost").await;
    assert_eq!((answer.status, &answer.body["status"]), (201, &json!("confirmed")));
    let halves = until("the half is seen open", async || {
        let halves = shop.get("/halves?state=open").await;
        halves.body["items"].as_array().is_some_and(|items| items.len() == 1).then_some(halves)
    })
    .await;
    let half = &halves.body["items"][0];
    assert_eq!(half["transaction_id"], answer.body["transaction_id"]);
    assert_eq!((&half["purpose"], &half["key"]), (&json!("order.rollback"), &answer.body["id"]));
    assert_eq!(shop.decided(&answer).await, "rolled_back");
    assert_eq!(delivered.count(answer.text("id")), 0);
    assert_eq!(shop.get(&format!("/orders/{}", answer.text("id"))).await.body, answer.body);
    shop.service.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_only_stock_svc_knows_refuses_an_order_too() {
    let shop = Shop::open().await;
    let order = |items: Value| {
        let body = json!({"user_id": "u-1", "items": items}).to_string();
        let request = Request::post("/orders").header("content-type", "application/json");
        shop.call(request.body(Body::from(body)).unwrap())
    };
    for (items, status, code) in [
        (json!([{"sku": "pear", "quantity": 1}]), 422, "unknown_sku"),
        (json!([{"sku": "apple", "quantity": 101}]), 409, "insufficient_stock"),
        (json!([{"sku": "gold", "quantity": 1_000_000}]), 422, "amount_too_large"),
    ] {
        let answer = order(items).await;
        assert_eq!((answer.status, answer.text("code")), (status, code), "{answer:?}");
        let row = shop.get(&format!("/orders/{}", answer.text("order_id"))).await;
        assert_eq!(row.body["status"], "void");
        assert!(!shop.stock.has_deducted(answer.text("order_id")));
        assert_eq!(shop.decided(&answer).await, "rolled_back");
    }
    shop.service.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_hangs_up_changes_nothing() {
    let shop = Shop::open().await;
    let mut request = Box::pin(shop.service.router().oneshot(order_request(1, &[])));
    assert!(futures::poll!(&mut request).is_pending());
    // It goes on without anybody who asks for its answer.
    until("the request is under way", async || (shop.stock.requests() > 0).then_some(())).await;
    drop(request);
    let list = until("the order is stored", async || {
        let list = shop.get("/orders").await;
        (list.body["items"].as_array()?.len() == 1).then_some(list)
    })
    .await;
    assert_eq!(list.body["items"][0]["status"], "confirmed");
    shop.all_settled().await;
    shop.service.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_kafka_away_nothing_begins_and_nothing_needs_a_restart() {
    let shop = Shop::open_with(&CHECKED_SOON).await;
    let first = shop.order(1, &[]).await;
    assert_eq!(first.status, 201, "{first:?}");
    shop.decided(&first).await;
    let requests = shop.stock.requests();
    shop.broker.stop().unwrap();
    let started = tokio::time::Instant::now();
    let key = [("idempotency-key", "away")];
    let answer = shop.order(1, &key).await;
    assert_eq!((answer.status, answer.text("code")), (503, "kafka_unavailable"), "{answer:?}");
    // By the prepare deadline, and long before the answer's.
    assert!(started.elapsed() < PATIENCE / 2, "{:?}", started.elapsed());
    assert!(answer.headers.contains_key("retry-after"));
    assert_eq!(shop.stock.requests(), requests, "nothing was asked of stock-svc");
    shop.broker.resume().unwrap();
    // The key was given back, so the same request is placed now.
    let placed = until("orders are placed again", async || {
        let answer = shop.order(1, &key).await;
        (answer.status == 201).then_some(answer)
    })
    .await;
    assert!(!placed.headers.contains_key(REPLAYED));
    shop.all_settled().await;
    shop.service.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeated_request_hears_the_first_answer() {
    let shop = Shop::open().await;
    let key = [("idempotency-key", "k-1")];
    let first = shop.order(1, &key).await;
    assert_eq!(first.status, 201);
    let again = shop.order(1, &key).await;
    assert_eq!((again.status, &again.body), (201, &first.body));
    assert_eq!(again.headers["location"], first.headers["location"]);
    assert_eq!(again.headers[REPLAYED], "true");
    let other = shop.order(2, &key).await;
    assert_eq!((other.status, other.text("code")), (422, "idempotency_key_reused"));

    let slow = [("idempotency-key", "k-2"), ("x-fault", "deduct-timeout")];
    let (first, second) = tokio::join!(shop.order(1, &slow), async {
        until("the first has begun", async || {
            let halves = shop.get("/halves?state=open").await;
            (!halves.body["items"].as_array()?.is_empty()).then_some(())
        })
        .await;
        shop.order(1, &[("idempotency-key", "k-2")]).await
    });
    assert_eq!((first.status, second.status), (504, 409), "{second:?}");
    assert_eq!(second.text("code"), "order_in_progress");
    assert!(second.headers.contains_key("retry-after"));
    let again = shop.order(1, &[("idempotency-key", "k-2")]).await;
    assert_eq!((again.status, again.body), (504, first.body));
    shop.all_settled().await;
    shop.service.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn operators_need_the_token_and_cannot_contradict_the_row() {
    let shop = Shop::open().await;
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let order = shop.order(1, &[("x-fault", "decision-lost"), ("traceparent", trace)]).await;
    let half = format!("/halves/{}", order.text("transaction_id"));
    let open = until("the half is seen", async || {
        let seen = shop.get(&half).await;
        (seen.status == 200).then_some(seen)
    })
    .await;
    assert!(open.body["payload"].is_null(), "{open:?}");
    let settle = |what: &str, token: Option<&str>| {
        let mut request = Request::post(format!("{half}/{what}"));
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let request = request.header("content-type", "application/json");
        shop.call(request.body(Body::from(r#"{"reason":"a test"}"#)).unwrap())
    };
    assert_eq!(settle("rollback", None).await.status, 401);
    assert_eq!(settle("rollback", Some("wrong")).await.status, 401);
    let contradiction = settle("commit", Some(TOKEN)).await;
    assert_eq!((contradiction.status, contradiction.text("code")), (409, "contradiction"));
    assert_eq!(settle("resume", Some(TOKEN)).await.status, 409);
    let shown = Request::get(&half).header("authorization", format!("Bearer {TOKEN}"));
    let shown = shop.call(shown.body(Body::empty()).unwrap()).await;
    assert!(shown.text("payload").contains(order.text("id")), "{shown:?}");
    let headers = shown.body["headers"].as_array().unwrap();
    assert!(headers.contains(&json!(["traceparent", trace])), "{shown:?}");
    let id = order.text("transaction_id");
    for header in [["ce_type", "halfmsg.stock.rollback.v1"], ["ce_id", id]] {
        assert!(headers.contains(&json!(header)), "{shown:?}");
    }
    let settled = settle("rollback", Some(TOKEN)).await;
    assert_eq!(settled.status, 200, "{settled:?}");
    assert_eq!(shop.decided(&order).await, "rolled_back");
    assert_eq!(settle("rollback", Some(TOKEN)).await.status, 409);
    shop.service.stop().await;
}

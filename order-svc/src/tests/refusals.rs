//! Bad input: refused before anything is stored or asked of stock-svc.

use axum::body::Body;
use axum::http::Request;
use serde_json::json;

use super::support::{Shop, order_request, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_input_is_refused_before_anything_is_stored() {
    let shop = Shop::open().await;
    let post = |kind: &str, body: String| {
        let request = Request::post("/orders").header("content-type", kind);
        shop.call(request.body(Body::from(body)).unwrap())
    };
    let with_items = |items: &str| format!(r#"{{"user_id":"u","items":{items}}}"#);
    let item = r#"{"sku":"apple","quantity":1}"#;
    let many = vec![item; 10_000].join(",");
    let large = " ".repeat(1_048_577);
    for (body, status, code) in [
        ("{".to_owned(), 400, "malformed_json"),
        (large, 413, "body_too_large"),
        (r#"{"user_id":"u"}"#.to_owned(), 422, "invalid_request"),
        (with_items("[]"), 422, "invalid_request"),
        (with_items(&format!("[{many}]")), 422, "invalid_request"),
        (with_items(&format!("[{item},{item}]")), 422, "invalid_request"),
        (with_items(r#"[{"sku":"a b","quantity":1}]"#), 422, "invalid_request"),
        (with_items(r#"[{"sku":"apple","quantity":0}]"#), 422, "invalid_request"),
        (with_items(r#"[{"sku":"apple","quantity":-1}]"#), 422, "invalid_request"),
        (with_items(r#"[{"sku":"apple","quantity":1.5}]"#), 422, "invalid_request"),
        (with_items(r#"[{"sku":"apple","quantity":1000001}]"#), 422, "invalid_request"),
        (with_items(r#"[{"sku":"apple","quantity":1e30}]"#), 422, "invalid_request"),
        (format!(r#"{{"user_id":"","items":[{item}]}}"#), 422, "invalid_request"),
        (format!(r#"{{"user_id":"u","more":1,"items":[{item}]}}"#), 422, "invalid_request"),
        (format!(r#"{{"user_id":"u","flow":"other","items":[{item}]}}"#), 422, "invalid_request"),
    ] {
        let shown = body.chars().take(80).collect::<String>();
        let answer = post("application/json", body).await;
        assert_eq!((answer.status, answer.text("code")), (status, code), "{shown}: {answer:?}");
        assert_eq!(answer.headers["content-type"], "application/problem+json", "{shown}");
    }
    assert_eq!(post("text/plain", with_items(&format!("[{item}]"))).await.status, 415);
    for (headers, status, code) in [
        ([("x-fault", "meteor")], 422, "unknown_fault"),
        ([("idempotency-key", "")], 422, "invalid_request"),
        ([("idempotency-key", &"k".repeat(256))], 422, "invalid_request"),
    ] {
        let answer = shop.call(order_request(1, &headers)).await;
        assert_eq!((answer.status, answer.text("code")), (status, code), "{answer:?}");
    }
    let nothing = json!({"items": [], "next_cursor": null});
    assert_eq!(shop.get("/orders").await.body, nothing);
    let nothing = json!({"items": [], "next_cursor": null, "missing_partitions": []});
    // While a machine stands still, the brokers are asked in vain.
    until("an empty list", async || (shop.get("/halves").await.body == nothing).then_some(()))
        .await;
    assert_eq!(shop.stock.requests(), 0);
    paths_and_queries(&shop).await;
    shop.service.stop().await;
}

async fn paths_and_queries(shop: &Shop) {
    let id = crate::model::OrderId::generate();
    for (path, status) in [
        ("/nowhere".to_owned(), 404),
        ("/orders/nonsense".to_owned(), 404),
        (format!("/orders/{id}"), 404),
        ("/orders?status=lost".to_owned(), 422),
        ("/orders?limit=0".to_owned(), 422),
        ("/orders?limit=501".to_owned(), 422),
        ("/orders?cursor=nonsense".to_owned(), 422),
        ("/halves?state=closed".to_owned(), 422),
        ("/halves?cursor=nonsense".to_owned(), 422),
        ("/halves/nonsense".to_owned(), 404),
        (format!("/halves/{id}"), 404),
        ("/health/live".to_owned(), 200),
    ] {
        let answer = until(&path, async || {
            let answer = shop.get(&path).await;
            (answer.status != 503).then_some(answer)
        })
        .await;
        assert_eq!(answer.status, status, "{path}: {answer:?}");
    }
    // Its consumer does not run here, only its routes and its producer.
    let ready = shop.get("/health/ready").await;
    assert_eq!((ready.status, ready.text("code")), (503, "not_ready"));
    let cancel = Request::post(format!("/orders/{id}/cancel")).body(Body::empty()).unwrap();
    let cancel = shop.call(cancel).await;
    assert_eq!((cancel.status, cancel.text("code")), (404, "not_found"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_faults_switched_on_none_is_obeyed() {
    let shop = Shop::open_with(&["--faults=off"]).await;
    for fault in ["after-deduct", "crash-after-half", "meteor"] {
        let answer = shop.fault(fault).await;
        assert_eq!((answer.status, answer.text("code")), (403, "faults_disabled"));
    }
    assert_eq!(shop.stock.requests(), 0);
    shop.service.stop().await;
}

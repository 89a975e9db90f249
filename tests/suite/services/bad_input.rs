//! What is refused: with which status and code, in which form, and that nothing comes of it.

use reqwest::Method;
use serde_json::{Value, json};

use super::http::{Answer, send};
use super::shop::settled::VOID_DEADLINE;
use super::shop::{Shop, TOKEN};
use crate::suite::Env;

const RECEIVED: i64 = 20;
const JSON: &str = "application/json";
/// A body of more than 1 MiB.
const TOO_LARGE_BYTES: usize = 1024 * 1024 + 1;
/// A well-formed identity that nothing has.
const NOBODY: &str = "0198c0de-0000-7000-8000-000000000001";

/// Bodies of `POST /orders`, and what they are refused with.
fn bodies() -> Vec<(String, u16, &'static str)> {
    let mut rows: Vec<(String, u16, &'static str)> = Vec::new();
    for malformed in ["", "{", "{\"user_id\":", "{} {}", "nonsense", "\u{0}"] {
        rows.push((malformed.into(), 400, "malformed_json"));
    }
    let mut invalid = |body: String| rows.push((body, 422, "invalid_request"));
    let with = |items: Value| json!({"user_id": "ann", "items": items}).to_string();
    for quantity in [
        "0",
        "-1",
        "1000001",
        "9223372036854775807",
        "-9223372036854775808",
        "99999999999999999999",
    ] {
        invalid(format!(
            r#"{{"user_id":"ann","items":[{{"sku":"apple","quantity":{quantity}}}]}}"#
        ));
    }
    for quantity in ["1.5", "1.0", "1e3", "1e999", "\"1\"", "null", "true", "[1]"] {
        invalid(format!(
            r#"{{"user_id":"ann","items":[{{"sku":"apple","quantity":{quantity}}}]}}"#
        ));
    }
    for sku in ["", "a b", "äpfel", "a/b", "a\u{0}b", "'; DROP TABLE orders; --", &"a".repeat(65)]
    {
        invalid(with(json!([{"sku": sku, "quantity": 1}])));
    }
    let item = json!({"sku": "apple", "quantity": 1});
    let many = |count: usize| {
        let items = (0..count).map(|number| json!({"sku": format!("s{number}"), "quantity": 1}));
        Value::Array(items.collect())
    };
    for items in [json!([]), json!([item, item]), many(101), many(10_000), json!(null), json!(item)]
    {
        invalid(with(items));
    }
    invalid(with(json!([{"sku": "apple"}])));
    invalid(with(json!([{"quantity": 1}])));
    invalid(with(json!([{"sku": "apple", "quantity": 1, "price_cents": 0}])));
    for user_id in [json!(""), json!("a\u{0}b"), json!("u".repeat(129)), json!(null), json!(7)] {
        invalid(json!({"user_id": user_id, "items": [item]}).to_string());
    }
    invalid(json!({"items": [item]}).to_string());
    invalid(json!({"user_id": "ann"}).to_string());
    invalid(json!({"user_id": "ann", "items": [item], "id": NOBODY}).to_string());
    invalid(json!({"user_id": "ann", "items": [item], "flow": "other"}).to_string());
    invalid("[]".into());
    rows
}

/// Requests without a body, to order-svc.
const ORDER_PATHS: &[(&str, &str, u16, &str)] = &[
    ("GET", "/nowhere", 404, "not_found"),
    ("GET", "/orders/nonsense", 404, "not_found"),
    ("GET", "/orders/0198c0de-0000-7000-8000-000000000001", 404, "not_found"),
    ("GET", "/halves/nonsense", 404, "not_found"),
    ("GET", "/halves/0198c0de-0000-7000-8000-000000000001", 404, "not_found"),
    ("DELETE", "/orders", 405, "method_not_allowed"),
    ("PUT", "/orders/0198c0de-0000-7000-8000-000000000001", 405, "method_not_allowed"),
    ("POST", "/orders/0198c0de-0000-7000-8000-000000000001/cancel", 404, "not_found"),
    ("POST", "/orders/nonsense/cancel", 404, "not_found"),
    ("POST", "/report/rebuild", 401, "unauthorized"),
    ("GET", "/report?limit=0", 422, "invalid_request"),
    ("GET", "/report?cursor=a%20b", 422, "invalid_request"),
    ("GET", "/orders?older_than_seconds=-1", 422, "invalid_request"),
    ("POST", "/halves", 405, "method_not_allowed"),
    ("GET", "/orders?limit=0", 422, "invalid_request"),
    ("GET", "/orders?limit=501", 422, "invalid_request"),
    ("GET", "/orders?limit=-1", 422, "invalid_request"),
    ("GET", "/orders?limit=many", 422, "invalid_request"),
    ("GET", "/orders?cursor=nonsense", 422, "invalid_request"),
    ("GET", "/orders?status=lost", 422, "invalid_request"),
    ("GET", "/orders?page=2", 422, "invalid_request"),
    ("GET", "/halves?limit=0", 422, "invalid_request"),
    ("GET", "/halves?limit=501", 422, "invalid_request"),
    ("GET", "/halves?cursor=nonsense", 422, "invalid_request"),
    ("GET", "/halves?state=lost", 422, "invalid_request"),
];

/// Requests to stock-svc; an empty body is none.
const STOCK_REQUESTS: &[(&str, &str, &str, u16, &str)] = &[
    ("GET", "/nowhere", "", 404, "not_found"),
    ("GET", "/products/unknown", "", 404, "unknown_sku"),
    ("GET", "/stock/unknown", "", 404, "unknown_sku"),
    ("GET", "/stock/a%20b", "", 404, "unknown_sku"),
    ("DELETE", "/products/apple", "", 405, "method_not_allowed"),
    ("GET", "/products?limit=0", "", 422, "invalid_request"),
    ("GET", "/movements?order_id=nonsense", "", 422, "invalid_request"),
    ("GET", "/movements?cursor=nonsense", "", 422, "invalid_request"),
    ("PUT", "/products/apple", "{", 400, "malformed_json"),
    ("PUT", "/products/apple", r#"{"name":"","price_cents":1}"#, 422, "invalid_request"),
    ("PUT", "/products/apple", r#"{"name":"a","price_cents":-1}"#, 422, "invalid_request"),
    ("PUT", "/products/a%20b", r#"{"name":"a","price_cents":1}"#, 422, "invalid_request"),
    (
        "POST",
        "/products/apple/receipts",
        r#"{"quantity":0,"reference":"r"}"#,
        422,
        "invalid_request",
    ),
    (
        "POST",
        "/products/apple/receipts",
        r#"{"quantity":-5,"reference":"r"}"#,
        422,
        "invalid_request",
    ),
    (
        "POST",
        "/products/apple/receipts",
        r#"{"quantity":5,"reference":""}"#,
        422,
        "invalid_request",
    ),
    (
        "POST",
        "/products/apple/receipts",
        r#"{"quantity":5,"reference":"seed"}"#,
        409,
        "receipt_conflict",
    ),
    ("POST", "/products/unknown/receipts", r#"{"quantity":5,"reference":"r"}"#, 404, "unknown_sku"),
    ("POST", "/deductions", "{", 400, "malformed_json"),
    ("POST", "/deductions", r#"{"order_id":"nonsense","items":[]}"#, 422, "invalid_request"),
    (
        "POST",
        "/deductions",
        r#"{"order_id":"0198c0de-0000-7000-8000-000000000001","items":[{"sku":"apple","quantity":-1}]}"#,
        422,
        "invalid_request",
    ),
];

/// Every refusal has its status, its code and its form; nothing is deducted, no half stays open,
/// and no order has a row but those that say so.
pub(crate) async fn bad_input_is_refused_and_changes_nothing(env: Env) {
    let shop = Shop::open(env).await;
    shop.seed("apple", 100, RECEIVED).await;
    for (body, status, code) in bodies() {
        let shown: String = body.chars().take(120).collect();
        println!("{status} {code}: {shown}");
        shop.post_raw(JSON, body).await.expect_problem(status, code);
    }
    let good = json!({"user_id": "ann", "items": [{"sku": "apple", "quantity": 1}]}).to_string();
    for content_type in
        ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""]
    {
        let answer = shop.post_raw(content_type, good.clone()).await;
        answer.expect_problem(415, "unsupported_media_type");
    }
    let large = shop.post_raw(JSON, " ".repeat(TOO_LARGE_BYTES) + &good).await;
    large.expect_problem(413, "body_too_large");
    for (method, path, status, code) in ORDER_PATHS {
        println!("{method} {path}");
        request(&shop, method, &shop.order_url(path), "").await.expect_problem(*status, code);
    }
    for (method, path, body, status, code) in STOCK_REQUESTS {
        println!("{method} {path} {body}");
        request(&shop, method, &shop.stock_url(path), body).await.expect_problem(*status, code);
    }
    headers_are_refused(&shop).await;
    operators_are_asked_for_their_token(&shop).await;
    let books = shop.conservation(VOID_DEADLINE).await;
    assert!(books.orders.is_empty() && books.halves.is_empty() && books.deductions.is_empty());
    assert_eq!(books.available["apple"], RECEIVED);
    with_a_void_order(&shop).await;
}

async fn request(shop: &Shop, method: &str, url: &str, body: &str) -> Answer {
    let method = method.parse::<Method>().expect("a method");
    let request = shop.http.request(method, url);
    let request = if body.is_empty() {
        request
    } else {
        request.header("Content-Type", JSON).body(body.to_owned())
    };
    send(request).await.expect("the service answers")
}

async fn headers_are_refused(shop: &Shop) {
    for fault in ["nonsense", "", "CRASH-AFTER-HALF", "after-deduct,order-insert"] {
        let answer = shop.place(&[("apple", 1)]).fault(fault).send().await;
        answer.expect_problem(422, "unknown_fault");
    }
    for fault in ["after-deduct", "deduct-timeout", "slow-local", "crash-after-deduct"] {
        let answer = shop.place(&[("apple", 1)]).saga().fault(fault).send().await;
        answer.expect_problem(422, "fault_not_of_flow");
    }
    for key in ["", &"k".repeat(256)] {
        let answer = shop.place(&[("apple", 1)]).key(key).send().await;
        answer.expect_problem(422, "invalid_request");
    }
}

async fn operators_are_asked_for_their_token(shop: &Shop) {
    for verb in ["commit", "rollback", "check", "resume"] {
        let url = shop.order_url(&format!("/halves/{NOBODY}/{verb}"));
        let with = |token: &str| shop.http.post(&url).bearer_auth(token);
        let body = json!({"reason": "a test"});
        let bare = send(shop.http.post(&url).json(&body)).await.expect("an answer");
        bare.expect_problem(401, "unauthorized");
        let wrong = send(with("wrong").json(&body)).await.expect("an answer");
        wrong.expect_problem(401, "unauthorized");
        let unknown = send(with(TOKEN).json(&body)).await.expect("an answer");
        unknown.expect_problem(404, "not_found");
        let silent = send(with(TOKEN).json(&json!({"reason": " "}))).await.expect("an answer");
        silent.expect_problem(422, "invalid_request");
    }
}

/// The two refusals after which there is an order.
async fn with_a_void_order(shop: &Shop) {
    let unknown = shop.place(&[("apple", 1), ("unobtainium", 1)]).send().await;
    let unknown = unknown.expect_problem(422, "unknown_sku");
    assert_eq!(shop.becomes(unknown.order_id(), "void").await["id"], unknown.body["order_id"]);
    let first = shop.place(&[("apple", 1)]).key("k").send().await.expect(201);
    let other = shop.place(&[("apple", 2)]).key("k").send().await;
    let other = other.expect_problem(422, "idempotency_key_reused");
    assert_eq!(other.order_id(), first.order_id());
    let books = shop.conservation(VOID_DEADLINE).await;
    assert_eq!((books.orders.len(), books.halves.len(), books.deductions.len()), (2, 2, 1));
    assert_eq!(books.available["apple"], RECEIVED - 1);
}

/// Without HALFMSG_FAULTS and without a token, neither failures nor operators' calls are obeyed.
pub(crate) async fn bad_input_without_faults_and_token(env: Env) {
    let builder = Shop::builder(env).await;
    let shop = builder.both("HALFMSG_FAULTS", "off").both("HALFMSG_ADMIN_TOKEN", "").open().await;
    shop.seed("apple", 100, RECEIVED).await;
    for fault in ["crash-after-half", "nonsense"] {
        let answer = shop.place(&[("apple", 1)]).fault(fault).send().await;
        answer.expect_problem(403, "faults_disabled");
    }
    let prices = send(shop.http.get(shop.stock_url("/products")).header("X-Fault", "price-lookup"));
    prices.await.expect("an answer").expect_problem(403, "faults_disabled");
    shop.settle(NOBODY, "commit", true).await.expect_problem(403, "admin_disabled");
    let replay = shop.http.post(shop.stock_url(&format!("/dead-letters/{NOBODY}/replay")));
    send(replay).await.expect("an answer").expect_problem(403, "admin_disabled");
    let books = shop.conservation(VOID_DEADLINE).await;
    assert!(books.orders.is_empty() && books.halves.is_empty());
    shop.place(&[("apple", 1)]).send().await.expect(201);
}

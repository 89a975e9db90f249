//! The routes, in process.

use axum::Router;
use axum::body::Body;
use axum::http::{Request, header};
use halfmsg_consumer::{Consumer, ConsumerConfig};
use halfmsg_kafka::KafkaConfig;
use halfmsg_service_kit::{AdminToken, Frame, Letters};
use http_body_util::BodyExt;
use sea_orm::DatabaseConnection;
use serde_json::{Value, json};
use tower::ServiceExt;
use uuid::Uuid;

use super::support::{TOKEN, TestDb, store_of, until};
use crate::group_commit::{DEFAULT_ORDERS, GroupCommit};
use crate::http::{Api, routes};
use crate::metrics::StockMetrics;
use crate::restore::Restorer;

pub(super) struct World {
    router: Router,
    pub(super) database: DatabaseConnection,
    _db: TestDb,
}

pub(super) struct Answer {
    pub(super) status: u16,
    kind: String,
    pub(super) body: Value,
}

impl World {
    async fn new(faults: bool, token: Option<&str>) -> Self {
        let db = TestDb::new().await;
        let database = db.connect().await;
        let config =
            ConsumerConfig::new(KafkaConfig::new("127.0.0.1:1"), database.clone(), "stock-svc");
        let (store, metrics) = (store_of(&database), StockMetrics::default());
        let restorer = Restorer::new(store.clone(), metrics.clone());
        let consumer = Consumer::builder(config).subscribe("t", restorer);
        let api = Api {
            deductions: GroupCommit::new(store.clone(), metrics.clone(), DEFAULT_ORDERS),
            store,
            dead_letters: Letters::of([consumer.build().unwrap().dead_letters()]),
            token: AdminToken::new(token.map(Into::into)),
            faults,
            metrics,
        };
        Self { router: Frame::new().wrap(routes(api)), database, _db: db }
    }

    pub(super) async fn seeded() -> Self {
        let world = Self::new(true, Some(TOKEN)).await;
        for (sku, quantity) in [("apple", 100), ("banana", 50)] {
            let product = json!({"name": sku, "price_cents": 25});
            let put = world.put(&format!("/products/{sku}"), product).await;
            assert_eq!(put.status, 201);
            let receipt = json!({"quantity": quantity, "reference": "seed"});
            assert_eq!(world.post(&format!("/products/{sku}/receipts"), receipt).await.status, 201);
        }
        world
    }

    async fn send(&self, request: Request<Body>) -> Answer {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let status = response.status().as_u16();
        let kind = response.headers()[header::CONTENT_TYPE].to_str().unwrap().to_owned();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        Answer { status, kind, body: serde_json::from_slice(&bytes).unwrap() }
    }

    async fn get(&self, path: &str) -> Answer {
        self.send(Request::get(path).body(Body::empty()).unwrap()).await
    }

    async fn post(&self, path: &str, body: Value) -> Answer {
        self.send(json_request("POST", path, &body, None)).await
    }

    async fn put(&self, path: &str, body: Value) -> Answer {
        self.send(json_request("PUT", path, &body, None)).await
    }

    pub(super) async fn deduct(&self, order_id: Uuid, items: Value) -> Answer {
        self.post("/deductions", json!({"order_id": order_id, "items": items})).await
    }

    async fn available(&self, sku: &str) -> i64 {
        self.get(&format!("/stock/{sku}")).await.body["available"].as_i64().unwrap()
    }
}

fn json_request(
    method: &str,
    path: &str,
    body: &Value,
    extra: Option<(&str, &str)>,
) -> Request<Body> {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::CONTENT_TYPE, "application/json");
    let request = match extra {
        Some((name, value)) => request.header(name, value),
        None => request,
    };
    request.body(Body::from(body.to_string())).unwrap()
}

fn assert_problem(answer: &Answer, status: u16, code: &str) {
    assert_eq!((answer.status, &answer.body["code"]), (status, &json!(code)), "{}", answer.body);
    assert_eq!(answer.kind, "application/problem+json");
    assert_eq!(answer.body["type"], format!("/problems/{code}"));
    assert_eq!(answer.body["status"], status);
}

#[tokio::test]
async fn products_are_put_found_and_listed() {
    let world = World::seeded().await;
    let again = world.put("/products/apple", json!({"name": "Apple", "price_cents": 30})).await;
    assert_eq!((again.status, &again.body["price_cents"]), (200, &json!(30)));
    let one = world.get("/products/apple").await.body;
    assert_eq!((&one["name"], &one["available"]), (&json!("Apple"), &json!(100)));
    assert!(one["created_at"].as_str() < one["updated_at"].as_str());
    let named = world.get("/products?skus=banana,nothing,apple").await.body;
    let skus = |list: &Value| -> Vec<String> {
        let items = list["items"].as_array().unwrap();
        items.iter().map(|item| item["sku"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(skus(&named), ["apple", "banana"]);
    let first = world.get("/products?limit=1").await.body;
    assert_eq!((skus(&first), &first["next_cursor"]), (vec!["apple".into()], &json!("apple")));
    let second = world.get("/products?limit=1&cursor=apple").await.body;
    assert_eq!((skus(&second), &second["next_cursor"]), (vec!["banana".into()], &Value::Null));
}

#[tokio::test]
async fn what_is_not_there_is_a_404() {
    let world = World::seeded().await;
    for path in ["/products/nothing", "/stock/nothing", "/products/a%20b", "/stock/%00"] {
        assert_problem(&world.get(path).await, 404, "unknown_sku");
    }
    let receipt = json!({"quantity": 1, "reference": "r"});
    assert_problem(&world.post("/products/nothing/receipts", receipt).await, 404, "unknown_sku");
    assert_problem(&world.get("/nothing").await, 404, "not_found");
    assert_problem(&world.post("/movements", json!({})).await, 405, "method_not_allowed");
}

#[tokio::test]
async fn a_receipt_counts_once() {
    let world = World::seeded().await;
    let receipt = |quantity: i64| json!({"quantity": quantity, "reference": "r1"});
    let path = "/products/apple/receipts";
    let first = world.post(path, receipt(5)).await;
    assert_eq!((first.status, &first.body["available"]), (201, &json!(105)));
    let second = world.post(path, receipt(5)).await;
    assert_eq!((second.status, &second.body["available"]), (200, &json!(105)));
    assert_problem(&world.post(path, receipt(6)).await, 409, "receipt_conflict");
    for quantity in [0, -1, 1_000_000_001, i64::MAX] {
        assert_problem(&world.post(path, receipt(quantity)).await, 422, "invalid_request");
    }
    let nul = json!({"quantity": 1, "reference": "a\u{0}"});
    assert_problem(&world.post(path, nul).await, 422, "invalid_request");
    assert_eq!(world.available("apple").await, 105);
}

#[tokio::test]
async fn a_deduction_takes_all_or_nothing_and_answers_alike() {
    let world = World::seeded().await;
    let order = Uuid::now_v7();
    let wanted = json!([{"sku": "banana", "quantity": 50}, {"sku": "apple", "quantity": 1}]);
    for _ in 0..2 {
        let answer = world.deduct(order, wanted.clone()).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        assert_eq!(answer.body["state"], "deducted");
        assert_eq!(answer.body["order_id"], order.to_string());
        assert_eq!(answer.body["items"][0], json!({"sku": "apple", "quantity": 1}));
    }
    assert_eq!((world.available("apple").await, world.available("banana").await), (99, 0));
    let other = world.deduct(order, json!([{"sku": "apple", "quantity": 2}])).await;
    assert_problem(&other, 409, "deduction_conflict");
    let lack = json!([{"sku": "apple", "quantity": 1}, {"sku": "banana", "quantity": 1}]);
    let refused = Uuid::now_v7();
    for _ in 0..2 {
        let answer = world.deduct(refused, lack.clone()).await;
        assert_problem(&answer, 409, "insufficient_stock");
        assert_eq!(answer.body["sku"], "banana");
        assert_eq!(answer.body["order_id"], refused.to_string());
    }
    let unknown = world.deduct(Uuid::now_v7(), json!([{"sku": "nothing", "quantity": 1}])).await;
    assert_problem(&unknown, 422, "unknown_sku");
    assert_eq!(world.available("apple").await, 99);
    let movements = world.get(&format!("/movements?order_id={order}")).await.body;
    assert_eq!(movements["items"].as_array().unwrap().len(), 2);
    assert_eq!(movements["items"][0]["kind"], "deduct");
}

#[tokio::test]
async fn bad_deductions_change_nothing() {
    let world = World::seeded().await;
    let order = Uuid::now_v7();
    let many: Vec<_> =
        (0..10_000).map(|n| json!({"sku": format!("s{n}"), "quantity": 1})).collect();
    for items in [
        json!([]),
        json!(many),
        json!([{"sku": "apple", "quantity": 0}]),
        json!([{"sku": "apple", "quantity": -1}]),
        json!([{"sku": "apple", "quantity": 1_000_001}]),
        json!([{"sku": "apple", "quantity": 1.5}]),
        json!([{"sku": "apple", "quantity": "1"}]),
        json!([{"sku": "apple", "quantity": u64::MAX}]),
        json!([{"sku": "apple"}]),
        json!([{"sku": "", "quantity": 1}]),
        json!([{"sku": "a b", "quantity": 1}]),
        json!([{"sku": "x".repeat(65), "quantity": 1}]),
        json!([{"sku": "apple", "quantity": 1, "price": 1}]),
        json!([{"sku": "apple", "quantity": 1}, {"sku": "apple", "quantity": 1}]),
        json!("apple"),
    ] {
        assert_problem(&world.deduct(order, items).await, 422, "invalid_request");
    }
    let bad_id = json!({"order_id": "x", "items": [{"sku": "apple", "quantity": 1}]});
    assert_problem(&world.post("/deductions", bad_id).await, 422, "invalid_request");
    let text = Request::post("/deductions").header("content-type", "text/plain");
    let text = text.body(Body::from("{}")).unwrap();
    assert_problem(&world.send(text).await, 415, "unsupported_media_type");
    let broken = Request::post("/deductions").header("content-type", "application/json");
    let broken = broken.body(Body::from("{\"order_id\":")).unwrap();
    assert_problem(&world.send(broken).await, 400, "malformed_json");
    let large = json!({"order_id": order, "items": "x".repeat(1024 * 1024)});
    assert_problem(&world.post("/deductions", large).await, 413, "body_too_large");
    for path in ["/products?limit=0", "/products?limit=501", "/products?limit=x", "/movements?x=1"]
    {
        assert_problem(&world.get(path).await, 422, "invalid_request");
    }
    // The order's barrier is untouched.
    let good = world.deduct(order, json!([{"sku": "apple", "quantity": 1}])).await;
    assert_eq!(good.status, 200);
}

#[tokio::test]
async fn faults_are_obeyed_only_when_on() {
    let body = |order: Uuid| json!({"order_id": order, "items": [{"sku": "apple", "quantity": 1}]});
    let fault =
        |name, order| json_request("POST", "/deductions", &body(order), Some(("x-fault", name)));
    let world = World::seeded().await;
    let order = Uuid::now_v7();
    for _ in 0..2 {
        let refused = world.send(fault("deduct-refused", order)).await;
        assert_problem(&refused, 409, "insufficient_stock");
    }
    let without = world.post("/deductions", body(order)).await;
    assert_problem(&without, 409, "insufficient_stock");
    let unknown = world.send(fault("explode", order)).await;
    assert_problem(&unknown, 422, "unknown_fault");
    let lookup = json_request("GET", "/products", &json!(null), Some(("x-fault", "price-lookup")));
    assert_problem(&world.send(lookup).await, 500, "induced_failure");
    assert_eq!(world.available("apple").await, 100);
    let off = World::new(false, None).await;
    let answer = off.send(fault("deduct-refused", Uuid::now_v7())).await;
    assert_problem(&answer, 403, "faults_disabled");
}

#[tokio::test]
async fn a_lost_answer_has_deducted_all_the_same() {
    let world = World::seeded().await;
    let body = json!({"order_id": Uuid::now_v7(), "items": [{"sku": "apple", "quantity": 1}]});
    let request = json_request("POST", "/deductions", &body, Some(("x-fault", "deduct-timeout")));
    let router = world.router.clone();
    let stalled = tokio::spawn(async move { router.oneshot(request).await.unwrap() });
    until("the deduction", async || world.available("apple").await == 99).await;
    assert!(!stalled.is_finished());
    stalled.abort();
}

#[tokio::test]
async fn operators_calls_need_the_token() {
    let world = World::seeded().await;
    let path = format!("/dead-letters/{}/replay", Uuid::now_v7());
    let with = |token| json_request("POST", &path, &json!(null), Some(("authorization", token)));
    assert_problem(&world.post(&path, json!(null)).await, 401, "unauthorized");
    assert_problem(&world.send(with("Bearer wrong")).await, 401, "unauthorized");
    assert_problem(&world.send(with("Bearer s3cret")).await, 404, "not_found");
    let list = world.get("/dead-letters").await;
    assert_eq!((list.status, &list.body), (200, &json!({"items": [], "next_cursor": null})));
    let off = World::new(false, None).await;
    assert_problem(&off.send(with("Bearer s3cret")).await, 403, "admin_disabled");
}

#[tokio::test]
async fn the_books_are_the_sums_of_the_movements() {
    let world = World::seeded().await;
    let order = Uuid::now_v7();
    let items = json!([{"sku": "apple", "quantity": 7}]);
    assert_eq!(world.deduct(order, items).await.status, 200);
    let books = world.get("/stock").await.body;
    let expected = json!([
        {"sku": "apple", "name": "apple", "price_cents": 25,
         "available": 93, "received": 100, "deducted": 7, "restored": 0},
        {"sku": "banana", "name": "banana", "price_cents": 25,
         "available": 50, "received": 50, "deducted": 0, "restored": 0},
    ]);
    assert_eq!(books, json!({"items": expected, "next_cursor": null}));
    let first = world.get("/stock?limit=1").await.body;
    assert_eq!(
        (&first["items"][0]["sku"], &first["next_cursor"]),
        (&json!("apple"), &json!("apple"))
    );
    let second = world.get("/stock?limit=1&cursor=apple").await.body;
    assert_eq!(
        (&second["items"][0]["sku"], &second["next_cursor"]),
        (&json!("banana"), &Value::Null)
    );
}

//! The whole service: HTTP in front, the embedded broker behind.

use std::time::{Duration, Instant};

use futures::StreamExt;
use halfmsg_kafka::EmbeddedBroker;
use halfmsg_service_kit::settings::parse_flags;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use sea_orm::ConnectionTrait;
use sea_orm::sea_query::{Expr, Query};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::support::{PATIENCE, TOKEN, TestDb, until};
use crate::Settings;

const TOPIC: &str = "stock.rollback";

/// A running service and what it needs.
struct Service {
    broker: EmbeddedBroker,
    producer: FutureProducer,
    database_url: String,
    http: reqwest::Client,
    base: String,
    shutdown: CancellationToken,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Service {
    async fn start(database_url: &str) -> Self {
        let broker = EmbeddedBroker::start().unwrap();
        for topic in [TOPIC, "order.created", "stock.outbound"] {
            broker.create_topic(topic, 2).unwrap();
        }
        let producer = broker.config().producer().create().unwrap();
        let (base, shutdown, task) = launch(&broker, database_url, &[]);
        let database_url = database_url.to_owned();
        let http = reqwest::Client::new();
        let mut service = Self { broker, producer, database_url, http, base, shutdown, task };
        service.ready(&[]).await;
        service
    }

    /// Waits until it is; one that gives its start up, because the database stands still, is started again,
    /// as whoever watches a service does.
    async fn ready(&mut self, flags: &[&str]) {
        let began = Instant::now();
        loop {
            let path = format!("{}/health/ready", self.base);
            if self.http.get(&path).send().await.is_ok_and(|answer| answer.status() == 200) {
                return;
            }
            if self.task.is_finished() {
                println!("started again: {:?}", (&mut self.task).await);
                self.launch(flags);
            }
            assert!(began.elapsed() < PATIENCE, "it is not ready");
            sleep(Duration::from_millis(20)).await;
        }
    }

    fn launch(&mut self, flags: &[&str]) {
        let (base, shutdown, task) = launch(&self.broker, &self.database_url, flags);
        (self.base, self.shutdown, self.task) = (base, shutdown, task);
    }

    async fn stop(self) {
        self.shutdown.cancel();
        tokio::time::timeout(PATIENCE, self.task).await.unwrap().unwrap().unwrap();
    }

    /// As a crash would: nothing is drained.
    async fn restart(&mut self) {
        self.die().await;
        self.come_back(&[]).await;
    }

    async fn die(&mut self) {
        self.task.abort();
        assert!((&mut self.task).await.is_err());
    }

    async fn come_back(&mut self, flags: &[&str]) {
        self.launch(flags);
        self.ready(flags).await;
    }

    async fn until(&self, what: &str, condition: impl AsyncFn() -> bool) {
        until(what, async || {
            assert!(!self.task.is_finished(), "the service has ended");
            condition().await
        })
        .await;
    }

    /// As clients do, asks again where the database did not answer in time: what is said twice counts once.
    async fn call(&self, method: &str, path: &str, body: Option<Value>) -> (u16, Value) {
        let began = Instant::now();
        loop {
            let method = method.parse().unwrap();
            let mut request = self.http.request(method, format!("{}{path}", self.base));
            request = request.bearer_auth(TOKEN);
            if let Some(body) = &body {
                request = request.json(body);
            }
            let answer = request.send().await.unwrap();
            if answer.status() != 503 || began.elapsed() > PATIENCE {
                return (answer.status().as_u16(), answer.json().await.unwrap());
            }
        }
    }

    async fn seed(&self, sku: &str, quantity: i64) {
        let product = json!({"name": sku, "price_cents": 10});
        assert!(self.call("PUT", &format!("/products/{sku}"), Some(product)).await.0 < 300);
        let receipt = json!({"quantity": quantity, "reference": "seed"});
        let path = format!("/products/{sku}/receipts");
        assert!(self.call("POST", &path, Some(receipt)).await.0 < 300);
    }

    async fn deduct(&self, order: Uuid, sku: &str, quantity: i64) -> u16 {
        let items = json!([{"sku": sku, "quantity": quantity}]);
        let body = json!({"order_id": order, "items": items});
        self.call("POST", "/deductions", Some(body)).await.0
    }

    async fn available(&self, sku: &str) -> i64 {
        self.call("GET", &format!("/stock/{sku}"), None).await.1["available"].as_i64().unwrap()
    }

    async fn until_available(&self, sku: &str, quantity: i64) {
        let what = format!("{quantity} of {sku}");
        self.until(&what, async || self.available(sku).await == quantity).await;
    }

    /// Sends what order-svc's committed half message delivers.
    async fn send(&self, transaction: Uuid, payload: &str) {
        let id = transaction.to_string();
        let header = Header { key: halfmsg_consumer::TRANSACTION_ID_HEADER, value: Some(&id) };
        let headers = OwnedHeaders::new().insert(header);
        let record: FutureRecord<'_, str, str> =
            FutureRecord::to(TOPIC).headers(headers).payload(payload);
        self.producer.send(record, PATIENCE).await.unwrap();
    }

    async fn send_rollback(&self, order: Uuid, sku: &str) {
        let items = json!([{"sku": sku, "quantity": 999}]);
        let payload = json!({"order_id": order, "user_id": "u", "items": items});
        self.send(Uuid::now_v7(), &payload.to_string()).await;
    }

    async fn movements(&self, order: Uuid) -> Vec<(String, i64)> {
        let (_, list) = self.call("GET", &format!("/movements?order_id={order}"), None).await;
        let items = list["items"].as_array().unwrap().iter();
        items
            .map(|one| (one["kind"].as_str().unwrap().into(), one["quantity"].as_i64().unwrap()))
            .collect()
    }
}

fn launch(
    broker: &EmbeddedBroker,
    database_url: &str,
    more: &[&str],
) -> (String, CancellationToken, JoinHandle<anyhow::Result<()>>) {
    let port = free_port();
    let flags = [
        "stock-svc",
        "--embedded=on",
        "--faults=on",
        "--seed=apple=100,pear=5",
        &format!("--admin-token={TOKEN}"),
        &format!("--kafka-brokers={}", broker.config().brokers),
        &format!("--database-url={database_url}"),
        &format!("--listen=127.0.0.1:{port}"),
    ];
    let settings: Settings = parse_flags(flags.into_iter().chain(more.iter().copied())).unwrap();
    let shutdown = CancellationToken::new();
    let task = tokio::spawn(crate::run(settings, shutdown.clone()));
    (format!("http://127.0.0.1:{port}"), shutdown, task)
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Deduct, roll back, repeat, die in between: the stock comes back once.
#[tokio::test(flavor = "multi_thread")]
async fn restores_once() {
    let db = TestDb::new().await;
    let mut service = Service::start(&db.url).await;
    let sku = format!("s{}", Uuid::now_v7().simple());
    service.seed(&sku, 100).await;
    let orders: Vec<Uuid> = (0..20).map(|_| Uuid::now_v7()).collect();
    for order in &orders {
        assert_eq!(service.deduct(*order, &sku, 2).await, 200);
    }
    assert_eq!(service.available(&sku).await, 60);
    // Two half messages of the same order, as a rollback and a late repetition.
    for order in &orders[..10] {
        service.send_rollback(*order, &sku).await;
        service.send_rollback(*order, &sku).await;
    }
    service.restart().await;
    for order in &orders[10..15] {
        service.send_rollback(*order, &sku).await;
    }
    service.until_available(&sku, 90).await;
    let movements = service.movements(orders[0]).await;
    assert_eq!(movements, [("deduct".into(), 2), ("restore".into(), 2)]);
    // Null compensation, and the hanging deduct after it.
    let late = Uuid::now_v7();
    service.send_rollback(late, &sku).await;
    service.until("the void", async || service.movements(late).await == [("void".into(), 0)]).await;
    assert_eq!(service.deduct(late, &sku, 2).await, 409);
    assert_eq!(service.deduct(orders[0], &sku, 2).await, 409);
    assert_eq!(service.available(&sku).await, 90);
    service.stop().await;
}

/// Messages that are there together are restored by so many in a transaction, and by no more.
#[tokio::test(flavor = "multi_thread")]
async fn so_many_messages_share_a_transaction() {
    const STOCK: i64 = 2_400;
    let db = TestDb::new().await;
    let mut service = Service::start(&db.url).await;
    let sku = format!("s{}", Uuid::now_v7().simple());
    service.seed(&sku, STOCK).await;
    // So many in a transaction at most, and in the largest at least. 500 is what they are without a setting.
    for (most, least, messages) in [(3, 3, 40_i64), (500, 200, 1_200)] {
        let orders: Vec<Uuid> = (0..messages).map(|_| Uuid::now_v7()).collect();
        let deducted = futures::stream::iter(&orders)
            .map(|order| service.deduct(*order, &sku, 2))
            .buffer_unordered(50);
        assert!(deducted.all(async |status| status == 200).await);
        let database = db.connect().await;
        database.execute_unprepared("DELETE FROM inbox").await.unwrap();
        service.die().await;
        let sent = orders.iter().map(|order| service.send_rollback(*order, &sku));
        futures::future::join_all(sent).await;
        let setting = format!("--messages-together={most}");
        let settings: &[&str] = if most == 500 { &[] } else { &[setting.as_str()] };
        service.come_back(settings).await;
        service.until_available(&sku, STOCK).await;
        // What is remembered in a transaction has the moment of that.
        let mut together_found = Query::select();
        together_found
            .expr_as(Expr::cust("COUNT(*)"), "messages")
            .from("inbox")
            .group_by_col("received_at");
        let rows = database.query_all(&together_found).await.unwrap();
        let sizes: Vec<i64> = rows.iter().map(|row| row.try_get("", "messages").unwrap()).collect();
        assert_eq!(sizes.iter().sum::<i64>(), messages, "{sizes:?}");
        println!("at most {most}: {sizes:?}");
        assert!((least..=most).contains(sizes.iter().max().unwrap()), "{most}: {sizes:?}");
    }
    service.stop().await;
}

/// A message that cannot be read holds nothing up, is listed, and its replay says what is wrong.
#[tokio::test(flavor = "multi_thread")]
async fn keeps_dead_letters() {
    let db = TestDb::new().await;
    let service = Service::start(&db.url).await;
    let sku = format!("s{}", Uuid::now_v7().simple());
    service.seed(&sku, 10).await;
    let order = Uuid::now_v7();
    assert_eq!(service.deduct(order, &sku, 1).await, 200);
    let garbage = Uuid::now_v7();
    service.send(garbage, "{\"order_id\": 7}\u{0}").await;
    service.send_rollback(order, &sku).await;
    service.until_available(&sku, 10).await;
    let listed = async || {
        let (_, list) = service.call("GET", "/dead-letters", None).await;
        let items = list["items"].as_array().unwrap().clone();
        items.into_iter().find(|one| one["message_key"] == garbage.to_string())
    };
    service.until("the dead letter", async || listed().await.is_some()).await;
    let letter = listed().await.unwrap();
    assert_eq!((&letter["topic"], &letter["attempts"]), (&json!(TOPIC), &json!(1)));
    let path = format!("/dead-letters/{}", letter["id"].as_str().unwrap());
    let (_, shown) = service.call("GET", &path, None).await;
    assert_eq!(shown["payload"], "{\"order_id\": 7}\u{0}");
    let path = format!("{path}/replay");
    let (status, problem) = service.call("POST", &path, None).await;
    assert_eq!((status, &problem["code"]), (409, &json!("replay_failed")), "{problem}");
    assert_eq!(listed().await.unwrap()["attempts"], 2);
    discards_and_queues(&service, letter["id"].as_str().unwrap()).await;
    service.stop().await;
}

/// All of a filter are queued; what fails again is open again; what is discarded stays so.
async fn discards_and_queues(service: &Service, id: &str) {
    let path = format!("/dead-letters/{id}");
    let shown = async || service.call("GET", &path, None).await.1;
    for (filter, queued) in [
        (json!({"topic": "another"}), 0),
        (json!({"topic": TOPIC, "cause": "invalid", "since": "2020-01-01T00:00:00Z"}), 1),
    ] {
        let (status, answer) = service.call("POST", "/dead-letters/replay", Some(filter)).await;
        assert_eq!((status, &answer["queued"]), (202, &json!(queued)), "{answer}");
    }
    service.until("open again", async || shown().await["attempts"] == 3).await;
    assert_eq!(shown().await["state"], "open");
    let discard = format!("{path}/discard");
    let reason = Some(json!({"reason": "nobody sends this"}));
    let (status, letter) = service.call("POST", &discard, reason.clone()).await;
    assert_eq!((status, &letter["state"]), (200, &json!("discarded")), "{letter}");
    assert_eq!(letter["discard_reason"], "nobody sends this");
    for path in [discard, format!("{path}/replay")] {
        let (status, problem) = service.call("POST", &path, reason.clone()).await;
        assert_eq!((status, &problem["code"]), (409, &json!("not_open")), "{problem}");
    }
    let (_, open) = service.call("GET", "/dead-letters?state=open", None).await;
    assert_eq!(open["items"], json!([]));
}

/// The demonstration's stock is there at the first start and not added again at the next one.
#[tokio::test(flavor = "multi_thread")]
async fn is_seeded_once() {
    let db = TestDb::new().await;
    let mut service = Service::start(&db.url).await;
    assert_eq!(service.deduct(Uuid::now_v7(), "apple", 1).await, 200);
    service.restart().await;
    let (status, list) = service.call("GET", "/products", None).await;
    assert_eq!(status, 200);
    let items = list["items"].as_array().unwrap().iter();
    let found: Vec<_> =
        items.map(|one| [&one["sku"], &one["price_cents"], &one["available"]]).collect();
    assert_eq!(json!(found), json!([["apple", 120, 99], ["pear", 100, 5]]));
    service.stop().await;
}

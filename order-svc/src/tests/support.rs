//! A database, a stub of stock-svc, a broker and the service on top of them.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, Request, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use halfmsg_kafka::{EmbeddedBroker, KafkaConfig};
use halfmsg_migrations::{OrderMigrator, migrate};
use halfmsg_producer::{HalfMessage, ListenerResult, LocalTransactionState, TransactionId};
use halfmsg_service_kit::{ApiError, db, settings};
use http_body_util::BodyExt;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{Message, Offset, TopicPartitionList};
use sea_orm::{ConnectionTrait, DatabaseConnection};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep};
use tower::ServiceExt;
use uuid::Uuid;

use crate::draft::Draft;
use crate::listener::{LocalTimes, OrderListener};
use crate::model::{Flow, Item, NewOrder, OrderId};
use crate::payload::{PURPOSE, RollbackPayload};
use crate::stock::StockClient;
use crate::store::{OrderStore, StoreLimits};
use crate::{Service, Settings};

/// Long enough for a busy machine, short enough to fail.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);
pub(super) const TOPIC: &str = "stock.rollback";
pub(super) const TOKEN: &str = "s3cret";

/// Waits until the condition gives a value.
pub(super) async fn until<T, F>(what: &str, mut condition: impl FnMut() -> F) -> T
where
    F: Future<Output = Option<T>>,
{
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = condition().await {
            return value;
        }
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// What checks have said; one that failed is as good as none.
pub(super) fn known(
    answers: Vec<ListenerResult<LocalTransactionState>>,
) -> Vec<LocalTransactionState> {
    let known = |answer: ListenerResult<_>| answer.unwrap_or(LocalTransactionState::Unknown);
    answers.into_iter().map(known).collect()
}

/// An empty database with the schema.
pub(super) struct TestDb {
    pub(super) url: String,
    directory: TempDir,
}

impl TestDb {
    pub(super) async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let url = match std::env::var("HALFMSG_TEST_POSTGRES") {
            Ok(server) => {
                let name = format!("t{}", Uuid::now_v7().simple());
                let server_db = db::connect(&server, &db::DbOptions::default()).await.unwrap();
                server_db.execute_unprepared(&format!("CREATE DATABASE {name}")).await.unwrap();
                let (base, _) = server.rsplit_once('/').unwrap();
                format!("{base}/{name}")
            }
            Err(_) => format!("sqlite://{}", directory.path().join("orders.db").display()),
        };
        let found = Self { url, directory };
        migrate::<OrderMigrator>(&found.connect(Duration::from_secs(5)).await).await.unwrap();
        found
    }

    pub(super) async fn connect(&self, busy_timeout: Duration) -> DatabaseConnection {
        let options = db::DbOptions {
            max_connections: 5,
            sqlite_busy_timeout: busy_timeout,
            ..db::DbOptions::default()
        };
        db::connect(&self.url, &options).await.unwrap()
    }

    pub(super) async fn store(&self) -> OrderStore {
        let limits = StoreLimits { deadline: Duration::from_secs(5), ..StoreLimits::default() };
        let requests = self.connect(Duration::from_secs(5)).await;
        let checks = self.connect(limits.lock_timeout).await;
        OrderStore::new(requests, checks, limits)
    }

    pub(super) fn is_sqlite(&self) -> bool {
        self.url.starts_with("sqlite")
    }

    fn directory(&self) -> &TempDir {
        &self.directory
    }
}

/// stock-svc as far as order-svc sees it.
pub(super) struct StubStock {
    pub(super) url: String,
    state: Arc<Mutex<StubState>>,
}

#[derive(Default)]
struct StubState {
    products: HashMap<String, (i64, u64)>,
    deducted: HashSet<Uuid>,
    requests: usize,
}

type Stub = State<Arc<Mutex<StubState>>>;

impl StubStock {
    /// apple 100 at 120 cents, banana 50 at 35, gold 9 at 2^53.
    #[expect(clippy::disallowed_methods, reason = "routes of a test are in no document")]
    pub(super) async fn start() -> Self {
        let products = [("apple", 120, 100), ("banana", 35, 50), ("gold", 1 << 53, 1_000_000_000)];
        let products = products.map(|(sku, price, left)| (sku.to_owned(), (price, left)));
        let state = StubState { products: products.into(), ..StubState::default() };
        let state = Arc::new(Mutex::new(state));
        let routes = Router::new()
            .route("/products", get(products_of))
            .route("/deductions", post(deduct))
            .with_state(Arc::clone(&state));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, routes).await });
        Self { url, state }
    }

    pub(super) fn has_deducted(&self, order_id: &str) -> bool {
        self.state.lock().unwrap().deducted.contains(&order_id.parse().unwrap())
    }

    pub(super) fn requests(&self) -> usize {
        self.state.lock().unwrap().requests
    }
}

async fn products_of(
    State(state): Stub,
    Query(query): Query<HashMap<String, String>>,
    headers: HeaderMap,
) -> Response {
    let mut state = state.lock().unwrap();
    state.requests += 1;
    if headers.get("x-fault").is_some_and(|fault| fault == "price-lookup") {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    }
    let items: Vec<Value> = query["skus"]
        .split(',')
        .filter_map(|sku| {
            let (price_cents, _) = state.products.get(sku)?;
            Some(json!({"sku": sku, "name": sku, "price_cents": price_cents}))
        })
        .collect();
    Json(json!({"items": items, "next_cursor": null})).into_response()
}

async fn deduct(
    State(state): Stub,
    headers: HeaderMap,
    Json(request): Json<Value>,
) -> Result<Json<Value>, ApiError> {
    let fault = headers.get("x-fault").map(|fault| fault.to_str().unwrap().to_owned());
    {
        let mut state = state.lock().unwrap();
        state.requests += 1;
        let items = request["items"].as_array().unwrap();
        let enough = items.iter().all(|item| {
            let quantity = item["quantity"].as_u64().unwrap();
            let left = state.products.get(item["sku"].as_str().unwrap()).map(|(_, left)| *left);
            left.is_some_and(|left| left >= quantity)
        });
        if !enough || fault.as_deref() == Some("deduct-refused") {
            let conflict = StatusCode::CONFLICT;
            return Err(ApiError::new(conflict, "insufficient_stock", "too little")
                .detail("apple: fewer than asked for"));
        }
        for item in items {
            let quantity = item["quantity"].as_u64().unwrap();
            let product = state.products.get_mut(item["sku"].as_str().unwrap()).unwrap();
            product.1 -= quantity;
        }
        state.deducted.insert(request["order_id"].as_str().unwrap().parse().unwrap());
    }
    if fault.as_deref() == Some("deduct-timeout") {
        sleep(Duration::from_secs(30)).await;
    }
    Ok(Json(json!({"order_id": request["order_id"], "state": "deducted"})))
}

/// An order of this many apples.
pub(super) fn apples(quantity: u32) -> NewOrder {
    let items = vec![Item { sku: "apple".into(), quantity }];
    NewOrder { user_id: "u-1".into(), items, flow: Flow::Rollback }
}

pub(super) fn transaction() -> TransactionId {
    TransactionId::from_uuid(Uuid::now_v7())
}

pub(super) fn draft() -> Draft {
    Draft::new(OrderId::generate(), transaction(), &apples(2))
}

/// The half message of a draft, as the check-back sees it.
pub(super) fn half_of(draft: &Draft) -> HalfMessage {
    let (user_id, items) = (draft.user_id.clone(), draft.items.clone());
    let order = NewOrder { user_id, items, flow: draft.flow };
    let message = RollbackPayload::new(draft.id, &order).to_message(TOPIC, draft.transaction_id);
    HalfMessage {
        transaction_id: draft.transaction_id,
        local_transaction_id: draft.transaction_id,
        purpose: PURPOSE.into(),
        topic: message.topic,
        key: message.key,
        headers: message.headers,
        payload: message.payload,
        partition: 0,
        offset: 0,
        epoch: 0,
        attempts: 0,
    }
}

pub(super) fn listener(store: &OrderStore, stock: &StubStock) -> OrderListener {
    let times = LocalTimes { stock: Duration::from_secs(5), stall: Duration::from_millis(50) };
    OrderListener::new(store.clone(), StockClient::new(&stock.url).unwrap(), times)
}

/// The whole service, on the embedded broker, SQLite and the stub.
pub(super) struct Shop {
    pub(super) broker: EmbeddedBroker,
    pub(super) stock: StubStock,
    pub(super) service: Service,
    _db: TestDb,
}

/// An answer of the service.
#[derive(Debug)]
pub(super) struct Answered {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    pub(super) body: Value,
}

impl Answered {
    pub(super) fn text(&self, member: &str) -> &str {
        self.body[member].as_str().unwrap_or_else(|| panic!("no {member} in {self:?}"))
    }
}

impl Shop {
    pub(super) async fn open() -> Self {
        Self::open_with(&[]).await
    }

    /// Opens with more flags. Times are short, so that a check comes soon.
    pub(super) async fn open_with(flags: &[&str]) -> Self {
        let broker = EmbeddedBroker::start().unwrap();
        for topic in [
            "halfmsg.order-svc.store",
            "halfmsg.order-svc.parked",
            "order.created",
            "stock.outbound",
            TOPIC,
        ] {
            broker.create_topic(topic, 2).unwrap();
        }
        let stock = StubStock::start().await;
        let db = TestDb::new().await;
        assert!(db.directory().path().exists());
        let arguments = [
            "order-svc".to_owned(),
            format!("--kafka-brokers={}", broker.config().brokers),
            "--embedded=on".to_owned(),
            format!("--database-url={}", db.url),
            format!("--stock-url={}", stock.url),
            format!("--admin-token={TOKEN}"),
            "--faults=on".to_owned(),
            "--prepare-deadline-ms=1500".to_owned(),
            "--local-deadline-ms=2000".to_owned(),
            "--stock-deadline-ms=1000".to_owned(),
            "--check-after-ms=4000".to_owned(),
            "--check-interval-ms=1000".to_owned(),
        ];
        let name = |flag: &str| flag.split('=').next().unwrap().to_owned();
        let kept =
            arguments.into_iter().filter(|own| flags.iter().all(|flag| name(flag) != name(own)));
        let flags: Vec<_> = flags.iter().map(|flag| (*flag).to_owned()).collect();
        let arguments = kept.collect::<Vec<_>>().into_iter().chain(flags);
        let settings: Settings = settings::parse_from(arguments).unwrap();
        let service = Service::start(settings.validate().unwrap()).await.unwrap();
        Self { broker, stock, service, _db: db }
    }

    pub(super) async fn call(&self, request: Request<Body>) -> Answered {
        let response = self.service.router().oneshot(request).await.unwrap();
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
        Answered { status, headers, body }
    }

    pub(super) async fn get(&self, path: &str) -> Answered {
        self.call(Request::get(path).body(Body::empty()).unwrap()).await
    }

    /// Orders this many apples, with these headers.
    pub(super) async fn order(&self, quantity: i64, headers: &[(&str, &str)]) -> Answered {
        self.call(order_request(quantity, headers)).await
    }

    pub(super) async fn fault(&self, fault: &str) -> Answered {
        self.order(2, &[("x-fault", fault)]).await
    }

    /// Waits until the half message of this answer is decided, and says how.
    pub(super) async fn decided(&self, answer: &Answered) -> String {
        let path = format!("/halves/{}", answer.text("transaction_id"));
        until("the half is decided", async || {
            let half = self.get(&path).await;
            let state = half.body["state"].as_str()?.to_owned();
            ["committed", "rolled_back"].contains(&state.as_str()).then_some(state)
        })
        .await
    }

    /// Waits until no half is open or parked. One that was stored a moment ago may not be seen
    /// yet: where it matters, wait for [`Shop::decided`].
    pub(super) async fn all_settled(&self) {
        until("every half is settled", async || {
            let halves = self.get("/halves").await;
            halves.body["items"].as_array().is_some_and(Vec::is_empty).then_some(())
        })
        .await;
    }

    pub(super) fn delivered(&self) -> Delivered {
        Delivered::watch(&self.broker.config())
    }
}

/// A request for this many apples.
pub(super) fn order_request(quantity: i64, headers: &[(&str, &str)]) -> Request<Body> {
    let body = json!({"user_id": "u-1", "items": [{"sku": "apple", "quantity": quantity}]});
    let mut request = Request::post("/orders").header("content-type", "application/json");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(Body::from(body.to_string())).unwrap()
}

/// What arrives on the target topic.
pub(super) struct Delivered {
    consumer: BaseConsumer,
    orders: Vec<String>,
}

impl Delivered {
    fn watch(kafka: &KafkaConfig) -> Self {
        let consumer: BaseConsumer = kafka.consumer("watcher").create().unwrap();
        consumer.fetch_metadata(Some(TOPIC), PATIENCE).unwrap();
        let mut partitions = TopicPartitionList::new();
        for partition in 0..2 {
            partitions.add_partition_offset(TOPIC, partition, Offset::Beginning).unwrap();
        }
        consumer.assign(&partitions).unwrap();
        Self { consumer, orders: Vec::new() }
    }

    /// Waits for the message of this order.
    pub(super) async fn wait_for(&mut self, order_id: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.orders.iter().any(|order| order == order_id) {
            assert!(Instant::now() < deadline, "{order_id} is not delivered: {:?}", self.orders);
            self.read();
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// How often the message of this order has arrived so far.
    pub(super) fn count(&mut self, order_id: &str) -> usize {
        self.read();
        self.orders.iter().filter(|order| *order == order_id).count()
    }

    fn read(&mut self) {
        while let Some(record) = self.consumer.poll(Duration::from_millis(50)) {
            let record = record.unwrap();
            let payload: Value = serde_json::from_slice(record.payload().unwrap()).unwrap();
            assert_eq!(record.key(), payload["order_id"].as_str().map(str::as_bytes));
            self.orders.push(payload["order_id"].as_str().unwrap().to_owned());
        }
    }
}

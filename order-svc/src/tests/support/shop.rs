//! The whole service, on the embedded broker, SQLite and the stub.

use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, Request};
use halfmsg_kafka::{EmbeddedBroker, KafkaConfig};
use halfmsg_service_kit::settings;
use http_body_util::BodyExt;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{Message, Offset, TopicPartitionList};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use tower::ServiceExt;

use super::{PATIENCE, StubStock, TOKEN, TOPIC, TestDb, UNHURRIED, until};
use crate::{Service, Settings};

/// The whole service, on the embedded broker, SQLite and the stub.
pub(in crate::tests) struct Shop {
    pub(in crate::tests) broker: EmbeddedBroker,
    pub(in crate::tests) stock: StubStock,
    pub(in crate::tests) service: Service,
    pub(in crate::tests) db: TestDb,
}

/// An answer of the service.
#[derive(Debug)]
pub(in crate::tests) struct Answered {
    pub(in crate::tests) status: u16,
    pub(in crate::tests) headers: HeaderMap,
    pub(in crate::tests) body: Value,
}

impl Answered {
    pub(in crate::tests) fn text(&self, member: &str) -> &str {
        self.body[member].as_str().unwrap_or_else(|| panic!("no {member} in {self:?}"))
    }
}

impl Shop {
    pub(in crate::tests) async fn open() -> Self {
        Self::open_with(&[]).await
    }

    /// Opens with more flags. But for the question to stock-svc, whose end some tests wait for, its times are
    /// as long as a busy machine needs: no check comes before the local transaction had all that it may take.
    pub(in crate::tests) async fn open_with(flags: &[&str]) -> Self {
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
            "--prepare-deadline-ms=60000".to_owned(),
            "--local-deadline-ms=60000".to_owned(),
            "--decision-deadline-ms=60000".to_owned(),
            "--store-timeout-ms=60000".to_owned(),
            "--stock-deadline-ms=8000".to_owned(),
            "--check-after-ms=180000".to_owned(),
            "--check-interval-ms=1000".to_owned(),
            "--answer-deadline-ms=120000".to_owned(),
            "--idempotency-lease-ms=600000".to_owned(),
        ];
        let name = |flag: &str| flag.split('=').next().unwrap().to_owned();
        let kept =
            arguments.into_iter().filter(|own| flags.iter().all(|flag| name(flag) != name(own)));
        let flags: Vec<_> = flags.iter().map(|flag| (*flag).to_owned()).collect();
        let arguments = kept.collect::<Vec<_>>().into_iter().chain(flags);
        let settings: Settings = settings::parse_flags(arguments).unwrap();
        let mut config = settings.validate().unwrap();
        config.store = UNHURRIED;
        config.producer.check_deadline = PATIENCE;
        for pool in [&mut config.common.db, &mut config.check_db] {
            (pool.acquire_timeout, pool.sqlite_busy_timeout) = (PATIENCE, PATIENCE);
        }
        let service = Service::start(config).await.unwrap();
        Self { broker, stock, service, db }
    }

    pub(in crate::tests) async fn call(&self, request: Request<Body>) -> Answered {
        let response = self.service.router().oneshot(request).await.unwrap();
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
        Answered { status, headers, body }
    }

    pub(in crate::tests) async fn get(&self, path: &str) -> Answered {
        self.call(Request::get(path).body(Body::empty()).unwrap()).await
    }

    /// Orders this many apples, with these headers.
    pub(in crate::tests) async fn order(
        &self,
        quantity: i64,
        headers: &[(&str, &str)],
    ) -> Answered {
        self.call(order_request(quantity, headers)).await
    }

    /// With this failure, and no other: asked for again where a machine stood still for longer than storing a
    /// half message or asking stock-svc may take.
    pub(in crate::tests) async fn fault(&self, fault: &str) -> Answered {
        until("an order that is not held up", async || {
            let answer = self.order(2, &[("x-fault", fault)]).await;
            let is_held_up = match answer.body["code"].as_str().unwrap_or_default() {
                "price_lookup_failed" => fault != "price-lookup",
                "deduct_timeout" => fault != "deduct-timeout",
                "kafka_unavailable" => true,
                _ => false,
            };
            (!is_held_up).then_some(answer)
        })
        .await
    }

    /// Waits until the half message of this answer is decided, and says how.
    pub(in crate::tests) async fn decided(&self, answer: &Answered) -> String {
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
    pub(in crate::tests) async fn all_settled(&self) {
        until("every half is settled", async || {
            let halves = self.get("/halves").await;
            halves.body["items"].as_array().is_some_and(Vec::is_empty).then_some(())
        })
        .await;
    }

    pub(in crate::tests) fn delivered(&self) -> Delivered {
        Delivered::watch(&self.broker.config())
    }
}

/// Times for tests whose check is due: as short as they may be for a local transaction that a busy machine
/// holds up.
pub(in crate::tests) const CHECKED_SOON: [&str; 3] =
    ["--prepare-deadline-ms=8000", "--local-deadline-ms=8500", "--check-after-ms=17000"];

/// A request for this many apples.
pub(in crate::tests) fn order_request(quantity: i64, headers: &[(&str, &str)]) -> Request<Body> {
    let body = json!({"user_id": "u-1", "items": [{"sku": "apple", "quantity": quantity}]});
    let mut request = Request::post("/orders").header("content-type", "application/json");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(Body::from(body.to_string())).unwrap()
}

/// What arrives on the target topic.
pub(in crate::tests) struct Delivered {
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
    pub(in crate::tests) async fn wait_for(&mut self, order_id: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.orders.iter().any(|order| order == order_id) {
            assert!(Instant::now() < deadline, "{order_id} is not delivered: {:?}", self.orders);
            self.read();
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// How often the message of this order has arrived so far.
    pub(in crate::tests) fn count(&mut self, order_id: &str) -> usize {
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

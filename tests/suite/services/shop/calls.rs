//! What is asked of the services.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use reqwest::{Client, Error, RequestBuilder};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::{Service, TOKEN};
use crate::suite::PATIENCE;
use crate::suite::services::http::{Answer, send};

/// Before the same is asked again.
const AGAIN: Duration = Duration::from_millis(100);
/// Why an order is void, or is none, where a service, its database or the broker stood still.
const HELD_UP: [&str; 7] = [
    "price_lookup_failed",
    "stock_unreachable",
    "deduct_timeout",
    "deduct_failed",
    "order_insert_failed",
    "fenced",
    "kafka_unavailable",
];
/// The shortest time that anything in a service waits for something else, a database connection: what fails sooner was
/// not held up, and nothing excuses it.
pub(crate) const SHORTEST_WAIT: Duration = Duration::from_secs(2);
/// Why nothing was asked of anybody, or nothing could be told, where one of them stood still.
const NOT_BEGUN: [&str; 5] =
    ["database_unavailable", "database_busy", "kafka_unavailable", "incomplete", "no_topic"];

/// What an induced failure is answered with, if it is answered.
fn own_codes(fault: &str) -> &'static [&'static str] {
    match fault {
        "price-lookup" => &["price_lookup_failed"],
        "deduct-timeout" => &["deduct_timeout"],
        "order-insert" => &["order_insert_failed"],
        "slow-local" => &["fenced", "order_insert_failed"],
        _ => &[],
    }
}

/// Asks the services of one shop. Cheap to clone, for clients in tasks of their own.
#[derive(Clone)]
pub(crate) struct Calls {
    pub(crate) http: Client,
    pub(super) order: String,
    pub(super) stock: String,
    /// Orders that were placed again, because a machine stood still.
    held_up: Arc<Mutex<BTreeSet<Uuid>>>,
}

/// An order that is about to be asked for.
pub(crate) struct Place {
    request: RequestBuilder,
    user_id: String,
    items: Vec<Value>,
    flow: Option<&'static str>,
    /// What it is to be answered with.
    own_codes: &'static [&'static str],
    /// A repetition hears the first answer.
    has_key: bool,
    held_up: Arc<Mutex<BTreeSet<Uuid>>>,
}

impl Place {
    /// With an induced failure.
    pub(crate) fn fault(mut self, fault: &str) -> Self {
        self.own_codes = own_codes(fault);
        self.request = self.request.header("X-Fault", fault);
        self
    }

    /// With an Idempotency-Key.
    pub(crate) fn key(mut self, key: &str) -> Self {
        self.has_key = true;
        self.request = self.request.header("Idempotency-Key", key);
        self
    }

    /// With a header.
    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.request = self.request.header(name, value);
        self
    }

    /// On behalf of this user.
    pub(crate) fn user(mut self, user_id: &str) -> Self {
        self.user_id = user_id.into();
        self
    }

    /// In flow B.
    pub(crate) fn saga(mut self) -> Self {
        self.flow = Some("saga");
        self
    }

    /// Sends it.
    ///
    /// # Errors
    /// The connection's, such as the reset by a process that died.
    pub(crate) async fn try_send(self) -> Result<Answer, Error> {
        let mut body = json!({"user_id": self.user_id, "items": self.items});
        if let Some(flow) = self.flow {
            body["flow"] = flow.into();
        }
        send(self.request.json(&body)).await
    }

    /// Sends it to a service that answers; as a client does, again while the database is too slow for anything
    /// to begin, and where it was held up: see [`Calls::held_up`].
    pub(crate) async fn send(self) -> Answer {
        let until = Instant::now() + PATIENCE;
        loop {
            let began = Instant::now();
            let answer = self.copy().try_send().await.expect("order-svc answers");
            let again = has_not_begun(&answer) || self.was_held_up(&answer, began.elapsed());
            if !again || Instant::now() > until {
                return answer;
            }
            sleep(AGAIN).await;
        }
    }

    /// Whether it was; then another one may be placed for it, and nobody counts this one.
    fn was_held_up(&self, answer: &Answer, took: Duration) -> bool {
        let code = answer.code();
        if took < SHORTEST_WAIT
            || self.has_key
            || self.own_codes.contains(&code)
            || !HELD_UP.contains(&code)
        {
            return false;
        }
        println!("held up: {}", answer.text);
        self.held_up.lock().unwrap_or_else(PoisonError::into_inner).insert(answer.order_id());
        true
    }

    fn copy(&self) -> Self {
        let request = self.request.try_clone().expect("it has no body yet");
        let (user_id, items) = (self.user_id.clone(), self.items.clone());
        let held_up = Arc::clone(&self.held_up);
        Self { request, user_id, items, held_up, ..*self }
    }

    /// Sends it to a service that dies of it; again where it did not come so far.
    pub(crate) async fn send_and_lose(self) {
        let until = Instant::now() + PATIENCE;
        loop {
            let began = Instant::now();
            let Ok(answer) = self.copy().try_send().await else { return };
            let again = has_not_begun(&answer) || self.was_held_up(&answer, began.elapsed());
            assert!(again && Instant::now() < until, "the connection breaks off, but: {answer:?}");
            sleep(AGAIN).await;
        }
    }
}

/// Whether a service, its database or the broker stood still is why it was not done.
pub(crate) fn stood_still(answer: &Answer) -> bool {
    has_not_begun(answer) || HELD_UP.contains(&answer.code())
}

/// The database or the broker was too slow, nothing has begun, and the same may be asked again.
fn has_not_begun(answer: &Answer) -> bool {
    let is_busy = answer.status == 503 && NOT_BEGUN.contains(&answer.code());
    is_busy && answer.body["order_id"].is_null()
}

/// Asks until there is another answer than that the database or the broker is too slow.
async fn patiently(ask: impl Fn() -> RequestBuilder) -> Answer {
    let until = Instant::now() + PATIENCE;
    loop {
        let answer = send(ask()).await.expect("the service answers");
        if !has_not_begun(&answer) || Instant::now() > until {
            return answer;
        }
        sleep(AGAIN).await;
    }
}

impl Calls {
    /// Of services at these addresses.
    pub(super) fn new(http: Client, order: String, stock: String) -> Self {
        Self { http, order, stock, held_up: Arc::default() }
    }

    /// The orders that were placed again, because a service, its database or the broker stood still. None of
    /// them stands.
    pub(crate) fn held_up(&self) -> BTreeSet<Uuid> {
        self.held_up.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The same, with another replica of order-svc.
    pub(crate) fn of_replica(&self, replica: &Service) -> Self {
        Self { order: replica.url(""), ..self.clone() }
    }

    /// The address of a path of order-svc.
    pub(crate) fn order_url(&self, path: &str) -> String {
        format!("{}{path}", self.order)
    }

    /// The address of a path of stock-svc.
    pub(crate) fn stock_url(&self, path: &str) -> String {
        format!("{}{path}", self.stock)
    }

    /// Puts a product and receives so much of it.
    pub(crate) async fn seed(&self, sku: &str, price_cents: i64, quantity: i64) {
        let url = self.stock_url(&format!("/products/{sku}"));
        let product = json!({"name": sku, "price_cents": price_cents});
        // Asked again, it is there already.
        let seeded = |answer: Answer| assert!([200, 201].contains(&answer.status), "{answer:?}");
        seeded(patiently(|| self.http.put(&url).json(&product)).await);
        if quantity > 0 {
            let receipt = json!({"quantity": quantity, "reference": "seed"});
            let receipts = format!("{url}/receipts");
            seeded(patiently(|| self.http.post(&receipts).json(&receipt)).await);
        }
    }

    /// An order of these quantities.
    pub(crate) fn place(&self, items: &[(&str, i64)]) -> Place {
        let item = |(sku, quantity): &(&str, i64)| json!({"sku": sku, "quantity": quantity});
        Place {
            request: self.http.post(self.order_url("/orders")),
            user_id: "ann".into(),
            items: items.iter().map(item).collect(),
            flow: None,
            own_codes: &[],
            has_key: false,
            held_up: Arc::clone(&self.held_up),
        }
    }

    /// A body as it is, of this content type.
    pub(crate) async fn post_raw(&self, content_type: &str, body: String) -> Answer {
        let request =
            self.http.post(self.order_url("/orders")).header("Content-Type", content_type);
        send(request.body(body)).await.expect("order-svc answers")
    }

    /// Cancels an order.
    ///
    /// # Errors
    /// The connection's.
    pub(crate) async fn try_cancel(&self, order_id: Uuid) -> Result<Answer, Error> {
        send(self.http.post(self.order_url(&format!("/orders/{order_id}/cancel")))).await
    }

    /// The same of a service that answers; as a client does, again while what becomes of it is not known.
    pub(crate) async fn cancel(&self, order_id: Uuid) -> Answer {
        let until = Instant::now() + PATIENCE;
        loop {
            let answer = self.try_cancel(order_id).await.expect("order-svc answers");
            if ![503, 504].contains(&answer.status) || Instant::now() > until {
                return answer;
            }
            sleep(AGAIN).await;
        }
    }

    /// `GET` of order-svc, however slow its database and its broker are.
    pub(crate) async fn get(&self, path: &str) -> Answer {
        patiently(|| self.http.get(self.order_url(path))).await
    }

    /// The same of stock-svc.
    pub(crate) async fn get_stock(&self, path: &str) -> Answer {
        patiently(|| self.http.get(self.stock_url(path))).await
    }

    /// How many can be sold now.
    pub(crate) async fn available(&self, sku: &str) -> i64 {
        let answer = self.get_stock(&format!("/stock/{sku}")).await.expect(200);
        answer.body["available"].as_i64().expect("a number")
    }

    /// The movements of an order as (kind, sku, quantity), oldest first.
    pub(crate) async fn movements(&self, order_id: Uuid) -> Vec<(String, String, i64)> {
        let answer = self.get_stock(&format!("/movements?order_id={order_id}")).await.expect(200);
        let text = |value: &Value| value.as_str().expect("a text").to_owned();
        let row = |row: &Value| {
            (text(&row["kind"]), text(&row["sku"]), row["quantity"].as_i64().expect("a number"))
        };
        answer.body["items"].as_array().expect("a list").iter().map(row).collect()
    }

    /// An order, if it has a row.
    pub(crate) async fn find(&self, order_id: Uuid) -> Option<Value> {
        let answer = self.get(&format!("/orders/{order_id}")).await;
        if answer.status == 404 { None } else { Some(answer.expect(200).body) }
    }

    /// All orders of a user, but for those that were held up; the first page is enough for a test.
    pub(crate) async fn orders_of(&self, user_id: &str) -> Vec<Value> {
        let answer = self.get("/orders?limit=100").await.expect(200);
        let orders = answer.body["items"].as_array().expect("a list").clone();
        let held_up = self.held_up();
        let is_held_up = |order: &Value| {
            let id = order["id"].as_str().and_then(|id| id.parse().ok());
            id.is_some_and(|id: Uuid| held_up.contains(&id))
        };
        let of_user = orders.into_iter().filter(|order| order["user_id"] == user_id);
        of_user.filter(|order| !is_held_up(order)).collect()
    }

    /// The half messages of a state, `open` or `parked`.
    ///
    /// # Errors
    /// The answer, if it is another; a busy resolver may say 503.
    pub(crate) async fn halves(&self, state: &str) -> Result<Vec<Value>, String> {
        let answer = self.get(&format!("/halves?state={state}")).await;
        // A partition that could not be looked at in time is named, and not in the list.
        let is_whole = answer.body["missing_partitions"].as_array().is_some_and(Vec::is_empty);
        match answer.body["items"].as_array() {
            Some(items) if answer.status == 200 && is_whole => Ok(items.clone()),
            _ => Err(format!("{} {}", answer.status, answer.text)),
        }
    }

    /// Where one half message stands: `open`, `parked`, `committed`, `rolled_back`, or `unknown`.
    pub(crate) async fn half_state(&self, transaction_id: &str) -> String {
        let answer = self.get(&format!("/halves/{transaction_id}")).await;
        answer.body["state"].as_str().unwrap_or("unknown").to_owned()
    }

    /// An operator's call: `commit`, `rollback`, `check` or `resume`; again while nothing could be done.
    pub(crate) async fn settle(&self, transaction_id: &str, verb: &str, force: bool) -> Answer {
        let body = json!({"reason": "a test", "force": force, "operator": "olga"});
        let url = self.order_url(&format!("/halves/{transaction_id}/{verb}"));
        patiently(|| self.http.post(&url).bearer_auth(TOKEN).json(&body)).await
    }
}

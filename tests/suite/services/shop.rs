//! A shop: stock-svc and order-svc as processes of their own, on the ground of one test.
//!
//! # Layout
//! - this file: starting, killing and starting again
//! - [`calls`]: what is asked of the services
//! - [`settled`]: waiting until nothing is under way, and the audit of the books

mod calls;
pub(crate) mod settled;

use std::collections::BTreeMap;
use std::ops::Deref;
use std::path::PathBuf;
use std::time::Duration;

use reqwest::Client;

use super::ground::Ground;
use super::http::{client, send};
use super::process::Process;
use crate::suite::env::PARTITIONS;
use crate::suite::{Env, until};
pub(crate) use calls::{Calls, Place, SHORTEST_WAIT, stood_still};

/// Being ready. A group whose broker was killed can take minutes to answer for its topics again; why
/// is not known, see REJOINED_WITHIN of the outages.
pub(crate) const READY_DEADLINE: Duration = Duration::from_secs(300);
/// The operators' token of every shop that has one.
pub(crate) const TOKEN: &str = "operators-only";

/// Longer than a machine stands still: what is asked for is done, and by whom it is asked for. What an outage
/// leaves open all the same is checked within [`settled::VOID_DEADLINE`]. prepare + local < check_after, and the
/// lease is above prepare + local + decision; the answer comes before the test's client gives it up.
pub(crate) const UNHURRIED: &[(&str, &str)] = &[
    ("HALFMSG_PREPARE_DEADLINE_MS", "25000"),
    ("HALFMSG_LOCAL_DEADLINE_MS", "30000"),
    ("HALFMSG_DECISION_DEADLINE_MS", "25000"),
    ("HALFMSG_STOCK_DEADLINE_MS", "20000"),
    ("HALFMSG_CHECK_AFTER_MS", "60000"),
    ("HALFMSG_CHECK_INTERVAL_MS", "1000"),
    ("HALFMSG_ANSWER_DEADLINE_MS", "100000"),
    ("HALFMSG_IDEMPOTENCY_LEASE_MS", "90000"),
];

/// For who waits for a check-back, a deadline or a lease: as short as they may be on a machine that stands still
/// for some seconds anywhere.
pub(crate) const CHECKED_SOON: &[(&str, &str)] = &[
    ("HALFMSG_PREPARE_DEADLINE_MS", "7000"),
    ("HALFMSG_LOCAL_DEADLINE_MS", "7500"),
    ("HALFMSG_DECISION_DEADLINE_MS", "7000"),
    ("HALFMSG_STOCK_DEADLINE_MS", "7000"),
    ("HALFMSG_CHECK_AFTER_MS", "15000"),
    ("HALFMSG_ANSWER_DEADLINE_MS", "25000"),
    ("HALFMSG_IDEMPOTENCY_LEASE_MS", "22000"),
];

/// One service: how it is started, and its process while it has one.
pub(crate) struct Service {
    command: &'static str,
    address: String,
    settings: BTreeMap<String, String>,
    log: PathBuf,
    process: Option<Process>,
}

impl Service {
    fn new(command: &'static str, ground: &Ground) -> Self {
        let address = format!("127.0.0.1:{}", super::ports::free());
        let mut settings = ground.settings();
        settings.insert("HALFMSG_LISTEN".into(), address.clone());
        settings.insert("HALFMSG_PARENT_PIPE".into(), "on".into());
        settings.insert("HALFMSG_FAULTS".into(), "on".into());
        settings.insert("HALFMSG_ADMIN_TOKEN".into(), TOKEN.into());
        settings.insert("HALFMSG_RETRY_LEVELS_MS".into(), "200,500,1000,2000,5000".into());
        settings.insert("HALFMSG_INSTANCE_ID".into(), format!("{command}-1"));
        let log = ground.directory().join(format!("{command}.log"));
        Self { command, address, settings, log, process: None }
    }

    /// A setting for the next start; empty unsets it.
    pub(crate) fn set(&mut self, name: &str, value: &str) {
        self.settings.insert(name.into(), value.into());
    }

    /// From the next start on, order-svc asks soon about what is open, also about what is older than that start.
    pub(crate) fn check_soon(&mut self) {
        for (name, value) in CHECKED_SOON {
            self.set(name, value);
        }
    }

    /// The same service once more, at an address of its own, with this instance id or none.
    pub(crate) fn replica(&self, instance_id: &str) -> Self {
        let address = format!("127.0.0.1:{}", super::ports::free());
        let log = self.log.with_file_name(format!("{}-{}.log", self.command, address));
        let settings = self.settings.clone();
        let mut replica = Self { command: self.command, address, settings, log, process: None };
        replica.set("HALFMSG_LISTEN", &replica.address.clone());
        replica.set("HALFMSG_INSTANCE_ID", instance_id);
        replica
    }

    /// The address of a path.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Starts the process, without waiting for anything.
    pub(crate) fn start(&mut self) {
        let settings = self.settings.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        self.process = Some(Process::start(&[self.command], settings, &self.log));
    }

    /// Waits until it is ready.
    pub(crate) async fn ready(&mut self, http: &Client) {
        let (url, command) = (self.url("/health/ready"), self.command);
        until(READY_DEADLINE, &format!("{command} to be ready"), async || {
            if let Some(status) = self.process().ended() {
                panic!("{command} ended instead of getting ready: {status}");
            }
            let answer = send(http.get(&url)).await.map_err(|error| error.to_string())?;
            if answer.status == 200 { Ok(()) } else { Err(answer.text) }
        })
        .await;
    }

    /// The running process.
    pub(crate) fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("the service was started")
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        self.process().kill();
    }
}

/// Both services and everything below them.
pub(crate) struct Shop {
    pub(crate) order: Service,
    pub(crate) stock: Service,
    pub(crate) calls: Calls,
    // Last: the services end before the ground that they stand on.
    pub(crate) ground: Ground,
}

impl Deref for Shop {
    type Target = Calls;

    fn deref(&self) -> &Calls {
        &self.calls
    }
}

/// A shop that is not open yet.
pub(crate) struct ShopBuilder {
    order: Service,
    stock: Service,
    ground: Ground,
}

impl Shop {
    /// Prepares a shop in which nothing is hurried.
    pub(crate) async fn builder(env: Env) -> ShopBuilder {
        ShopBuilder::on(Ground::of(env).await)
    }

    /// A shop in which nothing is hurried, ready.
    pub(crate) async fn open(env: Env) -> Self {
        Self::builder(env).await.open().await
    }

    /// Whether order-svc delivers exactly once.
    pub(crate) fn is_exactly_once(&self) -> bool {
        let asked_for = self.order.settings.get("HALFMSG_EMISSION").map(String::as_str);
        !self.ground.kafka().embedded && asked_for != Some("at-least-once")
    }

    /// Waits for an induced crash of order-svc, and starts it again.
    pub(crate) async fn survive_crash(&mut self) {
        self.order.process().abort().await;
        self.restart_orders().await;
    }

    /// Starts order-svc again, after it has ended.
    pub(crate) async fn restart_orders(&mut self) {
        self.order.start();
        self.order.ready(&self.calls.http).await;
    }

    /// Starts stock-svc again, after it has ended.
    pub(crate) async fn restart_stock(&mut self) {
        self.stock.start();
        self.stock.ready(&self.calls.http).await;
    }
}

impl ShopBuilder {
    /// Prepares a shop on this ground.
    pub(crate) fn on(ground: Ground) -> Self {
        let mut stock = Service::new("stock-svc", &ground);
        stock.set("DATABASE_URL", &ground.stock_url());
        stock.set("HALFMSG_GROUP", &ground.stock_group);
        let mut order = Service::new("order-svc", &ground);
        order.set("DATABASE_URL", &ground.orders_url());
        order.set("HALFMSG_GROUP", &ground.group.group);
        order.set("HALFMSG_STORE_PARTITIONS", &PARTITIONS.to_string());
        order.set("STOCK_URL", &stock.url(""));
        // The books are read from the store.
        order.set("HALFMSG_TRIM_INTERVAL_MS", "0");
        for (name, value) in UNHURRIED {
            order.set(name, value);
        }
        Self { order, stock, ground }
    }

    /// With times for who waits for a check-back, a deadline or a lease.
    pub(crate) fn checked_soon(mut self) -> Self {
        self.order.check_soon();
        self
    }

    /// A setting of order-svc.
    pub(crate) fn order(mut self, name: &str, value: &str) -> Self {
        self.order.set(name, value);
        self
    }

    /// A setting of both services.
    pub(crate) fn both(mut self, name: &str, value: &str) -> Self {
        self.order.set(name, value);
        self.stock.set(name, value);
        self
    }

    /// Starts both, and waits until they are ready.
    pub(crate) async fn open(self) -> Shop {
        let Self { order, stock, ground } = self;
        let calls = Calls::new(client(), order.url(""), stock.url(""));
        let mut shop = Shop { order, stock, calls, ground };
        shop.stock.start();
        shop.order.start();
        shop.stock.ready(&shop.calls.http).await;
        shop.order.ready(&shop.calls.http).await;
        shop
    }
}

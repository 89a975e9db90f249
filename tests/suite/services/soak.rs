//! Conservation: orders of both flows from many clients, some of them cancelled, with failures drawn
//! at random, while the services and the broker are killed again and again.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use reqwest::Error;
use tokio::task::JoinSet;
use tokio::time::Instant;
use uuid::Uuid;

use super::books::Books;
use super::http::Answer;
use super::shop::{Calls, Place, Shop};
use crate::suite::random::Random;
use crate::suite::turns::alone;
use crate::suite::{Env, until};

const ORDERS: usize = 500;
const CLIENTS: usize = 16;
/// Out of a hundred orders, so many are of flow B.
const SAGAS: u64 = 45;
/// Out of a hundred, so many are cancelled once they are answered.
const CANCELS: u64 = 25;
/// The failures that flow B has.
const SAGA_FAULTS: &[&str] = &["price-lookup", "order-insert", "decision-lost"];
const SEED: u64 = 20_261_121;
/// Out of a hundred orders, so many have this failure. Crashes are not drawn: the kills are.
const FAULTS: &[(&str, u64)] = &[
    ("price-lookup", 6),
    ("deduct-refused", 6),
    ("deduct-timeout", 5),
    ("after-deduct", 8),
    ("order-insert", 7),
    ("decision-lost", 5),
    ("slow-local", 2),
];
/// Product and stock; the last one runs out, on a machine too that is so slow that many orders fail.
const STOCK: &[(&str, i64)] = &[("apple", 5_000), ("banana", 5_000), ("cherry", 150)];
/// One request with all its repetitions, while a broker that was killed takes its time and services start.
const PATIENCE: Duration = Duration::from_secs(600);
/// From one kill's share of them to the next one's.
const DEADLINE: Duration = Duration::from_secs(600);
/// After the last answer.
const QUIET_DEADLINE: Duration = Duration::from_secs(300);
/// Before a service that is away is asked again.
const KNOCK: Duration = Duration::from_millis(100);

/// What is killed.
#[derive(Debug, Clone, Copy)]
enum Victim {
    Order,
    Stock,
    Broker,
    /// Both services while the broker is away, which was killed first.
    All,
}

/// What one client wants: one order, however often it has to ask.
#[derive(Debug, Clone)]
struct Wish {
    user: String,
    key: Option<String>,
    fault: Option<&'static str>,
    saga: bool,
    /// Whether it cancels what it got.
    cancels: bool,
    items: Vec<(&'static str, i64)>,
    /// Whether it asks once more after its answer.
    repeats: bool,
}

/// What it was told.
#[derive(Debug)]
enum Told {
    Confirmed(Uuid),
    /// It waited for its stock.
    Accepted(Uuid),
    /// It was cancelled.
    Cancelled(Uuid),
    /// It could not be cancelled any more.
    Rejected(Uuid),
    Void(Uuid),
    /// Nothing: the connection broke, or the answer said that the fate is not known.
    Nothing,
}

impl Wish {
    fn draw(number: usize, random: &mut Random) -> Self {
        let user = format!("user-{number}");
        let key = random.chance(40).then(|| format!("key-{number}"));
        let mut items = Vec::new();
        for (sku, _) in STOCK {
            if random.chance(50) {
                items.push((*sku, 1 + i64::try_from(random.below(5)).expect("it is small")));
            }
        }
        if items.is_empty() {
            items.push(("apple", 1));
        }
        let (saga, cancels) = (random.chance(SAGAS), random.chance(CANCELS));
        let fault = draw_fault(random).filter(|fault| !saga || SAGA_FAULTS.contains(fault));
        Self { user, key, fault, saga, cancels, items, repeats: random.chance(25) }
    }

    fn place(&self, calls: &Calls) -> Place {
        let place = calls.place(&self.items).user(&self.user);
        let place = if self.saga { place.saga() } else { place };
        let place = if let Some(key) = &self.key { place.key(key) } else { place };
        if let Some(fault) = self.fault { place.fault(fault) } else { place }
    }

    async fn come_true(&self, calls: &Calls) -> Told {
        let until = Instant::now() + PATIENCE;
        loop {
            assert!(Instant::now() < until, "{self:?} was never answered");
            match self.place(calls).try_send().await {
                Err(error) if self.may_repeat(&error) => tokio::time::sleep(KNOCK).await,
                Err(_) => return Told::Nothing,
                Ok(answer) => match self.understand(&answer) {
                    Some(told) => {
                        self.repeat(calls, &answer).await;
                        return match told {
                            Told::Confirmed(id) | Told::Accepted(id) if self.cancels => {
                                self.cancel(calls, id).await
                            }
                            told => told,
                        };
                    }
                    None => tokio::time::sleep(Duration::from_millis(500)).await,
                },
            }
        }
    }

    /// As often as it takes: an order is cancelled once, however often that is asked for.
    async fn cancel(&self, calls: &Calls, id: Uuid) -> Told {
        let until = Instant::now() + PATIENCE;
        loop {
            assert!(Instant::now() < until, "{self:?} was never cancelled");
            match calls.try_cancel(id).await {
                Ok(answer) if answer.status == 200 => {
                    assert_eq!(answer.body["status"], "cancelled", "{}", answer.text);
                    return Told::Cancelled(id);
                }
                Ok(answer) if answer.status == 409 => {
                    assert_eq!(answer.body["order_status"], "rejected", "{}", answer.text);
                    return Told::Rejected(id);
                }
                Ok(answer) => assert!([503, 504].contains(&answer.status), "{}", answer.text),
                Err(_) => {}
            }
            tokio::time::sleep(KNOCK).await;
        }
    }

    /// Without a connection nothing was asked; with a key it may be asked again.
    fn may_repeat(&self, error: &Error) -> bool {
        error.is_connect() || self.key.is_some()
    }

    /// Nothing if it has to be asked again.
    fn understand(&self, answer: &Answer) -> Option<Told> {
        match (answer.status, answer.code()) {
            (201, _) if !self.saga => Some(Told::Confirmed(answer.order_id())),
            (202, _) if self.saga => Some(Told::Accepted(answer.order_id())),
            (409, "order_in_progress") | (503, _) | (504, "outcome_unknown") => {
                assert!(!answer.header("retry-after").is_empty(), "{}", answer.text);
                let may_ask_again = self.key.is_some() || nothing_changed(answer);
                if may_ask_again { None } else { Some(Told::Nothing) }
            }
            (400..600, _) => Some(Told::Void(answer.order_id())),
            _ => panic!("{self:?}: {} {}", answer.status, answer.text),
        }
    }

    /// A repetition hears the same, unless the service dies over it.
    async fn repeat(&self, calls: &Calls, first: &Answer) {
        if self.key.is_none() || !self.repeats {
            return;
        }
        if let Ok(again) = self.place(calls).try_send().await
            && again.status != 503
            && again.code() != "order_in_progress"
        {
            assert_eq!((again.status, &again.text), (first.status, &first.text), "{self:?}");
        }
    }
}

/// The answer says so: however long something is away, whoever asks again gets one order.
fn nothing_changed(answer: &Answer) -> bool {
    match answer.code() {
        "kafka_unavailable" | "topic_missing" | "overloaded" | "shutting_down" => true,
        "database_unavailable" => answer.body["order_id"].is_null(),
        _ => false,
    }
}

fn draw_fault(random: &mut Random) -> Option<&'static str> {
    let mut drawn = random.below(100);
    for (fault, share) in FAULTS {
        if drawn < *share {
            return Some(fault);
        }
        drawn -= share;
    }
    None
}

/// 500 orders from 16 clients; order-svc is killed five times while they run, stock-svc twice.
pub(crate) async fn long_500_orders_of_all_flows_and_seven_kills_conserve_the_stock(env: Env) {
    use Victim::{Order, Stock};
    conserves(env, &[Order, Order, Stock, Order, Order, Stock, Order]).await;
}

/// The same, and the broker is killed twice: once before order-svc is, once before stock-svc is.
pub(crate) async fn long_500_orders_of_all_flows_while_the_broker_is_killed(env: Env) {
    use Victim::{Broker, Order, Stock};
    conserves(env.with_own_broker().await, &[Broker, Order, Order, Broker, Stock]).await;
}

/// The same, and all three are killed together, twice: nothing that one of them knows outlives it in
/// another.
pub(crate) async fn long_500_orders_of_all_flows_while_all_are_killed(env: Env) {
    use Victim::{All, Order, Stock};
    conserves(env.with_own_broker().await, &[All, Order, All, Stock]).await;
}

/// Whoever is killed, at even distances.
async fn conserves(env: Env, kills: &[Victim]) {
    let _alone = alone().await;
    // Sixteen clients at once on a machine that may have two cores; and short, so that much runs out of time.
    let builder = Shop::builder(env).await;
    let mut shop = builder
        .order("HALFMSG_PREPARE_DEADLINE_MS", "2500")
        .order("HALFMSG_LOCAL_DEADLINE_MS", "3000")
        .order("HALFMSG_DECISION_DEADLINE_MS", "1000")
        .order("HALFMSG_STOCK_DEADLINE_MS", "1500")
        .order("HALFMSG_CHECK_AFTER_MS", "5600")
        .order("HALFMSG_ANSWER_DEADLINE_MS", "9000")
        .order("HALFMSG_IDEMPOTENCY_LEASE_MS", "6600")
        .open()
        .await;
    for (sku, quantity) in STOCK {
        shop.seed(sku, 100, *quantity).await;
    }
    let mut random = Random::new(SEED);
    let wishes: Vec<_> = (0..ORDERS).map(|number| Wish::draw(number, &mut random)).collect();
    let done = Arc::new(AtomicUsize::new(0));
    let mut clients = JoinSet::new();
    for share in wishes.chunks(ORDERS.div_ceil(CLIENTS)) {
        let (share, calls, done) = (share.to_vec(), shop.calls.clone(), Arc::clone(&done));
        clients.spawn(async move {
            let mut told = Vec::new();
            for wish in share {
                told.push((wish.come_true(&calls).await, wish));
                done.fetch_add(1, Ordering::Relaxed);
            }
            told
        });
    }
    for (number, victim) in kills.iter().enumerate() {
        let enough = ORDERS * (number + 1) / (kills.len() + 1);
        until(DEADLINE, &format!("{enough} orders to be answered"), async || {
            let answered = done.load(Ordering::Relaxed);
            if answered >= enough { Ok(()) } else { Err(format!("{answered} are")) }
        })
        .await;
        match victim {
            Victim::Order => {
                shop.order.kill();
                shop.restart_orders().await;
            }
            Victim::Stock => {
                shop.stock.kill();
                shop.restart_stock().await;
            }
            Victim::Broker => {
                shop.ground.broker().stop().await;
                shop.ground.broker().resume().await;
            }
            Victim::All => {
                shop.ground.broker().stop().await;
                shop.order.kill();
                shop.stock.kill();
                shop.ground.broker().resume().await;
                shop.restart_stock().await;
                shop.restart_orders().await;
            }
        }
    }
    let mut told = Vec::new();
    while let Some(client) = clients.join_next().await {
        told.extend(client.expect("a client does not panic"));
    }
    let books = shop.conservation(QUIET_DEADLINE).await;
    hold_against(&told, &books);
}

/// What clients were told is what the books say, and no wish came true twice.
fn hold_against(told: &[(Told, Wish)], books: &Books) {
    let mut placed: HashMap<&str, Vec<Uuid>> = HashMap::new();
    for (id, order) in books.orders.iter().filter(|(_, order)| order.status != "void") {
        placed.entry(order.user_id.as_deref().unwrap_or_default()).or_default().push(*id);
    }
    let mut unanswered = 0;
    for (told, wish) in told {
        let placed = placed.get(wish.user.as_str()).map(Vec::as_slice).unwrap_or_default();
        let (id, ends): (_, &[&str]) = match told {
            Told::Confirmed(id) => (id, &["confirmed"]),
            Told::Accepted(id) => (id, &["confirmed", "rejected"]),
            Told::Cancelled(id) => (id, &["cancelled"]),
            Told::Rejected(id) => (id, &["rejected"]),
            Told::Void(id) => (id, &["void"]),
            Told::Nothing => {
                unanswered += 1;
                assert!(placed.len() <= 1 && wish.key.is_none(), "{wish:?}: {placed:?}");
                continue;
            }
        };
        let status = books.orders.get(id).expect("an order that was told of has a row");
        assert!(ends.contains(&status.status.as_str()), "{wish:?}: {told:?}, {status:?}");
        let expected = if ends == ["void"] { &[][..] } else { std::slice::from_ref(id) };
        assert_eq!(placed, expected, "{wish:?}");
    }
    // The run proves something only if most orders had their way and each kind of end occurred.
    let of = |flow: &str, status: &str| {
        let here = books.orders.values().filter(|order| order.flow == flow);
        here.filter(|order| order.status == status).count()
    };
    let delivered = books.delivered.len();
    for flow in ["rollback", "saga"] {
        let [confirmed, rejected, cancelled, void] =
            ["confirmed", "rejected", "cancelled", "void"].map(|status| of(flow, status));
        println!(
            "{flow}: {confirmed} confirmed, {rejected} rejected, {cancelled} cancelled, {void} void"
        );
        assert!(confirmed > ORDERS / 10, "{flow}: only {confirmed} orders were confirmed");
        assert!(cancelled > ORDERS / 50, "{flow}: only {cancelled} orders were cancelled");
    }
    println!("{unanswered} unanswered, {delivered} delivered, {} answers", books.answers.len());
    println!("void because: {:?}", books.reasons());
    assert!(of("rollback", "void") > ORDERS / 20, "few orders of flow A are void");
    assert!(of("saga", "rejected") > 0, "nothing ran out");
    assert!(unanswered < ORDERS / 4, "{unanswered} requests were never answered");
}

//! Every induced failure of `POST /orders`: its exact answer, the order's and the half message's
//! end, and what it did to the stock. CONFORMANCE 40 to 45.

use uuid::Uuid;

use super::books::Books;
use super::http::Answer;
use super::shop::Shop;
use super::shop::settled::VOID_DEADLINE;
use crate::suite::Env;

/// In stock before each order.
const RECEIVED: i64 = 100;
/// Ordered each time.
const ORDERED: i64 = 7;
/// What it costs, in cents.
const PRICE_CENTS: i64 = 250;

/// How an order must end.
struct End {
    status: &'static str,
    /// The code at the beginning of a void order's reason.
    reason: Option<&'static str>,
    half: &'static str,
    available: i64,
    movements: &'static [(&'static str, i64)],
}

const CONFIRMED: End = End {
    status: "confirmed",
    reason: None,
    half: "rolled_back",
    available: RECEIVED - ORDERED,
    movements: &[("deduct", ORDERED)],
};
/// Void, and the stock was deducted and came back.
const RESTORED: End = End {
    status: "void",
    reason: None,
    half: "committed",
    available: RECEIVED,
    movements: &[("deduct", ORDERED), ("restore", ORDERED)],
};
/// Void, and it is known that nothing was deducted.
const UNTOUCHED: End =
    End { status: "void", reason: None, half: "rolled_back", available: RECEIVED, movements: &[] };

impl End {
    const fn because(self, reason: &'static str) -> Self {
        Self { reason: Some(reason), ..self }
    }

    async fn reached(self, shop: &Shop, order_id: Uuid) {
        let order = shop.becomes(order_id, self.status).await;
        let reason = order["reason"].as_str();
        let code = reason.map(|text| text.split(": ").next().unwrap_or_default());
        assert_eq!(code, self.reason, "{order}");
        let total = if self.status == "confirmed" { ORDERED * PRICE_CENTS } else { 0 };
        assert_eq!(order["total_cents"], total, "{order}");
        let transaction_id = order["transaction_id"].as_str().expect("a half message");
        assert_eq!(shop.half_ends(transaction_id).await, self.half);
        // Waits for the delivered message to have had its effect, too.
        let books = shop.conservation(VOID_DEADLINE).await;
        assert_eq!(books.orders.len(), 1);
        assert_eq!(shop.available("apple").await, self.available);
        let movements = shop.movements(order_id).await;
        let movements: Vec<_> =
            movements.iter().map(|(kind, _, quantity)| (kind.as_str(), *quantity)).collect();
        assert_eq!(movements, self.movements);
    }
}

async fn open(env: Env) -> Shop {
    seeded(Shop::open(env).await).await
}

/// One whose check-backs are waited for.
async fn open_checked_soon(env: Env) -> Shop {
    seeded(Shop::builder(env).await.checked_soon().open().await).await
}

async fn seeded(shop: Shop) -> Shop {
    shop.seed("apple", PRICE_CENTS, RECEIVED).await;
    shop
}

/// A fault that order-svc answers: the answer, then the end.
async fn answered(env: Env, fault: &str, status: u16, code: &'static str, end: End) -> Answer {
    answered_in(open(env).await, fault, status, code, end).await
}

async fn answered_in(shop: Shop, fault: &str, status: u16, code: &'static str, end: End) -> Answer {
    let answer = shop.place(&[("apple", ORDERED)]).fault(fault).send().await;
    let answer = answer.expect_problem(status, code);
    let order = shop.find(answer.order_id()).await.expect("void is written before the answer");
    assert_eq!((&order["status"], &order["id"]), (&"void".into(), &answer.body["order_id"]));
    assert_eq!(order["transaction_id"], answer.transaction_id());
    end.because(code).reached(&shop, answer.order_id()).await;
    answer
}

/// A fault that order-svc dies of: the connection breaks, the next process brings the end.
async fn crashed(env: Env, fault: &str, end: End) {
    let mut shop = open(env).await;
    shop.place(&[("apple", ORDERED)]).fault(fault).user("zoe").send_and_lose().await;
    shop.order.check_soon();
    shop.survive_crash().await;
    let order = shop.only_order_of("zoe").await;
    let id = order["id"].as_str().and_then(|id| id.parse().ok()).expect("an id");
    end.reached(&shop, id).await;
}

/// CONFORMANCE 40.
pub(crate) async fn c40_the_last_piece_is_sold_once(env: Env) {
    let shop = Shop::open(env).await;
    shop.seed("apple", PRICE_CENTS, 1).await;
    let first = shop.place(&[("apple", 1)]).send().await.expect(201);
    assert_eq!(first.header("location"), format!("/orders/{}", first.order_id()));
    assert_eq!(first.body["status"], "confirmed");
    let second = shop.place(&[("apple", 1)]).send().await.expect_problem(409, "insufficient_stock");
    assert_eq!(shop.becomes(second.order_id(), "void").await["total_cents"], 0);
    assert_eq!(shop.half_ends(&second.transaction_id()).await, "rolled_back");
    let books: Books = shop.conservation(VOID_DEADLINE).await;
    assert_eq!((books.available["apple"], books.delivered.len()), (0, 0));
    assert_eq!(books.deductions[&second.order_id()], "refused");
}

/// CONFORMANCE 41.
pub(crate) async fn c41_a_failure_after_the_deduct_gives_the_stock_back(env: Env) {
    answered(env, "after-deduct", 500, "after_deduct_failed", RESTORED).await;
}

/// CONFORMANCE 42.
pub(crate) async fn c42_a_failed_order_insert_gives_the_stock_back(env: Env) {
    answered(env, "order-insert", 500, "order_insert_failed", RESTORED).await;
}

/// CONFORMANCE 43.
pub(crate) async fn c43_a_crash_after_the_deduct_gives_the_stock_back(env: Env) {
    crashed(env, "crash-after-deduct", RESTORED.because("fenced")).await;
}

/// CONFORMANCE 44.
pub(crate) async fn c44_a_lost_decision_leaves_the_order_and_drops_the_message(env: Env) {
    let shop = open_checked_soon(env).await;
    let answer = shop.place(&[("apple", ORDERED)]).fault("decision-lost").send().await.expect(201);
    shop.half_is(&answer.transaction_id(), "open").await;
    CONFIRMED.reached(&shop, answer.order_id()).await;
}

/// CONFORMANCE 45.
pub(crate) async fn c45_a_failed_price_lookup_deducts_nothing(env: Env) {
    answered(env, "price-lookup", 502, "price_lookup_failed", UNTOUCHED).await;
}

pub(crate) async fn fault_deduct_refused(env: Env) {
    answered(env, "deduct-refused", 409, "insufficient_stock", UNTOUCHED).await;
}

pub(crate) async fn fault_deduct_timeout(env: Env) {
    // Only its own time is short: behind it there is enough to write the order void.
    let shop = Shop::builder(env).await.order("HALFMSG_STOCK_DEADLINE_MS", "7000").open().await;
    answered_in(seeded(shop).await, "deduct-timeout", 504, "deduct_timeout", RESTORED).await;
}

pub(crate) async fn fault_slow_local(env: Env) {
    answered_in(open_checked_soon(env).await, "slow-local", 409, "fenced", RESTORED).await;
}

pub(crate) async fn fault_crash_after_half(env: Env) {
    let nothing = End { movements: &[("void", 0)], ..RESTORED };
    crashed(env, "crash-after-half", nothing.because("fenced")).await;
}

pub(crate) async fn fault_crash_after_order(env: Env) {
    crashed(env, "crash-after-order", CONFIRMED).await;
}

//! CONFORMANCE 22: order-svc dies at every step of an order. Whatever it was doing, the message
//! ends right, and the inbox applies it once.

use super::books::Books;
use super::shop::Shop;
use super::shop::settled::VOID_DEADLINE;
use crate::suite::topic::read_all;
use crate::suite::{Env, until};

const RECEIVED: i64 = 50;

async fn open(env: Env, crash_at: &str) -> Shop {
    let shop = Shop::builder(env).await.order("HALFMSG_CRASH_AT", crash_at).open().await;
    shop.seed("apple", 100, RECEIVED).await;
    shop
}

/// After an order of 3 that was confirmed, or not: the only order, its message, the stock.
async fn ends(shop: &Shop, confirmed: bool) -> Books {
    let order = shop.only_order_of("ann").await;
    assert_eq!(order["status"], if confirmed { "confirmed" } else { "void" }, "{order}");
    let books = shop.conservation(VOID_DEADLINE).await;
    assert_eq!(books.available["apple"], if confirmed { RECEIVED - 3 } else { RECEIVED });
    assert_eq!(books.delivered.len(), usize::from(!confirmed));
    // Other orders are served as before.
    shop.place(&[("apple", 1)]).user("next").send().await.expect(201);
    shop.conservation(VOID_DEADLINE).await
}

/// The three crashes at a fault point; the rows of the fault table have their details.
pub(crate) async fn c22_killed_between_half_and_decision(env: Env) {
    let mut shop = open(env, "").await;
    // Each is asked about as soon as it is old enough, by the process that comes then.
    shop.order.check_soon();
    for (fault, status, left) in [
        ("crash-after-half", "void", RECEIVED),
        ("crash-after-deduct", "void", RECEIVED),
        ("crash-after-order", "confirmed", RECEIVED - 2),
    ] {
        shop.place(&[("apple", 2)]).fault(fault).user(fault).send_and_lose().await;
        shop.survive_crash().await;
        let order = shop.only_order_of(fault).await;
        assert_eq!(order["status"], status, "{fault}: {order}");
        let books = shop.conservation(VOID_DEADLINE).await;
        assert_eq!(books.available["apple"], left, "{fault}");
    }
}

/// SIGKILL while the local transaction runs: the stock is deducted, the order is not stored yet.
pub(crate) async fn c22_killed_during_the_local_transaction(env: Env) {
    let mut shop = open(env, "").await;
    // Past the stall that slow-local makes nothing comes: the process is dead by then.
    let slow = tokio::spawn(shop.place(&[("apple", 3)]).fault("slow-local").try_send());
    shop.stock_is("apple", RECEIVED - 3).await;
    shop.order.kill();
    let answer = slow.await.expect("the request does not panic");
    assert!(answer.is_err(), "the process was killed before its answer: {answer:?}");
    shop.order.check_soon();
    shop.restart_orders().await;
    ends(&shop, false).await;
}

/// The decision is in the store and nothing follows from it yet.
pub(crate) async fn c22_killed_after_a_decision(env: Env) {
    let mut shop = open(env, "after-decision").await;
    // The answer follows the order's row and may win against the abort.
    let _ = shop.place(&[("apple", 3)]).fault("after-deduct").try_send().await;
    shop.order.process().abort().await;
    shop.order.set("HALFMSG_CRASH_AT", "");
    shop.restart_orders().await;
    ends(&shop, false).await;
}

/// The same for a decision that drops the message.
pub(crate) async fn c22_killed_after_a_rollback(env: Env) {
    let mut shop = open(env, "after-decision").await;
    let _ = shop.place(&[("apple", 3)]).try_send().await;
    shop.order.process().abort().await;
    shop.order.set("HALFMSG_CRASH_AT", "");
    shop.restart_orders().await;
    ends(&shop, true).await;
}

/// The message is at its target, and the progress does not know it. Exactly once: nobody sees it
/// until the next owner has taken it back, then once. At least once: it is seen, and comes again.
pub(crate) async fn c22_killed_between_delivery_and_progress(env: Env) {
    let mut shop = open(env, "after-delivery").await;
    let _ = shop.place(&[("apple", 3)]).fault("after-deduct").try_send().await;
    shop.order.process().abort().await;
    if shop.is_exactly_once() {
        let seen = read_all(&shop.ground.kafka(), &shop.ground.rollback_topic).await;
        assert_eq!(seen, [], "its transaction is not committed");
        assert_eq!(shop.available("apple").await, RECEIVED - 3);
        ends_delivered(&mut shop, 1).await;
    } else {
        shop.stock_is("apple", RECEIVED).await;
        ends_delivered(&mut shop, 2).await;
    }
}

/// The same on Kafka where at-least-once was asked for.
pub(crate) async fn c22_at_least_once_where_asked_for(env: Env) {
    let builder = Shop::builder(env).await.order("HALFMSG_EMISSION", "at-least-once");
    let mut shop = builder.order("HALFMSG_CRASH_AT", "after-delivery").open().await;
    shop.seed("apple", 100, RECEIVED).await;
    let _ = shop.place(&[("apple", 3)]).fault("after-deduct").try_send().await;
    shop.order.process().abort().await;
    shop.stock_is("apple", RECEIVED).await;
    ends_delivered(&mut shop, 2).await;
}

/// Message and progress are committed, and the process dies before it hears of it: the next owner
/// finds the progress, and delivers nothing again.
pub(crate) async fn c22_killed_between_commit_and_its_report(env: Env) {
    let mut shop = open(env, "after-commit").await;
    let _ = shop.place(&[("apple", 3)]).fault("after-deduct").try_send().await;
    shop.order.process().abort().await;
    shop.stock_is("apple", RECEIVED).await;
    ends_delivered(&mut shop, 1).await;
}

/// order-svc is back, and the message of the void order was delivered so many times in all;
/// applied once.
async fn ends_delivered(shop: &mut Shop, times: usize) {
    shop.order.set("HALFMSG_CRASH_AT", "");
    shop.restart_orders().await;
    let books = ends(shop, false).await;
    let order = shop.only_order_of("ann").await;
    let id = order["transaction_id"].as_str().and_then(|id| id.parse().ok()).expect("an id");
    assert_eq!(books.delivered[&id], times);
    let restores = books.movements.iter().filter(|row| row.kind == "restore").count();
    assert_eq!(restores, 1);
}

/// stock-svc is killed while messages wait for it: it restores them when it is back.
pub(crate) async fn c22_stock_svc_killed_before_it_restores(env: Env) {
    let mut shop = Shop::builder(env).await.checked_soon().open().await;
    shop.seed("apple", 100, RECEIVED).await;
    // slow-local is given up after the local deadline, when stock-svc is long dead.
    let slow = tokio::spawn(shop.place(&[("apple", 3)]).fault("slow-local").try_send());
    shop.stock_is("apple", RECEIVED - 3).await;
    shop.stock.kill();
    let answer = slow.await.expect("the request does not panic").expect("order-svc answers");
    answer.expect_problem(409, "fenced");
    until(VOID_DEADLINE, "the message to be delivered", async || {
        let open = shop.halves("open").await?;
        if open.is_empty() { Ok(()) } else { Err(format!("{} are open", open.len())) }
    })
    .await;
    shop.restart_stock().await;
    ends(&shop, false).await;
}

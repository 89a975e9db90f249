//! Kafka away, the database away: orders are refused within their deadline, nothing is deducted,
//! open half messages wait, and everything goes on by itself afterwards.

use std::time::{Duration, Instant};

use super::ground::Ground;
use super::http::Answer;
use super::shop::settled::VOID_DEADLINE;
use super::shop::{Shop, ShopBuilder};
use crate::suite::{Env, until};

const RECEIVED: i64 = 60;
/// The prepare deadline of 1.5 s, and what a loaded machine adds to it.
const REFUSED_WITHIN: Duration = Duration::from_secs(4);
/// From the return of a server to the first order that is served, without any restart.
const BACK_WITHIN: Duration = Duration::from_secs(45);

/// An order that is refused because something is away, and may be repeated.
async fn refused(shop: &Shop, code: &str) -> Answer {
    let began = Instant::now();
    let answer = shop.place(&[("apple", 1)]).user("early").key("early").send().await;
    let took = began.elapsed();
    assert!(took < REFUSED_WITHIN, "refused after {took:?}");
    answer.expect_problem(503, code).expect_retry_after()
}

/// It says so where it is asked whether it is ready, and lives.
async fn not_ready(shop: &Shop) {
    until(VOID_DEADLINE, "order-svc to say that it is not ready", async || {
        let ready = shop.get("/health/ready").await;
        if ready.status == 503 { Ok(()) } else { Err(ready.text) }
    })
    .await;
    shop.get("/health/live").await.expect(200);
}

/// Orders until one is served; before, each is refused and says when to come again.
async fn served_again(shop: &Shop) {
    until(BACK_WITHIN, "an order to be served", async || {
        let answer = shop.place(&[("apple", 2)]).user("late").send().await;
        if answer.status == 201 {
            return Ok(());
        }
        assert_eq!(answer.status, 503, "{}", answer.text);
        Err(answer.expect_retry_after().text)
    })
    .await;
}

/// Kafka goes away while an order runs, and while orders come.
pub(crate) async fn kafka_away_and_back(env: Env) {
    let mut shop = Shop::open(env.with_own_broker().await).await;
    shop.seed("apple", 100, RECEIVED).await;
    shop.place(&[("apple", 1)]).user("first").send().await.expect(201);
    // Its half is stored and its stock deducted when Kafka goes; its decision cannot be stored.
    let running = shop.place(&[("apple", 5)]).user("amid").fault("deduct-timeout");
    let running = tokio::spawn(running.send());
    shop.stock_is("apple", RECEIVED - 6).await;
    shop.ground.broker().stop().await;
    let amid = running.await.expect("order-svc answers").expect_problem(504, "deduct_timeout");
    shop.becomes(amid.order_id(), "void").await;

    let answer = refused(&shop, "kafka_unavailable").await;
    assert!(shop.find(answer.order_id()).await.is_none(), "nothing began");
    assert!(shop.movements(answer.order_id()).await.is_empty(), "nothing was deducted");
    not_ready(&shop).await;
    // Reading needs no Kafka.
    assert_eq!(
        shop.becomes(amid.order_id(), "void").await["reason"],
        "deduct_timeout: no answer within the deadline"
    );
    assert_eq!(shop.available("apple").await, RECEIVED - 6);

    shop.ground.broker().resume().await;
    served_again(&shop).await;
    // Refused before anything began, so its key is free.
    shop.place(&[("apple", 1)]).user("early").key("early").send().await.expect(201);
    let books = shop.conservation(BACK_WITHIN).await;
    assert_eq!(books.available["apple"], RECEIVED - 4);
    let confirmed = |user: &str| {
        let of_user = books.orders.values().filter(|order| order.user_id.as_deref() == Some(user));
        of_user.filter(|order| order.status == "confirmed").count()
    };
    // A half that was stored although its prepare timed out is a void order, never a live one.
    assert_eq!((confirmed("first"), confirmed("early"), confirmed("late")), (1, 1, 1));
    assert!(shop.order.process().ended().is_none() && shop.stock.process().ended().is_none());
}

/// PostgreSQL goes away while an order runs: its half message waits and is settled afterwards.
pub(crate) async fn postgres_away_and_back(env: Env) {
    let (ground, proxy) = Ground::behind_a_proxy(env).await;
    let mut shop = ShopBuilder::on(ground).open().await;
    shop.seed("apple", 100, RECEIVED).await;
    let lost = shop.place(&[("apple", 1)]).user("first").fault("decision-lost").send().await;
    let lost = lost.expect(201);
    // Deducted, and stalled before its order is stored.
    let slow = tokio::spawn(shop.place(&[("apple", 5)]).user("amid").fault("slow-local").send());
    shop.stock_is("apple", RECEIVED - 6).await;
    proxy.cut();

    refused(&shop, "database_unavailable").await;
    let amid = slow.await.expect("order-svc answers");
    assert!([503, 504].contains(&amid.status), "its fate is not known: {}", amid.text);
    let amid = amid.expect_retry_after().order_id();
    until(VOID_DEADLINE, "both half messages to have been asked about in vain", async || {
        let open = shop.halves("open").await?;
        let asked = open.iter().filter(|half| half["attempts"].as_u64() > Some(0)).count();
        if (open.len(), asked) == (2, 2) { Ok(()) } else { Err(format!("{open:?}")) }
    })
    .await;
    refused(&shop, "database_unavailable").await;
    not_ready(&shop).await;

    proxy.mend().await;
    served_again(&shop).await;
    assert_eq!(shop.becomes(amid, "void").await["reason"], "fenced");
    let books = shop.conservation(BACK_WITHIN).await;
    assert_eq!(books.orders[&lost.order_id()].status, "confirmed");
    assert_eq!(books.available["apple"], RECEIVED - 3);
    assert_eq!(books.orders.len(), 3, "of the refused orders nothing is left");
    assert!(shop.order.process().ended().is_none() && shop.stock.process().ended().is_none());
}

//! Kafka away, the database away: orders are refused within their deadline, nothing is deducted,
//! open half messages wait, and everything goes on by itself afterwards.

use std::time::{Duration, Instant};

use super::ground::Ground;
use super::http::Answer;
use super::shop::settled::VOID_DEADLINE;
use super::shop::{READY_DEADLINE, Shop, ShopBuilder, stood_still};
use crate::suite::{Env, PATIENCE, until};

const RECEIVED: i64 = 60;
/// The prepare deadline of 7 s, and what a loaded machine adds to it; less than the answer's deadline, which
/// nobody waits for.
const REFUSED_WITHIN: Duration = Duration::from_secs(20);
/// From the return of a server to the first order that is served, without any restart. Where the broker was
/// killed, its groups may take as long as those of a shop that opens.
const BACK_WITHIN: Duration = READY_DEADLINE;

/// An order that is refused because something is away, and may be repeated.
async fn refused(shop: &Shop, code: &str) -> Answer {
    // Again where the machine stood still meanwhile: then something else may be too slow as well.
    let what = format!("an order to be refused in time: {code}");
    let refused = until(PATIENCE, &what, async || {
        let began = Instant::now();
        let answer = shop.place(&[("apple", 1)]).user("early").key("early").try_send().await;
        let answer = answer.expect("order-svc answers");
        let took = began.elapsed();
        assert!([409, 503].contains(&answer.status), "{}", answer.text);
        if answer.code() == code && took < REFUSED_WITHIN {
            return Ok(answer);
        }
        Err(format!("after {took:?}: {}", answer.text))
    })
    .await;
    refused.expect_problem(503, code).expect_retry_after()
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
        let answer = shop.place(&[("apple", 2)]).user("late").try_send().await;
        let answer = answer.expect("order-svc answers");
        if answer.status == 201 {
            return Ok(());
        }
        if answer.status != 503 && stood_still(&answer) {
            return Err(answer.text);
        }
        assert_eq!(answer.status, 503, "{}", answer.text);
        Err(answer.expect_retry_after().text)
    })
    .await;
}

/// So short that a test can outwait it; the broker takes no less.
const SHORT_SESSION: &str = "session.timeout.ms=6000,heartbeat.interval.ms=1000";
/// From the last heartbeat to the loss of all partitions, and what a loaded machine adds to it.
const LOST_WITHIN: Duration = PATIENCE;

/// Kafka goes away while an order runs, and while orders come, and stays away until the group's
/// session has run out.
pub(crate) async fn kafka_away_and_back(env: Env) {
    let builder = Shop::builder(env.with_own_broker().await).await.checked_soon();
    // Behind the stock's deadline there is enough time to write the order void; Kafka is away for longer.
    let builder = builder.order("HALFMSG_LOCAL_DEADLINE_MS", "17000");
    let builder = builder.order("HALFMSG_CHECK_AFTER_MS", "25000");
    let builder = builder.order("HALFMSG_IDEMPOTENCY_LEASE_MS", "32000");
    let mut shop = builder.both("HALFMSG_KAFKA_PROPERTIES", SHORT_SESSION).open().await;
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

    partitions_are_lost(&mut shop).await;
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

/// With the session over, order-svc gives its partitions up. The embedded broker has no sessions.
async fn partitions_are_lost(shop: &mut Shop) {
    if shop.ground.kafka().embedded {
        return;
    }
    until(LOST_WITHIN, "order-svc to give its partitions up", async || {
        let log = shop.order.process().log();
        if log.contains("partitions are given up") { Ok(()) } else { Err("it has them") }
    })
    .await;
}

/// The database of stock-svc goes away, and while its consumer waits for it, Kafka too: the
/// partitions are lost while they are paused, and are read again all the same when they are back.
pub(crate) async fn kafka_away_while_the_database_is_away(env: Env) {
    let (ground, cables) = Ground::behind_proxies(env.with_own_broker().await).await;
    let builder = ShopBuilder::on(ground).checked_soon();
    let builder = builder.both("HALFMSG_KAFKA_PROPERTIES", SHORT_SESSION);
    let mut shop = builder.both("HALFMSG_LOG", "info,halfmsg_consumer=debug").open().await;
    shop.seed("apple", 100, RECEIVED).await;
    let slow = tokio::spawn(shop.place(&[("apple", 5)]).fault("slow-local").send());
    shop.stock_is("apple", RECEIVED - 5).await;
    cables.stock.cut();
    slow.await.expect("order-svc answers").expect_problem(409, "fenced");
    consumer_is(&shop, "paused").await;
    // They may be lost before the broker is known to have ended.
    let before = shop.stock.process().log().matches("rebalance").count();
    shop.ground.broker().stop().await;
    until(LOST_WITHIN, "stock-svc to lose its partitions", async || {
        let now = shop.stock.process().log().matches("rebalance").count();
        if now > before { Ok(()) } else { Err("it has them") }
    })
    .await;
    cables.stock.mend().await;
    consumer_is(&shop, "running").await;
    shop.ground.broker().resume().await;
    served_again(&shop).await;
    // The message from before may have had its effect as soon as the database was back: what
    // counts is that the next one is read.
    let next = shop.place(&[("apple", 3)]).fault("after-deduct").send().await;
    next.expect_problem(500, "after_deduct_failed");
    shop.stock_is("apple", RECEIVED - 2).await;
    shop.conservation(BACK_WITHIN).await;
}

/// Waits until one of stock-svc's consumers is `paused`, or none.
async fn consumer_is(shop: &Shop, state: &str) {
    until(VOID_DEADLINE, &format!("the consumer of stock-svc to be {state}"), async || {
        let metrics = shop.get_stock("/metrics").await.text;
        let of_one = |line: &&str| line.starts_with("halfmsg_consumer_paused{");
        let mut consumers = metrics.lines().filter(of_one).peekable();
        consumers.peek().ok_or("the metric is missing")?;
        let paused = consumers.any(|line| line.ends_with(" 1"));
        if paused == (state == "paused") { Ok(()) } else { Err("it is not") }
    })
    .await;
}

/// PostgreSQL goes away while an order runs: its half message waits and is settled afterwards.
pub(crate) async fn postgres_away_and_back(env: Env) {
    let (ground, cables) = Ground::behind_proxies(env).await;
    let mut shop = ShopBuilder::on(ground).checked_soon().open().await;
    shop.seed("apple", 100, RECEIVED).await;
    let lost = shop.place(&[("apple", 1)]).user("first").fault("decision-lost").send().await;
    let lost = lost.expect(201);
    // Deducted, and stalled before its order is stored.
    let slow = tokio::spawn(shop.place(&[("apple", 5)]).user("amid").fault("slow-local").send());
    shop.stock_is("apple", RECEIVED - 6).await;
    cables.orders.cut();
    // Here stock-svc could still deduct, and must not be asked to.
    refused(&shop, "database_unavailable").await;
    assert_eq!(shop.available("apple").await, RECEIVED - 6);
    cables.stock.cut();

    refused(&shop, "database_unavailable").await;
    let amid = slow.await.expect("order-svc answers");
    assert!([503, 504].contains(&amid.status), "its fate is not known: {}", amid.text);
    let amid = amid.expect_retry_after().order_id();
    until(VOID_DEADLINE, "both half messages to have been asked about in vain", async || {
        let open = shop.halves("open").await?;
        let failing =
            |half: &&serde_json::Value| half["attempts"] == 0 && half["failing_since"].is_string();
        let asked = open.iter().filter(failing).count();
        if (open.len(), asked) == (2, 2) { Ok(()) } else { Err(format!("{open:?}")) }
    })
    .await;
    refused(&shop, "database_unavailable").await;
    not_ready(&shop).await;

    cables.orders.mend().await;
    cables.stock.mend().await;
    served_again(&shop).await;
    assert_eq!(shop.becomes(amid, "void").await["reason"], "fenced");
    let books = shop.conservation(BACK_WITHIN).await;
    assert_eq!(books.orders[&lost.order_id()].status, "confirmed");
    assert_eq!(books.available["apple"], RECEIVED - 3);
    assert_eq!(books.orders.len(), 3, "of the refused orders nothing is left");
    assert!(shop.order.process().ended().is_none() && shop.stock.process().ended().is_none());
}

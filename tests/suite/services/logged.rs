//! What services print: nothing about messages that go their way, and in JSON, on every line about
//! one, its ids.

use serde_json::Value;

use super::shop::Shop;
use crate::suite::{Env, PATIENCE, until};

/// Orders of the quiet case.
const ORDERS: i64 = 5;
/// So often a machine may stand still meanwhile, which is told.
const TRIES: i64 = 4;
const RECEIVED: i64 = 100;

/// By default an order that succeeds, and one that is restored, leave no line.
pub(crate) async fn logged_quietly_by_default(env: Env) {
    let mut shop = Shop::open(env).await;
    shop.seed("apple", 100, RECEIVED).await;
    let mut loud = Vec::new();
    for tries in 1..=TRIES {
        let about = lines_about_orders(&mut shop, RECEIVED - tries * ORDERS).await;
        if about.is_empty() {
            return;
        }
        loud.push(about);
    }
    panic!("{TRIES} times in a row: {loud:#?}");
}

/// The lines about some orders that succeed and one that is restored, behind which so many are left.
async fn lines_about_orders(shop: &mut Shop, left: i64) -> Vec<String> {
    let before = (shop.order.process().log(), shop.stock.process().log());
    assert!(before.0.contains("order-svc listens on"), "{}", before.0);
    for _ in 0..ORDERS {
        shop.place(&[("apple", 1)]).send().await.expect(201);
    }
    let failed = shop.place(&[("apple", 1)]).fault("after-deduct").send().await.expect(500);
    shop.becomes(failed.order_id(), "void").await;
    shop.stock_is("apple", left).await;
    let after = (shop.order.process().log(), shop.stock.process().log());
    let new = |before: &str, after: &str| after.strip_prefix(before).unwrap_or(after).to_owned();
    let lines = [new(&before.0, &after.0), new(&before.1, &after.1)].concat();
    lines.lines().filter(|line| line.contains("_id=")).map(str::to_owned).collect()
}

/// Each line is an object; one about a half message or an order says which.
pub(crate) async fn logged_as_json_with_ids(env: Env) {
    let builder = Shop::builder(env).await;
    let builder = builder.both("HALFMSG_LOG_FORMAT", "json");
    let mut shop = builder.both("HALFMSG_LOG", "warn,halfmsg::life=info").open().await;
    shop.seed("apple", 100, 100).await;
    let failed = shop.place(&[("apple", 1)]).fault("after-deduct").send().await.expect(500);
    let order_id = failed.order_id().to_string();
    let order = shop.becomes(failed.order_id(), "void").await;
    let transaction_id = order["transaction_id"].as_str().expect("a half message").to_owned();
    shop.half_is(&transaction_id, "committed").await;
    shop.stock_is("apple", 100).await;
    for step in [
        "half message stored",
        "order void",
        "request answered",
        "commit decided by producer",
        "committed: delivering",
        "restored 1 x apple",
        "deducted 1 x apple",
    ] {
        // What it tells of can be seen before it is told.
        let line = until(PATIENCE, &format!("'{step}'"), async || {
            let log = [shop.order.process().log(), shop.stock.process().log()].concat();
            let mut lines = log.split_inclusive('\n');
            let line = lines.find(|line| line.contains(step) && line.contains(&order_id));
            line.filter(|line| line.ends_with('\n')).map(str::to_owned).ok_or(log.clone())
        })
        .await;
        let line: Value = serde_json::from_str(&line).expect("a line is an object");
        assert_eq!(line["order_id"], order_id, "{line}");
        assert_eq!(line["transaction_id"], transaction_id, "{line}");
    }
    for line in [shop.order.process().log(), shop.stock.process().log()].concat().lines() {
        let read: Value = serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"));
        let is_life = read["target"] == "halfmsg::life";
        let was_held_up = shop.held_up().iter().any(|id| read["order_id"] == id.to_string());
        assert!(!is_life || read["order_id"] == order_id || was_held_up, "{line}");
    }
    shop.place(&[("apple", 1)]).fault("crash-after-deduct").user("zoe").send_and_lose().await;
    shop.order.process().abort().await;
    let log = shop.order.process().log();
    let line = log.lines().find(|line| line.contains("induced crash")).expect("it says why");
    let line: Value = serde_json::from_str(line).expect("a line is an object");
    shop.restart_orders().await;
    let order = shop.only_order_of("zoe").await;
    let ids =
        [(&line["order_id"], &line["transaction_id"]), (&order["id"], &order["transaction_id"])];
    assert_eq!(ids[0], ids[1], "{line}");
}

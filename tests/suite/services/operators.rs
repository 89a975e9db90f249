//! What operators see and do over HTTP: `GET /halves` and the four calls.

use chrono::{DateTime, Utc};
use serde_json::Value;

use super::lock::lock_orders;
use super::shop::Shop;
use super::shop::settled::VOID_DEADLINE;
use crate::suite::{Env, until};

const RECEIVED: i64 = 40;
/// So long that no check comes by itself while a test runs.
const NEVER_MS: &str = "600000";

async fn open(env: Env) -> Shop {
    let builder = Shop::builder(env).await.order("HALFMSG_CHECK_AFTER_MS", NEVER_MS);
    let shop = builder.order("HALFMSG_MAX_CHECKS", "1").open().await;
    shop.seed("apple", 100, RECEIVED).await;
    shop
}

fn moment(value: &Value) -> DateTime<Utc> {
    value
        .as_str()
        .and_then(|text| text.parse().ok())
        .unwrap_or_else(|| panic!("{value} is no time"))
}

/// An open half is shown with its age, attempts and next check; deciding against the order's row
/// is refused, with it is done at once.
pub(crate) async fn operators_see_and_settle_an_open_half(env: Env) {
    let shop = open(env).await;
    let lost = shop.place(&[("apple", 4)]).fault("decision-lost").send().await.expect(201);
    let id = lost.transaction_id();
    let open = until(VOID_DEADLINE, "one open half message", async || {
        let open = shop.halves("open").await?;
        <[Value; 1]>::try_from(open).map_err(|open| format!("there are {}", open.len()))
    });
    let [half] = open.await;
    assert_eq!(half["transaction_id"], id);
    assert_eq!((&half["state"], &half["purpose"]), (&"open".into(), &"order.rollback".into()));
    assert_eq!((&half["key"], &half["attempts"]), (&lost.body["id"], &0.into()));
    assert!(half["age_seconds"].as_i64().is_some_and(|age| (0..300).contains(&age)), "{half}");
    // Counted from when its owner has read it.
    let wait = moment(&half["next_check_at"]) - moment(&half["stored_at"]);
    assert!((595..=720).contains(&wait.num_seconds()), "the first check is due late: {half}");
    assert!(half.get("payload").is_none(), "payloads are for operators: {half}");

    shop.settle(&id, "commit", false).await.expect_problem(409, "contradiction");
    shop.settle(&id, "commit", true).await.expect_problem(409, "contradiction");
    shop.settle(&id, "resume", false).await.expect_problem(409, "not_parked");
    assert_eq!(shop.half_state(&id).await, "open");
    let done = shop.settle(&id, "rollback", false).await.expect(200);
    assert_eq!(done.body["state"], "rolled_back");
    for verb in ["rollback", "commit", "check", "resume"] {
        shop.settle(&id, verb, false).await.expect_problem(409, "already_closed");
    }
    let books = shop.conservation(VOID_DEADLINE).await;
    assert_eq!((books.available["apple"], books.delivered.len()), (RECEIVED - 4, 0));
}

/// A check that is asked for now decides now.
pub(crate) async fn operators_ask_for_a_check(env: Env) {
    let shop = open(env).await;
    let lost = shop.place(&[("apple", 4)]).fault("decision-lost").send().await.expect(201);
    let id = lost.transaction_id();
    shop.half_is(&id, "open").await;
    shop.settle(&id, "check", false).await.expect(200);
    assert_eq!(shop.half_ends(&id).await, "rolled_back");
    assert_eq!(asked_for(&shop, &id).await, ["rolled_back"]);
    shop.conservation(VOID_DEADLINE).await;
}

/// The events of its history that tell who had it checked, and why.
async fn asked_for(shop: &Shop, id: &str) -> Vec<String> {
    let half = shop.get(&format!("/halves/{id}")).await.body;
    let history = half["history"].as_array().expect("a history").iter();
    let of_olga = history.filter(|entry| {
        let detail = entry["detail"].as_str().expect("words");
        detail.contains("asked for by operator olga") && detail.contains("a test")
    });
    of_olga.map(|entry| entry["event"].as_str().expect("a name").to_owned()).collect()
}

/// A half whose check cannot tell is parked after its last attempt; it waits for a person, who
/// resumes it when the cause is gone.
pub(crate) async fn operators_resume_a_parked_half(env: Env) {
    let mut shop = open(env).await;
    let id = park(&mut shop, "ann").await;
    shop.settle(&id, "check", false).await.expect_problem(409, "not_open");
    let resumed = shop.settle(&id, "resume", false).await.expect(200);
    assert_eq!(
        (&resumed.body["epoch"], &resumed.body["transaction_id"]),
        (&1.into(), &id.clone().into())
    );
    assert_eq!(shop.half_ends(&id).await, "committed");
    let order = shop.only_order_of("ann").await;
    assert_eq!((&order["status"], &order["reason"]), (&"void".into(), &"fenced".into()));
    let books = shop.conservation(VOID_DEADLINE).await;
    assert_eq!(books.available["apple"], RECEIVED);
}

/// While nobody can tell, a decision by hand needs force; once the order's row can be asked, one
/// against it is refused, and one with it is done.
pub(crate) async fn operators_settle_a_parked_half(env: Env) {
    let mut shop = open(env).await;
    let id = park(&mut shop, "ann").await;
    let lock = lock_orders(shop.ground.orders.url()).await;
    shop.settle(&id, "commit", false).await.expect_problem(409, "needs_force");
    lock.release().await;
    // Asked now, the fence writes the order void: its stock has to come back.
    shop.settle(&id, "rollback", true).await.expect_problem(409, "contradiction");
    assert_eq!(shop.half_state(&id).await, "parked");
    let done = shop.settle(&id, "commit", false).await.expect(200);
    assert_eq!(done.body["state"], "committed");
    let books = shop.conservation(VOID_DEADLINE).await;
    assert_eq!(books.available["apple"], RECEIVED);
}

/// What nobody can tell may be forced.
pub(crate) async fn operators_force_what_nobody_can_tell(env: Env) {
    let mut shop = open(env).await;
    let id = park(&mut shop, "ann").await;
    let lock = lock_orders(shop.ground.orders.url()).await;
    let done = shop.settle(&id, "commit", true).await.expect(200);
    assert_eq!(done.body["state"], "committed");
    lock.release().await;
    // The stock is back. The order itself has no row, because its check never could write one.
    shop.stock_is("apple", RECEIVED).await;
    assert!(shop.halves("parked").await.is_ok_and(|parked| parked.is_empty()));
}

/// An order whose process died after the deduction, and whose only check met a locked table.
pub(super) async fn park(shop: &mut Shop, user_id: &str) -> String {
    let dying = shop.place(&[("apple", 5)]).user(user_id).fault("crash-after-deduct");
    dying.send_and_lose().await;
    shop.survive_crash().await;
    let [half] = until(VOID_DEADLINE, "the half message of the dead process", async || {
        let open = shop.halves("open").await?;
        <[Value; 1]>::try_from(open).map_err(|open| format!("there are {}", open.len()))
    })
    .await;
    let id = half["transaction_id"].as_str().expect("an id").to_owned();
    let lock = lock_orders(shop.ground.orders.url()).await;
    shop.settle(&id, "check", false).await.expect(200);
    let [parked] = until(VOID_DEADLINE, "the half message to be parked", async || {
        let parked = shop.halves("parked").await?;
        <[Value; 1]>::try_from(parked).map_err(|parked| format!("there are {}", parked.len()))
    })
    .await;
    lock.release().await;
    assert_eq!((&parked["transaction_id"], &parked["attempts"]), (&id.clone().into(), &1.into()));
    assert!(parked["last_outcome"].as_str().is_some_and(|why| !why.is_empty()), "{parked}");
    assert!(parked["next_check_at"].is_null(), "{parked}");
    assert_eq!(asked_for(shop, &id).await, ["checked"]);
    id
}

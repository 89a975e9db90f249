//! Flow B: the order first, its stock by messages. CONFORMANCE 39 and 40, every failure that can be
//! asked for, the deaths of either service, the stuck order, and the events as others see them.

use sea_orm::{ConnectionTrait, DbBackend, Statement, TransactionTrait};
use serde_json::{Value, json};
use uuid::Uuid;

use super::http::{Answer, send};
use super::shop::settled::{VOID_DEADLINE, database};
use super::shop::{Shop, TOKEN};
use crate::suite::topic::{Entry, write};
use crate::suite::{Env, until};

const PRICE_CENTS: i64 = 250;

async fn open(env: Env, received: i64) -> Shop {
    let shop = Shop::open(env).await;
    shop.seed("apple", PRICE_CENTS, received).await;
    shop
}

/// An order of flow B of so many apples that is accepted.
async fn accepted(shop: &Shop, quantity: i64) -> Answer {
    let answer = shop.place(&[("apple", quantity)]).saga().send().await.expect(202);
    assert_eq!(answer.header("location"), format!("/orders/{}", answer.order_id()));
    assert_eq!(
        (&answer.body["flow"], &answer.body["status"]),
        (&"saga".into(), &"pending_stock".into())
    );
    assert_eq!(answer.body["total_cents"], quantity * PRICE_CENTS);
    answer
}

/// CONFORMANCE 39.
pub(crate) async fn c39_ten_pieces_an_order_of_one_then_of_ten(env: Env) {
    let shop = open(env, 10).await;
    let one = accepted(&shop, 1).await.order_id();
    let confirmed = shop.becomes(one, "confirmed").await;
    assert_eq!(
        (&confirmed["total_cents"], &confirmed["reason"]),
        (&PRICE_CENTS.into(), &Value::Null)
    );
    let ten = accepted(&shop, 10).await.order_id();
    let rejected = shop.becomes(ten, "rejected").await;
    let reason = rejected["reason"].as_str().expect("a reason");
    assert!(reason.starts_with("insufficient_stock: 10 of 'apple'"), "{reason}");
    let books = shop.conservation(VOID_DEADLINE).await;
    assert_eq!((books.available["apple"], books.orders.len()), (9, 2));
    assert_eq!(books.report["apple"], [(11, 2750), (1, 250), (10, 2500), (0, 0)]);
    let report = shop.get("/report").await.expect(200).body;
    let apple = json!({
        "sku": "apple",
        "ordered": {"quantity": 11, "amount_cents": 2750},
        "confirmed": {"quantity": 1, "amount_cents": 250},
        "rejected": {"quantity": 10, "amount_cents": 2500},
        "cancelled": {"quantity": 0, "amount_cents": 0},
    });
    assert_eq!((&report["items"], &report["next_cursor"]), (&json!([apple]), &Value::Null));
}

/// CONFORMANCE 40, in flow B: the second order is rejected, and cancelling it is refused.
pub(crate) async fn c40_saga_the_last_piece_is_sold_once(env: Env) {
    let shop = open(env, 1).await;
    let first = accepted(&shop, 1).await.order_id();
    shop.becomes(first, "confirmed").await;
    let second = accepted(&shop, 1).await.order_id();
    shop.becomes(second, "rejected").await;
    let refused = shop.cancel(second).await.expect_problem(409, "order_not_cancellable");
    assert_eq!(refused.body["order_status"], "rejected");
    let books = shop.conservation(VOID_DEADLINE).await;
    assert_eq!(books.available["apple"], 0);
    assert_eq!(books.deductions[&second], "refused");
}

/// Each failure of flow B: its answer and its end. Nothing is ever taken for a void order.
pub(crate) async fn saga_faults_have_their_answers(env: Env) {
    let mut shop = Shop::builder(env).await.checked_soon().open().await;
    shop.seed("apple", PRICE_CENTS, 50).await;
    let place = |shop: &Shop, fault: &'static str| {
        shop.place(&[("apple", 2)]).saga().user(fault).fault(fault)
    };
    for (fault, status, code, half) in [
        ("price-lookup", 502, "price_lookup_failed", None),
        ("order-insert", 500, "order_insert_failed", Some("rolled_back")),
    ] {
        let answer = place(&shop, fault).send().await.expect_problem(status, code);
        let order = shop.find(answer.order_id()).await.expect("void is written before the answer");
        assert_eq!((&order["status"], &order["total_cents"]), (&"void".into(), &0.into()));
        match half {
            Some(end) => assert_eq!(shop.half_ends(&answer.transaction_id()).await, end),
            None => assert!(answer.body.get("transaction_id").is_none(), "{}", answer.text),
        }
        shop.cancel(answer.order_id()).await.expect_problem(409, "order_not_cancellable");
    }
    let unknown = shop.place(&[("apple", 1), ("unobtainium", 1)]).saga().send().await;
    let unknown = unknown.expect_problem(422, "unknown_sku");
    shop.becomes(unknown.order_id(), "void").await;
    let lost = place(&shop, "decision-lost").send().await.expect(202);
    shop.half_is(&lost.transaction_id(), "open").await;
    shop.becomes(lost.order_id(), "confirmed").await;
    for (fault, end) in [("crash-after-half", "void"), ("crash-after-order", "confirmed")] {
        place(&shop, fault).send_and_lose().await;
        shop.survive_crash().await;
        let order = shop.only_order_of(fault).await;
        let id: Uuid = order["id"].as_str().and_then(|id| id.parse().ok()).expect("an id");
        shop.becomes(id, end).await;
    }
    let books = shop.conservation(VOID_DEADLINE).await;
    assert_eq!((books.available["apple"], books.orders.len()), (46, 6));
}

/// The same answer to a repeated request, whatever became of the order since.
pub(crate) async fn saga_repeats_hear_the_first_answer(env: Env) {
    let shop = open(env, 10).await;
    let place = || shop.place(&[("apple", 2)]).saga().key("k");
    let first = place().send().await.expect(202);
    shop.becomes(first.order_id(), "confirmed").await;
    let again = place().send().await.expect(202);
    assert_eq!(
        (again.text.as_str(), again.header("location")),
        (first.text.as_str(), first.header("location"))
    );
    assert_eq!(again.header("idempotency-replayed"), "true");
    let other_flow = shop.place(&[("apple", 2)]).key("k").send().await;
    other_flow.expect_problem(422, "idempotency_key_reused");
    let books = shop.conservation(VOID_DEADLINE).await;
    assert_eq!((books.orders.len(), books.available["apple"]), (1, 8));
}

/// order-svc dies at each step of its message; stock-svc dies with questions waiting.
pub(crate) async fn saga_survives_the_death_of_either_service(env: Env) {
    let builder = Shop::builder(env).await.checked_soon();
    let mut shop = builder.order("HALFMSG_CRASH_AT", "after-decision").open().await;
    shop.seed("apple", PRICE_CENTS, 20).await;
    for (number, next) in ["after-delivery", ""].into_iter().enumerate() {
        let user = format!("user-{number}");
        // The answer follows the order's row and may win against the abort.
        drop(shop.place(&[("apple", 1)]).saga().user(&user).try_send().await);
        shop.order.process().abort().await;
        shop.order.set("HALFMSG_CRASH_AT", next);
        // What is delivered as soon as it is back kills it again, if that is asked for.
        shop.order.start();
        if next.is_empty() {
            shop.order.ready(&shop.calls.http).await;
        }
    }
    shop.stock.kill();
    // Without stock-svc there are no prices: refused, and nothing is left but the void row.
    let refused = until(VOID_DEADLINE, "an order to be answered", async || {
        let answer = shop.place(&[("apple", 1)]).saga().try_send().await;
        let answer = answer.expect("order-svc answers");
        if answer.code() == "database_unavailable" { Err(answer.text) } else { Ok(answer) }
    })
    .await;
    refused.expect_problem(502, "price_lookup_failed");
    shop.restart_stock().await;
    let last = accepted(&shop, 3).await.order_id();
    shop.stock.kill();
    shop.restart_stock().await;
    shop.becomes(last, "confirmed").await;
    let books = shop.conservation(VOID_DEADLINE).await;
    let confirmed = books.orders.values().filter(|order| order.status == "confirmed").count();
    let pieces = i64::try_from(confirmed - 1).expect("a few") + 3;
    assert_eq!(books.available["apple"], 20 - pieces);
    assert!(confirmed >= 2, "{:?}", books.orders);
}

/// An order that waits is found by its age, counted, and found by the check-back in the end.
pub(crate) async fn saga_stuck_orders_are_seen(env: Env) {
    let builder = Shop::builder(env).await.checked_soon().order("HALFMSG_STUCK_AFTER_MS", "500");
    let shop = builder.order("HALFMSG_CHECK_AFTER_MS", "20000").open().await;
    shop.seed("apple", PRICE_CENTS, 10).await;
    let gauge = async |name: &str| -> Option<i64> {
        let metrics = shop.get("/metrics").await.text;
        let line = metrics.lines().find(|line| line.starts_with(name))?;
        line.split_whitespace().nth(1)?.parse().ok()
    };
    let stuck = "/orders?status=pending_stock&older_than_seconds=1";
    let lost = shop.place(&[("apple", 2)]).saga().fault("decision-lost").send().await.expect(202);
    until(VOID_DEADLINE, "the stuck order", async || {
        let list = shop.get(stuck).await.expect(200);
        let found = list.body["items"][0]["id"] == lost.body["id"];
        let counted = gauge("halfmsg_orders_stuck ").await == Some(1);
        let aged = gauge("halfmsg_orders_oldest_pending_seconds ").await >= Some(1);
        if found && counted && aged { Ok(()) } else { Err(list.text) }
    })
    .await;
    let early = shop.get("/orders?status=pending_stock&older_than_seconds=3600").await;
    assert_eq!(early.expect(200).body["items"], json!([]));
    shop.becomes(lost.order_id(), "confirmed").await;
    until(VOID_DEADLINE, "nothing stuck", async || {
        let stuck = gauge("halfmsg_orders_stuck ").await;
        if stuck == Some(0) { Ok(()) } else { Err(format!("{stuck:?}")) }
    })
    .await;
    assert_eq!(shop.get(stuck).await.expect(200).body["items"], json!([]));
    shop.conservation(VOID_DEADLINE).await;
}

/// A product that somebody holds: orders of another one are answered meanwhile, and however long it takes,
/// its own lose no attempt. With the retries that are set, a counted one would be the last.
pub(crate) async fn saga_a_held_product_holds_up_its_own(env: Env) {
    const EACH: usize = 5;
    let builder = Shop::builder(env).await.both("HALFMSG_RETRY_LEVELS_MS", "100");
    let shop = builder.open().await;
    shop.seed("apple", PRICE_CENTS, 10).await;
    shop.seed("pear", PRICE_CENTS, 10).await;
    let stock = database(shop.ground.stock.url()).await;
    let others = database(shop.ground.stock.url()).await;
    let holder = others.begin().await.expect("a transaction");
    let hold = "SELECT 1 FROM stock WHERE sku = 'apple' FOR UPDATE";
    holder.execute_unprepared(hold).await.expect("the lock");
    let (mut apples, mut pears) = (Vec::new(), Vec::new());
    for _ in 0..EACH {
        apples.push(accepted(&shop, 1).await.order_id());
        pears.push(shop.place(&[("pear", 1)]).saga().send().await.expect(202).order_id());
    }
    for order in pears {
        shop.becomes(order, "confirmed").await;
    }
    let waiting = "SELECT id FROM retry WHERE attempts = 0 AND level = 0 \
                   AND last_failed_at > first_failed_at + interval '4 seconds'";
    let waiting = Statement::from_string(DbBackend::Postgres, waiting);
    until(VOID_DEADLINE, "they were tried again", async || {
        match stock.query_all_raw(waiting.clone()).await.expect("the table").len() {
            EACH => Ok(()),
            rows => Err(format!("{rows} of {EACH}")),
        }
    })
    .await;
    for order in &apples {
        let found = shop.find(*order).await.expect("it is there");
        assert_eq!(found["status"], "pending_stock");
    }
    holder.rollback().await.expect("it lets go");
    for order in apples {
        shop.becomes(order, "confirmed").await;
    }
    let books = shop.conservation(VOID_DEADLINE).await;
    assert_eq!((books.available["apple"], books.available["pear"]), (5, 5));
    let letters = shop.get_stock("/dead-letters").await.expect(200);
    assert_eq!(letters.body["items"], json!([]));
}

/// The report is read again from the topics: when an operator says so while it runs, when its table is
/// emptied while it runs, also if an order comes right behind that, and when it is found empty at a
/// start.
pub(crate) async fn saga_report_is_rebuilt_from_the_topics(env: Env) {
    let mut shop = open(env, 10).await;
    for quantity in [1, 2, 20] {
        accepted(&shop, quantity).await;
    }
    let gone = accepted(&shop, 3).await.order_id();
    shop.becomes(gone, "confirmed").await;
    shop.cancel(gone).await.expect(200);
    let sums = [(26, 6500), (3, 750), (20, 5000), (3, 750)];
    assert_eq!(shop.conservation(VOID_DEADLINE).await.report["apple"], sums);
    let rebuild = || shop.http.post(shop.order_url("/report/rebuild"));
    send(rebuild()).await.expect("an answer").expect_problem(401, "unauthorized");
    send(rebuild().bearer_auth(TOKEN)).await.expect("an answer").expect(202);
    assert_eq!(shop.conservation(VOID_DEADLINE).await.report["apple"], sums);

    let orders = database(shop.ground.orders.url()).await;
    let empty = async |table| {
        let sql = format!("DELETE FROM {table}");
        orders.execute_unprepared(&sql).await.expect("it is there");
    };
    for confirmed in [4, 5] {
        empty("report_product").await;
        // The first order goes ahead of the rebuild, the second one finds it begun, or the other way.
        accepted(&shop, 1).await;
        let books = shop.conservation(VOID_DEADLINE).await;
        assert_eq!(books.report["apple"][1], (confirmed, confirmed * 250));
    }
    shop.order.kill();
    empty("report_product").await;
    shop.restart_orders().await;
    let books = shop.conservation(VOID_DEADLINE).await;
    assert_eq!(books.report["apple"][1], (5, 1250));
    shop.order.kill();
    empty("report_order").await;
    orders.close().await.expect("the connection ends");
    shop.restart_orders().await;
    // It goes on from there.
    accepted(&shop, 1).await;
    let books = shop.conservation(VOID_DEADLINE).await;
    assert_eq!(books.report["apple"][1], (6, 1500));
}

/// Of each dead letter of a list, why.
fn causes(list: &Value) -> Vec<String> {
    let items = list["items"].as_array().into_iter().flatten();
    items.filter_map(|letter| letter["cause"].as_str().map(str::to_owned)).collect()
}

/// A newer version of an event is a dead letter that says so, in each consumer that reads it; a new
/// field is passed over.
pub(crate) async fn saga_newer_events_are_dead_letters(env: Env) {
    let shop = open(env, 10).await;
    let event = |kind: &str, order: Uuid, quantity: i64| {
        let items = json!([{"sku": "apple", "quantity": quantity, "new": [1]}]);
        let payload = json!({"order_id": order, "user_id": "u", "items": items, "newer": true});
        let header = |name: &str, value: &str| (name.to_owned(), Some(value.as_bytes().to_vec()));
        Entry {
            key: Some(order.to_string().into_bytes()),
            headers: vec![
                header("ce_type", kind),
                header("halfmsg-transaction-id", &Uuid::now_v7().to_string()),
            ],
            payload: Some(payload.to_string().into_bytes()),
            ..Entry::default()
        }
    };
    let (newer, known) = (Uuid::now_v7(), Uuid::now_v7());
    let kafka = shop.ground.kafka();
    let created = &shop.ground.created_topic;
    write(&kafka, created, &event("halfmsg.order.created.v2", newer, 1)).await;
    write(&kafka, created, &event("halfmsg.order.created.v1", known, 2)).await;
    let rollback = event("halfmsg.stock.rollback.v7", known, 2);
    write(&kafka, &shop.ground.rollback_topic, &rollback).await;
    let outbound = event("halfmsg.stock.outbound.v2", known, 2);
    write(&kafka, &shop.ground.outbound_topic, &outbound).await;
    shop.stock_is("apple", 8).await;
    let versions = ["order.created.v2", "stock.outbound.v2", "stock.rollback.v7"];
    until(VOID_DEADLINE, "dead letters that name the version, once for each reader", async || {
        let stock = causes(&shop.get_stock("/dead-letters").await.expect(200).body);
        // The answers are read for the orders and for the report, the others for the report.
        let orders = causes(&shop.get("/dead-letters").await.expect(200).body);
        let named = |causes: &[String]| {
            versions.map(|version| {
                let is = |cause: &&String| cause.contains(version) && cause.contains("upgrade");
                causes.iter().filter(is).count()
            })
        };
        let is_complete = (named(&stock), named(&orders)) == ([1, 0, 1], [1, 2, 1]);
        // order-svc never had this order, and says so as well.
        if is_complete && stock.len() == 2 {
            return Ok(());
        }
        Err(format!("stock-svc: {stock:#?}, order-svc: {orders:#?}"))
    })
    .await;
    assert_eq!(shop.movements(newer).await, []);
    assert_eq!(shop.movements(known).await, [("deduct".into(), "apple".into(), 2)]);
    shop.get("/health/ready").await.expect(200);
}

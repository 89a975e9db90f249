//! Idempotency-Key, end to end: who repeats a request hears what the first one heard, and there is
//! never a second live order.

use super::http::Answer;
use super::shop::Shop;
use super::shop::settled::VOID_DEADLINE;
use crate::suite::{Env, PATIENCE, until};

const RECEIVED: i64 = 30;

async fn open(env: Env) -> Shop {
    let shop = Shop::open(env).await;
    shop.seed("apple", 100, RECEIVED).await;
    shop
}

/// One whose leases or check-backs are waited for.
async fn open_checked_soon(env: Env) -> Shop {
    let shop = Shop::builder(env).await.checked_soon().open().await;
    shop.seed("apple", 100, RECEIVED).await;
    shop
}

/// Repeats a request until it is no longer said to be running.
async fn repeat_until_answered(shop: &Shop, key: &str) -> Answer {
    until(VOID_DEADLINE, "an answer to the repeated request", async || {
        let answer = shop.place(&[("apple", 2)]).key(key).send().await;
        match answer.code() {
            "order_in_progress" => {
                Err(answer.expect_problem(409, "order_in_progress").expect_retry_after().text)
            }
            _ => Ok(answer),
        }
    })
    .await
}

fn same(again: &Answer, first: &Answer) {
    assert_eq!((again.status, &again.text), (first.status, &first.text));
    assert_eq!(again.header("content-type"), first.header("content-type"));
    assert_eq!(again.header("location"), first.header("location"));
    assert_eq!(
        (again.header("idempotency-replayed"), first.header("idempotency-replayed")),
        ("true", "")
    );
}

/// The same answer, of a success, of a failure, and after a restart; another user's key is another.
pub(crate) async fn repeats_hear_the_first_answer(env: Env) {
    let mut shop = open(env).await;
    let good = shop.place(&[("apple", 2)]).key("good").send().await.expect(201);
    let bad = shop.place(&[("apple", 2)]).key("bad").fault("order-insert").send().await;
    let bad = bad.expect_problem(500, "order_insert_failed");
    same(&shop.place(&[("apple", 2)]).key("good").send().await, &good);
    same(&shop.place(&[("apple", 2)]).key("bad").send().await, &bad);
    shop.order.kill();
    // The last decision may not be stored yet.
    shop.order.check_soon();
    shop.restart_orders().await;
    same(&shop.place(&[("apple", 2)]).key("good").send().await, &good);
    same(&shop.place(&[("apple", 2)]).key("bad").send().await, &bad);
    let other = shop.place(&[("apple", 2)]).user("bob").key("good").send().await.expect(201);
    assert_ne!(other.order_id(), good.order_id());
    let books = shop.conservation(VOID_DEADLINE).await;
    assert_eq!((books.orders.len(), books.available["apple"]), (3, RECEIVED - 4));
}

/// While the first request runs, a repetition is told to come again; so are eight at once, of
/// which one is the first.
pub(crate) async fn repeats_wait_for_the_first(env: Env) {
    let shop = open_checked_soon(env).await;
    let slow = shop.place(&[("apple", 2)]).key("slow").fault("slow-local");
    let slow = tokio::spawn(slow.send());
    shop.stock_is("apple", RECEIVED - 2).await;
    let early = shop.place(&[("apple", 2)]).key("slow").send().await;
    let early = early.expect_problem(409, "order_in_progress").expect_retry_after();
    let first = slow.await.expect("order-svc answers").expect_problem(409, "fenced");
    assert_eq!(early.order_id(), first.order_id());
    same(&shop.place(&[("apple", 2)]).key("slow").send().await, &first);
    let at_once = (0..8).map(|_| shop.place(&[("apple", 2)]).key("at once").send());
    let answers = futures::future::join_all(at_once).await;
    let created = repeat_until_answered(&shop, "at once").await.expect(201);
    for answer in answers {
        match answer.status {
            201 => assert_eq!(answer.text, created.text),
            _ => drop(answer.expect_problem(409, "order_in_progress").expect_retry_after()),
        }
    }
    let books = shop.conservation(VOID_DEADLINE).await;
    assert_eq!((books.orders.len(), books.available["apple"]), (2, RECEIVED - 2));
}

/// A client that hangs up loses its answer and nothing else: the order goes on to its end, and the
/// answer is kept for the repetition.
pub(crate) async fn repeats_after_the_client_hung_up(env: Env) {
    let shop = Shop::builder(env).await.order("HALFMSG_STOCK_DEADLINE_MS", "7000").open().await;
    shop.seed("apple", 100, RECEIVED).await;
    let place = shop.place(&[("apple", 2)]).key("k").fault("deduct-timeout");
    // The answer takes as long as the stock deadline.
    tokio::select! {
        answer = place.send() => panic!("there was nothing to hang up: {answer:?}"),
        () = shop.stock_is("apple", RECEIVED - 2) => {}
    }
    let answer = repeat_until_answered(&shop, "k").await;
    assert_eq!(answer.header("idempotency-replayed"), "true");
    // Not 'fenced': the handler itself wrote the row, long before the first check.
    let answer = answer.expect_problem(504, "deduct_timeout");
    assert_eq!(shop.half_ends(&answer.transaction_id()).await, "committed");
    let books = shop.conservation(VOID_DEADLINE).await;
    assert_eq!((books.orders.len(), books.available["apple"]), (1, RECEIVED));
}

/// The first request died after its order was stored: the repetition hears of that order.
pub(crate) async fn repeats_after_a_crash_behind_the_order(env: Env) {
    let mut shop = open_checked_soon(env).await;
    shop.place(&[("apple", 2)]).key("k").fault("crash-after-order").send_and_lose().await;
    shop.survive_crash().await;
    let order = shop.only_order_of("ann").await;
    let answer = repeat_until_answered(&shop, "k").await.expect(201);
    assert_eq!(answer.body["id"], order["id"]);
    let books = shop.conservation(VOID_DEADLINE).await;
    assert_eq!((books.orders.len(), books.available["apple"]), (1, RECEIVED - 2));
}

/// The first request died after the deduction and the repetition comes before the check-back: it
/// writes the first order void, places its own, and there is exactly one live order.
pub(crate) async fn repeats_after_a_crash_before_the_order(env: Env) {
    // From the end of the lease to the check there is time for a slow machine.
    let builder = Shop::builder(env).await.checked_soon();
    let builder = builder.order("HALFMSG_CHECK_AFTER_MS", "35000");
    let builder = builder.order("HALFMSG_STOCK_DEADLINE_MS", "3000");
    let builder = builder.order("HALFMSG_LOCAL_DEADLINE_MS", "3500");
    let builder = builder.order("HALFMSG_DECISION_DEADLINE_MS", "1000");
    let mut shop = builder.order("HALFMSG_IDEMPOTENCY_LEASE_MS", "11600").open().await;
    shop.seed("apple", 100, RECEIVED).await;
    shop.place(&[("apple", 2)]).key("k").fault("crash-after-deduct").send_and_lose().await;
    shop.survive_crash().await;
    let answer = repeat_until_answered(&shop, "k").await.expect(201);
    let orders = shop.orders_of("ann").await;
    let first = orders.iter().find(|order| order["id"] != answer.body["id"]).expect("two orders");
    assert_eq!((&first["status"], &first["reason"]), (&"void".into(), &"abandoned".into()));
    let books = shop.conservation(2 * PATIENCE).await;
    assert_eq!((books.orders.len(), books.available["apple"]), (2, RECEIVED - 2));
    assert_eq!(books.delivered.len(), 1, "the first order's stock came back by its message");
}

/// The first request died and the check-back came first: the repetition hears that the order is
/// void, and nothing lives.
pub(crate) async fn repeats_after_a_crash_and_its_check(env: Env) {
    let mut shop = open_checked_soon(env).await;
    shop.place(&[("apple", 2)]).key("k").fault("crash-after-deduct").send_and_lose().await;
    shop.survive_crash().await;
    shop.stock_is("apple", RECEIVED).await;
    let answer = repeat_until_answered(&shop, "k").await.expect_problem(409, "fenced");
    same(
        &shop.place(&[("apple", 2)]).key("k").send().await,
        &Answer { headers: without_mark(&answer), ..answer },
    );
    let books = shop.conservation(VOID_DEADLINE).await;
    assert_eq!((books.orders.len(), books.available["apple"]), (1, RECEIVED));
}

/// Nobody heard the first answer, so even the first that is heard is a repetition.
fn without_mark(answer: &Answer) -> reqwest::header::HeaderMap {
    let mut headers = answer.headers.clone();
    headers.remove("idempotency-replayed");
    headers
}

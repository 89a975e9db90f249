//! Flow C: cancelling. Whatever it meets, there is one end, one message, and the stock comes back.

use futures::future::join_all;
use halfmsg_service_kit::db::DbOptions;
use sea_orm::{ConnectionTrait, DatabaseTransaction, TransactionTrait};

use super::http::Answer;
use super::shop::Shop;
use super::shop::settled::VOID_DEADLINE;
use crate::suite::database::patient;
use crate::suite::{Env, until};

const RECEIVED: i64 = 40;

async fn open(env: Env) -> Shop {
    let shop = Shop::open(env).await;
    shop.seed("apple", 100, RECEIVED).await;
    shop
}

/// One whose check-backs are waited for.
async fn open_checked_soon(env: Env) -> Shop {
    let shop = Shop::builder(env).await.checked_soon().open().await;
    shop.seed("apple", 100, RECEIVED).await;
    shop
}

/// Passes an answer with the cancelled order.
fn cancelled(answer: Answer) -> Answer {
    let answer = answer.expect(200);
    assert_eq!(answer.body["status"], "cancelled", "{}", answer.text);
    answer
}

/// A confirmed order of either flow; again; and what cannot be cancelled.
pub(crate) async fn cancel_gives_the_stock_back_once(env: Env) {
    let mut shop = open(env).await;
    let first = shop.place(&[("apple", 5)]).send().await.expect(201).order_id();
    let second = shop.place(&[("apple", 7)]).saga().send().await.expect(202).order_id();
    shop.becomes(second, "confirmed").await;
    for order in [first, second] {
        let answer = cancelled(shop.cancel(order).await);
        shop.order.kill();
        // Its decision may not be stored yet.
        shop.order.check_soon();
        shop.restart_orders().await;
        let again = cancelled(shop.cancel(order).await);
        assert_eq!(again.text, answer.text);
        let books = shop.conservation(VOID_DEADLINE).await;
        assert_eq!(books.deductions[&order], "restored");
    }
    assert_eq!(shop.available("apple").await, RECEIVED);
    let kinds: Vec<_> = shop.movements(first).await.into_iter().map(|(kind, ..)| kind).collect();
    assert_eq!(kinds, ["deduct", "restore"]);
    let void = shop.place(&[("apple", 1)]).fault("after-deduct").send().await;
    let void = void.expect_problem(500, "after_deduct_failed").order_id();
    let refused = shop.cancel(void).await.expect_problem(409, "order_not_cancellable");
    assert_eq!((&refused.body["order_status"], refused.order_id()), (&"void".into(), void));
    shop.cancel(uuid::Uuid::now_v7()).await.expect_problem(404, "not_found");
    let books = shop.conservation(VOID_DEADLINE).await;
    assert_eq!(books.report["apple"], [(7, 700), (0, 0), (0, 0), (7, 700)]);
}

/// Many at once: all hear the same, one sends the message.
pub(crate) async fn cancel_many_times_at_once(env: Env) {
    let shop = open(env).await;
    let order = shop.place(&[("apple", 5)]).send().await.expect(201).order_id();
    let answers = join_all((0..8).map(|_| shop.cancel(order))).await;
    let first = cancelled(answers[0].clone());
    for answer in answers {
        assert_eq!(cancelled(answer).text, first.text);
    }
    let books = shop.conservation(VOID_DEADLINE).await;
    assert_eq!((books.available["apple"], books.delivered.len()), (RECEIVED, 1));
    assert!(books.halves.len() <= 9, "{}", books.halves.len());
}

/// The restore comes before the question for the stock: the barrier is closed, the question takes
/// nothing, its answer changes nothing.
pub(crate) async fn cancel_comes_before_the_stock_is_asked_for(env: Env) {
    let shop = open_checked_soon(env).await;
    let lost = shop.place(&[("apple", 5)]).saga().fault("decision-lost").send().await.expect(202);
    let order = lost.order_id();
    cancelled(shop.cancel(order).await);
    // The check-back delivers the question, because the order was stored.
    assert_eq!(shop.half_ends(&lost.transaction_id()).await, "committed");
    let books = shop.conservation(VOID_DEADLINE).await;
    assert_eq!(books.deductions[&order], "void");
    assert_eq!(
        (books.available["apple"], books.orders[&order].status.as_str()),
        (RECEIVED, "cancelled")
    );
    assert_eq!(shop.movements(order).await, [("void".into(), "apple".into(), 0)]);
    assert_eq!(books.report["apple"], [(5, 500), (0, 0), (0, 0), (5, 500)]);
}

/// It races the question, the deduction and the answer: first behind the answer, then between the
/// deduction and the answer, which comes to a cancelled order, and then as it happens. That the question
/// comes behind it is the case above.
pub(crate) async fn cancel_races_the_answer(env: Env) {
    let shop = open(env).await;
    let place = async |quantity| {
        shop.place(&[("apple", quantity)]).saga().send().await.expect(202).order_id()
    };
    let cancel_twice = async |order| {
        let both = tokio::join!(shop.cancel(order), shop.cancel(order));
        cancelled(both.0);
        cancelled(both.1);
    };
    let answered = place(1).await;
    shop.becomes(answered, "confirmed").await;
    cancel_twice(answered).await;

    let held = Answers::held(&shop).await;
    let waiting = place(2).await;
    until(VOID_DEADLINE, "the deduction", async || {
        let movements = shop.movements(waiting).await;
        if movements.is_empty() { Err("none is made") } else { Ok(()) }
    })
    .await;
    let before = shop.find(waiting).await.expect("it has a row");
    assert_eq!(before["status"], "pending_stock", "its answer is held");
    cancel_twice(waiting).await;
    held.let_go().await;

    let race = async |number: i64| cancel_twice(place(1 + number % 3).await).await;
    join_all((0..3).map(race)).await;
    let books = shop.conservation(VOID_DEADLINE).await;
    assert_eq!(books.available["apple"], RECEIVED);
    assert!(books.orders.values().all(|order| order.status == "cancelled"));
    for order in [answered, waiting] {
        assert_eq!(books.deductions[&order], "restored");
    }
    let states: std::collections::BTreeSet<_> = books.deductions.values().collect();
    println!("ended as {states:?}");
}

/// The answers of stock-svc, which do not reach order-svc for a while: nobody may write into its inbox, which
/// a cancellation does not need.
struct Answers(DatabaseTransaction);

impl Answers {
    async fn held(shop: &Shop) -> Self {
        let options = DbOptions { idle_transaction_timeout: 2 * VOID_DEADLINE, ..patient() };
        let orders = shop.ground.orders.connect(&options).await;
        let transaction = orders.begin().await.expect("a transaction");
        let lock = "LOCK TABLE inbox IN SHARE ROW EXCLUSIVE MODE";
        transaction.execute_unprepared(lock).await.expect("it is locked");
        Self(transaction)
    }

    async fn let_go(self) {
        self.0.rollback().await.expect("it ends");
    }
}

/// Killed between its half message and its end, over and over: repeated, it is cancelled once.
pub(crate) async fn cancel_survives_the_death_of_order_svc(env: Env) {
    let mut shop = open_checked_soon(env).await;
    for _ in 0..3 {
        let order = shop.place(&[("apple", 2)]).send().await.expect(201).order_id();
        let calls = shop.calls.clone();
        let cancelling = tokio::spawn(async move { calls.try_cancel(order).await });
        // Somewhere in it.
        tokio::task::yield_now().await;
        shop.half_of_a_cancellation(order).await;
        shop.order.kill();
        // It may have been answered before.
        drop(cancelling.await);
        shop.restart_orders().await;
        cancelled(shop.cancel(order).await);
    }
    let books = shop.conservation(VOID_DEADLINE).await;
    assert_eq!(books.available["apple"], RECEIVED);
}

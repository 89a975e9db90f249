//! The console where something is wrong: parked messages, dead letters, books that do not agree, a
//! connection that breaks.

use rdkafka::producer::{FutureProducer, FutureRecord};
use sea_orm::ConnectionTrait;
use serde_json::json;
use uuid::Uuid;

use super::{ESCAPE, LATE_CHECK_MS, RECEIVED, looks, open};
use crate::suite::services::browser::Browser;
use crate::suite::services::operators::park;
use crate::suite::services::proxy::Proxy;
use crate::suite::services::shop::settled::{VOID_DEADLINE, database};
use crate::suite::services::shop::{Shop, TOKEN};
use crate::suite::turns::alone;
use crate::suite::{Env, PATIENCE};

/// Questions about a half message that nobody knows, before the page gives it up.
const IN_VAIN: u64 = 8;
/// Orders of four events and more each: behind the last 500.
const MANY_MISSED: usize = 150;
/// What a page says of an empty list.
const NONE_PARKED: &str = "None is parked";
pub(super) const NO_LETTERS: &str = "There are none";

/// A parked message is seen with its history, resumed, and its stock comes back.
pub(crate) async fn console_resumes_a_parked_half(env: Env) {
    let _alone = alone().await;
    let builder = Shop::builder(env).await.order("HALFMSG_CHECK_AFTER_MS", LATE_CHECK_MS);
    let mut shop = builder.order("HALFMSG_MAX_CHECKS", "1").open().await;
    let page = open(&shop).await;
    page.click("#halves-parked").await;
    page.shows("#halves", NONE_PARKED).await;
    let id = park(&mut shop, "ann").await;
    page.shows("#connection", "live").await;
    page.shows("#halves", "Resume").await;
    page.shows("#light", "books settling").await;
    page.shows("#books", "1 parked").await;
    page.click("#halves [data-key$='-show']").await;
    page.shows("#dialog-body", &id).await;
    page.shows("#dialog-body .history", "parked").await;
    page.screenshot_both("console-parked").await;
    page.click("#dialog-cancel").await;
    page.click("#halves [data-key$='-resume']").await;
    page.screenshot_both("console-resume").await;
    page.confirm("the lock is gone").await;
    page.shows("#halves", NONE_PARKED).await;
    assert_eq!(shop.half_ends(&id).await, "committed");
    page.apples(RECEIVED).await;
    shop.conservation(VOID_DEADLINE).await;
}

/// A dead letter is read, replayed in vain while its cause is there, replayed when it is gone, and
/// another is discarded.
pub(crate) async fn console_settles_dead_letters(env: Env) {
    let _alone = alone().await;
    let shop = Shop::builder(env).await.both("HALFMSG_RETRY_LEVELS_MS", "none").open().await;
    let page = open(&shop).await;
    page.shows("#letters", NO_LETTERS).await;
    let stock = database(shop.ground.stock.url()).await;
    let rename = async |from: &str, to: &str| {
        let statement = format!("ALTER TABLE {from} RENAME TO {to}");
        stock.execute_unprepared(&statement).await.expect("the table is there");
    };
    rename("deduction", "deduction_away").await;
    let item = json!({"sku": "apple", "quantity": 1});
    let restore = json!({"order_id": Uuid::now_v7(), "user_id": "ann", "items": [item]});
    let restore = restore.to_string();
    send_restore(&shop, &restore).await;
    page.shows("#letters", "deduction").await;
    page.click("#letters [data-key$='-show']").await;
    page.shows("#dialog-body", "once this tab has the operator's token").await;
    page.click("#dialog-cancel").await;

    page.click("#letters [data-key$='-replay']").await;
    page.fill("#dialog-token", "wrong").await;
    page.click("#dialog-ok").await;
    page.shows("#dialog-error", "token").await;
    page.fill("#dialog-token", TOKEN).await;
    page.click("#dialog-ok").await;
    page.shows("#dialog-error", "failed again").await;
    // A replay is nothing that could be forced.
    assert!(page.is_true("document.getElementById('dialog-force').offsetParent === null").await);
    page.screenshot_both("console-letter").await;
    rename("deduction_away", "deduction").await;
    page.click("#dialog-ok").await;
    page.shows("#letters", NO_LETTERS).await;

    send_restore(&shop, "not an order").await;
    page.click("#letters-refresh").await;
    page.shows("#letters", "Discard").await;
    page.click("#letters [data-key$='-show']").await;
    page.shows("#dialog-body pre", "not an order").await;
    page.click("#dialog-cancel").await;
    page.click("#letters [data-key$='-discard']").await;
    // Without a reason nothing happens.
    page.click("#dialog-ok").await;
    assert!(page.is_true("document.getElementById('dialog').open").await);
    page.fill("#dialog-reason", "garbage of a test").await;
    page.fill("#dialog-operator", "olga").await;
    page.click("#dialog-ok").await;
    page.shows("#letters", NO_LETTERS).await;
    for (state, reason) in [("replayed", None), ("discarded", Some("olga: garbage of a test"))] {
        let list = shop.get_stock(&format!("/dead-letters?state={state}")).await.expect(200).body;
        assert_eq!(list["items"].as_array().map(Vec::len), Some(1), "{list}");
        assert_eq!(list["items"][0]["discard_reason"].as_str(), reason, "{list}");
    }
    page.apples(RECEIVED).await;
    settles_those_of_order_svc(&shop, &page).await;
}

/// Behind the other tab, by the same buttons: the report reads the topic too, and cannot make anything of
/// the garbage either. The tab has the token and the name already.
async fn settles_those_of_order_svc(shop: &Shop, page: &Browser) {
    page.click("#letters-order").await;
    page.shows("#letters-page", "1 shown").await;
    page.click("#letters [data-key$='-show']").await;
    page.shows("#dialog-title", "order-svc gave up on").await;
    page.shows("#dialog-body pre", "not an order").await;
    page.click("#dialog-cancel").await;
    page.click("#letters [data-key$='-replay']").await;
    page.click("#dialog-ok").await;
    page.shows("#dialog-error", "failed again").await;
    page.click("#dialog-cancel").await;
    page.click("#letters [data-key$='-discard']").await;
    page.fill("#dialog-reason", "garbage here too").await;
    page.click("#dialog-ok").await;
    page.shows("#letters", NO_LETTERS).await;
    let list = shop.get("/dead-letters?state=discarded").await.expect(200).body;
    assert_eq!(list["items"].as_array().map(Vec::len), Some(1), "{list}");
    assert_eq!(list["items"][0]["discard_reason"], "olga: garbage here too", "{list}");
    page.click("#letters-stock").await;
    page.shows("#letters", NO_LETTERS).await;
}

pub(super) async fn send_restore(shop: &Shop, payload: &str) {
    let producer: FutureProducer = shop.ground.kafka().producer().create().expect("a producer");
    let record: FutureRecord<'_, str, str> =
        FutureRecord::to(&shop.ground.rollback_topic).payload(payload);
    producer.send(record, PATIENCE).await.expect("it is acknowledged");
}

/// Somebody changes a row of the stock by hand: the light turns red, with the numbers.
pub(crate) async fn console_turns_red_when_the_stock_is_wrong(env: Env) {
    let _alone = alone().await;
    let shop = Shop::open(env).await;
    let page = open(&shop).await;
    page.order("ann", "").await;
    page.apples(RECEIVED - 2).await;
    let stock = database(shop.ground.stock.url()).await;
    let change = async |by: i64| {
        let statement =
            format!("UPDATE stock SET available = available + {by} WHERE sku = 'apple'");
        stock.execute_unprepared(&statement).await.expect("the row is there");
    };
    change(-3).await;
    page.shows("#light", "books broken").await;
    let numbers = "apple: 50 received - 2 taken + 0 restored is not 45";
    page.shows("#books", numbers).await;
    // Who does not see the light is told its verdict, too.
    page.shows("#books", "books broken: apple").await;
    page.shows("#stock [data-sku='apple'] [data-col='difference']", "3").await;
    let red =
        "document.querySelector(\"#stock [data-sku='apple'] [data-col='difference']\").className";
    assert!(page.is_true(&format!("{red} === 'bad'")).await);
    looks(&page, "console-red").await;
    change(3).await;
    page.apples(RECEIVED - 2).await;

    // What stock-svc counts adds up, and no order stands for a part of it: red, too, once it has stood for a minute.
    page.run(STANDING).await;
    page.shows("#books", "books broken: apple: 3 taken without a standing order").await;
    page.shows("#light", "books broken").await;
    page.shows("#stock [data-sku='apple'] [data-col='difference']", "3").await;
    assert!(page.is_true(&format!("{red} === 'bad'")).await);
}

/// The books of a minute later, with three apples for which there is no order.
const STANDING: &str = "const real = window.fetch;
    window.fetch = async (path, how) => {
        const answer = await real(path, how);
        if (path !== '/api/stock') return answer;
        const books = await answer.json();
        Object.assign(books, { state: 'broken', truncated: false, age_seconds: 0 });
        for (const line of books.items) { line.deducted += 3; line.available -= 3; line.difference = 3; }
        return new Response(JSON.stringify(books));
    };";

/// Lanes count each check once and call delivered only what was, from whatever source they know it.
pub(crate) async fn console_lanes_say_what_is_known(env: Env) {
    let _alone = alone().await;
    let shop = Shop::open(env).await;
    let page = open(&shop).await;
    assert_eq!(page.run(include_str!("lane.js")).await, json!([]));
    assert_eq!(page.run(include_str!("lanes.js")).await, json!([]));
}

/// What nobody knows any more is asked about for a while, and again once it is heard of.
pub(crate) async fn console_asks_in_vain_for_a_while(env: Env) {
    let _alone = alone().await;
    let shop = Shop::open(env).await;
    let page = open(&shop).await;
    page.run(include_str!("vain.js")).await;
    let asked = async || {
        let asked = page.run("return window.asked()").await;
        let number = |at: usize| asked[at].as_u64().expect("a number");
        (number(0), number(1))
    };
    // The one that is open is asked about in every round: it counts them.
    let rounds = async |number: u64| {
        let (_, before) = asked().await;
        page.becomes(&format!("window.asked()[1] >= {}", before + number)).await;
    };
    page.becomes(&format!("window.asked()[0] >= {IN_VAIN}")).await;
    rounds(2).await;
    let (given_up, _) = asked().await;
    rounds(4).await;
    assert_eq!(asked().await.0, given_up, "it is asked about on and on");
    page.run("window.hear()").await;
    page.becomes(&format!("window.asked()[0] > {given_up}")).await;
}

/// The connection breaks, and the service goes on: the page says so, comes back by itself, and hears
/// what it missed, once. Orders that began and ended meanwhile are in no list: only events tell of them.
pub(crate) async fn console_hears_what_it_missed(env: Env) {
    let _alone = alone().await;
    let shop = Shop::open(env).await;
    shop.seed("apple", 100, RECEIVED).await;
    let service = shop.order_url("");
    let cable = Proxy::to(service.trim_start_matches("http://")).await;
    let page = Browser::start(1_280, 900).await;
    page.open(&format!("http://127.0.0.1:{}/", cable.port())).await;
    page.shows("#connection", "live").await;
    page.order("before", "").await;
    page.lane_shows("before", "message", "dropped").await;

    cable.cut();
    page.shows("#connection", "disconnected").await;
    page.shows("#light", "cannot be read").await;
    page.screenshot_both("console-disconnected").await;
    for (user, fault) in [("one", None), ("two", Some("after-deduct"))] {
        let place = shop.place(&[("apple", 2)]).user(user);
        let place = fault.into_iter().fold(place, |place, fault| place.fault(fault));
        place.send().await;
    }
    shop.conservation(VOID_DEADLINE).await;
    cable.mend().await;
    page.shows("#connection", "live").await;
    page.lane_shows("one", "decided", "by producer").await;
    page.lane_shows("one", "message", "dropped").await;
    page.lane_shows("two", "local", "order void").await;
    page.lane_shows("two", "message", "delivered").await;
    page.lane_shows("two", "stock", "restored\n2 apple").await;
    page.lane_shows("before", "message", "dropped").await;
    let lanes = page.run("return document.querySelectorAll('.lane').length").await;
    assert_eq!(lanes, 3 + shop.held_up().len());
    page.apples(RECEIVED - 4).await;

    // Whoever comes for the first time hears the last 500 events, and these orders have more: the page
    // hears of all of them only if it says where it was.
    cable.cut();
    page.shows("#connection", "disconnected").await;
    for _ in 0..MANY_MISSED {
        shop.place(&[("apple", 1)]).user("many").fault("deduct-refused").send().await;
    }
    cable.mend().await;
    let lanes = 3 + MANY_MISSED + shop.held_up().len();
    page.shows("#lanes-count", &format!("of {lanes}")).await;
    assert!(page.is_true("document.getElementById('lanes-missed').textContent === ''").await);
}

/// Another process knows nothing of the events before it: the page says so, and finds what ended in
/// the lists.
pub(crate) async fn console_finds_what_nobody_tells(env: Env) {
    let _alone = alone().await;
    let mut shop = Shop::open(env).await;
    shop.seed("apple", 100, RECEIVED).await;
    let service = shop.order_url("");
    let cable = Proxy::to(service.trim_start_matches("http://")).await;
    let page = Browser::start(1_280, 900).await;
    page.open(&format!("http://127.0.0.1:{}/", cable.port())).await;
    page.shows("#connection", "live").await;
    page.order("before", "").await;
    page.lane_shows("before", "message", "dropped").await;

    cable.cut();
    page.shows("#connection", "disconnected").await;
    shop.place(&[("apple", 2)]).user("one").send().await;
    shop.place(&[("apple", 2)]).user("two").fault("after-deduct").send().await;
    shop.conservation(VOID_DEADLINE).await;
    shop.order.process().signal("TERM");
    shop.order.process().end(PATIENCE).await;
    shop.restart_orders().await;
    cable.mend().await;
    page.shows("#lanes-missed", "Events were missed").await;
    page.lane_shows("one", "local", "order confirmed").await;
    // A service that began later does not know what was closed before: the page claims nothing.
    page.lane_shows("one", "message", "not known").await;
    page.lane_shows("one", "stock", "sold").await;
    page.lane_shows("two", "local", "order void").await;
    page.lane_shows("two", "message", "delivered").await;
    page.lane_shows("two", "stock", "restored\n2 apple").await;
    let lanes = page.run("return document.querySelectorAll('.lane').length").await;
    assert_eq!(lanes, 3 + shop.held_up().len());
    looks(&page, "console-missed").await;
    page.apples(RECEIVED - 4).await;
}

/// Holds answers to this back until `window.release` is called.
const HOLD_ACTS: &str = "const real = window.fetch;
    const held = new Promise((go) => { window.release = go; });
    window.fetch = async (path, how) => {
        if (how?.method === 'POST') await held;
        try { return await real(path, how); } finally { window.answered ||= how?.method === 'POST'; }
    };";

/// An act whose dialog was closed before its answer came leaves the next dialog alone.
pub(crate) async fn console_late_answers_touch_no_other_dialog(env: Env) {
    let _alone = alone().await;
    let builder = Shop::builder(env).await.order("HALFMSG_CHECK_AFTER_MS", LATE_CHECK_MS);
    let shop = builder.open().await;
    let page = open(&shop).await;
    page.order("ann", "decision-lost").await;
    page.shows("#halves", "Check now").await;
    page.run(HOLD_ACTS).await;
    page.click("#halves [data-key$='-check']").await;
    page.try_confirm("held back", "wrong").await;
    page.press(ESCAPE).await;
    page.click("#halves [data-key$='-commit']").await;
    page.shows("#dialog-title", "Commit").await;
    let answered = "window.release(); return new Promise((done) => {
        const look = () => (window.answered ? setTimeout(done, 0, true) : setTimeout(look, 10));
        look();
    })";
    assert_eq!(page.run(answered).await, true);
    assert!(page.is_true("document.getElementById('dialog').open").await);
    assert!(page.is_true("document.getElementById('dialog-error').textContent === ''").await);
    page.shows("#dialog-title", "Commit").await;
    page.press(ESCAPE).await;
    page.click("#halves [data-key$='-check']").await;
    page.confirm("it must be known").await;
    page.lane_shows("ann", "message", "dropped").await;
    shop.conservation(VOID_DEADLINE).await;
}

/// Answers of the list that take longer than the page waits between two looks.
const SLOW_LIST: &str = "const real = window.fetch;
    window.fetch = async (path, how) => {
        const answer = await real(path, how);
        if (path.startsWith('/halves?')) await new Promise((go) => setTimeout(go, 1500));
        return answer;
    };";

/// However many events come, and however slowly the list is answered: it is shown.
pub(crate) async fn console_lists_while_events_keep_coming(env: Env) {
    let _alone = alone().await;
    let builder = Shop::builder(env).await.order("HALFMSG_CHECK_AFTER_MS", LATE_CHECK_MS);
    let shop = builder.open().await;
    let page = open(&shop).await;
    page.shows("#halves", "No half message is open").await;
    page.run(SLOW_LIST).await;
    let flood = async {
        loop {
            shop.place(&[("apple", 1)]).user("many").fault("deduct-refused").send().await;
        }
    };
    let listed = async {
        shop.place(&[("apple", 2)]).user("ann").fault("decision-lost").send().await.expect(201);
        page.shows("#halves", "Check now").await;
    };
    tokio::select! {
        () = listed => {}
        () = flood => {}
    }
}

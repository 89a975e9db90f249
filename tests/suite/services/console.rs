//! The console page, used by clicks and keys in a real browser; [`operating`]: where something is wrong;
//! [`returning`]: how it comes back to a stream that ended, at one of several replicas;
//! [`keyboard`]: by keys alone; [`access`]: for who does not see it; [`showing`]: what it shows, and
//! as what; [`times`]: when.

pub(crate) mod access;
pub(crate) mod keyboard;
pub(crate) mod operating;
pub(crate) mod returning;
pub(crate) mod showing;
pub(crate) mod times;

use std::time::Duration;

use halfmsg_producer::{Message, ProducerConfig, TransactionProducer};
use serde_json::{Value, json};
use uuid::Uuid;

use self::showing::places;
use super::browser::Browser;
use super::http::send;
use super::shop::settled::VOID_DEADLINE;
use super::shop::{Shop, TOKEN};
use crate::suite::told::{Do, Told};
use crate::suite::turns::alone;
use crate::suite::{Env, PATIENCE, until};

const RECEIVED: i64 = 50;
/// A check that comes before the operator would settle what he is to settle.
const LATE_CHECK_MS: &str = "600000";
/// More than anybody would page through.
const MANY: usize = 10_000;
const ROWS_OF_A_PAGE: usize = 50;
/// WebDriver's names of keys.
const TAB: &str = "\u{e004}";
const ENTER: &str = "\u{e007}";
const ESCAPE: &str = "\u{e00c}";

/// A page that is connected, of a shop that sells apples.
async fn open(shop: &Shop) -> Browser {
    shop.seed("apple", 100, RECEIVED).await;
    let page = Browser::start(1_280, 900).await;
    page.open(&shop.order_url("/")).await;
    page.shows("#connection", "live").await;
    page.shows("#stock", "apple").await;
    page
}

impl Browser {
    /// Places an order of two apples by the form, with this failure or none.
    async fn order(&self, user: &str, fault: &str) {
        self.fill("#user", user).await;
        self.fill("#quantity", "2").await;
        self.click(&format!("#fault option[value='{fault}']")).await;
        self.click("#place").await;
    }

    /// The text of a part of a user's lane.
    async fn lane(&self, user: &str, part: &str) -> String {
        let script = format!(
            "const lanes = [...document.querySelectorAll('.lane')];
             const of = lanes.find((lane) => lane.querySelector('.who').textContent === {user:?});
             return of?.querySelector('[data-step={part}]')?.innerText ?? 'no such lane';"
        );
        self.run(&script).await.as_str().unwrap_or_default().to_owned()
    }

    /// Waits until that part says this.
    async fn lane_shows(&self, user: &str, part: &str, text: &str) {
        until(PATIENCE, &format!("{part} of {user}'s lane to say '{text}'"), async || {
            let seen = self.lane(user, part).await;
            if seen.contains(text) { Ok(()) } else { Err(seen) }
        })
        .await;
    }

    /// Waits until so many apples are shown, and books that agree.
    async fn apples(&self, available: i64) {
        let cell = "#stock tr[data-sku='apple'] [data-col='available']";
        self.shows(cell, &available.to_string()).await;
        self.shows("#light", "books agree").await;
    }

    /// Fills the dialog's fields and confirms with the Enter key.
    async fn try_confirm(&self, reason: &str, token: &str) {
        self.fill("#dialog-token", token).await;
        self.fill("#dialog-operator", "olga").await;
        self.fill("#dialog-reason", reason).await;
        self.press(ENTER).await;
    }

    /// Until it is done: before that, the page behind the dialog takes nothing.
    async fn confirm(&self, reason: &str) {
        self.try_confirm(reason, TOKEN).await;
        until(PATIENCE, "the dialog to close", async || {
            if self.is_true("!document.getElementById('dialog').open").await {
                return Ok(());
            }
            let said = self.run("return document.getElementById('dialog-error').textContent").await;
            // It is done, and the machine stood still.
            if said.as_str().is_some_and(|said| said.contains("its effect is not seen yet")) {
                self.press(ESCAPE).await;
            }
            Err(said)
        })
        .await;
    }

    /// Pictures of what is in view now: light and wide, dark and narrow.
    async fn screenshot_both(&self, name: &str) {
        for (theme, width) in [("light", 1_280), ("dark", 400)] {
            self.resize(width, 900).await;
            self.theme(theme).await;
            self.screenshot_view(&format!("{name}-{theme}-{width}")).await;
        }
        self.resize(1_280, 900).await;
        self.theme("light").await;
    }

    async fn becomes(&self, expression: &str) {
        until(PATIENCE, expression, async || {
            self.is_true(expression).await.then_some(()).ok_or("it is not so")
        })
        .await;
    }

    async fn is_true(&self, expression: &str) -> bool {
        self.run(&format!("return {expression}")).await == Value::Bool(true)
    }
}

/// Orders, a failure after the deduction, a crash after it: each lane tells what became of it, and
/// the stock is back.
pub(crate) async fn console_tells_the_story_by_clicks(env: Env) {
    let _alone = alone().await;
    let mut shop = Shop::open(env).await;
    let page = open(&shop).await;
    page.apples(RECEIVED).await;

    page.order("stands", "").await;
    page.shows("#order-result", "is confirmed").await;
    page.lane_shows("stands", "local", "order confirmed").await;
    page.lane_shows("stands", "decided", "by producer").await;
    page.lane_shows("stands", "message", "dropped").await;
    page.lane_shows("stands", "stock", "sold").await;
    page.apples(RECEIVED - 2).await;

    page.order("fails", "after-deduct").await;
    page.shows("#order-result", "500").await;
    page.lane_shows("fails", "local", "order void").await;
    page.lane_shows("fails", "message", "delivered").await;
    page.lane_shows("fails", "stock", "restored\n2 apple").await;
    page.apples(RECEIVED - 2).await;

    page.order("dies", "crash-after-deduct").await;
    page.shows("#order-result", "may not have reached the service").await;
    shop.order.process().abort().await;
    page.shows("#connection", "disconnected").await;
    page.shows("#chart-rate", "Cannot be read now.").await;
    shop.order.check_soon();
    shop.restart_orders().await;
    page.shows("#connection", "live").await;
    page.lane_shows("dies", "decided", "by check-back").await;
    page.lane_shows("dies", "local", "fenced").await;
    page.lane_shows("dies", "message", "delivered").await;
    page.lane_shows("dies", "stock", "restored\n2 apple").await;
    page.apples(RECEIVED - 2).await;
    // What was there before the crash is still told.
    assert!(page.lane("stands", "stock").await.contains("sold"));
    assert_eq!(page.run("return document.querySelectorAll('.lane').length").await, 3);

    let books = shop.conservation(VOID_DEADLINE).await;
    assert_eq!(books.available["apple"], RECEIVED - 2);
    looks(&page, "console").await;
    let complaints = page.complaints().await;
    let unexpected: Vec<_> = complaints.iter().filter(|said| !is_network(said)).collect();
    assert!(unexpected.is_empty(), "{unexpected:?}");
}

/// Both themes, both widths: nothing is cut off at the side.
async fn looks(page: &Browser, name: &str) {
    for width in [1_280, 400] {
        page.resize(width, 900).await;
        for theme in ["light", "dark"] {
            page.theme(theme).await;
            page.screenshot(&format!("{name}-{theme}-{width}")).await;
            let fits = "document.documentElement.scrollWidth <= innerWidth";
            assert!(page.is_true(fits).await, "{width} px scroll sideways");
            low_contrast(page, theme).await;
        }
    }
    page.resize(1_280, 900).await;
}

/// Every text that is shown stands out from its ground by 4.5 : 1, as WCAG AA asks.
async fn low_contrast(page: &Browser, theme: &str) {
    let found = page.run(include_str!("console/contrast.js")).await;
    assert_eq!(found, Value::Array(Vec::new()), "{theme}");
}

/// The services answer 500 and die, as they were asked to; a browser calls that severe.
fn is_network(complaint: &str) -> bool {
    complaint.contains("Failed to load resource")
}

/// What is open is seen, asked about, and settled, with the keyboard too; what is refused says why.
pub(crate) async fn console_settles_open_halves(env: Env) {
    let _alone = alone().await;
    let builder = Shop::builder(env).await.order("HALFMSG_CHECK_AFTER_MS", LATE_CHECK_MS);
    let shop = builder.open().await;
    let page = open(&shop).await;
    page.shows("#halves", "No half message is open").await;

    page.order("asked", "decision-lost").await;
    page.shows("#halves", "Check now").await;
    page.lane_shows("asked", "decided", "open").await;
    page.click("#halves [data-key$='-check']").await;
    assert!(page.is_true("document.activeElement.id === 'dialog-reason'").await, "focus moved in");
    page.try_confirm("it must be known", "wrong").await;
    page.shows("#dialog-error", "token").await;
    page.confirm("it must be known").await;
    page.lane_shows("asked", "decided", "drop\nby check-back").await;
    page.shows("#halves", "No half message is open").await;
    let kept = "sessionStorage.getItem('halfmsg-token') !== null && localStorage.length === 0";
    assert!(page.is_true(kept).await, "the token stays in this tab");

    page.order("settled", "decision-lost").await;
    page.shows("#halves", "Commit").await;
    let listed = &shop.get("/halves").await.expect(200).body["items"][0];
    let due = listed["next_check_at"].as_str().expect("it is asked about some time");
    let says = |column: u8, what: &str| {
        format!("document.querySelector('#halves tbody td:nth-child({column})').textContent{what}")
    };
    assert!(page.is_true(&says(3, ".match(/^\\d+ s$/) !== null")).await, "its age");
    assert!(page.is_true(&says(4, &format!(" === '{}'", listed["attempts"]))).await, "attempts");
    // Minutes and seconds, whatever the zone's hours.
    let is_due = format!(".includes(new Date('{due}').toISOString().slice(14, 19))");
    assert!(page.is_true(&says(5, &is_due)).await, "its next check");
    page.click("#halves [data-key$='-show']").await;
    page.shows("#dialog-body", "\"user_id\":\"settled\"").await;
    page.press(ESCAPE).await;
    assert!(page.is_true("!document.getElementById('dialog').open").await);
    assert!(
        page.is_true("document.activeElement.textContent === 'Details'").await,
        "focus is back"
    );
    // From there by keys alone: Check now, Commit.
    page.press(&TAB.repeat(2)).await;
    assert!(page.is_true("document.activeElement.textContent === 'Commit'").await);
    page.press(ENTER).await;
    page.try_confirm("against the order's row", TOKEN).await;
    page.shows("#dialog-error", "It stays as it is").await;
    page.click("#dialog-cancel").await;
    page.click("#halves [data-key$='-rollback']").await;
    page.confirm("as the order's row says").await;
    page.lane_shows("settled", "decided", "by operator olga: as the order's row says").await;
    page.lane_shows("settled", "message", "dropped").await;
    page.apples(RECEIVED - 4).await;
    shop.conservation(VOID_DEADLINE).await;
}

/// The saga's lane follows stock-svc's answer; what is cancelled by a click comes back.
pub(crate) async fn console_follows_the_saga_and_a_cancellation(env: Env) {
    let _alone = alone().await;
    let shop = Shop::open(env).await;
    let page = open(&shop).await;
    // What cannot happen in this flow is not offered, and the words are this flow's.
    page.click("#fault option[value='deduct-timeout']").await;
    page.click("#flow option[value='saga']").await;
    page.shows("#fault-note", "The order waits for the stock's answer.").await;
    let offered = "[...document.getElementById('fault').options].map((one) => one.value).join()";
    let of_saga = ",price-lookup,order-insert,decision-lost,crash-after-half,crash-after-order";
    assert_eq!(page.run(&format!("return {offered}")).await, of_saga);
    page.click("#fault option[value='decision-lost']").await;
    page.shows("#fault-note", "the check-back delivers the message").await;
    page.order("later", "").await;
    page.lane_shows("later", "local", "order confirmed").await;
    page.lane_shows("later", "message", "delivered").await;
    page.lane_shows("later", "stock", "sold").await;
    page.apples(RECEIVED - 2).await;
    page.click(".lane .acts button:nth-child(2)").await;
    page.shows("#dialog-title", "Cancel order").await;
    page.click("#dialog-ok").await;
    page.lane_shows("later", "local", "order cancelled").await;
    page.lane_shows("later", "stock", "restored").await;
    page.apples(RECEIVED).await;
    shop.conservation(VOID_DEADLINE).await;
}

/// From the console to the interface of each service, shown by a page that asks nothing of another
/// origin and breaks none of its policy; an operation is tried out there.
pub(crate) async fn console_links_to_the_interface(env: Env) {
    let _alone = alone().await;
    let shop = Shop::open(env).await;
    let page = open(&shop).await;
    page.click("#letters-order").await;
    page.shows("#letters", "There are none").await;
    page.click("header a[href='/docs']").await;
    page.shows("#docs .title", "halfmsg order-svc").await;
    page.screenshot("docs-order-svc").await;
    page.click("#operations-orders-place_order .opblock-summary-control").await;
    page.shows("#operations-orders-place_order .opblock-body", "Idempotency-Key").await;
    page.screenshot("docs-operation").await;
    assert_eq!(page.complaints().await, [""; 0]);

    page.open(&shop.stock_url("/docs")).await;
    page.shows("#docs .title", "halfmsg stock-svc").await;
    let operation = "#operations-products-show_product";
    page.click(&format!("{operation} .opblock-summary-control")).await;
    page.shows(&format!("{operation} .opblock-body"), "Try it out").await;
    page.click(&format!("{operation} .try-out__btn")).await;
    page.click(&format!("{operation} .execute")).await;
    page.shows(&format!("{operation} .live-responses-table"), "\"sku\": \"apple\"").await;
    let elsewhere = "performance.getEntriesByType('resource')
        .filter((one) => !one.name.startsWith(location.origin) && !one.name.startsWith('data:'))
        .map((one) => one.name)";
    assert_eq!(page.run(&format!("return {elsewhere}")).await, json!([]));
    page.screenshot("docs-stock-svc").await;
    assert_eq!(page.complaints().await, [""; 0]);
}

/// Ten thousand open half messages: a page at a time, and nothing on the page moves.
pub(crate) async fn console_long_pages_through_10000_halves(env: Env) {
    let _alone = alone().await;
    let mut shop = Shop::open(env).await;
    shop.seed("apple", 100, RECEIVED).await;
    shop.order.process().signal("TERM");
    shop.order.process().end(PATIENCE).await;
    leave_open(&shop, MANY).await;
    shop.restart_orders().await;
    let page = Browser::start(1_280, 900).await;
    page.open(&shop.order_url("/")).await;
    page.shows("#halves-page", "page 1, 1 to 50, there are more").await;
    // Lanes are asked for, too: they are a bounded number, and at their places soon.
    page.shows("#lanes-count", "20").await;
    page.shows("#chart-rate", "stored: ").await;
    let before = places(&page).await;
    for number in 2..=4 {
        page.click("#halves-next").await;
        page.shows("#halves-page", &format!("page {number}, ")).await;
        let rows = page.run("return document.querySelectorAll('#halves tbody tr').length").await;
        assert_eq!(rows, ROWS_OF_A_PAGE);
        assert_eq!(places(&page).await, before, "page {number} moved something");
    }
    page.click("#halves-back").await;
    page.shows("#halves-page", "page 3, ").await;
    for number in 0..10 {
        shop.place(&[("apple", 1)]).fault("after-deduct").send().await.expect(500);
        assert_eq!(places(&page).await, before, "order {number} moved something");
    }
    page.shows("#lanes-count", &(30 + shop.held_up().len()).to_string()).await;
    page.shows("#halves-page", "page 3, ").await;
    assert_eq!(places(&page).await, before, "the orders moved something");
    page.screenshot("console-10000").await;
}

/// Stores half messages as order-svc would, which is down, and leaves them to a check much later.
async fn leave_open(shop: &Shop, count: usize) {
    let config = ProducerConfig { application: "order-svc".into(), ..shop.ground.group.clone() };
    let purpose = "order.rollback";
    let builder =
        TransactionProducer::builder(config).listener(purpose, Told::otherwise(Do::Unknown));
    let producer = builder.start().await.expect("the group is free");
    let orders: Vec<Uuid> = (0..count).map(|_| Uuid::now_v7()).collect();
    for some in orders.chunks(500) {
        let begun = some.iter().map(|order| {
            let item = json!({"sku": "apple", "quantity": 1});
            let payload = json!({"order_id": order, "user_id": "many", "items": [item]});
            let message = Message::new(&shop.ground.rollback_topic, payload.to_string())
                .key(order.to_string())
                .check_after(Duration::from_secs(3_600));
            producer.begin(purpose, message)
        });
        for begun in futures::future::join_all(begun).await {
            begun.expect("it is stored").leave_open();
        }
    }
    producer.shutdown().await;
}

/// What the page is made of and what it asks for: protected, from one origin, and true.
pub(crate) async fn console_views_say_what_is(env: Env) {
    let shop = Shop::open(env).await;
    shop.seed("apple", 100, RECEIVED).await;
    let page = shop.get("/").await.expect(200);
    let policy = page.header("content-security-policy");
    assert!(policy.contains("default-src 'none'") && policy.contains("frame-ancestors 'none'"));
    assert!(!policy.contains("unsafe"), "{policy}");
    assert_eq!(page.header("x-content-type-options"), "nosniff");
    assert_eq!(
        shop.get("/console/app.js").await.expect(200).header("content-type"),
        "text/javascript; charset=utf-8"
    );
    shop.get("/console/../Cargo.toml").await.expect_problem(404, "not_found");

    shop.place(&[("apple", 3)]).send().await.expect(201);
    let fails = shop.place(&[("apple", 5)]).fault("after-deduct").send().await.expect(500);
    let books = until(VOID_DEADLINE, "balanced books", async || {
        let books = shop.get("/api/stock").await.expect(200).body;
        let restored = books["items"][0]["restored"] == 5;
        if books["state"] == "balanced" && restored { Ok(books) } else { Err(books.to_string()) }
    })
    .await;
    let line = &books["items"][0];
    for (name, value) in [
        ("received", RECEIVED),
        ("available", RECEIVED - 3),
        ("live", 3),
        ("deducted", 8),
        ("difference", 0),
    ] {
        assert_eq!(line[name], value, "{name}: {line}");
    }
    let order = fails.body["order_id"].as_str().expect("an order");
    let movements = shop.get(&format!("/api/movements?order_id={order}")).await.expect(200).body;
    assert_eq!(movements["items"][1]["kind"], "restore");

    assert_eq!(shop.get("/api/dead-letters").await.expect(200).body["items"], json!([]));
    let replay = shop.order_url(&format!("/api/dead-letters/{}/replay", Uuid::now_v7()));
    let refused = send(shop.http.post(&replay)).await.expect("order-svc answers");
    refused.expect_problem(401, "unauthorized");
    let passed = send(shop.http.post(&replay).bearer_auth(TOKEN)).await.expect("order-svc answers");
    passed.expect_problem(404, "not_found");
}

//! The console page, used by clicks and keys in a real browser.

use serde_json::Value;

use super::browser::Browser;
use super::heavy::alone;
use super::shop::settled::VOID_DEADLINE;
use super::shop::{Shop, TOKEN};
use crate::suite::{Env, PATIENCE, until};

const RECEIVED: i64 = 50;
/// A check that comes before the operator would settle what he is to settle.
const LATE_CHECK_MS: &str = "600000";
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
    async fn confirm(&self, reason: &str, token: &str) {
        self.fill("#dialog-token", token).await;
        self.fill("#dialog-operator", "olga").await;
        self.fill("#dialog-reason", reason).await;
        self.press(ENTER).await;
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
    page.shows("#order-result", "shows in its lane").await;
    shop.order.process().abort().await;
    page.shows("#connection", "disconnected").await;
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
    looks(&page).await;
    let complaints = page.complaints().await;
    let unexpected: Vec<_> = complaints.iter().filter(|said| !is_network(said)).collect();
    assert!(unexpected.is_empty(), "{unexpected:?}");
}

/// Both themes, both widths: nothing is cut off at the side.
async fn looks(page: &Browser) {
    for width in [1_280, 400] {
        page.resize(width, 900).await;
        for theme in ["light", "dark"] {
            page.theme(theme).await;
            page.screenshot(&format!("console-{theme}-{width}")).await;
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
    page.confirm("it must be known", "wrong").await;
    page.shows("#dialog-error", "token").await;
    page.confirm("it must be known", TOKEN).await;
    page.lane_shows("asked", "decided", "drop\nby check-back").await;
    page.shows("#halves", "No half message is open").await;
    let kept = "sessionStorage.getItem('halfmsg-token') !== null && localStorage.length === 0";
    assert!(page.is_true(kept).await, "the token stays in this tab");

    page.order("settled", "decision-lost").await;
    page.shows("#halves", "Commit").await;
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
    page.confirm("against the order's row", TOKEN).await;
    page.shows("#dialog-error", "It stays as it is").await;
    page.click("#dialog-cancel").await;
    page.click("#halves [data-key$='-rollback']").await;
    page.confirm("as the order's row says", TOKEN).await;
    page.lane_shows("settled", "decided", "by operator olga: as the order's row says").await;
    page.lane_shows("settled", "message", "dropped").await;
    page.apples(RECEIVED - 4).await;
    shop.conservation(VOID_DEADLINE).await;
}

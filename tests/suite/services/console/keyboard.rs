//! The console by keys alone: whoever has no mouse places the same orders, sees what became of them,
//! and gets at every control.

use super::{ENTER, ESCAPE, RECEIVED, TAB, open};
use crate::suite::Env;
use crate::suite::services::browser::Browser;
use crate::suite::services::shop::Shop;
use crate::suite::services::shop::settled::VOID_DEADLINE;
use crate::suite::turns::alone;

/// More stops than the page has.
const MOST_STOPS: usize = 120;
/// What a key may stop at, outside of the dialog.
const STOPS: &str =
    "[...document.querySelectorAll('a[href], button, input, select, [tabindex=\"0\"]')]
    .filter((one) => !one.disabled && one.checkVisibility() && !one.closest('dialog'))";

impl Browser {
    /// Presses Tab (or Shift and Tab) until the focus is on such an element; at every stop it shows
    /// where it is.
    async fn tab_to(&self, css: &str, back: bool) {
        for _ in 0..MOST_STOPS {
            if back {
                self.press_shifted(TAB).await
            } else {
                self.press(TAB).await
            }
            self.focus_shows().await;
            if self.is_true(&format!("document.activeElement.matches({css:?})")).await {
                return;
            }
        }
        panic!("{css} is not reached by Tab");
    }

    async fn focus_shows(&self) {
        let focus = "const at = document.activeElement;
            if (at === document.body) return 'shown';
            const style = getComputedStyle(at);
            const box = at.getBoundingClientRect();
            const within = box.bottom > 0 && box.top < innerHeight && box.right > 0 && box.left < innerWidth;
            const outlined = style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2;
            return within && outlined ? 'shown' : `${at.id || at.textContent}: ${within} ${style.outline}`;";
        assert_eq!(self.run(focus).await, "shown");
    }

    /// Fills the form from its first field on and sends it off; the focus is then on its last field.
    async fn order_by_keys(&self, user: &str, fault: &str) {
        // A list takes the first entry that begins with what is typed, a field what is typed in place
        // of what is there.
        self.tab_to("#fault", false).await;
        self.press(if fault.is_empty() { "none" } else { fault }).await;
        self.tab_to("#quantity", false).await;
        self.press("2").await;
        self.tab_to("#user", false).await;
        self.press(user).await;
        let filled = format!(
            "['fault', 'quantity', 'user'].map((id) => document.getElementById(id).value).join() === \
             '{fault},2,{user}'"
        );
        assert!(self.is_true(&filled).await, "{fault}, 2, {user}");
        self.press(ENTER).await;
    }
}

/// An order that stands, one that fails behind the deduction, one whose service dies there.
pub(crate) async fn console_tells_the_story_by_keys(env: Env) {
    let _alone = alone().await;
    let mut shop = Shop::open(env).await;
    let page = open(&shop).await;
    page.tab_to("#flow", false).await;
    page.order_by_keys("stands", "").await;
    page.shows("#order-result", "is confirmed").await;
    page.lane_shows("stands", "message", "dropped").await;
    page.lane_shows("stands", "stock", "sold").await;

    page.tab_to("#flow", true).await;
    page.order_by_keys("fails", "after-deduct").await;
    page.shows("#order-result", "500").await;
    page.lane_shows("fails", "stock", "restored\n2 apple").await;
    page.apples(RECEIVED - 2).await;

    page.tab_to("#flow", true).await;
    page.order_by_keys("dies", "crash-after-deduct").await;
    page.shows("#order-result", "shows in its lane").await;
    shop.order.check_soon();
    shop.survive_crash().await;
    page.shows("#connection", "live").await;
    page.lane_shows("dies", "decided", "by check-back").await;
    page.lane_shows("dies", "stock", "restored\n2 apple").await;
    page.apples(RECEIVED - 2).await;

    page.tab_to(".lane .acts button", false).await;
    page.press(ENTER).await;
    page.shows("#dialog-title", "The life of a half message").await;
    assert!(page.is_true("document.getElementById('dialog').open").await);
    page.press(ESCAPE).await;
    assert!(page.is_true("!document.getElementById('dialog').open").await);
    assert!(page.is_true("document.activeElement.matches('.lane .acts button')").await);
    every_control_is_reached(&page).await;
    shop.conservation(VOID_DEADLINE).await;
}

/// What is drawn anew, hidden or removed where somebody is leaves them there, or beside it.
pub(crate) async fn console_keeps_the_focus(env: Env) {
    let _alone = alone().await;
    let shop = Shop::open(env).await;
    let page = open(&shop).await;
    assert_eq!(page.run(include_str!("focus.js")).await, serde_json::json!([]));
}

/// Once around the page: no control is left out, and none holds the focus.
async fn every_control_is_reached(page: &Browser) {
    page.run(&format!("window.stops = new Set({STOPS}); document.activeElement.blur();")).await;
    for _ in 0..MOST_STOPS {
        page.press(TAB).await;
        page.run("window.stops.delete(document.activeElement);").await;
        if page.is_true("window.stops.size === 0").await {
            return;
        }
        page.focus_shows().await;
    }
    // What was replaced meanwhile is no stop any more.
    let left = "[...window.stops].filter((one) => one.isConnected).map((one) => one.outerHTML)";
    assert_eq!(page.run(&format!("return {left}")).await, serde_json::json!([]));
}

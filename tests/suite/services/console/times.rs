//! The times that the lanes show: each is when it happened, whoever tells of it and however often.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;

use super::{RECEIVED, open};
use crate::suite::services::browser::Browser;
use crate::suite::services::shop::Shop;
use crate::suite::services::shop::settled::VOID_DEADLINE;
use crate::suite::turns::alone;
use crate::suite::{Env, PATIENCE, until};

/// Every lane's user, with what its parts show as their time, and the moment behind that.
const TIMES: &str = r#"
    const part = (lane, name) => lane.querySelector(`[data-step=${name}] .at`);
    const time = (at) => ({ shown: at?.textContent ?? "", ms: at?.title ? Date.parse(at.title) : null });
    const parts = ["stored", "local", "decided", "message", "stock"];
    return Object.fromEntries([...document.querySelectorAll(".lane")].map((lane) =>
        [lane.querySelector(".who").textContent, Object.fromEntries(parts.map((name) => [name, time(part(lane, name))]))]));"#;
/// What a delivery shows that the next owner of the partition has made again.
const NOT_KNOWN: &str = "time not known";

/// An order, in the sequence of what happens to it, and when it began and was seen to have ended.
struct Story {
    user: &'static str,
    parts: [&'static str; 5],
    began_ms: i64,
    ended_ms: i64,
    /// Its message was delivered by one process, and again by the next.
    is_told_again: bool,
}

/// The stock is deducted within the local transaction.
const STANDS: [&str; 5] = ["stored", "stock", "local", "decided", "message"];
const RESTORED: [&str; 5] = ["stored", "local", "decided", "message", "stock"];
/// The order is confirmed by stock-svc's answer.
const SAGA: [&str; 5] = ["stored", "decided", "message", "stock", "local"];

/// Orders that stand and fail, one whose process died right behind the delivery, so that the next one delivers
/// and tells again, and one that the check-back decided: all times are in the sequence of what happened, and
/// within the order's own time. So they are to who looks later.
pub(crate) async fn console_lanes_have_the_time_of_what_happened(env: Env) {
    let _alone = alone().await;
    let builder = Shop::builder(env).await.order("HALFMSG_EMISSION", "at-least-once");
    let mut shop = builder.order("HALFMSG_CRASH_AT", "after-delivery").open().await;
    let page = open(&shop).await;
    let mut stories = vec![story(&page, ("stands", ""), STANDS, ("message", "dropped")).await];

    let began_ms = now_ms();
    page.order("again", "after-deduct").await;
    shop.order.process().abort().await;
    shop.stock_is("apple", RECEIVED - 2).await;
    let ended_ms = now_ms();
    let (user, parts, is_told_again) = ("again", RESTORED, true);
    stories.push(Story { user, parts, began_ms, ended_ms, is_told_again });
    shop.order.set("HALFMSG_CRASH_AT", "");
    until(PATIENCE, "another millisecond", async || {
        if now_ms() > ended_ms { Ok(()) } else { Err(ended_ms) }
    })
    .await;
    shop.restart_orders().await;
    page.shows("#connection", "live").await;
    page.lane_shows("again", "message", "delivered").await;
    page.lane_shows("again", "stock", "restored").await;

    let fails = ("fails", "after-deduct");
    stories.push(story(&page, fails, RESTORED, ("stock", "restored")).await);
    let began_ms = now_ms();
    page.order("dies", "crash-after-deduct").await;
    shop.order.process().abort().await;
    shop.order.check_soon();
    shop.restart_orders().await;
    page.shows("#connection", "live").await;
    page.lane_shows("dies", "decided", "by check-back").await;
    page.lane_shows("dies", "message", "delivered").await;
    page.lane_shows("dies", "stock", "restored").await;
    let (user, parts, is_told_again) = ("dies", RESTORED, false);
    stories.push(Story { user, parts, began_ms, ended_ms: now_ms(), is_told_again });
    page.click("#flow option[value='saga']").await;
    stories.push(story(&page, ("saga", ""), SAGA, ("local", "order confirmed")).await);
    page.lane_shows("saga", "message", "delivered").await;
    page.lane_shows("saga", "stock", "sold").await;
    are_true(&page, &stories).await;
    let latencies = page.run("return document.querySelector('#chart-latency').textContent").await;
    let latencies = latencies.as_str().expect("text");
    assert!(latencies.contains("delivered") && !latencies.contains("NaN"), "{latencies}");
    page.screenshot("console-times").await;
    shop.conservation(VOID_DEADLINE).await;

    // Whoever comes later knows only what this process tells, and what the lists say.
    let later = Browser::start(1_280, 900).await;
    later.open(&shop.order_url("/")).await;
    later.shows("#connection", "live").await;
    later.lane_shows("dies", "stock", "restored").await;
    stories.retain(|story| ["dies", "saga"].contains(&story.user));
    are_true(&later, &stories).await;
}

/// Places an order and waits for the end of its lane.
async fn story(
    page: &Browser,
    (user, fault): (&'static str, &str),
    parts: [&'static str; 5],
    (part, text): (&str, &str),
) -> Story {
    let began_ms = now_ms();
    page.order(user, fault).await;
    page.lane_shows(user, part, text).await;
    Story { user, parts, began_ms, ended_ms: now_ms(), is_told_again: false }
}

async fn are_true(page: &Browser, stories: &[Story]) {
    // What stock-svc did is asked for now and then.
    until(PATIENCE, "true times", async || {
        let seen = page.run(TIMES).await;
        let wrong: Vec<_> = stories.iter().filter_map(|story| story.wrong(&seen).err()).collect();
        if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n")) }
    })
    .await;
}

impl Story {
    fn wrong(&self, seen: &Value) -> Result<(), String> {
        let lane = &seen[self.user];
        let told = || format!("{}, from {} to {}: {lane}", self.user, self.began_ms, self.ended_ms);
        let mut before = self.began_ms;
        for part in self.parts {
            let (shown, ms) = (lane[part]["shown"].as_str(), lane[part]["ms"].as_i64());
            let (Some(shown), is_delivery) = (shown, part == "message") else { return Err(told()) };
            if self.is_told_again && is_delivery {
                let says_so = shown == NOT_KNOWN && ms.is_none();
                says_so.then_some(()).ok_or_else(told)?;
                continue;
            }
            let Some(ms) = ms.filter(|ms| (before..=self.ended_ms).contains(ms)) else {
                return Err(format!("{part} of {}", told()));
            };
            if (part == "stored") == shown.starts_with('+') {
                return Err(format!("{part} of {}", told()));
            }
            before = ms;
        }
        Ok(())
    }
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    i64::try_from(since.as_millis()).expect("it is not that late")
}

//! What the console shows: while it loads, of lists that became empty, in its charts; that what comes from
//! outside is shown as text, and that nothing moves what stands beside it.

use rdkafka::producer::{FutureProducer, FutureRecord};
use serde_json::{Value, json};

use super::operating::{NO_LETTERS, send_restore};
use super::{LATE_CHECK_MS, RECEIVED, open};
use crate::suite::services::browser::Browser;
use crate::suite::services::http::send;
use crate::suite::services::shop::settled::VOID_DEADLINE;
use crate::suite::services::shop::{Shop, TOKEN};
use crate::suite::turns::alone;
use crate::suite::{Env, PATIENCE, until};

/// Answers are held back until `window.release` is called.
const HOLD_ALL: &str = "const real = window.fetch;
    const held = new Promise((go) => { window.release = go; });
    window.fetch = async (...all) => { await held; return real(...all); };";
/// One more than a page of each list has.
const HALVES: usize = 51;
const LETTERS: usize = 21;
/// What would be run or drawn if it were taken for markup.
const MARKUP: &str = "<img src=x onerror=window.ran=1><b id=mark>";
/// Every text that the interface gives, but names of states and ids, gets markup behind it.
const MARK_ALL: &str = r#"
    const markup = "<img src=x onerror=window.ran=1><b id=mark>";
    const fixed = new Set(["state", "flow", "status", "id", "transaction_id", "order_id", "next_cursor", "kind", "event"]);
    const mark = (value, name) => {
        if (Array.isArray(value)) return value.map((one) => mark(one, name));
        if (value && typeof value === "object") return Object.fromEntries(Object.entries(value).map(([name, one]) => [name, mark(one, name)]));
        return typeof value !== "string" || fixed.has(name) || /^\d{4}-\d\d-\d\dT/.test(value) ? value : value + markup;
    };
    const real = window.fetch;
    window.fetch = async (path, how) => {
        const answer = await real(path, how);
        if (path === "/events" || path === "/metrics") return answer;
        return new Response(JSON.stringify(mark(await answer.json())), { status: answer.status });
    };"#;
/// Where everything stands.
const PLACES: &str = "const top = (one) => Math.round(one.getBoundingClientRect().top + scrollY);
    return [...document.querySelectorAll('main h2, main figure')]
        .map((one) => [one.textContent.slice(0, 20), top(one)])
        .concat([['header', document.querySelector('header').offsetHeight]]);";

/// Before anything is answered, every part says so and claims nothing.
pub(crate) async fn console_says_that_it_loads(env: Env) {
    let _alone = alone().await;
    let shop = Shop::open(env).await;
    shop.seed("apple", 100, RECEIVED).await;
    let page = Browser::start(1_280, 900).await;
    page.before_each_page(HOLD_ALL).await;
    page.open(&shop.order_url("/")).await;
    let lists = ["#stock", "#halves", "#letters", ".lanes-box"];
    let charts = ["#chart-rate", "#chart-decisions", "#chart-checks", "#chart-latency"];
    for part in lists.into_iter().chain(charts) {
        page.shows(part, "Loading…").await;
    }
    page.shows("#connection", "connecting").await;
    page.shows("#light", "books: not read yet").await;
    page.screenshot_both("console-loading").await;
    page.run("window.release()").await;
    page.shows("#connection", "live").await;
    page.shows("#light", "books agree").await;
    page.shows("#chart-rate", "stored: ").await;
    page.shows(".lanes-box", "Nothing has happened yet").await;
    page.shows("#halves", "No half message is open").await;
    page.shows("#letters", NO_LETTERS).await;
    let left = "document.querySelector('main').innerText.includes('Loading')";
    assert!(!page.is_true(left).await);
}

/// Whoever looks at the last page of a list while its only entry is settled comes to the one before.
pub(crate) async fn console_leaves_a_page_that_became_empty(env: Env) {
    let _alone = alone().await;
    let builder = Shop::builder(env).await.order("HALFMSG_CHECK_AFTER_MS", LATE_CHECK_MS);
    let shop = builder.both("HALFMSG_RETRY_LEVELS_MS", "none").open().await;
    shop.seed("pear", 100, 100).await;
    for _ in 0..HALVES {
        shop.place(&[("pear", 1)]).fault("decision-lost").send().await.expect(201);
    }
    for _ in 0..LETTERS {
        send_restore(&shop, "not an order").await;
    }
    let page = open(&shop).await;
    page.shows("#halves-page", "page 1, 1 to 50, there are more").await;
    page.click("#halves-next").await;
    page.shows("#halves-page", "page 2, 51 to 51").await;
    let last = "return document.querySelector('#halves tbody td').title";
    let last = page.run(last).await.as_str().expect("an id").to_owned();
    shop.settle(&last, "rollback", false).await.expect(200);
    page.shows("#halves-page", "page 1, 1 to 50").await;
    assert!(page.is_true("document.getElementById('halves-next').disabled").await);

    until(PATIENCE, "all dead letters", async || {
        page.click("#letters-refresh").await;
        let seen = page.run("return document.getElementById('letters-page').textContent").await;
        if seen == "20 shown, there are more" { Ok(()) } else { Err(seen) }
    })
    .await;
    page.click("#letters-next").await;
    page.shows("#letters-page", "1 shown").await;
    let last = "return document.querySelector('#letters tbody tr').dataset.row";
    let last = page.run(last).await.as_str().expect("an id").to_owned();
    let act = async |path: &str, body: Value| {
        let url = shop.stock_url(&format!("/dead-letters/{path}"));
        let answer = send(shop.http.post(url).bearer_auth(TOKEN).json(&body)).await;
        answer.expect("stock-svc answers")
    };
    act(&format!("{last}/discard"), json!({"reason": "a test"})).await.expect(200);
    page.click("#letters-refresh").await;
    page.shows("#letters-page", "20 shown").await;
    assert!(page.is_true("document.getElementById('letters-back').disabled").await);

    // One a second: most of them wait for their replay.
    act("replay", json!({"rate_per_second": 1})).await.expect(202);
    page.click("#letters-refresh").await;
    page.shows("#letters-page", "queued for a replay").await;
    page.run(
        "const real = window.fetch;
         window.fetch = (path, how) => path.includes('state=open&limit=20')
            ? Promise.resolve(new Response('{\"items\":[],\"next_cursor\":null}')) : real(path, how);",
    )
    .await;
    page.click("#letters-refresh").await;
    page.shows("#letters", "None is open.").await;
    page.shows("#letters-page", "queued for a replay").await;
}

/// Bars and lines are the numbers of /metrics, and say them in words.
pub(crate) async fn console_charts_say_what_the_service_says(env: Env) {
    let _alone = alone().await;
    let shop = Shop::builder(env).await.checked_soon().open().await;
    let page = open(&shop).await;
    page.order("stands", "").await;
    page.lane_shows("stands", "message", "dropped").await;
    page.order("fails", "after-deduct").await;
    page.lane_shows("fails", "message", "delivered").await;
    page.order("lost", "decision-lost").await;
    page.lane_shows("lost", "message", "dropped").await;
    let bars = |chart: &str| {
        format!(
            "const cells = [...document.querySelectorAll('#{chart} .bars > span')].map((one) => one.innerText);
             return Object.fromEntries(cells.flatMap((cell, at) => at % 2 ? [] : [[cell, cells[at + 1]]]));"
        )
    };
    for (chart, metric, expected) in [
        (
            "chart-decisions",
            "halfmsg_decisions_total{",
            &["rollback by producer", "commit by producer", "rollback by check-back"][..],
        ),
        ("chart-checks", "halfmsg_checks_total{", &["rollback"]),
    ] {
        until(PATIENCE, chart, async || {
            let text = shop.get("/metrics").await.expect(200).text;
            let counted: serde_json::Map<_, _> = text
                .lines()
                .filter(|line| line.starts_with(metric))
                .map(|line| {
                    let label =
                        |name: &str| line.split(&format!("{name}=\"")).nth(1)?.split('"').next();
                    let name = match (label("verdict"), label("origin"), label("outcome")) {
                        (Some(verdict), Some(origin), _) => format!("{verdict} by {origin}"),
                        (_, _, outcome) => outcome.expect("an outcome").replace('_', " "),
                    };
                    (name, json!(line.rsplit(' ').next().expect("a value")))
                })
                .collect();
            if let Some(missing) = expected.iter().find(|name| !counted.contains_key(**name)) {
                return Err(format!("no {missing} in {counted:?}"));
            }
            let shown = page.run(&bars(chart)).await;
            if shown == Value::Object(counted.clone()) {
                Ok(())
            } else {
                Err(format!("{shown}, not {counted:?}"))
            }
        })
        .await;
    }
    let times = page.run(&bars("chart-latency")).await;
    let times: Vec<_> = times.as_object().expect("bars").keys().cloned().collect();
    let kinds = ["decided, 95th percentile", "decided, median", "delivered, 95th percentile"];
    assert_eq!(times[..3], kinds, "{times:?}");
    let label = |selector: &str| format!("document.querySelector('{selector}').ariaLabel");
    let says = |what: &str, pattern: &str| format!("/{pattern}/.test({})", label(what));
    let rates = r"^stored: \d+\.\d; delivered: \d+\.\d; dropped: \d+\.\d$";
    assert!(page.is_true(&says("#chart-rate svg", rates)).await);
    page.apples(RECEIVED - 4).await;
    let line = format!("^available of apple, from {RECEIVED} to {}$", RECEIVED - 4);
    until(PATIENCE, "the line of apples", async || {
        let is_so = page.is_true(&says("#stock .spark", &line)).await;
        is_so.then_some(()).ok_or("another")
    })
    .await;
}

/// Names, reasons, keys, payloads: whoever writes markup into them sees it written.
pub(crate) async fn console_shows_markup_as_text(env: Env) {
    let _alone = alone().await;
    let builder = Shop::builder(env).await.order("HALFMSG_CHECK_AFTER_MS", LATE_CHECK_MS);
    let shop = builder.both("HALFMSG_RETRY_LEVELS_MS", "none").open().await;
    let page = open(&shop).await;
    // Of a user, an operator and a stranger who writes to the topic.
    shop.place(&[("apple", 1)]).user(MARKUP).fault("decision-lost").send().await.expect(201);
    let producer: FutureProducer = shop.ground.kafka().producer().create().expect("a producer");
    let topic = &shop.ground.rollback_topic;
    let record: FutureRecord<'_, str, str> = FutureRecord::to(topic).key(MARKUP).payload(MARKUP);
    producer.send(record, PATIENCE).await.expect("it is acknowledged");
    page.shows("#halves", "Check now").await;
    page.shows(".lane .who", MARKUP).await;
    page.click("#halves [data-key$='-rollback']").await;
    page.fill("#dialog-token", TOKEN).await;
    page.fill("#dialog-operator", MARKUP).await;
    page.fill("#dialog-reason", MARKUP).await;
    page.click("#dialog-ok").await;
    page.shows(".lane [data-step=decided]", &format!("by operator {MARKUP}: {MARKUP}")).await;
    until(PATIENCE, "the stranger's dead letter", async || {
        page.click("#letters-refresh").await;
        let found = page.is_true("document.querySelector('#letters [data-key]') !== null").await;
        found.then_some(()).ok_or("none")
    })
    .await;
    page.click("#letters [data-key$='-show']").await;
    page.shows("#dialog-body pre", MARKUP).await;
    page.click("#dialog-cancel").await;
    nothing_ran(&page).await;

    // And of whatever else the interface gives.
    shop.place(&[("apple", 1)]).user("ann").fault("decision-lost").send().await.expect(201);
    page.run(MARK_ALL).await;
    page.click("#halves-refresh").await;
    page.click("#letters-refresh").await;
    shop.place(&[("apple", 1)]).user("eve").send().await.expect(201);
    page.shows(".lane .who", &format!("eve{MARKUP}")).await;
    page.shows("#stock", &format!("apple{MARKUP}")).await;
    page.shows("#letters", MARKUP).await;
    let key = "document.querySelector('#halves td:nth-child(2)')?.title ?? ''";
    until(PATIENCE, "a marked key", async || {
        let is_marked = page.is_true(&format!("({key}).includes('<img')")).await;
        is_marked.then_some(()).ok_or("none")
    })
    .await;
    page.click("#halves [data-key$='-show']").await;
    page.shows("#dialog-body pre", MARKUP).await;
    page.shows("#dialog-body .history", MARKUP).await;
    page.click("#dialog-cancel").await;
    page.click("#halves [data-key$='-commit']").await;
    page.try_confirm("a test", "wrong").await;
    page.shows("#dialog-error", MARKUP).await;
    page.click("#dialog-cancel").await;
    nothing_ran(&page).await;
}

async fn nothing_ran(page: &Browser) {
    let made = "document.querySelector('#mark, img') === null && window.ran === undefined";
    assert!(page.is_true(made).await, "markup was taken for markup");
}

/// Orders come, in every way to end: what stands beside the lanes and lists stays where it is.
pub(crate) async fn console_nothing_moves_while_events_come(env: Env) {
    let _alone = alone().await;
    let shop = Shop::builder(env).await.checked_soon().open().await;
    let page = open(&shop).await;
    page.shows("#chart-rate", "stored: ").await;
    for width in [1_280, 400] {
        page.resize(width, 900).await;
        page.shows("#light", "books agree").await;
        let before = page.run(PLACES).await;
        let stays = async |when: &str| {
            assert_eq!(page.run(PLACES).await, before, "{width} px, {when}");
        };
        for fault in ["after-deduct", "price-lookup", "deduct-timeout", "decision-lost"] {
            page.order(&format!("{fault}-{width}"), fault).await;
            stays(fault).await;
            until(PATIENCE, fault, async || {
                let free = page.is_true("!document.getElementById('place').disabled").await;
                free.then_some(()).ok_or("it is not answered")
            })
            .await;
            stays(fault).await;
        }
        for round in 0..5 {
            shop.place(&[("apple", 1)]).fault("order-insert").send().await;
            stays(&format!("round {round}")).await;
        }
        page.lane_shows(&format!("decision-lost-{width}"), "message", "dropped").await;
        page.shows("#light", "books agree").await;
        stays("at the end").await;
    }
    shop.conservation(VOID_DEADLINE).await;
}

/// Where everything stands; for the lists that are long.
pub(super) async fn places(page: &Browser) -> Value {
    page.run(PLACES).await
}

//! The console at streams that end: in order after some minutes, and then at another replica of the service.

use super::{LATE_CHECK_MS, RECEIVED};
use crate::suite::services::balancer::Balancer;
use crate::suite::services::browser::Browser;
use crate::suite::services::shop::Shop;
use crate::suite::services::shop::settled::VOID_DEADLINE;
use crate::suite::turns::alone;
use crate::suite::{Env, PATIENCE, until};

/// Keeps what was said of the connection, of interrupted orders and of rates, and since when it is live.
const WATCH: &str = "window.said = new Set();
    window.rates = new Set();
    new MutationObserver(() => {
        const of = (css) => document.querySelector(css);
        window.said.add(of('#connection')?.textContent ?? '');
        if (of('#connection')?.textContent === 'live') window.live ??= performance.now();
        for (const step of document.querySelectorAll('[data-step=local]')) window.said.add(step.innerText);
        window.rates.add(of('#chart-rate svg')?.ariaLabel);
    }).observe(document, { childList: true, subtree: true, characterData: true });";
/// A stream that ended sooner than in a second is not taken for one that has run its time.
const OLD_ENOUGH: &str = "performance.now() - window.live > 1500";
/// The next stream says what `window.push` is told.
const OTHER_STREAM: &str = "const real = window.fetch;
    const stream = () => new ReadableStream({ start(to) {
        window.push = (text) => to.enqueue(new TextEncoder().encode(text));
        window.push(':\\n\\n');
    } });
    window.fetch = async (path, how) => (path === '/events' ? new Response(stream()) : real(path, how));";
/// What the lanes ask for when they begin anew.
const READ_ANEW: &str = "/halves?state=open&limit=20";
/// So often a machine may stand still meanwhile.
const TRIES: usize = 4;
/// An order at the beginning, and one behind each return.
const LANES_OF_A_TRY: usize = 3;
/// Half messages of one replica that the other has not.
const STORED: usize = 20;
/// Of the charts, by turns.
const READINGS: usize = 6;

/// A page by way of the balancer, of a shop that sells apples; its stream has run for a while.
async fn open(shop: &Shop, balancer: &Balancer) -> Browser {
    shop.seed("apple", 100, RECEIVED).await;
    let page = Browser::start(1_280, 900).await;
    page.before_each_page(WATCH).await;
    page.open(balancer.url()).await;
    page.shows("#connection", "live").await;
    page.becomes(OLD_ENOUGH).await;
    page
}

/// Every stream ends after some minutes: nobody hears of it, nothing is asked for, and nothing is missed.
pub(crate) async fn console_comes_back_unheard(env: Env) {
    let _alone = alone().await;
    let builder = Shop::builder(env).await.order("HALFMSG_CHECK_AFTER_MS", LATE_CHECK_MS);
    let shop = builder.open().await;
    let mut tries = 0;
    let (balancer, page) = loop {
        tries += 1;
        let balancer = Balancer::before(&[shop.order_url("")]).await;
        let page = open(&shop, &balancer).await;
        if comes_back(&shop, &balancer, &page, tries).await {
            break (balancer, page);
        }
        assert!(tries < TRIES, "{tries} times in a row it was heard");
    };
    page.shows("#lanes-count", &(LANES_OF_A_TRY * tries).to_string()).await;
    assert!(page.is_true("document.getElementById('lanes-missed').textContent === ''").await);

    // So much has happened that not all of it is kept: the page says so, and finds the rest in the lists.
    page.run(OTHER_STREAM).await;
    balancer.end_answers();
    page.becomes("window.push !== undefined").await;
    shop.place(&[("apple", 1)]).user("unheard").send().await.expect(201);
    page.run("window.push('event: reset\\ndata: {\"reason\":\"too_old\",\"faults\":true}\\n\\n')")
        .await;
    page.shows("#lanes-missed", "more happened meanwhile than is kept").await;
    page.lane_shows("unheard", "local", "order confirmed").await;
    page.lane_shows("unheard", "message", "dropped").await;
}

/// Whether the page has come back twice without a word of it. A service that stands still for longer than two
/// heartbeats is taken for dead, and rightly.
async fn comes_back(shop: &Shop, balancer: &Balancer, page: &Browser, tries: usize) -> bool {
    let user = format!("open-{tries}");
    page.order(&user, "decision-lost").await;
    page.lane_shows(&user, "local", "order confirmed").await;
    let read = balancer.asked(READ_ANEW);
    for number in 2..=LANES_OF_A_TRY {
        balancer.end_answers();
        until(PATIENCE, "the page to come back", async || {
            let asked = balancer.asked("/events");
            if asked >= number { Ok(()) } else { Err(asked) }
        })
        .await;
        let user = format!("after-{number}-{tries}");
        shop.place(&[("apple", 1)]).user(&user).send().await.expect(201);
        page.lane_shows(&user, "message", "dropped").await;
        page.run("window.live = performance.now()").await;
        page.becomes(OLD_ENOUGH).await;
    }
    if page.is_true("window.said.has('disconnected, trying again')").await {
        return false;
    }
    assert_eq!(
        balancer.asked("/events"),
        LANES_OF_A_TRY,
        "a stream at the beginning, and two later"
    );
    assert_eq!(read, 1, "at the beginning");
    assert_eq!(balancer.asked(READ_ANEW), read, "nothing was missed");
    true
}

/// Two replicas behind one address: what one of them counts is no rate of the other, and who is led from the
/// one to the other is not told that a service died.
pub(crate) async fn console_tells_replicas_apart(env: Env) {
    let _alone = alone().await;
    let shop = Shop::builder(env).await.checked_soon().open().await;
    let mut second = shop.order.replica("order-svc-2");
    second.start();
    second.ready(&shop.calls.http).await;
    let balancer = Balancer::before(&[shop.order_url(""), second.url("")]).await;
    let page = open(&shop, &balancer).await;

    for _ in 0..STORED {
        shop.place(&[("apple", 1)]).fault("deduct-refused").send().await;
    }
    page.becomes("[...window.rates].some((rates) => rates && !rates.startsWith('stored: 0.0;'))")
        .await;
    page.shows("#chart-rate", "stored: 0.0").await;
    page.run("window.rates.clear()").await;
    for number in 1..=READINGS {
        balancer.choose(number % 2);
        let before = balancer.asked("/metrics");
        until(PATIENCE, "the counters to be read", async || {
            if balancer.asked("/metrics") > before { Ok(()) } else { Err("they are not") }
        })
        .await;
    }
    // What was asked for last is drawn, too.
    page.becomes("[...window.rates].some(Boolean)").await;
    let stored = "[...window.rates].filter((rates) => rates && !rates.startsWith('stored: 0.0;'))";
    assert_eq!(page.run(&format!("return {stored}")).await, serde_json::json!([]));

    balancer.choose(0);
    let calls = shop.calls.clone();
    let slow = tokio::spawn(async move {
        calls.place(&[("apple", 1)]).user("slow").fault("slow-local").send().await
    });
    page.becomes("window.said.has('running')").await;
    balancer.choose(1);
    balancer.end_answers();
    page.shows("#lanes-missed", "another process answers").await;
    page.becomes("window.said.has('no outcome known')").await;
    slow.await.expect("no panic");
    assert!(page.is_true("![...window.said].some((said) => said.includes('died'))").await);
    assert!(page.is_true("!window.said.has('disconnected, trying again')").await);
    page.shows(".lane [data-step=local]", "order void").await;
    shop.conservation(VOID_DEADLINE).await;
}

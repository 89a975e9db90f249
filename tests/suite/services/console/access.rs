//! The console for people who do not see it, or not well: names and roles as Chromium computes them,
//! contrast beside that of texts, what is announced, and a dialog that keeps the focus.

use serde_json::{Value, json};

use super::{ESCAPE, LATE_CHECK_MS, TAB, looks, open};
use crate::suite::services::browser::Browser;
use crate::suite::services::shop::Shop;
use crate::suite::turns::alone;
use crate::suite::{Env, PATIENCE, until};

/// More than once around the dialog.
const TABS: usize = 30;
/// Roles that say nothing of what a thing is for.
const NO_ROLE: [&str; 4] = ["generic", "none", "unknown", ""];
/// What must be said to who does not see it change.
const ANNOUNCED: [(&str, &str); 8] = [
    ("connection", "status"),
    ("order-result", "status"),
    ("lanes-missed", "status"),
    ("lanes-told", "status"),
    ("books", "status"),
    ("halves-page", "status"),
    ("letters-page", "status"),
    ("dialog-error", "alert"),
];

/// The lists cannot be read.
const NO_LISTS: &str = "window.former = window.fetch;
    const lists = ['/halves?', '/api/dead-letters?'];
    window.fetch = async (path, how) => {
        if (lists.some((list) => path.startsWith(list))) throw new TypeError('Failed to fetch');
        return window.former(path, how);
    };";
/// Nor the stock.
const NO_STOCK: &str = "const real = window.fetch;
    window.fetch = async (path, how) => {
        if (path === '/api/stock') throw new TypeError('Failed to fetch');
        return real(path, how);
    };";

/// Every control, on the page and in the dialog, in both themes.
pub(crate) async fn console_controls_have_names_roles_and_edges(env: Env) {
    let _alone = alone().await;
    let builder = Shop::builder(env).await.order("HALFMSG_CHECK_AFTER_MS", LATE_CHECK_MS);
    let shop = builder.open().await;
    let page = open(&shop).await;
    page.order("ann", "decision-lost").await;
    page.shows("#halves", "Check now").await;
    page.lane_shows("ann", "local", "order confirmed").await;
    page.shows("#chart-rate", "stored").await;
    has_names_and_roles(&page, 30).await;
    has_edges(&page).await;
    page.click("#halves [data-key$='-commit']").await;
    page.shows("#dialog-title", "Commit").await;
    has_names_and_roles(&page, 6).await;
    has_edges(&page).await;
    keeps_the_focus(&page).await;
    page.press(ESCAPE).await;
    page.click("#halves [data-key$='-show']").await;
    page.shows("#dialog-title", "The life of a half message").await;
    has_names_and_roles(&page, 1).await;
    page.press(ESCAPE).await;
    looks(&page, "console-access").await;
}

/// What happens is announced where it is said: the regions are there from the beginning, and stay.
pub(crate) async fn console_announces_what_happens(env: Env) {
    let _alone = alone().await;
    let shop = Shop::open(env).await;
    let page = open(&shop).await;
    page.run(
        "window.regions = [...document.querySelectorAll('[role=status], [role=alert]')];
         window.told = [];
         const told = document.getElementById('lanes-told');
         new MutationObserver(() => window.told.push(told.textContent)).observe(told, { childList: true });",
    )
    .await;
    for (id, role) in ANNOUNCED {
        let found = page.run(&format!("return document.getElementById('{id}').role")).await;
        assert_eq!(found, role, "{id}");
    }
    page.order("ann", "after-deduct").await;
    page.shows("#order-result", "500").await;
    page.lane_shows("ann", "stock", "restored").await;
    // Who does not see the lane hears of the order that was placed here, step by step, once each.
    until(PATIENCE, "the end to be told", async || {
        let told = page.run("return window.told").await;
        let told: Vec<String> = serde_json::from_value(told).map_err(|error| error.to_string())?;
        let last = told.last().cloned().unwrap_or_default();
        let is_end = last.contains("Local transaction: order void") && last.contains("restored");
        let once = told.windows(2).all(|pair| pair[0] != pair[1]);
        if is_end && once { Ok(()) } else { Err(format!("{told:?}")) }
    })
    .await;
    // Those of others are many, and seen by who looks for them.
    shop.place(&[("apple", 1)]).user("other").send().await.expect(201);
    page.lane_shows("other", "message", "dropped").await;
    let last = page.run("return window.told.at(-1)").await;
    assert!(last.as_str().is_some_and(|last| last.contains("restored")), "{last}");
    page.run(NO_LISTS).await;
    page.click("#halves-refresh").await;
    page.shows("#halves-page", "The half messages cannot be listed: the connection broke off")
        .await;
    page.click("#letters-refresh").await;
    page.shows("#letters-page", "The dead letters cannot be read: the connection broke off").await;
    assert!(page.is_true("window.regions.every((one) => one.isConnected)").await);
    page.run("window.fetch = window.former").await;
    page.click("#halves-refresh").await;
    page.shows("#halves", "No half message is open").await;
    assert!(page.is_true("document.getElementById('halves-page').textContent === ''").await);
    page.before_each_page(NO_STOCK).await;
    page.open(&shop.order_url("/")).await;
    page.shows("#books", "The stock cannot be read: the connection broke off").await;
    page.shows("#stock", "the connection broke off").await;
    page.shows("#light", "books: cannot be read").await;
}

async fn has_names_and_roles(page: &Browser, least: usize) {
    let tree = page.devtools("Accessibility.getFullAXTree", json!({})).await;
    let nodes = tree["nodes"].as_array().expect("nodes");
    let text = |node: &Value, what: &str| node[what]["value"].as_str().unwrap_or("").to_owned();
    let is_focusable = |node: &&Value| {
        let properties = node["properties"].as_array().into_iter().flatten();
        let mut focusable = properties.filter(|one| one["name"] == "focusable");
        node["ignored"] != true && focusable.any(|one| one["value"]["value"] == true)
    };
    let controls: Vec<_> = nodes.iter().filter(is_focusable).collect();
    assert!(controls.len() >= least, "{} controls", controls.len());
    let pictures = nodes.iter().filter(|node| {
        node["ignored"] != true && ["image", "img", "dialog"].contains(&text(node, "role").as_str())
    });
    for node in controls.into_iter().chain(pictures) {
        let (role, name) = (text(node, "role"), text(node, "name"));
        assert!(!NO_ROLE.contains(&role.as_str()), "'{name}' has the role '{role}': {node}");
        assert!(!name.trim().is_empty(), "a {role} has no name: {node}");
    }
}

async fn has_edges(page: &Browser) {
    for theme in ["light", "dark"] {
        page.theme(theme).await;
        let found = page.run(include_str!("audit.js")).await;
        assert_eq!(found, json!([]), "{theme}");
    }
    page.theme("light").await;
}

/// However often Tab is pressed, nothing behind the dialog gets the focus.
async fn keeps_the_focus(page: &Browser) {
    let at = "const at = document.activeElement;
        return at === document.body || at.closest('dialog') ? at.id : `outside: ${at.outerHTML}`;";
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..TABS {
        page.press(TAB).await;
        let id = page.run(at).await.as_str().unwrap_or_default().to_owned();
        assert!(!id.starts_with("outside"), "{id}");
        seen.insert(id);
    }
    for field in ["dialog-reason", "dialog-operator", "dialog-token", "dialog-ok", "dialog-cancel"]
    {
        assert!(seen.contains(field), "{field} is not reached: {seen:?}");
    }
}

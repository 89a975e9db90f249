//! A real browser without a window: Chromium, driven by chromedriver over W3C WebDriver.
//!
//! Both come from the system (`scripts/test` installs them); a test that does not find them fails.

use std::fs;
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use reqwest::{Client, Method};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::http::{client, send};
use crate::suite::{PATIENCE, until};

/// Names another chromedriver and another browser than those in the path.
const DRIVER: &str = "HALFMSG_TEST_CHROMEDRIVER";
const BROWSER: &str = "HALFMSG_TEST_CHROMIUM";
/// Where screenshots go, if anybody wants them.
const SCREENSHOTS: &str = "HALFMSG_TEST_SCREENSHOTS";
/// Nothing is asked of the internet, at the start neither.
const ARGUMENTS: [&str; 9] = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
];
/// WebDriver's name of the key.
const SHIFT: &str = "\u{e008}";
/// What an element may be for a moment: a list that is drawn anew has others.
const PASSING: [&str; 2] = ["stale element reference", "no such element"];
/// The key of an element in WebDriver's JSON.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// A browser with one page. It ends with the test, whatever happens.
pub(crate) struct Browser {
    driver: Child,
    http: Client,
    session: String,
    // Last: the profile is deleted when nobody uses it any more.
    profile: TempDir,
}

impl Browser {
    /// Starts it, with a window of this size.
    pub(crate) async fn start(width: u32, height: u32) -> Self {
        let port = super::ports::free();
        let name = std::env::var(DRIVER).unwrap_or_else(|_| "chromedriver".into());
        let profile = tempfile::Builder::new().prefix("halfmsg-browser-").tempdir();
        let profile = profile.expect("a temporary directory");
        let driver = Command::new(&name)
            .arg(format!("--port={port}"))
            .env("TMPDIR", profile.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let driver = driver.unwrap_or_else(|error| {
            panic!(
                "{name}: {error}: install it (Debian, Ubuntu: apt-get install chromium \
                 chromium-driver), or name it with {DRIVER}"
            )
        });
        let base = format!("http://127.0.0.1:{port}");
        let mut browser =
            Self { driver, http: client(), session: format!("{base}/session"), profile };
        until(PATIENCE, "chromedriver to listen", async || {
            TcpStream::connect(("127.0.0.1", port)).map(drop)
        })
        .await;
        let mut arguments: Vec<String> = ARGUMENTS.map(str::to_owned).into();
        arguments.push(format!("--user-data-dir={}", browser.profile.path().display()));
        arguments.push(format!("--window-size={width},{height}"));
        let mut options = json!({"args": arguments});
        if let Ok(browser) = std::env::var(BROWSER) {
            options["binary"] = json!(browser);
        }
        let wanted = json!({
            "browserName": "chrome", "goog:chromeOptions": options,
            "goog:loggingPrefs": {"browser": "ALL"},
            "timeouts": {"script": PATIENCE.as_secs() * 1_000, "pageLoad": PATIENCE.as_secs() * 1_000},
        });
        let body = json!({"capabilities": {"alwaysMatch": wanted}});
        let made = browser.ask(Method::POST, "", body).await;
        let id = made["sessionId"].as_str().expect("a session");
        browser.session = format!("{base}/session/{id}");
        browser.resize(width, height).await;
        browser
    }

    /// Opens an address.
    pub(crate) async fn open(&self, url: &str) {
        self.ask(Method::POST, "/url", json!({"url": url})).await;
    }

    /// What a function body returns in the page.
    pub(crate) async fn run(&self, script: &str) -> Value {
        self.ask(Method::POST, "/execute/sync", json!({"script": script, "args": []})).await
    }

    /// Clicks, as a person does: what is hidden or covered cannot be clicked.
    pub(crate) async fn click(&self, css: &str) {
        self.act(css, "click", json!({})).await;
    }

    /// Types into a field, in place of what is there.
    pub(crate) async fn fill(&self, css: &str, text: &str) {
        self.act(css, "clear", json!({})).await;
        self.act(css, "value", json!({"text": text})).await;
    }

    /// Presses keys where the focus is.
    pub(crate) async fn press(&self, keys: &str) {
        let press = |key: char| {
            let key = key.to_string();
            [json!({"type": "keyDown", "value": key}), json!({"type": "keyUp", "value": key})]
        };
        let actions: Vec<Value> = keys.chars().flat_map(press).collect();
        let body = json!({"actions": [{"type": "key", "id": "keys", "actions": actions}]});
        self.ask(Method::POST, "/actions", body).await;
    }

    /// Presses a key while Shift is held.
    pub(crate) async fn press_shifted(&self, key: &str) {
        let act = |kind: &str, key: &str| json!({"type": kind, "value": key});
        let actions =
            [act("keyDown", SHIFT), act("keyDown", key), act("keyUp", key), act("keyUp", SHIFT)];
        let body = json!({"actions": [{"type": "key", "id": "keys", "actions": actions}]});
        self.ask(Method::POST, "/actions", body).await;
    }

    /// Waits until the first such element has this text in it.
    pub(crate) async fn shows(&self, css: &str, text: &str) {
        let script = format!("return document.querySelector({css:?})?.innerText ?? 'is not there'");
        until(PATIENCE, &format!("{css} to show '{text}'"), async || {
            let seen = self.run(&script).await;
            let seen = seen.as_str().unwrap_or_default();
            if seen.contains(text) { Ok(()) } else { Err(seen.to_owned()) }
        })
        .await;
    }

    /// What the page and the browser have said of errors.
    pub(crate) async fn complaints(&self) -> Vec<String> {
        let log = self.ask(Method::POST, "/se/log", json!({"type": "browser"})).await;
        let severe = |entry: &&Value| entry["level"] == "SEVERE";
        let entries = log.as_array().into_iter().flatten().filter(severe);
        entries.map(|entry| entry["message"].to_string()).collect()
    }

    /// Another size of the page.
    pub(crate) async fn resize(&self, width: u32, height: u32) {
        let size = json!(
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false}
        );
        self.devtools("Emulation.setDeviceMetricsOverride", size).await;
    }

    /// `light` or `dark`, as the system would ask for it.
    pub(crate) async fn theme(&self, theme: &str) {
        let feature = json!({"name": "prefers-color-scheme", "value": theme});
        self.devtools("Emulation.setEmulatedMedia", json!({"features": [feature]})).await;
    }

    /// Keeps the whole page as a PNG file, if a directory for it is named.
    pub(crate) async fn screenshot(&self, name: &str) {
        let Ok(directory) = std::env::var(SCREENSHOTS) else { return };
        let whole = self.devtools("Page.getLayoutMetrics", json!({})).await;
        // Of the whole page there is no scroll bar, so it is as wide as the window.
        let width = self.run("return innerWidth").await;
        let height = &whole["cssContentSize"]["height"];
        let clip = json!({"x": 0, "y": 0, "width": width, "height": height, "scale": 1});
        let how = json!({"format": "png", "captureBeyondViewport": true, "clip": clip});
        let taken = self.devtools("Page.captureScreenshot", how).await;
        keep(&directory, name, &taken);
    }

    /// Keeps what is in view, a dialog too.
    pub(crate) async fn screenshot_view(&self, name: &str) {
        let Ok(directory) = std::env::var(SCREENSHOTS) else { return };
        let taken = self.devtools("Page.captureScreenshot", json!({"format": "png"})).await;
        keep(&directory, name, &taken);
    }

    /// Runs this in every page that is opened from now on, before anything of its own.
    pub(crate) async fn before_each_page(&self, script: &str) {
        let source = json!({"source": script});
        self.devtools("Page.addScriptToEvaluateOnNewDocument", source).await;
    }

    /// Asks Chromium's own protocol.
    pub(crate) async fn devtools(&self, command: &str, parameters: Value) -> Value {
        let body = json!({"cmd": command, "params": parameters});
        self.ask(Method::POST, "/goog/cdp/execute", body).await
    }

    /// Does something with the first such element; again if the page is drawing it anew.
    async fn act(&self, css: &str, what: &str, body: Value) {
        until(PATIENCE, &format!("{css} to be there for '{what}'"), async || {
            let by = json!({"using": "css selector", "value": css});
            let found = self.try_ask(Method::POST, "/element", by).await?;
            let element = found[ELEMENT].as_str().expect("an element");
            let path = format!("/element/{element}/{what}");
            self.try_ask(Method::POST, &path, body.clone()).await
        })
        .await;
    }

    async fn ask(&self, method: Method, path: &str, body: Value) -> Value {
        let answer = self.try_ask(method, path, body).await;
        answer.unwrap_or_else(|passing| panic!("{path}: {passing}"))
    }

    /// # Errors
    /// What passes by itself. Everything else ends the test.
    async fn try_ask(&self, method: Method, path: &str, body: Value) -> Result<Value, String> {
        let request = self.http.request(method.clone(), format!("{}{path}", self.session));
        let request = if method == Method::GET { request } else { request.json(&body) };
        let answer = send(request).await.expect("chromedriver answers");
        let value = answer.body["value"].clone();
        if value["error"].as_str().is_some_and(|error| PASSING.contains(&error)) {
            return Err(answer.text);
        }
        assert_eq!(answer.status, 200, "{path} {body}: {}", answer.text);
        Ok(value)
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // It may have ended by itself. What it started is known by its profile.
        let _ = self.driver.kill();
        let _ = self.driver.wait();
        let mark = self.profile.path().display().to_string();
        let all = fs::read_dir("/proc").into_iter().flatten().flatten();
        for id in all.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()) {
            let line = fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
            if String::from_utf8_lossy(&line).contains(&mark) {
                let _ = Command::new("sh").arg("-c").arg(format!("kill -KILL {id}")).status();
            }
        }
    }
}

fn keep(directory: &str, name: &str, taken: &Value) {
    let png = from_base64(taken["data"].as_str().expect("a picture"));
    fs::create_dir_all(directory).expect("the directory for screenshots");
    fs::write(Path::new(directory).join(format!("{name}.png")), png).expect("a screenshot");
}

/// Base64 as browsers write it, without line ends.
fn from_base64(text: &str) -> Vec<u8> {
    let digit = |c: u8| match c {
        b'A'..=b'Z' => Some(c - b'A'),
        b'a'..=b'z' => Some(c - b'a' + 26),
        b'0'..=b'9' => Some(c - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    };
    let (mut bytes, mut bits, mut count) = (Vec::new(), 0_u32, 0_u32);
    for digit in text.bytes().filter_map(digit) {
        bits = bits << 6 | u32::from(digit);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count & 0xff) as u8);
        }
    }
    bytes
}

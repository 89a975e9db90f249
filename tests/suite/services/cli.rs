//! The operator's command line while the service is down, and its exit codes. What its acts do to
//! messages is in `cli_acts`.

use std::process::Stdio;
use std::time::Duration;

use halfmsg_service_kit::db::{DbOptions, begin_write, connect};
use sea_orm::{ConnectionTrait, DbBackend};
use serde_json::Value;
use tokio::process::Command;

use super::process::Process;
use super::shop::settled::VOID_DEADLINE;
use super::shop::{Shop, TOKEN};
use crate::suite::{Env, PATIENCE, until};

const RECEIVED: i64 = 40;
/// So long that no check comes by itself while a test runs.
const NEVER_MS: &str = "600000";
/// One command, on a loaded machine.
const COMMAND_DEADLINE: Duration = PATIENCE;
/// From SIGINT to the end of a command.
const END_DEADLINE: Duration = PATIENCE;
/// PostgreSQL's advisory lock of whoever migrates: "halfmsg" in ASCII.
const MIGRATING: i64 = 0x0068_616c_666d_7367;

/// How a command ended.
#[derive(Debug)]
pub(super) struct Ended {
    code: i32,
    out: String,
    error: String,
}

impl Ended {
    pub(super) fn new(code: i32, out: String, error: String) -> Self {
        Self { code, out, error }
    }

    #[track_caller]
    pub(super) fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{self:?}");
        self
    }

    /// What it said on standard error.
    pub(super) fn error(&self) -> &str {
        &self.error
    }

    /// What it said on standard output.
    pub(super) fn out(&self) -> &str {
        &self.out
    }

    pub(super) fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

pub(super) fn environment(shop: &Shop) -> Vec<(String, String)> {
    let mut environment: Vec<_> = shop.ground.settings().into_iter().collect();
    environment.push(("HALFMSG_GROUP".into(), shop.ground.group.group.clone()));
    environment.push(("USER".into(), "olga".into()));
    environment.push(("HALFMSG_ADMIN_TOKEN".into(), TOKEN.into()));
    environment
}

pub(super) async fn run(environment: &[(String, String)], arguments: &[&str]) -> Ended {
    let child = Command::new(env!("CARGO_BIN_EXE_halfmsg"))
        .args(arguments)
        .env_clear()
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let ended = tokio::time::timeout(COMMAND_DEADLINE, child).await.expect("it ends in time");
    let ended = ended.expect("the program starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let code = ended.status.code().expect("no signal ended it");
    Ended::new(code, text(&ended.stdout), text(&ended.stderr))
}

/// An order whose process died after the deduction is found and committed with the service down;
/// once it runs again, the stock comes back.
pub(crate) async fn cli_settles_while_the_service_is_down(env: Env) {
    let builder = Shop::builder(env).await.order("HALFMSG_CHECK_AFTER_MS", NEVER_MS);
    let mut shop = builder.open().await;
    shop.seed("apple", 100, RECEIVED).await;
    shop.place(&[("apple", 5)]).fault("crash-after-deduct").send_and_lose().await;
    shop.order.process().abort().await;
    let environment = environment(&shop);

    let pending = run(&environment, &["pending", "--output", "json"]).await.expect(0).json();
    let [half] = pending["items"].as_array().expect("a list").as_slice() else {
        panic!("{pending}")
    };
    let id = half["transaction_id"].as_str().expect("an id");
    assert_eq!((&half["state"], &half["purpose"]), (&"open".into(), &"order.rollback".into()));
    assert!(half.get("payload").is_none(), "{half}");
    let listed = run(&environment, &["pending"]).await.expect(0);
    assert!(listed.out.contains(id), "{listed:?}");
    let shown = run(&environment, &["show", id, "--output", "json"]).await.expect(0).json();
    assert!(shown["payload"].as_str().is_some_and(|text| text.contains("apple")), "{shown}");
    assert_eq!(shown["history"][0]["event"], "stored", "{shown}");

    let commit = ["commit", id, "--reason", "the process is dead", "--output", "json"];
    let refused = run(&environment, &commit).await.expect(4);
    assert!(refused.error.contains("needs_force") && refused.error.contains("no listener"));
    let forced = [&commit[..], &["--force"]].concat();
    let done = run(&environment, &forced).await.expect(0).json();
    assert_eq!(done["state"], "committed", "{done}");
    run(&environment, &forced).await.expect(4);
    run(&environment, &["resume", id, "--reason", "again"]).await.expect(4);
    let shown = run(&environment, &["show", id]).await.expect(0);
    assert!(shown.out.contains("by operator olga: the process is dead"), "{shown:?}");
    assert_eq!(shop.available("apple").await, RECEIVED - 5, "nobody carries it out yet");

    shop.restart_orders().await;
    shop.stock_is("apple", RECEIVED).await;
    let url = shop.order_url("");
    let check = ["check", id, "--reason", "to be sure", "--url", url.as_str()];
    run(&environment, &check).await.expect(4);
    let pending = run(&environment, &["pending", "--output", "json"]).await.expect(0).json();
    assert_eq!(pending["items"], serde_json::json!([]));
}

/// What each exit code stands for.
pub(crate) async fn cli_exit_codes_tell_what_happened(env: Env) {
    let shop = Shop::open(env).await;
    let environment = environment(&shop);
    let unknown = "01985f2e-7c1a-7f00-8000-000000000000";
    let run = async |arguments: &[&str]| run(&environment, arguments).await;
    run(&["parked"]).await.expect(0);
    // The embedded broker does not answer what is asked about topics.
    let (seconds, code) = if shop.ground.kafka().embedded { ("5", 5) } else { ("120", 0) };
    run(&["topics", "--timeout-seconds", seconds]).await.expect(code);
    run(&["completion", "bash"]).await.expect(0);
    let database = shop.ground.orders_url();
    run(&["migrate", "order-svc", "--database-url", &database]).await.expect(0);
    run(&["migrate", "order-svc", "--database-url", "nonsense://x"]).await.expect(1);
    for wrong in [
        &["show", "nonsense"][..],
        &["commit", unknown],
        &["check", unknown, "--reason", "x"],
        &["skip", "3", "--reason", "x"],
        &["reset-progress", "0", "--reason", "x", "--to", "nowhere", "--yes"],
        &["reset-progress", "0", "--reason", "x", "--to", "start", "--output", "json"],
        &["pending", "--brokers", "nonsense"],
        &["pending", "--limit", "0"],
        &["watch", "--every", "0"],
        &["watch", "--every", "3601"],
    ] {
        run(wrong).await.expect(2);
    }
    run(&["show", unknown]).await.expect(3);
    run(&["rollback", unknown, "--reason", "x", "--force"]).await.expect(3);
    run(&["pending", "--group", "nobody-has-this-group"]).await.expect(3);
    run(&["skip", "0@0", "--reason", "x"]).await.expect(4);
    run(&["pending", "--brokers", "127.0.0.1:1"]).await.expect(5);
    let closed = ["check", unknown, "--reason", "x", "--url", "http://127.0.0.1:1"];
    run(&closed).await.expect(1);
    let url = shop.order_url("");
    run(&["check", unknown, "--reason", "x", "--url", &url]).await.expect(3);
}

/// Half messages are shown as they come and go, to whoever looks often enough; Ctrl-C ends it in good order.
pub(crate) async fn cli_watches_until_it_is_interrupted(env: Env) {
    let builder = Shop::builder(env).await.order("HALFMSG_CHECK_AFTER_MS", NEVER_MS);
    let shop = builder.open().await;
    shop.seed("apple", 100, RECEIVED).await;
    let environment = environment(&shop);
    let watch = |name: &str, more: &[&str]| {
        let settings = environment.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let arguments = [&["watch", "--output", "json"], more].concat();
        Process::start(&arguments, settings, &shop.ground.directory().join(name))
    };
    let place = async || {
        let lost = shop.place(&[("apple", 4)]).fault("decision-lost").send().await;
        lost.expect(201).transaction_id()
    };
    let mut often = watch("often.log", &[]);
    let id = place().await;
    shows(&often, "new", &id).await;
    let mut seldom = watch("seldom.log", &["--every", "3600"]);
    shows(&seldom, "new", &id).await;
    until(PATIENCE, "its owner to have read it too", async || {
        match shop.half_state(&id).await.as_str() {
            "open" => Ok(()),
            other => Err(other.to_owned()),
        }
    })
    .await;
    shop.settle(&id, "rollback", false).await.expect(200);
    shows(&often, "closed", &id).await;
    let another = place().await;
    shows(&often, "new", &another).await;
    let log = seldom.log();
    assert!(!says(&log, "closed", &id) && !says(&log, "new", &another), "it looked again: {log}");
    for watch in [&mut often, &mut seldom] {
        watch.signal("INT");
        let status = watch.end(END_DEADLINE).await;
        assert!(status.success(), "{status}");
    }
}

/// Waits until a watcher has told of this.
async fn shows(watch: &Process, change: &str, id: &str) {
    until(VOID_DEADLINE, &format!("{id} to be shown as {change}"), async || {
        let log = watch.log();
        if says(&log, change, id) { Ok(()) } else { Err(log) }
    })
    .await;
}

fn says(log: &str, change: &str, id: &str) -> bool {
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut about = lines.filter(|line| line["half"]["transaction_id"] == id);
    about.any(|line| line["change"] == change)
}

/// Each migration is told of, and at the end what was applied and what was there; so is another one that is
/// waited for.
pub(crate) async fn cli_migrates_and_says_what_it_does(env: Env) {
    let database = env.database().await;
    let command = |service: &'static str| ["migrate", service, "--database-url", database.url()];
    let json = [&command("order-svc")[..], &["--output", "json"]].concat();
    let first = run(&[], &json).await.expect(0);
    let done = first.json();
    let names = done["applied"].as_array().expect("a list").clone();
    assert!(names.len() > 3 && names[0] == "o0001_orders", "{done}");
    assert_eq!((&done["service"], &done["present"]), (&"order-svc".into(), &Value::Array(vec![])));
    let said = first.error().lines().map(|line| serde_json::from_str(line).expect("JSON"));
    let said = said.filter(|line: &Value| line.get("waiting").is_none());
    let expected = names.iter().zip(1..).map(|(name, number)| {
        serde_json::json!({ "applying": name, "number": number, "of": names.len() })
    });
    assert_eq!(said.collect::<Vec<_>>(), expected.collect::<Vec<_>>());
    let again = run(&[], &json).await.expect(0);
    assert_eq!(again.json()["applied"], Value::Array(vec![]));
    assert_eq!(again.json()["present"], Value::Array(names));
    assert!(!again.error().contains("applying"), "{again:?}");

    let text = run(&[], &command("stock-svc")).await.expect(0);
    assert!(text.error().contains("halfmsg: applying s0001_stock (1 of "), "{text:?}");
    assert!(text.out.starts_with("the schema is up to date: "), "{text:?}");

    let other = DbOptions { acquire_timeout: PATIENCE, ..DbOptions::default() };
    let other = connect(database.url(), &other).await.expect("the database answers");
    let held = begin_write(&other).await.expect("nobody else writes");
    if other.get_database_backend() == DbBackend::Postgres {
        let lock = format!("SELECT pg_advisory_xact_lock({MIGRATING})");
        held.execute_unprepared(&lock).await.expect("nobody else migrates");
    }
    let directory = tempfile::tempdir().expect("a temporary directory");
    let log = directory.path().join("migrate.log");
    let mut waits = Process::start(&command("order-svc"), [], &log);
    until(PATIENCE, "it to say that it waits", async || {
        let log = waits.log();
        if log.contains("waiting for the database") { Ok(()) } else { Err(log) }
    })
    .await;
    assert_eq!(waits.ended(), None, "{}", waits.log());
    held.rollback().await.expect("it was only a lock");
    let status = waits.end(END_DEADLINE).await;
    assert!(status.success(), "{status}: {}", waits.log());
}

//! Every command in README.md and docs/ is run by a test, or says here why it is not.
//!
//! # Layout
//! - this file: who runs which, and the cases about what goes on the in-process broker
//! - `found`: the commands in the documents; `shell`: running one
//! - [`composed`]: docker-compose.yml; [`compose`]: Compose, which reads it; [`granted`]: access control
//!   lists; [`tools`]: Kafka's other tools
//! - [`own`]: `halfmsg` itself; [`built`]: what cargo builds and runs in the work tree

pub(crate) mod built;
pub(crate) mod compose;
pub(crate) mod composed;
mod found;
pub(crate) mod granted;
pub(crate) mod own;
mod shell;
pub(crate) mod tools;

use std::fs;
use std::path::Path;
use std::process::Stdio;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

use super::cli::environment;
use super::collector::Collector;
use super::launcher::{Launcher, all_gone, descendants};
use super::shop::Shop;
use super::shop::settled::VOID_DEADLINE;
use super::traced::TAKEN_WITHIN_MS;
use crate::suite::turns::alone;
use crate::suite::{Env, PATIENCE, until};
use found::{Block, block, blocks, cases, inline, root};
use shell::Shell;

/// Every case.
const CASES: &str = include_str!("../cases.rs");
/// The id in the documents.
const SOME_ID: &str = "01985f2e-…";
/// So long that no check comes by itself while a test runs.
const NEVER_MS: &str = "600000";

/// Who runs a command.
enum By {
    /// This case.
    Case(&'static str),
    /// A test elsewhere: its file, and what it names there.
    Test(&'static str, &'static str),
    /// None, because of this; what can be known without running it, this case holds.
    Held(&'static str, &'static str),
    /// None, because of this.
    Nobody(&'static str),
}

const NO_ENGINE: By = By::Held(
    "documented_compose_takes_the_commands",
    "it needs a container engine, with which scripts/try-compose runs it",
);
const RUNS_THE_TESTS: By = By::Nobody("it is what runs the tests");

/// Every block: its file, its first line, and who runs it.
const BLOCKS: [(&str, &str, By); 13] = [
    ("README.md", CARGO_RUN, By::Case("documented_long_cargo_run")),
    ("README.md", CURL_FAULT, By::Case("documented_demonstration")),
    ("README.md", CURL_SAGA, By::Case("documented_demonstration")),
    ("README.md", CURL_EVENTS, By::Case("documented_demonstration")),
    ("README.md", OPERATE, By::Case("documented_operators_commands")),
    ("README.md", BENCH, By::Case("documented_bench")),
    ("docs/traces.md", TRACED, By::Case("documented_traces")),
    ("docs/tutorial.md", CARGO_NEW, By::Case("documented_new_crate")),
    ("README.md", "docker compose up --build --wait", NO_ENGINE),
    ("README.md", "scripts/test", RUNS_THE_TESTS),
    ("docs/kafka.md", granted::ACLS, By::Case("documented_acls")),
    ("docs/tutorial.md", "cargo test", By::Test("tutorial/tests/payments.rs", "#[tokio::test]")),
    (
        "docs/tutorial.md",
        "cargo run",
        By::Test("tutorial/tests/tutorial.rs", "the_program_runs_to_its_end"),
    ),
];
/// Commands in the middle of a sentence. Those of `halfmsg` are in [`own`].
const INLINE: [(&str, By); 13] = [
    (CARGO_EXAMPLE, By::Test("producer/tests/examples.rs", "check_back")),
    (CARGO_PORTS, By::Case("launcher_prints_three_lines_that_work")),
    ("docker compose kill", NO_ENGINE),
    ("docker compose start order-svc", NO_ENGINE),
    ("docker compose down", NO_ENGINE),
    ("scripts/test", RUNS_THE_TESTS),
    ("bash .ci/run", RUNS_THE_TESTS),
    ("scripts/try-compose", By::Held("documented_try_compose", "it needs a container engine")),
    (built::BUILD, By::Case("documented_long_cargo_build")),
    (built::BENCH, By::Case("documented_long_cargo_bench")),
    ("kafka-transactions.sh find-hanging", By::Case("documented_kafka_tools")),
    ("kafka-delete-records.sh", By::Case("documented_kafka_tools")),
    ("promtool test rules", By::Case("measured_rules_fire_and_stay_silent")),
];
const CARGO_EXAMPLE: &str = "cargo run -p halfmsg-producer --example check_back";
const CARGO_PORTS: &str = "cargo run -- --order-port 9080 --stock-port 9081";
const CARGO_RUN: &str = "cargo run";
const CURL_FAULT: &str = "curl -i http://127.0.0.1:8080/orders -H 'Content-Type: application/json' -H 'X-Fault: after-deduct' \\";
const CURL_SAGA: &str =
    "curl -i http://127.0.0.1:8080/orders -H 'Content-Type: application/json' \\";
const CURL_EVENTS: &str = "curl -N http://127.0.0.1:8080/events";
const OPERATE: &str = "halfmsg pending";
const BENCH: &str = "cargo run --release -- bench --brokers 127.0.0.1:9092";
const TRACED: &str = "OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:4318 cargo run";
const CARGO_NEW: &str = "cargo new --lib payments && cd payments";

/// A new command needs a line in a table above; a line without a command is old.
pub(crate) async fn documented_commands_are_known(_: Env) {
    let blocks = blocks();
    for block in &blocks {
        let known = BLOCKS.iter().filter(|(file, first, _)| block.is(file, first)).count();
        assert_eq!(known, 1, "who runs this block of {}: {}", block.file, block.text);
    }
    for (file, first, by) in &BLOCKS {
        assert!(blocks.iter().any(|block| block.is(file, first)), "{file} has no '{first}'");
        by.exists();
    }
    let inline = inline();
    for (file, command) in &inline {
        // What stands in a block, too, is known from there.
        let is_known = INLINE.iter().any(|(known, _)| known == command)
            || BLOCKS.iter().any(|(_, first, _)| first == command);
        assert!(is_known, "who runs this command of {file}: {command}");
    }
    own::are_known();
    for (command, by) in &INLINE {
        assert!(inline.iter().any(|(_, found)| found == command), "no document has '{command}'");
        by.exists();
    }
}

/// What docs/ names as its evidence is a case.
pub(crate) async fn documented_evidence_exists(_: Env) {
    for (file, name) in cases() {
        let begin = name.trim_end_matches('…');
        let mut all = CASES.lines().map(str::trim);
        assert!(all.any(|case| case.starts_with(begin)), "{file}: there is no case {name}");
    }
}

impl By {
    fn exists(&self) {
        let is_case = |case| CASES.lines().any(|line| line.trim() == case);
        match *self {
            Self::Case(case) | Self::Held(case, _) => assert!(is_case(case), "no case {case}"),
            Self::Test(file, name) => {
                let text = fs::read_to_string(root().join(file)).expect("the file of a test");
                assert!(text.contains(name), "{file} has no {name}");
            }
            Self::Nobody(_) => {}
        }
        if let Self::Held(_, why) | Self::Nobody(why) = self {
            assert!(!why.is_empty(), "no reason");
        }
    }
}

/// The three blocks of the demonstration, one command after the other.
async fn demonstration(launcher: &Launcher) {
    let address = |url: String| url.split('/').nth(2).expect("an address").to_owned();
    let order = address(launcher.printed_url("Half messages:"));
    let stock = address(launcher.printed_url("Stock:"));
    let mut shell = Shell::with(&[("127.0.0.1:8080", &order), ("127.0.0.1:8081", &stock)]);

    let expected: [&[&str]; 3] = [
        &["HTTP/1.1 500", "after_deduct_failed"],
        &[r#"{"sku":"apple","available":100}"#],
        &[r#"{"items":[],"next_cursor":null,"missing_partitions":[]}"#],
    ];
    in_order(&shell, &block("README.md", CURL_FAULT), &expected).await;

    let saga = block("README.md", CURL_SAGA).commands();
    let [place, find, cancel, report] = &saga[..] else { panic!("four commands: {saga:?}") };
    let said = shell.says(place, &["HTTP/1.1 202", "pending_stock", "location: /orders/"]).await;
    let (_, body) = said.split_once("\r\n\r\n").expect("a body behind the head");
    let body = &body[body.find('{').expect("JSON")..=body.rfind('}').expect("its end")];
    let order: Value = serde_json::from_str(body).expect("an order");
    shell.put_in.push((SOME_ID.into(), order["id"].as_str().expect("an id").into()));
    shell.says(find, &[r#""status":"confirmed""#]).await;
    shell.says(cancel, &[r#""status":"cancelled""#]).await;
    shell.says(report, &[r#""sku":"apple""#, r#""cancelled":{"quantity":1,"#]).await;

    // It goes on until it is stopped.
    let mut child = shell.command(CURL_EVENTS).stdout(Stdio::piped()).spawn().expect("bash starts");
    let mut lines = BufReader::new(child.stdout.take().expect("its output")).lines();
    let greeted = async {
        while let Some(line) = lines.next_line().await.expect("text") {
            if line == "event: hello" {
                return;
            }
        }
        panic!("the stream ended without a greeting");
    };
    tokio::time::timeout(PATIENCE, greeted).await.expect("a greeting");
    child.kill().await.expect("curl can be stopped");
}

async fn in_order(shell: &Shell, block: &Block, expected: &[&[&str]]) {
    let commands = block.commands();
    assert_eq!(commands.len(), expected.len(), "{commands:?}");
    for (command, expected) in commands.iter().zip(expected) {
        shell.says(command, expected).await;
    }
}

/// What README.md lets one try, against the demonstration.
pub(crate) async fn documented_demonstration(_: Env) {
    let _alone = alone().await;
    let launcher = Launcher::ready().await;
    demonstration(&launcher).await;
}

/// `cargo run` itself: it builds, gets ready, does what README.md says, and ends by Ctrl-C with nothing
/// left behind. What is built is what the tests are built from, with their features.
pub(crate) async fn documented_long_cargo_run(_: Env) {
    let _alone = alone().await;
    let commands = block("README.md", CARGO_RUN).commands();
    let words: Vec<&str> = commands[0].split_whitespace().collect();
    assert_eq!((commands.len(), words[0]), (1, "cargo"), "{commands:?}");
    let mut launcher = Launcher::by_cargo(&words[1..]).await;
    let children = descendants(launcher.process.id());
    assert_eq!(children.len(), 2, "both services: {children:?}");
    demonstration(&launcher).await;
    launcher.process.signal("INT");
    let status = launcher.process.end(PATIENCE).await;
    assert!(status.success(), "{status}");
    all_gone(&children).await;
}

/// With the variable of docs/traces.md, spans of an order reach the collector.
pub(crate) async fn documented_traces(_: Env) {
    let _alone = alone().await;
    let commands = block("docs/traces.md", TRACED).commands();
    let (assignment, program) = commands[0].split_once(' ').expect("a variable, then a command");
    let (name, url) = assignment.split_once('=').expect("name and value");
    assert_eq!((program, url), (CARGO_RUN, "http://127.0.0.1:4318"));
    let collector = Collector::start().await;
    let within = ("OTEL_EXPORTER_OTLP_TIMEOUT", TAKEN_WITHIN_MS);
    let launcher = Launcher::with(&[(name, &collector.url), within]).await;
    demonstration(&launcher).await;
    until(PATIENCE, "the span of the request", async || {
        let spans = collector.spans();
        spans.iter().any(|span| span.name == "POST /orders").then_some(()).ok_or(spans.len())
    })
    .await;
}

/// The operators' commands of README.md, while two messages wait for them.
pub(crate) async fn documented_operators_commands(env: Env) {
    let builder = Shop::builder(env).await.order("HALFMSG_CHECK_AFTER_MS", NEVER_MS);
    let mut shop = builder.open().await;
    shop.seed("apple", 100, 10).await;
    shop.place(&[("apple", 2)]).fault("crash-after-deduct").send_and_lose().await;
    shop.survive_crash().await;
    let dead = until(VOID_DEADLINE, "the half message of the dead process", async || {
        let open = shop.halves("open").await?;
        open.first()
            .and_then(|half| half["transaction_id"].as_str().map(str::to_owned))
            .ok_or("none".to_owned())
    })
    .await;
    let lost = shop.place(&[("apple", 1)]).fault("decision-lost").send().await.expect(201);
    let lost = lost.transaction_id();
    shop.half_is(&lost, "open").await;

    let commands = block("README.md", OPERATE).commands();
    let [pending, parked, show, commit, check, watch] = &commands[..] else {
        panic!("six commands: {commands:?}")
    };
    let service = shop.order_url("");
    let about = |id: &str| Shell {
        environment: environment(&shop),
        ..Shell::with(&[(SOME_ID, id), ("http://127.0.0.1:8080", &service)])
    };
    // It goes on until Ctrl-C, and tells of what the others do.
    let seen = shop.ground.directory().join("watch.txt");
    let output = fs::File::create(&seen).expect("a file for what is told");
    let mut watching =
        about(&dead).command(&format!("exec {watch}")).stdout(output).spawn().expect("bash");
    about(&dead).says(pending, &[&dead, &lost]).await;
    about(&dead).says(parked, &[]).await;
    about(&dead).says(show, &[&dead, "stored"]).await;
    tells(&seen, &dead).await;
    about(&dead).says(commit, &[&dead, "committed"]).await;
    about(&lost).says(check, &[&lost]).await;
    assert_eq!(shop.half_ends(&lost).await, "rolled_back");
    shop.stock_is("apple", 9).await;
    let id = watching.id().expect("it runs");
    let sent = Command::new("sh").arg("-c").arg(format!("kill -INT {id}")).status().await;
    assert!(sent.is_ok_and(|status| status.success()));
    let ended = tokio::time::timeout(PATIENCE, watching.wait()).await.expect("it ends");
    assert!(ended.is_ok_and(|status| status.success()));
}

async fn tells(file: &Path, of: &str) {
    until(PATIENCE, "the watcher to tell", async || {
        let told = fs::read_to_string(file).unwrap_or_default();
        if told.contains(of) { Ok(()) } else { Err(told) }
    })
    .await;
}

/// The measurement, with less to measure.
pub(crate) async fn documented_bench(env: Env) {
    let _alone = alone().await;
    let commands = block("README.md", BENCH).commands();
    let brokers = env.kafka().brokers;
    let put_in = [("cargo run --release --", "halfmsg"), ("127.0.0.1:9092", brokers.as_str())];
    let small = "--runs 1 --transactions 2000 --latency-seconds 1 --halves 200";
    let command = commands[0].replace("      #", &format!(" {small} #"));
    assert!(command.contains(small), "{command}");
    let ended = Shell::with(&put_in).run(&command).await;
    assert_eq!(ended.code, Some(0), "{}", ended.said);
    for figure in ["exactly-once", "low load p50 ms", "70 % load p99 ms", "\n  checks  "] {
        assert!(ended.said.contains(figure), "{figure}: {}", ended.said);
    }
}

/// The crate that the tutorial begins with.
pub(crate) async fn documented_new_crate(_: Env) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let shell = Shell { directory: Some(directory.path().into()), ..Shell::with(&[]) };
    let commands = block("docs/tutorial.md", CARGO_NEW).commands();
    assert_eq!(commands.len(), 1, "{commands:?}");
    let ended = shell.run(&format!("{} && ls src", commands[0])).await;
    assert_eq!(ended.code, Some(0), "{}", ended.said);
    assert!(ended.said.starts_with("lib.rs\n"), "{}", ended.said);
}

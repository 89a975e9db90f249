//! Every command in README.md and docs/ is run by a test, or says here why it is not. Commands run in
//! a shell, as they stand: only addresses, and the id that a command before has printed, are put in.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

use super::cli::environment;
use super::collector::Collector;
use super::heavy::alone;
use super::launcher::{END_WITHIN, Launcher, all_gone, descendants};
use super::shop::Shop;
use super::shop::settled::VOID_DEADLINE;
use crate::suite::{Env, PATIENCE, until};

/// What a block is opened by in which commands stand.
const SHELL: [&str; 4] = ["sh", "bash", "shell", "console"];
/// Everything else that a block may be.
const OTHERS: [&str; 2] = ["rust", "toml"];
/// The id in the documents.
const SOME_ID: &str = "01985f2e-…";
/// One command.
const COMMAND_DEADLINE: Duration = Duration::from_secs(120);
/// So long that no check comes by itself while a test runs.
const NEVER_MS: &str = "600000";

/// Who runs a block.
enum By {
    /// This case.
    Case(&'static str),
    /// None, because of this.
    Nobody(&'static str),
}

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
    ("README.md", "docker compose up --build --wait", By::Nobody("it needs a container engine")),
    ("README.md", "scripts/test", By::Nobody("it is what runs the tests")),
    ("docs/kafka.md", ACLS, By::Nobody("the tests of rights grant what its table says")),
    ("docs/tutorial.md", "cargo test", By::Nobody("tutorial/tests are these tests")),
    ("docs/tutorial.md", "cargo run", By::Nobody("tutorial/tests/tutorial.rs runs the program")),
];
const ACLS: &str = "kafka-acls.sh --bootstrap-server … --add --allow-principal User:orders \\";
const CARGO_RUN: &str = "cargo run";
const CURL_FAULT: &str = "curl -i http://127.0.0.1:8080/orders -H 'Content-Type: application/json' -H 'X-Fault: after-deduct' \\";
const CURL_SAGA: &str =
    "curl -i http://127.0.0.1:8080/orders -H 'Content-Type: application/json' \\";
const CURL_EVENTS: &str = "curl -N http://127.0.0.1:8080/events";
const OPERATE: &str = "halfmsg pending";
const BENCH: &str = "cargo run --release -- bench --brokers 127.0.0.1:9092";
const TRACED: &str = "OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:4318 cargo run";
const CARGO_NEW: &str = "cargo new --lib payments && cd payments";

/// Commands as they stand in a document.
#[derive(Debug)]
struct Block {
    file: String,
    text: String,
}

impl Block {
    fn first_line(&self) -> &str {
        self.text.lines().next().unwrap_or_default()
    }

    fn is(&self, file: &str, first: &str) -> bool {
        let line = self.first_line();
        let rest = line.strip_prefix(first).map(str::trim_start);
        // A comment may follow.
        self.file == file && rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('#'))
    }

    /// One command each; a line that ends with a backslash goes on.
    fn commands(&self) -> Vec<String> {
        let joined = self.text.replace("\\\n", " ");
        joined.lines().filter(|line| !line.trim().is_empty()).map(str::to_owned).collect()
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn documents() -> Vec<PathBuf> {
    let mut found = vec![root().join("README.md")];
    let mut directories = vec![root().join("docs")];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).expect("a directory of documents") {
            let path = entry.expect("an entry of a directory").path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                found.push(path);
            }
        }
    }
    found
}

fn blocks() -> Vec<Block> {
    let mut found = Vec::new();
    for path in documents() {
        let text = fs::read_to_string(&path).expect("a document");
        let file = path.strip_prefix(root()).expect("it is below the root").display().to_string();
        let mut lines = text.lines();
        while let Some(line) = lines.next() {
            let Some(fence) = line.trim_start().strip_prefix("```") else { continue };
            let kind = fence.split(' ').next().unwrap_or_default();
            let inner = lines.by_ref().take_while(|line| line.trim_start() != "```");
            let text = inner.collect::<Vec<_>>().join("\n");
            let is_shell = SHELL.contains(&kind);
            assert!(is_shell || OTHERS.contains(&kind), "{file}: a block of '{kind}': {text}");
            if is_shell {
                found.push(Block { file: file.clone(), text });
            }
        }
    }
    found
}

fn block(file: &str, first: &str) -> Block {
    let mut found = blocks().into_iter().filter(|block| block.is(file, first));
    let block = found.next().unwrap_or_else(|| panic!("{file} has no block '{first}'"));
    assert!(found.next().is_none(), "{file} has two blocks '{first}'");
    block
}

/// A new block needs a line in the table above; a line without a block is old.
pub(crate) async fn documented_commands_are_known(_: Env) {
    let blocks = blocks();
    for block in &blocks {
        let known = BLOCKS.iter().filter(|(file, first, _)| block.is(file, first)).count();
        assert_eq!(known, 1, "who runs this block of {}: {}", block.file, block.text);
    }
    let cases = include_str!("../cases.rs");
    for (file, first, by) in &BLOCKS {
        assert!(blocks.iter().any(|block| block.is(file, first)), "{file} has no '{first}'");
        match by {
            By::Case(case) => assert!(cases.contains(case), "no such case: {case}"),
            By::Nobody(why) => assert!(!why.is_empty(), "{file}, {first}: no reason"),
        }
    }
}

/// How a command ended.
#[derive(Debug)]
struct Ended {
    code: Option<i32>,
    said: String,
}

/// A shell with what a command of a document needs around it.
struct Shell {
    environment: Vec<(String, String)>,
    /// What is put in: in the documents, here.
    put_in: Vec<(String, String)>,
    directory: Option<PathBuf>,
}

impl Shell {
    fn with(put_in: &[(&str, &str)]) -> Self {
        let owned = |(from, to): &(&str, &str)| ((*from).to_owned(), (*to).to_owned());
        let put_in = put_in.iter().map(owned).collect();
        Self { environment: Vec::new(), put_in, directory: None }
    }

    fn command(&self, line: &str) -> Command {
        let mut line = line.to_owned();
        for (from, to) in &self.put_in {
            line = line.replace(from, to);
        }
        assert!(!line.contains('…'), "something is left to be put in: {line}");
        let program = Path::new(env!("CARGO_BIN_EXE_halfmsg"));
        let beside = program.parent().expect("a directory").display().to_string();
        let mut command = Command::new("bash");
        command.arg("-c").arg(line).kill_on_drop(true).stdin(Stdio::null());
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{beside}:{path}"));
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        if let Some(directory) = &self.directory {
            command.current_dir(directory);
        }
        command
    }

    async fn run(&self, line: &str) -> Ended {
        let output = tokio::time::timeout(COMMAND_DEADLINE, self.command(line).output()).await;
        let output = output.unwrap_or_else(|_| panic!("it does not end: {line}"));
        let output = output.expect("bash starts");
        let said = [output.stdout, output.stderr].concat();
        Ended { code: output.status.code(), said: String::from_utf8_lossy(&said).into_owned() }
    }

    /// Runs it, and if it only asks, again until it says this.
    async fn says(&self, line: &str, expected: &[&str]) -> String {
        let look = async || {
            let Ended { code, said } = self.run(line).await;
            let missing = expected.iter().find(|part| !said.contains(**part));
            match (code, missing) {
                (Some(0), None) => Ok(said),
                (code, missing) => Err(format!("{code:?}, without {missing:?}: {said}")),
            }
        };
        if line.contains(" -d ") || line.contains("-X POST") || line.contains("--reason") {
            return look().await.unwrap_or_else(|instead| panic!("{line}: {instead}"));
        }
        until(VOID_DEADLINE, line, look).await
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
        &[r#"{"items":[],"next_cursor":null}"#],
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
    let status = launcher.process.end(END_WITHIN).await;
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
    let launcher = Launcher::with(&[(name, &collector.url)]).await;
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
    let ended = tokio::time::timeout(END_WITHIN, watching.wait()).await.expect("it ends");
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
    let small = "--runs 1 --transactions 2000 --latency-seconds 0 --halves 200";
    let command = commands[0].replace("      #", &format!(" {small} #"));
    assert!(command.contains(small), "{command}");
    let ended = Shell::with(&put_in).run(&command).await;
    assert_eq!(ended.code, Some(0), "{}", ended.said);
    assert!(ended.said.contains("exactly-once"), "{}", ended.said);
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

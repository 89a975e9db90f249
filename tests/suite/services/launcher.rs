//! `halfmsg` without a command, as a newcomer runs it: ready at once, three lines to paste, and
//! nothing left behind.

use std::collections::BTreeSet;
use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use reqwest::Client;
use serde_json::{Value, json};

use super::http::{Answer, client, send};
use super::process::Process;
use super::shop::settled::VOID_DEADLINE;
use super::shop::{CHECKED_SOON, UNHURRIED};
use crate::suite::turns::alone;
use crate::suite::{Env, PATIENCE, until};

/// From a finished build to its three lines.
const READY_WITHIN: Duration = Duration::from_secs(10);
/// So often a machine may stand still while one of these times runs.
const TRIES: u32 = 5;
/// From `cargo run` to them: this repository's own packages may be built anew.
const BUILD_WITHIN: Duration = Duration::from_secs(1_800);
const FREE_PORTS: [&str; 4] = ["--order-port", "0", "--stock-port", "0"];
/// From Ctrl-C to its end: as long as Docker gives a container by default.
const END_WITHIN: Duration = Duration::from_secs(10);

/// The launcher, its printed lines, and a directory for what it makes.
pub(super) struct Launcher {
    pub(super) process: Process,
    http: Client,
    // Last: it is deleted when the process has ended.
    directory: tempfile::TempDir,
}

impl Launcher {
    /// Starts it on free ports and waits until it says that it is ready.
    pub(super) async fn ready() -> Self {
        Self::with(&[]).await
    }

    /// The same in this environment. One start in a few must be as quick as is promised.
    pub(super) async fn with(environment: &[(&str, &str)]) -> Self {
        for _ in 0..TRIES {
            let began = Instant::now();
            let launcher = Self::start(environment).says_so(PATIENCE).await;
            if began.elapsed() < READY_WITHIN {
                return launcher;
            }
        }
        panic!("{TRIES} starts in a row took longer than {READY_WITHIN:?}")
    }

    fn start(environment: &[(&str, &str)]) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let log = directory.path().join("launcher.log");
        let temporary = directory.path().to_str().expect("a path of text").to_owned();
        // The answers to the printed lines would be others with times that a machine outsleeps.
        let environment = UNHURRIED.iter().copied().chain(environment.iter().copied());
        let environment = environment.chain([("TMPDIR", temporary.as_str())]);
        let process = Process::start(&FREE_PORTS, environment, &log);
        Self { process, http: client(), directory }
    }

    /// By cargo, which may have to build it: in the work tree, as a person types it, with the features
    /// of the tests.
    pub(super) async fn by_cargo(words: &[&str]) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let log = directory.path().join("launcher.log");
        let mut command = Command::new(env!("CARGO"));
        command.args(words).current_dir(env!("CARGO_MANIFEST_DIR"));
        if cfg!(feature = "tls") {
            command.args(["--features", "tls"]);
        }
        command.arg("--").args(FREE_PORTS).envs(UNHURRIED.iter().copied()).stdin(Stdio::null());
        let process = Process::of(command, "cargo run", &log);
        Self { process, http: client(), directory }.says_so(BUILD_WITHIN).await
    }

    async fn says_so(mut self, within: Duration) -> Self {
        let began = Instant::now();
        until(within, "the launcher to be ready", async || {
            if let Some(status) = self.process.ended() {
                panic!("it ended instead: {status}: {}", self.process.log());
            }
            if self.process.log().contains("The life of each half message") {
                Ok(())
            } else {
                Err("it has not said so")
            }
        })
        .await;
        println!("ready after {:?}", began.elapsed());
        self
    }

    /// The lines to paste.
    fn curls(&self) -> Vec<Curl> {
        self.process
            .log()
            .lines()
            .filter(|line| line.starts_with("curl -i "))
            .map(Curl::parse)
            .collect()
    }

    /// The address that a printed line begins with, such as `Stock:         curl http://…`.
    pub(super) fn printed_url(&self, name: &str) -> String {
        let log = self.process.log();
        let line = log.lines().find(|line| line.starts_with(name)).expect("a printed line");
        line.split_whitespace().last().expect("an address").to_owned()
    }

    async fn apples(&self) -> i64 {
        let answer = send(self.http.get(self.printed_url("Stock:"))).await.expect("an answer");
        answer.expect(200).body["available"].as_i64().expect("a number")
    }

    async fn apples_become(&self, expected: i64) {
        until(VOID_DEADLINE, &format!("{expected} apples"), async || {
            let available = self.apples().await;
            if available == expected { Ok(()) } else { Err(format!("{available} are there")) }
        })
        .await;
    }
}

/// A printed curl line, taken apart as a shell would.
#[derive(Debug)]
struct Curl {
    url: String,
    headers: Vec<(String, String)>,
    body: String,
}

impl Curl {
    fn parse(line: &str) -> Self {
        let mut words = words(line).into_iter().skip(1);
        let mut curl = Self { url: String::new(), headers: Vec::new(), body: String::new() };
        while let Some(word) = words.next() {
            let mut value = || words.next().expect("an option has a value");
            match word.as_str() {
                "-i" => {}
                "-d" => curl.body = value(),
                "-H" => {
                    let header = value();
                    let (name, value) = header.split_once(": ").expect("a header");
                    curl.headers.push((name.into(), value.into()));
                }
                url => curl.url = url.into(),
            }
        }
        curl
    }

    async fn run(&self, http: &Client) -> Result<Answer, reqwest::Error> {
        let request = http.post(&self.url).body(self.body.clone());
        let with = |request: reqwest::RequestBuilder, (name, value): &(String, String)| {
            request.header(name, value)
        };
        send(self.headers.iter().fold(request, with)).await
    }
}

/// Words as a shell splits them, with single quotes and nothing else.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quoted) = (Vec::new(), String::new(), false);
    for c in line.chars() {
        match c {
            '\'' => quoted = !quoted,
            ' ' if !quoted => words.push(std::mem::take(&mut word)),
            c => word.push(c),
        }
    }
    words.push(word);
    words.retain(|word| !word.is_empty());
    words
}

/// The three printed lines do what the text beside them says.
pub(crate) async fn launcher_prints_three_lines_that_work(_: Env) {
    let _alone = alone().await;
    // One of them is settled by a check-back.
    let mut launcher = Launcher::with(CHECKED_SOON).await;
    let [ok, fails, dies] = <[Curl; 3]>::try_from(launcher.curls()).expect("three lines");
    assert_eq!(launcher.apples().await, 100);
    let created = ok.run(&launcher.http).await.expect("an answer").expect(201);
    assert_eq!(created.body["status"], "confirmed");
    assert_eq!(launcher.apples().await, 99);
    let failed = fails.run(&launcher.http).await.expect("an answer");
    failed.expect_problem(500, "after_deduct_failed");
    launcher.apples_become(99).await;

    let before = descendants(launcher.process.id());
    let answer = dies.run(&launcher.http).await;
    assert!(answer.is_err(), "the service dies, but: {answer:?}");
    until(VOID_DEADLINE, "order-svc to be started again", async || {
        let now = descendants(launcher.process.id());
        let (gone, new) = (before.difference(&now).count(), now.difference(&before).count());
        if (gone, new) == (1, 1) { Ok(()) } else { Err(format!("{before:?}, now {now:?}")) }
    })
    .await;
    assert!(launcher.process.log().contains("order-svc died"));
    until(VOID_DEADLINE, "the dead order to be void", async || {
        let list = send(launcher.http.get(format!("{}?status=void", dies.url))).await;
        let list = list.map_err(|error| error.to_string())?;
        let reasons: Vec<_> = list.body["items"].as_array().into_iter().flatten().collect();
        let fenced = |order: &&&Value| order["reason"] == "fenced";
        if reasons.iter().any(|order| fenced(&order)) { Ok(()) } else { Err(list.text) }
    })
    .await;
    launcher.apples_become(99).await;
    let halves = send(launcher.http.get(launcher.printed_url("Half messages:"))).await;
    assert_eq!(halves.expect("an answer").expect(200).body["items"], json!([]));
    assert!(launcher.process.ended().is_none(), "the launcher lives");
}

/// Ctrl-C ends everything at once and leaves no process and no directory behind.
pub(crate) async fn launcher_ends_by_interrupt(_: Env) {
    let _alone = alone().await;
    for _ in 0..TRIES {
        if interrupted().await < END_WITHIN {
            return;
        }
    }
    panic!("{TRIES} ends in a row took longer than {END_WITHIN:?}");
}

/// How long it took.
async fn interrupted() -> Duration {
    let mut launcher = Launcher::ready().await;
    let children = descendants(launcher.process.id());
    assert_eq!(children.len(), 2, "both services: {children:?}");
    let began = Instant::now();
    launcher.process.signal("INT");
    let status = launcher.process.end(PATIENCE).await;
    let took = began.elapsed();
    assert!(status.success(), "{status}");
    all_gone(&children).await;
    let left = fs::read_dir(launcher.directory.path()).expect("the directory").flatten();
    let left: Vec<_> = left.map(|entry| entry.file_name()).collect();
    assert_eq!(left, ["launcher.log"], "its databases are deleted");
    took
}

/// A launcher that is killed cannot clean up, and its services end all the same.
pub(crate) async fn launcher_killed_leaves_no_process(_: Env) {
    let _alone = alone().await;
    let mut launcher = Launcher::ready().await;
    let children = descendants(launcher.process.id());
    assert_eq!(children.len(), 2, "both services: {children:?}");
    launcher.process.kill();
    all_gone(&children).await;
}

pub(super) async fn all_gone(processes: &BTreeSet<u32>) {
    until(PATIENCE, "the services to end", async || {
        let left: Vec<_> = processes.iter().filter(|id| parent(**id).is_some()).collect();
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?} are there")) }
    })
    .await;
}

/// Every process below this one.
pub(super) fn descendants(of: u32) -> BTreeSet<u32> {
    let all = fs::read_dir("/proc").expect("Linux's list of processes").flatten();
    let all = all.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let parents: Vec<_> = all.filter_map(|id| Some((id, parent(id)?))).collect();
    let mut found = BTreeSet::new();
    let mut wanted = vec![of];
    while let Some(wants) = wanted.pop() {
        for (id, _) in parents.iter().filter(|(_, parent)| *parent == wants) {
            if found.insert(*id) {
                wanted.push(*id);
            }
        }
    }
    found
}

/// The parent of a living process; a zombie has ended.
fn parent(id: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    // The name before it may contain anything, spaces and parentheses too.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    let state = fields.next()?;
    if state == "Z" || state == "X" { None } else { fields.next()?.parse().ok() }
}

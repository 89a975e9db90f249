//! What cargo builds and runs by a command of a document, in the work tree: in the profile of the tests,
//! so that nothing is built twice.

use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

use super::found::{inline, root};
use crate::suite::Env;
use crate::suite::turns::alone;

pub(super) const BUILD: &str = "cargo build --release --features tls";
pub(super) const BENCH: &str = "cargo bench -p halfmsg-protocol";
/// This repository's own packages may be built anew.
const DEADLINE: Duration = Duration::from_secs(1_800);
/// The benchmarks of protocol/benches.
const BENCHMARKS: [&str; 2] = ["resolver_core/", "codec/"];

/// Runs a command of a document, with more words behind it.
async fn cargo(command: &str, more: &[&str]) -> String {
    let mut words = command.split_whitespace().filter(|word| *word != "--release");
    assert_eq!(words.next(), Some("cargo"));
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(words).args(more).current_dir(root()).stdin(Stdio::null()).kill_on_drop(true);
    let ended = tokio::time::timeout(DEADLINE, cargo.output()).await;
    let ended = ended.unwrap_or_else(|_| panic!("it does not end: {command}"));
    let ended = ended.expect("cargo starts");
    let text = [ended.stdout, ended.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(ended.status.success(), "{command}: {text}");
    text
}

#[track_caller]
fn is_documented(command: &str) {
    assert!(inline().iter().any(|(_, found)| found == command), "no document has '{command}'");
}

/// The benchmarks: each body runs once, and nothing is measured.
pub(crate) async fn documented_long_cargo_bench(_: Env) {
    let _alone = alone().await;
    is_documented(BENCH);
    let said = cargo(BENCH, &["--profile", "dev", "--", "--test"]).await;
    for name in BENCHMARKS {
        assert!(said.contains(&format!("Testing {name}")), "{name} did not run: {said}");
    }
}

/// The build for Kafka with TLS and SCRAM.
#[cfg(feature = "tls")]
pub(crate) async fn documented_long_cargo_build(_: Env) {
    let _alone = alone().await;
    is_documented(BUILD);
    cargo(BUILD, &[]).await;
}

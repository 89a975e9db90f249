//! A command of ours as a person runs it: on a terminal, with standard output in a file.

use std::process::Stdio;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::cli::Ended;
use crate::suite::PATIENCE;

/// Runs it on a terminal of its own, where somebody types this. What is shown there is its standard
/// error, as the terminal got it.
pub(super) async fn run(
    environment: &[(String, String)],
    arguments: &[&str],
    typed: &str,
) -> Ended {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (out, shown) = (directory.path().join("out"), directory.path().join("shown"));
    let quoted = |text: &&str| format!("'{}'", text.replace('\'', r"'\''"));
    let arguments: Vec<String> = arguments.iter().map(quoted).collect();
    let line = format!("stty columns 120; exec \"$PROGRAM\" {} >\"$OUT\"", arguments.join(" "));
    let mut script = Command::new("script");
    script.args(["--quiet", "--return", "--command", &line]).arg(&shown);
    script.env_clear().envs(environment.iter().map(|(name, value)| (name, value)));
    script.env("PATH", std::env::var_os("PATH").unwrap_or_default());
    script.env("PROGRAM", env!("CARGO_BIN_EXE_halfmsg")).env("OUT", &out).env("TERM", "xterm");
    script.stdin(Stdio::piped()).stdout(Stdio::null()).kill_on_drop(true);
    let mut child = script.spawn().expect("script starts: Debian has it in bsdutils");
    let mut typing = child.stdin.take().expect("it is piped");
    typing.write_all(typed.as_bytes()).await.expect("a terminal takes it");
    let ended = tokio::time::timeout(PATIENCE, child.wait()).await.expect("it ends in time");
    drop(typing);
    let code = ended.expect("it can be waited for").code().expect("no signal ended it");
    let text =
        |path| String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned();
    Ended::new(code, text(&out), text(&shown))
}

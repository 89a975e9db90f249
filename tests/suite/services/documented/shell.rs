//! Runs a command of a document in a shell, as it stands: only what the document leaves open, and
//! addresses, are put in.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

use crate::suite::services::shop::settled::VOID_DEADLINE;
use crate::suite::until;

/// One command.
const COMMAND_DEADLINE: Duration = Duration::from_secs(120);

/// How a command ended.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) code: Option<i32>,
    pub(super) said: String,
}

/// A shell with what a command of a document needs around it.
pub(super) struct Shell {
    pub(super) environment: Vec<(String, String)>,
    /// What is put in: in the documents, here.
    pub(super) put_in: Vec<(String, String)>,
    pub(super) directory: Option<PathBuf>,
}

impl Shell {
    pub(super) fn with(put_in: &[(&str, &str)]) -> Self {
        let owned = |(from, to): &(&str, &str)| ((*from).to_owned(), (*to).to_owned());
        let put_in = put_in.iter().map(owned).collect();
        Self { environment: Vec::new(), put_in, directory: None }
    }

    pub(super) fn command(&self, line: &str) -> Command {
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

    pub(super) async fn run(&self, line: &str) -> Ended {
        let output = tokio::time::timeout(COMMAND_DEADLINE, self.command(line).output()).await;
        let output = output.unwrap_or_else(|_| panic!("it does not end: {line}"));
        let output = output.expect("bash starts");
        let said = [output.stdout, output.stderr].concat();
        Ended { code: output.status.code(), said: String::from_utf8_lossy(&said).into_owned() }
    }

    /// Runs it, and if it only asks, again until it says this.
    pub(super) async fn says(&self, line: &str, expected: &[&str]) -> String {
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

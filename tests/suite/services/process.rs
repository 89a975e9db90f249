//! A child process of a test. It never outlives the test, and its log is shown when the test fails.

use std::fs::{self, File, OpenOptions};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use crate::suite::{PATIENCE, until};

/// Lines of a log that are shown when a test fails.
const SHOWN_LINES: usize = 150;
/// From SIGKILL, or an abort, to the end of the process.
const DEATH_DEADLINE: Duration = PATIENCE;
/// SIGABRT, as `std::process::abort` raises it.
const SIGABRT: i32 = 6;

/// A running `halfmsg`, with a pipe as its standard input: a service that watches it
/// (`HALFMSG_PARENT_PIPE`) ends even if this process is killed.
pub(crate) struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts the program. Of this process's environment it gets only `PATH`; what it prints is
    /// added to `log`.
    pub(crate) fn start<'a>(
        arguments: &[&str],
        environment: impl IntoIterator<Item = (&'a str, &'a str)>,
        log: &Path,
    ) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_halfmsg"));
        command
            .args(arguments)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .envs(environment)
            .stdin(Stdio::piped());
        Self::of(command, &format!("halfmsg {}", arguments.join(" ")), log)
    }

    /// Starts this command.
    pub(crate) fn of(mut command: Command, name: &str, log: &Path) -> Self {
        let output = open(log);
        let errors = output.try_clone().expect("a second handle of the log");
        let child = command.stdout(output).stderr(errors).spawn().expect("the program starts");
        Self { name: name.to_owned(), child, log: log.to_owned() }
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Everything that was printed to its log so far, by its predecessors too.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// SIGKILL, and waits for the end.
    pub(crate) fn kill(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Sends a signal by its name, such as `INT`.
    pub(crate) fn signal(&self, name: &str) {
        // The shell's own kill: procps need not be installed.
        let sent = Command::new("sh").arg("-c").arg(format!("kill -{name} {}", self.id())).status();
        assert!(sent.is_ok_and(|status| status.success()), "SIG{name} to {}", self.name);
    }

    /// How it ended, if it has.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child can be waited for")
    }

    /// Waits for its end.
    pub(crate) async fn end(&mut self, within: Duration) -> ExitStatus {
        let what = format!("{} to end", self.name);
        until(within, &what, async || self.ended().ok_or("it runs")).await
    }

    /// Waits for it to abort, as an induced crash does.
    pub(crate) async fn abort(&mut self) {
        let status = self.end(DEATH_DEADLINE).await;
        assert_eq!(status.signal(), Some(SIGABRT), "{} ended with {status}", self.name);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<_> = log.lines().collect();
            let from = lines.len().saturating_sub(SHOWN_LINES);
            eprintln!("--- the log of {} ---\n{}\n---", self.name, lines[from..].join("\n"));
        }
    }
}

fn open(log: &Path) -> File {
    OpenOptions::new().create(true).append(true).open(log).expect("the log can be written")
}

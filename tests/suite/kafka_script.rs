//! A real broker of one case's own, to be killed: started by the script that
//! HALFMSG_TEST_KAFKA_SCRIPT names.

use std::path::Path;
use std::process::{Command, Stdio};

use halfmsg_kafka::KafkaConfig;
use tempfile::TempDir;

/// A running broker; wiped when dropped.
pub(crate) struct OwnKafka {
    script: String,
    directory: TempDir,
    /// What the script printed: the addresses.
    printed: String,
}

impl OwnKafka {
    /// Starts a broker with a fresh log.
    pub(crate) async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// The same with listeners that ask for a login, and access control lists.
    pub(crate) async fn start_secure() -> Self {
        Self::start_with(&["--secure"]).await
    }

    /// Starts one more broker of this one's cluster.
    pub(crate) async fn join(&self) -> Self {
        let first = self.directory().display().to_string();
        Self::start_with(&["--join", &first]).await
    }

    async fn start_with(options: &[&str]) -> Self {
        let script = std::env::var("HALFMSG_TEST_KAFKA_SCRIPT").unwrap_or_default();
        assert!(
            !script.is_empty(),
            "HALFMSG_TEST_KAFKA_SCRIPT is not set: run the real tier with scripts/test real, or \
             set it to the path of scripts/kafka"
        );
        let directory = tempfile::Builder::new().prefix("halfmsg-kafka-").tempdir();
        let directory = directory.expect("a temporary directory");
        let mut own = Self { script, directory, printed: String::new() };
        own.printed = own.run("start", options).await;
        own
    }

    /// The address that the script prints under this name.
    pub(crate) fn listener(&self, name: &str) -> String {
        let found =
            self.printed.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        found.unwrap_or_else(|| panic!("the script prints {name}")).trim().to_owned()
    }

    /// Where its files are.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// How to reach it, running or not.
    pub(crate) fn config(&self) -> KafkaConfig {
        KafkaConfig::new(self.listener("KAFKA_BROKERS"))
    }

    /// `kafka-<name>.sh` of this broker's version, as a shell calls it.
    pub(crate) fn tool(&self, name: &str) -> String {
        format!("'{}' {name} --dir '{}' --", self.script, self.directory.path().display())
    }

    /// SIGKILL.
    pub(crate) async fn kill(&self) {
        self.run("kill", &[]).await;
    }

    /// SIGSTOP: connections stay, nothing is answered.
    pub(crate) async fn pause(&self) {
        self.run("pause", &[]).await;
    }

    /// SIGCONT.
    pub(crate) async fn unpause(&self) {
        self.run("unpause", &[]).await;
    }

    /// Starts it again, at the same address and with its log.
    pub(crate) async fn start_again(&self) {
        let printed = self.run("start", &[]).await;
        assert_eq!(printed, self.printed, "it moved away");
    }

    async fn run(&self, verb: &'static str, options: &[&str]) -> String {
        let mut command = self.command(verb);
        command.args(options);
        let ran = tokio::task::spawn_blocking(move || command.output()).await;
        let output = ran.expect("it runs to its end").expect("the script can be started");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{verb}: {}\n{errors}", output.status);
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn command(&self, verb: &str) -> Command {
        let mut command = Command::new(&self.script);
        command.arg(verb).arg("--dir").arg(self.directory.path()).stdin(Stdio::null());
        command
    }
}

impl Drop for OwnKafka {
    fn drop(&mut self) {
        match self.command("wipe").output() {
            Ok(output) if output.status.success() => {}
            failed => eprintln!("the broker of this test may go on running: {failed:?}"),
        }
    }
}

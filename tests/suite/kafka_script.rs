//! A real broker of one case's own, to be killed: started by the script that
//! HALFMSG_TEST_KAFKA_SCRIPT names.

use std::process::{Command, Stdio};

use halfmsg_kafka::KafkaConfig;
use tempfile::TempDir;

/// A running broker; wiped when dropped.
pub(crate) struct OwnKafka {
    script: String,
    directory: TempDir,
    brokers: String,
}

impl OwnKafka {
    /// Starts a broker with a fresh log.
    pub(crate) async fn start() -> Self {
        let script = std::env::var("HALFMSG_TEST_KAFKA_SCRIPT").unwrap_or_default();
        assert!(
            !script.is_empty(),
            "HALFMSG_TEST_KAFKA_SCRIPT is not set: run the real tier with scripts/test real, or \
             set it to the path of scripts/kafka"
        );
        let directory = tempfile::Builder::new().prefix("halfmsg-kafka-").tempdir();
        let directory = directory.expect("a temporary directory");
        let mut own = Self { script, directory, brokers: String::new() };
        let printed = own.run("start").await;
        let address = printed.lines().find_map(|line| line.strip_prefix("KAFKA_BROKERS="));
        own.brokers = address.expect("the script prints KAFKA_BROKERS").trim().to_owned();
        own
    }

    /// How to reach it, running or not.
    pub(crate) fn config(&self) -> KafkaConfig {
        KafkaConfig::new(&self.brokers)
    }

    /// SIGKILL.
    pub(crate) async fn kill(&self) {
        self.run("kill").await;
    }

    /// Starts it again, at the same address and with its log.
    pub(crate) async fn start_again(&self) {
        let printed = self.run("start").await;
        assert!(printed.contains(&self.brokers), "it moved away: {printed}");
    }

    async fn run(&self, verb: &'static str) -> String {
        let mut command = self.command(verb);
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

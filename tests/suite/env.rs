//! The ground that one case stands on: a broker, databases, and names that nobody else has.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use halfmsg_kafka::KafkaConfig;
use halfmsg_producer::{Backoff, ProducerConfig, TransactionProducer};
use uuid::Uuid;

use super::PATIENCE;
use super::broker::Broker;
use super::database::{Database, Kind};
use super::told::{PURPOSE, Told};

/// For what a case waits to see given up.
pub(crate) const SOON_GIVEN_UP: Duration = Duration::from_secs(7);
/// Nothing is checked by itself.
pub(crate) const NEVER: Duration = Duration::from_secs(600);
/// How long a group waits for a silent member, and so long that no machine stands still.
pub(crate) const SESSION_TIMEOUT: &str = "session.timeout.ms";
pub(crate) const LONG_SESSION_MS: &str = "45000";
/// Partitions of the topics of a test.
pub(crate) const PARTITIONS: i32 = 4;

/// The ground of one case. What it made on shared servers is removed when it is dropped.
pub(crate) struct Env {
    pub(crate) broker: Broker,
    name: String,
    database: Kind,
}

impl Env {
    /// A broker in this process, and SQLite.
    pub(crate) async fn embedded(case: &str) -> Self {
        Self::on(Broker::embedded(), Kind::Sqlite, case)
    }

    /// What a person types brings its own.
    pub(crate) async fn typed(case: &str) -> Self {
        Self::embedded(case).await
    }

    /// Apache Kafka and PostgreSQL, as the environment names them.
    pub(crate) async fn real(case: &str) -> Self {
        Self::on(Broker::shared(), Kind::Postgres, case)
    }

    fn on(broker: Broker, database: Kind, case: &str) -> Self {
        log();
        let row = case.split('_').next().unwrap_or(case);
        let name = format!("{row}-{}", &Uuid::new_v4().simple().to_string()[..12]);
        Self { broker, name, database }
    }

    /// The same on a broker that this case may stop and start: on the real tier, one of its own.
    pub(crate) async fn with_own_broker(self) -> Self {
        Self { broker: self.broker.into_own().await, ..self }
    }

    /// The same on a broker in this process.
    pub(crate) fn with_embedded_broker(self) -> Self {
        Self { broker: Broker::embedded(), ..self }
    }

    /// The same on this broker.
    pub(crate) fn with_broker(self, broker: Broker) -> Self {
        Self { broker, ..self }
    }

    /// The same with another kind of database.
    pub(crate) fn with_database(self, database: Kind) -> Self {
        Self { database, ..self }
    }

    /// How to reach the broker.
    pub(crate) fn kafka(&self) -> KafkaConfig {
        self.broker.config()
    }

    /// A name that no other test has.
    pub(crate) fn named(&self, what: &str) -> String {
        format!("{}.{what}", self.name)
    }

    /// A target topic of this test's own.
    pub(crate) async fn topic(&self, what: &str) -> String {
        let name = self.named(what);
        self.broker.create_topic(&name, PARTITIONS, &[]).await;
        name
    }

    /// An empty database of the tier's kind.
    pub(crate) async fn database(&self) -> Database {
        Database::new(self.database).await
    }

    /// Settings of a new producer group: nothing is given up, and no check is due, while a case runs,
    /// however long the machine stands still. What is asked for is checked at once.
    pub(crate) async fn group(&self) -> ProducerConfig {
        let mut config = ProducerConfig::new(self.kafka(), "tests", self.named("group"));
        config.topic_prefix = "test".into();
        config.store_partitions = PARTITIONS;
        config.start_deadline = PATIENCE;
        // As long as the store's own timeout lets it.
        config.prepare_deadline = config.store_timeout;
        config.decision_deadline = config.store_timeout;
        config.local_deadline = PATIENCE;
        config.check_after = NEVER;
        config.check_deadline = PATIENCE;
        config.check_backoff =
            Backoff { initial: Duration::from_millis(50), max: Duration::from_millis(200) };
        // The cases read what the store held.
        config.trim_interval = None;
        self.broker.expect_group(&config).await;
        if matches!(self.broker, Broker::Shared(_)) {
            // Nobody takes this broker away or kills a replica here: whoever is silent stands still. What a group
            // gives to another, or to the same one again, is counted and asked about anew.
            config.kafka.properties.insert(SESSION_TIMEOUT.into(), LONG_SESSION_MS.into());
        }
        config
    }

    /// The same for cases whose halves are left to the check-back.
    pub(crate) async fn asking_group(&self) -> ProducerConfig {
        asked_soon(self.group().await)
    }

    /// A started producer with this listener.
    pub(crate) async fn start(config: &ProducerConfig, told: &Told) -> TransactionProducer {
        let builder = TransactionProducer::builder(config.clone());
        builder.listener(PURPOSE, told.clone()).start().await.expect("the producer starts")
    }
}

/// This with times after which a check comes soon. What is stored with them may be refused on a machine that
/// stands still, or be asked about before it is decided: see [`Setup::ask_soon`](super::setup::Setup::ask_soon).
pub(crate) fn asked_soon(config: ProducerConfig) -> ProducerConfig {
    ProducerConfig {
        prepare_deadline: SOON_GIVEN_UP,
        local_deadline: Duration::from_secs(3),
        check_after: Duration::from_millis(10_100),
        ..config
    }
}

/// Shown when a test fails; `RUST_LOG` asks for more.
fn log() {
    let filter = std::env::var("RUST_LOG").unwrap_or_else(|_| "warn,halfmsg_producer=info".into());
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false);
    // The tests of a binary share one; the first has set it.
    drop(subscriber.with_writer(|| Log).try_init());
}

/// What stands in the lines that cases look for: about replays, and about replicas of topics.
const LOOKED_FOR: [&str; 4] =
    ["is being replayed", "are taken over", "has replication factor", "has min.insync.replicas"];
/// Such lines, of all cases.
static LOGGED: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// The lines of those in which all of this stands.
pub(crate) fn logged(what: &[&str]) -> Vec<String> {
    let lines = LOGGED.lock().unwrap_or_else(PoisonError::into_inner);
    lines.iter().filter(|line| what.iter().all(|what| line.contains(what))).cloned().collect()
}

/// Where the lines go: to the test, as with its own writer, and some to who asks for them.
struct Log;

impl std::io::Write for Log {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        let text = String::from_utf8_lossy(line);
        print!("{text}");
        if LOOKED_FOR.iter().any(|what| text.contains(what)) {
            LOGGED.lock().unwrap_or_else(PoisonError::into_inner).push(text.into_owned());
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

//! What stands in for a cluster and a database in the examples: the embedded broker, and SQLite in a
//! temporary directory. A program of yours has its own, and nothing else of this.
#![allow(dead_code, reason = "each example takes what it needs")]

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use halfmsg_db::{DbOptions, connect};
use halfmsg_kafka::EmbeddedBroker;
use halfmsg_migrations::{FenceMigrator, migrate};
use halfmsg_producer::ProducerConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{Message, Offset, TopicPartitionList};
use sea_orm::{ConnectionTrait, DatabaseConnection, DbBackend, Statement};

/// As long as an example waits for anything.
const PATIENCE: Duration = Duration::from_secs(60);
/// A message too many would come within this time.
const WATCH: Duration = Duration::from_millis(300);

/// A broker, and a database with the fence table and the account `ann`, which has 150.
pub(crate) struct Stage {
    pub(crate) broker: EmbeddedBroker,
    pub(crate) db: DatabaseConnection,
    /// For checks: on SQLite they have a pool of their own, which does not wait long for a writer.
    pub(crate) checks: DatabaseConnection,
    _directory: tempfile::TempDir,
}

impl Stage {
    pub(crate) async fn new(topics: &[&str]) -> Result<Self> {
        let broker = EmbeddedBroker::start()?;
        for topic in topics.iter().chain(&["halfmsg.payments.store", "halfmsg.payments.parked"]) {
            broker.create_topic(topic, 1)?;
        }
        let directory = tempfile::tempdir()?;
        let url = format!("sqlite://{}", directory.path().join("payments.db").display());
        let db = connect(&url, &DbOptions::default()).await?;
        let soon = Duration::from_millis(100);
        let short = DbOptions { sqlite_busy_timeout: soon, ..DbOptions::default() };
        let checks = connect(&url, &short).await?;
        migrate::<FenceMigrator>(&db).await?;
        db.execute_unprepared("CREATE TABLE account AS SELECT 'ann' AS name, 150 AS cents").await?;
        Ok(Self { broker, db, checks, _directory: directory })
    }

    /// Checks come sooner than by default: nobody wants to watch an example for 6 s.
    pub(crate) fn config(&self) -> ProducerConfig {
        ProducerConfig {
            local_deadline: Duration::from_secs(1),
            check_after: Duration::from_millis(3_200),
            ..ProducerConfig::new(self.broker.config(), "payments", "payments")
        }
    }

    pub(crate) async fn balance(&self) -> Result<i64> {
        let select = Statement::from_string(DbBackend::Sqlite, "SELECT cents FROM account");
        let row = self.db.query_one_raw(select).await?.context("the account is there")?;
        Ok(row.try_get_by_index(0)?)
    }

    /// What reaches the topic: so many messages, and no more within a moment.
    pub(crate) async fn received(&self, topic: &'static str, count: usize) -> Result<Vec<String>> {
        let kafka = self.broker.config();
        let read = tokio::task::spawn_blocking(move || {
            let consumer: BaseConsumer = kafka.consumer("reader").create()?;
            consumer.fetch_metadata(Some(topic), PATIENCE)?;
            let mut all = TopicPartitionList::new();
            all.add_partition_offset(topic, 0, Offset::Beginning)?;
            consumer.assign(&all)?;
            let mut found = Vec::new();
            let mut until = Instant::now() + PATIENCE;
            while Instant::now() < until {
                let Some(message) = consumer.poll(Duration::from_millis(50)) else { continue };
                let payload = message?.payload().unwrap_or_default().to_vec();
                found.push(String::from_utf8(payload)?);
                if found.len() == count {
                    until = Instant::now() + WATCH;
                }
            }
            Ok::<_, anyhow::Error>(found)
        });
        let found = read.await??;
        ensure!(found.len() == count, "{count} messages were expected in {topic}: {found:?}");
        Ok(found)
    }
}

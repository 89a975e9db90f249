//! What stands in for a cluster and a database in the examples: the embedded broker, and SQLite in a
//! temporary directory. A program of yours has its own, and nothing else of this.
#![allow(dead_code, reason = "each example takes what it needs")]

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use halfmsg_consumer::{Consumer, ConsumerConfig, ConsumerError, TRANSACTION_ID_HEADER};
use halfmsg_db::{DbOptions, connect};
use halfmsg_kafka::EmbeddedBroker;
use halfmsg_migrations::{ConsumerMigrator, migrate};
use rdkafka::message::{Header, Headers, Message, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::{Offset, TopicPartitionList};
use sea_orm::{ConnectionTrait, DatabaseConnection, DbBackend, Statement};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// As long as an example waits for anything.
const PATIENCE: Duration = Duration::from_secs(60);

/// A broker with these topics, and a database with the consumer's tables and an empty `book`.
pub(crate) struct Stage {
    pub(crate) broker: EmbeddedBroker,
    pub(crate) db: DatabaseConnection,
    _directory: tempfile::TempDir,
}

impl Stage {
    pub(crate) async fn new(topics: &[&str]) -> Result<Self> {
        let broker = EmbeddedBroker::start()?;
        for topic in topics {
            broker.create_topic(topic, 1)?;
        }
        let directory = tempfile::tempdir()?;
        let url = format!("sqlite://{}", directory.path().join("books.db").display());
        let db = connect(&url, &DbOptions::default()).await?;
        migrate::<ConsumerMigrator>(&db).await?;
        db.execute_unprepared("CREATE TABLE book (entry TEXT)").await?;
        Ok(Self { broker, db, _directory: directory })
    }

    pub(crate) fn config(&self) -> ConsumerConfig {
        ConsumerConfig::new(self.broker.config(), self.db.clone(), "books")
    }

    /// Sends a message as halfmsg's producer delivers it.
    pub(crate) async fn send(&self, topic: &str, id: Uuid, payload: &str) -> Result<()> {
        let producer: FutureProducer = self.broker.config().producer().create()?;
        let id = id.to_string();
        let header = Header { key: TRANSACTION_ID_HEADER, value: Some(&id) };
        let record = FutureRecord::to(topic).key("ann").payload(payload);
        let record = record.headers(OwnedHeaders::new().insert(header));
        producer.send(record, PATIENCE).await.map_err(|(error, _)| error)?;
        Ok(())
    }

    /// How many entries the book has.
    pub(crate) async fn entries(&self) -> Result<i64> {
        let count = Statement::from_string(DbBackend::Sqlite, "SELECT count(*) FROM book");
        let row = self.db.query_one_raw(count).await?.context("a count")?;
        Ok(row.try_get_by_index(0)?)
    }

    /// The first message of a topic: its transaction id and its payload.
    pub(crate) async fn received(&self, topic: &'static str) -> Result<(String, String)> {
        let kafka = self.broker.config();
        let read = tokio::task::spawn_blocking(move || {
            use rdkafka::consumer::{BaseConsumer, Consumer as _};
            let consumer: BaseConsumer = kafka.consumer("reader").create()?;
            consumer.fetch_metadata(Some(topic), PATIENCE)?;
            let mut all = TopicPartitionList::new();
            all.add_partition_offset(topic, 0, Offset::Beginning)?;
            consumer.assign(&all)?;
            let message = consumer.poll(PATIENCE).context("nothing came")??;
            let id = message.headers().and_then(|headers| {
                let named = headers.iter().find(|header| header.key == TRANSACTION_ID_HEADER);
                named.and_then(|header| header.value)
            });
            let id = String::from_utf8_lossy(id.unwrap_or_default());
            let payload = String::from_utf8_lossy(message.payload().unwrap_or_default());
            Ok((id.into_owned(), payload.into_owned()))
        });
        read.await?
    }
}

/// A consumer that runs until it is stopped.
pub(crate) struct Running(CancellationToken, JoinHandle<Result<(), ConsumerError>>);

pub(crate) fn run(consumer: Consumer) -> Running {
    let shutdown = CancellationToken::new();
    Running(shutdown.clone(), tokio::spawn(consumer.run(shutdown)))
}

impl Running {
    pub(crate) async fn stop(self) -> Result<()> {
        self.0.cancel();
        Ok(self.1.await??)
    }
}

/// Waits until the condition holds.
pub(crate) async fn until(what: &str, condition: impl Fn() -> bool) -> Result<()> {
    let until = Instant::now() + PATIENCE;
    while !condition() {
        ensure!(Instant::now() < until, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

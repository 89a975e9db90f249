//! The ground of one case: a topic, a database, a producer, and consumers that can be ended gently or
//! torn off.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use halfmsg_consumer::{
    Assignment, Consumer, ConsumerConfig, ConsumerHandle, ConsumerMetrics, DeadLetters, Health,
    Inbox, RetryLevels, TRANSACTION_ID_HEADER, TopicSettings,
};
use halfmsg_kafka::KafkaConfig;
use halfmsg_migrations::{ConsumerMigrator, migrate};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use sea_orm::sea_query::{Order, Query};
use sea_orm::{ConnectionTrait, DatabaseConnection};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::handler::{Effects, effect_table};
use crate::suite::database::{Database, patient};
use crate::suite::env::{LONG_SESSION_MS, PARTITIONS, SESSION_TIMEOUT};
use crate::suite::{Env, PATIENCE, until};

/// What a case stands on. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Ground {
    pub(crate) env: Arc<Env>,
    pub(crate) pool: DatabaseConnection,
    pub(crate) topic: String,
    database: Arc<Database>,
    producer: FutureProducer,
}

/// A consumer that runs.
pub(crate) struct Running {
    pub(crate) metrics: ConsumerMetrics,
    pub(crate) dead_letters: DeadLetters,
    pub(crate) inbox: Inbox,
    pub(crate) handle: ConsumerHandle,
    pub(crate) health: Health,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

impl Ground {
    pub(crate) async fn new(env: Env) -> Self {
        let topic = env.topic("in").await;
        let database = env.database().await;
        let pool = database.connect(&patient()).await;
        migrate::<ConsumerMigrator>(&pool).await.expect("the schema");
        let table = effect_table(pool.get_database_backend());
        pool.execute_unprepared(table).await.expect("a table");
        let mut client = env.kafka().producer();
        // Partitions that a case adds are soon known.
        client.set("topic.metadata.refresh.interval.ms", "1000");
        let producer = client
            .set("partitioner", "murmur2_random")
            .set("message.timeout.ms", PATIENCE.as_millis().to_string())
            .create()
            .expect("a producer");
        Self { env: Arc::new(env), pool, topic, database: Arc::new(database), producer }
    }

    /// The same with another topic, which is there.
    pub(crate) fn at(&self, topic: &str) -> Self {
        Self { topic: topic.to_owned(), ..self.clone() }
    }

    /// For the only consumer of its group, which takes it for dead at no stall: what is handled then does not
    /// come again.
    pub(crate) fn kafka_of_one(&self) -> KafkaConfig {
        let mut kafka = self.env.kafka();
        kafka.properties.insert(SESSION_TIMEOUT.into(), LONG_SESSION_MS.into());
        kafka
    }

    /// Short times, no retries; on a real broker a group that is soon complete.
    pub(crate) fn config(&self) -> ConsumerConfig {
        let subscriber = self.env.named("subscriber");
        ConsumerConfig {
            quick_attempts: 2,
            first_backoff: Duration::from_millis(10),
            longest_backoff: Duration::from_millis(200),
            retry: RetryLevels::new([]),
            retry_poll: Duration::from_millis(200),
            // However long a stop has to wait for its offsets to be stored.
            drain_deadline: PATIENCE / 2,
            topic: TopicSettings { partitions: PARTITIONS, ..TopicSettings::default() },
            ..ConsumerConfig::new(self.env.kafka(), self.pool.clone(), subscriber)
        }
    }

    /// The same for several members of one group.
    pub(crate) fn shared(&self) -> ConsumerConfig {
        ConsumerConfig { assignment: Assignment::Shared, ..self.config() }
    }

    /// The database's address, for another process.
    pub(crate) fn database_url(&self) -> &str {
        self.database.url()
    }

    /// A consumer of the topic.
    pub(crate) fn start(&self, config: ConsumerConfig, handler: &Effects) -> Running {
        let builder = Consumer::builder(config).subscribe(&self.topic, handler.clone());
        let consumer = builder.build().expect("the settings are valid");
        let shutdown = CancellationToken::new();
        Running {
            metrics: consumer.metrics(),
            dead_letters: consumer.dead_letters(),
            inbox: consumer.inbox(),
            handle: consumer.handle(),
            health: consumer.health(),
            shutdown: shutdown.clone(),
            task: tokio::spawn(async move { consumer.run(shutdown).await.expect("it consumes") }),
        }
    }

    /// Sends a message and waits for its acknowledgement; returns its transaction.
    pub(crate) async fn send(&self, key: &str, payload: &str) -> Uuid {
        let id = Uuid::now_v7();
        self.send_as(id, key, payload).await;
        id
    }

    /// The same in the name of this transaction; returns the partition and the offset where it lies.
    pub(crate) async fn send_as(&self, id: Uuid, key: &str, payload: &str) -> (i32, i64) {
        let id = id.to_string();
        let header = Header { key: TRANSACTION_ID_HEADER, value: Some(&id) };
        let headers = OwnedHeaders::new_with_capacity(1).insert(header);
        let record = FutureRecord::to(&self.topic).key(key).headers(headers).payload(payload);
        let delivery = self.producer.send(record, PATIENCE).await.expect("it is acknowledged");
        (delivery.partition, delivery.offset)
    }

    /// Sends many at once: key and payload of each, in this order within a key. Returns the highest
    /// partition that one went to.
    pub(crate) async fn send_all(
        &self,
        messages: impl IntoIterator<Item = (String, String)>,
    ) -> i32 {
        let mut on_their_way = Vec::new();
        for (key, payload) in messages {
            let id = Uuid::now_v7().to_string();
            let header = Header { key: TRANSACTION_ID_HEADER, value: Some(&id) };
            let headers = OwnedHeaders::new_with_capacity(1).insert(header);
            let record = FutureRecord::to(&self.topic).key(&key).headers(headers).payload(&payload);
            let sent = self.producer.send_result(record);
            on_their_way.push(sent.map_err(|(error, _)| error).expect("there is room"));
        }
        let mut highest = 0;
        for one in on_their_way {
            let delivery = one.await.expect("the producer lives").expect("it is acknowledged");
            highest = highest.max(delivery.partition);
        }
        highest
    }

    /// The effects in their order.
    pub(crate) async fn effects(&self) -> Vec<String> {
        let mut select = Query::select();
        select.column("payload").from("effect").order_by("seq", Order::Asc);
        let rows = self.pool.query_all(&select).await.expect("the table");
        rows.iter().map(|row| row.try_get("", "payload").expect("text")).collect()
    }

    /// The rows of a table.
    pub(crate) async fn rows(&self, table: &'static str) -> usize {
        let select = Query::select().expr(sea_orm::sea_query::Expr::val(1)).from(table).to_owned();
        self.pool.query_all(&select).await.expect("the table").len()
    }

    /// Waits for so many effects; more are not waited for.
    pub(crate) async fn sees(&self, count: usize) -> Vec<String> {
        self.sees_within(count, PATIENCE).await
    }

    /// The same with another deadline.
    pub(crate) async fn sees_within(&self, count: usize, within: Duration) -> Vec<String> {
        until(within, &format!("{count} effects"), async || {
            let effects = self.effects().await;
            if effects.len() >= count { Ok(effects) } else { Err(effects.len().to_string()) }
        })
        .await
    }

    /// Each of these has had one effect, and nothing else has.
    pub(crate) async fn one_each(&self, expected: impl IntoIterator<Item = String>) {
        let mut counts: BTreeMap<String, i64> = BTreeMap::new();
        for payload in self.effects().await {
            *counts.entry(payload).or_default() += 1;
        }
        for payload in expected {
            *counts.entry(payload).or_default() -= 1;
        }
        counts.retain(|_, count| *count != 0);
        assert!(counts.is_empty(), "too many or too few: {counts:?}");
    }
}

impl Running {
    /// Waits until the metrics say so.
    pub(crate) async fn counts(&self, what: &str, condition: impl Fn(&ConsumerMetrics) -> bool) {
        until(PATIENCE, what, async || {
            let metrics = &self.metrics;
            if condition(metrics) { Ok(()) } else { Err(self.sample()) }
        })
        .await;
    }

    /// What it counts, as a scraper reads it.
    pub(crate) fn sample(&self) -> String {
        let mut registry = prometheus_client::registry::Registry::default();
        self.metrics.register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).expect("text");
        text
    }

    /// Whether a scraper reads this value of this metric, which has no label but the subscriber.
    pub(crate) fn shows(&self, metric: &str, value: &str) -> bool {
        let (begins, ends) = (format!("{metric}{{subscriber="), format!("}} {value}"));
        self.sample().lines().any(|line| line.starts_with(&begins) && line.ends_with(&ends))
    }

    /// What a scraper reads of this metric, which has no label but the subscriber.
    pub(crate) fn reads(&self, metric: &str) -> Option<u64> {
        let begins = format!("{metric}{{subscriber=");
        let sample = self.sample();
        let line = sample.lines().find(|line| line.starts_with(&begins))?;
        line.rsplit(' ').next()?.parse().ok()
    }

    /// Ends it gently.
    pub(crate) async fn stop(self) {
        self.shutdown.cancel();
        tokio::time::timeout(PATIENCE, self.task).await.expect("in time").expect("no panic");
    }

    /// It goes no further than to its next await.
    pub(crate) fn begin_to_tear_off(&self) {
        self.task.abort();
    }

    /// Tears it off at its next await: what is in hand is rolled back, nothing is sent or committed.
    pub(crate) async fn tear_off(self) {
        self.begin_to_tear_off();
        let ended = self.task.await;
        assert!(ended.is_err_and(|error| error.is_cancelled()));
    }
}

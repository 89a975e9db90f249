//! A broker that asks for a login, and a producer and a consumer on it that have no more rights
//! than they are given.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use halfmsg_consumer::{
    Consumer, ConsumerConfig, ConsumerError, Context, HandlerError, Health, MessageHandler,
    ReceivedMessage, Reply,
};
use halfmsg_kafka::KafkaConfig;
use halfmsg_migrations::{StockMigrator, migrate};
use halfmsg_producer::{ProducerConfig, StartError, TransactionProducer};
use sea_orm::sea_query::Query;
use sea_orm::{ConnectionTrait, DatabaseConnection};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::super::broker::Broker;
use super::super::database::{Database, Kind, patient};
use super::super::kafka_script::OwnKafka;
use super::super::told::{Do, PURPOSE, Told};
use super::super::{Env, PATIENCE, until};
use super::acls::{self, Names, Right};

/// Waiting for a broker that is away. Longer than any machine stands still.
pub(crate) const START_DEADLINE: Duration = PATIENCE;

/// The broker, and the names of one producer group and its target on it.
pub(crate) struct Ground {
    pub(crate) env: Env,
    pub(crate) target: String,
    pub(crate) group: ProducerConfig,
}

impl Ground {
    /// A broker with every listener, and an authorizer that allows nothing.
    pub(crate) async fn new(env: Env) -> Self {
        let env = env.with_broker(Broker::Own(OwnKafka::start_secure().await));
        let target = env.named("target");
        let group = env.group().await;
        Self { env, target, group }
    }

    fn kafka(&self) -> &OwnKafka {
        match &self.env.broker {
            Broker::Own(kafka) => kafka,
            _ => panic!("a secure broker is always an own one"),
        }
    }

    /// A client of the listener that the script prints under this name.
    pub(crate) fn client(&self, listener: &str, properties: &[(&str, &str)]) -> KafkaConfig {
        let mut config = KafkaConfig::new(self.kafka().listener(listener));
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        config.properties = properties.iter().map(owned).collect();
        config
    }

    /// This user, with a password, by PLAIN.
    pub(crate) fn plain(&self, user: &str) -> KafkaConfig {
        self.sasl("PLAIN", user, &format!("{user}-secret"))
    }

    /// A login without TLS.
    pub(crate) fn sasl(&self, mechanism: &str, user: &str, password: &str) -> KafkaConfig {
        let login = [
            ("security.protocol", "sasl_plaintext"),
            ("sasl.mechanism", mechanism),
            ("sasl.username", user),
            ("sasl.password", password),
        ];
        self.client("KAFKA_SASL_BROKERS", &login)
    }

    /// This user, with a password and TLS.
    pub(crate) fn sasl_tls(&self, mechanism: &str, user: &str, authority: &str) -> KafkaConfig {
        let login = [
            ("security.protocol", "sasl_ssl"),
            ("ssl.ca.location", &self.file(authority)),
            ("sasl.mechanism", mechanism),
            ("sasl.username", user),
            ("sasl.password", &format!("{user}-secret")),
        ];
        self.client("KAFKA_SASL_TLS_BROKERS", &login)
    }

    /// TLS with a client certificate: the user `tls`.
    pub(crate) fn tls(&self) -> KafkaConfig {
        let login = [
            ("security.protocol", "ssl"),
            ("ssl.ca.location", &self.file("ca.pem")),
            ("ssl.certificate.location", &self.file("client.crt")),
            ("ssl.key.location", &self.file("client.key")),
        ];
        self.client("KAFKA_TLS_BROKERS", &login)
    }

    /// A file that the script made.
    pub(crate) fn file(&self, name: &str) -> String {
        self.kafka().directory().join("tls").join(name).display().to_string()
    }

    /// What the documentation lists for the producer.
    pub(crate) fn producer_rights(&self) -> Vec<Right> {
        self.documented("order-svc", &self.group.group)
    }

    /// What the documentation lists for the consumer.
    pub(crate) fn consumer_rights(&self) -> Vec<Right> {
        self.documented("stock-svc", &self.env.named("consumer"))
    }

    /// What the documentation lists for this one, whose group it is.
    pub(crate) fn documented(&self, who: &str, group: &str) -> Vec<Right> {
        let names = Names {
            prefix: &self.group.topic_prefix,
            group,
            target: &self.target,
            created: &self.created(),
            outbound: &self.outbound(),
        };
        acls::documented(who, &names)
    }

    /// The topic of orders that wait for their stock.
    pub(crate) fn created(&self) -> String {
        self.env.named("created")
    }

    /// The topic of the answers to them.
    pub(crate) fn outbound(&self) -> String {
        self.env.named("outbound")
    }

    /// From now on the user has these rights, and no others.
    pub(crate) async fn only(&self, user: &str, rights: Vec<Right>) {
        let broker = self.open();
        acls::revoke_all(&broker, user);
        self.has(user, 0).await;
        acls::grant(&broker, user, &rights);
        self.has(user, rights.len()).await;
    }

    /// Waits until so many rights of the user are in force.
    pub(crate) async fn has(&self, user: &str, rights: usize) {
        let broker = self.open();
        until(PATIENCE, "the rights to be in force", async || {
            let found = acls::count(&broker, user);
            if found == rights { Ok(()) } else { Err(format!("{found}, not {rights}")) }
        })
        .await;
    }

    /// The listener that asks nobody who it is.
    pub(crate) fn open(&self) -> String {
        self.env.kafka().brokers
    }

    /// Kafka's own tool for access control lists, as a shell calls it.
    pub(crate) fn acls_tool(&self) -> String {
        self.kafka().tool("acls")
    }

    /// Starts a producer as this client.
    pub(crate) async fn producer(
        &self,
        kafka: KafkaConfig,
    ) -> Result<TransactionProducer, StartError> {
        self.producer_within(START_DEADLINE, kafka).await
    }

    /// The same, with so much patience.
    pub(crate) async fn producer_within(
        &self,
        start_deadline: Duration,
        kafka: KafkaConfig,
    ) -> Result<TransactionProducer, StartError> {
        let config = ProducerConfig { kafka, start_deadline, ..self.group.clone() };
        let builder = TransactionProducer::builder(config);
        builder.listener(PURPOSE, Told::otherwise(Do::Rollback)).start().await
    }

    /// Starts a consumer of the target as this client.
    pub(crate) async fn consumer(&self, kafka: KafkaConfig) -> Consuming {
        let subscriber = self.env.named("consumer");
        self.consumer_of(kafka, &subscriber, &self.target, Seen::default()).await
    }

    /// Starts a consumer of this topic as this client; `seen` says what it does.
    pub(crate) async fn consumer_of(
        &self,
        kafka: KafkaConfig,
        subscriber: &str,
        topic: &str,
        seen: Seen,
    ) -> Consuming {
        let database = Database::new(Kind::Sqlite).await;
        let connection = database.connect(&patient()).await;
        migrate::<StockMigrator>(&connection).await.expect("an empty database");
        let config = ConsumerConfig::new(kafka, connection.clone(), subscriber);
        let consumer = Consumer::builder(config).subscribe(topic, seen.clone()).build();
        let consumer = consumer.expect("settings that can work");
        let (health, stop) = (consumer.health(), CancellationToken::new());
        let task = tokio::spawn(consumer.run(stop.clone()));
        Consuming { health, seen, stop, task, connection, _database: database }
    }
}

/// A consumer that runs.
pub(crate) struct Consuming {
    pub(crate) health: Health,
    seen: Seen,
    stop: CancellationToken,
    task: JoinHandle<Result<(), ConsumerError>>,
    connection: DatabaseConnection,
    _database: Database,
}

impl Consuming {
    /// Waits until it consumes.
    pub(crate) async fn ready(&self) {
        until(PATIENCE, "the consumer to be ready", async || self.health.check()).await;
    }

    /// Waits until this payload has arrived.
    pub(crate) async fn sees(&self, text: &str) {
        until(PATIENCE, &format!("'{text}' to be consumed"), async || {
            let seen = self.seen.texts.lock().unwrap_or_else(PoisonError::into_inner).clone();
            if seen.iter().any(|one| one == text) {
                return Ok(());
            }
            Err(format!("{seen:?}, {:?}", self.health.check()))
        })
        .await;
    }

    /// Waits until every reply is acknowledged.
    pub(crate) async fn nothing_waits(&self) {
        let select = Query::select().column("seq").from("reply").to_owned();
        until(PATIENCE, "every reply to be sent", async || {
            let rows = self.connection.query_all(&select).await.expect("the table").len();
            if rows == 0 { Ok(()) } else { Err(format!("{rows} wait")) }
        })
        .await;
    }

    /// Waits until a reply is refused, and says why.
    pub(crate) async fn refused_reply(&self) -> String {
        let select = Query::select().column("cause").from("reply").to_owned();
        until(PATIENCE, "a reply to be refused", async || {
            let rows = self.connection.query_all(&select).await.expect("the table");
            let cause = rows.first().map(|row| row.try_get::<Option<String>>("", "cause"));
            match cause {
                Some(Ok(Some(cause))) => Ok(cause),
                other => Err(format!("{other:?}, {:?}", self.health.check())),
            }
        })
        .await
    }

    /// Stops it.
    pub(crate) async fn stop(self) {
        self.stop.cancel();
        self.task.await.expect("no panic").expect("it ends in good order");
    }

    /// Why it ended, or is not ready, once this stands in it: before the broker has answered there is less to
    /// say.
    pub(crate) async fn complaint(self, part: &str) -> String {
        let complaint = until(PATIENCE, "a complaint", async || {
            match (self.task.is_finished(), self.health.check()) {
                (true, _) => Ok(None),
                (false, Err(text)) if text.contains(part) => Ok(Some(text)),
                (false, health) => Err(format!("{health:?}")),
            }
        });
        if let Some(text) = complaint.await {
            self.stop.cancel();
            return text;
        }
        match self.task.await.expect("no panic") {
            Err(error) => error.to_string(),
            Ok(()) => "it ended without an error".to_owned(),
        }
    }
}

/// Remembers payloads, and answers them to a topic if it has one.
#[derive(Clone, Default)]
pub(crate) struct Seen {
    texts: Arc<Mutex<Vec<String>>>,
    answers_to: Option<String>,
}

impl Seen {
    /// One that answers.
    pub(crate) fn answering(topic: String) -> Self {
        Self { answers_to: Some(topic), ..Self::default() }
    }
}

#[async_trait]
impl MessageHandler for Seen {
    async fn handle(
        &self,
        context: &Context<'_>,
        batch: &[ReceivedMessage],
    ) -> Result<(), HandlerError> {
        for (message, topic) in batch.iter().zip(self.answers_to.iter().cycle()) {
            context.publish(message, Reply::new(topic, "an answer"))?;
        }
        let mut seen = self.texts.lock().unwrap_or_else(PoisonError::into_inner);
        let text = |message: &ReceivedMessage| {
            String::from_utf8_lossy(message.payload.as_deref().unwrap_or_default()).into_owned()
        };
        seen.extend(batch.iter().map(text));
        Ok(())
    }
}

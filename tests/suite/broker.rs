//! The broker of a case: in this process, shared with other tests, or a real one of its own.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use halfmsg_kafka::{EmbeddedBroker, KafkaConfig, partition_count};
use halfmsg_producer::ProducerConfig;
use rdkafka::admin::{
    AdminClient, AdminOptions, AlterConfig, NewPartitions, NewTopic, ResourceSpecifier,
    TopicReplication,
};
use rdkafka::client::DefaultClientContext;
use rdkafka::producer::{BaseProducer, Producer};
use rdkafka::{Offset, TopicPartitionList};

use super::env::PARTITIONS;
use super::kafka_script::OwnKafka;
use super::{PATIENCE, until};

/// One administrative request.
const ADMIN_DEADLINE: Duration = Duration::from_secs(60);

/// A broker.
pub(crate) enum Broker {
    /// In this process, of this case alone.
    Embedded(EmbeddedBroker),
    /// The one that KAFKA_BROKERS names; other tests use it at the same time.
    Shared(SharedKafka),
    /// A real one that this case may stop.
    Own(OwnKafka),
}

impl Broker {
    /// In this process.
    pub(crate) fn embedded() -> Self {
        Self::Embedded(EmbeddedBroker::start().expect("a loopback port"))
    }

    /// The one that the environment names.
    pub(crate) fn shared() -> Self {
        let brokers = std::env::var("KAFKA_BROKERS").unwrap_or_default();
        assert!(
            !brokers.is_empty(),
            "KAFKA_BROKERS is not set: run the real tier with scripts/test real, or start a \
             broker with scripts/kafka and set what it prints"
        );
        Self::Shared(SharedKafka { config: KafkaConfig::new(brokers), made: Mutex::default() })
    }

    /// One that may be stopped: instead of the shared one, a real one of its own.
    pub(crate) async fn into_own(self) -> Self {
        match self {
            Self::Shared(_) => Self::Own(OwnKafka::start().await),
            own => own,
        }
    }

    /// One more broker of its cluster, as long as it lives.
    pub(crate) async fn join(&self) -> OwnKafka {
        match self {
            Self::Own(broker) => broker.join().await,
            _ => panic!("only a real broker of a case's own may be joined"),
        }
    }

    /// How to reach it.
    pub(crate) fn config(&self) -> KafkaConfig {
        match self {
            Self::Embedded(broker) => broker.config(),
            Self::Shared(broker) => broker.config.clone(),
            Self::Own(broker) => broker.config(),
        }
    }

    /// Creates a topic and waits until it is known. The embedded broker takes no settings.
    pub(crate) async fn create_topic(
        &self,
        name: &str,
        partitions: i32,
        settings: &[(&str, &str)],
    ) {
        if let Self::Embedded(broker) = self {
            assert!(settings.is_empty(), "the embedded broker takes no settings");
            return broker.create_topic(name, partitions).expect("a topic that is new");
        }
        self.remember(name);
        let mut topic = NewTopic::new(name, partitions, TopicReplication::Fixed(-1));
        for (setting, value) in settings {
            topic = topic.set(setting, value);
        }
        let created = admin(&self.config()).create_topics(&[topic], &options()).await;
        let created = created.expect("Kafka answers");
        assert!(created.iter().all(Result::is_ok), "creating {name}: {created:?}");
        self.known(name, true).await;
    }

    /// Deletes a topic and waits until it is gone.
    pub(crate) async fn delete_topic(&self, name: &str) {
        let deleted = admin(&self.config()).delete_topics(&[name], &options()).await;
        let deleted = deleted.expect("Kafka answers");
        assert!(deleted.iter().all(Result::is_ok), "deleting {name}: {deleted:?}");
        self.known(name, false).await;
    }

    /// Gives a topic these settings, and no others.
    pub(crate) async fn alter_topic(&self, name: &str, settings: &[(&str, &str)]) {
        let topic = AlterConfig::new(ResourceSpecifier::Topic(name));
        let topic = settings.iter().fold(topic, |topic, (name, value)| topic.set(name, value));
        let altered = admin(&self.config()).alter_configs(&[topic], &options()).await;
        let altered = altered.expect("Kafka answers");
        assert!(altered.iter().all(Result::is_ok), "altering {name}: {altered:?}");
    }

    /// Gives a broker of this case's own these settings, and no others.
    pub(crate) async fn alter_broker(&self, settings: &[(&str, &str)]) {
        assert!(matches!(self, Self::Own(_)), "other tests need this broker");
        let broker = AlterConfig::new(ResourceSpecifier::Broker(1));
        let broker = settings.iter().fold(broker, |broker, (name, value)| broker.set(name, value));
        let altered = admin(&self.config()).alter_configs(&[broker], &options()).await;
        let altered = altered.expect("Kafka answers");
        assert!(altered.iter().all(Result::is_ok), "altering the broker: {altered:?}");
    }

    /// Gives a topic more partitions.
    pub(crate) async fn add_partitions(&self, name: &str, count: i32) {
        let count = usize::try_from(count).expect("a few");
        let more = [NewPartitions::new(name, count)];
        let added = admin(&self.config()).create_partitions(&more, &options()).await;
        let added = added.expect("Kafka answers");
        assert!(added.iter().all(Result::is_ok), "partitions for {name}: {added:?}");
    }

    /// Deletes the records of a partition below this offset.
    pub(crate) async fn delete_records(&self, name: &str, partition: i32, below: i64) {
        let mut cut = TopicPartitionList::new();
        cut.add_partition_offset(name, partition, Offset::Offset(below)).expect("an offset");
        let deleted = admin(&self.config()).delete_records(&cut, &options()).await;
        let deleted = deleted.expect("Kafka answers");
        let whole = deleted.elements().iter().try_for_each(|element| element.error());
        whole.expect("they are deleted");
    }

    /// Forgets a consumer group without members, and all its progress.
    pub(crate) async fn delete_group(&self, group: &str) {
        until(PATIENCE, &format!("group {group} to be deleted"), async || {
            let deleted = admin(&self.config()).delete_groups(&[group], &options()).await;
            let deleted = deleted.map_err(|error| error.to_string())?;
            // Until its last member has left it is not empty.
            if deleted.iter().all(Result::is_ok) { Ok(()) } else { Err(format!("{deleted:?}")) }
        })
        .await;
    }

    /// The state of a consumer group, and how many members it has.
    ///
    /// # Errors
    /// That of the look-up, in words.
    pub(crate) async fn group(&self, group: &str) -> Result<(String, usize), String> {
        let (config, group) = (self.config(), group.to_owned());
        let looked = tokio::task::spawn_blocking(move || {
            let client: BaseProducer =
                config.admin().create().map_err(|error| error.to_string())?;
            let listed = client.client().fetch_group_list(Some(&group), ADMIN_DEADLINE);
            let listed = listed.map_err(|error| error.to_string())?;
            let found = listed.groups().first().ok_or("there is no such group")?;
            Ok((found.state().to_owned(), found.members().len()))
        });
        looked.await.map_err(|error| error.to_string())?
    }

    /// A topic that a program is going to make by itself: on the embedded broker it cannot, so it
    /// is made here; on a shared one it is removed at the end.
    pub(crate) async fn expect_topic(&self, name: &str) {
        match self {
            Self::Embedded(_) => self.create_topic(name, PARTITIONS, &[]).await,
            _ => self.remember(name),
        }
    }

    /// The topics of a producer group, likewise.
    pub(crate) async fn expect_group(&self, config: &ProducerConfig) {
        for topic in [config.store_topic(), config.parked_topic()] {
            self.expect_topic(&topic).await;
        }
    }

    /// Takes it away without a word: no connection is served any more.
    pub(crate) async fn stop(&self) {
        match self {
            Self::Embedded(broker) => broker.stop().expect("the embedded broker stops"),
            Self::Own(broker) => broker.kill().await,
            Self::Shared(_) => panic!("other tests need this broker: ask for with_own_broker"),
        }
    }

    /// Brings it back, with everything that it had.
    pub(crate) async fn resume(&self) {
        match self {
            Self::Embedded(broker) => broker.resume().expect("the embedded broker goes on"),
            Self::Own(broker) => broker.start_again().await,
            Self::Shared(_) => panic!("this broker was not stopped"),
        }
    }

    /// Lets it stand still: connections stay, nothing is answered.
    pub(crate) async fn pause(&self) {
        match self {
            Self::Own(broker) => broker.pause().await,
            _ => panic!("only a real broker of a case's own can stand still"),
        }
    }

    /// Lets it go on.
    pub(crate) async fn unpause(&self) {
        match self {
            Self::Own(broker) => broker.unpause().await,
            _ => panic!("this broker was not paused"),
        }
    }

    fn remember(&self, topic: &str) {
        if let Self::Shared(broker) = self {
            let mut made = broker.made.lock().unwrap_or_else(PoisonError::into_inner);
            // Once each: the client crashes on a deletion that names a topic twice.
            if !made.iter().any(|other| other == topic) {
                made.push(topic.to_owned());
            }
        }
    }

    async fn known(&self, topic: &str, wanted: bool) {
        let producer: BaseProducer = self.config().admin().create().expect("a client");
        until(PATIENCE, &format!("topic {topic} known: {wanted}"), async || {
            let found = partition_count(producer.client(), topic, ADMIN_DEADLINE);
            if found.is_ok() == wanted { Ok(()) } else { Err(format!("{found:?}")) }
        })
        .await;
    }
}

/// The broker of all tests, and what this case made on it.
pub(crate) struct SharedKafka {
    config: KafkaConfig,
    made: Mutex<Vec<String>>,
}

impl Drop for SharedKafka {
    fn drop(&mut self) {
        let config = self.config.clone();
        let made = std::mem::take(self.made.get_mut().unwrap_or_else(PoisonError::into_inner));
        if made.is_empty() {
            return;
        }
        // A thread with a runtime of its own: the case's may be shutting down already.
        let removing = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let topics: Vec<&str> = made.iter().map(String::as_str).collect();
            runtime.expect("a runtime").block_on(async {
                let deleted = admin(&config).delete_topics(&topics, &options()).await;
                if let Err(error) = deleted {
                    eprintln!("topics of this test stay behind: {error}");
                }
            });
        });
        if removing.join().is_err() {
            eprintln!("topics of this test stay behind");
        }
    }
}

fn admin(kafka: &KafkaConfig) -> AdminClient<DefaultClientContext> {
    kafka.admin().create().expect("an administrative client")
}

fn options() -> AdminOptions {
    let deadline = Some(ADMIN_DEADLINE);
    AdminOptions::new().operation_timeout(deadline).request_timeout(deadline)
}

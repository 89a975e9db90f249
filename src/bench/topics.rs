//! The topics of one run: made for it, and deleted after it.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use halfmsg_kafka::{EmbeddedBroker, KafkaConfig, TopicSpec, ensure_topic};
use halfmsg_service_kit::{Mistakes, settings};
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{Offset, TopicPartitionList};

/// Partitions of store and target.
pub(crate) const PARTITIONS: i32 = 8;
/// A new topic must be known within this.
const KNOWN_DEADLINE: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(20);

/// The broker of a run, and what is created on it.
pub(crate) struct Topics {
    pub(crate) kafka: KafkaConfig,
    /// Part of every name of this run.
    pub(crate) group: String,
    /// Where committed messages go.
    pub(crate) target: String,
    made: Vec<String>,
    embedded: Option<EmbeddedBroker>,
}

impl Topics {
    /// Connects (or starts the in-process broker) and creates the target.
    pub(crate) async fn new(brokers: &str, properties: &str) -> anyhow::Result<Self> {
        let embedded = match brokers {
            "" => Some(EmbeddedBroker::start().context("starting the in-process broker")?),
            _ => None,
        };
        let mut kafka =
            embedded.as_ref().map_or_else(|| KafkaConfig::new(brokers), EmbeddedBroker::config);
        let mut mistakes = Mistakes::new();
        kafka.properties.extend(settings::kafka_properties(properties, &mut mistakes));
        mistakes.finish()?;
        let group = format!("bench-{}", uuid::Uuid::new_v4().simple());
        let target = format!("{group}.target");
        let mut topics = Self { kafka, group, target: target.clone(), made: Vec::new(), embedded };
        topics.create(&target).await?;
        Ok(topics)
    }

    /// Creates a topic of this run.
    pub(crate) async fn create(&mut self, name: &str) -> anyhow::Result<()> {
        self.will_delete(name);
        if let Some(broker) = &self.embedded {
            return Ok(broker.create_topic(name, PARTITIONS)?);
        }
        let spec = TopicSpec {
            name: name.to_owned(),
            partitions: PARTITIONS,
            replication_factor: -1,
            min_insync_replicas: -1,
            settings: Default::default(),
            required: Vec::new(),
            at_least: Vec::new(),
            advised: Vec::new(),
        };
        ensure_topic(&self.kafka, &spec, KNOWN_DEADLINE).await.context("creating a topic")?;
        Ok(())
    }

    /// A topic that the engine creates by itself, except on the in-process broker.
    pub(crate) fn engine_creates(&mut self, name: &str) -> anyhow::Result<()> {
        self.will_delete(name);
        if let Some(broker) = &self.embedded {
            broker.create_topic(name, PARTITIONS)?;
        }
        Ok(())
    }

    fn will_delete(&mut self, name: &str) {
        self.made.push(name.to_owned());
    }

    /// Deletes what this run made.
    pub(crate) async fn delete(self) {
        if self.kafka.embedded {
            return;
        }
        let names: Vec<&str> = self.made.iter().map(String::as_str).collect();
        let deleted = async {
            let admin: AdminClient<DefaultClientContext> = self.kafka.admin().create()?;
            admin.delete_topics(&names, &AdminOptions::new()).await
        };
        if let Err(error) = deleted.await {
            eprintln!("the topics of this run are left behind: {error}; {names:?}");
        }
    }
}

/// All partitions of a topic, once the client knows it: else the first message comes late.
pub(crate) fn every_partition(
    consumer: &BaseConsumer,
    topic: &str,
    from: Offset,
) -> anyhow::Result<TopicPartitionList> {
    let until = Instant::now() + KNOWN_DEADLINE;
    loop {
        let metadata = consumer.fetch_metadata(Some(topic), KNOWN_DEADLINE)?;
        let known =
            metadata.topics().iter().any(|found| found.partitions().len() as i32 == PARTITIONS);
        if known {
            break;
        }
        ensure!(Instant::now() < until, "topic '{topic}' is not known within {KNOWN_DEADLINE:?}");
        std::thread::sleep(LOOK);
    }
    let mut all = TopicPartitionList::new();
    for partition in 0..PARTITIONS {
        all.add_partition_offset(topic, partition, from)?;
    }
    Ok(all)
}

//! Creates a topic with the settings that the guarantees need, or verifies that it has them.

use std::collections::BTreeMap;
use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use crate::config::KafkaConfig;

/// A topic as it must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicSpec {
    /// Its name.
    pub name: String,
    /// The number of partitions if it is created; an existing topic may have another.
    pub partitions: i32,
    /// -1 takes the broker's `default.replication.factor`.
    pub replication_factor: i32,
    /// Settings to create it with; those also in `required` are verified on an existing topic.
    pub settings: BTreeMap<String, String>,
    /// The names of the settings without which messages could be lost.
    pub required: Vec<String>,
}

/// What [`ensure_topic`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TopicStatus {
    /// It was not there and has been created.
    Created,
    /// It was there, with the settings that are required.
    Verified,
    /// The embedded broker cannot tell.
    NotVerifiable,
}

/// Why a topic cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TopicError {
    /// The topic exists with a setting under which messages could be lost.
    #[error(
        "topic '{topic}' has {setting}={found}, but halfmsg needs {setting}={needed}: \
         messages could be lost; change it with kafka-configs.sh --alter --topic {topic} \
         --add-config {setting}={needed}"
    )]
    WrongSetting {
        /// The topic.
        topic: String,
        /// The setting's name.
        setting: String,
        /// Its value on the broker.
        found: String,
        /// The value that is needed.
        needed: String,
    },
    /// The broker refused to create the topic.
    #[error("topic '{topic}' cannot be created: {code}; create it by hand or grant the right to")]
    Refused {
        /// The topic.
        topic: String,
        /// What the broker said.
        code: RDKafkaErrorCode,
    },
    /// The topic does not exist.
    #[error("topic '{0}' does not exist on this cluster: create it, or correct the name")]
    Unknown(String),
    /// The cluster did not answer.
    #[error("Kafka did not answer about topic '{topic}': {source}")]
    Unavailable {
        /// The topic.
        topic: String,
        /// What the client said.
        source: KafkaError,
    },
}

/// Creates the topic, or verifies the one that is there.
///
/// Cancelling it leaves at most a created topic behind.
///
/// # Errors
/// [`TopicError`]; nothing is changed on an existing topic.
pub async fn ensure_topic(
    kafka: &KafkaConfig,
    spec: &TopicSpec,
    deadline: Duration,
) -> Result<TopicStatus, TopicError> {
    if kafka.embedded {
        return Ok(TopicStatus::NotVerifiable);
    }
    let unavailable = |source| TopicError::Unavailable { topic: spec.name.clone(), source };
    let admin: AdminClient<DefaultClientContext> = kafka.admin().create().map_err(unavailable)?;
    let options =
        AdminOptions::new().operation_timeout(Some(deadline)).request_timeout(Some(deadline));
    let mut topic = NewTopic::new(
        &spec.name,
        spec.partitions,
        TopicReplication::Fixed(spec.replication_factor),
    );
    for (name, value) in &spec.settings {
        topic = topic.set(name, value);
    }
    let results = admin.create_topics(&[topic], &options).await.map_err(unavailable)?;
    match results.into_iter().next() {
        Some(Ok(_)) => Ok(TopicStatus::Created),
        Some(Err((_, RDKafkaErrorCode::TopicAlreadyExists))) => {
            verify(&admin, &options, spec).await.map(|()| TopicStatus::Verified)
        }
        Some(Err((_, code))) => Err(TopicError::Refused { topic: spec.name.clone(), code }),
        None => Err(TopicError::Unknown(spec.name.clone())),
    }
}

async fn verify(
    admin: &AdminClient<DefaultClientContext>,
    options: &AdminOptions,
    spec: &TopicSpec,
) -> Result<(), TopicError> {
    let unavailable = |source| TopicError::Unavailable { topic: spec.name.clone(), source };
    let described = admin
        .describe_configs([&ResourceSpecifier::Topic(&spec.name)], options)
        .await
        .map_err(unavailable)?;
    let resource = match described.into_iter().next() {
        Some(Ok(resource)) => resource,
        Some(Err(code)) => return Err(unavailable(KafkaError::AdminOp(code))),
        None => return Err(TopicError::Unknown(spec.name.clone())),
    };
    let found = resource.entry_map();
    for name in &spec.required {
        let needed = spec.settings.get(name).map(String::as_str).unwrap_or_default();
        let value = found.get(name.as_str()).and_then(|entry| entry.value.clone());
        if value.as_deref() != Some(needed) {
            return Err(TopicError::WrongSetting {
                topic: spec.name.clone(),
                setting: name.clone(),
                found: value.unwrap_or_else(|| "(unset)".into()),
                needed: needed.to_owned(),
            });
        }
    }
    Ok(())
}

/// The number of partitions of a topic. Blocks up to `deadline`.
///
/// # Errors
/// [`TopicError::Unknown`] if there is no such topic, [`TopicError::Unavailable`] if the cluster
/// does not answer.
pub fn partition_count<C: rdkafka::ClientContext>(
    client: &rdkafka::client::Client<C>,
    topic: &str,
    deadline: Duration,
) -> Result<i32, TopicError> {
    let unavailable = |source| TopicError::Unavailable { topic: topic.to_owned(), source };
    let metadata = client.fetch_metadata(Some(topic), deadline).map_err(unavailable)?;
    let found = metadata.topics().iter().find(|found| found.name() == topic);
    match found.map(|found| (found.error(), found.partitions().len())) {
        Some((None, count)) if count > 0 => Ok(i32::try_from(count).unwrap_or(i32::MAX)),
        Some((Some(error), _)) => match RDKafkaErrorCode::from(error) {
            RDKafkaErrorCode::UnknownTopicOrPartition
            | RDKafkaErrorCode::UnknownTopic
            | RDKafkaErrorCode::InvalidTopic => Err(TopicError::Unknown(topic.to_owned())),
            code => Err(unavailable(KafkaError::MetadataFetch(code))),
        },
        _ => Err(TopicError::Unknown(topic.to_owned())),
    }
}

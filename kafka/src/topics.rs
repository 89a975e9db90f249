//! Creates a topic with the settings that the guarantees need, or verifies that it has them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::admin::{
    AdminClient, AdminOptions, ConfigResource, NewTopic, ResourceSpecifier, TopicReplication,
};
use rdkafka::client::DefaultClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use crate::config::KafkaConfig;
use crate::probe::{Probe, Seen};
use crate::replication::{self, Replication};
use crate::topic_error::TopicError;

/// The setting that says how many replicas must have a record before it is acknowledged.
const MIN_IN_SYNC: &str = "min.insync.replicas";
/// Between two looks for a topic that was just created.
const CREATED_PAUSE: Duration = Duration::from_millis(100);
/// Within this time every broker knows a topic that one of them knows.
const DESCRIBE_DEADLINE: Duration = Duration::from_secs(3);

/// A topic as it must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicSpec {
    /// Its name.
    pub name: String,
    /// The number of partitions if it is created; an existing topic may have another.
    pub partitions: i32,
    /// -1 takes the broker's `default.replication.factor`; an existing topic must not have less
    /// than is given here.
    pub replication_factor: i32,
    /// `min.insync.replicas`, likewise; -1 takes the broker's.
    pub min_insync_replicas: i32,
    /// Settings to create it with; those also in `required` are verified on an existing topic.
    pub settings: BTreeMap<String, String>,
    /// The names of the settings without which messages could be lost.
    pub required: Vec<String>,
    /// The names of settings that are numbers, and may be more than is given in `settings`.
    pub at_least: Vec<String>,
    /// The names of settings without which something only takes longer, or more room: an existing topic
    /// with other values is warned about.
    pub advised: Vec<String>,
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

/// Creates the topic, or verifies the one that is there: its settings and its replicas. What is
/// allowed, but unwise, is logged as a warning.
///
/// Needs the right to Describe and DescribeConfigs, and to Create if it is missing. Cancelling it
/// leaves at most a created topic behind.
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
    let until = Instant::now() + deadline;
    let probe = Arc::new(Probe::new(kafka)?);
    let mut status = TopicStatus::Verified;
    let mut seen = look(&probe, spec, until).await?;
    let admin: AdminClient<DefaultClientContext> =
        kafka.admin().create().map_err(TopicError::Client)?;
    let options =
        AdminOptions::new().operation_timeout(Some(deadline)).request_timeout(Some(deadline));
    if seen.replicas.is_none() {
        status = create(&admin, &options, spec, seen.brokers).await?;
    }
    let replicas = loop {
        if let Some(replicas) = seen.replicas {
            break replicas;
        }
        if Instant::now() > until {
            return Err(TopicError::Unavailable {
                topic: spec.name.clone(),
                source: KafkaError::MetadataFetch(RDKafkaErrorCode::UnknownTopicOrPartition),
            });
        }
        // A topic that was just created takes a moment to be known everywhere.
        tokio::time::sleep(CREATED_PAUSE).await;
        seen = look(&probe, spec, until).await?;
    };
    judge(&admin, &options, spec, (seen.brokers, replicas)).await?;
    Ok(status)
}

/// Verifies a topic that must be there, as [`ensure_topic`] does, and changes nothing.
///
/// # Errors
/// [`TopicError`].
pub async fn verify_topic(
    kafka: &KafkaConfig,
    spec: &TopicSpec,
    deadline: Duration,
) -> Result<(), TopicError> {
    let probe = Arc::new(Probe::new(kafka)?);
    let seen = look(&probe, spec, Instant::now() + deadline).await?;
    let replicas = seen.replicas.ok_or_else(|| TopicError::Unknown(spec.name.clone()))?;
    let admin: AdminClient<DefaultClientContext> =
        kafka.admin().create().map_err(TopicError::Client)?;
    let options =
        AdminOptions::new().operation_timeout(Some(deadline)).request_timeout(Some(deadline));
    judge(&admin, &options, spec, (seen.brokers, replicas)).await
}

/// Settings and replicas of a topic that is there.
async fn judge(
    admin: &AdminClient<DefaultClientContext>,
    options: &AdminOptions,
    spec: &TopicSpec,
    (brokers, replicas): (usize, usize),
) -> Result<(), TopicError> {
    let min_in_sync = verify(admin, options, spec).await?;
    let found = Replication { brokers, replicas, min_in_sync };
    for warning in replication::judge(spec, found)? {
        tracing::warn!("{warning}");
    }
    Ok(())
}

/// Looks until the cluster has answered, or it is clear that it will not.
async fn look(probe: &Arc<Probe>, spec: &TopicSpec, until: Instant) -> Result<Seen, TopicError> {
    loop {
        let (probe, name) = (Arc::clone(probe), spec.name.clone());
        let left = until.saturating_duration_since(Instant::now());
        let looked = tokio::task::spawn_blocking(move || probe.look(&name, left));
        match looked.await {
            Ok(Err(error)) if error.is_passing() && Instant::now() < until => {}
            Ok(result) => return result,
            Err(_) => {
                let (topic, source) = (spec.name.clone(), KafkaError::Canceled);
                return Err(TopicError::Unavailable { topic, source });
            }
        }
    }
}

async fn create(
    admin: &AdminClient<DefaultClientContext>,
    options: &AdminOptions,
    spec: &TopicSpec,
    brokers: usize,
) -> Result<TopicStatus, TopicError> {
    use RDKafkaErrorCode as Code;
    let unavailable = |source| TopicError::Unavailable { topic: spec.name.clone(), source };
    let least = spec.min_insync_replicas.to_string();
    let mut topic = NewTopic::new(
        &spec.name,
        spec.partitions,
        TopicReplication::Fixed(spec.replication_factor),
    );
    for (name, value) in &spec.settings {
        topic = topic.set(name, value);
    }
    if spec.min_insync_replicas > 0 {
        topic = topic.set(MIN_IN_SYNC, &least);
    }
    let results = admin.create_topics(&[topic], options).await.map_err(unavailable)?;
    match results.into_iter().next() {
        Some(Ok(_)) => Ok(TopicStatus::Created),
        Some(Err((_, Code::TopicAlreadyExists))) => Ok(TopicStatus::Verified),
        Some(Err((topic, Code::TopicAuthorizationFailed | Code::ClusterAuthorizationFailed))) => {
            Err(TopicError::Forbidden { topic, right: "Create" })
        }
        Some(Err((_, code))) if may_pass(code, spec, brokers) => {
            Err(unavailable(KafkaError::AdminOp(code)))
        }
        Some(Err((topic, code))) => Err(TopicError::Refused { topic, code }),
        None => Err(TopicError::Unknown(spec.name.clone())),
    }
}

/// Whether creating may succeed later: the controller is moving or busy, or brokers that are known
/// have not joined yet, which Kafka calls an invalid replication factor.
fn may_pass(code: RDKafkaErrorCode, spec: &TopicSpec, brokers: usize) -> bool {
    use RDKafkaErrorCode as Code;
    match code {
        Code::InvalidReplicationFactor => {
            usize::try_from(spec.replication_factor).map_or(true, |wanted| wanted <= brokers)
        }
        Code::RequestTimedOut
        | Code::OperationTimedOut
        | Code::NotController
        | Code::BrokerNotAvailable
        | Code::NetworkException
        | Code::ThrottlingQuotaExceeded => true,
        _ => false,
    }
}

/// Checks the settings; returns `min.insync.replicas`.
async fn verify(
    admin: &AdminClient<DefaultClientContext>,
    options: &AdminOptions,
    spec: &TopicSpec,
) -> Result<usize, TopicError> {
    let until = Instant::now() + DESCRIBE_DEADLINE;
    let mut resource = describe(admin, options, spec).await?;
    // For a topic that a broker does not know yet, and for one that may not be described, the client
    // gives the same: an empty description, and no error.
    while resource.entries.is_empty() {
        if Instant::now() > until {
            let (topic, right) = (spec.name.clone(), "DescribeConfigs");
            return Err(TopicError::Forbidden { topic, right });
        }
        tokio::time::sleep(CREATED_PAUSE).await;
        resource = describe(admin, options, spec).await?;
    }
    let entries = resource.entry_map();
    let value = |name: &str| entries.get(name).and_then(|entry| entry.value.as_deref());
    check_settings(spec, value)?;
    if let Some(advice) = advice(spec, value) {
        tracing::warn!("{advice}");
    }
    let least = value(MIN_IN_SYNC).and_then(|least| least.parse().ok());
    // Every Kafka has it; one that hides it cannot be judged by it.
    Ok(least.unwrap_or(1))
}

async fn describe(
    admin: &AdminClient<DefaultClientContext>,
    options: &AdminOptions,
    spec: &TopicSpec,
) -> Result<ConfigResource, TopicError> {
    let unavailable = |source| TopicError::Unavailable { topic: spec.name.clone(), source };
    let described = admin
        .describe_configs([&ResourceSpecifier::Topic(&spec.name)], options)
        .await
        .map_err(unavailable)?;
    match described.into_iter().next() {
        Some(Ok(resource)) => Ok(resource),
        Some(Err(code)) => Err(unavailable(KafkaError::AdminOp(code))),
        None => Err(TopicError::Unknown(spec.name.clone())),
    }
}

fn check_settings<'a>(
    spec: &TopicSpec,
    found: impl Fn(&str) -> Option<&'a str>,
) -> Result<(), TopicError> {
    let needed = |name: &str| spec.settings.get(name).cloned().unwrap_or_default();
    let shown = |name: &str| found(name).unwrap_or("(unset)").to_owned();
    let topic = || spec.name.clone();
    for setting in &spec.required {
        let (found, needed) = (shown(setting), needed(setting));
        if found != needed {
            let setting = setting.clone();
            return Err(TopicError::WrongSetting { topic: topic(), setting, found, needed });
        }
    }
    for setting in &spec.at_least {
        let (found, needed) = (shown(setting), needed(setting));
        let enough = found.parse::<i64>().ok() >= needed.parse::<i64>().ok();
        if !enough {
            let setting = setting.clone();
            return Err(TopicError::TooLow { topic: topic(), setting, found, needed });
        }
    }
    Ok(())
}

/// What an existing topic should have and has not, in words.
fn advice<'a>(spec: &TopicSpec, found: impl Fn(&str) -> Option<&'a str>) -> Option<String> {
    let differs = |name: &&String| found(name) != spec.settings.get(*name).map(String::as_str);
    let differing: Vec<&String> = spec.advised.iter().filter(differs).collect();
    if differing.is_empty() {
        return None;
    }
    let shown = |name: &&String| format!("{name}={}", found(name).unwrap_or("(unset)"));
    let wanted =
        |name: &&String| format!("{name}={}", spec.settings.get(*name).map_or("", String::as_str));
    let list = |of: &dyn Fn(&&String) -> String| differing.iter().map(of).collect::<Vec<_>>();
    Some(format!(
        "topic '{topic}' has {}: it works, but is read more slowly than it could be; better: \
         kafka-configs.sh --alter --topic {topic} --add-config {}",
        list(&shown).join(", "),
        list(&wanted).join(","),
        topic = spec.name,
    ))
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
            RDKafkaErrorCode::TopicAuthorizationFailed => {
                Err(TopicError::Forbidden { topic: topic.to_owned(), right: "Describe" })
            }
            code => Err(unavailable(KafkaError::MetadataFetch(code))),
        },
        _ => Err(TopicError::Unknown(topic.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> TopicSpec {
        let settings = [("cleanup.policy", "delete"), ("max.message.bytes", "1000")];
        TopicSpec {
            name: "t".into(),
            partitions: 1,
            replication_factor: -1,
            min_insync_replicas: -1,
            settings: settings.map(|(name, value)| (name.into(), value.into())).into(),
            required: vec!["cleanup.policy".into()],
            at_least: vec!["max.message.bytes".into()],
            advised: Vec::new(),
        }
    }

    fn checked(policy: &'static str, bytes: Option<&'static str>) -> Result<(), TopicError> {
        check_settings(&spec(), |name| match name {
            "cleanup.policy" => Some(policy),
            _ => bytes,
        })
    }

    #[test]
    fn more_than_is_needed_is_accepted() {
        for bytes in ["1000", "1001", "2147483647"] {
            assert!(checked("delete", Some(bytes)).is_ok(), "{bytes}");
        }
    }

    #[test]
    fn less_and_nothing_are_refused_with_the_command() {
        for bytes in [Some("999"), Some("many"), None] {
            let refused = checked("delete", bytes).unwrap_err().to_string();
            assert!(refused.contains("--add-config max.message.bytes=1000"), "{refused}");
        }
        let refused = checked("compact", Some("1000")).unwrap_err().to_string();
        assert!(refused.contains("cleanup.policy=compact"), "{refused}");
    }

    #[test]
    fn what_is_only_better_is_told_and_not_refused() {
        let mut spec = spec();
        spec.settings.insert("segment.ms".into(), "1000".into());
        spec.advised.push("segment.ms".into());
        let found = |value: &'static str| {
            move |name: &str| Some(if name == "segment.ms" { value } else { "delete" })
        };
        assert_eq!(advice(&spec, found("1000")), None);
        let told = advice(&spec, found("7")).expect("it differs");
        assert!(told.contains("segment.ms=7") && told.contains("--add-config segment.ms=1000"));
        spec.at_least.clear();
        assert!(check_settings(&spec, found("7")).is_ok());
    }

    #[test]
    fn brokers_that_have_not_joined_yet_are_waited_for() {
        let code = RDKafkaErrorCode::InvalidReplicationFactor;
        let wanted = |replication_factor| TopicSpec { replication_factor, ..spec() };
        assert!(may_pass(code, &wanted(3), 3));
        assert!(may_pass(code, &wanted(-1), 1));
        assert!(!may_pass(code, &wanted(3), 1));
        assert!(!may_pass(RDKafkaErrorCode::PolicyViolation, &wanted(1), 1));
    }
}

//! A producer group belongs to one application: its name is kept in the parked topic, under a key
//! that no transaction id can have. Without it two applications with the same group name would
//! answer each other's check-backs with "no listener" until everything is parked.

use std::time::{Duration, Instant};

use halfmsg_kafka::{KafkaConfig, TopicError};
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::producer::{FutureProducer, FutureRecord};

use crate::config::{ProducerConfig, RETRY_DELAY};
use crate::error::StartError;
use crate::scan::{Patience, is_denied, scan_all};

/// The reserved key, in partition 0.
const KEY: &str = "halfmsg.application";
/// Writing it once; reading without progress.
const STEP_DEADLINE: Duration = Duration::from_secs(30);

/// Claims the group for the application, or refuses.
///
/// Of two applications that claim a new group at once, the one whose name stands last has it:
/// both look again after writing.
///
/// # Errors
/// [`StartError::ForeignGroup`]; [`StartError::Topic`] if the broker does not answer in time, or
/// the parked topic may not be read or written.
pub(crate) async fn claim(config: &ProducerConfig) -> Result<(), StartError> {
    if config.kafka.embedded {
        return Ok(());
    }
    let until = Instant::now() + config.start_deadline;
    loop {
        match try_claim(config).await {
            Err(StartError::Client(error)) if !is_denied(&error) => {
                if Instant::now() > until {
                    let topic = config.parked_topic();
                    return Err(TopicError::Unavailable { topic, source: error }.into());
                }
                tracing::debug!(%error, "looking up whose group it is");
                tokio::time::sleep(RETRY_DELAY).await;
            }
            Err(StartError::Client(error)) => return Err(denied(config, &error).into()),
            result => return result,
        }
    }
}

async fn try_claim(config: &ProducerConfig) -> Result<(), StartError> {
    let topic = config.parked_topic();
    let mut owner = find(&config.kafka, &topic).await?;
    if owner.is_none() {
        write(config, &topic).await?;
        owner = find(&config.kafka, &topic).await?;
    }
    match owner {
        Some(owner) if owner != config.application => Err(StartError::ForeignGroup {
            group: config.group.clone(),
            owner,
            application: config.application.clone(),
        }),
        _ => Ok(()),
    }
}

fn denied(config: &ProducerConfig, error: &KafkaError) -> TopicError {
    let right = if matches!(error, KafkaError::MessageProduction(_)) { "Write" } else { "Read" };
    TopicError::Forbidden { topic: config.parked_topic(), right }
}

async fn find(kafka: &KafkaConfig, topic: &str) -> Result<Option<String>, StartError> {
    let (kafka, topic) = (kafka.clone(), topic.to_owned());
    let found = tokio::task::spawn_blocking(move || {
        let mut owner = None;
        scan_all(&kafka, &topic, &[0], Patience::Idle(STEP_DEADLINE), |message| {
            if message.key() == Some(KEY.as_bytes()) {
                let name = message.payload().unwrap_or_default();
                owner = Some(String::from_utf8_lossy(name).into_owned());
            }
        })?;
        Ok(owner)
    });
    found.await.unwrap_or(Err(StartError::Client(KafkaError::Canceled)))
}

async fn write(config: &ProducerConfig, topic: &str) -> Result<(), StartError> {
    let producer: FutureProducer = config.kafka.producer().create()?;
    let record = FutureRecord::to(topic).partition(0).key(KEY).payload(&config.application);
    let sent = producer.send(record, STEP_DEADLINE).await;
    sent.map(|_| ()).map_err(|(error, _)| StartError::Client(error))
}

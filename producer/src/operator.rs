//! An operator's view and hand without an application: brokers, prefix and group are enough, so it
//! helps when the service is down.
//!
//! It has no listener and no membership. It must never decide by itself what became of a local
//! transaction: every decision here is forced, with a name and a reason.
//!
//! # Layout
//! - `reset`: where a partition's replay begins
//! - `skip`: passing a record of a newer format
//! - `redeliver`: a second copy of a delivered message
//! - `journal`: what was done, by whom and why, kept in the parked topic

use std::sync::Arc;
use std::time::Duration;

use halfmsg_kafka::{
    KafkaConfig, TopicError, TopicStatus, ensure_topic, partition_count, verify_topic,
};
use halfmsg_protocol::Verdict;
use rdkafka::consumer::Consumer;
use serde::Serialize;
use tokio::sync::Semaphore;

pub(crate) mod journal;
mod redeliver;
mod reset;
mod skip;

pub use journal::told::{ActView, JournalFilter, JournalPage};
pub use redeliver::Redelivered;
pub use reset::{ResetPlan, ResetTo};
pub use skip::Skipped;

use crate::TransactionId;
use crate::admin::desk::Desk;
use crate::admin::{
    AdminError, ForeignFilter, ForeignView, HalfDetail, HalfFilter, HalfView, OperatorRequest, Page,
};
use crate::bodies::Bodies;
use crate::config::ProducerConfig;
use crate::error::StartError;
use crate::log::StoreLog;
use crate::snapshot::{SnapshotLimits, SnapshotProgress};
use crate::{stored, topics};

/// Appending one record, and writing one entry of the journal.
const WRITE_DEADLINE: Duration = Duration::from_secs(10);
/// The application's name in clients of this kind; no half message is ever its.
const NAME: &str = "halfmsg-operator";

/// Sees and settles the half messages of a group from outside. Cheap to clone.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use halfmsg_kafka::KafkaConfig;
/// use halfmsg_producer::{HalfFilter, OperatorClient};
///
/// let client = OperatorClient::new(KafkaConfig::new("localhost:9092"), "halfmsg", "order-svc")?;
/// for half in client.list(HalfFilter { limit: 100, ..HalfFilter::default() }).await?.items {
///     println!("{} {} {}", half.transaction_id, half.state, half.age_seconds);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct OperatorClient {
    desk: Desk,
}

/// One of the group's own topics.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TopicReport {
    /// Its name.
    pub name: String,
    /// `created` or `verified`.
    pub status: &'static str,
    /// Its partitions.
    pub partitions: i32,
}

impl OperatorClient {
    /// A client for the group with this name and topic prefix. It connects when it is used.
    ///
    /// # Errors
    /// [`StartError::Config`], [`StartError::Client`].
    pub fn new(
        kafka: KafkaConfig,
        topic_prefix: impl Into<String>,
        group: impl Into<String>,
    ) -> Result<Self, StartError> {
        let mut config = ProducerConfig::new(kafka, NAME, group);
        config.topic_prefix = topic_prefix.into();
        config.decision_deadline = WRITE_DEADLINE;
        config.validate()?;
        let max_bytes = topics::store_record_bytes(&config);
        let log = StoreLog::new(&config.kafka, config.store_topic(), WRITE_DEADLINE, max_bytes)?;
        let desk = Desk {
            bodies: Arc::new(Bodies::new(&config)),
            config: Arc::new(config),
            log: Arc::new(log),
            looks: Arc::new(Semaphore::new(1)),
            limits: SnapshotLimits::default(),
            report: None,
            replica: None,
        };
        Ok(Self { desk })
    }

    /// With other bounds of a look.
    #[must_use]
    pub fn limits(mut self, limits: SnapshotLimits) -> Self {
        self.desk.limits = limits;
        self
    }

    /// Calls this, from another thread, with how far a look has come.
    #[must_use]
    pub fn on_progress(
        mut self,
        report: impl Fn(SnapshotProgress) + Send + Sync + 'static,
    ) -> Self {
        self.desk.report = Some(Arc::new(report));
        self
    }

    /// Open and parked halves, in the order of partition and offset. A partition that nobody leads now
    /// or that stands still, is named ([`Page::missing_partitions`]), and the others are listed.
    ///
    /// # Errors
    /// [`AdminError`]; see its variants.
    pub async fn list(&self, filter: HalfFilter) -> Result<Page<HalfView>, AdminError> {
        self.desk.list(filter).await
    }

    /// Copies of records of the store that are none of ours, in the order of partition and offset of the
    /// record. It reads the whole parked topic, within the deadline of a look.
    ///
    /// # Errors
    /// [`AdminError`]; see its variants.
    pub async fn foreign(&self, filter: ForeignFilter) -> Result<Page<ForeignView>, AdminError> {
        self.desk.foreign(filter).await
    }

    /// What operators did, newest first, as the journal tells it. It reads the whole parked topic, within the
    /// deadline of a look.
    ///
    /// ```no_run
    /// # async fn example(client: halfmsg_producer::OperatorClient) -> Result<(), halfmsg_producer::AdminError> {
    /// use halfmsg_producer::JournalFilter;
    ///
    /// let journal = client.journal(JournalFilter { limit: 20, ..JournalFilter::default() }).await?;
    /// for act in journal.page.items {
    ///     println!("{} {} {}: {}", act.began_at, act.operator, act.action, act.outcome);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`AdminError::Invalid`] for a cursor that is none, [`AdminError::Unreachable`],
    /// [`AdminError::Incomplete`], [`AdminError::NoTopic`].
    pub async fn journal(&self, filter: JournalFilter) -> Result<JournalPage, AdminError> {
        self.desk.journal(filter).await
    }

    /// All open and parked halves, of one look at the store, whose limits bound them.
    ///
    /// # Errors
    /// [`AdminError`]; see its variants.
    pub async fn everything(&self) -> Result<Page<HalfView>, AdminError> {
        self.desk.everything().await
    }

    /// One half with payload and history. What is closed is found as long as the log holds it.
    ///
    /// # Errors
    /// [`AdminError::NotFound`] and others.
    pub async fn show(&self, id: TransactionId) -> Result<HalfDetail, AdminError> {
        self.desk.get(id).await?.ok_or(AdminError::NotFound(id))
    }

    /// Commits: its owner delivers the message. Needs force, because there is no listener here.
    ///
    /// # Errors
    /// [`AdminError`]; see its variants.
    pub async fn commit(
        &self,
        id: TransactionId,
        request: OperatorRequest,
    ) -> Result<HalfView, AdminError> {
        self.desk.decide(id, Verdict::Commit, request).await
    }

    /// Rolls back: the message is dropped. Needs force, because there is no listener here.
    ///
    /// # Errors
    /// [`AdminError`]; see its variants.
    pub async fn rollback(
        &self,
        id: TransactionId,
        request: OperatorRequest,
    ) -> Result<HalfView, AdminError> {
        self.desk.decide(id, Verdict::Rollback, request).await
    }

    /// Opens a parked message again; its owner asks the listener at once.
    ///
    /// # Errors
    /// [`AdminError`]; see its variants.
    pub async fn resume(
        &self,
        id: TransactionId,
        request: OperatorRequest,
    ) -> Result<HalfView, AdminError> {
        self.desk.resume(id, request).await
    }

    /// Verifies the group's own topics, or creates those that are missing.
    ///
    /// # Errors
    /// [`TopicError`]; see its variants.
    pub async fn topics(&self, create: Option<NewTopics>) -> Result<Vec<TopicReport>, TopicError> {
        let mut config = ProducerConfig::clone(&self.desk.config);
        if let Some(new) = create {
            config.store_partitions = new.partitions;
            config.replication_factor = new.replication_factor;
            config.min_insync_replicas = new.min_insync_replicas;
        }
        let mut reports = Vec::new();
        for spec in topics::specs(&config) {
            let deadline = self.desk.limits.deadline;
            let status = match create {
                Some(_) => ensure_topic(&config.kafka, &spec, deadline).await?,
                None => TopicStatus::Verified,
            };
            verify_topic(&config.kafka, &spec, deadline).await?;
            let partitions = self.partitions_of(&spec.name).await?;
            let status = if status == TopicStatus::Created { "created" } else { "verified" };
            reports.push(TopicReport { name: spec.name, status, partitions });
        }
        Ok(reports)
    }

    async fn partitions_of(&self, topic: &str) -> Result<i32, TopicError> {
        let (kafka, name) = (self.desk.config.kafka.clone(), topic.to_owned());
        let deadline = self.desk.limits.deadline;
        let counted = tokio::task::spawn_blocking(move || {
            let client = stored::client(&kafka, &name).map_err(TopicError::Client)?;
            partition_count(client.client(), &name, deadline)
        });
        let ended = |_| TopicError::Unavailable {
            topic: topic.to_owned(),
            source: rdkafka::error::KafkaError::Canceled,
        };
        counted.await.map_err(ended)?
    }
}

/// How topics that are missing are created.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewTopics {
    /// Partitions of each.
    pub partitions: i32,
    /// -1 takes the broker's default.
    pub replication_factor: i32,
    /// -1 takes the broker's default.
    pub min_insync_replicas: i32,
}

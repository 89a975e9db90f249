//! The emitter's work: the calls to the client, and how their errors are climbed down from. What a
//! batch becomes as records is in `sending`, who is to blame for a failure in `judging`, and for a
//! transaction that the broker refuses as a whole in `refusal`.
//!
//! The ladder is librdkafka's: a fatal error ends the client, one that requires an abort ends the
//! transaction, a retriable one repeats the very same call (INTRODUCTION.md, "Transactional
//! producer API"; KIP-98).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use halfmsg_protocol::{Half, Progress};
use rdkafka::TopicPartitionList;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::producer::{Producer, PurgeConfig};

use super::assignment::REVOKE_DEADLINE;
use super::claim::Fencing;
use super::delivery::{self, Client};
use super::emitter::{EmitterParts, Item, Job, JobEnd, STEP_PAUSE, Trouble, Work};
use super::takeover::WITHDRAWN;
use crate::bodies::{StoreReader, Whole};
use crate::config::{CrashPoint, Emission};
use crate::stored::{self, offsets};

mod hanging;
mod judging;
mod refusal;
mod sending;

#[cfg(test)]
mod tests;

use hanging::{Hanging, Pending};
use judging::cannot_be_read;

/// One blocking call of the client.
const STEP: Duration = Duration::from_secs(5);
/// The same where the call begins anew when it is repeated; an answer that comes later counts for nothing.
const LONGEST_STEP: Duration = Duration::from_secs(60);
/// One call that fences: whoever gives the partition up waits for its end.
pub(super) const INIT_STEP: Duration = Duration::from_secs(1);
/// Fencing the former owner, whose open transaction the broker ends first.
pub(super) const OPEN_DEADLINE: Duration = Duration::from_secs(20);

/// Why a partition is not taken over.
const NO_PROGRESS: &str = "its stored progress cannot be read: is the group's coordinator away?";
/// Reading the partition's stored progress.
const PROGRESS_DEADLINE: Duration = Duration::from_secs(5);

const _: () = assert!(
    INIT_STEP.as_millis() + STEP_PAUSE.as_millis() < REVOKE_DEADLINE.as_millis(),
    "partitions must not be given up while their former owner may still fence the new one"
);

/// Why a transaction did not go on.
enum Stuck {
    /// It must be aborted, and may be tried again.
    Abort(KafkaError),
    /// The client cannot go on.
    Lost(KafkaError),
    /// Told to stop.
    Stopped,
}

/// The client of a partition and what it needs.
pub(crate) struct Worker<'a> {
    parts: EmitterParts,
    partition: i32,
    store: String,
    parked_topic: String,
    client: Client,
    /// Dropped after the client: one that failed here may go on trying until it is gone.
    fencing: Option<Fencing>,
    /// Reads bodies again that memory had no room for.
    reader: StoreReader,
    stop: &'a AtomicBool,
}

impl<'a> Worker<'a> {
    /// Makes the client, and in exactly-once mode the partition's own: the former owner is fenced,
    /// its open transaction ended.
    pub(crate) fn open(
        parts: EmitterParts,
        partition: i32,
        stop: &'a AtomicBool,
    ) -> Result<Self, String> {
        let config = &parts.config;
        let fencing = Some(parts.claim.fence().ok_or(WITHDRAWN)?);
        let client = delivery::client(config, partition).map_err(|error| error.to_string())?;
        let (store, parked_topic) = (config.store_topic(), config.parked_topic());
        let reader = StoreReader::new(config, partition);
        let mut worker =
            Self { parts, partition, store, parked_topic, client, fencing, reader, stop };
        if worker.is_transactional() {
            worker.init()?;
            // Nobody is fenced by what follows: whoever takes the partition meanwhile fences this.
            worker.fencing = None;
            worker.end_what_hangs()?;
        } else if let Some(why) = worker.waits_for_another() {
            return Err(why);
        } else if let Err(error) = worker.client.client().fetch_metadata(Some(&worker.store), STEP)
        {
            // Only a connection in advance: without it the first delivery would wait for one.
            tracing::debug!(%error, partition, "connecting");
        }
        worker.fencing = None;
        Ok(worker)
    }

    fn is_transactional(&self) -> bool {
        self.parts.config.emission == Emission::ExactlyOnce
    }

    fn init(&self) -> Result<(), String> {
        let until = Instant::now() + OPEN_DEADLINE;
        loop {
            if self.stop.load(Ordering::Relaxed) || self.parts.claim.is_withdrawn() {
                return Err(WITHDRAWN.into());
            }
            match self.client.init_transactions(INIT_STEP) {
                Ok(()) => return Ok(()),
                Err(KafkaError::Transaction(error))
                    if error.is_retriable() && Instant::now() < until =>
                {
                    tracing::debug!(%error, partition = self.partition, "initialising transactions");
                    std::thread::sleep(STEP_PAUSE);
                }
                Err(error) => return Err(format!("initialising transactions: {error}")),
            }
        }
    }

    fn end_what_hangs(&self) -> Result<(), String> {
        let given_up = hanging::end_what_hangs(self).map_err(|why| match why {
            Hanging::Unreadable => NO_PROGRESS.into(),
            Hanging::NotOurs => self.why_unreadable(),
            Hanging::Stuck(Stuck::Abort(error) | Stuck::Lost(error)) => {
                format!("ending what hangs: {error}")
            }
            Hanging::Stuck(Stuck::Stopped) => WITHDRAWN.to_owned(),
        })?;
        if given_up {
            tracing::error!(
                topic = self.store,
                partition = self.partition,
                "the broker had never ended a transaction of the former owner (KAFKA-20734): what was \
                 delivered in it may be delivered again"
            );
        }
        Ok(())
    }

    /// At least once: why progress cannot be read, which no transaction of this mode could end. A coordinator
    /// that was only slow has come back by the second time.
    fn waits_for_another(&self) -> Option<String> {
        if self.is_readable() {
            return None;
        }
        let why = self.why_unreadable();
        (!self.is_readable()).then_some(why)
    }

    /// Why progress cannot be read that no transaction of this client's can end, and what to do.
    fn why_unreadable(&self) -> String {
        if !Pending::is_pending(self) {
            return NO_PROGRESS.into();
        }
        let (store, partition) = (&self.store, self.partition);
        let id = self.parts.config.transactional_id(partition);
        format!(
            "the progress of {store}[{partition}] belongs to a transaction that has not ended and that \
             this replica cannot end: it was begun with emission exactly-once, or under another \
             transactional id than '{id}'. If its owner has died, it ends by itself within its \
             transaction timeout. If this lasts longer, the broker has lost the end (KAFKA-20734, \
             Apache Kafka 4.3.0 to 4.4.0): start a replica as it was then, with emission exactly-once \
             and the same group and prefix, which ends it; or end it with kafka-transactions.sh \
             find-hanging and abort, on the topic __consumer_offsets"
        )
    }

    /// It is not while a transaction that stores it has no end.
    fn is_progress_readable<C: ConsumerContext>(&self, client: &BaseConsumer<C>) -> bool {
        let mut wanted = TopicPartitionList::new();
        wanted.add_partition(&self.store, self.partition);
        // Another error of the partition is the takeover's business.
        let is_stable = |found: &TopicPartitionList| {
            let error = found.find_partition(&self.store, self.partition).map(|at| at.error());
            let code = error.and_then(Result::err).and_then(|error| error.rdkafka_error_code());
            code != Some(RDKafkaErrorCode::UnstableOffsetCommit)
        };
        let found = client.committed_offsets(wanted, PROGRESS_DEADLINE).and_then(|found| {
            let unstable = KafkaError::MetadataFetch(RDKafkaErrorCode::UnstableOffsetCommit);
            if is_stable(&found) { Ok(()) } else { Err(unstable) }
        });
        if let Err(error) = &found {
            tracing::warn!(%error, partition = self.partition, "the stored progress cannot be read");
        }
        found.is_ok()
    }

    /// Carries a batch out; nothing if it was told to stop.
    pub(crate) fn carry_out(&mut self, job: &Job) -> Option<JobEnd> {
        let began = SystemTime::now();
        let unknown = self.unknown_targets(job)?;
        let halves: Vec<&Arc<Half>> = job.items.iter().filter_map(Item::half).collect();
        let stop = self.stop;
        let given_up = || stop.load(Ordering::Relaxed);
        let whole = match self.reader.whole(&halves, given_up) {
            Ok(whole) => whole,
            Err(_) if given_up() => return None,
            Err(unread) => return Some(JobEnd::Aborted(cannot_be_read(job, &unread))),
        };
        // All this may have taken long, and at least once nothing else keeps a former owner back.
        if given_up() {
            return None;
        }
        let end = match self.is_transactional() {
            true if unknown.is_empty() => self.all_or_nothing(job, &whole)?,
            true => JobEnd::Aborted(unknown),
            false => self.records(job, &whole, unknown)?,
        };
        self.allowed(job, &end);
        super::spans::sent(job, &whole, began, &end);
        Some(end)
    }

    /// Targets that have just taken a message are not denied.
    fn allowed(&self, job: &Job, end: &JobEnd) {
        let JobEnd::Done(troubles) = end else { return };
        let is_done = |index: usize| troubles.iter().all(|(at, _)| *at != index);
        let done = job.items.iter().enumerate().filter(|(index, _)| is_done(*index));
        let targets = done.filter_map(|(_, item)| match &item.work {
            Work::Deliver(half, _) => Some(half.meta.topic.as_str()),
            _ => None,
        });
        self.parts.targets.allowed(targets);
    }

    fn all_or_nothing(&mut self, job: &Job, whole: &Whole) -> Option<JobEnd> {
        match self.transaction(job, whole) {
            Ok(end) => Some(end),
            Err(Stuck::Abort(error)) => {
                tracing::warn!(%error, partition = self.partition, "a transaction is aborted");
                self.abort(Vec::new())
            }
            Err(Stuck::Lost(error)) => Some(JobEnd::Lost(error.to_string())),
            Err(Stuck::Stopped) => None,
        }
    }

    /// At least once: the records, and what became of each.
    fn records(
        &mut self,
        job: &Job,
        whole: &Whole,
        mut troubles: Vec<(usize, Trouble)>,
    ) -> Option<JobEnd> {
        let reports = self.send(job, whole, &troubles);
        if !reports.wait(self.stop) {
            // What is queued must not go out long after another owner has gone on.
            self.client.purge(PurgeConfig::default().queue());
            return None;
        }
        self.crash_at(CrashPoint::AfterDelivery, job);
        troubles.extend(self.judge(job, reports.failures()));
        let marks = self.send_marks(job, &troubles);
        if !marks.wait(self.stop) {
            self.client.purge(PurgeConfig::default().queue());
            return None;
        }
        troubles.extend(self.unmarked(marks.failures()));
        if let Some((code, text)) = self.client.client().fatal_error() {
            tracing::error!(%code, text, partition = self.partition, "the client is made anew");
            match delivery::client(&self.parts.config, self.partition) {
                Ok(client) => self.client = client,
                Err(error) => return Some(JobEnd::Lost(error.to_string())),
            }
        }
        Some(JobEnd::Done(troubles))
    }

    /// Exactly once: records and progress, all or nothing.
    fn transaction(&mut self, job: &Job, whole: &Whole) -> Result<JobEnd, Stuck> {
        self.insist(|| self.client.begin_transaction())?;
        let reports = self.send(job, whole, &[]);
        if !reports.wait(self.stop) {
            return Err(Stuck::Stopped);
        }
        // Before the abort: it would add the records that it takes back.
        let failures = reports.failures();
        if !failures.is_empty() {
            if let Some(refusal) = self.refused_as_a_whole(&failures) {
                return self.find_who_is_refused(job, failures, &refusal);
            }
            let troubles = self.judge(job, failures);
            return self.abort(troubles).ok_or(Stuck::Stopped);
        }
        self.crash_at(CrashPoint::AfterDelivery, job);
        if let Some(progress) = job.progress {
            self.store(progress)?;
        }
        // From here on an error that asks for an abort does not say that nothing was committed: the
        // broker may have done it and died before its answer (librdkafka, "a tricky state" in
        // rd_kafka_txn_handle_EndTxn). Only the stored progress tells, to whoever takes over.
        self.insist(|| self.client.commit_transaction(STEP)).map_err(|stuck| match stuck {
            Stuck::Abort(error) => Stuck::Lost(error),
            stuck => stuck,
        })?;
        self.crash_at(CrashPoint::AfterCommit, job);
        Ok(JobEnd::Done(Vec::new()))
    }

    fn store(&self, progress: Progress) -> Result<(), Stuck> {
        let offsets = offsets(&self.store, [(self.partition, progress)]).map_err(Stuck::Lost)?;
        self.insist(|| self.store_offsets(&offsets))
    }

    /// The group's generation as it is now: a member that the group has given up is refused.
    fn store_offsets(&self, offsets: &TopicPartitionList) -> KafkaResult<()> {
        let group = self.parts.consumer.group_metadata().ok_or(KafkaError::Canceled)?;
        // Made again it begins anew, unlike a commit or an abort (librdkafka resumes those only): a broker that
        // takes longer than one wait each time would never be done. With what is left of the transaction's time
        // an abort may still find it.
        let timeout = self.parts.config.transaction_timeout;
        let step = timeout.saturating_sub(STEP).clamp(STEP, LONGEST_STEP);
        self.client.send_offsets_to_transaction(offsets, &group, step)
    }

    fn abort(&self, troubles: Vec<(usize, Trouble)>) -> Option<JobEnd> {
        match self.end_all() {
            Ok(()) => Some(JobEnd::Aborted(troubles)),
            Err(Stuck::Abort(error) | Stuck::Lost(error)) => Some(JobEnd::Lost(error.to_string())),
            Err(Stuck::Stopped) => None,
        }
    }

    /// Repeats a call as long as its error says that it may be.
    fn insist(&self, call: impl Fn() -> KafkaResult<()>) -> Result<(), Stuck> {
        loop {
            let error = match call() {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            match &error {
                KafkaError::Transaction(found) if found.is_fatal() => {
                    return Err(Stuck::Lost(error));
                }
                KafkaError::Transaction(found) if found.txn_requires_abort() => {
                    return Err(Stuck::Abort(error));
                }
                KafkaError::Transaction(found) if found.is_retriable() => {}
                KafkaError::Flush(_) => {}
                _ => return Err(Stuck::Lost(error)),
            }
            if self.stop.load(Ordering::Relaxed) {
                return Err(Stuck::Stopped);
            }
            tracing::debug!(%error, partition = self.partition, "a transactional call is repeated");
            std::thread::sleep(STEP_PAUSE);
        }
    }

    /// For the tests that kill the process around a delivery and its progress.
    fn crash_at(&self, point: CrashPoint, job: &Job) {
        let delivers = job.items.iter().any(|item| matches!(item.work, Work::Deliver(..)));
        if delivers && self.parts.config.crash_at == Some(point) {
            tracing::error!(?point, "aborting, as configured");
            std::process::abort();
        }
    }
}

impl Pending for Worker<'_> {
    fn is_readable(&self) -> bool {
        self.is_progress_readable(&self.parts.consumer)
    }

    fn is_pending(&self) -> bool {
        let others = stored::client(&self.parts.config.kafka, &self.store);
        others.is_ok_and(|client| self.is_progress_readable(&client))
    }

    fn begin(&self) -> Result<(), Stuck> {
        self.insist(|| self.client.begin_transaction())
    }

    fn name_progress(&self) -> Result<(), Stuck> {
        self.store(Progress { low_water: 0, position: 0 })
    }

    fn end_all(&self) -> Result<(), Stuck> {
        self.insist(|| self.client.abort_transaction(STEP))
    }
}

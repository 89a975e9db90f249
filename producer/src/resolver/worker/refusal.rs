//! A transaction that the broker refuses as a whole: it then says of no record which topic it would
//! not take. It must never blame a target for the parked topic, which may be in the same transaction.

use rdkafka::error::{KafkaError, RDKafkaError, RDKafkaErrorCode};
use rdkafka::producer::Producer;

use super::{Pending, STEP, Stuck, Worker};
use crate::resolver::delivery::{self, Blame, blame};
use crate::resolver::emitter::{Job, JobEnd, Trouble, Work};
use crate::resolver::takeover::WITHDRAWN;

/// What the parked topic says to a record in a transaction of its own.
pub(super) enum Parked {
    Takes,
    Refuses(String),
    /// It could not be asked.
    Unknown(String),
}

/// What it takes to ask the parked topic. Each call may be the last that its owner lives to make.
pub(super) trait AsksParked: Pending {
    /// Sends it a record, in the transaction that is open.
    fn probe(&self) -> Result<Parked, Stuck>;
    /// Takes that transaction back; how it ended.
    fn take_back(&mut self, answer: &Parked) -> Result<JobEnd, Stuck>;
}

/// Whether the parked topic takes a record, in a transaction that is taken back; and how that ended.
pub(super) fn ask_parked(of: &mut impl AsksParked) -> Result<(Parked, JobEnd), Stuck> {
    of.begin()?;
    let answer = of.probe()?;
    let end = of.take_back(&answer)?;
    Ok((answer, end))
}

impl Worker<'_> {
    /// Why the broker has refused the transaction, if these records say no more than that they were
    /// taken back: that it would not let a topic into it (one without the right to write, say) it
    /// says of the transaction, and the client then sends nothing.
    pub(super) fn refused_as_a_whole(
        &self,
        failures: &[(usize, KafkaError)],
    ) -> Option<RDKafkaError> {
        use RDKafkaErrorCode::{PurgeInflight, PurgeQueue, State};
        let taken_back = |error: &KafkaError| {
            matches!(error, KafkaError::MessageProduction(PurgeInflight | PurgeQueue | State))
        };
        if !failures.iter().all(|(_, error)| taken_back(error)) {
            return None;
        }
        // It does nothing in this state but tell why.
        match self.client.commit_transaction(STEP) {
            Err(KafkaError::Transaction(error)) if error.txn_requires_abort() => Some(error),
            _ => None,
        }
    }

    /// Takes the batch back, and finds out who may be to blame. If the parked topic was part of the
    /// transaction, it is asked first: a message must not be refused for good because another
    /// topic may not be written.
    pub(super) fn find_who_is_refused(
        &mut self,
        job: &Job,
        failures: Vec<(usize, KafkaError)>,
        refusal: &RDKafkaError,
    ) -> Result<JobEnd, Stuck> {
        let why = refusal.to_string();
        if blames(refusal) == Blame::Nobody {
            // A record that is refused leaves a gap in the sequence, and those sent behind it
            // are refused for the gap; that may be all that the client tells. Of one alone it
            // says nothing.
            let gap = refusal.code() == RDKafkaErrorCode::OutOfOrderSequenceNumber;
            if gap && job.items.len() > 1 {
                return self.begin_anew(all_suspects(job, &why));
            }
            return self.abort(self.judge(job, failures)).ok_or(Stuck::Stopped);
        }
        if !uses_parked(job) {
            return self.begin_anew(self.suspects(job, refusal));
        }
        if let lost @ JobEnd::Lost(_) = self.begin_anew(Vec::new())? {
            return Ok(lost);
        }
        let (answer, end) = ask_parked(self)?;
        if matches!(end, JobEnd::Lost(_)) {
            return Ok(end);
        }
        Ok(JobEnd::Aborted(match answer {
            Parked::Takes => self.suspects(job, refusal),
            Parked::Refuses(why) => self.held_by_parked(job, &why),
            Parked::Unknown(why) => {
                tracing::warn!(
                    why,
                    partition = self.partition,
                    "it is not known yet which topic of a transaction is refused"
                );
                Vec::new()
            }
        }))
    }

    /// Every delivery of the batch may be to blame.
    fn suspects(&self, job: &Job, refusal: &RDKafkaError) -> Vec<(usize, Trouble)> {
        let deliveries =
            job.items.iter().enumerate().filter_map(|(index, item)| match &item.work {
                Work::Deliver(half, _) => Some((index, &half.meta.topic)),
                _ => None,
            });
        let why = refusal.to_string();
        let lacks_a_right = job.items.len() == 1 && blames(refusal) == Blame::Right;
        let suspect = |topic: &String| match lacks_a_right {
            true => self.denied(topic, &why),
            false => Trouble::Suspect(format!("topic '{topic}' refuses it: {why}")),
        };
        deliveries.map(|(index, topic)| (index, suspect(topic))).collect()
    }

    /// What has to wait until the parked topic may be written.
    fn held_by_parked(&self, job: &Job, why: &str) -> Vec<(usize, Trouble)> {
        let topic = &self.parked_topic;
        let why = format!(
            "the parked topic '{topic}' refuses what is written to it: {why}; give this \
             application's principal the right to write it"
        );
        tracing::error!(why, partition = self.partition, "a transaction is refused");
        let items = job.items.iter().enumerate().filter(|(_, item)| writes_parked(&item.work));
        items.map(|(index, _)| (index, Trouble::Passing(why.clone()))).collect()
    }

    /// The broker knows nothing of a transaction whose topics it has all refused, and ending it is a
    /// fatal error of the client: then it is made anew. Nobody else has fenced it, so the partition
    /// is still its own.
    fn begin_anew(&mut self, troubles: Vec<(usize, Trouble)>) -> Result<JobEnd, Stuck> {
        let why = match self.abort(troubles.clone()).ok_or(Stuck::Stopped)? {
            JobEnd::Lost(why) => why,
            end => return Ok(end),
        };
        let unknown = RDKafkaErrorCode::InvalidTransactionalState;
        let fatal = self.client.client().fatal_error();
        if fatal.is_none_or(|(code, _)| code != unknown) {
            return Ok(JobEnd::Lost(why));
        }
        // It fences as a takeover does: not once the partition is given up.
        self.fencing = self.parts.claim.fence();
        if self.fencing.is_none() {
            return Ok(JobEnd::Lost(WITHDRAWN.into()));
        }
        match delivery::client(&self.parts.config, self.partition) {
            Ok(client) => self.client = client,
            Err(error) => return Ok(JobEnd::Lost(error.to_string())),
        }
        Ok(match self.init() {
            Ok(()) => {
                self.fencing = None;
                JobEnd::Aborted(troubles)
            }
            Err(error) => JobEnd::Lost(error),
        })
    }
}

impl AsksParked for Worker<'_> {
    fn probe(&self) -> Result<Parked, Stuck> {
        let reports = self.send_probe();
        if !reports.wait(self.stop) {
            return Err(Stuck::Stopped);
        }
        let failures = reports.failures();
        let Some((_, first)) = failures.first() else { return Ok(Parked::Takes) };
        let (blamed, why) = match self.refused_as_a_whole(&failures) {
            Some(refusal) => (blames(&refusal), refusal.to_string()),
            None => (blame(first), first.to_string()),
        };
        Ok(match blamed {
            Blame::Nobody => Parked::Unknown(why),
            _ => Parked::Refuses(why),
        })
    }

    fn take_back(&mut self, answer: &Parked) -> Result<JobEnd, Stuck> {
        match answer {
            Parked::Takes => self.abort(Vec::new()).ok_or(Stuck::Stopped),
            Parked::Refuses(_) | Parked::Unknown(_) => self.begin_anew(Vec::new()),
        }
    }
}

fn blames(refusal: &RDKafkaError) -> Blame {
    blame(&KafkaError::MessageProduction(refusal.code()))
}

fn writes_parked(work: &Work) -> bool {
    !matches!(work, Work::Deliver(_, None))
}

/// Whether anything of the batch goes to the parked topic.
fn uses_parked(job: &Job) -> bool {
    !job.clears.is_empty() || job.items.iter().any(|item| writes_parked(&item.work))
}

/// Every item of the batch may be to blame.
fn all_suspects(job: &Job, why: &str) -> Vec<(usize, Trouble)> {
    let suspect = |index| (index, Trouble::Suspect(format!("its batch is refused: {why}")));
    (0..job.items.len()).map(suspect).collect()
}

//! What operators see and do. A decision by hand asks the listener first: agreement is recorded,
//! contradiction is refused, and only what nobody can tell may be forced.

use std::time::{Duration, Instant};

use halfmsg_protocol::{
    Answer, Body, Decision, Epoch, Half, HalfRef, Origin, ParkedHalf, Record, Reopen, Verdict,
};
use tokio::sync::oneshot;

mod body;
mod view;

pub use view::{HalfDetail, HalfView, HistoryEntry, Page};

use crate::TransactionId;
use crate::checker::Asked;
use crate::message::HalfMessage;
use crate::producer::TransactionProducer;
use crate::resolver::Input;
pub use crate::resolver::query::HalfState;
use crate::resolver::query::{Query, Seen, What};

/// The most halves in one page.
pub const MAX_PAGE: usize = 1_000;
/// Waiting for the resolver to answer from memory.
const QUERY_DEADLINE: Duration = Duration::from_secs(2);
/// Between two looks whether a record has been applied.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// Which halves are to be listed.
#[derive(Debug, Clone, Default)]
pub struct HalfFilter {
    /// Only these; both if unset.
    pub state: Option<HalfState>,
    /// At most so many, up to [`MAX_PAGE`].
    pub limit: usize,
    /// Where the last page ended.
    pub cursor: Option<String>,
}

/// Who decides by hand, and why.
#[derive(Debug, Clone)]
pub struct OperatorRequest {
    /// The person's name, kept in the journal.
    pub operator: String,
    /// Why, kept in the journal; must not be empty.
    pub reason: String,
    /// Decide although nobody can tell what became of the local transaction.
    pub force: bool,
}

/// Why an operator's call changed nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AdminError {
    /// No such message in the partitions that this replica owns, or it is long closed.
    #[error("no half message {0} is known here: it never was, or was closed long ago")]
    NotFound(TransactionId),
    /// The check says the opposite.
    #[error(
        "the check says {check}, so {asked} is refused: the local transaction's outcome is known"
    )]
    Contradiction {
        /// What the check says.
        check: &'static str,
        /// What was asked for.
        asked: &'static str,
    },
    /// Nobody can tell.
    #[error("the check gives no answer ({why}): repeat with force if you know the outcome")]
    NeedsForce {
        /// Why not.
        why: String,
    },
    /// It is decided already.
    #[error("{id} is decided already: {decision}")]
    AlreadyClosed {
        /// The message.
        id: TransactionId,
        /// Which way.
        decision: &'static str,
    },
    /// Only a parked message can be resumed.
    #[error("{0} is open, not parked: nothing to resume")]
    NotParked(TransactionId),
    /// Only an open message can be checked.
    #[error("{0} is parked: resume it, and it is checked at once")]
    NotOpen(TransactionId),
    /// A request that is incomplete.
    #[error("{0}")]
    Invalid(&'static str),
    /// The store or the resolver did not answer in time; it may be done all the same.
    #[error("not confirmed in time: {0}; look at the message before trying again")]
    Unavailable(String),
}

/// The operator's side of a producer. Cheap to clone.
#[derive(Clone)]
pub struct Admin {
    producer: TransactionProducer,
}

impl Admin {
    pub(crate) fn new(producer: TransactionProducer) -> Self {
        Self { producer }
    }

    /// Open and parked halves of the partitions that this replica owns, in the order of partition
    /// and offset.
    ///
    /// # Errors
    /// [`AdminError::Invalid`] for a cursor that is none, [`AdminError::Unavailable`].
    pub async fn list(&self, filter: HalfFilter) -> Result<Page<HalfView>, AdminError> {
        let from = match &filter.cursor {
            Some(cursor) => view::parse_cursor(cursor)
                .ok_or(AdminError::Invalid("the cursor is none that a list has given"))?,
            None => (0, 0),
        };
        let limit = filter.limit.clamp(1, MAX_PAGE);
        let (state, wanted) = (filter.state, limit + 1);
        let mut seen = self.ask(|reply| Query::List { state, from, limit: wanted, reply }).await?;
        let next_cursor = (seen.len() > limit).then(|| seen.pop()).flatten();
        Ok(Page {
            items: seen.iter().map(HalfView::of).collect(),
            next_cursor: next_cursor.map(|seen| view::cursor(&HalfView::of(&seen))),
        })
    }

    /// One half with what is known of its life; recently closed ones too.
    ///
    /// # Errors
    /// [`AdminError::Unavailable`].
    pub async fn get(&self, id: TransactionId) -> Result<Option<HalfDetail>, AdminError> {
        match self.ask(|reply| Query::Find { id, reply }).await? {
            Some(seen) => Ok(Some(HalfDetail::of(&self.with_body(seen).await?))),
            None => Ok(None),
        }
    }

    /// Commits: the message is delivered.
    ///
    /// # Errors
    /// [`AdminError`]; see its variants.
    pub async fn commit(
        &self,
        id: TransactionId,
        request: OperatorRequest,
    ) -> Result<HalfView, AdminError> {
        self.decide(id, Verdict::Commit, request).await
    }

    /// Rolls back: the message is dropped.
    ///
    /// # Errors
    /// [`AdminError`]; see its variants.
    pub async fn rollback(
        &self,
        id: TransactionId,
        request: OperatorRequest,
    ) -> Result<HalfView, AdminError> {
        self.decide(id, Verdict::Rollback, request).await
    }

    /// Asks the listener of an open half now, instead of when it is due. The answer comes later.
    ///
    /// # Errors
    /// [`AdminError`]; see its variants.
    pub async fn check(
        &self,
        id: TransactionId,
        request: OperatorRequest,
    ) -> Result<HalfView, AdminError> {
        request.validate()?;
        let seen = self.find(id).await?;
        match &seen.what {
            What::Open(..) => {}
            What::Parked(..) => return Err(AdminError::NotOpen(id)),
            What::Closed(closed) => return Err(closed_error(id, closed.verdict)),
        }
        self.ask(|reply| Query::CheckNow { id, reply }).await?;
        Ok(HalfView::of(&seen))
    }

    /// Opens a parked message again; it is checked at once.
    ///
    /// # Errors
    /// [`AdminError`]; see its variants.
    pub async fn resume(
        &self,
        id: TransactionId,
        request: OperatorRequest,
    ) -> Result<HalfView, AdminError> {
        request.validate()?;
        let seen = self.find_to_change(id).await?;
        match &seen.what {
            What::Parked(parked, _) => {
                let offset = self.reopen(seen.partition, parked, &request).await?;
                self.applied(seen.partition, offset).await?;
                Ok(HalfView::of(&self.find(id).await?))
            }
            What::Open(..) => Err(AdminError::NotParked(id)),
            What::Closed(closed) => Err(closed_error(id, closed.verdict)),
        }
    }

    async fn decide(
        &self,
        id: TransactionId,
        verdict: Verdict,
        request: OperatorRequest,
    ) -> Result<HalfView, AdminError> {
        request.validate()?;
        let seen = self.find_to_change(id).await?;
        let (half, epoch, attempts, parked) = match &seen.what {
            What::Open(open, _) => (&open.half, open.epoch, open.attempts, None),
            What::Parked(parked, _) => (&parked.half, parked.epoch, parked.attempts, Some(parked)),
            What::Closed(closed) => return Err(closed_error(id, closed.verdict)),
        };
        self.ask_first(seen.partition, half, epoch, attempts, verdict, &request).await?;
        let epoch = match parked {
            Some(parked) => {
                self.reopen(seen.partition, parked, &request).await?;
                parked.epoch.next()
            }
            None => epoch,
        };
        let decision = Record::Decision(Decision {
            of: HalfRef { id, half: half.offset, epoch },
            verdict,
            origin: Origin::Operator,
            operator: Some(request.operator),
            reason: request.reason,
        });
        let offset = self.append(seen.partition, &decision, &Body::default()).await?;
        self.producer.inner.metrics.decided(Origin::Operator, verdict);
        self.applied(seen.partition, offset).await?;
        let now = self.find(id).await?;
        match &now.what {
            // Somebody else's decision stood before this one.
            What::Closed(closed) if closed.verdict != verdict => {
                Err(closed_error(id, closed.verdict))
            }
            What::Closed(_) => Ok(HalfView::of(&now)),
            What::Open(..) | What::Parked(..) => {
                Err(AdminError::Unavailable("it was parked or reopened meanwhile".into()))
            }
        }
    }

    /// The listener's word comes before the operator's.
    async fn ask_first(
        &self,
        partition: i32,
        half: &Half,
        epoch: Epoch,
        attempts: u32,
        verdict: Verdict,
        request: &OperatorRequest,
    ) -> Result<(), AdminError> {
        let asked = Asked {
            application: half.meta.application.clone(),
            half: HalfMessage::new(partition, half, epoch.0, attempts),
        };
        let answer = self.producer.inner.checker.ask_one(asked).await;
        let why = match (answer, verdict) {
            (Answer::Commit, Verdict::Commit) | (Answer::Rollback, Verdict::Rollback) => {
                return Ok(());
            }
            (Answer::Commit | Answer::Rollback, asked) => {
                let check = match asked {
                    Verdict::Commit => "rollback",
                    Verdict::Rollback => "commit",
                };
                return Err(AdminError::Contradiction { check, asked: asked.as_str() });
            }
            (Answer::Unknown(why) | Answer::Failed(why), _) => why,
            (Answer::NotAsked(_), _) => "it could not be asked here".to_owned(),
        };
        if request.force { Ok(()) } else { Err(AdminError::NeedsForce { why }) }
    }

    async fn reopen(
        &self,
        partition: i32,
        parked: &ParkedHalf,
        request: &OperatorRequest,
    ) -> Result<i64, AdminError> {
        let half = &parked.half;
        let record = Record::Reopen(Reopen {
            of: HalfRef { id: half.meta.id, half: half.offset, epoch: parked.epoch },
            meta: half.meta.clone(),
            operator: request.operator.clone(),
            reason: request.reason.clone(),
        });
        self.append(partition, &record, &half.body).await
    }

    async fn append(
        &self,
        partition: i32,
        record: &Record,
        body: &Body,
    ) -> Result<i64, AdminError> {
        let inner = &self.producer.inner;
        let deadline = inner.config.decision_deadline;
        let appended = inner.log.append_within(partition, record, body, deadline).await;
        appended.map_err(|error| AdminError::Unavailable(error.to_string()))
    }

    /// Waits until the resolver has applied the record, so that the caller sees its effect.
    async fn applied(&self, partition: i32, offset: i64) -> Result<(), AdminError> {
        let until = Instant::now() + self.producer.inner.config.decision_deadline;
        while Instant::now() < until {
            match self.ask(|reply| Query::Position { partition, reply }).await? {
                Some(position) if position > offset => return Ok(()),
                Some(_) => tokio::time::sleep(LOOK_INTERVAL).await,
                None => {
                    return Err(AdminError::Unavailable("the partition moved away".into()));
                }
            }
        }
        Err(AdminError::Unavailable("the record is stored and not applied yet".into()))
    }

    async fn find(&self, id: TransactionId) -> Result<Seen, AdminError> {
        let seen = self.ask(|reply| Query::Find { id, reply }).await?;
        seen.ok_or(AdminError::NotFound(id))
    }

    /// The message as it is once a PARK that is being carried out is carried out: opened again
    /// before that, a next owner might not know that it was parked.
    async fn find_to_change(&self, id: TransactionId) -> Result<Seen, AdminError> {
        let until = Instant::now() + self.producer.inner.config.decision_deadline;
        loop {
            let seen = self.find(id).await?;
            if !matches!(seen.what, What::Parked(_, false)) {
                return self.with_body(seen).await;
            }
            if Instant::now() > until {
                return Err(AdminError::Unavailable("it is still being parked".into()));
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    async fn ask<T>(
        &self,
        query: impl FnOnce(oneshot::Sender<T>) -> Query,
    ) -> Result<T, AdminError> {
        let (reply, answer) = oneshot::channel();
        let sent = self.producer.inner.inputs.send(Input::Query(query(reply)));
        sent.map_err(|_| AdminError::Unavailable("the resolver has ended".into()))?;
        match tokio::time::timeout(QUERY_DEADLINE, answer).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) => Err(AdminError::Unavailable("the resolver has ended".into())),
            Err(_) => Err(AdminError::Unavailable("the resolver is busy".into())),
        }
    }
}

impl OperatorRequest {
    fn validate(&self) -> Result<(), AdminError> {
        let text = |text: &str| !text.trim().is_empty() && text.len() <= 1_000;
        if !text(&self.operator) {
            return Err(AdminError::Invalid("operator: a name of 1 to 1,000 bytes is needed"));
        }
        if !text(&self.reason) {
            return Err(AdminError::Invalid("reason: a text of 1 to 1,000 bytes is needed"));
        }
        Ok(())
    }
}

fn closed_error(id: TransactionId, verdict: Verdict) -> AdminError {
    AdminError::AlreadyClosed { id, decision: verdict.as_str() }
}

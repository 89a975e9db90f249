//! Settling a half message by hand. What is changed is changed by records, so it does not matter who
//! owns the partition: the first decision in the log counts, for every owner.
//!
//! # Layout
//! - `asking`: the listener's word, before the operator's
//! - `effect`: what became of the message

use std::sync::Arc;
use std::time::{Duration, Instant};

use halfmsg_protocol::{Body, Decision, HalfRef, Origin, ParkedHalf, Record, Reopen, Verdict};
use halfmsg_traces::Span;
use halfmsg_traces::messaging::Operation;
use serde_json::json;

use super::desk::{Desk, Looked};
use super::{AdminError, HalfView, OperatorRequest};
use crate::TransactionId;
use crate::message::HalfMessage;
use crate::operator::journal::Act;
use crate::resolver::query::{Seen, What};
use crate::spans;

mod asking;
mod effect;

/// Between two looks whether a record has been applied: in memory, and at the brokers.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);
const SNAPSHOT_INTERVAL: Duration = Duration::from_millis(200);

impl Desk {
    pub(crate) async fn decide(
        &self,
        id: TransactionId,
        verdict: Verdict,
        request: OperatorRequest,
    ) -> Result<HalfView, AdminError> {
        request.validate()?;
        let looked = self.find_to_change(id).await?;
        let operation = match verdict {
            Verdict::Commit => Operation::Commit,
            Verdict::Rollback => Operation::Rollback,
        };
        let span = span(&looked.seen, operation, &request);
        spans::ended(span, self.decide_found(looked, id, verdict, request)).await
    }

    async fn decide_found(
        &self,
        looked: Looked,
        id: TransactionId,
        verdict: Verdict,
        request: OperatorRequest,
    ) -> Result<HalfView, AdminError> {
        let seen = &looked.seen;
        let (half, epoch, attempts) = match &seen.what {
            What::Open(open, _) => (&open.half, open.epoch, open.attempts),
            What::Parked(parked, _) => (&parked.half, parked.epoch, parked.attempts),
            What::Closed(closed) => return Err(closed_error(id, closed.verdict)),
        };
        let forced =
            self.ask_first(seen.partition, half, epoch, attempts, verdict, &request).await?;
        let detail = json!({ "transaction_id": id.to_string(), "forced": forced });
        let act =
            Act::begin(&self.config, seen.partition, verdict.as_str(), &request, detail).await?;
        let done = self.decide_asked(looked, id, verdict, &request, forced).await;
        act.end_stored(done).await
    }

    async fn decide_asked(
        &self,
        looked: Looked,
        id: TransactionId,
        verdict: Verdict,
        request: &OperatorRequest,
        forced: bool,
    ) -> Result<HalfView, AdminError> {
        let seen = &looked.seen;
        let (half, epoch, parked) = match &seen.what {
            What::Open(open, _) => (&open.half, open.epoch, None),
            What::Parked(parked, _) => (&parked.half, parked.epoch, Some(parked)),
            What::Closed(closed) => return Err(closed_error(id, closed.verdict)),
        };
        let local = half.meta.local_transaction;
        let epoch = match parked {
            Some(parked) => {
                self.reopen(seen.partition, parked, request).await?;
                parked.epoch.next()
            }
            None => epoch,
        };
        let decision = Record::Decision(Decision {
            of: HalfRef { id, half: half.offset, epoch },
            verdict,
            origin: Origin::Operator,
            operator: Some(request.operator.clone()),
            reason: request.reason.clone(),
        });
        let offset = self.append(seen.partition, &decision, &Body::default()).await?;
        if let Some(replica) = &self.replica {
            replica.inner.metrics.decided(Origin::Operator, verdict);
        }
        let now = self.effect(looked, id, offset).await?;
        match &now.what {
            // Somebody else's decision stood before this one.
            What::Closed(closed) if closed.verdict != verdict => {
                Err(closed_error(id, closed.verdict))
            }
            What::Closed(_) => {
                let mut view = HalfView::of(&now);
                view.local_transaction_id = local.map(|local| local.to_string());
                if let Some(local) = local.filter(|_| forced) {
                    view.warning = self.left_undecided(id, local).await;
                }
                Ok(view)
            }
            What::Open(..) | What::Parked(..) => {
                Err(AdminError::Unavailable("it was parked or reopened meanwhile".into()))
            }
        }
    }

    pub(crate) async fn resume(
        &self,
        id: TransactionId,
        request: OperatorRequest,
    ) -> Result<HalfView, AdminError> {
        request.validate()?;
        let looked = self.find_to_change(id).await?;
        match &looked.seen.what {
            What::Parked(parked, _) => {
                let partition = looked.seen.partition;
                let act = self.act("resume", partition, id, &request).await?;
                let span = span(&looked.seen, Operation::Resume, &request);
                let reopened = self.reopen(partition, parked, &request);
                let done = match spans::ended(span, reopened).await {
                    Ok(offset) => self.effect(looked, id, offset).await,
                    Err(error) => Err(error),
                };
                act.end_stored(done.map(|now| HalfView::of(&now))).await
            }
            What::Open(..) => Err(AdminError::NotParked(id)),
            What::Closed(closed) => Err(closed_error(id, closed.verdict)),
        }
    }

    async fn act<'a>(
        &'a self,
        action: &'static str,
        partition: i32,
        id: TransactionId,
        request: &'a OperatorRequest,
    ) -> Result<Act<'a>, AdminError> {
        let detail = json!({ "transaction_id": id.to_string() });
        Act::begin(&self.config, partition, action, request, detail).await
    }

    /// What a forced decision about one of several messages leaves undecided: where the listener can
    /// tell, its check-back decides all of them alike, but here a person decided about one.
    async fn left_undecided(&self, id: TransactionId, local: TransactionId) -> Option<String> {
        let mut others = match self.sharing(local).await {
            Ok(others) => others,
            Err(error) => {
                return Some(format!(
                    "it is one of several of the local transaction {local}; which others are not \
                     decided with it could not be looked up: {}",
                    error.cause()
                ));
            }
        };
        others.retain(|other| *other != id);
        if others.is_empty() {
            return None;
        }
        let named: Vec<String> = others.iter().map(ToString::to_string).collect();
        Some(format!(
            "{} more of the local transaction {local} are not decided with it; decide them alike: {}",
            others.len(),
            named.join(", ")
        ))
    }

    async fn reopen(
        &self,
        partition: i32,
        parked: &ParkedHalf,
        request: &OperatorRequest,
    ) -> Result<i64, AdminError> {
        let half = &parked.half;
        let record = Record::Reopen(Box::new(Reopen {
            of: HalfRef { id: half.meta.id, half: half.offset, epoch: parked.epoch },
            meta: Arc::clone(&half.meta),
            operator: request.operator.clone(),
            reason: request.reason.clone(),
        }));
        self.append(partition, &record, &half.body).await
    }

    async fn append(
        &self,
        partition: i32,
        record: &Record,
        body: &Body,
    ) -> Result<i64, AdminError> {
        let deadline = self.config.decision_deadline;
        let appended = self.log.append_within(partition, record, body, deadline).await;
        appended.map_err(|error| AdminError::Unavailable(error.to_string()))
    }

    /// The message as it is once a PARK that is being carried out is carried out: opened again
    /// before that, a next owner might not know that it was parked.
    async fn find_to_change(&self, id: TransactionId) -> Result<Looked, AdminError> {
        let until = Instant::now() + self.config.decision_deadline;
        loop {
            let looked = self
                .look_up(id)
                .await?
                .map_err(|unfound| unfound.may_be_behind().unwrap_or(AdminError::NotFound(id)))?;
            let seen = &looked.seen;
            if let Some(stopped) = &seen.stopped {
                return Err(AdminError::Stopped(stopped.clone()));
            }
            if !matches!(seen.what, What::Parked(_, false)) {
                let seen = self.with_body(looked.seen).await?;
                return Ok(Looked { seen, part: looked.part });
            }
            if Instant::now() > until {
                let why = "it is still being parked, which the owner of its partition does";
                return Err(AdminError::Unavailable(why.into()));
            }
            let interval = if seen.owned { LOOK_INTERVAL } else { SNAPSHOT_INTERVAL };
            tokio::time::sleep(interval).await;
        }
    }
}

/// The span of what an operator does about a message that is not closed.
fn span(seen: &Seen, operation: Operation, request: &OperatorRequest) -> Option<Span> {
    let (half, epoch, attempts) = match &seen.what {
        What::Open(open, _) => (&open.half, open.epoch, open.attempts),
        What::Parked(parked, _) => (&parked.half, parked.epoch, parked.attempts),
        What::Closed(_) => return None,
    };
    let half = HalfMessage::new(seen.partition, half, epoch.0, attempts);
    spans::by_operator(&half, operation, &request.operator)
}

fn closed_error(id: TransactionId, verdict: Verdict) -> AdminError {
    AdminError::AlreadyClosed { id, decision: verdict.as_str() }
}

//! Settling a half message by hand. What is changed is changed by records, so it does not matter who
//! owns the partition: the first decision in the log counts, for every owner.

use std::sync::Arc;
use std::time::{Duration, Instant};

use halfmsg_protocol::{
    Answer, Body, Checked, Decision, Epoch, Half, HalfRef, NotAsked, Open, Origin, ParkedHalf,
    Record, Reopen, Verdict,
};

use halfmsg_traces::Span;
use halfmsg_traces::messaging::Operation;
use serde_json::json;

use super::desk::{Desk, Looked};
use super::{AdminError, HalfView, OperatorRequest};
use crate::TransactionId;
use crate::checker::{Asked, BLOCKS};
use crate::message::HalfMessage;
use crate::operator::journal::Act;
use crate::resolver::query::{Query, Seen, What};
use crate::snapshot::{self, Wanted};
use crate::spans;

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

    /// Asks the listener of an open half now: here, whoever owns the half. It is the same
    /// application's, and its answer does not depend on who asks, because the fence made it true
    /// before it was given. The answer becomes a record like the owner's own, with the operator's name
    /// and reason; should the owner ask at once, the first record counts and the other is a duplicate
    /// or stale.
    pub(crate) async fn check(
        &self,
        id: TransactionId,
        request: OperatorRequest,
    ) -> Result<HalfView, AdminError> {
        request.validate()?;
        let looked = self.find_to_change(id).await?;
        let open = match &looked.seen.what {
            What::Open(open, _) => open,
            What::Parked(..) => return Err(AdminError::NotOpen(id)),
            What::Closed(closed) => return Err(closed_error(id, closed.verdict)),
        };
        let partition = looked.seen.partition;
        let act = self.act("check", partition, id, &request).await?;
        let span = span(&looked.seen, Operation::CheckNow, &request);
        let asked = self.ask_now(partition, open, &request);
        let done = match spans::ended(span, asked).await {
            Ok(offset) => self.effect(looked, id, offset).await,
            Err(error) => Err(error),
        };
        act.end_stored(done.map(|now| HalfView::of(&now))).await
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

    /// Where the record of the answer stands.
    async fn ask_now(
        &self,
        partition: i32,
        open: &Open,
        request: &OperatorRequest,
    ) -> Result<i64, AdminError> {
        let half = &open.half;
        let answer = self.answer(partition, half, open.epoch, open.attempts).await;
        if let Some(replica) = &self.replica {
            replica.inner.metrics.checked(&answer);
            replica.inner.life.checked(half.meta.id, half.body.key.as_deref(), &answer);
        }
        let record = answered(open, answer, request)?;
        if let (Some(replica), Record::Decision(decision)) = (&self.replica, &record) {
            replica.inner.metrics.decided(decision.origin, decision.verdict);
        }
        self.append(partition, &record, &Body::default()).await
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

    /// The listener's word comes before the operator's; whether the operator's had to be taken.
    async fn ask_first(
        &self,
        partition: i32,
        half: &Half,
        epoch: Epoch,
        attempts: u32,
        verdict: Verdict,
        request: &OperatorRequest,
    ) -> Result<bool, AdminError> {
        let answer = self.answer(partition, half, epoch, attempts).await;
        let why = match (answer, verdict) {
            (Answer::Commit, Verdict::Commit) | (Answer::Rollback, Verdict::Rollback) => {
                return Ok(false);
            }
            (Answer::Commit | Answer::Rollback, asked) => {
                let check = match asked {
                    Verdict::Commit => "rollback",
                    Verdict::Rollback => "commit",
                };
                return Err(AdminError::Contradiction { check, asked: asked.as_str() });
            }
            (Answer::Unknown(why) | Answer::Failed(why), _) => why,
            (Answer::NotAsked(_), _) if self.replica.is_none() => {
                "there is no listener here: only the application can be asked what became of its \
                 local transaction"
                    .to_owned()
            }
            (Answer::NotAsked(why), _) => not_asked(half, why),
        };
        if request.force { Ok(true) } else { Err(AdminError::NeedsForce { why }) }
    }

    async fn answer(&self, partition: i32, half: &Half, epoch: Epoch, attempts: u32) -> Answer {
        let Some(replica) = &self.replica else { return Answer::NotAsked(NotAsked::NoListener) };
        let asked = Asked {
            application: half.meta.application.clone(),
            half: HalfMessage::new(partition, half, epoch.0, attempts),
        };
        replica.inner.checker.ask_one(asked).await
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

    /// The message behind the record at this offset, which is stored: no failure from here on means
    /// that nothing was done.
    async fn effect(
        &self,
        looked: Looked,
        id: TransactionId,
        offset: i64,
    ) -> Result<Seen, AdminError> {
        let applied = self.once_applied(looked, id, offset).await;
        applied.map_err(AdminError::behind_the_record)
    }

    /// The message once the record at this offset is applied: by this replica if it owns the
    /// partition, else by reading on from the first look, which sees what every owner sees.
    async fn once_applied(
        &self,
        Looked { seen, part }: Looked,
        id: TransactionId,
        offset: i64,
    ) -> Result<Seen, AdminError> {
        let partition = seen.partition;
        let wanted = Wanted { only: Some(partition), body_of: Some(id), ..Wanted::default() };
        let parts = match part {
            Some(part) => {
                let config = Arc::clone(&self.config);
                let read = move |look: &_| snapshot::go_on(&config, part, &wanted, look);
                vec![self.look(read).await?]
            }
            None => match self.applied_here(partition, id, offset).await? {
                Some(seen) => return Ok(seen),
                None => self.snapshot_of_all(wanted).await?,
            },
        };
        let applied = parts.iter().find(|part| part.ledger.position() > offset);
        applied
            .and_then(|part| part.find(id))
            .ok_or_else(|| AdminError::Unseen("it is not read yet".into()))
    }

    /// Nothing if the partition has gone to another replica.
    async fn applied_here(
        &self,
        partition: i32,
        id: TransactionId,
        offset: i64,
    ) -> Result<Option<Seen>, AdminError> {
        let until = Instant::now() + self.config.decision_deadline;
        while Instant::now() < until {
            match self.ask(|reply| Query::Position { partition, reply }).await? {
                Some(position) if position > offset => {
                    return Ok(self.ask(|reply| Query::Find { id, reply }).await?.what);
                }
                Some(_) => tokio::time::sleep(LOOK_INTERVAL).await,
                None => return Ok(None),
            }
        }
        Err(AdminError::Unseen("this replica has not applied it yet".into()))
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

/// What follows from an answer that an operator asked for.
fn answered(open: &Open, answer: Answer, request: &OperatorRequest) -> Result<Record, AdminError> {
    let of = HalfRef { id: open.half.meta.id, half: open.half.offset, epoch: open.epoch };
    let decision = |verdict| {
        Record::Decision(Decision {
            of,
            verdict,
            origin: Origin::CheckBack,
            operator: Some(request.operator.clone()),
            reason: request.reason.clone(),
        })
    };
    let checked = |checked: Checked| {
        Record::Checked(checked.asked_by(request.operator.clone(), request.reason.clone()))
    };
    match answer {
        Answer::Commit => Ok(decision(Verdict::Commit)),
        Answer::Rollback => Ok(decision(Verdict::Rollback)),
        Answer::Unknown(reason) => Ok(checked(Checked::unknown(of, open.attempts, reason))),
        Answer::Failed(reason) => Ok(checked(Checked::failed(of, open.attempts, reason))),
        Answer::NotAsked(why) => Err(AdminError::Refused(not_asked(&open.half, why))),
    }
}

fn not_asked(half: &Half, why: NotAsked) -> String {
    match why {
        NotAsked::NoListener => format!(
            "nobody listens here for application '{}' and purpose '{}': ask a replica of it",
            half.meta.application, half.meta.purpose
        ),
        NotAsked::Busy => "it is being asked about right now: look again".to_owned(),
        NotAsked::NoPlace => {
            "its check failed before, and all places for such checks are taken by others that \
             hang: look again, and see to what the listener waits for"
                .to_owned()
        }
        NotAsked::Blocked => format!("an earlier call about it {BLOCKS}"),
        NotAsked::Unread => {
            "its payload cannot be read from the store now: look again, and at the leader of its \
             partition"
                .to_owned()
        }
    }
}

fn closed_error(id: TransactionId, verdict: Verdict) -> AdminError {
    AdminError::AlreadyClosed { id, decision: verdict.as_str() }
}

//! Asking the listener for an operator: now, or before the operator's word is taken. It must never decide
//! against an answer.

use halfmsg_protocol::{
    Answer, Body, Checked, Decision, Epoch, Half, HalfRef, NotAsked, Open, Origin, Record, Verdict,
};
use halfmsg_traces::messaging::Operation;

use super::super::desk::Desk;
use super::super::{AdminError, HalfView, OperatorRequest};
use super::{closed_error, span};
use crate::TransactionId;
use crate::checker::{Asked, BLOCKS};
use crate::message::HalfMessage;
use crate::resolver::query::What;
use crate::spans;

impl Desk {
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

    /// The listener's word comes before the operator's; whether the operator's had to be taken.
    pub(super) async fn ask_first(
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

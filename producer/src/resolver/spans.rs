//! Spans of deliveries and of the check-back's decisions, if somebody takes them; see
//! [`crate::spans`].

use std::time::SystemTime;

use halfmsg_protocol::Decision;
use halfmsg_traces::messaging::{self, Operation};
use halfmsg_traces::{Span, begin, context, failed, is_on};

use super::Resolver;
use super::emitter::{Job, JobEnd, Trouble, Work};
use crate::bodies::Whole;
use crate::message::HalfMessage;
use crate::spans;

/// A batch has come to its end: a span for each message that is delivered, or refused for good. A
/// batch that goes out again says nothing yet.
pub(super) fn sent(job: &Job, whole: &Whole, began: SystemTime, end: &JobEnd) {
    if !is_on() {
        return;
    }
    let (troubles, is_done) = match end {
        JobEnd::Done(troubles) => (troubles, true),
        JobEnd::Aborted(troubles) => (troubles, false),
        JobEnd::Lost(_) => return,
    };
    let mut troubles = troubles.iter().peekable();
    for (index, item) in job.items.iter().enumerate() {
        let trouble = troubles.next_if(|(at, _)| *at == index).map(|(_, trouble)| trouble);
        let Work::Deliver(half, _) = &item.work else { continue };
        let half = whole.get(&half.stored_at).unwrap_or(half);
        let Some(parent) = context::of_headers(&half.body.headers) else { continue };
        let refused = match trouble {
            Some(Trouble::Refused(why)) => Some(why),
            None | Some(Trouble::Unmarked(_)) if is_done => None,
            _ => continue,
        };
        let id = [messaging::message_id(half.meta.id)];
        let span = messaging::with(messaging::span(Operation::Send, &half.meta.topic), began, id);
        let mut span = begin(span, Some(&parent));
        if let Some(why) = refused {
            failed(&mut span, "undeliverable", why);
        }
    }
}

impl Resolver {
    /// The span of a decision of the check-back, below the context of the message that was asked
    /// about: its body, which has the context, may have left memory meanwhile.
    pub(super) fn decision_span(&self, partition: i32, decision: &Decision) -> Option<Span> {
        let parent = self.asked_in.as_ref()?;
        let open = self.owned.get(&partition)?.core.ledger().open(decision.of.half)?;
        let half = HalfMessage::new(partition, &open.half, decision.of.epoch.0, 0);
        Some(spans::decision(&half, parent, decision.verdict, decision.origin))
    }
}

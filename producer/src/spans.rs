//! Spans of a half message's life, if somebody takes them. They hang below the context that the
//! message carries, whoever makes them and however much later; no record tells of them, so nothing
//! may depend on them.

use std::future::Future;
use std::time::SystemTime;

use bytes::Bytes;
use halfmsg_protocol::{Answer, Origin, TransactionId, Verdict};
use halfmsg_traces::messaging::{self, Operation};
use halfmsg_traces::opentelemetry::KeyValue;
use halfmsg_traces::opentelemetry::trace::{Span as _, SpanBuilder, SpanContext, SpanKind};
use halfmsg_traces::{Span, begin, context, failed, is_on};

use crate::listener::{ListenerResult, LocalTransactionState};
use crate::message::{HalfMessage, Message};

/// Links of one span, which is what exporters take by default.
const MAX_LINKS: usize = 128;

/// The span of a half message that is about to be stored. From here on the message carries its
/// context, in place of the one that it came with, which is the span's parent.
pub(crate) fn create(purpose: &str, id: TransactionId, message: &mut Message) -> Option<Box<Span>> {
    if !is_on() {
        return None;
    }
    let parent = context::of_headers(&message.headers).or_else(context::current);
    let mut span = begin(messaging::span(Operation::Create, &message.topic), parent.as_ref());
    span.set_attribute(messaging::message_id(id));
    span.set_attribute(KeyValue::new("halfmsg.purpose", purpose.to_owned()));
    span.set_attributes(messaging::key(message.key.as_deref()));
    context::put_into(&mut message.headers, span.span_context());
    Some(Box::new(span))
}

/// Where the half message stands now, or why it is not known to stand anywhere.
pub(crate) fn created(span: Option<Box<Span>>, partition: i32, stored: Result<i64, &str>) {
    let Some(mut span) = span else { return };
    match stored {
        Ok(offset) => span.set_attributes(messaging::store_place(partition, offset)),
        Err(error) => failed(&mut span, "not_stored", error),
    }
}

/// Runs a local transaction in its span.
pub(crate) async fn local(
    half: &HalfMessage,
    work: impl Future<Output = ListenerResult<LocalTransactionState>>,
) -> ListenerResult<LocalTransactionState> {
    if !is_on() {
        return work.await;
    }
    let parent = context::of_headers(&half.headers);
    let mut span =
        begin(about(format!("local_transaction {}", half.purpose), half), parent.as_ref());
    let within = span.span_context().clone();
    let outcome = context::within(&within, work).await;
    let said = match &outcome {
        Ok(LocalTransactionState::Commit) => "commit",
        Ok(LocalTransactionState::Rollback) => "rollback",
        Ok(LocalTransactionState::Unknown) => "unknown",
        Err(error) => {
            failed(&mut span, "local_transaction", &error.to_string());
            "failed"
        }
    };
    span.set_attribute(KeyValue::new("halfmsg.outcome", said));
    outcome
}

/// The context that a message carries, if anybody takes spans.
pub(crate) fn carried_by(headers: &[(String, Option<Bytes>)]) -> Option<SpanContext> {
    if is_on() { context::of_headers(headers) } else { None }
}

/// The span of a decision that is about to be stored, below the context that the message carries.
pub(crate) fn decision(
    half: &HalfMessage,
    parent: &SpanContext,
    verdict: Verdict,
    origin: Origin,
) -> Span {
    let operation = match verdict {
        Verdict::Commit => Operation::Commit,
        Verdict::Rollback => Operation::Rollback,
    };
    let mut span = begin(messaging::span(operation, &half.topic), Some(parent));
    span.set_attribute(messaging::message_id(half.transaction_id));
    span.set_attribute(KeyValue::new("halfmsg.decision.origin", origin.as_str()));
    span.set_attributes(messaging::store_place(half.partition, half.offset));
    span
}

/// What an operator does about a half message, below the message's creation as the decisions of
/// others are; it links to the operator's own request. None for a message that carries no context.
pub(crate) fn by_operator(half: &HalfMessage, operation: Operation, name: &str) -> Option<Span> {
    let parent = carried_by(&half.headers)?;
    let request = messaging::links(context::current());
    let mut span =
        begin(messaging::span(operation, &half.topic).with_links(request), Some(&parent));
    span.set_attribute(messaging::message_id(half.transaction_id));
    span.set_attribute(KeyValue::new("halfmsg.decision.origin", Origin::Operator.as_str()));
    span.set_attribute(KeyValue::new("halfmsg.operator", name.to_owned()));
    span.set_attributes(messaging::store_place(half.partition, half.offset));
    Some(span)
}

/// Ends a span with what came of its work.
pub(crate) async fn ended<T, E: std::fmt::Display>(
    span: Option<Span>,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    let outcome = work.await;
    if let (Some(mut span), Err(error)) = (span, &outcome) {
        failed(&mut span, "not_done", &error.to_string());
    }
    outcome
}

/// One call of a listener's check, which asks about many messages: a span in a trace of its own,
/// because the messages' traces are as many, and as old, as they are. It links to them, and each of
/// them gets a span of the same time that links back.
pub(crate) struct Check {
    span: Span,
    began: SystemTime,
    asked: Vec<Option<(SpanContext, SpanBuilder)>>,
}

impl Check {
    /// Nothing if nobody takes spans.
    pub(crate) fn begin(purpose: &str, halves: &[HalfMessage]) -> Option<Self> {
        if !is_on() {
            return None;
        }
        let name = format!("check {purpose}");
        let ask = |half: &HalfMessage| {
            Some((context::of_headers(&half.headers)?, about(name.clone(), half)))
        };
        let asked: Vec<_> = halves.iter().map(ask).collect();
        let known = asked.iter().flatten().map(|(context, _)| context.clone());
        let batch = SpanBuilder::from_name(format!("check_back {purpose}"))
            .with_kind(SpanKind::Internal)
            .with_links(messaging::links(known.take(MAX_LINKS)))
            .with_attributes([KeyValue::new(
                "messaging.batch.message_count",
                i64::try_from(halves.len()).unwrap_or(i64::MAX),
            )]);
        Some(Self { span: begin(batch, None), began: SystemTime::now(), asked })
    }

    pub(crate) fn context(&self) -> SpanContext {
        self.span.span_context().clone()
    }

    /// What came of it, in the order of the halves.
    pub(crate) fn answered(self, answers: &[Answer]) {
        let batch = self.span.span_context().clone();
        for (asked, answer) in self.asked.into_iter().zip(answers) {
            let Some((context, span)) = asked else { continue };
            let (said, problem) = match answer {
                Answer::Commit => ("commit", None),
                Answer::Rollback => ("rollback", None),
                Answer::Unknown(_) => ("unknown", None),
                Answer::Failed(reason) => ("failed", Some(reason)),
                Answer::NotAsked(_) => continue,
            };
            let outcome = [KeyValue::new("halfmsg.outcome", said)];
            let span = messaging::with(span, self.began, outcome);
            let mut span =
                begin(span.with_links(messaging::links([batch.clone()])), Some(&context));
            if let Some(reason) = problem {
                failed(&mut span, "check", reason);
            }
        }
    }
}

/// A span about what the application does for a message.
fn about(name: String, half: &HalfMessage) -> SpanBuilder {
    let attributes = [
        messaging::message_id(half.transaction_id),
        KeyValue::new("halfmsg.purpose", half.purpose.clone()),
        KeyValue::new("halfmsg.attempts", i64::from(half.attempts)),
    ];
    SpanBuilder::from_name(name).with_kind(SpanKind::Internal).with_attributes(attributes)
}

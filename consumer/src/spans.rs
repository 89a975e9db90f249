//! Spans of messages that a handler has, if somebody takes them: below the context that the message
//! carries, so that what it led to, replies too, is in the trace of what led to it.

use std::collections::HashMap;

use halfmsg_traces::messaging::{self, Operation};
use halfmsg_traces::opentelemetry::KeyValue;
use halfmsg_traces::opentelemetry::trace::{Span as _, SpanContext};
use halfmsg_traces::{Span, begin, context, failed, is_on};

use crate::deliver::AttemptError;
use crate::handler::NewReply;
use crate::message::ReceivedMessage;

/// The messages of one attempt. Dropped before it is [`Processing::committed`], they have failed.
#[derive(Default)]
pub(crate) struct Processing {
    spans: HashMap<String, Span>,
}

impl Processing {
    /// Nothing if nobody takes spans.
    pub(crate) fn begin(messages: &[ReceivedMessage], subscriber: &str) -> Self {
        if !is_on() {
            return Self::default();
        }
        let begun = |message: &ReceivedMessage| (message.inbox_key(), process(message, subscriber));
        Self { spans: messages.iter().map(begun).collect() }
    }

    /// The span that a handler works in: that of its message, if it has only one.
    pub(crate) fn of_one(&self, messages: &[ReceivedMessage]) -> Option<SpanContext> {
        match messages {
            [one] if !self.spans.is_empty() => self.context(&one.inbox_key()),
            _ => None,
        }
    }

    /// Lets each reply carry the context of the span of the message that it answers.
    pub(crate) fn go_on_in(&self, replies: &mut [NewReply]) {
        for new in replies {
            if let Some(context) = self.context(&new.inbox_key) {
                context::put_into(&mut new.reply.headers, &context);
            }
        }
    }

    fn context(&self, inbox_key: &str) -> Option<SpanContext> {
        self.spans.get(inbox_key).map(|span| span.span_context().clone())
    }

    /// The attempt is undone.
    pub(crate) fn failed(mut self, error: &AttemptError) {
        let class = match error {
            AttemptError::Transient(_) | AttemptError::Unable(_) => "database_away",
            AttemptError::Contended(_) | AttemptError::Locked { .. } => "contended",
            AttemptError::Undecodable(_) => "undecodable",
            AttemptError::Overdue(_) | AttemptError::Late(_) => "overdue",
            AttemptError::Failed(_) => "handler",
        };
        for (_, mut span) in self.spans.drain() {
            failed(&mut span, class, &error.to_string());
        }
    }

    /// The attempt is committed.
    pub(crate) fn committed(mut self) {
        // Dropped, they end.
        self.spans.clear();
    }
}

impl Drop for Processing {
    fn drop(&mut self) {
        for span in self.spans.values_mut() {
            failed(span, "not_committed", "the attempt was given up, or its commit failed");
        }
    }
}

/// A dead letter that is handed to its handler again, below what its message carries; it links to the
/// operator's own request.
pub(crate) fn replay(message: &ReceivedMessage, subscriber: &str) -> Option<Span> {
    if !is_on() {
        return None;
    }
    let parent = context::of_headers(&message.headers);
    let request = messaging::links(context::current());
    let span = messaging::span(Operation::Replay, &message.topic).with_links(request);
    Some(about(begin(span, parent.as_ref()), message, subscriber))
}

fn process(message: &ReceivedMessage, subscriber: &str) -> Span {
    let parent = context::of_headers(&message.headers);
    let span = begin(messaging::span(Operation::Process, &message.topic), parent.as_ref());
    about(span, message, subscriber)
}

fn about(mut span: Span, message: &ReceivedMessage, subscriber: &str) -> Span {
    span.set_attribute(messaging::message_id(message.inbox_key()));
    span.set_attribute(KeyValue::new("messaging.consumer.group.name", subscriber.to_owned()));
    span.set_attributes(messaging::place(message.partition, message.offset));
    span.set_attributes(messaging::key(message.key.as_deref()));
    span
}

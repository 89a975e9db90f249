//! Spans of messages by OpenTelemetry's semantic conventions for messaging and Kafka (1.30 and
//! later), and our own attributes, which begin with `halfmsg.`.

use std::time::SystemTime;

use opentelemetry::KeyValue;
use opentelemetry::trace::{Link, SpanBuilder, SpanContext, SpanKind};

/// What is done with a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// A half message is stored: its context is the one that the message carries from then on.
    Create,
    /// It is committed: delivered.
    Commit,
    /// It is rolled back: never delivered.
    Rollback,
    /// An operator has the application asked now what became of it.
    CheckNow,
    /// An operator opens it again after it was parked.
    Resume,
    /// It is written to its topic.
    Send,
    /// A handler has it.
    Process,
    /// An operator has a dead letter handed to its handler again.
    Replay,
}

impl Operation {
    /// `messaging.operation.name`, the first word of the span's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Commit => "commit",
            Self::Rollback => "rollback",
            Self::CheckNow => "check_now",
            Self::Resume => "resume",
            Self::Send => "send",
            Self::Replay => "replay",
            Self::Process => "process",
        }
    }

    fn kind_of(self) -> (&'static str, SpanKind) {
        match self {
            Self::Create => ("create", SpanKind::Producer),
            Self::Commit | Self::Rollback | Self::CheckNow | Self::Resume => {
                ("settle", SpanKind::Client)
            }
            Self::Replay => ("settle", SpanKind::Internal),
            // Not a producer's: the context that the message carries is that of its creation.
            Self::Send => ("send", SpanKind::Client),
            Self::Process => ("process", SpanKind::Consumer),
        }
    }
}

/// A span about one message of this topic, named `<operation> <topic>`.
pub fn span(operation: Operation, topic: &str) -> SpanBuilder {
    let (kind, span_kind) = operation.kind_of();
    SpanBuilder::from_name(format!("{} {topic}", operation.name()))
        .with_kind(span_kind)
        .with_attributes([
            KeyValue::new("messaging.system", "kafka"),
            KeyValue::new("messaging.operation.name", operation.name()),
            KeyValue::new("messaging.operation.type", kind),
            KeyValue::new("messaging.destination.name", topic.to_owned()),
        ])
}

/// The message's identity, which is that of its transaction.
pub fn message_id(id: impl ToString) -> KeyValue {
    KeyValue::new("messaging.message.id", id.to_string())
}

/// Its ordering key, if that is text.
pub fn key(key: Option<&[u8]>) -> Option<KeyValue> {
    let key = std::str::from_utf8(key?).ok()?;
    Some(KeyValue::new("messaging.kafka.message.key", key.to_owned()))
}

/// Where in its topic it stands.
pub fn place(partition: i32, offset: i64) -> [KeyValue; 2] {
    [
        KeyValue::new("messaging.destination.partition.id", partition.to_string()),
        KeyValue::new("messaging.kafka.offset", offset),
    ]
}

/// Where in the store of half messages it stands.
pub fn store_place(partition: i32, offset: i64) -> [KeyValue; 2] {
    [
        KeyValue::new("halfmsg.store.partition", i64::from(partition)),
        KeyValue::new("halfmsg.store.offset", offset),
    ]
}

/// Links to these spans.
pub fn links(to: impl IntoIterator<Item = SpanContext>) -> Vec<Link> {
    to.into_iter().map(Link::with_context).collect()
}

/// With this beginning, and further attributes.
pub fn with(
    mut span: SpanBuilder,
    began: SystemTime,
    attributes: impl IntoIterator<Item = KeyValue>,
) -> SpanBuilder {
    span.attributes.get_or_insert_default().extend(attributes);
    span.with_start_time(began)
}

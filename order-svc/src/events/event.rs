//! One event, and its form on the wire.

use std::fmt::Write;

use chrono::{DateTime, SecondsFormat, Utc};
use halfmsg_producer::{LifeEvent, LifeStep, LocalOutcome, LocalTransactionState, TransactionId};
use serde::Serialize;
use uuid::Uuid;

use super::data::{
    Checked, Decided, Delivered, Dropped, EventAbout, HalfStored, LocalTransaction, OrderMoved,
    Parked, Reopened,
};

/// Characters of a reason that are kept.
const MAX_TEXT_CHARS: usize = 300;

/// What happened, to which order, when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Event {
    /// None where an order's status is all that is known.
    pub(super) transaction_id: Option<TransactionId>,
    /// The message's key; none if it is no order's.
    pub(super) order_id: Option<Uuid>,
    /// None where nobody knows.
    pub(super) at_ms: Option<i64>,
    pub(super) what: What,
}

/// What happened. Small, because it is made on the threads that do the work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub(crate) enum What {
    HalfStored(HalfStored),
    LocalTransaction(LocalTransaction),
    Checked(Checked),
    Decided(Decided),
    Delivered(Delivered),
    Dropped(Dropped),
    Parked(Parked),
    Reopened(Reopened),
    Order(OrderMoved),
}

/// An event's data as they are sent.
#[derive(Serialize)]
struct Data<'a> {
    #[serde(flatten)]
    what: &'a What,
    #[serde(flatten)]
    about: EventAbout,
}

impl Event {
    /// What the producer told; nothing for a step that this version does not know.
    pub(super) fn of(event: &LifeEvent<'_>) -> Option<Self> {
        let what = match event.step {
            LifeStep::Stored { purpose, partition, offset, .. } => {
                What::HalfStored(HalfStored { purpose: purpose.to_owned(), partition, offset })
            }
            LifeStep::LocalTransaction { outcome } => {
                let (outcome, reason) = local(outcome);
                What::LocalTransaction(LocalTransaction { outcome, reason: cut(reason) })
            }
            LifeStep::Checked { answer, reason } => {
                What::Checked(Checked { answer, reason: cut(reason) })
            }
            LifeStep::Decided { verdict, by, operator, reason } => What::Decided(Decided {
                verdict: verdict.as_str(),
                by: by.as_str(),
                operator: operator.map(cut),
                reason: cut(reason),
            }),
            LifeStep::Delivered { topic } => What::Delivered(Delivered { topic: topic.to_owned() }),
            LifeStep::Dropped => What::Dropped(Dropped {}),
            LifeStep::Parked { cause, reason } => {
                What::Parked(Parked { cause, reason: cut(reason) })
            }
            LifeStep::Reopened { operator, reason } => {
                What::Reopened(Reopened { operator: cut(operator), reason: cut(reason) })
            }
            _ => return None,
        };
        let order_id = event.key.and_then(|key| Uuid::try_parse_ascii(key).ok());
        let &LifeEvent { transaction_id, at_ms, .. } = event;
        Some(Self { transaction_id: Some(transaction_id), order_id, at_ms, what })
    }

    /// Its name, in `event:`.
    pub(super) fn name(&self) -> &'static str {
        match self.what {
            What::HalfStored(_) => "half_stored",
            What::LocalTransaction(_) => "local_transaction",
            What::Checked(_) => "checked",
            What::Decided(_) => "decided",
            What::Delivered(_) => "delivered",
            What::Dropped(_) => "dropped",
            What::Parked(_) => "parked",
            What::Reopened(_) => "reopened",
            What::Order(_) => "order",
        }
    }

    fn data(&self) -> Data<'_> {
        let about = EventAbout {
            transaction_id: self.transaction_id.map(|id| id.as_uuid()),
            order_id: self.order_id,
            at: self.at_ms.map(rfc3339),
        };
        Data { what: &self.what, about }
    }

    /// Adds it to what is sent. JSON has no raw line ends, so one `data:` line is enough.
    pub(super) fn write(&self, boot: &str, seq: u64, out: &mut String) {
        frame(boot, seq, self.name(), &self.data(), out);
    }
}

/// One event as the standard has it (HTML, "Server-sent events").
pub(super) fn frame(boot: &str, seq: u64, name: &str, data: &impl Serialize, out: &mut String) {
    // Names and texts: nothing that JSON could not say.
    let data = serde_json::to_string(data).unwrap_or_default();
    // Writing to a String cannot fail.
    let _ = write!(out, "id: {boot}-{seq}\nevent: {name}\ndata: {data}\n\n");
}

pub(super) fn cut(text: &str) -> String {
    text.chars().take(MAX_TEXT_CHARS).collect()
}

fn local(outcome: &LocalOutcome) -> (&'static str, &str) {
    match outcome {
        LocalOutcome::Answered(LocalTransactionState::Commit) => ("commit", ""),
        LocalOutcome::Answered(LocalTransactionState::Rollback) => ("rollback", ""),
        LocalOutcome::Answered(LocalTransactionState::Unknown) => ("unknown", ""),
        LocalOutcome::Failed(reason) => ("failed", reason),
        LocalOutcome::TimedOut => ("timed_out", ""),
    }
}

fn rfc3339(ms: i64) -> String {
    let at = DateTime::<Utc>::from_timestamp_millis(ms).unwrap_or_default();
    at.to_rfc3339_opts(SecondsFormat::Millis, true)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn an_event_is_three_lines_and_an_empty_one() {
        let id = TransactionId::from_uuid(Uuid::now_v7());
        let text = Uuid::now_v7().to_string();
        let outcome = LocalOutcome::Failed("two\nlines".into());
        let step = LifeStep::LocalTransaction { outcome: &outcome };
        let (at_ms, key) = (Some(1_000), Some(text.as_bytes()));
        let told = LifeEvent { transaction_id: id, key, at_ms, step };
        let event = Event::of(&told).expect("a known step");
        let mut out = String::new();
        event.write("boot", 7, &mut out);
        let lines: Vec<_> = out.split('\n').collect();
        assert_eq!(&lines[..2], ["id: boot-7", "event: local_transaction"]);
        assert_eq!(lines[3..], ["", ""]);
        let data = lines[2].strip_prefix("data: ").expect("a data line");
        let data: Value = serde_json::from_str(data).expect("JSON");
        assert_eq!(data["order_id"], json!(text));
        assert_eq!(data["transaction_id"], json!(id.to_string()));
        assert_eq!(data["at"], "1970-01-01T00:00:01.000Z");
        assert_eq!(data["outcome"], "failed");
    }

    #[test]
    fn a_key_that_is_no_order_names_none() {
        let id = TransactionId::from_uuid(Uuid::now_v7());
        let step = LifeStep::Dropped;
        let told = LifeEvent { transaction_id: id, key: Some(b"\xff"), at_ms: Some(0), step };
        assert_eq!(Event::of(&told).expect("a known step").order_id, None);
    }

    #[test]
    fn a_time_that_nobody_knows_is_null() {
        let id = TransactionId::from_uuid(Uuid::now_v7());
        let step = LifeStep::Delivered { topic: "t" };
        let told = LifeEvent { transaction_id: id, key: None, at_ms: None, step };
        let data = serde_json::to_value(Event::of(&told).expect("a known step").data());
        assert_eq!(data.expect("JSON")["at"], Value::Null);
    }
}

//! One event, and its form on the wire.

use std::fmt::Write;

use chrono::{DateTime, SecondsFormat, Utc};
use halfmsg_producer::{LifeEvent, LifeStep, LocalOutcome, LocalTransactionState, TransactionId};
use serde_json::{Value, json};
use uuid::Uuid;

/// Characters of a reason that are kept.
const MAX_TEXT_CHARS: usize = 300;

/// What happened, to which order, when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Event {
    /// None where an order's status is all that is known.
    pub(super) transaction_id: Option<TransactionId>,
    /// The message's key; none if it is no order's.
    pub(super) order_id: Option<Uuid>,
    pub(super) at_ms: i64,
    pub(super) what: What,
}

/// What happened. Small, because it is made on the threads that do the work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum What {
    HalfStored { purpose: String, partition: i32, offset: i64 },
    LocalTransaction { outcome: &'static str, reason: String },
    Checked { answer: &'static str, reason: String },
    Decided { verdict: &'static str, by: &'static str, operator: Option<String>, reason: String },
    Delivered { topic: String },
    Dropped,
    Parked { cause: &'static str, reason: String },
    Reopened { operator: String, reason: String },
    Order { status: &'static str, reason: Option<String> },
}

impl Event {
    /// What the producer told; nothing for a step that this version does not know.
    pub(super) fn of(event: &LifeEvent<'_>) -> Option<Self> {
        let what = match event.step {
            LifeStep::Stored { purpose, partition, offset, .. } => {
                What::HalfStored { purpose: purpose.to_owned(), partition, offset }
            }
            LifeStep::LocalTransaction { outcome } => {
                let (outcome, reason) = local(outcome);
                What::LocalTransaction { outcome, reason: cut(reason) }
            }
            LifeStep::Checked { answer, reason } => What::Checked { answer, reason: cut(reason) },
            LifeStep::Decided { verdict, by, operator, reason } => What::Decided {
                verdict: verdict.as_str(),
                by: by.as_str(),
                operator: operator.map(cut),
                reason: cut(reason),
            },
            LifeStep::Delivered { topic } => What::Delivered { topic: topic.to_owned() },
            LifeStep::Dropped => What::Dropped,
            LifeStep::Parked { cause, reason } => What::Parked { cause, reason: cut(reason) },
            LifeStep::Reopened { operator, reason } => {
                What::Reopened { operator: cut(operator), reason: cut(reason) }
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
            What::HalfStored { .. } => "half_stored",
            What::LocalTransaction { .. } => "local_transaction",
            What::Checked { .. } => "checked",
            What::Decided { .. } => "decided",
            What::Delivered { .. } => "delivered",
            What::Dropped => "dropped",
            What::Parked { .. } => "parked",
            What::Reopened { .. } => "reopened",
            What::Order { .. } => "order",
        }
    }

    fn data(&self) -> Value {
        let mut data = match &self.what {
            What::HalfStored { purpose, partition, offset } => {
                json!({"purpose": purpose, "partition": partition, "offset": offset})
            }
            What::LocalTransaction { outcome, reason } => {
                json!({"outcome": outcome, "reason": reason})
            }
            What::Checked { answer, reason } => json!({"answer": answer, "reason": reason}),
            What::Decided { verdict, by, operator, reason } => {
                json!({"verdict": verdict, "by": by, "operator": operator, "reason": reason})
            }
            What::Delivered { topic } => json!({"topic": topic}),
            What::Dropped => json!({}),
            What::Parked { cause, reason } => json!({"cause": cause, "reason": reason}),
            What::Reopened { operator, reason } => json!({"operator": operator, "reason": reason}),
            What::Order { status, reason } => json!({"status": status, "reason": reason}),
        };
        data["transaction_id"] = json!(self.transaction_id.map(|id| id.to_string()));
        data["order_id"] = json!(self.order_id);
        data["at"] = json!(rfc3339(self.at_ms));
        data
    }

    /// Adds it to what is sent. JSON has no raw line ends, so one `data:` line is enough.
    pub(super) fn write(&self, boot: &str, seq: u64, out: &mut String) {
        frame(boot, seq, self.name(), &self.data(), out);
    }
}

/// One event as the standard has it (HTML, "Server-sent events").
pub(super) fn frame(boot: &str, seq: u64, name: &str, data: &Value, out: &mut String) {
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
    use super::*;

    #[test]
    fn an_event_is_three_lines_and_an_empty_one() {
        let id = TransactionId::from_uuid(Uuid::now_v7());
        let key = Uuid::now_v7().to_string();
        let outcome = LocalOutcome::Failed("two\nlines".into());
        let step = LifeStep::LocalTransaction { outcome: &outcome };
        let told = LifeEvent { transaction_id: id, key: Some(key.as_bytes()), at_ms: 1_000, step };
        let event = Event::of(&told).expect("a known step");
        let mut out = String::new();
        event.write("boot", 7, &mut out);
        let lines: Vec<_> = out.split('\n').collect();
        assert_eq!(&lines[..2], ["id: boot-7", "event: local_transaction"]);
        assert_eq!(lines[3..], ["", ""]);
        let data = lines[2].strip_prefix("data: ").expect("a data line");
        let data: Value = serde_json::from_str(data).expect("JSON");
        assert_eq!(data["order_id"], json!(key));
        assert_eq!(data["transaction_id"], json!(id.to_string()));
        assert_eq!(data["at"], "1970-01-01T00:00:01.000Z");
        assert_eq!(data["outcome"], "failed");
    }

    #[test]
    fn a_key_that_is_no_order_names_none() {
        let id = TransactionId::from_uuid(Uuid::now_v7());
        let step = LifeStep::Dropped;
        let told = LifeEvent { transaction_id: id, key: Some(b"\xff"), at_ms: 0, step };
        assert_eq!(Event::of(&told).expect("a known step").order_id, None);
    }
}

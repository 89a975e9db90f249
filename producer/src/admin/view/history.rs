//! The life of a half message, step by step, in words.

use halfmsg_protocol::{
    CheckOutcome, Epoch, Ignored, Origin, Outcome, ParkCause, ParkedHalf, PastStep, Record, Verdict,
};

use super::{HalfView, HistoryEntry, decided, rfc3339, state_of};
use crate::resolver::query::{Seen, What};
use crate::snapshot::{Step, Traced};

/// As the log tells it, and what it does not tell: the beginning, if it was trimmed, and that the
/// target refused a committed message.
pub(super) fn told(traced: &Traced, seen: &Seen, half: &HalfView) -> Vec<HistoryEntry> {
    let begins = traced.steps.first().is_some_and(|step| matches!(step.record, Record::Half(_)));
    let from = match traced.steps.first() {
        Some(_) if begins => i64::MIN,
        first => first.map_or(i64::MAX, |step| step.offset),
    };
    let mut history = Vec::new();
    if !begins {
        history.push(stored_entry(half));
    }
    history.extend(left_out(seen, from));
    // That a target refused it is nowhere else.
    let kept = kept(seen).filter(|step| step.offset < from || is_refusal(&step.record));
    let mut steps: Vec<Step> = traced.steps.iter().cloned().chain(kept).collect();
    steps.sort_by_key(|step| step.offset);
    history.extend(steps.iter().map(|step| entry(step, traced.partition)));
    if traced.more > 0 {
        let detail = format!("and {} more records, left out", traced.more);
        history.push(HistoryEntry { at: None, event: "ignored", detail });
    }
    if let What::Parked(parked, _) = &seen.what
        && (parked.cause == ParkCause::Undeliverable
            || !traced.steps.iter().any(|step| step.offset == parked.parked_at && is_park(step)))
    {
        history.push(parked_entry(parked));
    }
    history
}

fn is_park(step: &Step) -> bool {
    matches!(step.record, Record::Park(_))
}

fn stored_entry(half: &HalfView) -> HistoryEntry {
    let detail = format!("partition {}, offset {}", half.partition, half.offset);
    HistoryEntry { at: Some(half.stored_at.clone()), event: "stored", detail }
}

fn parked_entry(parked: &ParkedHalf) -> HistoryEntry {
    let detail = told_by(parked.cause.as_str(), &parked.reason);
    HistoryEntry { at: Some(rfc3339(parked.parked_ms)), event: "parked", detail }
}

fn entry(step: &Step, partition: i32) -> HistoryEntry {
    let (event, mut detail) = match &step.record {
        Record::Half(_) => ("stored", format!("partition {partition}")),
        Record::Decision(decision) => {
            let by = by(decision.origin, decision.operator.as_deref());
            (state_of(decision.verdict), told_by(&by, &decision.reason))
        }
        Record::Checked(checked) => {
            let by = match (&step.outcome, checked.outcome) {
                (Some(Outcome::CheckFailed { .. }), _) | (None, CheckOutcome::Failed) => {
                    "failed, and counts as no attempt".into()
                }
                (_, outcome) => format!("attempt {}: {}", checked.attempt, outcome.as_str()),
            };
            let by = match &checked.asked_by {
                Some(asked) => {
                    let why = told_by(&format!("operator {}", asked.operator), &asked.reason);
                    format!("{by} (asked for by {why})")
                }
                None => by,
            };
            ("checked", told_by(&by, &checked.reason))
        }
        Record::Park(park) => ("parked", told_by(park.cause.as_str(), &park.reason)),
        Record::Reopen(reopen) => {
            ("reopened", told_by(&by(Origin::Operator, Some(&reopen.operator)), &reopen.reason))
        }
    };
    // That a target refuses a message is no record of the store.
    if !is_refusal(&step.record) {
        detail = format!("offset {}, {detail}", step.offset);
    }
    let event = match &step.outcome {
        Some(Outcome::Ignored(why)) => {
            detail = format!("{} at {detail}; {}", name(&step.record), because(*why));
            "ignored"
        }
        _ => event,
    };
    HistoryEntry { at: Some(rfc3339(step.at_ms)), event, detail }
}

fn by(origin: Origin, operator: Option<&str>) -> String {
    let name = origin.as_str();
    match operator {
        Some(operator) if origin == Origin::Operator => format!("by {name} {operator}"),
        Some(operator) => format!("by {name}, asked for by operator {operator}"),
        None => format!("by {name}"),
    }
}

fn told_by(by: &str, reason: &str) -> String {
    if reason.is_empty() { by.to_owned() } else { format!("{by}: {reason}") }
}

fn name(record: &Record) -> &'static str {
    match record {
        Record::Half(_) => "HALF",
        Record::Decision(decision) => match decision.verdict {
            Verdict::Commit => "COMMIT",
            Verdict::Rollback => "ROLLBACK",
        },
        Record::Checked(_) => "CHECKED",
        Record::Park(_) => "PARK",
        Record::Reopen(_) => "REOPEN",
    }
}

fn because(why: Ignored) -> &'static str {
    match why {
        Ignored::Duplicate => "a duplicate: it was decided so already",
        Ignored::Conflict => {
            "a conflict: it contradicts an earlier decision, or came while the message was parked"
        }
        Ignored::LateUnknown => "late: the message is long closed",
        Ignored::Mismatch => "it names another message",
        Ignored::Stale => "stale: it answers another life or attempt",
        Ignored::Copy => "a copy: its client sent the half message again",
        Ignored::Reused { .. } => "another message of the same id: it is lost",
    }
}

/// The steps that go along with the message.
fn kept(seen: &Seen) -> impl Iterator<Item = Step> {
    let (past, of) = match &seen.what {
        What::Open(open, _) => (Some(&open.history), Some(&open.half)),
        What::Parked(parked, _) => (Some(&parked.history), Some(&parked.half)),
        What::Closed(_) => (None, None),
    };
    let steps = past.zip(of).into_iter().flat_map(|(past, of)| past.steps(of.meta.id));
    steps.map(|PastStep { offset, at_ms, record }| Step { offset, at_ms, record, outcome: None })
}

/// That there were more, which may not be among those from this offset on.
fn left_out(seen: &Seen, below: i64) -> Option<HistoryEntry> {
    let past = match &seen.what {
        What::Open(open, _) => &open.history,
        What::Parked(parked, _) => &parked.history,
        What::Closed(_) => return None,
    };
    let is_before = kept(seen).next().is_some_and(|first| first.offset <= below);
    let is_first_life = matches!(&seen.what, What::Open(open, _) if open.epoch == Epoch::default())
        || matches!(&seen.what, What::Parked(parked, _) if parked.epoch == Epoch::default());
    // With the log from its beginning, only refusals of former lives are nowhere else.
    let is_all_there = below == i64::MIN && is_first_life;
    (past.left_out() > 0 && !is_all_there).then(|| {
        let some = if is_before { "" } else { "up to " };
        let detail = format!("{some}{} earlier records are not kept", past.left_out());
        HistoryEntry { at: None, event: "ignored", detail }
    })
}

fn is_refusal(record: &Record) -> bool {
    matches!(record, Record::Park(park) if park.cause == ParkCause::Undeliverable)
}

/// What the state of the message says by itself.
pub(super) fn summed_up(seen: &Seen, half: &HalfView) -> Vec<HistoryEntry> {
    let mut history = vec![stored_entry(half)];
    let mut kept = kept(seen).map(|step| entry(&step, seen.partition)).peekable();
    if kept.peek().is_none() {
        history.extend(counted(half));
    }
    history.extend(left_out(seen, i64::MAX));
    history.extend(kept);
    match &seen.what {
        What::Open(..) => {}
        What::Parked(parked, _) => history.push(parked_entry(parked)),
        What::Closed(closed) => {
            let at = Some(rfc3339(closed.decided_ms));
            let (event, detail) = (state_of(closed.verdict), decided(closed));
            history.push(HistoryEntry { at, event, detail });
        }
    }
    history
}

/// What its counters say of a message with which no history goes along.
fn counted(half: &HalfView) -> Vec<HistoryEntry> {
    let entry = |at: Option<String>, event, detail: String| HistoryEntry { at, event, detail };
    let mut history = Vec::new();
    if half.epoch > 0 {
        history.push(entry(None, "reopened", format!("{} times by an operator", half.epoch)));
    }
    if half.attempts > 0 {
        let last = half.last_outcome.clone().unwrap_or_default();
        history.push(entry(None, "checked", format!("{} attempts; {last}", half.attempts)));
    } else if let Some(since) = &half.failing_since {
        let last = half.last_outcome.clone().unwrap_or_default();
        history.push(entry(Some(since.clone()), "checked", last));
    }
    history
}

//! Half messages, and what else the parked topic keeps, as people and programs see them.

use bytes::Bytes;
use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use halfmsg_protocol::{Closed, Epoch, Half, Open, Record, TransactionId, Verdict};
use serde::Serialize;

use crate::clock;
use crate::parked::foreign::ForeignCopy;
use crate::resolver::query::{Seen, What};
use crate::snapshot::Traced;

#[cfg(test)]
pub(crate) mod ages;
mod history;

/// A part of a list, and where the next begins.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Page<T> {
    /// The items.
    pub items: Vec<T>,
    /// Hand it in for the next part; none if this is the last.
    #[cfg_attr(feature = "openapi", schema(required))]
    pub next_cursor: Option<String>,
    /// Partitions of the store of which not everything is shown: that could not be looked at now, or
    /// that stand still.
    pub missing_partitions: Vec<MissingPartition>,
}

/// A partition of which a list does not show everything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MissingPartition {
    /// The store's partition.
    pub partition: i32,
    /// Why.
    pub reason: String,
    /// It stands still: what lies before that is shown, and what lies behind is not. If false, it could
    /// not be looked at, and nothing of it is shown.
    pub stopped: bool,
}

/// A half message in a list.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct HalfView {
    /// Its identity.
    #[cfg_attr(feature = "openapi", schema(format = "uuid"))]
    pub transaction_id: String,
    /// The identity of its local transaction, if it shares it with other messages.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local_transaction_id: Option<String>,
    /// The kind of local transaction.
    pub purpose: String,
    /// The target topic.
    pub topic: String,
    /// The ordering key as text; bytes that are no UTF-8 are replaced.
    #[cfg_attr(feature = "openapi", schema(required))]
    pub key: Option<String>,
    /// `open`, `parked`, `committed` or `rolled_back`.
    #[cfg_attr(feature = "openapi", schema(pattern = "^(open|parked|committed|rolled_back)$"))]
    pub state: &'static str,
    /// The store's partition.
    pub partition: i32,
    /// The offset of its HALF record.
    pub offset: i64,
    /// How often it was reopened.
    pub epoch: u32,
    /// When it was stored first, RFC 3339, however often it was reopened. While it is in its first life,
    /// that is its record's time, by the store's broker. Of one that was parked since, it is the time in its
    /// id, which its application's clock gave just before, unless the log still tells the record's when
    /// it is shown by itself. Of one whose application gave it an id that is no UUIDv7, it is when
    /// it was parked or reopened last.
    #[cfg_attr(feature = "openapi", schema(format = "date-time"))]
    pub stored_at: String,
    /// Seconds since then.
    pub age_seconds: i64,
    /// Real attempts to ask in this life.
    pub attempts: u32,
    /// When it is asked about next, RFC 3339; none if that is under way, if another replica owns
    /// it and so decides when, or if it is not open.
    #[cfg_attr(feature = "openapi", schema(required, format = "date-time"))]
    pub next_check_at: Option<String>,
    /// What the last attempt gave, why it is parked, or who decided.
    #[cfg_attr(feature = "openapi", schema(required))]
    pub last_outcome: Option<String>,
    /// Since when its checks fail, RFC 3339: they count as no attempts. None if the last one was
    /// answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failing_since: Option<String>,
    /// In the answer to a decision that was forced: what it leaves to be done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warning: Option<String>,
}

/// A half message with its payload and what is known of its life.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct HalfDetail {
    /// As in a list.
    #[serde(flatten)]
    pub half: HalfView,
    /// The application whose listener is asked.
    #[cfg_attr(feature = "openapi", schema(required))]
    pub application: Option<String>,
    /// What is known of its life, oldest first.
    pub history: Vec<HistoryEntry>,
    /// The user's headers as text.
    pub headers: Vec<(String, Option<String>)>,
    /// The payload as text, of one that is open or parked.
    #[cfg_attr(feature = "openapi", schema(required))]
    pub payload: Option<String>,
    /// Its size.
    #[cfg_attr(feature = "openapi", schema(required))]
    pub payload_bytes: Option<usize>,
}

/// A step in the life of a half message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct HistoryEntry {
    /// When, RFC 3339, if known.
    #[cfg_attr(feature = "openapi", schema(required, format = "date-time"))]
    pub at: Option<String>,
    /// `stored`, `reopened`, `checked`, `parked`, `committed` or `rolled_back`; `ignored` for a
    /// record that changed nothing.
    pub event: &'static str,
    /// In words.
    pub detail: String,
}

/// A record of the store that is none of ours, as the parked topic keeps it: under the key
/// `foreign-<partition>-<offset>`, until somebody deletes that.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ForeignView {
    /// The store's partition.
    pub partition: i32,
    /// Its offset in the store.
    pub offset: i64,
    /// The size of its payload.
    pub bytes: u64,
    /// Whether the copy has headers and payload; the parked topic may not take them.
    pub whole: bool,
    /// Why it is none of ours; of a copy that is not whole, why not.
    pub reason: String,
    /// The names of its headers: at most 20, of 100 characters each.
    pub headers: Vec<String>,
    /// When it was copied, RFC 3339.
    pub copied_at: String,
}

impl ForeignView {
    pub(crate) fn of((partition, offset): (i32, i64), copy: ForeignCopy) -> Self {
        let ForeignCopy { bytes, is_whole, reason, headers, copied_ms } = copy;
        let copied_at = rfc3339(copied_ms);
        Self { partition, offset, bytes, whole: is_whole, reason, headers, copied_at }
    }
}

impl HalfView {
    pub(crate) fn of(seen: &Seen) -> Self {
        match &seen.what {
            What::Open(open, until) => Self {
                state: "open",
                epoch: open.epoch.0,
                attempts: open.attempts,
                next_check_at: until.map(|until| {
                    let ms = i64::try_from(until.as_millis()).unwrap_or(i64::MAX);
                    rfc3339(clock::wall_ms().saturating_add(ms))
                }),
                last_outcome: open
                    .last_outcome
                    .as_ref()
                    .map(|(outcome, reason)| format!("{}: {reason}", outcome.as_str())),
                failing_since: open.failing_since_ms.map(rfc3339),
                ..Self::base(seen.partition, &open.half, stored_ms(open))
            },
            What::Parked(parked, _) => Self {
                state: "parked",
                epoch: parked.epoch.0,
                attempts: parked.attempts,
                last_outcome: Some(format!("{}: {}", parked.cause.as_str(), parked.reason)),
                ..Self::base(
                    seen.partition,
                    &parked.half,
                    made_ms(parked.half.meta.id, parked.parked_ms),
                )
            },
            What::Closed(closed) => Self::closed(seen.partition, closed),
        }
    }

    fn base(partition: i32, half: &Half, stored_ms: i64) -> Self {
        Self {
            transaction_id: half.meta.id.to_string(),
            local_transaction_id: half.meta.local_transaction.map(|id| id.to_string()),
            purpose: half.meta.purpose.clone(),
            topic: half.meta.topic.clone(),
            key: half.body.key.as_ref().map(text),
            state: "open",
            partition,
            offset: half.offset.0,
            epoch: 0,
            stored_at: rfc3339(stored_ms),
            age_seconds: age(stored_ms),
            attempts: 0,
            next_check_at: None,
            last_outcome: None,
            failing_since: None,
            warning: None,
        }
    }

    fn closed(partition: i32, closed: &Closed) -> Self {
        let stored_ms = first_ms(closed.id, closed.epoch, closed.stored_ms);
        Self {
            transaction_id: closed.id.to_string(),
            local_transaction_id: None,
            purpose: closed.meta.purpose.clone(),
            topic: closed.meta.topic.clone(),
            key: None,
            state: state_of(closed.verdict),
            partition,
            offset: closed.half.0,
            epoch: closed.epoch.0,
            stored_at: rfc3339(stored_ms),
            age_seconds: age(stored_ms),
            attempts: closed.attempts,
            next_check_at: None,
            last_outcome: Some(decided(closed)),
            failing_since: None,
            warning: None,
        }
    }
}

impl HalfDetail {
    /// With its history as the log tells it; without a trace, with what its state says.
    pub(crate) fn of(seen: &Seen, traced: Option<&Traced>) -> Self {
        let mut half = HalfView::of(seen);
        let body = match &seen.what {
            What::Open(open, _) => Some(&open.half),
            What::Parked(parked, _) => Some(&parked.half),
            What::Closed(_) => None,
        };
        let payload = body.and_then(|half| half.body.payload.as_ref());
        let traced_half = traced.and_then(|traced| traced.half.as_ref());
        let local = traced_half.and_then(|half| half.meta.local_transaction);
        half.local_transaction_id = half.local_transaction_id.or(local.map(|id| id.to_string()));
        let begin = traced.and_then(|traced| traced.steps.first());
        if let Some(begin) = begin.filter(|step| matches!(step.record, Record::Half(_))) {
            (half.stored_at, half.age_seconds) = (rfc3339(begin.at_ms), age(begin.at_ms));
        }
        Self {
            application: body.or(traced_half).map(|half| half.meta.application.clone()),
            history: match traced {
                Some(traced) if !traced.steps.is_empty() => history::told(traced, seen, &half),
                _ => history::summed_up(seen, &half),
            },
            headers: body.map_or_else(Vec::new, |half| headers(half)),
            payload: payload.map(text),
            payload_bytes: payload.map(Bytes::len),
            half,
        }
    }
}

fn headers(half: &Half) -> Vec<(String, Option<String>)> {
    let headers = half.body.headers.iter();
    headers.map(|(name, value)| (name.clone(), value.as_ref().map(text))).collect()
}

fn state_of(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Commit => "committed",
        Verdict::Rollback => "rolled_back",
    }
}

fn decided(closed: &Closed) -> String {
    let by = closed.origin.as_str();
    if closed.reason.is_empty() {
        format!("decided by {by}")
    } else {
        format!("decided by {by}: {}", closed.reason)
    }
}

fn text(bytes: &Bytes) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// When an open half message was stored first, milliseconds since the epoch.
pub(crate) fn stored_ms(open: &Open) -> i64 {
    first_ms(open.half.meta.id, open.epoch, open.appended_ms)
}

/// The record that begins a later life is a REOPEN.
fn first_ms(id: TransactionId, epoch: Epoch, began_ms: i64) -> i64 {
    if epoch == Epoch::default() { began_ms } else { made_ms(id, began_ms) }
}

/// What the id tells, if it does, of something that was there at this time: clocks differ, and the user's
/// own timestamp says nothing about it.
fn made_ms(id: TransactionId, was_there_ms: i64) -> i64 {
    id.made_ms().map_or(was_there_ms, |made| made.min(was_there_ms))
}

fn age(stored_ms: i64) -> i64 {
    TimeDelta::milliseconds(clock::wall_ms().saturating_sub(stored_ms)).num_seconds().max(0)
}

pub(crate) fn rfc3339(ms: i64) -> String {
    DateTime::<Utc>::from_timestamp_millis(ms)
        .unwrap_or_default()
        .to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// The cursor that begins with the item at this place.
pub(crate) fn cursor((partition, offset): (i32, i64)) -> String {
    format!("{partition}-{offset}")
}

pub(crate) fn parse_cursor(cursor: &str) -> Option<(i32, i64)> {
    let (partition, offset) = cursor.split_once('-')?;
    Some((partition.parse().ok()?, offset.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_names_a_place_and_nothing_else_does() {
        assert_eq!(parse_cursor("3-17"), Some((3, 17)));
        for wrong in ["", "3", "3-", "-17", "a-b", "3-17-1"] {
            assert_eq!(parse_cursor(wrong), None, "{wrong}");
        }
    }
}

//! The parked topic: compacted, keyed by transaction id, same partition number as the store.
//!
//! A parked message's record has the user's headers and payload, plus headers of ours: its PARK
//! record and the offset of it, its HALF record, its history, and the user's key. A settled one is a decision and the offset
//! that it stands at, until progress has passed it; then null.
//!
//! Keys that begin with `halfmsg.` are reserved: whose group it is, which offsets an operator lets
//! the resolver skip, and the journal of what operators did besides deciding. They are kept.
//!
//! # Layout
//! - this file: what is written, and what a takeover reads
//! - `foreign`: copies of records that are none of ours, for operators

pub(crate) mod foreign;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use crate::scan::{Patience, Unread, scan, scan_all};
use bytes::Bytes;
use halfmsg_kafka::KafkaConfig;
use halfmsg_protocol::{
    Body, Decision, HEADER, Half, HalfRef, History, Origin, Park, ParkedHalf, ParkedState, Record,
    TransactionId, Verdict, codec,
};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Header, Headers, Message};

/// The HALF record of a parked message.
const HALF_HEADER: &str = "halfmsg-half";
/// The offset of the PARK record in the store: a REOPEN before it is stale.
const PARKED_AT_HEADER: &str = "halfmsg-parked-at";
/// When that was appended, milliseconds since the epoch.
const PARKED_MS_HEADER: &str = "halfmsg-parked-ms";
/// The user's key; the record's own key is the transaction id.
const KEY_HEADER: &str = "halfmsg-key";
/// What happened to the message before; see [`History`].
const HISTORY_HEADER: &str = "halfmsg-history";
/// Present if the user's payload was null, which here would delete the record.
const NULL_HEADER: &str = "halfmsg-null-payload";
/// The offset of the decision that settled the message.
const SETTLED_HEADER: &str = "halfmsg-settled-at";

/// Of a foreign record of which only this is kept: where it is, how long its payload, and why.
const FOREIGN_AT_HEADER: &str = "halfmsg-foreign-at";
const FOREIGN_BYTES_HEADER: &str = "halfmsg-foreign-bytes";
const FOREIGN_REASON_HEADER: &str = "halfmsg-foreign-reason";
/// The key of a foreign record, before partition and offset.
const FOREIGN_KEY: &str = "foreign-";

/// The key, before partition and offset, of a record of the store that an operator skips.
const SKIP_KEY: &str = "halfmsg.skip-";

/// What the parked topic says about one partition of the store.
#[derive(Debug, Default)]
pub(crate) struct ParkedPartition {
    /// Parked and settled messages.
    pub(crate) states: Vec<ParkedState>,
    /// Offsets of records of a newer format, to be passed.
    pub(crate) skipped: BTreeSet<i64>,
}

/// A record of the parked topic, ready to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ParkedRecord {
    pub(crate) key: String,
    pub(crate) headers: Vec<(String, Option<Bytes>)>,
    pub(crate) payload: Option<Bytes>,
}

impl ParkedRecord {
    /// A parked message; `half` is the same with its whole body.
    pub(crate) fn parked(parked: &ParkedHalf, half: &Half) -> Self {
        debug_assert!(!half.is_stub, "a stub has nothing to park");
        let of = HalfRef { id: half.meta.id, half: half.offset, epoch: parked.epoch };
        let park = Record::Park(Park {
            of,
            attempts: parked.attempts,
            cause: parked.cause,
            reason: parked.reason.clone(),
        });
        let mut headers = half.body.headers.clone();
        headers.push((HALF_HEADER.into(), encoded(&Record::Half(half.meta.clone()))));
        let at = Bytes::copy_from_slice(&parked.parked_at.to_le_bytes());
        headers.push((PARKED_AT_HEADER.into(), Some(at)));
        let when = Bytes::copy_from_slice(&parked.parked_ms.to_le_bytes());
        headers.push((PARKED_MS_HEADER.into(), Some(when)));
        if let Some(key) = &half.body.key {
            headers.push((KEY_HEADER.into(), Some(key.clone())));
        }
        if let Some(history) = parked.history.bytes() {
            headers.push((HISTORY_HEADER.into(), Some(Bytes::copy_from_slice(history))));
        }
        if half.body.payload.is_none() {
            headers.push((NULL_HEADER.into(), None));
        }
        headers.push((HEADER.into(), encoded(&park)));
        let payload = Some(half.body.payload.clone().unwrap_or_default());
        Self { key: of.id.to_string(), headers, payload }
    }

    /// A message that was parked, opened again and then decided by the record at `at`.
    pub(crate) fn settled(of: HalfRef, at: i64) -> Self {
        let decision = Record::Decision(Decision {
            of,
            verdict: Verdict::Commit,
            origin: Origin::Operator,
            operator: None,
            reason: String::new(),
        });
        let at = Bytes::copy_from_slice(&at.to_le_bytes());
        let headers = vec![(SETTLED_HEADER.into(), Some(at)), (HEADER.into(), encoded(&decision))];
        Self { key: of.id.to_string(), headers, payload: Some(Bytes::new()) }
    }

    /// Nothing is to be known of the message any more.
    pub(crate) fn cleared(id: TransactionId) -> Self {
        Self { key: id.to_string(), headers: Vec::new(), payload: None }
    }

    /// A copy of a store record that is none of ours.
    pub(crate) fn foreign(partition: i32, offset: i64, body: Body) -> Self {
        let key = format!("{FOREIGN_KEY}{partition}-{offset}");
        Self { key, headers: body.headers, payload: Some(body.payload.unwrap_or_default()) }
    }
}

impl ParkedRecord {
    /// The copy of a foreign record without what is somebody else's, because this topic does not
    /// take it whole: where the record is, until the store is trimmed, and why. `None` if there is
    /// nothing left to leave out.
    pub(crate) fn without_payload(&self, why: &str) -> Option<Self> {
        if self.headers.iter().any(|(name, _)| name == FOREIGN_AT_HEADER) {
            return None;
        }
        let (partition, offset) = self.key.strip_prefix(FOREIGN_KEY)?.split_once('-')?;
        let at = format!("partition {partition}, offset {offset}");
        let bytes = self.payload.as_ref().map_or(0, Bytes::len).to_string();
        let reason = format!(
            "{why}; the record itself is in the store at this place until the store is trimmed"
        );
        let header = |name: &str, value: String| (name.to_owned(), Some(Bytes::from(value)));
        let headers = vec![
            header(FOREIGN_AT_HEADER, at),
            header(FOREIGN_BYTES_HEADER, bytes),
            header(FOREIGN_REASON_HEADER, reason),
        ];
        Some(Self { key: self.key.clone(), headers, payload: Some(Bytes::new()) })
    }
}

fn encoded(record: &Record) -> Option<Bytes> {
    Some(Bytes::from(codec::encode(record)))
}

/// What a record of the parked topic says, with the body; `None` if it is not about a half message.
fn state(message: &BorrowedMessage<'_>) -> Option<ParkedState> {
    let mut body = body_of(message);
    let record = codec::decode(value(&body.headers, HEADER)?).ok()?;
    match record {
        Record::Park(park) => {
            // Ours stand behind the user's, which may have the same names.
            let begin = body.headers.iter().rposition(|(name, _)| name == HALF_HEADER)?;
            let ours = body.headers.split_off(begin);
            let half = codec::decode(value(&ours, HALF_HEADER)?).ok()?;
            let Record::Half(meta) = half else { return None };
            body.key = value(&ours, KEY_HEADER).cloned();
            if ours.iter().any(|(name, _)| name == NULL_HEADER) {
                body.payload = None;
            }
            Some(ParkedState::Parked(ParkedHalf {
                half: Arc::new(Half::new(meta, body, park.of.half, park.of.half.0)),
                epoch: park.of.epoch,
                attempts: park.attempts,
                cause: park.cause,
                reason: park.reason,
                parked_at: offset(&ours, PARKED_AT_HEADER)?,
                parked_ms: offset(&ours, PARKED_MS_HEADER)
                    .unwrap_or_else(|| message.timestamp().to_millis().unwrap_or(0)),
                history: value(&ours, HISTORY_HEADER)
                    .map_or(History::NONE, |bytes| History::read(park.of.id, bytes)),
            }))
        }
        Record::Decision(decision) => {
            let at = offset(&body.headers, SETTLED_HEADER)?;
            Some(ParkedState::Settled { of: decision.of, at })
        }
        _ => None,
    }
}

/// The value of the last header of this name.
fn value<'a>(headers: &'a [(String, Option<Bytes>)], name: &str) -> Option<&'a Bytes> {
    headers.iter().rfind(|(found, _)| found == name)?.1.as_ref()
}

/// A number in a header of ours.
fn offset(headers: &[(String, Option<Bytes>)], name: &str) -> Option<i64> {
    Some(i64::from_le_bytes(value(headers, name)?.as_ref().try_into().ok()?))
}

/// The bytes of our header: the last of its name, because the user may have one of the same name. A
/// record of somebody else may have a header name that is not UTF-8, at which the client panics:
/// then it counts as one without headers.
pub(crate) fn packed<'a>(message: &'a BorrowedMessage<'_>) -> Option<&'a [u8]> {
    let read = || {
        let headers = message.headers()?;
        // As good as always: each look at a header costs a record of a long log its part.
        let ours = match headers.count() {
            1 => headers.try_get(0).filter(|header| header.key == HEADER),
            _ => headers.iter().filter(|header| header.key == HEADER).last(),
        };
        ours?.value
    };
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(read)).ok().flatten()
}

/// A record's key, headers and payload, every header included; see [`packed`].
pub(crate) fn body_of(message: &BorrowedMessage<'_>) -> Body {
    body(message, false)
}

/// The user's part of a record of ours.
pub(crate) fn users_body(message: &BorrowedMessage<'_>) -> Body {
    body(message, true)
}

fn body(message: &BorrowedMessage<'_>, without_ours: bool) -> Body {
    Body {
        key: message.key().map(Bytes::copy_from_slice),
        headers: headers(message, without_ours),
        payload: message.payload().map(Bytes::copy_from_slice),
    }
}

fn headers(message: &BorrowedMessage<'_>, without_ours: bool) -> Vec<(String, Option<Bytes>)> {
    let read = || {
        let headers = message.headers()?;
        if without_ours && headers.count() == 1 && headers.get(0).key == HEADER {
            return None;
        }
        let ours = headers.iter().enumerate().filter(|(_, header)| header.key == HEADER);
        let ours = ours.map(|(at, _)| at).last().filter(|_| without_ours);
        let users = headers.iter().enumerate().filter(|(at, _)| Some(*at) != ours);
        let own = |header: Header<'_, &[u8]>| {
            (header.key.to_owned(), header.value.map(Bytes::copy_from_slice))
        };
        Some(users.map(|(_, header)| own(header)).collect::<Vec<_>>())
    };
    let headers = std::panic::catch_unwind(std::panic::AssertUnwindSafe(read));
    headers.ok().flatten().unwrap_or_default()
}

/// Reads what the parked topic says about these store partitions, and which of them could not be read.
/// Blocks, as long as patience lasts.
pub(crate) fn read(
    kafka: &KafkaConfig,
    topic: &str,
    partitions: &[i32],
    patience: Patience,
) -> Result<(HashMap<i32, ParkedPartition>, Unread), KafkaError> {
    let mut states: HashMap<i32, HashMap<Vec<u8>, ParkedState>> = HashMap::new();
    let mut skipped: HashMap<i32, BTreeSet<i64>> = HashMap::new();
    let unread = scan(kafka, topic, partitions, patience, |message| {
        let partition = message.partition();
        let key = message.key().unwrap_or_default().to_vec();
        if let Some(offset) = skipped_offset(&key, partition) {
            let of_partition = skipped.entry(partition).or_default();
            match message.payload() {
                Some(_) => of_partition.insert(offset),
                None => of_partition.remove(&offset),
            };
            return;
        }
        let of_partition = states.entry(partition).or_default();
        match state(message).map(without_body) {
            Some(state) => of_partition.insert(key, state),
            None => of_partition.remove(&key),
        };
    })?;
    let mut found: HashMap<i32, ParkedPartition> = HashMap::new();
    for (partition, states) in states {
        found.entry(partition).or_default().states = states.into_values().collect();
    }
    for (partition, skipped) in skipped {
        found.entry(partition).or_default().skipped = skipped;
    }
    // What is known of them is not all.
    found.retain(|partition, _| !unread.contains_key(partition));
    Ok((found, unread))
}

/// The key under which an operator's word to skip a record is kept.
pub(crate) fn skip_key(partition: i32, offset: i64) -> String {
    format!("{SKIP_KEY}{partition}-{offset}")
}

/// A key that was meant for another partition says nothing here.
fn skipped_offset(key: &[u8], partition: i32) -> Option<i64> {
    let place = std::str::from_utf8(key).ok()?.strip_prefix(SKIP_KEY)?;
    let (of, offset) = place.split_once('-')?;
    (of.parse() == Ok(partition)).then(|| offset.parse().ok()).flatten()
}

/// Bodies of parked messages are read again when somebody needs them.
fn without_body(state: ParkedState) -> ParkedState {
    match state {
        ParkedState::Parked(parked) => {
            ParkedState::Parked(ParkedHalf { half: Arc::new(parked.half.stub()), ..parked })
        }
        settled @ ParkedState::Settled { .. } => settled,
    }
}

/// The body of one parked message, if it is parked. Blocks, as long as patience lasts.
pub(crate) fn read_body(
    kafka: &KafkaConfig,
    topic: &str,
    partition: i32,
    id: TransactionId,
    patience: Patience,
) -> Result<Option<Body>, KafkaError> {
    let key = id.to_string();
    let mut body = None;
    scan_all(kafka, topic, &[partition], patience, |message| {
        if message.key() == Some(key.as_bytes()) {
            body = match state(message) {
                Some(ParkedState::Parked(parked)) => Some(parked.half.body.clone()),
                _ => None,
            };
        }
    })?;
    Ok(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_skip_names_one_record_of_its_own_partition() {
        let key = skip_key(3, 17);
        assert_eq!(key, "halfmsg.skip-3-17");
        assert_eq!(skipped_offset(key.as_bytes(), 3), Some(17));
        assert_eq!(skipped_offset(key.as_bytes(), 4), None);
        for wrong in ["halfmsg.skip-3", "halfmsg.skip-3-x", "foreign-3-17", "halfmsg.skip--3-17"] {
            assert_eq!(skipped_offset(wrong.as_bytes(), 3), None, "{wrong}");
        }
    }
}

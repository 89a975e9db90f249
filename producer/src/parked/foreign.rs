//! Copies of records of the store that are none of ours, as the parked topic keeps them.

use std::collections::BTreeMap;

use bytes::Bytes;
use halfmsg_kafka::KafkaConfig;
use halfmsg_protocol::{HEADER, codec};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Message};

use super::{FOREIGN_AT_HEADER, FOREIGN_BYTES_HEADER, FOREIGN_KEY, FOREIGN_REASON_HEADER};
use super::{headers, value};
use crate::scan::{Patience, Unread, scan};

/// Of a copy's headers so many are named, and of a name so many characters: they are somebody else's.
const NAMES: usize = 20;
const NAME_CHARACTERS: usize = 100;
/// And of a reason: what looks like ours may be somebody else's.
const REASON_CHARACTERS: usize = 1_000;

/// A copy, without what is somebody else's but for the names of headers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ForeignCopy {
    /// Of the record's payload.
    pub(crate) bytes: u64,
    /// Whether the copy has it.
    pub(crate) is_whole: bool,
    /// Why it is none of ours; or why it is not whole.
    pub(crate) reason: String,
    pub(crate) headers: Vec<String>,
    pub(crate) copied_ms: i64,
}

/// Of a record in the store: partition and offset.
pub(crate) type Place = (i32, i64);

/// By the place of the record in the store: the first so many. One that is deleted keeps its place, because
/// what stood behind it was let go.
#[derive(Debug, Default)]
pub(crate) struct ForeignCopies {
    most: usize,
    found: BTreeMap<Place, Option<ForeignCopy>>,
}

impl ForeignCopies {
    fn put(&mut self, place: Place, copy: Option<ForeignCopy>) {
        if copy.is_some() || self.found.contains_key(&place) {
            self.found.insert(place, copy);
        }
        if self.found.len() > self.most {
            self.found.pop_last();
        }
    }

    /// Those that are there, and the place at which the next so many begin.
    pub(crate) fn page(mut self, limit: usize) -> (Vec<(Place, ForeignCopy)>, Option<Place>) {
        let next = if self.found.len() > limit { self.found.pop_last() } else { None };
        let found = self.found.into_iter().filter_map(|(place, copy)| Some((place, copy?)));
        (found.collect(), next.map(|(place, _)| place))
    }
}

/// Reads of which records of these store partitions, from this one on, the parked topic has copies: the first so
/// many and one more; and which partitions could not be read. Blocks, as long as patience lasts.
pub(crate) fn read(
    kafka: &KafkaConfig,
    topic: &str,
    partitions: &[i32],
    (from, limit): (Place, usize),
    patience: Patience,
) -> Result<(ForeignCopies, Unread), KafkaError> {
    let mut copies = ForeignCopies { most: limit + 1, ..ForeignCopies::default() };
    let unread = scan(kafka, topic, partitions, patience, |message| {
        let partition = message.partition();
        let Some(offset) = offset_in(message.key().unwrap_or_default(), partition) else { return };
        let place = (partition, offset);
        if place < from {
            return;
        }
        copies.put(place, message.payload().map(|payload| copy(message, payload.len())));
    })?;
    // What is known of them is not all.
    for ((partition, _), copy) in &mut copies.found {
        if unread.contains_key(partition) {
            *copy = None;
        }
    }
    Ok((copies, unread))
}

/// A key that was meant for another partition says nothing here.
fn offset_in(key: &[u8], partition: i32) -> Option<i64> {
    let place = std::str::from_utf8(key).ok()?.strip_prefix(FOREIGN_KEY)?;
    let (of, offset) = place.split_once('-')?;
    let offset: i64 = offset.parse().ok()?;
    (of.parse() == Ok(partition) && offset >= 0).then_some(offset)
}

fn copy(message: &BorrowedMessage<'_>, payload: usize) -> ForeignCopy {
    described(&headers(message, false), payload, message.timestamp().to_millis().unwrap_or(0))
}

fn described(headers: &[(String, Option<Bytes>)], payload: usize, copied_ms: i64) -> ForeignCopy {
    let text = |name| {
        let text = value(headers, name).map(|text| String::from_utf8_lossy(text));
        text.map(|text| text.chars().take(REASON_CHARACTERS).collect::<String>())
    };
    let left_out = text(FOREIGN_BYTES_HEADER).and_then(|bytes| bytes.parse().ok());
    // Somebody else's record has a payload, or other headers than these.
    let ours = [FOREIGN_AT_HEADER, FOREIGN_BYTES_HEADER, FOREIGN_REASON_HEADER];
    let is_ours = payload == 0 && headers.iter().map(|(name, _)| name.as_str()).eq(ours);
    if let (true, Some(bytes), Some(reason)) = (is_ours, left_out, text(FOREIGN_REASON_HEADER)) {
        return ForeignCopy { bytes, is_whole: false, reason, headers: Vec::new(), copied_ms };
    }
    let reason = match value(headers, HEADER).map(|bytes| codec::decode(bytes)) {
        Some(Err(error)) => error.to_string(),
        Some(Ok(_)) => "it could not be read when it was passed".into(),
        None => "it has no halfmsg header".into(),
    };
    let names = headers.iter().take(NAMES);
    let names = names.map(|(name, _)| name.chars().take(NAME_CHARACTERS).collect());
    let bytes = u64::try_from(payload).unwrap_or(u64::MAX);
    ForeignCopy { bytes, is_whole: true, reason, headers: names.collect(), copied_ms }
}

#[cfg(test)]
mod tests {
    use halfmsg_protocol::Body;

    use super::super::ParkedRecord;
    use super::*;

    #[test]
    fn a_key_names_one_record_of_its_own_partition() {
        let key = ParkedRecord::foreign(3, 17, Body::default()).key;
        assert_eq!(offset_in(key.as_bytes(), 3), Some(17));
        assert_eq!(offset_in(key.as_bytes(), 4), None);
        for wrong in ["foreign-3", "foreign-3-x", "foreign-3--1", "halfmsg.skip-3-17", ""] {
            assert_eq!(offset_in(wrong.as_bytes(), 3), None, "{wrong}");
        }
    }

    #[test]
    fn the_first_are_kept_and_a_deleted_one_keeps_its_place() {
        let copy = || Some(described(&[], 1, 0));
        let mut copies = ForeignCopies { most: 3, ..ForeignCopies::default() };
        for offset in [50, 10, 40, 20, 30] {
            copies.put((0, offset), copy());
        }
        copies.put((0, 20), None);
        copies.put((0, 60), None);
        let (found, next) = copies.page(2);
        let places: Vec<_> = found.into_iter().map(|(place, _)| place).collect();
        assert_eq!((places, next), (vec![(0, 10)], Some((0, 30))));
    }

    #[test]
    fn a_copy_says_what_it_is_a_copy_of() {
        let name = "x".repeat(2 * NAME_CHARACTERS);
        let headers: Vec<_> = (0..NAMES + 1).map(|_| (name.clone(), None)).collect();
        let body = Body { headers, payload: Some(Bytes::from_static(b"abc")), ..Body::default() };
        let whole = ParkedRecord::foreign(3, 17, body);
        let of = |copy: &ParkedRecord| {
            described(&copy.headers, copy.payload.as_ref().map_or(0, Bytes::len), 5)
        };
        let found = of(&whole);
        assert_eq!((found.bytes, found.is_whole, found.copied_ms), (3, true, 5));
        assert_eq!(found.reason, "it has no halfmsg header");
        assert_eq!(found.headers, vec!["x".repeat(NAME_CHARACTERS); NAMES]);

        let cut = of(&whole.without_payload("too large").expect("there is something to leave out"));
        assert_eq!((cut.bytes, cut.is_whole, &cut.headers[..]), (3, false, &[][..]));
        assert!(cut.reason.starts_with("too large; "), "{}", cut.reason);

        let header = (HEADER.to_owned(), Some(Bytes::from_static(b"Xmsg")));
        let damaged = Body { headers: vec![header], ..Body::default() };
        let damaged = of(&ParkedRecord::foreign(3, 17, damaged));
        assert_eq!(damaged.reason, "not a half-message record: shorter than a header");
        assert_eq!(damaged.headers, [HEADER]);
    }
}

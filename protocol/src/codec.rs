//! The bytes of a store record's `halfmsg` header.
//!
//! ```text
//! 0..4    magic "hmsg"
//! 4       version
//! 5       kind
//! 6..10   CRC-32C, little endian, of bytes 0..6 and 10..
//! 10..26  transaction id
//! 26..    fields: tag (1), length (2, little endian), bytes; integers are little endian
//! ```
//! A field whose tag has the high bit set may be skipped by a reader that does not know it; any
//! other unknown tag or kind means that the record is of a newer version. One packed header and
//! not five, because five cost two thirds of a producer's rate.

use std::sync::Arc;
use std::time::Duration;

use crate::ids::{Epoch, HalfOffset, TransactionId};
use crate::record::{
    AskedBy, CheckOutcome, Checked, Decision, HalfMeta, HalfRef, Origin, Park, ParkCause, Record,
    Reopen, Verdict,
};

/// The name of the header that carries a store record.
pub const HEADER: &str = "halfmsg";
/// The name of the header that a delivered record carries: the transaction id as text, the key
/// by which a consumer in any language deduplicates.
pub const TRANSACTION_ID_HEADER: &str = "halfmsg-transaction-id";
/// The name of the header by which messages of one local transaction can be told to belong
/// together: its identity as text. Only they carry it.
pub const LOCAL_TRANSACTION_ID_HEADER: &str = "halfmsg-local-transaction-id";
/// The version that this code writes, and the newest that it reads.
pub const VERSION: u8 = 1;
/// The longest text field in bytes; a reason is cut to it, a name longer than it is refused
/// before it comes here.
pub const MAX_TEXT_BYTES: usize = 1_024;

const MAGIC: &[u8; 4] = b"hmsg";
const CRC_AT: usize = 6;
const ID_AT: usize = 10;
const FIELDS_AT: usize = 26;
const SKIPPABLE: u8 = 0x80;

mod kind {
    pub(super) const HALF: u8 = 1;
    pub(super) const COMMIT: u8 = 2;
    pub(super) const ROLLBACK: u8 = 3;
    pub(super) const CHECKED: u8 = 4;
    pub(super) const PARK: u8 = 5;
    pub(super) const REOPEN: u8 = 6;
}

mod tag {
    pub(super) const APPLICATION: u8 = 1;
    pub(super) const PURPOSE: u8 = 2;
    pub(super) const TOPIC: u8 = 3;
    pub(super) const TIMESTAMP_MS: u8 = 4;
    pub(super) const CHECK_AFTER_MS: u8 = 5;
    pub(super) const HALF_OFFSET: u8 = 6;
    pub(super) const EPOCH: u8 = 7;
    pub(super) const ORIGIN: u8 = 8;
    pub(super) const ATTEMPT: u8 = 9;
    pub(super) const OUTCOME: u8 = 10;
    pub(super) const CAUSE: u8 = 11;
    /// Not skippable: a program that does not know it would ask about another transaction.
    pub(super) const LOCAL_TRANSACTION: u8 = 13;
    pub(super) const OPERATOR: u8 = 0x81;
    pub(super) const REASON: u8 = 0x82;
    /// Why an operator had the listener asked; who did is the operator.
    pub(super) const ASKED_BECAUSE: u8 = 0x83;
}

/// Why bytes are not a record of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Not written by halfmsg, or damaged: reported and passed.
    #[error("not a half-message record: {0}")]
    Foreign(&'static str),
    /// Written by a newer halfmsg: the partition waits until this program is upgraded.
    #[error(
        "a record of a newer format ({0}; this program reads version {VERSION}): \
         upgrade this program"
    )]
    Newer(String),
}

/// The bytes of a record's header.
pub fn encode(record: &Record) -> Vec<u8> {
    let mut writer = Writer::new(kind_of(record), record.id());
    match record {
        Record::Half(meta) => return encode_half(meta),
        Record::Decision(decision) => {
            writer.half_ref(&decision.of);
            writer.field(tag::ORIGIN, &[origin_code(decision.origin)]);
            if let Some(operator) = &decision.operator {
                writer.text(tag::OPERATOR, operator);
            }
            writer.optional_text(tag::REASON, &decision.reason);
        }
        Record::Checked(checked) => {
            writer.half_ref(&checked.of);
            writer.field(tag::ATTEMPT, &checked.attempt.to_le_bytes());
            writer.field(tag::OUTCOME, &[outcome_code(checked.outcome)]);
            writer.optional_text(tag::REASON, &checked.reason);
            if let Some(asked) = &checked.asked_by {
                writer.text(tag::OPERATOR, &asked.operator);
                writer.optional_text(tag::ASKED_BECAUSE, &asked.reason);
            }
        }
        Record::Park(park) => {
            writer.half_ref(&park.of);
            writer.field(tag::ATTEMPT, &park.attempts.to_le_bytes());
            writer.field(tag::CAUSE, &[cause_code(park.cause)]);
            writer.optional_text(tag::REASON, &park.reason);
        }
        Record::Reopen(reopen) => {
            writer.half_ref(&reopen.of);
            writer.half(&reopen.meta);
            writer.text(tag::OPERATOR, &reopen.operator);
            writer.optional_text(tag::REASON, &reopen.reason);
        }
    }
    writer.finish()
}

/// The bytes of a HALF's header: what [`encode`] gives, from parts that are only lent.
pub fn encode_half(meta: &HalfMeta) -> Vec<u8> {
    let mut writer = Writer::new(kind::HALF, meta.id);
    writer.half(meta);
    writer.finish()
}

/// Reads a header's bytes.
///
/// # Errors
/// [`DecodeError`]; never panics, whatever the bytes.
pub fn decode(bytes: &[u8]) -> Result<Record, DecodeError> {
    let foreign = DecodeError::Foreign;
    if bytes.len() < FIELDS_AT {
        return Err(foreign("shorter than a header"));
    }
    if &bytes[..4] != MAGIC {
        return Err(foreign("wrong magic"));
    }
    let crc = u32::from_le_bytes(array(&bytes[CRC_AT..ID_AT])?);
    if crc != checksum(bytes) {
        return Err(foreign("wrong checksum"));
    }
    if bytes[4] > VERSION {
        return Err(DecodeError::Newer(format!("version {}", bytes[4])));
    }
    let id = TransactionId::from_bytes(array(&bytes[ID_AT..FIELDS_AT])?);
    read_fields(bytes[5], id, &bytes[FIELDS_AT..])
}

/// The kind and the fields of a record, where it is known otherwise whose it is and that it is whole.
pub(crate) fn pack(record: &Record) -> Vec<u8> {
    let mut bytes = encode(record);
    bytes.drain(..FIELDS_AT);
    bytes.insert(0, kind_of(record));
    bytes
}

/// Reads what [`pack`] made.
///
/// # Errors
/// [`DecodeError`]; never panics, whatever the bytes.
pub(crate) fn unpack(id: TransactionId, bytes: &[u8]) -> Result<Record, DecodeError> {
    let (kind, fields) = bytes.split_first().ok_or(DecodeError::Foreign("an empty record"))?;
    read_fields(*kind, id, fields)
}

fn read_fields(kind: u8, id: TransactionId, fields: &[u8]) -> Result<Record, DecodeError> {
    let fields = Fields::read(fields)?;
    match kind {
        kind::HALF => Ok(Record::Half(Arc::new(fields.meta(id)?))),
        kind::COMMIT => fields.decision(id, Verdict::Commit),
        kind::ROLLBACK => fields.decision(id, Verdict::Rollback),
        kind::CHECKED => fields.checked(id),
        kind::PARK => fields.park(id),
        kind::REOPEN => fields.reopen(id),
        other => Err(DecodeError::Newer(format!("kind {other}"))),
    }
}

fn kind_of(record: &Record) -> u8 {
    match record {
        Record::Half(_) => kind::HALF,
        Record::Decision(Decision { verdict: Verdict::Commit, .. }) => kind::COMMIT,
        Record::Decision(Decision { verdict: Verdict::Rollback, .. }) => kind::ROLLBACK,
        Record::Checked(_) => kind::CHECKED,
        Record::Park(_) => kind::PARK,
        Record::Reopen(_) => kind::REOPEN,
    }
}

fn checksum(bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&bytes[..CRC_AT]), &bytes[ID_AT..])
}

fn array<const N: usize>(bytes: &[u8]) -> Result<[u8; N], DecodeError> {
    bytes.try_into().map_err(|_| DecodeError::Foreign("a field of the wrong length"))
}

struct Writer(Vec<u8>);

impl Writer {
    fn new(kind: u8, id: TransactionId) -> Self {
        let mut bytes = Vec::with_capacity(128);
        bytes.extend_from_slice(MAGIC);
        bytes.push(VERSION);
        bytes.push(kind);
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(id.as_bytes());
        Self(bytes)
    }

    fn field(&mut self, tag: u8, value: &[u8]) {
        let length = u16::try_from(value.len()).expect("text fields are cut, others are integers");
        self.0.push(tag);
        self.0.extend_from_slice(&length.to_le_bytes());
        self.0.extend_from_slice(value);
    }

    fn text(&mut self, tag: u8, text: &str) {
        let mut end = text.len().min(MAX_TEXT_BYTES);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        self.field(tag, &text.as_bytes()[..end]);
    }

    fn optional_text(&mut self, tag: u8, text: &str) {
        if !text.is_empty() {
            self.text(tag, text);
        }
    }

    fn half(&mut self, meta: &HalfMeta) {
        self.text(tag::APPLICATION, &meta.application);
        self.text(tag::PURPOSE, &meta.purpose);
        self.text(tag::TOPIC, &meta.topic);
        self.field(tag::TIMESTAMP_MS, &meta.timestamp_ms.to_le_bytes());
        if let Some(after) = meta.check_after {
            let millis = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
            self.field(tag::CHECK_AFTER_MS, &millis.to_le_bytes());
        }
        if let Some(id) = meta.local_transaction {
            self.field(tag::LOCAL_TRANSACTION, id.as_bytes());
        }
    }

    fn half_ref(&mut self, of: &HalfRef) {
        self.field(tag::HALF_OFFSET, &of.half.0.to_le_bytes());
        self.field(tag::EPOCH, &of.epoch.0.to_le_bytes());
    }

    fn finish(mut self) -> Vec<u8> {
        let crc = checksum(&self.0).to_le_bytes();
        self.0[CRC_AT..ID_AT].copy_from_slice(&crc);
        self.0
    }
}

/// The fields of a header by tag; a repeated one is refused.
#[derive(Default)]
struct Fields<'a> {
    known: [Option<&'a [u8]>; 14],
    operator: Option<&'a [u8]>,
    reason: Option<&'a [u8]>,
    asked_because: Option<&'a [u8]>,
}

impl<'a> Fields<'a> {
    fn read(mut bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let mut fields = Self::default();
        while !bytes.is_empty() {
            let (head, rest) =
                bytes.split_at_checked(3).ok_or(DecodeError::Foreign("a cut field"))?;
            let length = usize::from(u16::from_le_bytes([head[1], head[2]]));
            let (value, rest) =
                rest.split_at_checked(length).ok_or(DecodeError::Foreign("a cut field"))?;
            fields.put(head[0], value)?;
            bytes = rest;
        }
        Ok(fields)
    }

    fn put(&mut self, tag: u8, value: &'a [u8]) -> Result<(), DecodeError> {
        let slot = match tag {
            tag::OPERATOR => &mut self.operator,
            tag::REASON => &mut self.reason,
            tag::ASKED_BECAUSE => &mut self.asked_because,
            1..=11 | tag::LOCAL_TRANSACTION => &mut self.known[usize::from(tag)],
            tag if tag & SKIPPABLE != 0 => return Ok(()),
            tag => return Err(DecodeError::Newer(format!("field {tag}"))),
        };
        match slot.replace(value) {
            None => Ok(()),
            Some(_) => Err(DecodeError::Foreign("a repeated field")),
        }
    }

    fn need(&self, tag: u8) -> Result<&'a [u8], DecodeError> {
        self.known[usize::from(tag)].ok_or(DecodeError::Foreign("a missing field"))
    }

    fn string(&self, tag: u8) -> Result<String, DecodeError> {
        utf8(self.need(tag)?)
    }

    fn u32(&self, tag: u8) -> Result<u32, DecodeError> {
        Ok(u32::from_le_bytes(array(self.need(tag)?)?))
    }

    fn i64(&self, tag: u8) -> Result<i64, DecodeError> {
        Ok(i64::from_le_bytes(array(self.need(tag)?)?))
    }

    fn code(&self, tag: u8) -> Result<u8, DecodeError> {
        let [code] = array(self.need(tag)?)?;
        Ok(code)
    }

    fn reason(&self) -> Result<String, DecodeError> {
        self.reason.map_or(Ok(String::new()), utf8)
    }

    fn meta(&self, id: TransactionId) -> Result<HalfMeta, DecodeError> {
        let check_after = match self.known[usize::from(tag::CHECK_AFTER_MS)] {
            Some(bytes) => Some(Duration::from_millis(u64::from_le_bytes(array(bytes)?))),
            None => None,
        };
        let local_transaction = match self.known[usize::from(tag::LOCAL_TRANSACTION)] {
            Some(bytes) => Some(TransactionId::from_bytes(array(bytes)?)),
            None => None,
        };
        Ok(HalfMeta {
            id,
            application: self.string(tag::APPLICATION)?,
            purpose: self.string(tag::PURPOSE)?,
            topic: self.string(tag::TOPIC)?,
            timestamp_ms: self.i64(tag::TIMESTAMP_MS)?,
            check_after,
            local_transaction,
        })
    }

    fn half_ref(&self, id: TransactionId) -> Result<HalfRef, DecodeError> {
        let half = HalfOffset(self.i64(tag::HALF_OFFSET)?);
        if half.0 < 0 {
            return Err(DecodeError::Foreign("a negative offset"));
        }
        Ok(HalfRef { id, half, epoch: Epoch(self.u32(tag::EPOCH)?) })
    }

    fn decision(&self, id: TransactionId, verdict: Verdict) -> Result<Record, DecodeError> {
        Ok(Record::Decision(Decision {
            of: self.half_ref(id)?,
            verdict,
            origin: origin_of(self.code(tag::ORIGIN)?)?,
            operator: self.operator.map(utf8).transpose()?,
            reason: self.reason()?,
        }))
    }

    fn checked(&self, id: TransactionId) -> Result<Record, DecodeError> {
        Ok(Record::Checked(Checked {
            of: self.half_ref(id)?,
            attempt: self.u32(tag::ATTEMPT)?,
            outcome: outcome_of(self.code(tag::OUTCOME)?)?,
            reason: self.reason()?,
            asked_by: self.operator.map(|operator| self.asked_by(operator)).transpose()?,
        }))
    }

    fn asked_by(&self, operator: &[u8]) -> Result<Box<AskedBy>, DecodeError> {
        let reason = self.asked_because.map_or(Ok(String::new()), utf8)?;
        Ok(Box::new(AskedBy { operator: utf8(operator)?, reason }))
    }

    fn park(&self, id: TransactionId) -> Result<Record, DecodeError> {
        Ok(Record::Park(Park {
            of: self.half_ref(id)?,
            attempts: self.u32(tag::ATTEMPT)?,
            cause: cause_of(self.code(tag::CAUSE)?)?,
            reason: self.reason()?,
        }))
    }

    fn reopen(&self, id: TransactionId) -> Result<Record, DecodeError> {
        Ok(Record::Reopen(Box::new(Reopen {
            of: self.half_ref(id)?,
            meta: Arc::new(self.meta(id)?),
            operator: self.operator.map_or(Ok(String::new()), utf8)?,
            reason: self.reason()?,
        })))
    }
}

fn utf8(bytes: &[u8]) -> Result<String, DecodeError> {
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(text.to_owned()),
        Err(_) => Err(DecodeError::Foreign("a text that is not UTF-8")),
    }
}

macro_rules! codes {
    ($to:ident, $from:ident, $type:ident { $($variant:ident = $code:literal),+ $(,)? }) => {
        fn $to(value: $type) -> u8 {
            match value { $($type::$variant => $code),+ }
        }

        fn $from(code: u8) -> Result<$type, DecodeError> {
            match code {
                $($code => Ok($type::$variant),)+
                other => Err(DecodeError::Newer(format!("{} {other}", stringify!($type)))),
            }
        }
    };
}

codes!(origin_code, origin_of, Origin { Producer = 1, CheckBack = 2, Operator = 3 });
codes!(outcome_code, outcome_of, CheckOutcome { Unknown = 1, Failed = 2 });
codes!(cause_code, cause_of, ParkCause { MaxChecks = 1, MaxAge = 2, NoListener = 3, Undeliverable = 4 });

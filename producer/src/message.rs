//! Messages as the user sees them: what is sent, and what a listener is shown.

use std::time::Duration;

use bytes::Bytes;
use halfmsg_protocol::{
    HEADER, Half, LOCAL_TRANSACTION_ID_HEADER, TRANSACTION_ID_HEADER, TransactionId,
};

use crate::error::Invalid;
use crate::log::Part;

/// The longest name of a topic that Kafka accepts, in bytes.
const MAX_TOPIC_BYTES: usize = 249;
/// The last millisecond of the year 9999.
const MAX_TIMESTAMP_MS: i64 = 253_402_300_799_999;
/// Headers of one message.
pub const MAX_HEADERS: usize = 1_000;

/// A message to be sent if, and only if, the local transaction commits.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Message {
    /// The topic that it is delivered to.
    pub topic: String,
    /// The ordering key: messages of one key are delivered in the order of their commits. If one is called
    /// before the former one is acknowledged (also where that was given up), either may come first, unless both
    /// are of one `begin_several`.
    pub key: Option<Bytes>,
    /// Headers, carried to the target untouched.
    pub headers: Vec<(String, Option<Bytes>)>,
    /// The payload; none is Kafka's null value.
    pub payload: Option<Bytes>,
    /// The timestamp of the delivered record, in milliseconds since the epoch, from 0 to the end of the year
    /// 9999; the time of the prepare, if none is given. The target's retention by time counts from it. A topic may refuse what is far from now
    /// (`message.timestamp.after.max.ms`): such a message is parked as undeliverable.
    pub timestamp_ms: Option<i64>,
    /// Time to the first check, if not the group's; more than prepare and local deadline, and at most the
    /// group's `max_age` (or its `check_after`, if that is more), so that what nobody decides has a bound.
    pub check_after: Option<Duration>,
    /// Its identity, if it must be known before it is stored, as for a header that names it: a fresh
    /// one of [`new_transaction_id`](crate::TransactionProducer::new_transaction_id), used once, also
    /// where storing it has failed. A process refuses those that it used lately
    /// ([`Invalid::IdUsed`]). Where another one has used it, the store takes the same message for a
    /// copy of the first, which shares its decision; another message is lost, as an error in the log
    /// and the metric `reused` say. That holds within one partition of the store, which follows from the
    /// ordering key, and as long as its owner knows the first: while it is open or parked, and as far back
    /// as the store is replayed. Behind that the same message may be
    /// delivered once more, under the same id, even exactly once. An inbox takes either for a repetition. Of several messages of one
    /// transaction, all have one or none does.
    pub id: Option<TransactionId>,
}

impl Message {
    /// A message without key and headers.
    pub fn new(topic: impl Into<String>, payload: impl Into<Bytes>) -> Self {
        Self { topic: topic.into(), payload: Some(payload.into()), ..Self::default() }
    }

    /// With an ordering key.
    #[must_use]
    pub fn key(mut self, key: impl Into<Bytes>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// With one more header.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<Bytes>) -> Self {
        self.headers.push((name.into(), Some(value.into())));
        self
    }

    /// With this identity; see [`Message::id`].
    #[must_use]
    pub fn id(mut self, id: TransactionId) -> Self {
        self.id = Some(id);
        self
    }

    /// With this timestamp; see [`Message::timestamp_ms`].
    #[must_use]
    pub fn timestamp_ms(mut self, timestamp_ms: i64) -> Self {
        self.timestamp_ms = Some(timestamp_ms);
        self
    }

    /// With a first check after this long.
    #[must_use]
    pub fn check_after(mut self, after: Duration) -> Self {
        self.check_after = Some(after);
        self
    }

    pub(crate) fn validate(
        &self,
        max_bytes: usize,
        least_check_after: Duration,
        most_check_after: Duration,
    ) -> Result<(), Invalid> {
        let fit = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        let topic = &self.topic;
        if topic.is_empty() || topic.len() > MAX_TOPIC_BYTES || !topic.chars().all(fit) {
            return Err(Invalid::Topic(topic.clone()));
        }
        if self.headers.len() > MAX_HEADERS {
            return Err(Invalid::TooManyHeaders(self.headers.len()));
        }
        for (name, _) in &self.headers {
            if [HEADER, TRANSACTION_ID_HEADER, LOCAL_TRANSACTION_ID_HEADER].contains(&name.as_str())
            {
                return Err(Invalid::ReservedHeader(name.clone()));
            }
            // librdkafka takes header names as C strings.
            if name.contains('\0') {
                return Err(Invalid::HeaderName(name.clone()));
            }
        }
        if let Some(after) = self.check_after.filter(|after| *after <= least_check_after) {
            return Err(Invalid::CheckAfter { after, least: least_check_after });
        }
        if let Some(after) = self.check_after.filter(|after| *after > most_check_after) {
            return Err(Invalid::CheckTooLate { after, most: most_check_after });
        }
        if let Some(wrong) = self.timestamp_ms.filter(|ms| !(0..=MAX_TIMESTAMP_MS).contains(ms)) {
            return Err(Invalid::Timestamp(wrong));
        }
        let bytes = self.bytes();
        if bytes > max_bytes {
            return Err(Invalid::TooLarge { bytes, max_bytes });
        }
        Ok(())
    }

    /// Bytes of key, headers and payload.
    fn bytes(&self) -> usize {
        let bytes = |value: &Option<Bytes>| value.as_ref().map_or(0, Bytes::len);
        let headers: usize =
            self.headers.iter().map(|(name, value)| name.len() + bytes(value)).sum();
        bytes(&self.key) + headers + bytes(&self.payload)
    }

    /// What its store partition follows from: its ordering key, else the id that it was given. Only
    /// who owns both copies of a message can tell that they are.
    pub(crate) fn stays_with(&self) -> Option<&[u8]> {
        let id = self.id.as_ref().map(|id| id.as_bytes().as_slice());
        self.key.as_deref().or(id)
    }

    /// What goes into the store's record besides ours.
    pub(crate) fn part(&self) -> Part<'_> {
        Part { key: self.key.as_deref(), headers: &self.headers, payload: self.payload.as_deref() }
    }
}

/// A stored half message, as a listener sees it. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HalfMessage {
    /// Its identity; the delivered record carries it too.
    pub transaction_id: TransactionId,
    /// The identity of the local transaction: the key of its fence. The message's own, unless it is
    /// one of several that share a local transaction.
    pub local_transaction_id: TransactionId,
    /// The kind of local transaction.
    pub purpose: String,
    /// The topic that it will be delivered to.
    pub topic: String,
    /// The ordering key.
    pub key: Option<Bytes>,
    /// The user's headers.
    pub headers: Vec<(String, Option<Bytes>)>,
    /// The payload.
    pub payload: Option<Bytes>,
    /// The store's partition.
    pub partition: i32,
    /// The offset of its HALF record.
    pub offset: i64,
    /// Its life: how often it was reopened.
    pub epoch: u32,
    /// Checks that were really made in this life.
    pub attempts: u32,
}

impl HalfMessage {
    pub(crate) fn new(partition: i32, half: &Half, epoch: u32, attempts: u32) -> Self {
        Self {
            transaction_id: half.meta.id,
            local_transaction_id: half.meta.local_transaction.unwrap_or(half.meta.id),
            purpose: half.meta.purpose.clone(),
            topic: half.meta.topic.clone(),
            key: half.body.key.clone(),
            headers: half.body.headers.clone(),
            payload: half.body.payload.clone(),
            partition,
            offset: half.offset.0,
            epoch,
            attempts,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAST: Duration = Duration::from_secs(5);
    const MOST: Duration = Duration::from_secs(500);

    #[test]
    fn a_payload_at_the_limit_passes_and_one_byte_more_does_not() {
        let at = Message::new("t", vec![0; 90]).key(vec![0; 10]);
        assert_eq!(at.validate(100, LEAST, MOST), Ok(()));
        let over = Message::new("t", vec![0; 91]).key(vec![0; 10]);
        assert_eq!(
            over.validate(100, LEAST, MOST),
            Err(Invalid::TooLarge { bytes: 101, max_bytes: 100 })
        );
    }

    #[test]
    fn refuses_what_would_be_lost_or_confused() {
        let reserved = Message::new("t", "x").header("halfmsg", "y");
        assert!(matches!(reserved.validate(100, LEAST, MOST), Err(Invalid::ReservedHeader(_))));
        assert!(matches!(Message::new("", "x").validate(9, LEAST, MOST), Err(Invalid::Topic(_))));
        assert!(matches!(
            Message::new("a b", "x").validate(9, LEAST, MOST),
            Err(Invalid::Topic(_))
        ));
        let early = Message::new("t", "x").check_after(LEAST);
        assert!(matches!(early.validate(9, LEAST, MOST), Err(Invalid::CheckAfter { .. })));
        let last = Message::new("t", "x").check_after(MOST);
        assert_eq!(last.validate(9, LEAST, MOST), Ok(()));
        for late in [MOST + Duration::from_millis(1), Duration::MAX] {
            let late = Message::new("t", "x").check_after(late);
            assert!(matches!(late.validate(9, LEAST, MOST), Err(Invalid::CheckTooLate { .. })));
        }
        for (timestamp_ms, is_one) in
            [(0, true), (MAX_TIMESTAMP_MS, true), (-1, false), (i64::MAX, false)]
        {
            let dated = Message::new("t", "x").timestamp_ms(timestamp_ms).validate(9, LEAST, MOST);
            assert_eq!(dated.is_ok(), is_one, "{timestamp_ms}: {dated:?}");
        }
        let nul = Message::new("t", "x").header("a\0b", "y");
        assert!(matches!(nul.validate(100, LEAST, MOST), Err(Invalid::HeaderName(_))));
    }
}

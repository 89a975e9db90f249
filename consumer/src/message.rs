//! A message as it was received, and the key under which it is remembered.

use bytes::Bytes;
use rdkafka::Message;
use rdkafka::message::{BorrowedMessage, Header, Headers};
use tracing::field::{DisplayValue, display};
use uuid::Uuid;

/// The header in which a delivered half message carries its transaction id, as text.
pub const TRANSACTION_ID_HEADER: &str = "halfmsg-transaction-id";

/// A message, owned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReceivedMessage {
    /// Where it came from.
    pub topic: String,
    /// The partition there.
    pub partition: i32,
    /// The offset there.
    pub offset: i64,
    /// The ordering key.
    pub key: Option<Bytes>,
    /// The headers in their order; names may repeat.
    pub headers: Vec<(String, Option<Bytes>)>,
    /// The payload; `None` is a null value.
    pub payload: Option<Bytes>,
}

impl ReceivedMessage {
    pub(crate) fn own(message: &BorrowedMessage<'_>) -> Self {
        // A header name that is not UTF-8, at which the client panics, leaves a message without
        // headers: it is known by its coordinates then.
        let read = || {
            let headers = message.headers()?.iter();
            let own = |header: Header<'_, &[u8]>| {
                (header.key.to_owned(), header.value.map(Bytes::copy_from_slice))
            };
            Some(headers.map(own).collect::<Vec<_>>())
        };
        let headers = std::panic::catch_unwind(std::panic::AssertUnwindSafe(read));
        let headers = headers.ok().flatten().unwrap_or_default();
        Self {
            topic: message.topic().to_owned(),
            partition: message.partition(),
            offset: message.offset(),
            key: message.key().map(Bytes::copy_from_slice),
            headers,
            payload: message.payload().map(Bytes::copy_from_slice),
        }
    }

    /// The value of the first header of this name that has one.
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        let mut named = self.headers.iter().filter(|(found, _)| found == name);
        named.find_map(|(_, value)| value.as_deref())
    }

    /// The transaction whose message this is; `None` for a message that was not sent by halfmsg.
    pub fn transaction_id(&self) -> Option<Uuid> {
        Uuid::try_parse_ascii(self.header(TRANSACTION_ID_HEADER)?).ok()
    }

    /// The key in the inbox: the transaction id, or the coordinates of a foreign message.
    pub fn inbox_key(&self) -> String {
        match self.transaction_id() {
            Some(id) => id.to_string(),
            None => format!("{}-{}-{}", self.topic, self.partition, self.offset),
        }
    }

    /// Its transaction and its key, for the log.
    pub(crate) fn named(&self) -> (Option<DisplayValue<Uuid>>, Option<DisplayValue<&str>>) {
        let key = self.key.as_deref().and_then(|key| std::str::from_utf8(key).ok());
        (self.transaction_id().map(display), key.map(display))
    }

    /// What stands for the key in an index: the same for the same key, in every version.
    pub(crate) fn key_hash(&self) -> Option<i64> {
        self.key.as_deref().map(key_hash)
    }

    /// The same of topic and key, for what counts the messages of a key across partitions: after partitions
    /// were added a key may be in another one.
    pub(crate) fn topic_key_hash(&self) -> Option<i64> {
        let key = self.key.as_deref()?;
        // A topic's name has no NUL.
        Some(key_hash(&[self.topic.as_bytes(), b"\0", key].concat()))
    }

    /// What `max_batch_bytes` counts.
    pub(crate) fn size(&self) -> usize {
        let headers: usize = self
            .headers
            .iter()
            .map(|(name, value)| name.len() + value.as_ref().map_or(0, Bytes::len))
            .sum();
        headers
            + self.key.as_ref().map_or(0, Bytes::len)
            + self.payload.as_ref().map_or(0, Bytes::len)
    }
}

/// FNV-1a with 64 bits. Two keys with the same hash wait for each other without need; nothing else.
pub(crate) fn key_hash(key: &[u8]) -> i64 {
    let hash = key.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    hash.cast_signed()
}

#[cfg(test)]
pub(crate) fn example(offset: i64, header: Option<&str>) -> ReceivedMessage {
    let value = |text: &str| Some(Bytes::copy_from_slice(text.as_bytes()));
    let header = header.map(|text| (TRANSACTION_ID_HEADER.to_owned(), value(text)));
    ReceivedMessage {
        topic: "t".into(),
        partition: 3,
        offset,
        key: None,
        headers: header.into_iter().collect(),
        payload: value("{}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_remembered_by_its_transaction() {
        let id = "0198c0de-0000-7000-8000-000000000001";
        assert_eq!(example(7, Some(id)).inbox_key(), id);
        assert_eq!(example(7, Some(&id.to_uppercase())).inbox_key(), id);
    }

    #[test]
    fn hashes_are_those_of_fnv() {
        assert_eq!(key_hash(b"").cast_unsigned(), 0xcbf2_9ce4_8422_2325);
        assert_eq!(key_hash(b"foobar").cast_unsigned(), 0x8594_4171_f739_67e8);
    }

    #[test]
    fn a_foreign_message_is_remembered_by_its_place() {
        assert_eq!(example(7, None).inbox_key(), "t-3-7");
        assert_eq!(example(7, Some("not a uuid")).inbox_key(), "t-3-7");
    }
}

//! What tells a copy of a HALF record from another message that was given the same id: a hash of what
//! its sender gave. It must be the same on every replica and in every version.

use std::num::NonZeroU64;

use bytes::Bytes;

use crate::record::HalfMeta;

/// A hash of a message: application, purpose, target, local transaction, key and payload. A copy has
/// them all; the timestamp and the headers are left out, because who stores the same message again
/// under its id stamps and traces it anew, and means the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Print(NonZeroU64);

impl Print {
    pub(super) fn of(meta: &HalfMeta, key: Option<&Bytes>, payload: Option<&[u8]>) -> Self {
        let local = meta.local_transaction.map(|id| *id.as_uuid().as_bytes());
        let parts = [
            Some(meta.application.as_bytes()),
            Some(meta.purpose.as_bytes()),
            Some(meta.topic.as_bytes()),
            local.as_ref().map(<[u8; 16]>::as_slice),
            key.map(Bytes::as_ref),
        ];
        let mut named = Parts::default();
        for part in parts {
            named.sized(part);
            named.add(part.unwrap_or_default());
        }
        named.sized(payload);
        let payload_crc = crc32c::crc32c(payload.unwrap_or_default());
        let hash = u64::from(named.end()) << 32 | u64::from(payload_crc);
        // So that a table of those that may be unknown takes no room for that.
        Self(NonZeroU64::new(hash).unwrap_or(NonZeroU64::MAX))
    }
}

/// The CRC of many short parts: together, because each call for one of them costs as much as they all
/// do.
struct Parts {
    crc: u32,
    waiting: [u8; 256],
    len: usize,
}

impl Default for Parts {
    fn default() -> Self {
        Self { crc: 0, waiting: [0; 256], len: 0 }
    }
}

impl Parts {
    /// With the length in front, nothing can be moved from one part to the next; none is no empty one.
    fn sized(&mut self, part: Option<&[u8]>) {
        let length = part.map_or(u64::MAX, |part| part.len() as u64);
        self.add(&length.to_le_bytes());
    }

    fn add(&mut self, part: &[u8]) {
        if part.len() > self.waiting.len() - self.len {
            self.crc = crc32c::crc32c_append(self.crc, &self.waiting[..self.len]);
            self.len = 0;
        }
        match self.waiting.get_mut(self.len..self.len + part.len()) {
            Some(place) => {
                place.copy_from_slice(part);
                self.len += part.len();
            }
            None => self.crc = crc32c::crc32c_append(self.crc, part),
        }
    }

    fn end(self) -> u32 {
        crc32c::crc32c_append(self.crc, &self.waiting[..self.len])
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::ids::TransactionId;

    #[test]
    fn differs_with_everything_that_makes_another_message_and_nothing_else() {
        let id = TransactionId::from_bytes([1; 16]);
        let meta = HalfMeta {
            id,
            application: "app".into(),
            purpose: "purpose".into(),
            topic: "topic".into(),
            timestamp_ms: 1,
            check_after: None,
            local_transaction: None,
        };
        let key = Bytes::from("key");
        let print = |meta: &HalfMeta| Print::of(meta, Some(&key), Some(b"payload"));
        let same = [
            HalfMeta { timestamp_ms: 2, ..meta.clone() },
            HalfMeta { check_after: Some(Duration::ZERO), ..meta.clone() },
        ];
        assert!(same.iter().all(|same| print(same) == print(&meta)));
        let others = [
            print(&HalfMeta { application: "b".into(), ..meta.clone() }),
            print(&HalfMeta { purpose: "b".into(), ..meta.clone() }),
            print(&HalfMeta { topic: "b".into(), ..meta.clone() }),
            print(&HalfMeta { purpose: "purposet".into(), topic: "opic".into(), ..meta.clone() }),
            print(&HalfMeta { local_transaction: Some(id), ..meta.clone() }),
            Print::of(&meta, None, Some(b"payload")),
            Print::of(&meta, Some(&Bytes::new()), Some(b"payload")),
            Print::of(&meta, Some(&key), None),
            Print::of(&meta, Some(&key), Some(b"")),
            Print::of(&meta, Some(&key), Some(b"payloae")),
        ];
        let mut all: Vec<Print> = [print(&meta)].into_iter().chain(others).collect();
        all.sort_by_key(|print| print.0);
        all.dedup();
        assert_eq!(all.len(), 1 + others.len());
    }

    #[test]
    fn parts_give_the_hash_of_what_stands_one_behind_the_other() {
        for sizes in [&[3, 0, 200, 53, 1, 255, 256, 257, 4][..], &[1_000], &[256, 256], &[]] {
            let (mut parts, mut all) = (Parts::default(), Vec::new());
            for size in sizes {
                let part: Vec<u8> = (0..*size).map(|at| (at % 251) as u8).collect();
                parts.add(&part);
                all.extend(part);
            }
            assert_eq!(parts.end(), crc32c::crc32c(&all), "{sizes:?}");
        }
    }
}

//! The partition of a half message: by its ordering key as Java's clients choose it, else spread.

use std::sync::atomic::{AtomicU32, Ordering};

/// Murmur2 as Kafka's Java client uses it (`org.apache.kafka.common.utils.Utils.murmur2`).
fn murmur2(data: &[u8]) -> u32 {
    const SEED: u32 = 0x9747_b28c;
    const M: u32 = 0x5bd1_e995;
    let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
    let mut hash = SEED ^ length;
    let mut chunks = data.chunks_exact(4);
    for chunk in &mut chunks {
        let mut word = u32::from_le_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]);
        word = word.wrapping_mul(M);
        word ^= word >> 24;
        word = word.wrapping_mul(M);
        hash = hash.wrapping_mul(M) ^ word;
    }
    let rest = chunks.remainder();
    if !rest.is_empty() {
        for (shift, byte) in rest.iter().enumerate() {
            hash ^= u32::from(*byte) << (8 * shift);
        }
        hash = hash.wrapping_mul(M);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(M);
    hash ^ (hash >> 15)
}

/// Chooses store partitions.
#[derive(Debug, Default)]
pub(crate) struct Partitioner {
    next: AtomicU32,
}

impl Partitioner {
    /// The partition for a key among `count` partitions.
    pub(crate) fn choose(&self, key: Option<&[u8]>, count: i32) -> i32 {
        let count = u32::try_from(count.max(1)).unwrap_or(1);
        let hash = match key {
            Some(key) => murmur2(key) & 0x7fff_ffff,
            None => self.next.fetch_add(1, Ordering::Relaxed),
        };
        i32::try_from(hash % count).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The values of Kafka's own UtilsTest.testMurmur2.
    #[test]
    fn agrees_with_the_java_client() {
        for (text, hash) in [
            ("21", -973_932_308_i32),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            ("abc", 479_470_107),
        ] {
            assert_eq!(murmur2(text.as_bytes()), hash.cast_unsigned(), "{text}");
        }
    }

    #[test]
    fn a_key_keeps_its_partition_and_no_key_spreads() {
        let partitioner = Partitioner::default();
        assert_eq!(partitioner.choose(Some(b"k"), 8), partitioner.choose(Some(b"k"), 8));
        let spread: std::collections::HashSet<_> =
            (0..8).map(|_| partitioner.choose(None, 8)).collect();
        assert_eq!(spread.len(), 8);
    }
}

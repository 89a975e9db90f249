//! The partition of a half message: by its ordering key as Java's clients choose it, else spread.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

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

/// Messages without a key go to one partition for so long before it is the next one's turn: under
/// load one request to the broker, and one batch of deliveries, then carries many of them (KIP-480;
/// librdkafka's `sticky.partitioning.linger.ms`).
const STICKY_FOR: Duration = Duration::from_millis(10);

/// Chooses store partitions.
#[derive(Debug)]
pub(crate) struct Partitioner {
    started: Instant,
    /// The present turn: since when in the upper half, in units of [`STICKY_FOR`], and its number
    /// in the lower.
    turn: AtomicU64,
}

impl Partitioner {
    pub(crate) fn new() -> Self {
        Self { started: Instant::now(), turn: AtomicU64::new(0) }
    }

    /// The partition for a key among `count` partitions.
    pub(crate) fn choose(&self, key: Option<&[u8]>, count: i32) -> i32 {
        let count = u32::try_from(count.max(1)).unwrap_or(1);
        let hash = match key {
            Some(key) => murmur2(key) & 0x7fff_ffff,
            None => self.turn(self.started.elapsed()),
        };
        i32::try_from(hash % count).unwrap_or(0)
    }

    /// The number of the turn at this time.
    fn turn(&self, at: Duration) -> u32 {
        // It goes round after a year or more: then a turn is longer once.
        let slot = (at.as_millis() / STICKY_FOR.as_millis()) as u64 & u64::from(u32::MAX);
        let number = |turn: u64| (turn & u64::from(u32::MAX)) as u32;
        let next = |turn: u64| {
            (turn >> 32 != slot).then(|| slot << 32 | u64::from(number(turn).wrapping_add(1)))
        };
        match self.turn.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next) {
            Ok(before) => number(before).wrapping_add(1),
            Err(present) => number(present),
        }
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
    fn a_key_keeps_its_partition() {
        let partitioner = Partitioner::new();
        assert_eq!(partitioner.choose(Some(b"k"), 8), partitioner.choose(Some(b"k"), 8));
    }

    #[test]
    fn no_key_stays_for_a_turn_and_then_goes_round() {
        let partitioner = Partitioner::new();
        let turns = |from_ms: u64, step_ms: u64| -> Vec<u32> {
            let at = |index: u64| Duration::from_millis(from_ms + index * step_ms);
            (0..8).map(|index| partitioner.turn(at(index)) % 8).collect()
        };
        assert_eq!(turns(1_000, 1), [1; 8], "one turn");
        assert_eq!(turns(2_000, 20), [2, 3, 4, 5, 6, 7, 0, 1], "each its own, whatever the pace");
        assert_eq!(turns(3_000, 80), [2, 3, 4, 5, 6, 7, 0, 1]);
    }
}

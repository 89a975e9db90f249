//! The hash maps of a partition's state.

use std::collections;
use std::hash::{BuildHasherDefault, Hasher};

/// Keys are ids and offsets that this application has given out itself: nobody is kept from finding
/// collisions, as the standard library's slower hasher does.
pub(crate) type HashMap<K, V> = collections::HashMap<K, V, foldhash::fast::RandomState>;

/// By an offset of one partition. What stands side by side in the log does so in the map, too: its
/// neighbours are asked for next, and are in the processor's cache by then.
pub(crate) type OffsetMap<V> =
    collections::HashMap<crate::ids::HalfOffset, V, BuildHasherDefault<OffsetHasher>>;

/// An offset as its own hash, but for the highest bits, by which the map tells what it compares.
#[derive(Default)]
pub(crate) struct OffsetHasher(u64);

/// The bits that the map takes for its tags.
const TAG: u64 = 0x7f << 57;
/// 2^64 by the golden ratio: spreads what is close together over the highest bits.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

impl Hasher for OffsetHasher {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_i64(i64::from(*byte));
        }
    }

    fn write_i64(&mut self, offset: i64) {
        let offset = self.0.rotate_left(8) ^ offset.cast_unsigned();
        // Offsets at distances of a power of two would have the same low bits.
        let place = offset.wrapping_add(offset >> 20);
        self.0 = (place & !TAG) | (offset.wrapping_mul(SPREAD) & TAG);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::hash::BuildHasher;

    use super::*;
    use crate::ids::HalfOffset;

    fn hash(offset: i64) -> u64 {
        BuildHasherDefault::<OffsetHasher>::default().hash_one(HalfOffset(offset))
    }

    #[test]
    fn neighbours_are_neighbours_and_have_tags_of_their_own() {
        let from = 123_456_789;
        for offset in from..from + 1_000 {
            let step = (hash(offset + 1) & !TAG).abs_diff(hash(offset) & !TAG);
            assert_eq!(step, 1, "{offset}");
        }
        let tags: HashSet<u64> = (from..from + 128).map(|offset| hash(offset) & TAG).collect();
        assert!(tags.len() > 64, "{}", tags.len());
    }

    #[test]
    fn distances_of_a_power_of_two_do_not_meet_in_one_place() {
        const PLACES: u64 = 1 << 17;
        for power in 0..25 {
            let places: HashSet<u64> =
                (0..10_000).map(|number| hash(number << power) % PLACES).collect();
            assert!(places.len() > 500, "2^{power}: {} places", places.len());
        }
    }
}

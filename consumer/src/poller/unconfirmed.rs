//! What was handed out beyond the offsets that the group's coordinator is known to have: whoever comes next
//! may read it again.
//!
//! Nothing may leave here but by the coordinator's word, or with the assignment.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A partition of a topic.
pub(super) type Place = (String, i32);

/// Of each partition, the batches that ended, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Unconfirmed(Mutex<HashMap<Place, VecDeque<Ended>>>);

/// A batch's part in a partition.
#[derive(Debug)]
struct Ended {
    /// The offset behind it.
    next: i64,
    messages: u64,
}

impl Unconfirmed {
    /// A batch ended with so many messages of a partition; `next` is behind the last of them.
    pub(super) fn ended(&self, place: Place, next: i64, messages: u64) {
        self.tails().entry(place).or_default().push_back(Ended { next, messages });
    }

    /// The coordinator has this offset.
    pub(super) fn confirmed(&self, topic: &str, partition: i32, offset: i64) {
        let mut tails = self.tails();
        let place = (topic.to_owned(), partition);
        let Some(tail) = tails.get_mut(&place) else { return };
        while tail.front().is_some_and(|ended| ended.next <= offset) {
            tail.pop_front();
        }
        if tail.is_empty() {
            tails.remove(&place);
        }
    }

    /// The partitions are somebody else's now, or begin anew at what the coordinator has.
    pub(super) fn clear(&self) {
        self.tails().clear();
    }

    /// The most messages that one partition has beyond its confirmed offset.
    pub(super) fn most(&self) -> u64 {
        let tails = self.tails();
        let messages = |tail: &VecDeque<Ended>| tail.iter().map(|ended| ended.messages).sum();
        tails.values().map(messages).max().unwrap_or(0)
    }

    /// What has to be committed still: behind the last batch of each.
    pub(super) fn offsets(&self) -> HashMap<Place, i64> {
        let tails = self.tails();
        let last =
            |(place, tail): (&Place, &VecDeque<Ended>)| Some((place.clone(), tail.back()?.next));
        tails.iter().filter_map(last).collect()
    }

    fn tails(&self) -> MutexGuard<'_, HashMap<Place, VecDeque<Ended>>> {
        // Nothing in it is ever half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_coordinators_word_makes_room() {
        let unconfirmed = Unconfirmed::default();
        let ended = |partition, next, messages| {
            unconfirmed.ended(("t".to_owned(), partition), next, messages);
        };
        assert_eq!((unconfirmed.most(), unconfirmed.offsets()), (0, HashMap::new()));
        // Offsets have gaps: it is messages that count, and those of one partition.
        ended(0, 100, 10);
        ended(0, 300, 10);
        ended(1, 7, 7);
        assert_eq!(unconfirmed.most(), 20);
        // A commit that failed says nothing; a later one of another partition does not stand for it.
        unconfirmed.confirmed("t", 1, 7);
        unconfirmed.confirmed("u", 0, 300);
        unconfirmed.confirmed("t", 0, 99);
        assert_eq!(unconfirmed.most(), 20);
        assert_eq!(unconfirmed.offsets(), HashMap::from([(("t".to_owned(), 0), 300)]));
        // One commit covers those before it, not those behind it.
        ended(0, 310, 5);
        unconfirmed.confirmed("t", 0, 300);
        assert_eq!(unconfirmed.most(), 5);
        unconfirmed.clear();
        assert_eq!((unconfirmed.most(), unconfirmed.offsets()), (0, HashMap::new()));
    }
}

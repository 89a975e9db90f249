//! How a batch is divided: into parts that go on at the same time, and these into chunks that share an
//! attempt. Nothing here may change the order of what has one.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};

use crate::config::{KeyOrder, Spread};
use crate::give_up::MetALock;
use crate::message::ReceivedMessage;
use crate::retry::Failures;
pub(super) use crate::retry::{OrderingKey, ordering_key};

/// A message on its way, with what went wrong with it so far.
pub(super) struct Pending {
    pub(super) message: ReceivedMessage,
    pub(super) failures: Failures,
    /// So often it met a lock, or what the database could not do, when it was alone.
    pub(super) locks: u32,
}

/// Divides a batch into at most `most` parts, each in the order of the batch. What must keep its
/// order is in one part.
pub(super) fn parts(
    messages: Vec<ReceivedMessage>,
    most: usize,
    spread: Spread,
) -> Vec<Vec<ReceivedMessage>> {
    let mut parts: BTreeMap<u64, Vec<ReceivedMessage>> = BTreeMap::new();
    let most = u64::try_from(most.max(1)).unwrap_or(1);
    for message in messages {
        let of_key = match spread {
            Spread::ByKey => message.key_hash(),
            Spread::ByPartition => None,
        };
        let part = of_key.map_or(u64::from(message.partition.cast_unsigned()), i64::cast_unsigned);
        parts.entry(part % most).or_default().push(message);
    }
    parts.into_values().collect()
}

/// Takes up to `size` messages from the front; those of a blocked key go to `waiting`.
pub(super) fn next_chunk(
    queue: &mut VecDeque<Pending>,
    size: usize,
    blocked: &HashSet<OrderingKey>,
    waiting: &mut VecDeque<Pending>,
) -> Option<Vec<Pending>> {
    let mut chunk = Vec::new();
    while chunk.len() < size.max(1) {
        let Some(one) = queue.pop_front() else { break };
        if ordering_key(&one.message).is_some_and(|key| blocked.contains(&key)) {
            waiting.push_back(one);
        } else {
            chunk.push(one);
        }
    }
    (!chunk.is_empty()).then_some(chunk)
}

/// Whether a handler named some of these.
pub(super) fn named(chunk: &[Pending], keys: &BTreeSet<String>) -> bool {
    chunk.iter().any(|one| keys.contains(&one.message.inbox_key()))
}

/// A message that makes way for somebody else's lock.
pub(super) struct Locked {
    pub(super) pending: Pending,
    /// Its handler named it; else it only keeps its order with one that was.
    named: bool,
}

impl Locked {
    pub(super) fn named(pending: Pending) -> Self {
        Self { pending, named: true }
    }

    /// As it is stored: only what was named has met a lock.
    pub(super) fn noted(&self, cause: &str) -> MetALock {
        let Pending { message, failures, .. } = &self.pending;
        let mut failures = failures.clone();
        if self.named {
            failures.met_a_lock(cause.to_owned());
        } else {
            failures.cause = format!("keeps its order with one of its key: {cause}");
        }
        MetALock { message: message.clone(), failures, named: self.named }
    }
}

/// Takes those that a handler named out of a chunk; with [`KeyOrder::Keep`] also the others of their keys:
/// an earlier one that came back into memory could be overtaken by the one in the table, and a later one be
/// handled before it.
pub(super) fn with_their_keys(
    chunk: Vec<Pending>,
    keys: &BTreeSet<String>,
    order: KeyOrder,
) -> (Vec<Locked>, Vec<Pending>) {
    let is_named = |one: &Pending| keys.contains(&one.message.inbox_key());
    let ordered: HashSet<OrderingKey> = match order {
        KeyOrder::GiveUp => HashSet::new(),
        KeyOrder::Keep => {
            let named = chunk.iter().filter(|one| is_named(one));
            named.filter_map(|one| ordering_key(&one.message)).collect()
        }
    };
    let (mut locked, mut others) = (Vec::new(), Vec::new());
    for pending in chunk {
        let named = is_named(&pending);
        if named || ordering_key(&pending.message).is_some_and(|key| ordered.contains(&key)) {
            locked.push(Locked { pending, named });
        } else {
            others.push(pending);
        }
    }
    (locked, others)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use bytes::Bytes;

    use super::*;
    use crate::worker::tests::message;

    #[test]
    fn what_keeps_its_order_is_in_one_part() {
        let messages: Vec<_> = (0..100)
            .map(|n| ReceivedMessage {
                key: (n % 10 < 9).then(|| Bytes::from((n % 10).to_string())),
                partition: i32::try_from(n % 2).unwrap(),
                ..message(n, "", "")
            })
            .collect();
        for (spread, most) in [(Spread::ByKey, 4), (Spread::ByPartition, 4), (Spread::ByKey, 1)] {
            let parts = parts(messages.clone(), most, spread);
            assert!(parts.len() <= most && (most == 1 || parts.len() > 1));
            assert_eq!(parts.iter().map(Vec::len).sum::<usize>(), 100);
            let mut home = HashMap::new();
            for (index, part) in parts.iter().enumerate() {
                assert!(part.is_sorted_by_key(|message| message.offset));
                for message in part {
                    let order = message.key_hash().unwrap_or(i64::from(message.partition));
                    assert_eq!(*home.entry(order).or_insert(index), index);
                }
            }
        }
    }
}

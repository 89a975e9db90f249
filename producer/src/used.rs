//! The identities that callers have given to messages lately. It knows of this process only: what
//! another one has used, the ledger tells.

use std::collections::{HashSet, VecDeque};
use std::sync::{Mutex, PoisonError};

use halfmsg_protocol::TransactionId;

/// So many are remembered; the oldest is forgotten first.
const IDS_KEPT: usize = 100_000;

/// Identities that must not be given again.
#[derive(Debug, Default)]
pub(crate) struct UsedIds {
    ids: Mutex<Ids>,
}

#[derive(Debug, Default)]
struct Ids {
    known: HashSet<TransactionId>,
    order: VecDeque<TransactionId>,
}

impl UsedIds {
    /// Uses it; false if it was used before.
    pub(crate) fn take(&self, id: TransactionId) -> bool {
        let mut ids = self.ids.lock().unwrap_or_else(PoisonError::into_inner);
        if !ids.known.insert(id) {
            return false;
        }
        ids.order.push_back(id);
        if ids.order.len() > IDS_KEPT
            && let Some(oldest) = ids.order.pop_front()
        {
            ids.known.remove(&oldest);
        }
        true
    }

    /// It was not used after all. Rare: a scan from the newest.
    pub(crate) fn give_back(&self, id: TransactionId) {
        let mut ids = self.ids.lock().unwrap_or_else(PoisonError::into_inner);
        if ids.known.remove(&id)
            && let Some(at) = ids.order.iter().rposition(|used| *used == id)
        {
            ids.order.remove(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: usize) -> TransactionId {
        TransactionId::from_bytes((number as u128).to_be_bytes())
    }

    #[test]
    fn an_id_is_used_once_unless_it_was_given_back() {
        let used = UsedIds::default();
        assert!(used.take(id(1)) && !used.take(id(1)));
        used.give_back(id(1));
        used.give_back(id(2));
        assert!(used.take(id(1)) && !used.take(id(1)));
        for number in 2..=IDS_KEPT + 1 {
            assert!(used.take(id(number)));
        }
        let ids = used.ids.lock().unwrap();
        assert_eq!((ids.known.len(), ids.order.len()), (IDS_KEPT, IDS_KEPT));
        assert!(!ids.known.contains(&id(1)), "the oldest is forgotten");
    }
}

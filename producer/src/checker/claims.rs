//! Which halves are being asked about in this process: never one in two calls at once. A call that was
//! given up counts until its task has really ended; one about several that goes on for
//! [`PLACE_KEPT`](super::calling::PLACE_KEPT) all the same counts no longer.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use halfmsg_protocol::TransactionId;

/// Whether its call was given up and goes on all the same. Each claim has one of its own.
type Blocked = Arc<AtomicBool>;

/// Every half that somebody asks about.
#[derive(Debug, Default)]
pub(super) struct Claims {
    held: Mutex<HashMap<TransactionId, Blocked>>,
}

/// Why a half cannot be asked about now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Taken {
    /// Another question asks about it.
    Asked,
    /// A call about it was given up, and has not ended.
    Blocked,
}

/// A half that nobody else asks about. Held by its question until it is answered, and by each call
/// about it until that has ended; it is free when the last of them lets go.
#[derive(Debug)]
pub(super) struct Claim {
    id: TransactionId,
    blocked: Blocked,
    claims: Arc<Claims>,
}

impl Claims {
    pub(super) fn claim(self: &Arc<Self>, id: TransactionId) -> Result<Arc<Claim>, Taken> {
        let mut held = self.held();
        match held.get(&id) {
            Some(blocked) if blocked.load(Ordering::Relaxed) => Err(Taken::Blocked),
            Some(_) => Err(Taken::Asked),
            None => {
                let blocked = Blocked::default();
                held.insert(id, Arc::clone(&blocked));
                Ok(Arc::new(Claim { id, blocked, claims: Arc::clone(self) }))
            }
        }
    }

    fn held(&self) -> MutexGuard<'_, HashMap<TransactionId, Blocked>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Claim {
    /// Its call was given up and has not ended: nobody waits for that any more.
    pub(super) fn is_blocked(&self) {
        self.blocked.store(true, Ordering::Relaxed);
    }

    /// The half may be asked about although its call has not ended. Another claim on it stays.
    pub(super) fn give_up(&self) {
        let mut held = self.claims.held();
        if held.get(&self.id).is_some_and(|blocked| Arc::ptr_eq(blocked, &self.blocked)) {
            held.remove(&self.id);
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.give_up();
    }
}

//! Whether a takeover still counts: the group may have given its partitions to another replica
//! meanwhile, which a late `init_transactions` would fence.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// A takeover's right to fence former owners, shared by its threads and the resolver. Its lanes keep it:
/// a client that is made anew fences as well.
#[derive(Default)]
pub(crate) struct Claim {
    withdrawn: AtomicBool,
    fencing: AtomicUsize,
}

/// Held from before `init_transactions` until it has succeeded, or its client is gone.
pub(crate) struct Fencing(Arc<Claim>);

impl Claim {
    /// From now on nobody begins to fence. What has begun is over once [`Claim::is_quiet`].
    pub(crate) fn withdraw(&self) {
        self.withdrawn.store(true, Ordering::SeqCst);
    }

    /// Whether the partitions are not ours to take any more.
    pub(crate) fn is_withdrawn(&self) -> bool {
        self.withdrawn.load(Ordering::SeqCst)
    }

    /// Begins to fence; nothing once the claim is withdrawn.
    pub(crate) fn fence(self: &Arc<Self>) -> Option<Fencing> {
        // Counted before the look: whoever withdraws and then finds nobody fencing can be sure.
        self.fencing.fetch_add(1, Ordering::SeqCst);
        let fencing = Fencing(Arc::clone(self));
        (!self.is_withdrawn()).then_some(fencing)
    }

    /// Whether nobody is fencing.
    pub(crate) fn is_quiet(&self) -> bool {
        self.fencing.load(Ordering::SeqCst) == 0
    }
}

impl Drop for Fencing {
    fn drop(&mut self) {
        self.0.fencing.fetch_sub(1, Ordering::SeqCst);
    }
}

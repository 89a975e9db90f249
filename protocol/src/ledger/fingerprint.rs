//! A ledger as a hash: two that will behave alike have the same.

use std::hash::{Hash, Hasher};

use super::Ledger;

impl Ledger {
    /// Feeds everything that later steps depend on, in a canonical order. Left out are the byte
    /// counts behind [`Ledger::retained_bytes`], which decide nothing.
    pub(crate) fn fingerprint(&self, into: &mut impl Hasher) {
        let Self {
            position,
            open,
            // What the open ones say.
            failing: _,
            decided,
            parked,
            settled,
            held,
            lingering,
            forgotten,
            began_to_linger: _,
            copy_window_ms: _,
            copies,
            pending,
            closed,
            bytes_before: _,
            bytes: _,
            body_bytes,
            stubs_below,
            in_use_from: _,
        } = self;
        (position, open, decided, parked, settled, pending).hash(into);
        (body_bytes, stubs_below, held.len(), lingering.len()).hash(into);
        held.keys().for_each(|offset| offset.hash(into));
        lingering.keys().for_each(|offset| offset.hash(into));
        forgotten.hash(into);
        copies.fingerprint(into);
        closed.fingerprint(into);
    }
}

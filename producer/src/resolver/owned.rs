//! What is held of one partition that this replica owns.

use std::collections::BTreeSet;

use halfmsg_protocol::{Progress, ResolverCore};

use super::asking::Questions;
use super::lane::Lane;
use super::watch::Uncounted;

/// A partition that this replica owns.
pub(crate) struct Owned {
    pub(crate) core: ResolverCore,
    pub(crate) lane: Lane,
    pub(super) questions: Questions,
    /// Tells this ownership from an earlier one of the same partition.
    pub(crate) generation: u64,
    /// Why it is not read on, if it is not.
    pub(crate) stopped: Option<String>,
    /// The record of a newer format at which it is stopped.
    pub(super) stopped_at: Option<i64>,
    /// Such records that an operator has skipped.
    pub(super) skipped: BTreeSet<i64>,
    /// It is not read on until its lane has room again.
    pub(crate) is_throttled: bool,
    /// Its log is not the one that progress was stored for: what is stored stays as it is.
    pub(crate) is_lost: bool,
    /// What was missing of its log at the takeover although it was needed.
    pub(super) cut: Option<String>,
    /// The end of the log when it was taken over.
    pub(crate) end_at_takeover: i64,
    /// The end of the log was reached since.
    pub(crate) caught_up: bool,
    pub(super) uncounted: Uncounted,
    /// What is stored as progress, if it is known.
    pub(super) stored: Option<Progress>,
    /// The log is known to be cut here.
    pub(super) trimmed_below: i64,
}

impl Owned {
    /// Whether the log held records at the takeover that are not read yet: what is open is not
    /// known before.
    pub(crate) fn is_behind(&self) -> bool {
        self.stopped.is_none() && !self.caught_up && self.left_to_replay() > 0
    }

    /// Records of the log at the takeover that are not read yet.
    pub(crate) fn left_to_replay(&self) -> i64 {
        (self.end_at_takeover - self.core.ledger().position()).max(0)
    }

    /// Whether nothing of it is under way, and all that may be stored is.
    pub(super) fn is_settled(&self) -> bool {
        self.lane.is_idle() && (self.is_lost || self.lane.is_current(&self.core))
    }
}

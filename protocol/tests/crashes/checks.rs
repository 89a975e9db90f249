//! What must hold: after every step, and at the end.

use std::collections::BTreeMap;

use halfmsg_protocol::{HalfOffset, ParkedState, Progress, TransactionId};

use crate::spec::{Spec, SpecHalf, State};
use crate::world::World;

impl World {
    /// What is open at the position, or has an outcome that is due, is known to a new owner: from
    /// the log above the low-water mark, or from the parked topic.
    pub(crate) fn assert_progress_is_safe(&self) {
        let Some(progress) = self.owner.core.progress() else { return };
        assert!(progress.low_water <= progress.position);
        let below = |end: i64| Spec::of(self.records().take_while(|(offset, _)| *offset < end));
        for (half, now) in below(progress.position).halves.iter().zip(&self.spec().halves) {
            let replayed = matches!(half.state,
                State::Open { stored_at, .. } if stored_at >= progress.low_water);
            let over = now.state == State::RolledBack || self.delivered(half.id) > 0;
            assert!(
                replayed || over || self.is_kept(half.id),
                "{progress:?} passes {half:?}, which becomes {:?}",
                now.state
            );
        }
    }

    /// A replay never begins between two copies of a message, or a message and another of its id.
    fn beginning(&self, low_water: i64) -> i64 {
        let halves = self.spec().halves;
        let between = |half: &&SpecHalf| {
            let last = half.copies.last().max(half.others.last());
            half.offset < low_water && last.is_some_and(|last| *last >= low_water)
        };
        let before = halves.iter().filter(between).map(|half| half.offset).min();
        before.map_or(low_water, |before| self.beginning(before))
    }

    /// The parked topic has it, or it was refused, and decided otherwise since.
    fn is_kept(&self, id: TransactionId) -> bool {
        let dropped = |half: &SpecHalf| half.id == id && self.decisions_about(half).1 > 0;
        let otherwise = self.was_refused(id) && self.spec().halves.iter().any(dropped);
        self.topic.contains_key(&id) || otherwise
    }

    /// The owner, the parked topic and progress say what the spec says.
    pub(crate) fn assert_agrees_with_the_spec(&self) {
        let ledger = self.owner.core.ledger();
        let (mut open, mut parked, mut topic) = (Vec::new(), Vec::new(), BTreeMap::new());
        for half in self.spec().halves {
            match half.state {
                State::Open { epoch, attempts, stored_at } => {
                    open.push((half.offset, epoch, attempts, stored_at));
                    if let Some(before) = epoch.checked_sub(1) {
                        topic.insert(half.id, before);
                    }
                }
                State::Parked { epoch, attempts, cause, .. } => {
                    parked.push((half.offset, epoch, attempts, cause));
                    topic.insert(half.id, epoch);
                }
                State::Committed { .. } | State::RolledBack => {}
            }
        }
        let held = open.iter().map(|(.., stored_at)| *stored_at).min().unwrap_or(self.end);
        let low_water = self.beginning(held);
        let all = HalfOffset(0);
        let found: Vec<_> = ledger
            .open_from(all)
            .map(|open| (open.half.offset.0, open.epoch.0, open.attempts, open.half.stored_at))
            .collect();
        assert_eq!(found, open, "open");
        let found: Vec<_> = ledger
            .parked_from(all)
            .map(|found| (found.half.offset.0, found.epoch.0, found.attempts, found.cause))
            .collect();
        assert_eq!(found, parked, "parked");
        let found: BTreeMap<_, _> = self
            .topic
            .iter()
            .map(|(id, state)| match state {
                ParkedState::Parked(parked) => (*id, parked.epoch.0),
                ParkedState::Settled { of, at } => panic!("{of:?} at {at} is not cleared"),
            })
            .collect();
        assert_eq!(found, topic, "the parked topic");
        assert_eq!(self.progress, Progress { low_water, position: self.end });
    }
}

//! The offsets that the coordinator was told, held against those that it is known to have: a commit that
//! nobody waits for reports its end to nobody, and the client only shows in its figures what was confirmed.
//!
//! Nothing may be told again that is another member's by now: with the assignment all of it is forgotten.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::unconfirmed::Place;

/// Of each partition, what was told and is not known to be confirmed.
#[derive(Debug, Default)]
pub(super) struct Told(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    offsets: HashMap<Place, Offsets>,
    /// What is to be said again.
    again: HashMap<Place, i64>,
}

#[derive(Debug)]
struct Offsets {
    told: i64,
    /// What had been told by an earlier look, and must be confirmed by the next.
    due: Option<i64>,
}

impl Told {
    /// The coordinator was told so.
    pub(super) fn tells(&self, place: &Place, offset: i64) {
        let mut state = self.state();
        let of = state.offsets.entry(place.clone()).or_insert(Offsets { told: offset, due: None });
        of.told = of.told.max(offset);
    }

    /// The partitions are somebody else's now, or begin anew at what the coordinator has.
    pub(super) fn clear(&self) {
        *self.state() = State::default();
    }

    /// The partitions whose offsets the coordinator has not, although they were told before the last look;
    /// these are to be said again. `confirmed`: what it has.
    pub(super) fn look(&self, confirmed: impl Fn(&Place) -> Option<i64>) -> Vec<Place> {
        let mut state = self.state();
        let State { offsets, again } = &mut *state;
        again.clear();
        offsets.retain(|place, of| {
            let has = confirmed(place);
            let lacks = |offset: i64| has.is_none_or(|has| has < offset);
            match of.due {
                Some(due) if lacks(due) => drop(again.insert(place.clone(), of.told)),
                _ => of.due = Some(of.told),
            }
            lacks(of.told)
        });
        again.keys().cloned().collect()
    }

    /// What is to be said again, once for each look.
    pub(super) fn again(&self) -> HashMap<Place, i64> {
        std::mem::take(&mut self.state().again)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing in it is ever half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(partition: i32) -> Place {
        ("t".to_owned(), partition)
    }

    #[test]
    fn only_what_was_told_before_the_last_look_is_missed() {
        let told = Told::default();
        let nothing = |_: &Place| None;
        assert!(told.look(nothing).is_empty(), "nothing was told");
        told.tells(&place(0), 10);
        assert!(told.look(nothing).is_empty(), "it may be under way");
        told.tells(&place(0), 20);
        told.tells(&place(1), 7);
        assert_eq!(told.look(nothing), [place(0)]);
        assert_eq!(told.again(), HashMap::from([(place(0), 20)]), "all that it lacks");
        assert!(told.again().is_empty(), "once for each look");
        assert_eq!(told.look(nothing).len(), 2);
        // It has what was due, and not yet what was told since.
        let some = |of: &Place| (*of == place(0)).then_some(10);
        assert_eq!(told.look(some), [place(1)]);
        assert_eq!(told.again(), HashMap::from([(place(1), 7)]));
        let all = |of: &Place| Some(if *of == place(0) { 20 } else { 7 });
        assert!(told.look(all).is_empty());
        assert!(told.look(nothing).is_empty(), "what is confirmed is not missed again");
    }

    #[test]
    fn what_is_another_members_is_not_said_again() {
        let told = Told::default();
        told.tells(&place(0), 10);
        told.look(|_| None);
        assert_eq!(told.look(|_| None), [place(0)]);
        told.clear();
        assert!(told.again().is_empty() && told.look(|_| None).is_empty());
    }
}

//! A model of the brokers, and owners that die in any call to them, one after the other.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use super::super::refusal::{AsksParked, Parked, ask_parked};
use super::*;
use crate::resolver::emitter::JobEnd;

/// Decisions to deliver in the log; what is carried out is the position behind the last of them.
const DECISIONS: usize = 4;
/// Those of the batch whose end the broker forgot.
const HUNG: std::ops::Range<usize> = 1..3;

/// A transaction of an owner: what it delivers, and the position that it stores.
#[derive(Clone, Default)]
struct Open {
    delivered: Vec<usize>,
    stores: Option<usize>,
    /// It has a record that only asks the parked topic.
    asks: bool,
}

/// What the parked topic says, in the tests in which each owner asks it before its first batch, as
/// it does when the broker refuses that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Says {
    NotAsked,
    Takes,
    Refuses,
}

/// What the brokers know of the partition.
#[derive(Clone)]
struct State {
    parked: Says,
    epoch: u32,
    open: Option<Open>,
    /// The offset of a transaction that was never ended.
    hangs: bool,
    stored: usize,
    visible: BTreeMap<usize, u32>,
    /// Records that only asked, and that somebody can read.
    visible_asking: u32,
    /// How often it was asked.
    asked: u32,
}

/// An owner dies in this call: before it reaches the brokers, or before the answer comes.
#[derive(Debug, Clone, Copy)]
enum Death {
    Before(u32),
    Behind(u32),
}

/// The brokers as one owner reaches them, until it dies.
struct Store<'a> {
    state: &'a RefCell<State>,
    epoch: Cell<u32>,
    /// Of the process, whichever of its partitions they are about.
    calls: Rc<Cell<u32>>,
    dies: Option<Death>,
}

impl<'a> Store<'a> {
    fn new(state: &'a RefCell<State>, dies: Option<Death>) -> Self {
        Self { state, epoch: Cell::new(0), calls: Rc::default(), dies }
    }

    /// Another partition of the same process, which dies with it.
    fn beside(&self, state: &'a RefCell<State>) -> Self {
        Self { calls: Rc::clone(&self.calls), ..Self::new(state, self.dies) }
    }

    /// None if the owner is dead by now.
    fn call<T>(&self, act: impl FnOnce(&mut State) -> T) -> Option<T> {
        let number = self.calls.get();
        self.calls.set(number + 1);
        match self.dies {
            Some(Death::Before(at)) if number >= at => return None,
            Some(Death::Behind(at)) if number > at => return None,
            _ => {}
        }
        let answer = act(&mut self.state.borrow_mut());
        let unheard = matches!(self.dies, Some(Death::Behind(at)) if at == number);
        (!unheard).then_some(answer)
    }

    /// A call of the fenced owner changes nothing.
    fn transact(&self, act: impl FnOnce(&mut State)) -> Result<(), Stuck> {
        let epoch = self.epoch.get();
        let is_ours = |state: &State| state.epoch == epoch;
        let done = self.call(|state| is_ours(state).then(|| act(state)).is_some());
        if done == Some(true) { Ok(()) } else { Err(Stuck::Stopped) }
    }

    /// Fences the former owner: its open transaction is aborted, what hangs is not.
    fn init(&self) -> Option<()> {
        let epoch = self.call(|state| {
            state.epoch += 1;
            state.open = None;
            state.epoch
        })?;
        self.epoch.set(epoch);
        Some(())
    }

    /// A takeover as the worker and the takeover's thread make it, and then the work. None if the
    /// owner died.
    fn live(&mut self) -> Option<bool> {
        let (gave_up, position) = self.take_over()?;
        if self.state.borrow().parked != Says::NotAsked && position < DECISIONS {
            self.first_batch_is_refused(position).ok()?;
        }
        self.carry_out(position..DECISIONS)?;
        Some(gave_up)
    }

    /// Whether something hung, and the position.
    fn take_over(&self) -> Option<(bool, usize)> {
        self.init()?;
        let gave_up = end_what_hangs(self).ok()?;
        let position = self.call(|state| (!state.hangs).then_some(state.stored))?;
        // The parked topic and the log are only read.
        self.call(|_| ())?;
        Some((gave_up, position.expect("progress can be read")))
    }

    /// A transaction for each.
    fn carry_out(&self, decisions: std::ops::Range<usize>) -> Option<()> {
        for at in decisions {
            self.begin().ok()?;
            self.transact(|state| state.open.as_mut().expect("begun").delivered.push(at)).ok()?;
            self.transact(|state| state.open.as_mut().expect("begun").stores = Some(at + 1))
                .ok()?;
            self.transact(|state| {
                let open = state.open.take().expect("begun");
                state.stored = open.stores.expect("stored with it");
                state.visible_asking += u32::from(open.asks);
                open.delivered.iter().for_each(|at| *state.visible.entry(*at).or_default() += 1);
            })
            .ok()?;
        }
        Some(())
    }

    /// As the worker does: the batch is taken back, then the parked topic is asked.
    fn first_batch_is_refused(&mut self, at: usize) -> Result<(), Stuck> {
        self.begin()?;
        self.transact(|state| state.open.as_mut().expect("begun").delivered.push(at))?;
        self.end_all()?;
        let says = self.state.borrow().parked;
        let (answer, end) = ask_parked(self)?;
        assert_eq!(matches!(answer, Parked::Takes), says == Says::Takes);
        assert!(matches!(end, JobEnd::Aborted(troubles) if troubles.is_empty()));
        Ok(())
    }
}

impl AsksParked for Store<'_> {
    fn probe(&self) -> Result<Parked, Stuck> {
        self.transact(|state| {
            state.asked += 1;
            state.open.as_mut().expect("begun").asks = state.parked == Says::Takes;
        })?;
        Ok(match self.state.borrow().parked {
            Says::Refuses => Parked::Refuses("it may not be written".into()),
            _ => Parked::Takes,
        })
    }

    /// The broker knows nothing of a transaction of which it has refused everything: the client
    /// that ends it cannot go on, and the next one fences it.
    fn take_back(&mut self, answer: &Parked) -> Result<JobEnd, Stuck> {
        self.end_all()?;
        if matches!(answer, Parked::Refuses(_)) {
            self.init().ok_or(Stuck::Stopped)?;
        }
        Ok(JobEnd::Aborted(Vec::new()))
    }
}

impl Pending for Store<'_> {
    fn is_readable(&self) -> bool {
        self.call(|state| !state.hangs).unwrap_or(false)
    }

    fn is_pending(&self) -> bool {
        self.call(|state| state.hangs).unwrap_or(false)
    }

    fn begin(&self) -> Result<(), Stuck> {
        self.transact(|state| {
            let before = state.open.replace(Open::default());
            assert!(before.is_none(), "the one before was never ended");
        })
    }

    fn name_progress(&self) -> Result<(), Stuck> {
        self.transact(|state| state.open.as_mut().expect("begun").stores = Some(0))
    }

    fn end_all(&self) -> Result<(), Stuck> {
        self.transact(|state| {
            let named = state.open.take().is_some_and(|open| open.stores.is_some());
            state.hangs &= !named;
        })
    }
}

/// A former owner carried the first out, and then a batch whose end the broker forgot: its records
/// became visible or did not, its progress hangs.
fn left(hangs: bool, committed: bool, parked: Says) -> RefCell<State> {
    let visible = BTreeMap::from([(0, 1)]);
    let (epoch, stored, open, visible_asking, asked) = (1, 1, None, 0, 0);
    let mut state = State { parked, epoch, open, hangs, stored, visible, visible_asking, asked };
    if hangs && committed {
        state.visible.extend(HUNG.map(|at| (at, 1)));
    }
    // And one that was under way when it died.
    state.open = Some(Open { delivered: vec![3], stores: Some(4), asks: true });
    RefCell::new(state)
}

fn ended_right(state: &State, hung_and_committed: bool, told: &str) {
    assert!(!state.hangs && state.open.is_none(), "{told}");
    assert_eq!((state.stored, state.visible_asking), (DECISIONS, 0), "{told}");
    for at in 0..DECISIONS {
        let most = 1 + u32::from(hung_and_committed && HUNG.contains(&at));
        let times = state.visible.get(&at).copied().unwrap_or(0);
        assert!((1..=most).contains(&times), "{told}: {at} is visible {times} times");
    }
}

/// The group's coordinator answers nobody at first, and has lost nothing.
struct Slow(Cell<u32>);

impl Pending for Slow {
    fn is_readable(&self) -> bool {
        self.0.replace(self.0.get() + 1) > 0
    }

    fn is_pending(&self) -> bool {
        true
    }

    fn begin(&self) -> Result<(), Stuck> {
        unreachable!("nothing hangs")
    }

    fn name_progress(&self) -> Result<(), Stuck> {
        unreachable!("nothing hangs")
    }

    fn end_all(&self) -> Result<(), Stuck> {
        unreachable!("nothing hangs")
    }
}

#[test]
fn a_coordinator_that_was_slow_has_lost_nothing() {
    assert!(matches!(end_what_hangs(&Slow(Cell::new(0))), Ok(false)));
}

#[test]
fn whoever_takes_over_ends_right_wherever_those_before_died() {
    let (mut deaths, mut gave_up, mut asked) = (0, 0, 0);
    let hanging = [(false, false), (true, false), (true, true)];
    let says = [Says::NotAsked, Says::Takes, Says::Refuses];
    let all = hanging.into_iter().flat_map(|hanging| says.map(|says| (hanging, says)));
    for ((hangs, committed), says) in all {
        let calls = {
            let state = left(hangs, committed, says);
            let mut store = Store::new(&state, None);
            assert_eq!(store.live(), Some(hangs));
            let calls = store.calls.get();
            ended_right(&state.borrow(), committed, "nobody died");
            calls
        };
        let all = (0..calls).flat_map(|at| [Death::Before(at), Death::Behind(at)]);
        for (first, second) in all.clone().flat_map(|first| all.clone().map(move |of| (first, of)))
        {
            let state = left(hangs, committed, says);
            let told = format!(
                "hangs: {hangs}, committed: {committed}, parked: {says:?}, {first:?}, {second:?}"
            );
            // The second may come to its end, with less to do than the first had.
            let lives = [Some(first), Some(second), None];
            for dies in lives {
                let lived = Store::new(&state, dies).live();
                deaths += u32::from(lived.is_none());
                gave_up += u32::from(lived == Some(true));
            }
            ended_right(&state.borrow(), committed, &told);
            asked += state.borrow().asked;
        }
    }
    println!("{deaths} deaths, the parked topic was asked {asked} times");
    assert!(deaths > 1_000 && gave_up > 0, "{deaths} deaths, given up {gave_up} times");
    assert!(asked > deaths / 2, "{deaths} deaths, asked {asked} times");
}

/// Two partitions, whose takeover is in two parts, because the coordinator of the second is silent for
/// long: the first is handed over, and carries so many out, before the former owner of the second is
/// fenced, who has carried one out meanwhile. None if the process died.
fn live_in_parts(
    first: &Store<'_>,
    (second, before): (&Store<'_>, &Store<'_>),
    ahead: usize,
) -> Option<()> {
    let (_, position) = first.take_over()?;
    let reached = DECISIONS.min(position + ahead);
    first.carry_out(position..reached)?;
    let left = before.state.borrow().stored;
    // It is alive, and no process of ours; what the next process finds has another owner, or none.
    if left < DECISIONS && before.state.borrow().epoch == before.epoch.get() {
        before.carry_out(left..left + 1).expect("it is not fenced yet");
    }
    let (_, position) = second.take_over()?;
    assert_eq!(before.begin().ok(), None, "it is fenced");
    first.carry_out(reached..DECISIONS)?;
    second.carry_out(position..DECISIONS)
}

#[test]
fn whoever_dies_between_the_parts_of_a_takeover_leaves_both_to_the_next() {
    let mut between = 0;
    let hanging = [(false, false), (true, false), (true, true)];
    let all = hanging.into_iter().flat_map(|hanging| (0..=DECISIONS).map(move |of| (hanging, of)));
    for ((hangs, committed), ahead) in all {
        // One process after the other: whether each lived, and in how many calls.
        let mut run = |deaths: &[Option<Death>], told: &str| {
            let states = [(hangs, committed), (false, false)]
                .map(|(hangs, committed)| left(hangs, committed, Says::NotAsked));
            states[1].borrow_mut().open = None;
            let before = Store::new(&states[1], None);
            before.epoch.set(1);
            let mut lived = Vec::new();
            for dies in deaths {
                let first = Store::new(&states[0], *dies);
                let second = first.beside(&states[1]);
                let ended = live_in_parts(&first, (&second, &before), ahead);
                lived.push((ended.is_some(), first.calls.get()));
                // The first has its owner, the second the one before.
                let epochs = states.each_ref().map(|state| state.borrow().epoch);
                between += u32::from(ended.is_none() && epochs[0] > 1 && epochs[1] == 1);
            }
            ended_right(&states[0].borrow(), committed, told);
            ended_right(&states[1].borrow(), false, told);
            lived
        };
        let calls = run(&[None], "nobody died")[0].1;
        for at in 0..calls {
            for first in [Death::Before(at), Death::Behind(at)] {
                // And another one at the same point, where its part may be another one.
                let told = format!("hangs: {hangs}, ahead: {ahead}, {first:?}");
                assert!(!run(&[Some(first), None], &told)[0].0, "{told}: it lived");
                run(&[Some(first), Some(first), None], &told);
            }
        }
    }
    println!("{between} deaths between the parts");
    assert!(between > 100, "{between} deaths between the parts");
}

/// One that was fenced meanwhile ends nothing, and changes nothing.
#[test]
fn who_is_fenced_meanwhile_ends_nothing() {
    let state = left(true, false, Says::NotAsked);
    let (old, new) = (Store::new(&state, None), Store::new(&state, None));
    old.init().expect("it lives");
    new.init().expect("it lives");
    assert!(matches!(end_what_hangs(&old), Err(Hanging::Stuck(Stuck::Stopped))));
    assert!(state.borrow().hangs);
    assert!(matches!(end_what_hangs(&new), Ok(true)));
}

//! What happened on the way to any state, counted by transition: a scenario whose budget allows
//! something that never happens would prove nothing about it. It must never be part of a state.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};

use halfmsg_protocol::{NotAsked, Record};

use crate::actions::{Action, Landing, Said, Step};
use crate::emission::Emit;
use crate::owner::{Emission, Item, Owner};
use crate::scenarios::Scenario;
use crate::world::{Budget, World};

/// A kind of event. The last five are of a former owner that goes on beside the one that took
/// over, or while that one begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Prepare,
    Decide,
    Resolve,
    Answer,
    Busy,
    NoPlace,
    Unheard,
    Failed,
    Reopen,
    Refuse,
    Lost,
    Doubtful,
    Abort,
    Crash,
    CrashAppending,
    Foreign,
    TakeOver,
    FormerAppends,
    FormerDelivers,
    FormerIsFenced,
    /// It reads the REOPEN.
    FormerReopens,
    /// It carries out the decision of a life that a REOPEN began, or is fenced as it does.
    FormerCarriesOutReopened,
}

const KINDS: [Kind; 22] = {
    use Kind::*;
    [
        Prepare,
        Decide,
        Resolve,
        Answer,
        Busy,
        NoPlace,
        Unheard,
        Failed,
        Reopen,
        Refuse,
        Lost,
        Doubtful,
        Abort,
        Crash,
        CrashAppending,
        Foreign,
        TakeOver,
        FormerAppends,
        FormerDelivers,
        FormerIsFenced,
        FormerReopens,
        FormerCarriesOutReopened,
    ]
};

/// How often each kind happened.
#[derive(Debug, Default)]
pub(crate) struct Happened([AtomicUsize; KINDS.len()]);

impl Happened {
    pub(crate) fn note(&self, world: &World, action: Action) {
        let outside = match action {
            Action::Prepare => Kind::Prepare,
            Action::Decide(..) => Kind::Decide,
            Action::Resolve(..) => Kind::Resolve,
            Action::Reopen(_) => Kind::Reopen,
            Action::Foreign => Kind::Foreign,
            Action::Crash { land: false } => Kind::Crash,
            Action::Crash { land: true } => Kind::CrashAppending,
            Action::TakeOver => Kind::TakeOver,
            Action::Begin => return,
            Action::Of(number, step) => {
                self.add(by_budget(step));
                if world.is_fenced(number) {
                    self.former(world, &world.owners[number], step);
                }
                return;
            }
        };
        self.add(Some(outside));
    }

    fn former(&self, world: &World, owner: &Owner, step: Step) {
        match step {
            Step::Read if matches!(at(world, owner.next), Some(Record::Reopen(_))) => {
                self.add(Some(Kind::FormerReopens));
            }
            Step::Land(Landing::Stored) => self.add(Some(Kind::FormerAppends)),
            Step::Emit(Emit::Deliver(which)) => {
                self.add(Some(Kind::FormerDelivers));
                if let Emission::AtLeastOnce { deliveries, .. } = &owner.emission {
                    self.add_if_reopened(world, deliveries[which].at);
                }
            }
            Step::Emit(Emit::Commit) => {
                if let Emission::ExactlyOnce { transaction: Some(transaction), .. } =
                    &owner.emission
                    && !transaction.items.is_empty()
                {
                    self.add(Some(Kind::FormerIsFenced));
                    let delivered = transaction.items.iter().filter_map(|item| match item {
                        Item::Deliver(delivery) => Some(delivery.at),
                        _ => None,
                    });
                    delivered.for_each(|at| self.add_if_reopened(world, at));
                }
            }
            _ => {}
        }
    }

    fn add_if_reopened(&self, world: &World, decision: i64) {
        let later = world.law.iter().flat_map(|half| half.lives.iter().skip(1));
        if later.into_iter().any(|life| life.is_decided_at(decision)) {
            self.add(Some(Kind::FormerCarriesOutReopened));
        }
    }

    fn add(&self, kind: Option<Kind>) {
        if let Some(kind) = kind {
            self.0[kind as usize].fetch_add(1, Ordering::Relaxed);
        }
    }

    fn times(&self, kind: Kind) -> usize {
        self.0[kind as usize].load(Ordering::Relaxed)
    }

    /// # Panics
    /// If something that the scenario allows never happened.
    pub(crate) fn assert_all_of(&self, scenario: &Scenario) {
        let missing: Vec<Kind> =
            allowed_by(scenario).into_iter().filter(|kind| self.times(*kind) == 0).collect();
        assert!(missing.is_empty(), "{}: never happened: {missing:?}", scenario.name);
    }
}

impl fmt::Display for Happened {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut before = "";
        for kind in KINDS.into_iter().filter(|kind| self.times(*kind) > 0) {
            write!(to, "{before}{kind:?} {}", self.times(kind))?;
            before = ", ";
        }
        Ok(())
    }
}

fn by_budget(step: Step) -> Option<Kind> {
    match step {
        Step::Answer(_, Said::Commit | Said::Rollback) => Some(Kind::Answer),
        Step::Answer(_, Said::Failed) => Some(Kind::Failed),
        Step::Answer(_, Said::NotAsked(NotAsked::NoListener)) => Some(Kind::Unheard),
        Step::Answer(_, Said::NotAsked(NotAsked::NoPlace)) => Some(Kind::NoPlace),
        Step::Answer(_, Said::NotAsked(_)) => Some(Kind::Busy),
        Step::Land(Landing::Lost) => Some(Kind::Lost),
        Step::Land(Landing::Doubtful) => Some(Kind::Doubtful),
        Step::Emit(Emit::Refuse(_) | Emit::RefuseIn(_)) => Some(Kind::Refuse),
        Step::Emit(Emit::Abort) => Some(Kind::Abort),
        _ => None,
    }
}

fn at(world: &World, offset: i64) -> Option<&Record> {
    usize::try_from(offset).ok().and_then(|offset| world.log.get(offset)?.as_ref())
}

/// What can happen within the bounds, and so must.
fn allowed_by(scenario: &Scenario) -> Vec<Kind> {
    let Scenario { exactly_once, checks, budget, .. } = *scenario;
    let Budget {
        halves,
        decisions,
        resolved,
        answers,
        not_asked,
        unheard,
        failed,
        reopens,
        refusals,
        failures,
        crashes,
        stale,
        foreign,
    } = budget;
    let (stale, reopens) = (stale > 0, reopens > 0);
    let all = [
        (Kind::Prepare, halves > 0),
        (Kind::Decide, decisions > 0),
        (Kind::Resolve, resolved > 0),
        (Kind::Answer, answers > 0),
        (Kind::Busy, not_asked > 0),
        (Kind::NoPlace, not_asked > 0),
        (Kind::Unheard, unheard > 0),
        (Kind::Failed, failed > 0),
        (Kind::Reopen, reopens),
        (Kind::Refuse, refusals > 0),
        (Kind::Lost, failures > 0 && checks),
        (Kind::Doubtful, failures > 0 && checks),
        (Kind::Abort, failures > 0 && exactly_once),
        (Kind::Crash, crashes > 0),
        (Kind::CrashAppending, crashes > 0 && checks),
        (Kind::Foreign, foreign > 0),
        (Kind::TakeOver, stale),
        (Kind::FormerAppends, stale && (checks || reopens)),
        (Kind::FormerDelivers, stale && !exactly_once),
        (Kind::FormerIsFenced, stale && exactly_once),
        (Kind::FormerReopens, stale && reopens),
        (Kind::FormerCarriesOutReopened, stale && reopens),
    ];
    all.into_iter().filter(|(_, is_allowed)| *is_allowed).map(|(kind, _)| kind).collect()
}

//! The bounds. Each scenario has what its question needs, and no more: every budget multiplies
//! the states.
//!
//! At-least-once has no fence. An old owner's record for the parked topic can arrive late and
//! replace a newer one: so where an old owner lives on in that mode beside a REOPEN or a refusal,
//! less is claimed ([`Scenario::has_late_entries`]).

use std::time::Duration;

use crate::properties::Reach;
use crate::world::Budget;

#[derive(Debug, Clone)]
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) exactly_once: bool,
    /// Whether halves that nobody decides are checked, and parked in the end.
    pub(crate) checks: bool,
    pub(crate) limits: Limits,
    pub(crate) budget: Budget,
    pub(crate) reaches: &'static [Reach],
}

impl Scenario {
    /// Whether an entry of the parked topic may be replaced by an older one: then a settled message
    /// may be listed as parked, and be opened again, with what follows for its progress. Nothing that
    /// was not committed is delivered even so, and no commit is lost.
    pub(crate) const fn has_late_entries(&self) -> bool {
        let Budget { stale, reopens, refusals, .. } = self.budget;
        !self.exactly_once && stale > 0 && (reopens > 0 || refusals > 0)
    }
}

/// When a half is given up, and when its record is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) max_checks: u32,
    pub(crate) max_age: Duration,
    pub(crate) no_listener_grace: Duration,
    /// For how long what is carried out holds the log.
    pub(crate) copy_window: Duration,
}

const BY_CHECKS: Limits = Limits {
    max_checks: 1,
    max_age: Duration::MAX,
    no_listener_grace: Duration::MAX,
    // As exactly once, in the program: what is carried out lingers.
    copy_window: Duration::from_secs(1),
};
/// At the first question that finds no listener.
const UNHEARD: Limits = Limits { no_listener_grace: Duration::ZERO, ..BY_CHECKS };
/// As soon as it is due. Without questions the states of an old owner and a REOPEN together are few
/// enough.
const UNASKED: Limits = Limits { max_checks: 0, ..BY_CHECKS };
/// As before; nothing lingers.
const UNASKED_BRIEF: Limits = Limits { copy_window: Duration::ZERO, ..UNASKED };
/// As old as it is at its first check; its attempts would last for longer.
const BY_AGE: Limits = Limits { max_checks: 3, max_age: Duration::from_secs(1), ..BY_CHECKS };

/// One half, and nothing that may happen to it.
const NONE: Budget = Budget {
    halves: 1,
    decisions: 0,
    resolved: 0,
    answers: 0,
    not_asked: 0,
    unheard: 0,
    failed: 0,
    reopens: 0,
    refusals: 0,
    failures: 0,
    crashes: 0,
    stale: 0,
    foreign: 0,
};

fn exactly_once(name: &'static str, budget: Budget, reaches: &'static [Reach]) -> Scenario {
    Scenario { name, exactly_once: true, checks: false, limits: BY_CHECKS, budget, reaches }
}

fn at_least_once(name: &'static str, budget: Budget, reaches: &'static [Reach]) -> Scenario {
    Scenario { name, exactly_once: false, checks: false, limits: BY_CHECKS, budget, reaches }
}

fn checked(scenario: Scenario) -> Scenario {
    Scenario { checks: true, ..scenario }
}

/// What nobody decides stays open in its first life; a REOPEN's is given up within these limits.
fn unchecked(limits: Limits, scenario: Scenario) -> Scenario {
    Scenario { limits, ..scenario }
}

fn limited(limits: Limits, scenario: Scenario) -> Scenario {
    checked(unchecked(limits, scenario))
}

/// What every test run explores.
pub(crate) fn small() -> Vec<Scenario> {
    use Reach::{
        Contradicted, Fenced, GivenUp, Late, Refused, Reopened, TooOld, Twice, TwoOwners, Undone,
        Unheard,
    };
    vec![
        exactly_once(
            "exactly once: an old owner, a crash, a refusal",
            Budget { decisions: 1, refusals: 1, crashes: 1, stale: 1, ..NONE },
            &[Fenced, TwoOwners, Refused],
        ),
        exactly_once(
            "exactly once: two halves, a refusal, a crash",
            Budget { halves: 2, decisions: 2, refusals: 1, crashes: 1, ..NONE },
            &[Refused, Contradicted],
        ),
        exactly_once(
            "exactly once: failures and a foreign record",
            Budget { decisions: 1, refusals: 1, failures: 1, crashes: 1, foreign: 1, ..NONE },
            &[Refused],
        ),
        checked(exactly_once(
            "exactly once: checks, a reopening, a refusal, a crash",
            Budget { decisions: 1, reopens: 1, refusals: 1, crashes: 1, ..NONE },
            &[GivenUp, Refused, Reopened, Undone, Late],
        )),
        checked(exactly_once(
            "exactly once: checks, two operators who reopen",
            Budget { decisions: 1, reopens: 2, ..NONE },
            &[GivenUp, Reopened, Undone, Late],
        )),
        checked(exactly_once(
            "exactly once: checks, an answer, a crash",
            Budget { decisions: 1, answers: 1, crashes: 1, ..NONE },
            &[GivenUp, Contradicted, Late],
        )),
        checked(exactly_once(
            "exactly once: checks that fail, a crash",
            Budget { decisions: 1, failed: 2, crashes: 1, ..NONE },
            &[GivenUp, Late],
        )),
        limited(
            UNHEARD,
            exactly_once(
                "exactly once: no listener, a crash",
                Budget { decisions: 1, unheard: 1, crashes: 1, ..NONE },
                &[Unheard, GivenUp, Late],
            ),
        ),
        limited(
            BY_AGE,
            exactly_once(
                "exactly once: too old, checks that fail, a crash",
                Budget { failed: 1, crashes: 1, ..NONE },
                &[TooOld],
            ),
        ),
        checked(exactly_once(
            "exactly once: checks that nobody has time for, a crash",
            Budget { decisions: 1, not_asked: 1, crashes: 1, ..NONE },
            &[GivenUp, Late],
        )),
        checked(exactly_once(
            "exactly once: checks, records that are lost",
            Budget { decisions: 1, failures: 2, ..NONE },
            &[GivenUp, Late],
        )),
        at_least_once(
            "at least once: a foreign record, a crash",
            Budget { decisions: 1, foreign: 1, crashes: 1, ..NONE },
            &[Twice],
        ),
        limited(
            UNASKED_BRIEF,
            exactly_once(
                "exactly once: given up, an old owner, a reopening",
                Budget { resolved: 1, reopens: 1, stale: 1, ..NONE },
                &[Fenced, TwoOwners, GivenUp, Reopened, Undone],
            ),
        ),
        unchecked(
            UNASKED,
            exactly_once(
                "exactly once: a refusal, an old owner, a reopening",
                Budget { decisions: 2, refusals: 1, reopens: 1, stale: 1, ..NONE },
                &[Fenced, TwoOwners, Refused, Reopened, Undone, Contradicted, Late],
            ),
        ),
        unchecked(
            UNASKED_BRIEF,
            at_least_once(
                "at least once: a refusal, an old owner, a reopening",
                Budget { decisions: 1, resolved: 1, refusals: 1, reopens: 1, stale: 1, ..NONE },
                &[TwoOwners, Refused, Reopened, Undone, Twice],
            ),
        ),
        at_least_once(
            "at least once: an old owner",
            Budget { decisions: 2, stale: 1, ..NONE },
            &[TwoOwners, Twice, Contradicted],
        ),
        at_least_once(
            "at least once: two halves, a crash",
            Budget { halves: 2, decisions: 2, crashes: 1, ..NONE },
            &[Twice, Contradicted],
        ),
        at_least_once(
            "at least once: a refusal, a reopening, a crash",
            Budget { decisions: 2, reopens: 1, refusals: 1, crashes: 1, ..NONE },
            &[Refused, Reopened, Undone, Twice],
        ),
        checked(at_least_once(
            "at least once: checks, a refusal, a crash",
            Budget { decisions: 1, refusals: 1, crashes: 1, ..NONE },
            &[GivenUp, Refused, Twice, Late],
        )),
    ]
}

/// What is explored in release, in minutes.
pub(crate) fn large() -> Vec<Scenario> {
    use Reach::{Contradicted, Fenced, GivenUp, Late, Refused, Reopened, Twice, TwoOwners, Undone};
    vec![
        checked(exactly_once(
            "exactly once: checks, answers, an old owner",
            Budget { decisions: 1, answers: 1, stale: 1, ..NONE },
            &[Fenced, TwoOwners, GivenUp, Contradicted, Late],
        )),
        checked(exactly_once(
            "exactly once: checks, an old owner, a refusal",
            Budget { decisions: 1, refusals: 1, stale: 1, ..NONE },
            &[Fenced, TwoOwners, GivenUp, Refused, Late],
        )),
        checked(exactly_once(
            "exactly once: checks, answers, a reopening, a refusal, a crash",
            Budget { decisions: 2, answers: 1, reopens: 1, refusals: 1, crashes: 1, ..NONE },
            &[GivenUp, Refused, Reopened, Undone, Contradicted, Late],
        )),
        exactly_once(
            "exactly once: an old owner, a reopening, a refusal",
            Budget { decisions: 2, reopens: 1, refusals: 1, stale: 1, ..NONE },
            &[Fenced, TwoOwners, Refused, Reopened, Undone, Contradicted, Late],
        ),
        exactly_once(
            "exactly once: three halves, two refusals, a crash",
            Budget { halves: 3, decisions: 3, refusals: 2, crashes: 1, ..NONE },
            &[Refused, Contradicted],
        ),
        checked(at_least_once(
            "at least once: checks, an answer, an old owner",
            Budget { answers: 1, stale: 1, ..NONE },
            &[TwoOwners, GivenUp, Twice, Late],
        )),
        checked(at_least_once(
            "at least once: checks, a reopening, a refusal, a crash",
            Budget { decisions: 1, reopens: 1, refusals: 1, crashes: 1, ..NONE },
            &[GivenUp, Refused, Reopened, Undone, Twice, Late],
        )),
        limited(
            UNASKED_BRIEF,
            exactly_once(
                "exactly once: given up, a late decision, an old owner, a reopening",
                Budget { decisions: 1, reopens: 1, stale: 1, ..NONE },
                &[Fenced, TwoOwners, GivenUp, Reopened, Undone, Late],
            ),
        ),
        limited(
            UNASKED_BRIEF,
            at_least_once(
                "at least once: given up, an old owner, a reopening",
                Budget { resolved: 1, reopens: 1, stale: 1, ..NONE },
                &[TwoOwners, GivenUp, Reopened, Undone, Twice],
            ),
        ),
    ]
}

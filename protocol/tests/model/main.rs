//! A model check of the resolver core: every state that a partition can reach, within bounds, by
//! any order of what its owners, producers, operators, targets, brokers and deaths can do.
//!
//! The cores are the program's own ([`halfmsg_protocol::ResolverCore`], driven by its `step`); the
//! model adds only what surrounds them. Two claims are made in every state that is reached: what
//! must never be, is not; and where the owner has nothing left to do, everything is settled. That
//! it comes to rest at all follows from this, that every fair action uses something up (a record
//! to read, a question, a record under way, an outcome to carry out); one state in
//! [`COMES_TO_REST_EVERY`] is also played to its end. So no property of stateright's `eventually`
//! kind is needed, which can miss counterexamples where paths join.
//!
//! The default bounds take a minute, on a busy machine three. `HALFMSG_MODEL=large`, in release,
//! explores the large ones.
//!
//! # Layout
//! - [`law`]: what a log means, in the plainest words; never uses the ledger
//! - [`world`]: the state, and what may still happen
//! - [`owner`]: one owner: the program's core, and the shell around it as values
//! - [`actions`]: what can happen next
//! - [`emission`]: how outcomes are carried out in either mode
//! - [`happened`]: whether all that a scenario allows happens
//! - [`properties`]: what must hold, and what must be reached
//! - [`scenarios`]: the bounds

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use halfmsg_protocol::{Backoff, CoreConfig, Progress};
use stateright::{Checker, HasDiscoveries, Model, Property};

mod actions;
mod emission;
mod happened;
mod law;
mod owner;
mod properties;
mod scenarios;
mod world;

use actions::{Action, Making};
use happened::Happened;
use owner::{NEVER, Owner};
use properties::Reach;
use scenarios::{Limits, Scenario};
use world::World;

/// One state in so many is played to its end: each of them takes as long as forty others.
const COMES_TO_REST_EVERY: usize = 32;
const THREADS: usize = 2;

struct Partition {
    making: Making,
    scenario: Scenario,
    asked: AtomicUsize,
    happened: Happened,
}

impl Partition {
    fn new(scenario: Scenario) -> Self {
        let config = config(scenario.checks, scenario.limits);
        let making = Making { config, exactly_once: scenario.exactly_once };
        Self { making, scenario, asked: AtomicUsize::new(0), happened: Happened::default() }
    }

    fn comes_to_rest(&self, world: &World) -> bool {
        let turn = self.asked.fetch_add(1, Ordering::Relaxed);
        !turn.is_multiple_of(COMES_TO_REST_EVERY) || properties::comes_to_rest(&self.making, world)
    }
}

/// Fewer in all would say that something can no longer happen.
const LEAST_STATES: usize = 2_000_000;

fn config(checks: bool, limits: Limits) -> CoreConfig {
    let second = Duration::from_secs(1);
    CoreConfig {
        check_after: if checks { second } else { NEVER },
        check_backoff: Backoff { initial: second, max: second },
        max_checks: limits.max_checks,
        max_age: limits.max_age,
        no_listener_grace: limits.no_listener_grace,
        retry_delay: second,
        check_batch: 2,
        check_batch_bytes: usize::MAX,
        check_batches: 2,
        copy_window: limits.copy_window,
    }
}

impl Model for Partition {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        let Making { config, exactly_once } = self.making.clone();
        let progress = Progress { low_water: 0, position: 0 };
        let owner = Owner::new(config, exactly_once, progress, Vec::new());
        vec![World::new(owner, self.scenario.budget)]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        actions::enabled(world, actions);
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        self.happened.note(world, action);
        let mut next = world.clone();
        actions::apply(&self.making, &mut next, action);
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut all: Vec<Property<Self>> = vec![
            Property::always("delivered implies committed first", |_, world| {
                properties::delivered_only_what_was_committed_first(world)
            }),
            Property::always("rolled back first is never delivered", |_, world| {
                properties::nothing_rolled_back_is_delivered(world)
            }),
            Property::always("at rest no commit is lost", |_, world| {
                properties::at_rest_no_commit_is_lost(world)
            }),
            Property::always("progress never passes what is not copied", |_, world| {
                properties::progress_never_passes_what_is_not_copied(world)
            }),
            Property::always("it comes to rest", Self::comes_to_rest),
        ];
        if !self.scenario.has_late_entries() {
            all.extend([
                Property::<Self>::always(
                    "progress never passes an undelivered decision",
                    |_, world| properties::progress_never_passes_an_undelivered_decision(world),
                ),
                Property::always("low water never passes an open half", |_, world| {
                    properties::low_water_never_passes_an_open_half(world)
                }),
                Property::always("a parked half is in the parked topic", |_, world| {
                    properties::a_parked_half_is_in_the_parked_topic(world)
                }),
                Property::always("at rest everything is settled", |model: &Self, world| {
                    properties::at_rest_everything_is_settled(world, model.scenario.checks)
                }),
            ]);
        }
        if self.scenario.exactly_once {
            all.push(Property::always("delivered at most once per life", |_, world| {
                properties::delivered_at_most_once(world)
            }));
            all.push(Property::always("delivered or parked, never both", |_, world| {
                properties::delivered_or_parked_never_both(world)
            }));
        }
        all.extend(self.scenario.reaches.iter().map(|reach| reached(*reach)));
        all
    }
}

/// The model would prove nothing about what it does not reach.
fn reached(reach: Reach) -> Property<Partition> {
    let name = reach.name();
    match reach {
        Reach::Fenced => Property::sometimes(name, |_, world| Reach::Fenced.is_in(world)),
        Reach::TwoOwners => Property::sometimes(name, |_, world| Reach::TwoOwners.is_in(world)),
        Reach::Twice => Property::sometimes(name, |_, world| Reach::Twice.is_in(world)),
        Reach::Contradicted => {
            Property::sometimes(name, |_, world| Reach::Contradicted.is_in(world))
        }
        Reach::Late => Property::sometimes(name, |_, world| Reach::Late.is_in(world)),
        Reach::Reopened => Property::sometimes(name, |_, world| Reach::Reopened.is_in(world)),
        Reach::Undone => Property::sometimes(name, |_, world| Reach::Undone.is_in(world)),
        Reach::GivenUp => Property::sometimes(name, |_, world| Reach::GivenUp.is_in(world)),
        Reach::Unheard => Property::sometimes(name, |_, world| Reach::Unheard.is_in(world)),
        Reach::TooOld => Property::sometimes(name, |_, world| Reach::TooOld.is_in(world)),
        Reach::Refused => Property::sometimes(name, |_, world| Reach::Refused.is_in(world)),
    }
}

/// Explores a scenario; prints its states, and the way to whatever must not be.
fn explore(scenario: Scenario) -> usize {
    let (name, begun) = (scenario.name, Instant::now());
    let checker = Partition::new(scenario)
        .checker()
        .threads(THREADS)
        .finish_when(HasDiscoveries::AnyFailures)
        .spawn_dfs()
        .join();
    let states = checker.unique_state_count();
    println!(
        "{name}: {states} states, {} transitions, depth {}, {:.1?}",
        checker.state_count(),
        checker.max_depth(),
        begun.elapsed()
    );
    println!("  {}", checker.model().happened);
    checker.assert_properties();
    checker.model().happened.assert_all_of(&checker.model().scenario);
    states
}

#[test]
fn every_state_within_the_bounds_keeps_the_promises() {
    let scenarios = match std::env::var("HALFMSG_MODEL").as_deref() {
        Ok("large") => scenarios::large(),
        Ok(other) => panic!("HALFMSG_MODEL={other}: only 'large' is known"),
        Err(_) => scenarios::small(),
    };
    let states: usize = scenarios.into_iter().map(explore).sum();
    println!("{states} states in all");
    assert!(states >= LEAST_STATES, "{states}: bounds that are this tight prove little");
}

//! What must hold in every state that can be reached, and what must be reached at all.

use halfmsg_protocol::{HalfOffset, ParkCause, ParkedState, Progress, TransactionId, Verdict};

use crate::actions::{self, Making};
use crate::law::{Fate, History, Life};
use crate::world::World;

/// Far more than a world that is left to itself needs to come to rest.
const MAX_TURNS: u32 = 500;

/// Every decision that counts: its half, its life, which way, and where it lies.
fn decisions(halves: &[History]) -> impl Iterator<Item = (&History, u32, Verdict, i64)> {
    halves.iter().flat_map(|half| {
        (0..).zip(&half.lives).filter_map(move |(epoch, life)| match life.fate {
            Fate::Decided { verdict, at } => Some((half, epoch, verdict, at)),
            _ => None,
        })
    })
}

/// Every delivery is that of a COMMIT that was the first decision of its life.
pub(crate) fn delivered_only_what_was_committed_first(world: &World) -> bool {
    world.delivered.keys().all(|delivered| {
        decisions(&world.law)
            .any(|(.., verdict, at)| at == *delivered && verdict == Verdict::Commit)
    })
}

/// Nothing is delivered for a life whose first decision is a ROLLBACK: not by that decision, and
/// not by any other until the next life begins.
pub(crate) fn nothing_rolled_back_is_delivered(world: &World) -> bool {
    world.law.iter().all(|half| {
        (0..).zip(&half.lives).all(|(epoch, life)| {
            let rolled_back = matches!(life.fate, Fate::Decided { verdict: Verdict::Rollback, .. });
            !rolled_back || deliveries_in(world, half, epoch) == 0
        })
    })
}

/// How often a half is visible by decisions that lie within one of its lives.
fn deliveries_in(world: &World, half: &History, epoch: usize) -> u32 {
    let begin = half.lives[epoch].stored_at;
    let end = half.lives.get(epoch + 1).map_or(i64::MAX, |next| next.stored_at);
    world
        .delivered
        .range(begin..end)
        .filter(|(at, _)| about(world, **at) == Some(half.id))
        .map(|(_, times)| u32::from(*times))
        .sum()
}

fn about(world: &World, at: i64) -> Option<TransactionId> {
    world.log[usize::try_from(at).expect("it is small")].as_ref().map(|record| record.id())
}

/// In exactly-once mode a life of a half is visible at most once.
pub(crate) fn delivered_at_most_once(world: &World) -> bool {
    world
        .law
        .iter()
        .all(|half| (0..half.lives.len()).all(|epoch| deliveries_in(world, half, epoch) <= 1))
}

/// In exactly-once mode a life that is visible at the target is not in the parked topic as well.
pub(crate) fn delivered_or_parked_never_both(world: &World) -> bool {
    world.law.iter().all(|half| match world.topic.get(&half.id) {
        Some(ParkedState::Parked(parked)) => {
            let from = usize::try_from(parked.epoch.0).expect("it is small");
            (from..half.lives.len()).all(|epoch| deliveries_in(world, half, epoch) == 0)
        }
        _ => true,
    })
}

/// Below the stored position every commit is delivered, or was parked because it is refused.
pub(crate) fn progress_never_passes_an_undelivered_decision(world: &World) -> bool {
    decisions(&world.law).filter(|(.., at)| *at < world.progress.position).all(
        |(half, epoch, verdict, at)| {
            let parked = half.last().0 > epoch || is_parked_in_topic(world, half.id, epoch);
            verdict == Verdict::Rollback || world.times_delivered(at) > 0 || parked
        },
    )
}

/// Below the stored position every record that is none of ours is copied.
pub(crate) fn progress_never_passes_what_is_not_copied(world: &World) -> bool {
    (0..world.progress.position)
        .zip(&*world.log)
        .all(|(at, record)| record.is_some() || world.copied.contains(&at))
}

/// The life that the parked topic says something of.
fn known_epoch(world: &World, id: TransactionId) -> Option<u32> {
    world.topic.get(&id).map(|state| match state {
        ParkedState::Parked(parked) => parked.epoch.0,
        ParkedState::Settled { of, .. } => of.epoch.0,
    })
}

fn is_parked_in_topic(world: &World, id: TransactionId, of: u32) -> bool {
    matches!(world.topic.get(&id), Some(ParkedState::Parked(parked)) if parked.epoch.0 == of)
}

/// What is open at the stored position is read again by the next owner. Or nothing is left to do
/// about that life: it was rolled back above the position, or delivered, or the parked topic knows
/// how it ended.
pub(crate) fn low_water_never_passes_an_open_half(world: &World) -> bool {
    let progress = world.progress;
    let is_kept = |(half, now): (&History, &History)| {
        let (epoch, life) = half.last();
        !matches!(life.fate, Fate::Open { .. })
            || life.stored_at >= progress.low_water
            || is_over(world, now, epoch)
            || known_epoch(world, half.id).is_some_and(|known| known >= epoch)
    };
    progress.low_water <= progress.position
        && world.law_below_progress().iter().zip(&*world.law).all(is_kept)
}

fn is_over(world: &World, half: &History, epoch: u32) -> bool {
    match half.lives[usize::try_from(epoch).expect("it is small")].fate {
        Fate::Decided { verdict: Verdict::Rollback, .. } => true,
        Fate::Decided { verdict: Verdict::Commit, at } => world.times_delivered(at) > 0,
        Fate::Open { .. } | Fate::Parked { .. } => false,
    }
}

/// What was parked below the stored position is in the parked topic until a decision of a later
/// life lies below it too.
pub(crate) fn a_parked_half_is_in_the_parked_topic(world: &World) -> bool {
    world.law_below_progress().iter().all(|half| {
        let (epoch, last) = half.last();
        let parked = match last.fate {
            Fate::Parked { .. } => Some(epoch),
            Fate::Open { .. } => epoch.checked_sub(1),
            Fate::Decided { .. } => None,
        };
        // Above the position the half may have gone further, and may be further in the topic.
        parked.is_none_or(|epoch| match world.topic.get(&half.id) {
            Some(ParkedState::Parked(parked)) => parked.epoch.0 >= epoch,
            Some(ParkedState::Settled { of, .. }) => of.epoch.0 > epoch,
            None => false,
        })
    })
}

/// Where the owner has nothing left to do, everything is settled.
pub(crate) fn at_rest_everything_is_settled(world: &World, checks: bool) -> bool {
    !actions::is_at_rest(world) || is_settled(world, checks)
}

/// Where the owner has nothing left to do, a message whose last life was committed is delivered, in
/// this life or one before it, or parked.
pub(crate) fn at_rest_no_commit_is_lost(world: &World) -> bool {
    let is_kept = |half: &History| {
        let (epoch, last) = half.last();
        !matches!(last.fate, Fate::Decided { verdict: Verdict::Commit, .. })
            || (0..half.lives.len()).any(|epoch| deliveries_in(world, half, epoch) > 0)
            || is_parked_in_topic(world, half.id, epoch)
    };
    !actions::is_at_rest(world) || world.law.iter().all(is_kept)
}

/// Left to itself, with an owner that lives and a target that takes everything, the world comes
/// to rest.
pub(crate) fn comes_to_rest(making: &Making, world: &World) -> bool {
    let mut world = world.clone();
    for _ in 0..MAX_TURNS {
        match actions::next_fair(&world) {
            Some(action) => actions::apply(making, &mut world, action),
            None => return true,
        }
    }
    false
}

/// Every commit is delivered or parked as undeliverable, nothing that is checked is open, the
/// parked topic and the owner's memory hold what is parked and nothing else, progress is at the
/// end.
fn is_settled(world: &World, checks: bool) -> bool {
    let owner = &world.owners[world.owners.len() - 1];
    let ledger = owner.core.ledger();
    let shown: Vec<_> = ledger
        .parked_from(HalfOffset(0))
        .map(|parked| (parked.half.meta.id, parked.epoch.0))
        .collect();
    let settled = world.law.iter().all(|half| {
        let (epoch, last) = half.last();
        let parked = is_parked_in_topic(world, half.id, epoch);
        let shown = shown.contains(&(half.id, epoch));
        match last.fate {
            // Without checks, what nobody decides stays open; what is opened again is checked at once.
            Fate::Open { .. } => {
                !checks && epoch == 0 && ledger.open(HalfOffset(half.offset)).is_some()
            }
            Fate::Parked { .. } => parked && shown,
            Fate::Decided { verdict: Verdict::Rollback, .. } => {
                !world.topic.contains_key(&half.id) && !shown
            }
            Fate::Decided { verdict: Verdict::Commit, at } => {
                let refused = parked && shown;
                let delivered = world.times_delivered(at) > 0;
                refused || delivered && !world.topic.contains_key(&half.id) && !shown
            }
        }
    });
    let open = law_open(&world.law);
    let low_water = open.iter().min().copied().unwrap_or(world.end());
    let at_end = Progress { low_water, position: world.end() };
    settled
        && progress_never_passes_an_undelivered_decision(world)
        && owner.stored == Some(at_end)
        && ledger.open_count() == open.len()
}

/// Where the lives that are open begin.
fn law_open(law: &[History]) -> Vec<i64> {
    let open = |half: &History| {
        let life = half.last().1;
        matches!(life.fate, Fate::Open { .. }).then_some(life.stored_at)
    };
    law.iter().filter_map(open).collect()
}

/// What a scenario must reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    Fenced,
    TwoOwners,
    Twice,
    Contradicted,
    Late,
    Reopened,
    Undone,
    GivenUp,
    Unheard,
    TooOld,
    Refused,
}

impl Reach {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Fenced => "reached: the transaction of a fenced owner is refused",
            Self::TwoOwners => "reached: two owners are alive, and both have read",
            Self::Twice => "reached: a delivery is visible twice",
            Self::Contradicted => "reached: a decision contradicts the one that counts",
            Self::Late => {
                "reached: a decision comes while it is parked, or for a life that is over"
            }
            Self::Reopened => "reached: reopened and delivered",
            Self::Undone => "reached: reopened, rolled back and settled",
            Self::GivenUp => "reached: given up after its checks",
            Self::Unheard => "reached: given up for want of a listener",
            Self::TooOld => "reached: given up for its age",
            Self::Refused => "reached: parked as undeliverable",
        }
    }

    pub(crate) fn is_in(self, world: &World) -> bool {
        match self {
            Self::Fenced => world.fenced,
            Self::TwoOwners => {
                world.owners.len() > 1 && world.owners.iter().all(|owner| owner.next > 0)
            }
            Self::Twice => world.delivered.values().any(|times| *times > 1),
            Self::Contradicted => lives(world).any(|life| life.contradicted),
            Self::Late => lives(world).any(|life| life.late),
            Self::Reopened => world.law.iter().any(|half| {
                (1..half.lives.len()).any(|epoch| deliveries_in(world, half, epoch) > 0)
            }),
            Self::Undone => decisions(&world.law).any(|(_, epoch, verdict, at)| {
                epoch > 0 && verdict == Verdict::Rollback && at < world.progress.position
            }),
            Self::GivenUp => is_parked_for(world, ParkCause::MaxChecks),
            Self::Unheard => is_parked_for(world, ParkCause::NoListener),
            Self::TooOld => is_parked_for(world, ParkCause::MaxAge),
            Self::Refused => is_parked_for(world, ParkCause::Undeliverable),
        }
    }
}

fn lives(world: &World) -> impl Iterator<Item = &Life> {
    world.law.iter().flat_map(|half| &half.lives)
}

fn is_parked_for(world: &World, cause: ParkCause) -> bool {
    world
        .topic
        .values()
        .any(|state| matches!(state, ParkedState::Parked(parked) if parked.cause == cause))
}

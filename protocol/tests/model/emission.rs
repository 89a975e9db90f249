//! How outcomes are carried out, in either mode.
//!
//! At least once: a delivery, the parked topic's record, the acknowledgement and the progress are
//! steps of their own, and nothing stops an owner that is not the owner any more. Exactly once:
//! one Kafka transaction holds deliveries, parked topic records and progress; it becomes visible
//! as a whole or not at all, never once another owner has begun.

use halfmsg_protocol::Event;

use crate::owner::{Emission, Item, Owner, Transaction, Write, mark};
use crate::world::World;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Emit {
    /// A delivery reaches its target.
    Deliver(usize),
    /// A record that is none of ours is copied.
    Copy,
    /// The target refuses a delivery for good.
    Refuse(usize),
    /// The next record reaches the parked topic.
    Write,
    /// The acknowledgement of this outcome reaches the owner.
    Acknowledge(i64),
    /// Progress is stored; the owner does not know it yet.
    Store,
    /// Now it knows.
    Stored,
    /// A batch of so many outcomes is closed, with the progress as if it were carried out.
    Close(usize),
    /// Its transaction is committed, or refused because the owner is fenced.
    Commit,
    /// The owner learns that it is committed.
    Learn,
    /// The transaction is aborted, to be tried again.
    Abort,
    /// The target refuses this one: aborted, and the others are sent again.
    RefuseIn(usize),
}

/// What happens sooner or later.
pub(crate) fn fair(owner: &Owner) -> Vec<Emit> {
    let mut steps = Vec::new();
    match &owner.emission {
        Emission::AtLeastOnce { deliveries, copies, writes, done, stored } => {
            steps.extend((0..deliveries.len()).map(Emit::Deliver));
            steps.extend(copies.first().map(|_| Emit::Copy));
            steps.extend(writes.front().map(|_| Emit::Write));
            steps.extend(done.iter().map(|at| Emit::Acknowledge(*at)));
            steps.extend(stored.map(|_| Emit::Stored));
            let progress = owner.core.progress();
            if stored.is_none() && progress.is_some() && progress != owner.stored {
                steps.push(Emit::Store);
            }
        }
        Emission::ExactlyOnce { transaction: Some(transaction), .. } => {
            steps.push(if transaction.committed { Emit::Learn } else { Emit::Commit });
        }
        Emission::ExactlyOnce { collected, transaction: None } => {
            let progress = owner.core.progress();
            let moved = progress != owner.stored;
            let counts = (0..=collected.len()).rev().filter(|count| *count > 0 || moved);
            steps.extend(progress.into_iter().flat_map(|_| counts.clone()).map(Emit::Close));
        }
    }
    steps
}

/// What may happen so many times.
pub(crate) fn unfair(world: &World, owner: &Owner) -> Vec<Emit> {
    let mut steps = Vec::new();
    match &owner.emission {
        Emission::AtLeastOnce { deliveries, .. } if world.budget.refusals > 0 => {
            steps.extend((0..deliveries.len()).map(Emit::Refuse));
        }
        Emission::ExactlyOnce { transaction: Some(transaction), .. } if !transaction.committed => {
            if world.budget.failures > 0 {
                steps.push(Emit::Abort);
            }
            if world.budget.refusals > 0 {
                let items = transaction.items.iter().enumerate();
                let deliveries = items.filter(|(_, item)| matches!(item, Item::Deliver(_)));
                steps.extend(deliveries.map(|(which, _)| Emit::RefuseIn(which)));
            }
        }
        _ => {}
    }
    steps
}

/// Lets it happen.
pub(crate) fn apply(world: &mut World, number: usize, emit: Emit) {
    match world.owners[number].emission {
        Emission::AtLeastOnce { .. } => at_least_once(world, number, emit),
        Emission::ExactlyOnce { .. } => exactly_once(world, number, emit),
    }
}

fn at_least_once(world: &mut World, number: usize, emit: Emit) {
    let owner = &mut world.owners[number];
    let progress = owner.core.progress();
    let Emission::AtLeastOnce { deliveries, copies, writes, done, stored } = &mut owner.emission
    else {
        return;
    };
    match emit {
        Emit::Deliver(which) => {
            let delivery = deliveries.remove(which);
            let at = delivery.at;
            match delivery.mark {
                Some(of) => writes.push_back(mark(at, of)),
                None => drop(done.insert(at)),
            }
            world.deliver(at);
        }
        Emit::Copy => {
            let at = copies.remove(0);
            done.insert(at);
            world.copied.insert(at);
        }
        Emit::Refuse(which) => {
            let at = deliveries.remove(which).at;
            world.budget.refusals -= 1;
            owner.refused(at);
        }
        Emit::Write => {
            let Some(write) = writes.pop_front() else { return };
            done.extend(write.at);
            world.write(write);
        }
        Emit::Acknowledge(at) => {
            done.remove(&at);
            owner.step(Event::CarriedOut { at });
        }
        Emit::Store => {
            let Some(progress) = progress else { return };
            *stored = Some(progress);
            world.progress = progress;
        }
        Emit::Stored => {
            if let Some(progress) = stored.take() {
                owner.progress_stored(progress);
            }
        }
        _ => panic!("{emit:?} is exactly-once's"),
    }
}

fn exactly_once(world: &mut World, number: usize, emit: Emit) {
    let fenced = world.is_fenced(number);
    let owner = &mut world.owners[number];
    let Emission::ExactlyOnce { collected, transaction } = &mut owner.emission else { return };
    if let Emit::Close(count) = emit {
        // In the order of the log: a refused delivery that is parked comes before what follows it.
        collected.sort_by_key(|item| item.at().unwrap_or(i64::MIN));
        let items: Vec<Item> = collected.drain(..count).collect();
        let batch: Vec<i64> = items.iter().filter_map(Item::at).collect();
        let progress = owner.core.progress_after(&batch);
        *transaction = progress.map(|progress| Transaction { items, progress, committed: false });
        return;
    }
    let Some(mut under_way) = transaction.take() else { return };
    match emit {
        Emit::Commit if fenced => {
            world.fenced = true;
            world.owners.remove(number);
        }
        Emit::Commit => {
            under_way.committed = true;
            *transaction = Some(under_way.clone());
            become_visible(world, under_way);
        }
        Emit::Learn => learn(owner, under_way),
        Emit::Abort => {
            world.budget.failures -= 1;
            collected.splice(0..0, under_way.items);
        }
        Emit::RefuseIn(which) => {
            world.budget.refusals -= 1;
            let at = under_way.items.remove(which).at();
            collected.splice(0..0, under_way.items);
            if let Some(at) = at {
                owner.refused(at);
            }
        }
        _ => panic!("{emit:?} is at-least-once's"),
    }
}

fn become_visible(world: &mut World, transaction: Transaction) {
    for item in transaction.items {
        match item {
            Item::Deliver(delivery) => {
                world.deliver(delivery.at);
                if let Some(of) = delivery.mark {
                    world.write(Write { ..mark(delivery.at, of) });
                }
            }
            Item::Write(write) => world.write(write),
            Item::Copy(at) => drop(world.copied.insert(at)),
        }
    }
    world.progress = transaction.progress;
}

fn learn(owner: &mut Owner, transaction: Transaction) {
    for at in transaction.items.iter().filter_map(Item::at) {
        owner.step(Event::CarriedOut { at });
    }
    owner.progress_stored(transaction.progress);
}

//! What can happen, in an order that proptest chooses and shrinks.

use std::sync::Arc;

use halfmsg_protocol::{
    CheckOutcome, Checked, Decision, Epoch, HalfMeta, HalfOffset, HalfRef, Origin, Park, ParkCause,
    Record, Reopen, TransactionId, Verdict,
};
use proptest::prelude::*;

use crate::spec::{SpecHalf, State};
use crate::world::World;

/// A record that somebody appends about one of the halves; mostly a valid one.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind {
    Decide(Verdict, Origin),
    Checked,
    Park(ParkCause),
    Reopen,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Step {
    Half,
    /// The client of a message that is not acknowledged writes it again.
    Copy(usize),
    /// Somebody stores another message under the id of one that is not acknowledged, and perhaps
    /// decides it.
    Reuse(usize, Option<Verdict>),
    About {
        which: usize,
        kind: Kind,
        /// Off the epoch that would count.
        epoch: i8,
        /// Off the attempt that would count.
        attempt: i8,
        wrong_id: bool,
    },
    Foreign,
    Gap,
    Read(u8),
    Deliver(usize),
    Refuse(usize),
    Write(u8),
    Acknowledge(usize),
    Store,
    ReportStored,
    Tick,
    /// With the progress that the owner has stored until then.
    Trim,
    Delete(usize),
    Crash,
}

fn about() -> impl Strategy<Value = Step> {
    let kind = prop_oneof![
        2 => Just(Kind::Decide(Verdict::Commit, Origin::Producer)),
        2 => Just(Kind::Decide(Verdict::Commit, Origin::CheckBack)),
        1 => Just(Kind::Decide(Verdict::Rollback, Origin::Producer)),
        1 => Just(Kind::Decide(Verdict::Rollback, Origin::CheckBack)),
        1 => Just(Kind::Checked),
        4 => Just(Kind::Park(ParkCause::MaxChecks)),
        1 => Just(Kind::Park(ParkCause::Undeliverable)),
        4 => Just(Kind::Reopen),
    ];
    let skew = || prop_oneof![8 => Just(0_i8), 1 => Just(-1_i8), 1 => Just(1_i8)];
    let wrong_id = prop_oneof![9 => Just(false), 1 => Just(true)];
    (0..8_usize, kind, skew(), skew(), wrong_id).prop_map(
        |(which, kind, epoch, attempt, wrong_id)| Step::About {
            which,
            kind,
            epoch,
            attempt,
            wrong_id,
        },
    )
}

fn refusal() -> impl Strategy<Value = Step> {
    prop_oneof![2 => (0..4_usize).prop_map(Step::Refuse), 1 => Just(Step::Tick)]
}

fn verdict() -> impl Strategy<Value = Verdict> {
    prop_oneof![Just(Verdict::Commit), Just(Verdict::Rollback)]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => Just(Step::Half),
        2 => (0..8_usize).prop_map(Step::Copy),
        1 => (0..8_usize, prop::option::of(verdict())).prop_map(|(at, by)| Step::Reuse(at, by)),
        10 => about(),
        1 => prop_oneof![Just(Step::Foreign), Just(Step::Gap)],
        10 => (1..6_u8).prop_map(Step::Read),
        4 => (0..4_usize).prop_map(Step::Deliver),
        5 => (1..3_u8).prop_map(Step::Write),
        6 => (0..4_usize).prop_map(Step::Acknowledge),
        3 => Just(Step::Store),
        2 => Just(Step::ReportStored),
        2 => Just(Step::Trim),
        2 => (0..4_usize).prop_map(Step::Delete),
        2 => Just(Step::Crash),
    ]
}

/// A history in which the target accepts everything.
pub(crate) fn steps() -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec(step(), 1..100)
}

/// A history in which it does not.
pub(crate) fn steps_with_refusals() -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec(prop_oneof![4 => step(), 1 => refusal()], 1..100)
}

pub(crate) fn run(world: &mut World, steps: Vec<Step>) {
    for step in steps {
        match step {
            Step::Half => {
                let id = transaction(world.end());
                world.append(Record::Half(meta(id)));
            }
            Step::Copy(which) => copy(world, which),
            Step::Reuse(which, decides) => reuse(world, which, decides),
            Step::About { which, kind, epoch, attempt, wrong_id } => {
                about_half(world, which, kind, epoch, attempt, wrong_id);
            }
            Step::Foreign => world.append_foreign(),
            Step::Gap => world.append_gap(),
            Step::Read(times) => (0..times).for_each(|_| world.read()),
            Step::Deliver(which) => world.deliver(which),
            Step::Refuse(which) => world.refuse(which),
            Step::Write(times) => (0..times).for_each(|_| world.write()),
            Step::Acknowledge(which) => world.acknowledge(which),
            Step::Store => world.store(),
            Step::ReportStored => world.report_stored(),
            Step::Tick => world.tick(),
            Step::Trim => {
                world.store();
                world.report_stored();
                world.trim();
            }
            Step::Delete(which) => world.delete(which),
            Step::Crash => world.crash(),
        }
    }
}

fn copy(world: &mut World, which: usize) {
    let halves = world.spec().halves;
    let Some(which) = which.checked_rem(halves.len()) else { return };
    if !halves[which].is_acknowledged {
        world.append(Record::Half(meta(halves[which].id)));
    }
}

fn reuse(world: &mut World, which: usize, decides: Option<Verdict>) {
    let halves = world.spec().halves;
    let Some(which) = which.checked_rem(halves.len()) else { return };
    let (id, at) = (halves[which].id, world.end());
    if halves[which].is_acknowledged {
        return;
    }
    world.append(Record::Half(Arc::new(HalfMeta {
        topic: "another".into(),
        ..(*meta(id)).clone()
    })));
    if let Some(verdict) = decides {
        let of = HalfRef { id, half: HalfOffset(at), epoch: Epoch(0) };
        let (origin, reason) = (Origin::Producer, String::new());
        world.append(Record::Decision(Decision { of, verdict, origin, operator: None, reason }));
    }
}

fn about_half(world: &mut World, which: usize, kind: Kind, epoch: i8, attempt: i8, wrong_id: bool) {
    let spec = world.spec();
    let Some(which) = which.checked_rem(spec.halves.len()) else { return };
    let half = &spec.halves[which];
    let (current, attempts) = life(world, half);
    let id = if wrong_id { transaction(-1) } else { half.id };
    let epoch = Epoch(current.saturating_add_signed(i32::from(epoch)));
    // The application names the copy of which it was told, everybody else the first.
    let told = matches!(kind, Kind::Decide(_, Origin::Producer)).then(|| half.copies.last());
    let half_offset = *told.flatten().unwrap_or(&half.offset);
    let of = HalfRef { id, half: HalfOffset(half_offset), epoch };
    let skewed = |count: u32| count.saturating_add_signed(i32::from(attempt));
    let reason = String::new();
    let record = match kind {
        Kind::Decide(verdict, origin) => {
            Record::Decision(Decision { of, verdict, origin, operator: None, reason })
        }
        Kind::Checked => {
            let (attempt, outcome) = (skewed(attempts + 1), CheckOutcome::Unknown);
            Record::Checked(Checked { of, attempt, outcome, reason, asked_by: None })
        }
        Kind::Park(cause) => Record::Park(Park { of, attempts: skewed(attempts), cause, reason }),
        Kind::Reopen => {
            Record::Reopen(Box::new(Reopen { of, meta: meta(id), operator: String::new(), reason }))
        }
    };
    world.append(record);
}

/// The life that a record has to name to count.
fn life(world: &World, half: &SpecHalf) -> (u32, u32) {
    match half.state {
        _ if world.was_refused(half.id) => world.parked_life(half.id),
        State::Open { epoch, attempts, .. } | State::Parked { epoch, attempts, .. } => {
            (epoch, attempts)
        }
        State::Committed { .. } | State::RolledBack => (half.reopened, 0),
    }
}

fn transaction(n: i64) -> TransactionId {
    TransactionId::from_bytes(i128::from(n).to_be_bytes())
}

fn meta(id: TransactionId) -> Arc<HalfMeta> {
    Arc::new(HalfMeta {
        id,
        application: "app".into(),
        purpose: "purpose".into(),
        topic: "topic".into(),
        timestamp_ms: 0,
        check_after: None,
        local_transaction: None,
    })
}

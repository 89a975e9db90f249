//! What can happen next, and what it does. Fair actions are those that happen sooner or later as
//! long as an owner lives; all others are bounded by the [`Budget`].

use std::sync::Arc;

use halfmsg_protocol::{
    Answer, Body, CoreConfig, Decision, Epoch, Event, HalfMeta, HalfOffset, HalfRef, NotAsked,
    Origin, Record, Reopen, TransactionId, Verdict,
};

use crate::emission::{self, Emit};
use crate::law::History;
use crate::owner::Owner;
use crate::world::{Budget, World};

/// What a listener says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Said {
    Commit,
    Rollback,
    Unknown,
    Failed,
    NotAsked(NotAsked),
}

/// What becomes of a record on its way to the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Landing {
    Stored,
    /// Reported as lost, and stored.
    Doubtful,
    Lost,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    Prepare,
    /// A producer or an operator decides, as far as it knows in this life of the message.
    Decide(HalfRef, Verdict),
    /// An operator decides in a life that a REOPEN began.
    Resolve(HalfRef, Verdict),
    /// An operator opens again what an owner shows as parked, or did when he looked.
    Reopen(HalfRef),
    Foreign,
    /// The owner dies; what was on its way to the store may arrive.
    Crash {
        land: bool,
    },
    /// Another takes the partition over while this one goes on.
    TakeOver,
    /// The new owner reads the parked topic and begins.
    Begin,
    /// The owner of this number does something.
    Of(usize, Step),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    Read,
    Tick,
    Answer(HalfRef, Said),
    Land(Landing),
    Emit(Emit),
}

/// What can happen in a world.
pub(crate) fn enabled(world: &World, actions: &mut Vec<Action>) {
    outside(world, actions);
    if world.starting.is_some() {
        actions.push(Action::Begin);
    }
    for (number, owner) in world.owners.iter().enumerate() {
        let of = |step| Action::Of(number, step);
        actions.extend(fair(world, owner).into_iter().map(of));
        actions.extend(unfair(world, owner).into_iter().map(of));
    }
}

/// What the current owner does sooner or later; nothing if it has come to rest.
pub(crate) fn next_fair(world: &World) -> Option<Action> {
    if world.starting.is_some() {
        return Some(Action::Begin);
    }
    let current = world.owners.len() - 1;
    fair(world, &world.owners[current]).first().map(|step| Action::Of(current, *step))
}

/// Whether the current owner has nothing left to do.
pub(crate) fn is_at_rest(world: &World) -> bool {
    let busy = |owner: &Owner| {
        owner.next < world.end()
            || !owner.questions.is_empty()
            || !owner.appends.is_empty()
            || owner.due().is_some()
            || !emission::fair(owner).is_empty()
    };
    world.starting.is_none() && !world.owners.last().is_some_and(busy)
}

fn fair(world: &World, owner: &Owner) -> Vec<Step> {
    let mut steps = Vec::new();
    if owner.next < world.end() {
        steps.push(Step::Read);
    }
    for of in owner.questions.iter().flatten() {
        steps.push(Step::Answer(*of, Said::Unknown));
    }
    if !owner.appends.is_empty() {
        steps.push(Step::Land(Landing::Stored));
    }
    steps.extend(emission::fair(owner).into_iter().map(Step::Emit));
    if owner.due().is_some() {
        steps.push(Step::Tick);
    }
    steps
}

fn unfair(world: &World, owner: &Owner) -> Vec<Step> {
    let Budget { answers, not_asked, unheard, failed, failures, .. } = world.budget;
    let mut steps = Vec::new();
    for of in owner.questions.iter().flatten() {
        if answers > 0 {
            steps.push(Step::Answer(*of, Said::Commit));
            steps.push(Step::Answer(*of, Said::Rollback));
        }
        if failed > 0 {
            steps.push(Step::Answer(*of, Said::Failed));
        }
        if not_asked > 0 {
            steps.push(Step::Answer(*of, Said::NotAsked(NotAsked::Busy)));
            steps.push(Step::Answer(*of, Said::NotAsked(NotAsked::NoPlace)));
        }
        if unheard > 0 {
            steps.push(Step::Answer(*of, Said::NotAsked(NotAsked::NoListener)));
        }
    }
    if failures > 0 && !owner.appends.is_empty() {
        steps.push(Step::Land(Landing::Lost));
        steps.push(Step::Land(Landing::Doubtful));
    }
    steps.extend(emission::unfair(world, owner).into_iter().map(Step::Emit));
    steps
}

fn outside(world: &World, actions: &mut Vec<Action>) {
    let Budget { halves, decisions, resolved, reopens, crashes, stale, foreign, .. } = world.budget;
    if halves > 0 {
        actions.push(Action::Prepare);
    }
    if foreign > 0 {
        actions.push(Action::Foreign);
    }
    if decisions > 0 {
        for of in lives_begun(world) {
            actions.push(Action::Decide(of, Verdict::Commit));
            actions.push(Action::Decide(of, Verdict::Rollback));
        }
    }
    if resolved > 0 {
        for of in lives_begun(world).into_iter().filter(|of| of.epoch > Epoch::default()) {
            actions.push(Action::Resolve(of, Verdict::Commit));
            actions.push(Action::Resolve(of, Verdict::Rollback));
        }
    }
    if reopens > 0 {
        actions.extend(shown_as_parked(world).into_iter().map(Action::Reopen));
    }
    if world.starting.is_none() {
        if crashes > 0 {
            actions.push(Action::Crash { land: false });
            if !world.owners.last().is_none_or(|owner| owner.appends.is_empty()) {
                actions.push(Action::Crash { land: true });
            }
        }
        if stale > 0 {
            actions.push(Action::TakeOver);
        }
    }
}

/// Every half in every life that somebody may know of: an operator appends the decision behind
/// his REOPEN without waiting for what comes of it.
fn lives_begun(world: &World) -> Vec<HalfRef> {
    let mut lives = Vec::new();
    for (offset, record) in (0..).zip(world.log.iter().flatten()) {
        let of = match record {
            Record::Half(meta) => {
                HalfRef { id: meta.id, half: HalfOffset(offset), epoch: Epoch(0) }
            }
            Record::Reopen(reopen) => HalfRef { epoch: reopen.of.epoch.next(), ..reopen.of },
            _ => continue,
        };
        if !lives.contains(&of) {
            lives.push(of);
        }
    }
    lives
}

/// Only what every owner to come knows to be parked may be opened again; an operator may have looked
/// before somebody else did so.
fn shown_as_parked(world: &World) -> Vec<HalfRef> {
    let former = |half: &History| {
        let (id, at) = (half.id, HalfOffset(half.offset));
        (0..half.last().0).map(move |epoch| HalfRef { id, half: at, epoch: Epoch(epoch) })
    };
    let mut shown: Vec<HalfRef> = world.law.iter().flat_map(former).collect();
    for owner in &world.owners {
        let ledger = owner.core.ledger();
        for parked in ledger.parked_from(HalfOffset(0)) {
            let half = &parked.half;
            let of = HalfRef { id: half.meta.id, half: half.offset, epoch: parked.epoch };
            if owner.core.is_park_durable(parked) && !shown.contains(&of) {
                shown.push(of);
            }
        }
    }
    shown
}

/// How owners are made.
#[derive(Debug, Clone)]
pub(crate) struct Making {
    pub(crate) config: CoreConfig,
    pub(crate) exactly_once: bool,
}

/// Lets it happen.
pub(crate) fn apply(making: &Making, world: &mut World, action: Action) {
    match action {
        Action::Prepare => {
            world.budget.halves -= 1;
            let id = TransactionId::from_bytes([world.budget.halves + 1; 16]);
            world.append(Some(Record::Half(meta(id))));
        }
        Action::Decide(of, verdict) => {
            world.budget.decisions -= 1;
            decide(world, of, verdict, Origin::Producer);
        }
        Action::Resolve(of, verdict) => {
            world.budget.resolved -= 1;
            decide(world, of, verdict, Origin::Operator);
        }
        Action::Reopen(of) => {
            world.budget.reopens -= 1;
            let (meta, operator, reason) = (meta(of.id), String::new(), String::new());
            world.append(Some(Record::Reopen(Box::new(Reopen { of, meta, operator, reason }))));
        }
        Action::Foreign => {
            world.budget.foreign -= 1;
            world.append(None);
        }
        Action::Crash { land } => crash(making, world, land),
        Action::TakeOver => {
            world.budget.stale -= 1;
            world.starting = Some(world.progress);
        }
        Action::Begin => begin(making, world),
        Action::Of(number, step) => apply_step(world, number, step),
    }
}

fn decide(world: &mut World, of: HalfRef, verdict: Verdict, origin: Origin) {
    let decision = Decision { of, verdict, origin, operator: None, reason: String::new() };
    world.append(Some(Record::Decision(decision)));
}

fn crash(making: &Making, world: &mut World, land: bool) {
    world.budget.crashes -= 1;
    let died = world.owners.pop();
    for record in died.into_iter().flat_map(|owner| owner.appends).filter(|_| land) {
        world.append(Some(record));
    }
    world.starting = Some(world.progress);
    if world.owners.is_empty() {
        // Nobody else could do anything before it has begun.
        begin(making, world);
    }
}

fn begin(making: &Making, world: &mut World) {
    let Some(progress) = world.starting.take() else { return };
    let parked = world.topic.values().cloned().collect();
    let owner = Owner::new(making.config.clone(), making.exactly_once, progress, parked);
    world.owners.push(owner);
}

fn apply_step(world: &mut World, number: usize, step: Step) {
    match step {
        Step::Read => read(world, number),
        Step::Tick => world.owners[number].tick(),
        Step::Answer(of, said) => answer(world, number, of, said),
        Step::Land(landing) => land(world, number, landing),
        Step::Emit(emit) => emission::apply(world, number, emit),
    }
}

fn read(world: &mut World, number: usize) {
    let log = Arc::clone(&world.log);
    let owner = &mut world.owners[number];
    let offset = owner.next;
    owner.next += 1;
    owner.step(match log[usize::try_from(offset).expect("it is small")].clone() {
        Some(record) => Event::Record { offset, appended_ms: 0, record, body: Body::default() },
        None => Event::Foreign { offset },
    });
}

fn answer(world: &mut World, number: usize, of: HalfRef, said: Said) {
    let answer = match said {
        Said::Commit | Said::Rollback => {
            world.budget.answers -= 1;
            if said == Said::Commit { Answer::Commit } else { Answer::Rollback }
        }
        Said::Unknown => Answer::Unknown(String::new()),
        Said::Failed => {
            world.budget.failed -= 1;
            Answer::Failed(String::new())
        }
        Said::NotAsked(why) => {
            match why {
                NotAsked::NoListener => world.budget.unheard -= 1,
                _ => world.budget.not_asked -= 1,
            }
            Answer::NotAsked(why)
        }
    };
    let owner = &mut world.owners[number];
    owner.step(Event::Answered { of, answer });
    let Some(which) = owner.questions.iter().position(|question| question.contains(&of)) else {
        return;
    };
    owner.questions[which].retain(|other| *other != of);
    if owner.questions[which].is_empty() {
        owner.questions.remove(which);
        owner.step(Event::BatchOver);
    }
}

fn land(world: &mut World, number: usize, landing: Landing) {
    let Some(record) = world.owners[number].appends.pop_front() else { return };
    let of = match &record {
        Record::Decision(decision) => decision.of,
        Record::Checked(checked) => checked.of,
        Record::Park(park) => park.of,
        Record::Half(_) | Record::Reopen(_) => panic!("not the resolver's to append: {record:?}"),
    };
    if landing != Landing::Lost {
        world.append(Some(record));
    }
    if landing != Landing::Stored {
        world.budget.failures -= 1;
        world.owners[number].step(Event::AppendFailed { of });
    }
}

fn meta(id: TransactionId) -> Arc<HalfMeta> {
    Arc::new(HalfMeta {
        id,
        application: "a".into(),
        purpose: "p".into(),
        topic: "t".into(),
        timestamp_ms: 0,
        check_after: None,
        local_transaction: None,
    })
}

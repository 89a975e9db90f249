//! The resolver of one store partition, without I/O: events in, commands out.
//!
//! It decides when a half message is checked, what follows from the answer and what is to be
//! carried out. It must never append a decision of its own: an answer becomes a record, and only
//! the record, read back from the log, changes a half's state.
//!
//! # Layout
//! - `messages`: events and commands
//! - `timers`: when each open half is asked about next
//! - `asking`: questions about what is due, and what becomes of the answers
//! - `outcomes`: what is carried out of a record that is read
//! - `fingerprint`: a core as a hash, for the model check

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use crate::hash::OffsetMap;
use crate::ids::{HalfOffset, TransactionId};
use crate::ledger::{Ledger, Outcome, ParkedHalf, Progress};
use crate::record::{Body, Record};

mod asking;
mod fingerprint;
mod messages;
mod outcomes;
#[cfg(test)]
mod tests;
mod timers;

use timers::{Phase, Timer};

pub use messages::{Answer, Command, CoreConfig, Event, NotAsked, Question, Takeover};

/// The resolver of one partition.
#[derive(Debug, Clone)]
pub struct ResolverCore {
    config: CoreConfig,
    ledger: Ledger,
    /// Records below are replayed: applied, and not carried out again.
    carried_out_below: i64,
    wall_ms: i64,
    owned_since: Duration,
    timers: OffsetMap<Timer>,
    due: BTreeSet<(Duration, HalfOffset)>,
    /// Decided halves that copies may follow, and until when.
    lingering: VecDeque<(Duration, HalfOffset)>,
    batches: usize,
    /// Progress that is known to be stored reaches so far.
    stored_below: i64,
}

impl ResolverCore {
    /// Takes a partition over; the first record to come is the one at the low-water mark.
    pub fn new(config: CoreConfig, takeover: Takeover) -> Self {
        let Progress { low_water, position } = takeover.progress;
        let mut ledger = Ledger::new(low_water, takeover.parked);
        ledger.expects(usize::try_from(position.saturating_sub(low_water)).unwrap_or(0));
        let window = config.copy_window;
        Self {
            config,
            ledger: if window > Duration::ZERO { ledger.lets_linger(window) } else { ledger },
            carried_out_below: takeover.progress.position,
            wall_ms: takeover.wall_ms,
            owned_since: takeover.now,
            timers: OffsetMap::default(),
            due: BTreeSet::new(),
            lingering: VecDeque::new(),
            batches: 0,
            stored_below: takeover.progress.position,
        }
    }

    /// The state of the partition.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Whether records below the stored progress are still being replayed.
    pub fn is_replaying(&self) -> bool {
        self.ledger.position() < self.carried_out_below
    }

    /// The first offset of which the outcome may not be carried out yet. A record before the last one
    /// below it commands nothing.
    pub fn replays_below(&self) -> i64 {
        self.carried_out_below
    }

    /// What may be stored as progress now; nothing while replaying, because less is known than
    /// was stored.
    pub fn progress(&self) -> Option<Progress> {
        (!self.is_replaying()).then(|| self.ledger.progress())
    }

    /// What may be stored as progress in one transaction with the outcomes of the records at these
    /// offsets, in ascending order; nothing while replaying.
    pub fn progress_after(&self, batch: &[i64]) -> Option<Progress> {
        (!self.is_replaying()).then(|| self.ledger.progress_after(batch))
    }

    /// The records of the store below this one are deleted: no progress will ask for them.
    pub fn deleted(&mut self, below: i64) {
        self.ledger.deleted(below);
    }

    /// Progress is durable: marks of messages settled below it can be removed from the parked
    /// topic. Names them.
    pub fn progress_stored(&mut self, progress: Progress) -> Vec<TransactionId> {
        self.stored_below = self.stored_below.max(progress.position);
        self.ledger.replays_begin_from(progress.low_water);
        self.ledger.forget_settled(progress.position)
    }

    /// Whether every owner to come knows that this message is parked. Only then may it be opened
    /// again: the REOPEN would mean nothing to an owner who carries its decision out anew.
    pub fn is_park_durable(&self, parked: &ParkedHalf) -> bool {
        parked.parked_at < self.stored_below
    }

    /// Keeps at most so many bytes of the bodies of open halves in memory.
    pub fn keep_bodies(&mut self, budget: u64) {
        self.ledger.keep_bodies(budget);
    }

    /// When the next check of this half is due, if it is not under way.
    pub fn next_check(&self, half: HalfOffset) -> Option<Duration> {
        match self.timers.get(&half) {
            Some(timer) => (timer.phase == Phase::Waiting).then_some(timer.due),
            None if self.is_replaying() => {
                self.ledger.open(half).map(|open| self.timer_of_replayed(open).due)
            }
            None => None,
        }
    }

    /// When a [`Event::Tick`] is needed, if nothing else happens.
    pub fn next_due(&self) -> Option<Duration> {
        let over = self.lingering.front().map(|(over, _)| *over);
        self.due.first().map(|(due, _)| *due).into_iter().chain(over).min()
    }

    /// These records come next: brings what they will look at into the processor's cache. Changes nothing.
    pub fn look_ahead<'a>(&'a self, records: impl Iterator<Item = &'a Record> + Clone) {
        self.ledger.look_ahead(records);
    }

    /// Takes an event in; what is to be done is added to `commands`. `now` is monotonic.
    pub fn step(&mut self, now: Duration, event: Event, commands: &mut Vec<Command>) {
        self.let_go(now);
        let was_replaying = self.is_replaying();
        match event {
            Event::Record { offset, appended_ms, record, body } => {
                self.record(now, offset, appended_ms, record, body, commands);
            }
            Event::Foreign { offset } => self.foreign(offset, commands),
            Event::CaughtUp { position } => self.ledger.pass(position),
            Event::CarriedOut { at } => self.ledger.carried_out(at),
            Event::DeliveryRefused { at, reason, wall_ms } => {
                if let Some(parked) = self.ledger.refuse(at, reason, wall_ms) {
                    commands.push(Command::WriteParked { at, parked });
                }
            }
            Event::Answered { of, answer } => self.answered(now, of, answer, commands),
            Event::BatchOver => {
                self.batches = self.batches.saturating_sub(1);
                self.ledger.bodies_returned();
            }
            Event::AppendFailed { of } => self.append_failed(now, of),
            Event::CheckNow { half } => self.check_now(now, half),
            Event::Tick => {}
        }
        if was_replaying && !self.is_replaying() {
            self.replay_ended();
        }
        self.ask_due(now, commands);
    }

    fn record(
        &mut self,
        now: Duration,
        offset: i64,
        appended_ms: i64,
        record: Record,
        body: Body,
        commands: &mut Vec<Command>,
    ) {
        let replay = offset < self.carried_out_below;
        let age = if replay { self.age_at_takeover(appended_ms) } else { Duration::ZERO };
        let id = record.id();
        let decided = match &record {
            Record::Decision(decision) if !replay => {
                Some((decision.origin, decision.reason.clone()))
            }
            _ => None,
        };
        let outcome = match replay {
            true => self.ledger.apply_replayed(record, body, offset, appended_ms),
            false => self.ledger.apply(record, body, offset, appended_ms),
        };
        if let Some(half) = self.ledger.take_lingering() {
            self.lingering.push_back((now + self.config.copy_window, half));
        }
        match &outcome {
            // Most are decided further on: what is left has its timer when the replay ends.
            Outcome::Opened | Outcome::Reopened { .. } if replay => {}
            Outcome::Opened => self.opened(now, HalfOffset(offset), age),
            Outcome::Reopened { half } => self.opened(now, *half, age),
            Outcome::Attempted { half, attempts } => {
                self.attempted(now, *half, *attempts, age, replay)
            }
            Outcome::CheckFailed { half } => self.check_failed(now, *half, age, replay),
            Outcome::Deliver { half, .. } | Outcome::Dropped { half, .. } => {
                self.forget(half.offset);
            }
            Outcome::Parked(parked) => {
                self.forget(parked.half.offset);
            }
            Outcome::Ignored(_) => {}
        }
        if !replay {
            self.carry_out(offset, id, outcome, decided, commands);
        }
    }

    fn let_go(&mut self, now: Duration) {
        while let Some((_, half)) = self.lingering.pop_front_if(|(over, _)| *over <= now) {
            self.ledger.let_go(half);
        }
    }

    /// How old a replayed record was at the takeover, by the wall clock; never negative.
    fn age_at_takeover(&self, appended_ms: i64) -> Duration {
        let millis = self.wall_ms.saturating_sub(appended_ms);
        Duration::from_millis(u64::try_from(millis).unwrap_or(0))
    }
}

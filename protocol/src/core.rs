//! The resolver of one store partition, without I/O: events in, commands out.
//!
//! It decides when a half message is checked, what follows from the answer and what is to be
//! carried out. It must never append a decision of its own: an answer becomes a record, and only
//! the record, read back from the log, changes a half's state.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crate::ids::{Epoch, HalfOffset, TransactionId};
use crate::ledger::{Ledger, Outcome, ParkedHalf, Progress};
use crate::record::{Body, Checked, Decision, HalfRef, Origin, Park, ParkCause, Record, Verdict};

mod fingerprint;
mod messages;
mod outcomes;
#[cfg(test)]
mod tests;

pub use messages::{Answer, Command, CoreConfig, Event, NotAsked, Question, Takeover};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Phase {
    /// Waiting for its due time.
    Waiting,
    /// A question about it is under way.
    Asked,
    /// A record about it is being appended.
    Appending,
}

#[derive(Debug, Clone)]
struct Timer {
    due: Duration,
    phase: Phase,
    /// When this owner applied the record, and how old the half was then.
    applied: Duration,
    age: Duration,
    /// Real attempts by this owner.
    asked_here: u32,
    /// Its checks fail.
    failing: Option<Failing>,
}

/// Checks that fail, one after the other.
#[derive(Debug, Clone)]
struct Failing {
    /// When this owner applied the record that says so, and how old that was then.
    applied: Duration,
    age: Duration,
    /// How often this owner has seen them fail.
    times: u32,
}

/// The resolver of one partition.
#[derive(Debug, Clone)]
pub struct ResolverCore {
    config: CoreConfig,
    ledger: Ledger,
    /// Records below are replayed: applied, and not carried out again.
    carried_out_below: i64,
    wall_ms: i64,
    owned_since: Duration,
    timers: HashMap<HalfOffset, Timer>,
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
        let ledger = Ledger::new(takeover.progress.low_water, takeover.parked);
        let lets_linger = config.copy_window > Duration::ZERO;
        Self {
            config,
            ledger: if lets_linger { ledger.lets_linger() } else { ledger },
            carried_out_below: takeover.progress.position,
            wall_ms: takeover.wall_ms,
            owned_since: takeover.now,
            timers: HashMap::new(),
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

    /// What may be stored as progress now; nothing while replaying, because less is known than
    /// was stored.
    pub fn progress(&self) -> Option<Progress> {
        (!self.is_replaying()).then(|| self.ledger.progress())
    }

    /// What may be stored as progress in one transaction with the outcomes of the records at these
    /// offsets; nothing while replaying.
    pub fn progress_after(&self, batch: &BTreeSet<i64>) -> Option<Progress> {
        (!self.is_replaying()).then(|| self.ledger.progress_after(batch))
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
        self.timers.get(&half).filter(|timer| timer.phase == Phase::Waiting).map(|timer| timer.due)
    }

    /// When a [`Event::Tick`] is needed, if nothing else happens.
    pub fn next_due(&self) -> Option<Duration> {
        let over = self.lingering.front().map(|(over, _)| *over);
        self.due.first().map(|(due, _)| *due).into_iter().chain(over).min()
    }

    /// Takes an event in; what is to be done is added to `commands`. `now` is monotonic.
    pub fn step(&mut self, now: Duration, event: Event, commands: &mut Vec<Command>) {
        self.let_go(now);
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
            Record::Decision(decision) => Some((decision.origin, decision.reason.clone())),
            _ => None,
        };
        let outcome = self.ledger.apply(record, body, offset, appended_ms);
        if let Some(half) = self.ledger.take_lingering() {
            self.lingering.push_back((now + self.config.copy_window, half));
        }
        match &outcome {
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
        if replay {
            self.ledger.replayed(offset);
        } else {
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

    /// Due times are monotonic from here; of a replayed half, what remains of its waiting time,
    /// never negative and never more than the whole.
    fn opened(&mut self, now: Duration, half: HalfOffset, age: Duration) {
        let Some(open) = self.ledger.open(half) else { return };
        let after = match open.epoch {
            // An operator who reopened it wants an answer now.
            epoch if epoch > Epoch::default() => Duration::ZERO,
            _ => open.half.meta.check_after.unwrap_or(self.config.check_after),
        };
        let due = now + after.saturating_sub(age);
        let (phase, asked_here, failing) = (Phase::Waiting, 0, None);
        let timer = Timer { due, phase, applied: now, age, asked_here, failing };
        self.forget(half);
        self.timers.insert(half, timer);
        self.due.insert((due, half));
    }

    /// Of a replayed attempt, what remains of the interval: else a group that is restarted more
    /// often than that would never ask again.
    fn attempted(
        &mut self,
        now: Duration,
        half: HalfOffset,
        attempts: u32,
        age: Duration,
        replay: bool,
    ) {
        let Some(open) = self.ledger.open(half) else { return };
        let interval = self.config.check_backoff.after(attempts, open.half.meta.id);
        let Some(timer) = self.timers.get_mut(&half) else { return };
        if !replay {
            timer.asked_here += 1;
        }
        timer.failing = None;
        // Another owner's attempt may come while our question is under way: its answer counts.
        if timer.phase != Phase::Asked {
            let exhausted = attempts >= self.config.max_checks;
            self.wait(half, if exhausted { now } else { now + interval.saturating_sub(age) });
        }
    }

    /// Its checks fail: it is asked again after the same intervals, and no attempt is counted. As
    /// above, of a replayed record what remains.
    fn check_failed(&mut self, now: Duration, half: HalfOffset, age: Duration, replay: bool) {
        let Some(open) = self.ledger.open(half) else { return };
        let Some(timer) = self.timers.get_mut(&half) else { return };
        let failing = timer.failing.get_or_insert(Failing { applied: now, age, times: 0 });
        if !replay {
            failing.times = failing.times.saturating_add(1);
        }
        let interval = self.config.check_backoff.after(failing.times, open.half.meta.id);
        if timer.phase != Phase::Asked {
            self.wait(half, now + interval.saturating_sub(age));
        }
    }

    /// A report may be late: it says nothing about a half that is open in another life by now.
    fn append_failed(&mut self, now: Duration, of: HalfRef) {
        let due = now + self.config.retry_delay;
        let current = self.ledger.open(of.half).is_some_and(|open| open.epoch == of.epoch);
        let appending =
            self.timers.get(&of.half).is_some_and(|timer| timer.phase == Phase::Appending);
        if current && appending {
            self.wait(of.half, due);
        }
    }

    fn answered(
        &mut self,
        now: Duration,
        of: HalfRef,
        answer: Answer,
        commands: &mut Vec<Command>,
    ) {
        let current = self
            .ledger
            .open(of.half)
            .filter(|open| open.epoch == of.epoch && open.half.meta.id == of.id);
        let (Some(open), Some(timer)) = (current, self.timers.get_mut(&of.half)) else { return };
        if timer.phase != Phase::Asked {
            return;
        }
        let attempts = open.attempts;
        let no_listener_for = now.saturating_sub(self.owned_since);
        let record = match answer {
            Answer::Commit => decision(of, Verdict::Commit),
            Answer::Rollback => decision(of, Verdict::Rollback),
            Answer::Unknown(reason) => Record::Checked(Checked::unknown(of, attempts, reason)),
            // The log knows already: a record each time would fill it for as long as a database is away.
            Answer::Failed(_) if open.failing_since_ms.is_some() => {
                timer.phase = Phase::Waiting;
                return self.check_failed(now, of.half, Duration::ZERO, false);
            }
            Answer::Failed(reason) => Record::Checked(Checked::failed(of, attempts, reason)),
            Answer::NotAsked(NotAsked::NoListener)
                if no_listener_for >= self.config.no_listener_grace =>
            {
                let reason = format!(
                    "nobody listens for application '{}' and purpose '{}' here, for {} s",
                    open.half.meta.application,
                    open.half.meta.purpose,
                    no_listener_for.as_secs()
                );
                let cause = ParkCause::NoListener;
                Record::Park(Park { of, attempts, cause, reason })
            }
            Answer::NotAsked(_) => {
                let delay = self.config.retry_delay;
                return self.wait(of.half, now + delay);
            }
        };
        self.append(of.half, record, commands);
    }

    fn check_now(&mut self, now: Duration, half: HalfOffset) {
        let Some(half) = self.ledger.open(half).map(|open| open.half.offset) else { return };
        if self.timers.get(&half).is_some_and(|timer| timer.phase == Phase::Waiting) {
            self.wait(half, now);
        }
    }

    /// Asks about what is due, oldest first, within the bound of questions under way.
    fn ask_due(&mut self, now: Duration, commands: &mut Vec<Command>) {
        if self.is_replaying() {
            return;
        }
        while self.batches < self.config.check_batches {
            let mut batch: Vec<Question> = Vec::new();
            let mut bytes = 0;
            while batch.len() < self.config.check_batch && bytes < self.config.check_batch_bytes {
                let Some((due, half)) = self.due.first().copied().filter(|(due, _)| *due <= now)
                else {
                    break;
                };
                self.due.remove(&(due, half));
                bytes += self.question(now, due, half, &mut batch, commands);
            }
            if batch.is_empty() {
                return;
            }
            self.batches += 1;
            commands.push(Command::Ask(batch));
        }
    }

    /// Adds the half to the question, or has it parked; the bytes that it adds.
    fn question(
        &mut self,
        now: Duration,
        due: Duration,
        half: HalfOffset,
        batch: &mut Vec<Question>,
        commands: &mut Vec<Command>,
    ) -> usize {
        let (Some(open), Some(timer)) = (self.ledger.open(half), self.timers.get_mut(&half)) else {
            return 0;
        };
        debug_assert!(timer.phase == Phase::Waiting && timer.due == due, "one due time a half");
        let of = HalfRef { id: open.half.meta.id, half, epoch: open.epoch };
        let age = timer.age + now.saturating_sub(timer.applied);
        let attempts = open.attempts;
        let last = open.last_outcome.as_ref().map_or("", |(_, reason)| reason.as_str());
        let too_old = age >= self.config.max_age;
        let failing_for = |failing: &Failing| failing.age + now.saturating_sub(failing.applied);
        let park = match &timer.failing {
            _ if attempts >= self.config.max_checks => {
                Some((ParkCause::MaxChecks, format!("{attempts} checks gave no answer: {last}")))
            }
            // A database that is away for a day has no half given up on that was young before; but
            // one that can never be asked must not hold the log for ever.
            Some(failing) => {
                let long = failing_for(failing) >= self.config.max_age && failing.times > 0;
                (too_old && long).then(|| {
                    let seconds = failing_for(failing).as_secs();
                    let reason = format!(
                        "open for {} s, asked in vain for {seconds} s: {last}",
                        age.as_secs()
                    );
                    (ParkCause::MaxAge, reason)
                })
            }
            None => (too_old && timer.asked_here > 0)
                .then(|| (ParkCause::MaxAge, format!("open for {} s: {last}", age.as_secs()))),
        };
        match park {
            Some((cause, reason)) => {
                let record = Record::Park(Park { of, attempts, cause, reason });
                self.append(half, record, commands);
                0
            }
            None => {
                timer.phase = Phase::Asked;
                batch.push(Question { of, half: Arc::clone(&open.half), attempts });
                open.half.bytes
            }
        }
    }

    fn append(&mut self, half: HalfOffset, record: Record, commands: &mut Vec<Command>) {
        if let Some(timer) = self.timers.get_mut(&half) {
            timer.phase = Phase::Appending;
            commands.push(Command::Append(record));
        }
    }

    fn wait(&mut self, half: HalfOffset, due: Duration) {
        if let Some(timer) = self.timers.get_mut(&half) {
            self.due.remove(&(timer.due, half));
            timer.due = due;
            timer.phase = Phase::Waiting;
            self.due.insert((due, half));
        }
    }

    fn forget(&mut self, half: HalfOffset) {
        if let Some(timer) = self.timers.remove(&half) {
            self.due.remove(&(timer.due, half));
        }
    }
}

fn decision(of: HalfRef, verdict: Verdict) -> Record {
    let origin = Origin::CheckBack;
    Record::Decision(Decision { of, verdict, origin, operator: None, reason: String::new() })
}

//! Questions about the halves that are due, and what becomes of their answers. It must never change a
//! half's state: an answer, or giving a half up, is a record to append.

use std::sync::Arc;
use std::time::Duration;

use super::timers::{Failing, Phase};
use super::{Answer, Command, CoreConfig, NotAsked, Question, ResolverCore};
use crate::ids::HalfOffset;
use crate::record::{Checked, Decision, HalfRef, Origin, Park, ParkCause, Record, Verdict};

/// How long an owner must have a half before it parks it for want of a listener, however old it is: a
/// service that was down for days may be started with a replica of the former version first.
pub(super) const LEAST_HAD: Duration = Duration::from_secs(300);

impl CoreConfig {
    /// Whether a half that has no listener is given up: its owner has it for so long, and it is so old.
    /// Without the second limit one that no owner keeps for the whole grace would stay for ever.
    fn is_unheard(&self, had_for: Duration, age: Duration) -> bool {
        let grace = self.no_listener_grace;
        had_for >= grace || had_for >= LEAST_HAD && age >= self.oldest_unheard()
    }

    /// The age from which on a half without a listener is not kept for the whole grace.
    pub(super) fn oldest_unheard(&self) -> Duration {
        self.max_age.saturating_add(self.no_listener_grace)
    }
}

impl ResolverCore {
    /// Asks about what is due, oldest first, within the bound of questions under way.
    pub(super) fn ask_due(&mut self, now: Duration, commands: &mut Vec<Command>) {
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
        let age = timer.age(now);
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

    pub(super) fn answered(
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
        let unheard = self.config.is_unheard(timer.had_for(now), timer.age(now));
        let had_for = timer.had_for(now).as_secs();
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
            Answer::NotAsked(NotAsked::NoListener) if unheard => {
                let reason = format!(
                    "nobody listens for application '{}' and purpose '{}' here, for {had_for} s",
                    open.half.meta.application, open.half.meta.purpose
                );
                let cause = ParkCause::NoListener;
                Record::Park(Park { of, attempts, cause, reason })
            }
            Answer::NotAsked(NotAsked::NoPlace | NotAsked::Blocked) => {
                return self.put_off(now, of.half);
            }
            Answer::NotAsked(NotAsked::NoListener | NotAsked::Busy | NotAsked::Unread) => {
                let delay = self.config.retry_delay;
                return self.wait(of.half, now + delay);
            }
        };
        self.append(of.half, record, commands);
    }

    fn append(&mut self, half: HalfOffset, record: Record, commands: &mut Vec<Command>) {
        if let Some(timer) = self.timers.get_mut(&half) {
            timer.phase = Phase::Appending;
            commands.push(Command::Append(record));
        }
    }
}

pub(super) fn decision(of: HalfRef, verdict: Verdict) -> Record {
    let origin = Origin::CheckBack;
    Record::Decision(Decision { of, verdict, origin, operator: None, reason: String::new() })
}

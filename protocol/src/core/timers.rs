//! When each open half is asked about next: what moves its due time, and what is known of its checks.
//! It must never ask, and never give a half up.

use std::time::Duration;

use super::ResolverCore;
use crate::ids::{Epoch, HalfOffset};
use crate::ledger::Open;
use crate::record::HalfRef;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Phase {
    /// Waiting for its due time.
    Waiting,
    /// A question about it is under way.
    Asked,
    /// A record about it is being appended.
    Appending,
}

#[derive(Debug, Clone)]
pub(super) struct Timer {
    pub(super) due: Duration,
    pub(super) phase: Phase,
    /// From when on this owner has it: when the record was applied, of a replayed one the takeover;
    /// and how old the half was then.
    pub(super) applied: Duration,
    pub(super) age: Duration,
    /// Real attempts by this owner.
    pub(super) asked_here: u32,
    /// Its checks fail.
    pub(super) failing: Option<Failing>,
    /// How often it was put off since it was last answered for.
    pub(super) put_off: u32,
}

/// Checks that fail, one after the other.
#[derive(Debug, Clone)]
pub(super) struct Failing {
    /// When this owner applied the record that says so, and how old that was then.
    pub(super) applied: Duration,
    pub(super) age: Duration,
    /// How often this owner has seen them fail.
    pub(super) times: u32,
}

impl Timer {
    /// For how long this owner has the half.
    pub(super) fn had_for(&self, now: Duration) -> Duration {
        now.saturating_sub(self.applied)
    }

    /// How old the half is.
    pub(super) fn age(&self, now: Duration) -> Duration {
        self.age.saturating_add(self.had_for(now))
    }
}

impl ResolverCore {
    /// Due times are monotonic from here; of a replayed half, what remains of its waiting time,
    /// never negative and never more than the whole.
    pub(super) fn opened(&mut self, now: Duration, half: HalfOffset, age: Duration) {
        let Some(open) = self.ledger.open(half) else { return };
        let timer = self.timer(now, open, age);
        self.forget(half);
        self.due.insert((timer.due, half));
        self.timers.insert(half, timer);
    }

    fn timer(&self, now: Duration, open: &Open, age: Duration) -> Timer {
        let after = match open.epoch {
            // An operator who reopened it wants an answer now.
            epoch if epoch > Epoch::default() => Duration::ZERO,
            _ => open.half.meta.check_after.unwrap_or(self.config.check_after),
        };
        let due = now + after.saturating_sub(age);
        let (phase, applied) = (Phase::Waiting, now);
        Timer { due, phase, applied, age, asked_here: 0, failing: None, put_off: 0 }
    }

    /// The timer of a replayed half about which no other record said anything. Its age is that at the
    /// takeover, so it counts from there.
    pub(super) fn timer_of_replayed(&self, open: &Open) -> Timer {
        self.timer(self.owned_since, open, self.age_at_takeover(open.appended_ms))
    }

    /// Gives an open half that is being replayed its timer before the others, if it has none.
    fn set_replayed(&mut self, half: HalfOffset) {
        if self.timers.contains_key(&half) {
            return;
        }
        if let Some(open) = self.ledger.open(half) {
            let timer = self.timer_of_replayed(open);
            self.due.insert((timer.due, half));
            self.timers.insert(half, timer);
        }
    }

    /// All below the stored progress is read: what is open has a timer from now on.
    pub(super) fn replay_ended(&mut self) {
        let mut timers = std::mem::take(&mut self.timers);
        timers.reserve(self.ledger.open_count());
        for open in self.ledger.open_from(HalfOffset(0)) {
            timers.entry(open.half.offset).or_insert_with(|| self.timer_of_replayed(open));
        }
        // At once: one after the other costs several times as much.
        let waiting = timers.iter().filter(|(_, timer)| timer.phase == Phase::Waiting);
        self.due = waiting.map(|(half, timer)| (timer.due, *half)).collect();
        self.timers = timers;
    }

    /// Of a replayed attempt, what remains of the interval: else a group that is restarted more
    /// often than that would never ask again.
    pub(super) fn attempted(
        &mut self,
        now: Duration,
        half: HalfOffset,
        attempts: u32,
        age: Duration,
        replay: bool,
    ) {
        if replay {
            self.set_replayed(half);
        }
        let Some(open) = self.ledger.open(half) else { return };
        let interval = self.config.check_backoff.after(attempts, open.half.meta.id);
        let Some(timer) = self.timers.get_mut(&half) else { return };
        if !replay {
            timer.asked_here += 1;
        }
        (timer.failing, timer.put_off) = (None, 0);
        // Another owner's attempt may come while our question is under way: its answer counts.
        if timer.phase != Phase::Asked {
            let exhausted = attempts >= self.config.max_checks;
            self.wait(half, if exhausted { now } else { now + interval.saturating_sub(age) });
        }
    }

    /// Its checks fail: it is asked again after the same intervals, and no attempt is counted. As
    /// above, of a replayed record what remains.
    pub(super) fn check_failed(
        &mut self,
        now: Duration,
        half: HalfOffset,
        age: Duration,
        replay: bool,
    ) {
        if replay {
            self.set_replayed(half);
        }
        let Some(open) = self.ledger.open(half) else { return };
        let Some(timer) = self.timers.get_mut(&half) else { return };
        let failing = timer.failing.get_or_insert(Failing { applied: now, age, times: 0 });
        if !replay {
            failing.times = failing.times.saturating_add(1);
        }
        let times = failing.times.saturating_add(timer.put_off);
        let interval = self.config.check_backoff.after(times, open.half.meta.id);
        if timer.phase != Phase::Asked {
            self.wait(half, now + interval.saturating_sub(age));
        }
    }

    /// Nobody could ask about it, and that may last: it is tried again after the intervals of one that
    /// fails, but is neither an attempt nor a failure, so that its age does not give it up.
    pub(super) fn put_off(&mut self, now: Duration, half: HalfOffset) {
        let Some(open) = self.ledger.open(half) else { return };
        let Some(timer) = self.timers.get_mut(&half) else { return };
        timer.put_off = timer.put_off.saturating_add(1);
        let failed = timer.failing.as_ref().map_or(0, |failing| failing.times);
        let times = failed.saturating_add(timer.put_off);
        let interval = self.config.check_backoff.after(times, open.half.meta.id);
        self.wait(half, now + interval);
    }

    /// A report may be late: it says nothing about a half that is open in another life by now.
    pub(super) fn append_failed(&mut self, now: Duration, of: HalfRef) {
        let due = now + self.config.retry_delay;
        let current = self.ledger.open(of.half).is_some_and(|open| open.epoch == of.epoch);
        let appending =
            self.timers.get(&of.half).is_some_and(|timer| timer.phase == Phase::Appending);
        if current && appending {
            self.wait(of.half, due);
        }
    }

    pub(super) fn check_now(&mut self, now: Duration, half: HalfOffset) {
        let Some(half) = self.ledger.open(half).map(|open| open.half.offset) else { return };
        if self.is_replaying() {
            self.set_replayed(half);
        }
        if self.timers.get(&half).is_some_and(|timer| timer.phase == Phase::Waiting) {
            self.wait(half, now);
        }
    }

    pub(super) fn wait(&mut self, half: HalfOffset, due: Duration) {
        if let Some(timer) = self.timers.get_mut(&half) {
            self.due.remove(&(timer.due, half));
            timer.due = due;
            timer.phase = Phase::Waiting;
            self.due.insert((due, half));
        }
    }

    pub(super) fn forget(&mut self, half: HalfOffset) {
        if let Some(timer) = self.timers.remove(&half) {
            self.due.remove(&(timer.due, half));
        }
    }
}

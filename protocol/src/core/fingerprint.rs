//! A core as a hash, for whoever explores its states: two that will behave alike have the same.

use std::hash::{Hash, Hasher};
use std::time::Duration;

use super::ResolverCore;
use super::asking::LEAST_HAD;
use super::timers::Timer;

impl ResolverCore {
    /// Feeds everything that later steps depend on, in a canonical order; `now` is the clock that
    /// [`ResolverCore::step`] is given. Times count from it, and what is past a limit is past:
    /// cores that differ only in their clocks have the same fingerprint.
    pub fn fingerprint(&self, now: Duration, into: &mut impl Hasher) {
        let Self {
            config,
            ledger,
            carried_out_below,
            wall_ms,
            owned_since,
            timers,
            due,
            lingering,
            batches,
            stored_below,
        } = self;
        ledger.fingerprint(into);
        (self.is_replaying().then_some(carried_out_below), wall_ms, batches, stored_below)
            .hash(into);
        self.is_replaying().then(|| from(now, *owned_since)).hash(into);
        let mut timers: Vec<_> = timers.iter().collect();
        timers.sort_unstable_by_key(|(half, _)| **half);
        for (half, timer) in timers {
            let Timer { due, phase, applied, age, asked_here, failing, put_off } = timer;
            let had_for = now.saturating_sub(*applied);
            let age = age.saturating_add(had_for);
            let grace = (
                left(config.no_listener_grace, had_for),
                left(LEAST_HAD, had_for),
                left(config.oldest_unheard(), age),
            );
            // Without a limit nothing is left to count down to.
            (config.no_listener_grace < Duration::MAX).then_some(grace).hash(into);
            (half, from(now, *due), phase, left(config.max_age, age), asked_here > &0).hash(into);
            let failing = failing.as_ref().map(|failing| {
                let age = failing.age + now.saturating_sub(failing.applied);
                (left(config.max_age, age), failing.times)
            });
            (failing, put_off).hash(into);
        }
        for (over, half) in lingering {
            (from(now, *over), half).hash(into);
        }
        for (due, half) in due {
            (from(now, *due), half).hash(into);
        }
    }
}

/// A moment, relative to now: positive in the future.
fn from(now: Duration, moment: Duration) -> (Duration, Duration) {
    (moment.saturating_sub(now), now.saturating_sub(moment))
}

/// What is left of a limit; nothing of one that is never reached.
fn left(limit: Duration, passed: Duration) -> Option<Duration> {
    (limit < Duration::MAX).then(|| limit.saturating_sub(passed))
}

//! Pauses between retries: doubling, bounded, jittered.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use halfmsg_db::now;

/// The moment that is so far away from now.
pub(crate) fn after(delay: Duration) -> DateTime<Utc> {
    let delay = TimeDelta::from_std(delay).unwrap_or(TimeDelta::MAX);
    now().checked_add_signed(delay).unwrap_or(DateTime::<Utc>::MAX_UTC)
}

/// The pause before retry number `retry` (from 0): `first` doubled `retry` times, at most
/// `longest`, a quarter less or more by chance.
pub(crate) fn pause(first: Duration, longest: Duration, retry: u32) -> Duration {
    let doubled = 2_u32.checked_pow(retry).and_then(|factor| first.checked_mul(factor));
    let base = doubled.map_or(longest, |pause| pause.min(longest));
    base.mul_f64(jitter())
}

/// From 0.75 to 1.25. The standard library seeds its hash maps at random: no further crate.
fn jitter() -> f64 {
    let random = RandomState::new().build_hasher().finish() % 1000;
    0.75 + f64::from(u32::try_from(random).unwrap_or_default()) / 2000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_up_to_the_longest() {
        let (first, longest) = (Duration::from_millis(100), Duration::from_secs(1));
        for (retry, expected) in [(0, 100), (1, 200), (3, 800), (4, 1000), (40, 1000), (1000, 1000)]
        {
            let millis = pause(first, longest, retry).as_millis();
            assert!((expected * 3 / 4..=expected * 5 / 4).contains(&millis), "{retry}: {millis}");
        }
    }
}

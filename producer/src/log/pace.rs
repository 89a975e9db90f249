//! How dense the records come: whether one that waits has company.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// So many records ...
const MANY: u64 = 2_048;
/// ... within this are dense: 100 in a millisecond, however unevenly. At half that rate a request for each
/// few is no burden.
const WITHIN: Duration = Duration::from_millis(20);

/// Once they are, it ends when so many take this long: who waits for company sends less by that.
const NO_LONGER: Duration = Duration::from_millis(40);

/// Asked by callers for each record; no lock.
pub(super) struct Pace {
    origin: Instant,
    records: AtomicU64,
    /// When the last [`MANY`] were full, in microseconds since the origin.
    full_at: AtomicU64,
    is_dense: AtomicBool,
}

impl Pace {
    pub(super) fn new() -> Self {
        Self {
            origin: Instant::now(),
            records: AtomicU64::new(0),
            full_at: AtomicU64::new(0),
            is_dense: AtomicBool::new(false),
        }
    }

    /// At which all that comes is dense, for some time.
    #[cfg(test)]
    pub(super) fn dense() -> Self {
        let pace = Self::new();
        pace.full_at.store(u64::MAX, Ordering::Relaxed);
        pace.is_dense.store(true, Ordering::Relaxed);
        pace
    }

    /// Counts a record. True if the last [`MANY`] were dense and the next have not fallen behind since.
    pub(super) fn another(&self) -> bool {
        self.another_at(self.origin.elapsed())
    }

    fn another_at(&self, now: Duration) -> bool {
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let (now, no_longer) = (micros(now), micros(NO_LONGER));
        let number = self.records.fetch_add(1, Ordering::Relaxed) + 1;
        if number.is_multiple_of(MANY) {
            let took = now.saturating_sub(self.full_at.swap(now, Ordering::Relaxed));
            let was_dense = self.is_dense.load(Ordering::Relaxed);
            let most = if was_dense { no_longer } else { micros(WITHIN) };
            self.is_dense.store(took <= most, Ordering::Relaxed);
        }
        self.is_dense.load(Ordering::Relaxed)
            && now.saturating_sub(self.full_at.load(Ordering::Relaxed)) <= no_longer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of so many records, one each so many microseconds from the time on, how many are dense; and when
    /// the last one came.
    fn dense(pace: &Pace, from: Duration, records: u32, each: Duration) -> (usize, Duration) {
        let times: Vec<Duration> = (1..=records).map(|number| from + number * each).collect();
        let dense = times.iter().filter(|at| pace.another_at(**at)).count();
        (dense, from + records * each)
    }

    #[test]
    fn what_comes_slowly_never_waits() {
        let pace = Pace::new();
        assert_eq!(dense(&pace, Duration::ZERO, 10_000, Duration::from_micros(10)).0, 0);
        assert_eq!(dense(&pace, Duration::from_secs(1), 10_000, Duration::from_millis(20)).0, 0);
    }

    #[test]
    fn many_at_once_wait_from_the_second_look_on() {
        const EACH: Duration = Duration::from_micros(5);
        let pace = Pace::new();
        let many = u32::try_from(MANY).expect("small");
        let (first, now) = dense(&pace, Duration::from_secs(1), 2 * many - 1, EACH);
        assert_eq!(first, 0, "the first are slow, as nothing came before");
        assert_eq!(dense(&pace, now, 5_000, EACH).0, 5_000);
    }

    #[test]
    fn what_waits_for_company_may_come_half_as_densely() {
        let pace = Pace::new();
        let (_, now) = dense(&pace, Duration::ZERO, 10_000, Duration::from_micros(5));
        let (still, now) = dense(&pace, now, 10_000, Duration::from_micros(15));
        assert_eq!(still, 10_000);
        let many = usize::try_from(MANY).expect("small");
        let (slow, _) = dense(&pace, now, 50_000, Duration::from_micros(25));
        assert!(slow < 2 * many, "{slow}");
    }

    #[test]
    fn a_lone_one_behind_many_does_not_wait() {
        let pace = Pace::new();
        let (of_many, now) = dense(&pace, Duration::ZERO, 10_000, Duration::from_micros(5));
        assert!(of_many > 1_000, "{of_many}");
        assert!(!pace.another_at(now + 3 * WITHIN));
    }
}

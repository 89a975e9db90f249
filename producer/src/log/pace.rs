//! How dense the records come: whether one that waits has company.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// So many records ...
const MANY: u64 = 2_048;
/// ... within this are dense: 100 in a millisecond, however unevenly. At half that rate a request for each
/// few is no burden, and some hundred callers that wait for each other's broker would only wait longer.
const WITHIN: Duration = Duration::from_millis(20);

/// Taken by every record on its way to the client; no lock.
pub(super) struct Pace {
    origin: Instant,
    records: AtomicU64,
    /// When the last [`MANY`] were full, in microseconds since the origin.
    full_at: AtomicU64,
    is_dense: AtomicBool,
}

impl Pace {
    pub(super) fn new() -> Self {
        let (records, full_at) = Default::default();
        Self { origin: Instant::now(), records, full_at, is_dense: AtomicBool::new(false) }
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
    pub(super) fn is_dense(&self) -> bool {
        self.is_dense_at(self.origin.elapsed())
    }

    fn is_dense_at(&self, now: Duration) -> bool {
        let now = u64::try_from(now.as_micros()).unwrap_or(u64::MAX);
        let within = WITHIN.as_micros() as u64;
        let number = self.records.fetch_add(1, Ordering::Relaxed) + 1;
        if number.is_multiple_of(MANY) {
            let before = self.full_at.swap(now, Ordering::Relaxed);
            self.is_dense.store(now.saturating_sub(before) <= within, Ordering::Relaxed);
        }
        self.is_dense.load(Ordering::Relaxed)
            && now.saturating_sub(self.full_at.load(Ordering::Relaxed)) <= 2 * within
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of so many records, one each so many microseconds from the time on, how many are dense; and when
    /// the last one came.
    fn dense(pace: &Pace, from: Duration, records: u32, each: Duration) -> (usize, Duration) {
        let times: Vec<Duration> = (1..=records).map(|number| from + number * each).collect();
        let dense = times.iter().filter(|at| pace.is_dense_at(**at)).count();
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
    fn a_lone_one_behind_many_does_not_wait() {
        let pace = Pace::new();
        let (of_many, now) = dense(&pace, Duration::ZERO, 10_000, Duration::from_micros(5));
        assert!(of_many > 1_000, "{of_many}");
        assert!(!pace.is_dense_at(now + 3 * WITHIN));
    }
}

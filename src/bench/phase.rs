//! The transactions of one phase of a run, and when each one's commit was called.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Bytes at the front of a payload: the transaction's number, and room for the bare loop's mark.
pub(crate) const STAMP_BYTES: usize = 16;
/// How often a source that keeps a rate looks which transactions are due.
pub(crate) const PACE_TICK: Duration = Duration::from_millis(1);

/// Numbers `first .. first + count`.
pub(crate) struct Phase {
    first: u64,
    /// Nanoseconds from the start to the commit's call; 0: not called.
    called: Box<[AtomicU64]>,
    started: Instant,
    rate: Option<u64>,
}

impl Phase {
    /// At full speed, or with a rate per second.
    pub(crate) fn new(first: u64, count: u64, rate: Option<u64>) -> Self {
        let called = (0..count).map(|_| AtomicU64::new(0)).collect();
        Self { first, called, started: Instant::now(), rate }
    }

    pub(crate) fn count(&self) -> u64 {
        self.called.len() as u64
    }

    /// The number of the transaction at an index.
    pub(crate) fn number(&self, index: u64) -> u64 {
        self.first + index
    }

    /// The number after the last.
    pub(crate) fn end(&self) -> u64 {
        self.first + self.count()
    }

    pub(crate) fn started(&self) -> Instant {
        self.started
    }

    /// How many may have begun by now.
    pub(crate) fn due(&self) -> u64 {
        let Some(rate) = self.rate else { return self.count() };
        let due = self.started.elapsed().as_secs_f64() * rate as f64;
        (due as u64).saturating_add(1).min(self.count())
    }

    /// Whether it keeps a rate.
    pub(crate) fn is_paced(&self) -> bool {
        self.rate.is_some()
    }

    /// The commit of this transaction is being called.
    pub(crate) fn committing(&self, number: u64) {
        if let Some(slot) = self.slot(number) {
            slot.store(self.now().max(1), Ordering::Release);
        }
    }

    /// A reader sees it: the time since its commit's call, the first time that it is seen.
    pub(crate) fn seen(&self, number: u64) -> Option<Duration> {
        let called = self.slot(number)?.swap(0, Ordering::AcqRel);
        (called > 0).then(|| Duration::from_nanos(self.now().saturating_sub(called)))
    }

    fn slot(&self, number: u64) -> Option<&AtomicU64> {
        let index = number.checked_sub(self.first)?;
        usize::try_from(index).ok().and_then(|index| self.called.get(index))
    }

    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

/// A payload with the transaction's number in front.
pub(crate) fn payload(number: u64, bytes: usize) -> Vec<u8> {
    let mut payload = vec![b'x'; bytes.max(STAMP_BYTES)];
    payload[..8].copy_from_slice(&number.to_le_bytes());
    payload
}

/// The number in a payload.
pub(crate) fn number(payload: &[u8]) -> Option<u64> {
    payload.first_chunk::<8>().map(|bytes| u64::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_is_seen_once_and_only_after_its_commit_was_called() {
        let phase = Phase::new(10, 2, None);
        assert_eq!(phase.seen(10), None);
        phase.committing(10);
        assert!(phase.seen(10).is_some());
        assert_eq!(phase.seen(10), None);
        assert_eq!(phase.seen(9), None);
        assert_eq!(phase.seen(12), None);
    }

    #[test]
    fn a_payload_carries_its_number() {
        assert_eq!(number(&payload(77, 256)), Some(77));
        assert_eq!(payload(77, 256).len(), 256);
        assert_eq!(number(b"short"), None);
    }

    #[test]
    fn full_speed_has_everything_due_and_a_rate_does_not() {
        assert_eq!(Phase::new(0, 100, None).due(), 100);
        assert!(Phase::new(0, 100, Some(1)).due() < 100);
    }
}

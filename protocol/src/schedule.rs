//! When the next check of a half message is due: exponential backoff with jitter.

use std::time::Duration;

use crate::ids::TransactionId;

/// The intervals between checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// After the first attempt.
    pub initial: Duration,
    /// The longest; the interval doubles up to it.
    pub max: Duration,
}

impl Backoff {
    /// The interval after the attempt of this number (the first is 1): doubled per attempt, at
    /// most `max`, then shortened by up to a fifth so that halves stored together spread out.
    ///
    /// The jitter is a function of the message and the attempt: the same on every replica and
    /// in every replay.
    pub fn after(&self, attempt: u32, id: TransactionId) -> Duration {
        let doublings = attempt.saturating_sub(1).min(31);
        let full = self.initial.saturating_mul(1 << doublings).min(self.max);
        let (_, random) = id.as_uuid().as_u64_pair();
        let mixed = (random ^ u64::from(attempt)).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
        let fifth = u32::try_from(mixed % 200).unwrap_or(0);
        full - full.saturating_mul(fifth) / 1_000
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u64) -> TransactionId {
        TransactionId::from_uuid(uuid::Uuid::from_u64_pair(0, n))
    }

    const BACKOFF: Backoff =
        Backoff { initial: Duration::from_secs(10), max: Duration::from_secs(300) };

    #[test]
    fn doubles_up_to_the_maximum_within_a_fifth() {
        for (attempt, full) in [(1, 10), (2, 20), (3, 40), (6, 300), (15, 300), (u32::MAX, 300)] {
            for n in 0..50 {
                let after = BACKOFF.after(attempt, id(n));
                assert!(after <= Duration::from_secs(full), "{attempt}: {after:?}");
                assert!(after >= Duration::from_secs(full) * 4 / 5, "{attempt}: {after:?}");
            }
        }
    }

    #[test]
    fn is_the_same_in_every_replay_and_differs_between_messages() {
        assert_eq!(BACKOFF.after(3, id(7)), BACKOFF.after(3, id(7)));
        let distinct: std::collections::HashSet<_> =
            (0..50).map(|n| BACKOFF.after(3, id(n))).collect();
        assert!(distinct.len() > 25, "{}", distinct.len());
    }
}

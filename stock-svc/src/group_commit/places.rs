//! The connections of the pool that deductions may take: never so many that the consumers, the reads and
//! the health would have to wait for a product that somebody holds.

use tokio::sync::Semaphore;

/// Connections that are left to others: one for each consumer's batch, one for their retries, one for
/// everything else. Of a pool that is smaller than twice as much, half.
pub(super) const RESERVED: usize = 4;
/// Connections that may wait for a lock for [`LOCK_TIMEOUT`](crate::store::LOCK_TIMEOUT), at most: one for
/// each product that somebody else holds, and for each order that somebody else works on.
const PATIENT: usize = 3;
/// Deductions at once that are asked for alone because they failed together.
const ALONE: usize = 2;

/// Each permit is a connection, taken before it and given back behind it.
#[derive(Debug)]
pub(super) struct Places {
    /// Deductions that share no transaction: all that is there, in place of `short` and `patient`.
    pub(super) any: Semaphore,
    /// What waits for a lock for a moment at most.
    pub(super) short: Semaphore,
    /// What waits for a lock for as long as one order would. A small pool has none.
    pub(super) patient: Semaphore,
    /// Whether there is one of the patient.
    pub(super) has_patient: bool,
    /// Not a connection: who asks alone queues up for one behind this, so that groups get theirs.
    pub(super) alone: Semaphore,
    /// Nor this: one looks whether a product is free again, however many are held.
    pub(super) looking: Semaphore,
}

impl Places {
    /// Of a pool with so many connections.
    pub(super) fn of(connections: u32) -> Self {
        let (short, patient) = shares(usize::try_from(connections).unwrap_or(usize::MAX));
        Self {
            any: Semaphore::new(short + patient),
            short: Semaphore::new(short),
            patient: Semaphore::new(patient),
            has_patient: patient > 0,
            alone: Semaphore::new(ALONE),
            looking: Semaphore::new(1),
        }
    }
}

/// How many of these connections are for short waits, and how many for long ones.
fn shares(connections: usize) -> (usize, usize) {
    let reserved = RESERVED.min(connections / 2);
    let share = connections.saturating_sub(reserved).clamp(1, Semaphore::MAX_PERMITS);
    let patient = PATIENT.min((share - 1) / 2);
    (share - patient, patient)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_is_never_used_up() {
        assert_eq!(shares(10), (4, 2));
        assert_eq!(shares(20), (13, 3));
        assert_eq!(shares(2), (1, 0));
        for connections in 2..=1_000 {
            let (short, patient) = shares(connections);
            let left = connections - short - patient;
            assert!(left >= RESERVED.min(connections / 2), "{connections}: {short}, {patient}");
            // Waiting must not keep those from going on who need not wait.
            assert!(short > patient, "{connections}: {short}, {patient}");
        }
    }
}

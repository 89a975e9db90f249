//! What can be made to fail.

/// A failure at one step. It happens once, at the next step that it is about.
///
/// [`Fault::CheckFirst`] and [`Fault::CrashDuringLocal`] are about the local transaction that
/// `send_in_transaction` runs. Behind `begin` it is the test that runs it: there, let time pass with
/// `advance`, or drop the transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// The half message is not stored; the local transaction does not run.
    PrepareFails,
    /// The half message is stored, but its acknowledgement is lost: the caller hears an error, the
    /// local transaction does not run, and the check-back has to find that out.
    PrepareUnacknowledged,
    /// The process dies when the half message is stored, before the local transaction.
    CrashAfterHalf,
    /// The local transaction stalls before its first statement until its check-back is due and has
    /// been answered, and then goes on. A listener without a fence is found out here.
    CheckFirst,
    /// The process dies when the local transaction waits for the so many-th time (from 1): for a
    /// connection, a lock, a statement, its commit. If it ends with fewer waits nothing happens, and
    /// the fault is used up: what answers at once is not waited for, so that the number of waits may
    /// differ from run to run. Go through some numbers, and assert what holds either way.
    CrashDuringLocal {
        /// The number of the wait.
        waits: u32,
    },
    /// The process dies when the local transaction has ended, before its decision is stored.
    CrashAfterLocal,
    /// The decision is not stored; the process lives on.
    DecisionLost,
    /// Behind the decision stands another one that contradicts it.
    ContradictingDecision,
    /// The message reaches its topic twice, as when the process dies between a delivery and its
    /// progress in at-least-once mode.
    DeliveredTwice,
}

impl Fault {
    /// One of each, for tests that go through all of them.
    pub const ALL: [Self; 9] = [
        Self::PrepareFails,
        Self::PrepareUnacknowledged,
        Self::CrashAfterHalf,
        Self::CheckFirst,
        Self::CrashDuringLocal { waits: 1 },
        Self::CrashAfterLocal,
        Self::DecisionLost,
        Self::ContradictingDecision,
        Self::DeliveredTwice,
    ];
}

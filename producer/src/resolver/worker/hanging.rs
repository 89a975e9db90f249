//! Ends what the broker has forgotten to end. It must never end what a former owner may still commit:
//! it is called once that owner is fenced.
//!
//! The former owner's transactions are over then, so that nothing can be pending; but a broker that
//! knew no leader for a partition of one of them, as while it starts, may take it for deleted and leave
//! it without its end (KAFKA-20734; Apache Kafka 4.3.0 to 4.4.0). Progress that hangs so can be read by
//! nobody, and no partition of the replica could be taken over any more.
//!
//! Whether it was committed cannot be known. It is given up: nothing is lost, and what was delivered
//! with it is delivered again. Whoever dies in between leaves a transaction that the next owner ends by
//! fencing it, and finds the rest as it was, or ended.

use super::Stuck;

#[cfg(test)]
mod tests;

/// What is asked of the brokers, in the name of a partition's transactional id. Each call may be the
/// last that its owner lives to make.
pub(super) trait Pending {
    /// Whether the progress can be read.
    fn is_readable(&self) -> bool;
    /// Whether it can be read by who does not wait for transactions: then it belongs to one that has
    /// not ended.
    fn is_pending(&self) -> bool;
    fn begin(&self) -> Result<(), Stuck>;
    /// Names the progress in the transaction, which the broker refuses to end else.
    fn name_progress(&self) -> Result<(), Stuck>;
    /// Ends all that is pending of this transactional id, whatever was named.
    fn end_all(&self) -> Result<(), Stuck>;
}

/// Why it still hangs.
pub(super) enum Hanging {
    /// The progress cannot be read by anybody.
    Unreadable,
    /// No transaction of this id could end it.
    NotOurs,
    Stuck(Stuck),
}

impl From<Stuck> for Hanging {
    fn from(stuck: Stuck) -> Self {
        Self::Stuck(stuck)
    }
}

/// True if something hung, and was given up.
pub(super) fn end_what_hangs(of: &impl Pending) -> Result<bool, Hanging> {
    if of.is_readable() {
        return Ok(false);
    }
    if !of.is_pending() {
        return Err(Hanging::Unreadable);
    }
    // A coordinator that was only slow, or loading, can be read by everybody now.
    if of.is_readable() {
        return Ok(false);
    }
    of.begin()?;
    let named = of.name_progress();
    of.end_all()?;
    named?;
    if of.is_readable() { Ok(true) } else { Err(Hanging::NotOurs) }
}

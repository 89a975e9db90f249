//! The identities that cross a crate's border: never bare integers, never bare strings.

use std::fmt;
use std::str::FromStr;

use uuid::Uuid;

/// Identifies one half message for its whole life, and its delivered record. A UUID version 7.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TransactionId(Uuid);

impl TransactionId {
    /// A new identity.
    ///
    /// The crate that owns this type has no clock, so the caller brings the UUID.
    pub const fn from_uuid(uuid: Uuid) -> Self {
        Self(uuid)
    }

    /// The UUID behind it.
    pub const fn as_uuid(&self) -> Uuid {
        self.0
    }

    /// Its 16 bytes, as they stand in a record.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }

    /// When it was made, in milliseconds since the epoch and by the clock of who made it, as a UUID of
    /// version 7 tells; nothing if the user gave one of another version.
    pub fn made_ms(&self) -> Option<i64> {
        let is_timed = self.0.get_version_num() == 7;
        is_timed.then(|| i64::try_from(self.0.as_u128() >> 80).ok()).flatten()
    }

    /// From the 16 bytes of a record.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(Uuid::from_bytes(bytes))
    }
}

impl fmt::Display for TransactionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for TransactionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A text that is no UUID.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{0}' is not a transaction id: a UUID like 01985f2e-7c1a-7f00-8000-000000000000 is expected"
)]
pub struct ParseTransactionIdError(String);

impl FromStr for TransactionId {
    type Err = ParseTransactionIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Uuid::from_str(text).map(Self).map_err(|_| ParseTransactionIdError(text.to_owned()))
    }
}

/// The offset of a HALF record in its store partition. It names the half message within the
/// partition, also after the message was parked and reopened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HalfOffset(pub i64);

impl fmt::Display for HalfOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How often the message was reopened after it had been parked; the first life is epoch 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Epoch(pub u32);

impl Epoch {
    /// The epoch that a REOPEN of this one begins.
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_version_7_tells_when_it_was_made() {
        let made = |text: &str| text.parse::<TransactionId>().expect("a UUID").made_ms();
        assert_eq!(made("01985f2e-7c1a-7f00-8000-000000000000"), Some(0x0198_5f2e_7c1a));
        assert_eq!(made("01985f2e-7c1a-4f00-8000-000000000000"), None);
        assert_eq!(made("00000000-0000-0000-0000-000000000000"), None);
    }
}

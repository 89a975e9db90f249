//! The wall clock: for what people see and what is stored, never for deadlines.

#[cfg(feature = "testkit")]
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// How wrong the clock is said to be.
#[cfg(feature = "testkit")]
static SHIFT_MS: AtomicI64 = AtomicI64::new(0);

/// Milliseconds since the epoch.
pub(crate) fn wall_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let ms = i64::try_from(since.as_millis()).unwrap_or(i64::MAX);
    #[cfg(feature = "testkit")]
    let ms = ms.saturating_add(SHIFT_MS.load(Ordering::Relaxed));
    ms
}

#[cfg(feature = "testkit")]
pub(crate) fn shift(ms: i64) {
    SHIFT_MS.store(ms, Ordering::Relaxed);
}

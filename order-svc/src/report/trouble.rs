//! What keeps the report from being kept, in words for `/health/ready`. The service is ready
//! all the same: nothing else depends on the report.

use std::sync::{Arc, Mutex, PoisonError};

/// Cheap to clone; clones tell the same.
#[derive(Debug, Clone, Default)]
pub struct Trouble(Arc<Mutex<[Option<String>; 4]>>);

/// What does not go on.
#[derive(Debug, Clone, Copy)]
pub(super) enum Part {
    /// A generation cannot begin.
    Beginning,
    /// The topics cannot be read.
    Reading,
    /// They are read, and something is missing: the broker, a right, the database.
    Consuming,
    /// What former generations have left stays.
    Cleaning,
}

impl Trouble {
    /// All that is wrong now.
    pub fn warnings(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().flatten().cloned().collect()
    }

    pub(super) fn is(&self, part: Part, error: &dyn std::fmt::Display) {
        let what = match part {
            Part::Beginning => "the product report waits for its database",
            Part::Reading => "the product report is not kept, and is tried again",
            Part::Consuming => "the product report falls behind",
            Part::Cleaning => "what former generations of the product report have left stays",
        };
        if self.set(part, Some(format!("{what}: {error}"))) {
            tracing::warn!(%error, "{what}");
        }
    }

    pub(super) fn is_over(&self, part: Part) {
        self.set(part, None);
    }

    /// True if it was told otherwise, or not at all.
    fn set(&self, part: Part, told: Option<String>) -> bool {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(before) = all.get_mut(part as usize) else { return false };
        let is_new = *before != told;
        *before = told;
        is_new
    }
}

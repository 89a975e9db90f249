//! What operators see and do. A decision by hand asks the listener first: agreement is recorded,
//! contradiction is refused, and only what nobody can tell may be forced.
//!
//! # Layout
//! - `desk`: the one implementation, for a replica and for [`crate::OperatorClient`]; `settle`:
//!   what it changes
//! - `body`: bodies that memory had no room for
//! - `view`: half messages as they are shown
//! - `error`: why nothing was done

use std::sync::Arc;

use halfmsg_protocol::Verdict;

mod body;
pub(crate) mod desk;
mod error;
mod settle;
#[cfg(test)]
mod tests;
pub(crate) mod view;

pub use error::AdminError;
pub use view::{ForeignView, HalfDetail, HalfView, HistoryEntry, MissingPartition, Page};

use crate::TransactionId;
use crate::producer::TransactionProducer;
pub use crate::resolver::query::HalfState;
use crate::snapshot::SnapshotLimits;
use desk::Desk;

/// The most halves in one page.
pub const MAX_PAGE: usize = 1_000;

/// Which halves are to be listed.
#[derive(Debug, Clone, Default)]
pub struct HalfFilter {
    /// Only these; both if unset.
    pub state: Option<HalfState>,
    /// At most so many, up to [`MAX_PAGE`].
    pub limit: usize,
    /// Where the last page ended.
    pub cursor: Option<String>,
}

/// Which copies of foreign records are to be listed.
#[derive(Debug, Clone, Default)]
pub struct ForeignFilter {
    /// At most so many, up to [`MAX_PAGE`].
    pub limit: usize,
    /// Where the last page ended.
    pub cursor: Option<String>,
}

/// Who decides by hand, and why.
#[derive(Debug, Clone)]
pub struct OperatorRequest {
    /// The person's name, kept in the journal.
    pub operator: String,
    /// Why, kept in the journal; must not be empty.
    pub reason: String,
    /// Decide although nobody can tell what became of the local transaction.
    pub force: bool,
}

/// The operator's side of a producer. Cheap to clone.
///
/// It covers every partition of the store: those that this replica owns from memory, the others by
/// a look at the brokers, which takes as long as reading what is between their low-water marks and
/// their ends.
#[derive(Clone)]
pub struct Admin {
    views: Desk,
    /// Its looks have places of their own.
    acts: Desk,
}

impl Admin {
    pub(crate) fn new(producer: TransactionProducer) -> Self {
        let inner = &producer.inner;
        let views = Desk {
            config: Arc::new(inner.config.clone()),
            log: Arc::clone(&inner.log),
            bodies: Arc::clone(&inner.bodies),
            looks: Arc::clone(&inner.looks),
            limits: SnapshotLimits::default(),
            report: None,
            replica: Some(producer.clone()),
        };
        let acts = Desk { looks: Arc::clone(&inner.acts), ..views.clone() };
        Self { views, acts }
    }

    /// Open and parked halves of the whole group, in the order of partition and offset. A partition
    /// that nobody leads now, or that stands still, is named ([`Page::missing_partitions`]), and the
    /// others are listed.
    ///
    /// # Errors
    /// [`AdminError::Invalid`] for a cursor that is none, [`AdminError::Unreachable`],
    /// [`AdminError::Incomplete`].
    pub async fn list(&self, filter: HalfFilter) -> Result<Page<HalfView>, AdminError> {
        self.views.list(filter).await
    }

    /// Copies of records of the store that are none of ours, in the order of partition and offset of the
    /// record. Nobody has them in memory: it reads the whole parked topic.
    ///
    /// # Errors
    /// As for [`Admin::list`].
    pub async fn foreign(&self, filter: ForeignFilter) -> Result<Page<ForeignView>, AdminError> {
        self.views.foreign(filter).await
    }

    /// One half with what is known of its life; recently closed ones too.
    ///
    /// # Errors
    /// [`AdminError::Unreachable`], [`AdminError::Incomplete`].
    pub async fn get(&self, id: TransactionId) -> Result<Option<HalfDetail>, AdminError> {
        self.views.get(id).await
    }

    /// Commits: the message is delivered.
    ///
    /// # Errors
    /// [`AdminError`]; see its variants.
    pub async fn commit(
        &self,
        id: TransactionId,
        request: OperatorRequest,
    ) -> Result<HalfView, AdminError> {
        self.acts.decide(id, Verdict::Commit, request).await
    }

    /// Rolls back: the message is dropped.
    ///
    /// # Errors
    /// [`AdminError`]; see its variants.
    pub async fn rollback(
        &self,
        id: TransactionId,
        request: OperatorRequest,
    ) -> Result<HalfView, AdminError> {
        self.acts.decide(id, Verdict::Rollback, request).await
    }

    /// Asks the listener of an open half now, instead of when it is due, whichever replica owns its
    /// partition. The view that is returned has the answer.
    ///
    /// # Errors
    /// [`AdminError`]; see its variants.
    pub async fn check(
        &self,
        id: TransactionId,
        request: OperatorRequest,
    ) -> Result<HalfView, AdminError> {
        self.acts.check(id, request).await
    }

    /// Opens a parked message again; it is checked at once.
    ///
    /// # Errors
    /// [`AdminError`]; see its variants.
    pub async fn resume(
        &self,
        id: TransactionId,
        request: OperatorRequest,
    ) -> Result<HalfView, AdminError> {
        self.acts.resume(id, request).await
    }
}

impl OperatorRequest {
    pub(crate) fn validate(&self) -> Result<(), AdminError> {
        let text = |text: &str| !text.trim().is_empty() && text.len() <= 1_000;
        if !text(&self.operator) {
            return Err(AdminError::Invalid("operator: a name of 1 to 1,000 bytes is needed"));
        }
        if !text(&self.reason) {
            return Err(AdminError::Invalid("reason: a text of 1 to 1,000 bytes is needed"));
        }
        Ok(())
    }
}

//! The routes. Each module owns those of one resource.
//!
//! # Layout
//! - [`products`]: products at `/products`, their receipts, `/stock`
//! - [`deductions`]: what orders take, `/deductions`
//! - [`movements`]: the audit trail, `/movements`
//! - [`dead_letters`]: messages that were given up on, `/dead-letters`

pub mod dead_letters;
pub mod deductions;
pub mod movements;
pub mod products;

use axum::Router;
use halfmsg_service_kit::{AdminToken, ApiError};
use serde::Serialize;

use crate::group_commit::GroupCommit;
use crate::letters::Letters;
use crate::metrics::StockMetrics;
use crate::store::StockStore;

/// Entries of a list, if the client does not say.
pub const DEFAULT_LIMIT: u64 = 50;
/// The most entries of a list.
pub const MAX_LIMIT: u64 = 500;

/// What the routes work on.
#[derive(Clone)]
pub struct Api {
    /// The database.
    pub store: StockStore,
    /// What takes from it.
    pub deductions: GroupCommit,
    /// The dead letters of the consumers.
    pub dead_letters: Letters,
    /// The operators' token.
    pub token: AdminToken,
    /// Whether X-Fault is obeyed.
    pub faults: bool,
    /// What is counted.
    pub metrics: StockMetrics,
}

/// All routes of stock-svc, without the frame.
pub fn routes(api: Api) -> Router {
    Router::new()
        .merge(products::routes())
        .merge(deductions::routes())
        .merge(movements::routes())
        .merge(dead_letters::routes())
        .with_state(api)
}

/// A list, as it is shown.
#[derive(Debug, Serialize)]
pub struct List<T> {
    /// The entries.
    pub items: Vec<T>,
    /// For the query parameter `cursor` of the next page; null on the last.
    pub next_cursor: Option<String>,
}

impl<T> List<T> {
    /// A page out of up to `limit` + 1 entries; the one too many says that there is a next page.
    fn page(mut items: Vec<T>, limit: u64, cursor: impl Fn(&T) -> String) -> Self {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let more = items.len() > limit;
        items.truncate(limit);
        let next_cursor = if more { items.last().map(cursor) } else { None };
        Self { items, next_cursor }
    }
}

/// The limit of a list, within its bounds.
fn limit(asked: Option<u64>) -> Result<u64, ApiError> {
    match asked {
        None => Ok(DEFAULT_LIMIT),
        Some(limit) if (1..=MAX_LIMIT).contains(&limit) => Ok(limit),
        Some(limit) => {
            Err(ApiError::invalid(format!("limit must be 1 to {MAX_LIMIT}, not {limit}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_page_has_no_cursor() {
        let page = |count: u64| List::page((0..count).collect(), 3, u64::to_string);
        assert_eq!(page(3).next_cursor, None);
        let page = page(4);
        assert_eq!((page.items.len(), page.next_cursor.as_deref()), (3, Some("2")));
    }

    #[test]
    fn limits_have_bounds() {
        assert_eq!(limit(None).unwrap(), 50);
        assert_eq!(limit(Some(500)).unwrap(), 500);
        assert!(limit(Some(0)).is_err() && limit(Some(501)).is_err());
    }
}

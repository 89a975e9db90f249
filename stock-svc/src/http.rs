//! The routes. Each module owns those of one resource.
//!
//! # Layout
//! - [`products`]: products at `/products`, their receipts, `/stock`
//! - [`deductions`]: what orders take, `/deductions`
//! - [`movements`]: the audit trail, `/movements`
//!
//! Dead letters, `/dead-letters`, are as in every service: `halfmsg_service_kit::dead_letters`.

pub mod deductions;
pub mod movements;
pub mod products;

use halfmsg_service_kit::openapi::{self, OpenApiRouter};
use halfmsg_service_kit::{AdminToken, ApiError, Letters, dead_letters, list};

use crate::group_commit::GroupCommit;
use crate::metrics::StockMetrics;
use crate::store::StockStore;

const ABOUT: &str = "Products, their stock, what orders take of it and give back.";

/// In the order in which they are shown.
const TAGS: &[&str] = &["products", "stock", "deductions", "dead letters", "service"];

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
pub fn routes(api: Api) -> OpenApiRouter {
    let letters = dead_letters::routes(api.dead_letters.clone(), api.token.clone());
    OpenApiRouter::with_openapi(openapi::document("halfmsg stock-svc", ABOUT, TAGS))
        .merge(products::routes().with_state(api.clone()))
        .merge(deductions::routes().with_state(api.clone()))
        .merge(movements::routes().with_state(api))
        .merge(letters)
}

/// The limit of a list, within its bounds.
fn limit(asked: Option<u64>) -> Result<u64, ApiError> {
    list::limit(asked, DEFAULT_LIMIT, MAX_LIMIT)
}

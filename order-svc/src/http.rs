//! The HTTP interface.
//!
//! # Layout
//! - [`orders`]: `POST /orders`, `GET /orders`, `GET /orders/{id}`, `POST /orders/{id}/cancel`
//! - [`report`]: the product report
//! - [`trace`]: the trace that a request belongs to
//! - [`halves`]: half messages, open and parked, and settling them by hand

pub mod halves;
pub mod orders;
pub mod report;
pub mod trace;

use std::sync::Arc;

use axum::Router;
use halfmsg_producer::Admin;
use halfmsg_service_kit::{AdminToken, ApiError};

use crate::cancel::Canceller;
use crate::console::{self, Desk};
use crate::events::{self, Hub};
use crate::place::Placer;
use crate::report::store::ReportStore;
use crate::store::OrderStore;

/// What the handlers work with. Cheap to clone.
#[derive(Clone)]
pub struct Api {
    /// Places orders.
    pub placer: Placer,
    /// Cancels orders.
    pub canceller: Arc<Canceller>,
    /// Keeps the product report.
    pub report: ReportStore,
    /// Reads orders.
    pub store: OrderStore,
    /// Half messages.
    pub admin: Admin,
    /// The operators' token.
    pub token: AdminToken,
    /// Whether X-Fault is obeyed.
    pub faults: bool,
    /// What happens.
    pub events: Hub,
    /// What the console asks of stock-svc.
    pub desk: Desk,
}

/// The routes, without the frame around them.
pub fn routes(api: Api) -> Router {
    orders::routes()
        .merge(halves::routes())
        .merge(report::routes())
        .merge(events::routes())
        .merge(console::routes())
        .with_state(api)
}

/// The number of items in a page: `default` if unset.
fn page_limit(limit: Option<u64>, default: u64, max: u64) -> Result<u64, ApiError> {
    match limit {
        None => Ok(default),
        Some(limit) if (1..=max).contains(&limit) => Ok(limit),
        Some(limit) => Err(ApiError::invalid(format!("limit must be 1 to {max}, not {limit}"))),
    }
}

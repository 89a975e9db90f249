//! The HTTP interface.
//!
//! # Layout
//! - [`orders`]: `POST /orders`, `GET /orders`, `GET /orders/{id}`, `POST /orders/{id}/cancel`
//! - [`report`]: the product report
//! - [`trace`]: the trace that a request belongs to
//! - [`halves`]: half messages, open and parked, and settling them by hand
//!
//! Dead letters, `/dead-letters`, are as in every service: `halfmsg_service_kit::dead_letters`.

pub mod halves;
pub mod orders;
pub mod report;
pub mod trace;

use std::sync::Arc;

use halfmsg_producer::Admin;
use halfmsg_service_kit::openapi::{self, OpenApiRouter};
use halfmsg_service_kit::{AdminToken, Letters, dead_letters};

use crate::cancel::Canceller;
use crate::console::{self, Desk};
use crate::events::{self, Hub};
use crate::place::Placer;
use crate::report::store::ReportStore;
use crate::store::OrderStore;

const ABOUT: &str = "Orders, the half messages that keep them and the stock in agreement, and the \
    means to settle what is left open. The console at `/` uses this interface.";

/// In the order in which they are shown.
const TAGS: &[&str] =
    &["orders", "half messages", "dead letters", "report", "events", "service", "console"];

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
    /// What the consumers have given up on.
    pub dead_letters: Letters,
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
pub fn routes(api: Api) -> OpenApiRouter {
    let letters = dead_letters::routes(api.dead_letters.clone(), api.token.clone());
    OpenApiRouter::with_openapi(openapi::document("halfmsg order-svc", ABOUT, TAGS))
        .merge(orders::routes().with_state(api.clone()))
        .merge(halves::routes().with_state(api.clone()))
        .merge(report::routes().with_state(api.clone()))
        .merge(events::routes().with_state(api.clone()))
        .merge(console::routes().with_state(api))
        .merge(letters)
}

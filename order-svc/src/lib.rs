//! Orders: the local transaction of flow A, and the listener that answers check-backs.
//!
//! An order deducts stock at another service and then stores itself. A half message, stored
//! before, gives the stock back unless the order stands. The order's row is the fence between the
//! local transaction and the check-back: whoever writes it first has decided.
//!
//! # Layout
//! - [`settings`]: every setting and its check
//! - [`service`]: start, serve, stop
//! - [`http`]: the routes
//! - [`place`]: one request for an order, from its key to its answer; [`answer`] follows the row
//! - [`listener`]: the local transaction and the check-back's answers; [`stock`] is its client
//! - [`decision`]: what a row says about its half message; nothing else decides
//! - [`store`]: everything that is said to the database
//! - [`model`], [`draft`], [`reason`], [`payload`]: an order, one that is being placed, why it is
//!   void, its half message
//! - [`fault`]: induced failures
//! - [`metrics`], [`housekeeping`]: what is counted, what is forgotten

pub mod answer;
pub mod decision;
pub mod draft;
pub mod fault;
pub mod housekeeping;
pub mod http;
pub mod listener;
pub mod metrics;
pub mod model;
pub mod payload;
pub mod place;
pub mod reason;
pub mod service;
pub mod settings;
pub mod stock;
pub mod store;

#[cfg(test)]
mod tests;

pub use service::{Service, main, run};
pub use settings::Settings;

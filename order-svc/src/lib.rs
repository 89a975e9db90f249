//! Orders: the local transactions of three flows, and the listeners that answer check-backs.
//!
//! Flow A deducts stock at another service and then stores the order. A half message, stored
//! before, gives the stock back unless the order stands. Flow B stores the order first; its half
//! message asks for the stock, and the answer confirms or rejects it. Flow C cancels. The order's
//! row is the fence between the local transaction and the check-back of the first two: whoever
//! writes it first has decided; a cancellation, which writes no row of its own, has the fence table.
//!
//! # Layout
//! - [`settings`]: every setting and its check
//! - [`service`]: start, serve, stop
//! - [`http`]: the routes
//! - [`place`]: one request for an order, from its key to its answer; [`answer`] follows the row
//! - [`listener`]: flow A's local transaction; [`saga`]: flow B's; [`cancel`]: flow C's;
//!   [`checks`]: the check-back's answers from the rows; [`stock`]: the client of stock-svc
//! - [`answers`]: what stock-svc answers; [`report`]: the product report
//! - [`decision`]: what a row says about its half message; nothing else decides
//! - [`store`]: everything that is said to the database
//! - [`model`], [`draft`], [`reason`], [`payload`]: an order, one that is being placed, why it is
//!   void, its messages
//! - [`events`]: what happens, as it happens, for whoever watches
//! - [`console`]: the page at `/` and what it needs beyond the interface
//! - [`fault`]: induced failures
//! - [`metrics`], [`housekeeping`]: what is counted, what is forgotten

pub mod answer;
pub mod answers;
pub mod cancel;
pub mod checks;
pub mod console;
pub mod decision;
pub mod draft;
pub mod events;
pub mod fault;
pub mod housekeeping;
pub mod http;
pub mod listener;
pub mod metrics;
pub mod model;
pub mod payload;
pub mod place;
pub mod reason;
pub mod report;
pub mod saga;
pub mod service;
pub mod settings;
pub mod stock;
pub mod store;

#[cfg(test)]
mod tests;

pub use service::{Service, main, run};
pub use settings::Settings;

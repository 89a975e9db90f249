//! Tests that need a database, a stub of stock-svc or a broker.
//!
//! They run on SQLite; with `HALFMSG_TEST_POSTGRES` (an address whose user may create databases)
//! on PostgreSQL, each in a database of its own.

mod cancelling;
mod contention;
mod dying;
mod dying_flows;
mod fence;
mod idempotency;
mod listing;
mod logging;
mod placing;
mod refusals;
mod report_cleaning;
mod report_reading;
mod saga;
mod support;

//! Tests that need a database or a broker.
//!
//! They run on SQLite; with `HALFMSG_TEST_POSTGRES` (an address whose user may create databases)
//! on PostgreSQL, each in a database of its own.

mod barrier;
mod dying;
mod http;
mod logging;
mod service;
mod support;

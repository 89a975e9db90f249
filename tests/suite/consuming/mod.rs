//! The consumer crate by itself: its own handlers, on the tier's broker and database.
//!
//! # Layout
//! - [`ground`]: topic, database and consumers of a case; [`handler`]: a handler with a rule
//! - [`delivering`]: one effect each, isolation, concurrency, pause, retention
//! - [`retrying`]: levels, restarts, replicas, order of keys, dead letters
//! - [`replying`]: replies through crashes
//! - [`killing`]: real processes that are killed

pub(crate) mod delivering;
pub(crate) mod ground;
pub(crate) mod handler;
pub(crate) mod killing;
pub(crate) mod replying;
pub(crate) mod retrying;

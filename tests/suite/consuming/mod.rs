//! The consumer crate by itself: its own handlers, on the tier's broker and database.
//!
//! # Layout
//! - [`ground`]: topic, database and consumers of a case; [`handler`]: a handler with a rule
//! - [`delivering`]: one effect each, isolation, concurrency, pause, retention
//! - [`confirming`]: a coordinator that confirms no offsets
//! - [`sharing`]: what partitions, transactions and locks of others do to a consumer
//! - [`retrying`]: levels, restarts, replicas, order of keys, dead letters
//! - [`replaying`]: replays of dead letters that end in their COMMIT, or that are discarded
//! - [`replying`]: replies through crashes
//! - [`killing`]: real processes that are killed

pub(crate) mod confirming;
pub(crate) mod delivering;
pub(crate) mod ground;
pub(crate) mod handler;
pub(crate) mod killing;
pub(crate) mod replaying;
pub(crate) mod replying;
pub(crate) mod retrying;
pub(crate) mod sharing;

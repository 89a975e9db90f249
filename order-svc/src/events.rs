//! What happens, as it happens, for whoever watches: `GET /events`, server-sent events.
//!
//! A view, and never a source of truth: nothing here is stored, and nothing waits for it. Events of
//! an earlier process are gone, and partitions that another replica owns are told by that replica;
//! the lists say what is.
//!
//! # Layout
//! - `event`: one event and its form on the wire
//! - `hub`: takes events in from the producer and the store, keeps the last of them
//! - `stream`: `GET /events`: replay, heartbeats, slow clients

mod event;
mod hub;
mod stream;

pub use hub::Hub;
pub(crate) use stream::routes;

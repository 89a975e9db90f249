//! What happens, as it happens, for whoever watches: `GET /events`, server-sent events.
//!
//! A view, and never a source of truth: nothing here is stored, and nothing waits for it. Events of
//! an earlier process are gone, and what another replica does is told by that replica: of a half
//! message, storing it, its local transaction and the check right after it by the one that prepared
//! it, the rest by the owner of its partition. The lists say what is.
//!
//! # Layout
//! - `data`: what the events say, and how the document describes it
//! - `event`: one event and its form on the wire
//! - `hub`: takes events in from the producer and the store, keeps the last of them
//! - `stream`: `GET /events`: replay, heartbeats, slow clients

mod data;
mod event;
mod hub;
mod stream;

pub use hub::Hub;
pub(crate) use stream::routes;

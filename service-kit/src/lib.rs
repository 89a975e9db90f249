//! What both services share, so that they refuse, report, start and stop alike.
//!
//! It knows nothing of orders, of stock or of half messages.
//!
//! # Layout
//! - [`problem`]: [`ApiError`], the one error type that becomes an answer (RFC 9457)
//! - [`extract`]: [`Json`], [`Path`], [`Query`], whose rejections are `ApiError`s
//! - [`validate`]: the limits of section 7 of the design (skus, quantities, items, texts)
//! - [`auth`]: the operators' token, [`AdminToken`]
//! - [`db`]: connections, write transactions, what a database error means
//! - [`settings`]: the settings that both services have
//! - [`delivery`]: the settings of their consumers
//! - [`event`]: CloudEvents in Kafka's headers
//! - [`mistakes`]: [`Mistakes`], which collects all that is wrong with them
//! - [`telemetry`]: the log; [`export`]: traces, to a collector
//! - [`shutdown`]: the token that ends a service, and [`serve`]
//! - [`process`]: what a service's `main` does: the log, the signals, the exit
//! - [`openapi`]: what the documents of both services have in common; shown at `/docs`
//! - [`letters`], [`dead_letters`]: the dead letters of a service's consumers, and their routes
//! - [`list`]: lists as they are shown; [`page`]: files of web pages
//! - [`http`]: the frame around a service's routes: health, metrics, limits, panics
//! - [`task`]: runs a handler's work to its end even if the client hangs up

pub mod auth;
pub mod dead_letters;
pub mod delivery;
mod docs;
pub mod event;
pub mod export;
pub mod extract;
pub mod http;
pub mod letters;
pub mod list;
pub mod mistakes;
pub mod openapi;
pub mod page;
pub mod problem;
pub mod process;
pub mod settings;
pub mod shutdown;
pub mod task;
pub mod telemetry;
pub mod validate;

pub use halfmsg_db as db;
pub use halfmsg_kafka::KafkaConfig;

pub use auth::AdminToken;
pub use delivery::{Delivery, DeliverySettings};
pub use event::{Event, EventError, EventType};
pub use extract::{Json, Path, Query};
pub use http::Frame;
pub use letters::Letters;
pub use list::List;
pub use mistakes::Mistakes;
pub use problem::ApiError;
pub use settings::{Common, CommonSettings, ServiceDefaults};
pub use shutdown::serve;

//! End to end: both services as processes of their own, asked over HTTP, killed with signals.
//!
//! # Layout
//! - [`faults`]: every induced failure, CONFORMANCE 40 to 45
//! - [`saga`]: flow B, CONFORMANCE 39 and 40; [`cancelling`]: flow C
//! - [`crashes`]: CONFORMANCE 22, order-svc dies at every step
//! - [`replicas`]: CONFORMANCE 23, two order-svc on one database
//! - [`soak`]: 500 orders, seven kills, and what must be conserved
//! - [`bad_input`]: what is refused, and that nothing comes of it
//! - [`contract`]: the OpenAPI documents, held against the services
//! - [`repeats`]: requests with an Idempotency-Key, repeated
//! - [`operators`]: half messages as people see and settle them
//! - [`cli`], [`cli_acts`]: the same from the command line, with the service down
//! - [`dead_letters`]: the same for what stock-svc has given up on
//! - [`outages`]: Kafka away, PostgreSQL away
//! - [`watching`]: the event stream; [`console`]: the page, in a `browser`
//! - [`launcher`]: `halfmsg` without a command; [`documented`]: the commands of README.md and docs/
//! - [`measured`]: metrics, dashboard, alert rules; [`traced`]: spans at a `collector`; [`logged`]: lines
//! - [`shop`]: the two services of a test; [`ground`]: the broker and databases below them
//! - [`books`]: what databases and topics say, and whether they agree;
//!   [`events`]: whether what is sent is what is documented
//! - `process`, `terminal`, `http`, `ports`, `proxy`, `balancer`, `lock`: what these are made of

pub(crate) mod bad_input;
mod balancer;
mod books;
mod browser;
pub(crate) mod cancelling;
pub(crate) mod cli;
pub(crate) mod cli_acts;
mod collector;
pub(crate) mod console;
pub(crate) mod contract;
pub(crate) mod crashes;
pub(crate) mod dead_letters;
pub(crate) mod documented;
mod events;
pub(crate) mod faults;
mod ground;
mod http;
pub(crate) mod launcher;
mod lock;
pub(crate) mod logged;
pub(crate) mod measured;
pub(crate) mod operators;
pub(crate) mod outages;
mod ports;
mod process;
pub(crate) mod proxy;
pub(crate) mod repeats;
pub(crate) mod replicas;
pub(crate) mod saga;
mod shop;
pub(crate) mod soak;
mod terminal;
pub(crate) mod traced;
pub(crate) mod watching;

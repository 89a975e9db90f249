//! The page at `/`: what happens to orders and half messages, and the means to settle it.
//!
//! It uses the interface that everybody has, and beside it only views under `/api` that no client
//! of the service should build on. It must work without the internet, and show nothing that the
//! interface would refuse.
//!
//! # Layout
//! - `assets`: the page itself, embedded, and the headers that protect it
//! - `books`: `GET /api/stock`: both sides of the books, and whether they agree
//! - `proxy`: what the page needs of stock-svc, from this origin

mod assets;
mod books;
mod proxy;

use halfmsg_service_kit::openapi::OpenApiRouter;

use crate::http::Api;
pub use books::Desk;

pub(crate) fn routes() -> OpenApiRouter<Api> {
    assets::routes().merge(books::routes()).merge(proxy::routes())
}

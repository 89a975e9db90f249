//! Files of web pages that are embedded in the program, and the headers that protect them.

use axum::body::Bytes;
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
    X_FRAME_OPTIONS,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::response::{IntoResponse, Response};

/// Only files of this origin, nothing inline, and no page around this one.
pub const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
    connect-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; \
    frame-ancestors 'none'";
/// Asked again at each visit: a page of another version than its service would be confusing.
const CACHING: &str = "no-cache";

/// A page.
pub const HTML: &str = "text/html; charset=utf-8";
/// A style sheet.
pub const CSS: &str = "text/css; charset=utf-8";
/// A script.
pub const SCRIPT: &str = "text/javascript; charset=utf-8";
/// A picture.
pub const SVG: &str = "image/svg+xml";

/// The answer with a file of this type, under this policy.
pub fn file(kind: &'static str, policy: &'static str, content: impl Into<Bytes>) -> Response {
    let headers: [(HeaderName, &'static str); 6] = [
        (CONTENT_TYPE, kind),
        (CACHE_CONTROL, CACHING),
        (CONTENT_SECURITY_POLICY, policy),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (X_FRAME_OPTIONS, "DENY"),
        (REFERRER_POLICY, "no-referrer"),
    ];
    let headers = headers.map(|(name, value)| (name, HeaderValue::from_static(value)));
    (HeaderMap::from_iter(headers), content.into()).into_response()
}

//! The trace that a request belongs to (W3C Trace Context, `traceparent`): carried to the message,
//! so that whoever consumes it can go on with the trace.

use axum::http::HeaderMap;
use halfmsg_traces::context;

/// The header's name, in HTTP and in Kafka.
pub const HEADER: &str = context::TRACEPARENT;

/// The header if it is well-formed; else nothing: a broken trace is no reason to refuse an order.
pub(crate) fn parent(headers: &HeaderMap) -> Option<String> {
    let text = headers.get(HEADER)?.to_str().ok()?;
    context::parse(text).map(|_| text.to_owned())
}

//! The span of a request, by OpenTelemetry's conventions for HTTP. Handlers find its context where
//! they find a caller's: in the header `traceparent`.

use std::future::Future;

use axum::extract::Request;
use axum::http::HeaderValue;
use axum::response::Response;
use halfmsg_traces::opentelemetry::KeyValue;
use halfmsg_traces::opentelemetry::trace::{Span as _, SpanBuilder, SpanKind};
use halfmsg_traces::{Span, begin as begin_span, context, failed, is_on};

/// Nothing if nobody takes spans, or for what only probes and scrapers ask.
pub(super) fn begin(request: &mut Request, method: &str, route: &str) -> Option<Span> {
    if !is_on() || route.starts_with("/health") || route == "/metrics" {
        return None;
    }
    let header = request.headers().get(context::TRACEPARENT);
    let parent = header.and_then(|header| context::parse(header.to_str().ok()?));
    let path = request.uri().path().to_owned();
    let span = SpanBuilder::from_name(format!("{method} {route}"))
        .with_kind(SpanKind::Server)
        .with_attributes([
            KeyValue::new("http.request.method", method.to_owned()),
            KeyValue::new("http.route", route.to_owned()),
            KeyValue::new("url.scheme", "http"),
            KeyValue::new("url.path", path),
        ]);
    let span = begin_span(span, parent.as_ref());
    if let Ok(own) = HeaderValue::from_str(&context::format(span.span_context())) {
        request.headers_mut().insert(context::TRACEPARENT, own);
    }
    Some(span)
}

/// Answers in the span.
pub(super) async fn answer(span: &mut Span, work: impl Future<Output = Response>) -> Response {
    let own = span.span_context().clone();
    let response = context::within(&own, work).await;
    let status = response.status();
    span.set_attribute(KeyValue::new("http.response.status_code", i64::from(status.as_u16())));
    if status.is_server_error() {
        failed(span, "server_error", status.as_str());
    }
    response
}

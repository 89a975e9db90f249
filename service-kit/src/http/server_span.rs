//! The span of a request, by OpenTelemetry's conventions for HTTP. Handlers find its context where
//! they find a caller's: in the header `traceparent`.

use std::future::Future;

use axum::extract::Request;
use axum::http::HeaderValue;
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

/// Works in the span.
pub(super) fn within<F: Future>(span: &Span, work: F) -> impl Future<Output = F::Output> + use<F> {
    context::within(span.span_context(), work)
}

/// The request was answered with this status, or its caller went away before.
pub(super) fn end(span: &mut Span, status: Option<u16>) {
    let Some(status) = status else {
        return failed(span, "caller_gone", "the caller went away before the answer");
    };
    span.set_attribute(KeyValue::new("http.response.status_code", i64::from(status)));
    if status >= 500 {
        failed(span, "server_error", &status.to_string());
    }
}

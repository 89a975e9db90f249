//! Spans of half messages: which there are, what they are called, how their context travels in
//! messages and requests. It must never decide where spans go: that is the exporter's business,
//! which a program installs (`opentelemetry::global::set_tracer_provider`) and then tells with
//! [`switch_on`]. Until then a place where a span could begin costs one relaxed load.
//!
//! # Layout
//! - this file: the switch, and beginning a span
//! - [`context`]: W3C Trace Context (`traceparent`) in headers, and the current span of a task
//! - [`messaging`]: names and attributes by OpenTelemetry's conventions for messaging

pub mod context;
pub mod messaging;

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use opentelemetry::Context;
use opentelemetry::global::BoxedTracer;
use opentelemetry::trace::{Span as _, SpanBuilder, SpanContext, TraceContextExt, Tracer};

pub use opentelemetry;
pub use opentelemetry::global::BoxedSpan as Span;

/// What spans say who made them.
const SCOPE: &str = "halfmsg";

static ON: AtomicBool = AtomicBool::new(false);

/// Spans are made from now on. Call it once the tracer provider is installed: the one that is found
/// by the first span is kept.
pub fn switch_on() {
    ON.store(true, Ordering::Release);
}

/// Whether spans are made at all.
#[inline]
pub fn is_on() -> bool {
    ON.load(Ordering::Relaxed)
}

/// Begins a span; without a parent, of a trace of its own. It ends when it is dropped, or by
/// [`opentelemetry::trace::Span::end`].
///
/// Ask [`is_on`] first, so that nothing is put together for nobody.
pub fn begin(span: SpanBuilder, parent: Option<&SpanContext>) -> Span {
    static TRACER: OnceLock<BoxedTracer> = OnceLock::new();
    let tracer = TRACER.get_or_init(|| opentelemetry::global::tracer(SCOPE));
    let context = match parent {
        Some(parent) => Context::new().with_remote_span_context(parent.clone()),
        None => Context::new(),
    };
    tracer.build_with_context(span, &context)
}

/// Marks a span as failed: the class of the error, which has few values, and what it said.
pub fn failed(span: &mut Span, class: &'static str, what: &str) {
    span.set_attribute(opentelemetry::KeyValue::new("error.type", class));
    span.set_status(opentelemetry::trace::Status::error(what.to_owned()));
}

//! A collector of traces, in the test's own process: it takes OTLP over HTTP and keeps the spans.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1 as otlp;
use prost::Message;

use crate::suite::until;

/// A span as it was exported.
#[derive(Debug, Clone)]
pub(crate) struct Span {
    pub(crate) service: String,
    pub(crate) name: String,
    pub(crate) kind: otlp::span::SpanKind,
    pub(crate) trace_id: String,
    pub(crate) span_id: String,
    pub(crate) parent_id: String,
    /// The traces and spans that it links to.
    pub(crate) links: Vec<(String, String)>,
    pub(crate) is_failed: bool,
    attributes: HashMap<String, String>,
}

impl Span {
    /// An attribute as text; of one that is missing, nothing.
    pub(crate) fn attribute(&self, name: &str) -> &str {
        self.attributes.get(name).map_or("", String::as_str)
    }
}

type Spans = Arc<Mutex<Vec<Span>>>;

/// The running collector; it ends with the test's runtime.
pub(crate) struct Collector {
    /// For `OTEL_EXPORTER_OTLP_ENDPOINT`.
    pub(crate) url: String,
    spans: Spans,
}

impl Collector {
    #[expect(clippy::disallowed_methods, reason = "routes of a test are in no document")]
    pub(crate) async fn start() -> Self {
        let spans = Spans::default();
        let router = Router::new().route("/v1/traces", post(take)).with_state(Arc::clone(&spans));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a loopback port");
        let url = format!("http://{}", listener.local_addr().expect("its address"));
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { url, spans }
    }

    /// All spans so far.
    pub(crate) fn spans(&self) -> Vec<Span> {
        self.spans.lock().expect("unpoisoned").clone()
    }

    /// Waits until the trace has spans of all these services and names, and gives its spans.
    pub(crate) async fn trace(
        &self,
        id: &str,
        within: Duration,
        wanted: &[(&str, &str)],
    ) -> Vec<Span> {
        until(within, "the spans of a trace", async || {
            let all = self.spans();
            let found: Vec<Span> = all.into_iter().filter(|span| span.trace_id == id).collect();
            let known: Vec<_> =
                found.iter().map(|span| (span.service.as_str(), span.name.as_str())).collect();
            let missing: Vec<_> = wanted.iter().filter(|span| !known.contains(span)).collect();
            if missing.is_empty() {
                return Ok(found);
            }
            Err(format!("{known:?}, not {missing:?}"))
        })
        .await
    }
}

async fn take(
    State(spans): State<Spans>,
    body: Bytes,
) -> (StatusCode, [(header::HeaderName, &'static str); 1]) {
    let kind = [(header::CONTENT_TYPE, "application/x-protobuf")];
    let Ok(request) = ExportTraceServiceRequest::decode(body) else {
        return (StatusCode::BAD_REQUEST, kind);
    };
    let mut kept = spans.lock().expect("unpoisoned");
    for resource_spans in request.resource_spans {
        let resource = resource_spans.resource.map(|resource| attributes(resource.attributes));
        let service = resource.and_then(|mut all| all.remove("service.name")).unwrap_or_default();
        let exported = resource_spans.scope_spans.into_iter().flat_map(|scope| scope.spans);
        kept.extend(exported.map(|span| read(&service, span)));
    }
    // An empty answer is the message without any field: all is taken.
    (StatusCode::OK, kind)
}

fn read(service: &str, span: otlp::Span) -> Span {
    let failed = otlp::status::StatusCode::Error;
    let link = |link: otlp::span::Link| (hex(&link.trace_id), hex(&link.span_id));
    Span {
        service: service.to_owned(),
        kind: span.kind(),
        trace_id: hex(&span.trace_id),
        span_id: hex(&span.span_id),
        parent_id: hex(&span.parent_span_id),
        is_failed: span.status.as_ref().is_some_and(|status| status.code() == failed),
        links: span.links.into_iter().map(link).collect(),
        attributes: attributes(span.attributes),
        name: span.name,
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn attributes(all: Vec<KeyValue>) -> HashMap<String, String> {
    let text = |value: Option<AnyValue>| match value.and_then(|value| value.value) {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        other => format!("{other:?}"),
    };
    all.into_iter().map(|pair| (pair.key, text(pair.value))).collect()
}

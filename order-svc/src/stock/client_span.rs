//! The span of a request to stock-svc, by OpenTelemetry's conventions for HTTP: stock-svc goes on
//! below it.

use halfmsg_traces::opentelemetry::KeyValue;
use halfmsg_traces::opentelemetry::trace::{Span as _, SpanBuilder, SpanKind};
use halfmsg_traces::{begin, context, failed};
use reqwest::{Method, RequestBuilder, Response, Url};

/// Sends the request; in a span if whoever asks is in one.
pub(super) async fn send(
    request: RequestBuilder,
    method: Method,
    url: &Url,
) -> Result<Response, reqwest::Error> {
    let Some(parent) = context::current() else { return request.send().await };
    let span = SpanBuilder::from_name(format!("{method} {}", url.path()))
        .with_kind(SpanKind::Client)
        .with_attributes([
            KeyValue::new("http.request.method", method.to_string()),
            KeyValue::new("url.full", url.to_string()),
            KeyValue::new("server.address", url.host_str().unwrap_or_default().to_owned()),
            KeyValue::new("server.port", i64::from(url.port_or_known_default().unwrap_or(80))),
        ]);
    let mut span = begin(span, Some(&parent));
    let request = request.header(context::TRACEPARENT, context::format(span.span_context()));
    let answer = request.send().await;
    match &answer {
        Ok(answer) => {
            let status = i64::from(answer.status().as_u16());
            span.set_attribute(KeyValue::new("http.response.status_code", status));
            if answer.status().is_client_error() || answer.status().is_server_error() {
                failed(&mut span, "status", answer.status().as_str());
            }
        }
        Err(error) if error.is_timeout() => failed(&mut span, "timeout", "no answer in time"),
        Err(error) if error.is_connect() => failed(&mut span, "connect", "no connection"),
        Err(_) => failed(&mut span, "exchange", "the exchange broke off"),
    }
    answer
}

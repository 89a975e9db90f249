//! The context of a span, as it travels.

use std::future::Future;

use bytes::Bytes;
use opentelemetry::Context;
use opentelemetry::trace::{
    FutureExt, SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState,
};

/// The header's name, in HTTP and in Kafka (W3C Trace Context).
pub const TRACEPARENT: &str = "traceparent";
/// Of version 00; a longer one of a newer version is not understood here.
const LENGTH: usize = 55;

/// Reads a `traceparent` if it is well-formed; a broken trace is no reason to refuse anything.
pub fn parse(text: &str) -> Option<SpanContext> {
    let lower_hex = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f' | b'-');
    if text.len() != LENGTH || !text.bytes().all(lower_hex) {
        return None;
    }
    let mut parts = text.split('-');
    let (version, trace, span, flags) =
        (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    if version != "00" || (trace.len(), span.len(), flags.len()) != (32, 16, 2) {
        return None;
    }
    let context = SpanContext::new(
        TraceId::from_hex(trace).ok()?,
        SpanId::from_hex(span).ok()?,
        TraceFlags::new(u8::from_str_radix(flags, 16).ok()?) & TraceFlags::SAMPLED,
        true,
        TraceState::NONE,
    );
    context.is_valid().then_some(context)
}

/// The `traceparent` of a span.
pub fn format(context: &SpanContext) -> String {
    let (trace, span) = (context.trace_id(), context.span_id());
    let flags = (context.trace_flags() & TraceFlags::SAMPLED).to_u8();
    format!("00-{trace}-{span}-{flags:02x}")
}

/// The context that a message carries.
pub fn of_headers(headers: &[(String, Option<Bytes>)]) -> Option<SpanContext> {
    let mut named = headers.iter().filter(|(name, _)| name == TRACEPARENT);
    let value = named.find_map(|(_, value)| value.as_deref())?;
    parse(std::str::from_utf8(value).ok()?)
}

/// Makes a message carry this context, in place of what it carried.
pub fn put_into(headers: &mut Vec<(String, Option<Bytes>)>, context: &SpanContext) {
    headers.retain(|(name, _)| name != TRACEPARENT);
    headers.push((TRACEPARENT.to_owned(), Some(Bytes::from(format(context)))));
}

/// The span in which this task works, if there is one.
pub fn current() -> Option<SpanContext> {
    if !crate::is_on() {
        return None;
    }
    let context = Context::current().span().span_context().clone();
    context.is_valid().then_some(context)
}

/// Lets a future work in this span: [`current`] is its context meanwhile.
pub fn within<F: Future>(
    context: &SpanContext,
    work: F,
) -> impl Future<Output = F::Output> + use<F> {
    work.with_context(Context::new().with_remote_span_context(context.clone()))
}

/// Lets work that goes on in a task of its own stay in the span of the task that begins it.
pub fn carried<F: Future>(work: F) -> impl Future<Output = F::Output> + use<F> {
    let context = current();
    async move {
        match context {
            Some(context) => within(&context, work).await,
            None => work.await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn what_is_well_formed_comes_back_and_nothing_else_is_taken() {
        assert_eq!(parse(GOOD).map(|context| format(&context)).as_deref(), Some(GOOD));
        for wrong in [
            "",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0é",
            "00-0af7651916cd43dd8448eb211c80319cb7ad6b7169203331--01",
        ] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_message_carries_one_context() {
        let own = |name: &str, value: &'static str| {
            (name.to_owned(), Some(Bytes::from_static(value.as_bytes())))
        };
        let mut headers = vec![own(TRACEPARENT, "nonsense"), own("a", "b")];
        assert_eq!(of_headers(&headers), None);
        let context = parse(GOOD).expect("a context");
        put_into(&mut headers, &context);
        assert_eq!(of_headers(&headers), Some(context));
        assert_eq!(headers, [own("a", "b"), own(TRACEPARENT, GOOD)]);
    }
}

//! The trace that a request belongs to (W3C Trace Context, `traceparent`): carried to the message,
//! so that whoever consumes it can go on with the trace.

use axum::http::HeaderMap;

/// The header's name, in HTTP and in Kafka.
pub const HEADER: &str = "traceparent";
/// Of version 00; a longer one of a newer version is not understood here.
const LENGTH: usize = 55;

/// The header if it is well-formed; else nothing: a broken trace is no reason to refuse an order.
pub(crate) fn parent(headers: &HeaderMap) -> Option<String> {
    let text = headers.get(HEADER)?.to_str().ok()?;
    is_valid(text).then(|| text.to_owned())
}

/// `00-<32 hex digits>-<16 hex digits>-<2 hex digits>`, lower case, neither id all zeros.
fn is_valid(text: &str) -> bool {
    let hex = |part: &str, length| {
        part.len() == length && part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    };
    let id = |part: &str, length| hex(part, length) && part.bytes().any(|b| b != b'0');
    let mut parts = text.split('-');
    let (version, trace, span, flags) = (parts.next(), parts.next(), parts.next(), parts.next());
    text.len() == LENGTH
        && version == Some("00")
        && trace.is_some_and(|part| id(part, 32))
        && span.is_some_and(|part| id(part, 16))
        && flags.is_some_and(|part| hex(part, 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_what_is_well_formed_and_nothing_else() {
        let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        assert!(is_valid(good));
        for wrong in [
            "",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0é",
        ] {
            assert!(!is_valid(wrong), "{wrong}");
        }
    }
}

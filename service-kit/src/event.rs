//! CloudEvents 1.0 in Kafka's binary mode: the event is the payload, what it is stands in headers.
//!
//! A type's name ends in its major version, as in `halfmsg.order.created.v1`. Within a version only
//! optional fields are added, which older readers pass over; anything else is a new version, which
//! older readers refuse by name instead of misreading it.

use chrono::{DateTime, SecondsFormat, Utc};
use uuid::Uuid;

/// The header that says what an event is.
pub const TYPE_HEADER: &str = "ce_type";

/// A kind of event, in the newest major version that this program knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventType {
    /// Without its version.
    pub name: &'static str,
    /// The version.
    pub major: u32,
}

/// One event, all but its payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event<'a> {
    /// What it is.
    pub kind: EventType,
    /// Who says so: a URI reference.
    pub source: &'a str,
    /// Unique within the source, and the same when it is delivered again.
    pub id: Uuid,
    /// What it is about.
    pub subject: Uuid,
    /// When it happened.
    pub time: DateTime<Utc>,
}

/// Why an event is not read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EventError {
    /// Of a later major version.
    #[error(
        "the event is a {found}, and this version of the service reads {known} at most: upgrade it, \
         then replay the message"
    )]
    Newer {
        /// What it is.
        found: String,
        /// What is known.
        known: EventType,
    },
    /// Of another kind.
    #[error("the event is a '{found}', and {known} is expected in this topic")]
    Other {
        /// What it is.
        found: String,
        /// What is known.
        known: EventType,
    },
}

impl std::fmt::Display for EventType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.v{}", self.name, self.major)
    }
}

impl EventType {
    /// Whether a message whose header [`TYPE_HEADER`] is this can be read as this kind. One
    /// without the header is taken for it: it was sent before events had one, or by hand.
    ///
    /// # Errors
    /// [`EventError`].
    pub fn accept(self, header: Option<&[u8]>) -> Result<(), EventError> {
        let Some(header) = header else { return Ok(()) };
        let found = String::from_utf8_lossy(header).into_owned();
        let version = found.strip_prefix(self.name).and_then(|rest| rest.strip_prefix(".v"));
        match version.and_then(|version| version.parse::<u32>().ok()) {
            Some(major) if (1..=self.major).contains(&major) => Ok(()),
            Some(major) if major > self.major => Err(EventError::Newer { found, known: self }),
            _ => Err(EventError::Other { found, known: self }),
        }
    }
}

impl Event<'_> {
    /// Its headers.
    pub fn headers(&self) -> [(&'static str, String); 7] {
        [
            ("content-type", "application/json".into()),
            ("ce_specversion", "1.0".into()),
            (TYPE_HEADER, self.kind.to_string()),
            ("ce_source", self.source.to_owned()),
            ("ce_id", self.id.to_string()),
            ("ce_time", self.time.to_rfc3339_opts(SecondsFormat::Millis, true)),
            ("ce_subject", self.subject.to_string()),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIND: EventType = EventType { name: "shop.sold", major: 2 };

    #[test]
    fn known_versions_are_read_and_others_named() {
        for known in [None, Some("shop.sold.v1"), Some("shop.sold.v2")] {
            assert_eq!(KIND.accept(known.map(str::as_bytes)), Ok(()), "{known:?}");
        }
        let newer = KIND.accept(Some(b"shop.sold.v3")).expect_err("a newer one");
        assert!(matches!(newer, EventError::Newer { .. }), "{newer}");
        assert!(newer.to_string().contains("shop.sold.v3") && newer.to_string().contains("v2"));
        for other in ["shop.sold", "shop.sold.v0", "shop.sold.v", "shop.soldout.v1", "", "\u{fffd}"]
        {
            let error = KIND.accept(Some(other.as_bytes())).expect_err(other);
            assert!(matches!(error, EventError::Other { .. }), "{other}: {error}");
        }
        assert!(KIND.accept(Some(&[0xff])).is_err());
    }

    #[test]
    fn an_event_says_what_it_is() {
        let (id, subject) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let time = DateTime::UNIX_EPOCH;
        let event = Event { kind: KIND, source: "/shop", id, subject, time };
        let headers = std::collections::HashMap::from(event.headers());
        assert_eq!(headers["ce_type"], "shop.sold.v2");
        assert_eq!(headers["ce_time"], "1970-01-01T00:00:00.000Z");
        assert_eq!(headers["ce_subject"], subject.to_string());
    }
}

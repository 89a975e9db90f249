//! Events as others read them: every message that a service sends has the CloudEvents headers, and
//! a payload that the documented schema allows.

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, PoisonError};

use boon::{Compiler, SchemaIndex, Schemas};
use chrono::DateTime;
use halfmsg_protocol::TRANSACTION_ID_HEADER;
use serde_json::Value;
use uuid::Uuid;

use crate::suite::topic::Entry;

/// The documented schemas, as people read them.
pub(crate) const CREATED_SCHEMA: &str =
    include_str!("../../../docs/events/order.created.schema.json");
pub(crate) const OUTBOUND_SCHEMA: &str =
    include_str!("../../../docs/events/stock.outbound.schema.json");
pub(crate) const ROLLBACK_SCHEMA: &str =
    include_str!("../../../docs/events/stock.rollback.schema.json");

/// Compiled once: a soak has thousands of events.
static COMPILED: LazyLock<Mutex<HashMap<&'static str, Compiled>>> = LazyLock::new(Mutex::default);

struct Compiled {
    schemas: Schemas,
    index: SchemaIndex,
}

impl Compiled {
    fn new(schema: &str) -> Self {
        let json = serde_json::from_str(schema).expect("a schema is JSON");
        let (mut schemas, mut compiler) = (Schemas::new(), Compiler::new());
        compiler.enable_format_assertions();
        compiler.add_resource("event.json", json).expect("the schema is added");
        let index = compiler.compile("event.json", &mut schemas).expect("the schema is valid");
        Self { schemas, index }
    }
}

/// What the schema has against a payload.
pub(crate) fn complaint(payload: &Value, schema: &'static str) -> Option<String> {
    let mut compiled = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
    let Compiled { schemas, index } =
        compiled.entry(schema).or_insert_with(|| Compiled::new(schema));
    schemas.validate(payload, *index).err().map(|error| format!("{error:#}"))
}

/// Holds an event against its schema and the CloudEvents specification.
///
/// # Panics
/// If it is none: no waiting mends what was sent.
pub(crate) fn check(message: &Entry, schema: &'static str) {
    let payload: Value = serde_json::from_slice(message.payload.as_deref().unwrap_or_default())
        .unwrap_or_else(|error| panic!("{error}: {message:?}"));
    if let Some(complaint) = complaint(&payload, schema) {
        panic!("{payload}: {complaint}");
    }
    let header = |name: &str| {
        let named = message.headers.iter().filter(|(found, _)| found == name);
        let values: Vec<_> = named.filter_map(|(_, value)| value.as_deref()).collect();
        let [value] = values[..] else { panic!("one {name} is expected: {message:?}") };
        String::from_utf8(value.to_vec()).expect("a text")
    };
    let schema: Value = serde_json::from_str(schema).expect("JSON");
    assert_eq!(header("ce_specversion"), "1.0");
    assert_eq!(header("ce_type"), schema["title"]);
    assert_eq!(header("content-type"), "application/json");
    assert_eq!(header("ce_id"), header(TRANSACTION_ID_HEADER));
    assert_eq!(header("ce_subject"), payload["order_id"]);
    assert!(header("ce_source").starts_with('/'), "{message:?}");
    assert!(Uuid::try_parse(&header("ce_id")).is_ok(), "{message:?}");
    assert!(DateTime::parse_from_rfc3339(&header("ce_time")).is_ok(), "{message:?}");
    assert_eq!(message.key.as_deref(), payload["order_id"].as_str().map(str::as_bytes));
}

/// A validator that finds nothing proves nothing.
#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn schemas_allow_what_is_new_and_refuse_what_is_wrong() {
        let id = "0198c0de-0000-7000-8000-000000000001";
        let items = json!([{"sku": "a", "quantity": 1, "unit_price_cents": 2, "new": true}]);
        let good = [
            (
                CREATED_SCHEMA,
                json!({"order_id": id, "user_id": "u", "items": items, "total_cents": 2,
                    "created_at": "2026-01-01T00:00:00Z", "new": 1}),
            ),
            (OUTBOUND_SCHEMA, json!({"order_id": id, "outcome": "deducted", "items": items})),
            (
                OUTBOUND_SCHEMA,
                json!({"order_id": id, "outcome": "refused", "code": "later", "items": items}),
            ),
            (
                ROLLBACK_SCHEMA,
                json!({"order_id": id, "user_id": "u", "items": items, "reason": "later"}),
            ),
        ];
        for (schema, payload) in good {
            assert_eq!(complaint(&payload, schema), None, "{payload}");
            for (member, wrong) in [
                ("order_id", json!("x")),
                ("order_id", Value::Null),
                ("items", json!([])),
                ("items", json!([{"sku": "a b", "quantity": 1, "unit_price_cents": 1}])),
                ("items", json!([{"sku": "a", "quantity": 0, "unit_price_cents": 1}])),
            ] {
                let mut payload = payload.clone();
                payload[member] = wrong;
                assert!(complaint(&payload, schema).is_some(), "{payload}");
            }
        }
        let refused = json!({"order_id": id, "outcome": "refused", "items": items});
        assert!(complaint(&refused, OUTBOUND_SCHEMA).is_some(), "a refusal has a code");
        let lost = json!({"order_id": id, "outcome": "lost", "code": "x", "items": items});
        assert!(complaint(&lost, OUTBOUND_SCHEMA).is_some());
    }
}

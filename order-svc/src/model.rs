//! What an order is: its identity, its parts, and what is refused before anything is stored.

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Utc};
use halfmsg_producer::TransactionId;
use halfmsg_service_kit::{ApiError, validate};
use serde::{Deserialize, Serialize, Serializer};
use uuid::Uuid;

/// Characters of a user id.
pub const MAX_USER_ID_CHARS: usize = 128;

/// Identifies an order, and is the key of its fence. A UUID version 7.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    utoipa::ToSchema,
)]
#[serde(transparent)]
#[schema(value_type = Uuid)]
pub struct OrderId(Uuid);

impl OrderId {
    /// A new identity.
    pub fn generate() -> Self {
        Self(Uuid::now_v7())
    }

    /// The order of this UUID.
    pub const fn from_uuid(uuid: Uuid) -> Self {
        Self(uuid)
    }

    /// The UUID behind it.
    pub const fn as_uuid(&self) -> Uuid {
        self.0
    }
}

impl fmt::Display for OrderId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for OrderId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Uuid::from_str(text).map(Self)
    }
}

/// What is ordered of one product.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Item {
    /// The product.
    pub sku: String,
    /// How many; 1 to [`validate::MAX_QUANTITY`].
    pub quantity: u32,
}

/// The body of `POST /orders`, before its limits are checked.
#[derive(Debug, Clone, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"user_id": "ann", "items": [{"sku": "apple", "quantity": 2}]}))]
pub struct PlaceRequest {
    /// Who orders; no control characters.
    #[schema(min_length = 1, max_length = 128, pattern = "^[^\\x00-\\x1f\\x7f-\\x9f]*$")]
    pub user_id: String,
    /// What is ordered; no sku twice.
    #[schema(min_items = 1, max_items = 100)]
    pub items: Vec<RequestedItem>,
    /// How order and stock are kept in agreement; none is [`Flow::Rollback`].
    pub flow: Option<Flow>,
}

/// An item as a client wrote it.
#[derive(Debug, Clone, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RequestedItem {
    /// The product.
    #[schema(min_length = 1, max_length = 64, pattern = "^[A-Za-z0-9._-]+$")]
    pub sku: String,
    /// Any integer; its limits are checked with the rest.
    #[schema(minimum = 1, maximum = 1_000_000)]
    pub quantity: i64,
}

/// How order and stock are kept in agreement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Flow {
    /// Deduct first; a half message undoes it unless the order is confirmed.
    #[default]
    Rollback,
    /// Order first; its message asks for the stock, and the answer confirms or rejects it.
    Saga,
}

impl Flow {
    /// Every flow.
    pub const ALL: [Self; 2] = [Self::Rollback, Self::Saga];

    /// Its name, in the database and in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Rollback => "rollback",
            Self::Saga => "saga",
        }
    }

    /// The flow of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|flow| flow.as_str() == name)
    }

    // The digests of requests were made without it.
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// An order that keeps every limit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NewOrder {
    /// Who orders.
    pub user_id: String,
    /// What is ordered; no product twice.
    pub items: Vec<Item>,
    /// How order and stock are kept in agreement.
    #[serde(skip_serializing_if = "Flow::is_default")]
    pub flow: Flow,
}

impl PlaceRequest {
    /// Checks every limit.
    ///
    /// # Errors
    /// 422 for the first limit that is not kept, naming the field.
    pub fn validate(self) -> Result<NewOrder, ApiError> {
        validate::text("user_id", &self.user_id, MAX_USER_ID_CHARS)?;
        validate::items(self.items.iter().map(|item| (item.sku.as_str(), item.quantity)))?;
        let item = |item: RequestedItem| {
            let quantity = u32::try_from(item.quantity).map_err(ApiError::internal)?;
            Ok(Item { sku: item.sku, quantity })
        };
        let items = self.items.into_iter().map(item).collect::<Result<_, ApiError>>()?;
        Ok(NewOrder { user_id: self.user_id, items, flow: self.flow.unwrap_or_default() })
    }
}

/// Where an order stands. Nothing is ever deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OrderStatus {
    /// It waits for stock.
    PendingStock,
    /// It stands, its stock is deducted.
    Confirmed,
    /// There was not enough stock.
    Rejected,
    /// It was taken back by who ordered.
    Cancelled,
    /// It failed, or is the tombstone that a check wrote.
    Void,
}

impl OrderStatus {
    /// Every status.
    pub const ALL: [Self; 5] =
        [Self::PendingStock, Self::Confirmed, Self::Rejected, Self::Cancelled, Self::Void];

    /// Its name, in the database and in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::PendingStock => "pending_stock",
            Self::Confirmed => "confirmed",
            Self::Rejected => "rejected",
            Self::Cancelled => "cancelled",
            Self::Void => "void",
        }
    }

    /// The status of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.as_str() == name)
    }
}

/// One line of a stored order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct OrderLine {
    /// The product.
    pub sku: String,
    /// How many.
    pub quantity: u32,
    /// The price of one, in cents; none in a void order whose prices were never known.
    #[schema(required)]
    pub unit_price_cents: Option<i64>,
}

/// An order as it is stored; its JSON is what clients see.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Order {
    /// Its identity.
    pub id: OrderId,
    /// The half message that goes with it.
    #[serde(serialize_with = "as_text")]
    #[schema(value_type = Uuid)]
    pub transaction_id: TransactionId,
    /// Who ordered; none only where that was never known.
    #[schema(required)]
    pub user_id: Option<String>,
    /// How it is kept in agreement with the stock.
    pub flow: Flow,
    /// Where it stands.
    pub status: OrderStatus,
    /// Its lines, in the order of the request.
    pub items: Vec<OrderLine>,
    /// What it costs, in cents; 0 while void.
    pub total_cents: i64,
    /// Why it is void or rejected, if it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Whether the handler that made it void knew that no stock was deducted.
    #[serde(skip)]
    pub stock_untouched: bool,
    /// When it was stored.
    pub created_at: DateTime<Utc>,
    /// When its status changed last.
    pub updated_at: DateTime<Utc>,
}

impl Order {
    /// The same, written at this moment: what came before, such as the deduction, is over by then.
    #[must_use]
    pub fn written_at(self, at: DateTime<Utc>) -> Self {
        Self { created_at: at, updated_at: at, ..self }
    }

    /// The tombstone in place of this order, whose stock was never touched.
    #[must_use]
    pub fn into_void(self, reason: String) -> Self {
        let (status, reason) = (OrderStatus::Void, Some(reason));
        Self { status, reason, total_cents: 0, stock_untouched: true, ..self }
    }
}

fn as_text<S: Serializer>(id: &TransactionId, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(id)
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;

    use super::*;

    fn request(json: &str) -> Result<NewOrder, ApiError> {
        serde_json::from_str::<PlaceRequest>(json).expect("a well-formed request").validate()
    }

    fn refused(json: &str, field: &str) {
        let error = request(json).expect_err(json);
        assert_eq!(error.status(), StatusCode::UNPROCESSABLE_ENTITY, "{json}");
        assert!(error.to_string().contains(field), "{json}: {error}");
    }

    #[test]
    fn an_ordinary_order_passes() {
        let order = request(r#"{"user_id":"u","items":[{"sku":"a.b_C-1","quantity":1000000}]}"#);
        let item = Item { sku: "a.b_C-1".into(), quantity: 1_000_000 };
        let flow = Flow::Rollback;
        assert_eq!(order, Ok(NewOrder { user_id: "u".into(), items: vec![item], flow }));
    }

    #[test]
    fn limits_are_kept_and_the_field_is_named() {
        for quantity in ["0", "-1", "1000001", "9223372036854775807", "-9223372036854775808"] {
            let items = format!(r#"[{{"sku":"a","quantity":{quantity}}}]"#);
            refused(&format!(r#"{{"user_id":"u","items":{items}}}"#), "items[0].quantity");
        }
        for sku in ["", "a b", "ä", "a/b", &"a".repeat(65)] {
            let items = format!(r#"[{{"sku":"{sku}","quantity":1}}]"#);
            refused(&format!(r#"{{"user_id":"u","items":{items}}}"#), "items[0].sku");
        }
        let twice = r#"[{"sku":"a","quantity":1},{"sku":"a","quantity":2}]"#;
        refused(&format!(r#"{{"user_id":"u","items":{twice}}}"#), "items[1].sku");
        refused(r#"{"user_id":"u","items":[]}"#, "items");
        let many: Vec<_> = (0..101).map(|n| format!(r#"{{"sku":"s{n}","quantity":1}}"#)).collect();
        refused(&format!(r#"{{"user_id":"u","items":[{}]}}"#, many.join(",")), "items");
        for user in ["", &"ü".repeat(129), "a\\u0000b"] {
            let json = format!(r#"{{"user_id":"{user}","items":[{{"sku":"a","quantity":1}}]}}"#);
            refused(&json, "user_id");
        }
    }

    #[test]
    fn the_flow_is_part_of_what_is_asked_for() {
        let flow = |flow: &str| {
            let items = r#"[{"sku":"a","quantity":1}]"#;
            let order = request(&format!(r#"{{"user_id":"u","items":{items}{flow}}}"#));
            order.expect("an order")
        };
        let (plain, saga) = (flow(""), flow(r#","flow":"saga""#));
        assert_eq!((plain.flow, saga.flow), (Flow::Rollback, Flow::Saga));
        assert_eq!(plain, flow(r#","flow":"rollback""#));
        let json = |order| serde_json::to_string(&order).expect("JSON");
        // What keys were claimed with by earlier versions.
        let digested = r#"{"user_id":"u","items":[{"sku":"a","quantity":1}]}"#;
        assert_eq!(json(plain), digested);
        assert_ne!(json(saga), digested);
    }

    #[test]
    fn every_status_has_its_name() {
        for status in OrderStatus::ALL {
            assert_eq!(OrderStatus::from_name(status.as_str()), Some(status));
            assert_eq!(
                serde_json::to_value(status).expect("a status is a string"),
                serde_json::Value::from(status.as_str())
            );
        }
    }
}

//! The messages of order-svc: what they tell others, and what a check-back needs to write the
//! tombstone of an order that it knows nothing else about. Their schemas are in `docs/events`.

use chrono::{DateTime, Utc};
use halfmsg_producer::{HalfMessage, Message, TransactionId};
use halfmsg_service_kit::validate::MAX_ITEMS;
use halfmsg_service_kit::{Event, EventType};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::draft::Draft;
use crate::model::{Flow, Item, NewOrder, Order, OrderId, OrderLine};

/// The purpose of flow A's half messages; it selects the listener.
pub const PURPOSE: &str = "order.rollback";
/// The purpose of flow B's half messages.
pub const CREATED_PURPOSE: &str = "order.created";
/// The purpose of the half messages of cancellations.
pub const CANCEL_PURPOSE: &str = "order.cancel";

/// Who sends: the source of its events.
pub const SOURCE: &str = "/order-svc";
/// An order was stored that waits for its stock.
pub const CREATED: EventType = EventType { name: "halfmsg.order.created", major: 1 };
/// The stock of an order is to be given back.
pub const ROLLBACK: EventType = EventType { name: "halfmsg.stock.rollback", major: 1 };

/// Why stock is given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RollbackReason {
    /// The order failed.
    OrderVoid,
    /// It was cancelled.
    OrderCancelled,
    /// A reason of a later version.
    #[serde(other)]
    Other,
}

/// The payload of `stock.rollback`.
///
/// Unknown fields are accepted: a replica of the next version may add some.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RollbackPayload {
    /// The order whose stock is restored.
    pub order_id: OrderId,
    /// Who ordered.
    pub user_id: String,
    /// What was ordered. stock-svc restores what it deducted, not this.
    pub items: Vec<PayloadItem>,
    /// Why; none in messages of earlier versions, which were all of void orders.
    #[serde(default)]
    pub reason: Option<RollbackReason>,
}

/// An item of the payload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PayloadItem {
    /// The product.
    pub sku: String,
    /// How many.
    pub quantity: u32,
}

/// The payload of `order.created`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreatedPayload {
    /// The order.
    pub order_id: OrderId,
    /// Who ordered.
    pub user_id: String,
    /// What was ordered, and the price of one.
    pub items: Vec<PricedItem>,
    /// What it costs, in cents.
    pub total_cents: i64,
    /// When the order was asked for: the message is there before the order is stored, which is the
    /// [`created_at`](crate::model::Order::created_at) of the order itself.
    pub created_at: DateTime<Utc>,
}

/// An item of `order.created`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PricedItem {
    /// The product.
    pub sku: String,
    /// How many.
    pub quantity: u32,
    /// The price of one, in cents.
    pub unit_price_cents: i64,
}

/// A payload that a check cannot answer for.
#[derive(Debug, thiserror::Error)]
pub enum PayloadError {
    /// There is none.
    #[error("the half message has no payload")]
    Missing,
    /// It is not what this service writes.
    #[error("the payload of the half message is not an order: {0}")]
    Undecodable(#[from] serde_json::Error),
    /// More items than an order may have.
    #[error("the payload of the half message has {0} items, at most {MAX_ITEMS} are possible")]
    TooManyItems(usize),
}

impl RollbackPayload {
    /// The payload of an order that may fail.
    pub fn new(order_id: OrderId, order: &NewOrder) -> Self {
        let item = |item: &Item| PayloadItem { sku: item.sku.clone(), quantity: item.quantity };
        let items = order.items.iter().map(item).collect();
        let reason = Some(RollbackReason::OrderVoid);
        Self { order_id, user_id: order.user_id.clone(), items, reason }
    }

    /// The payload of an order that is to be cancelled.
    pub fn of_cancelled(order: &Order) -> Self {
        let item =
            |line: &OrderLine| PayloadItem { sku: line.sku.clone(), quantity: line.quantity };
        Self {
            order_id: order.id,
            user_id: order.user_id.clone().unwrap_or_default(),
            items: order.items.iter().map(item).collect(),
            reason: Some(RollbackReason::OrderCancelled),
        }
    }

    /// The message that undoes the order on `topic`; messages of one order keep their order.
    pub fn to_message(&self, topic: &str, id: TransactionId) -> Message {
        message(topic, id, ROLLBACK, self.order_id, serde_json::json!(self))
    }

    /// The draft that the half message was stored for, as far as it is known without its request.
    pub fn into_draft(self, transaction_id: TransactionId) -> Draft {
        let item = |item: PayloadItem| Item { sku: item.sku, quantity: item.quantity };
        let items = self.items.into_iter().map(item).collect();
        let flow = Flow::Rollback;
        Draft { id: self.order_id, transaction_id, user_id: self.user_id, items, flow }
    }

    /// The payload of a stored half message.
    ///
    /// # Errors
    /// [`PayloadError`], if this service did not write it.
    pub fn of_half(half: &HalfMessage) -> Result<Self, PayloadError> {
        let payload: Self = read(half)?;
        few(payload.items.len())?;
        Ok(payload)
    }
}

impl CreatedPayload {
    /// The payload of an order that waits for its stock. A line without a price counts as free;
    /// such an order has none.
    pub fn new(order: &Order) -> Self {
        let item = |line: &OrderLine| PricedItem {
            sku: line.sku.clone(),
            quantity: line.quantity,
            unit_price_cents: line.unit_price_cents.unwrap_or_default(),
        };
        Self {
            order_id: order.id,
            user_id: order.user_id.clone().unwrap_or_default(),
            items: order.items.iter().map(item).collect(),
            total_cents: order.total_cents,
            created_at: order.created_at,
        }
    }

    /// The message that asks for the order's stock.
    pub fn to_message(&self, topic: &str, id: TransactionId) -> Message {
        message(topic, id, CREATED, self.order_id, serde_json::json!(self))
    }

    /// The draft that the half message was stored for.
    pub fn into_draft(self, transaction_id: TransactionId) -> Draft {
        let item = |item: PricedItem| Item { sku: item.sku, quantity: item.quantity };
        let items = self.items.into_iter().map(item).collect();
        let flow = Flow::Saga;
        Draft { id: self.order_id, transaction_id, user_id: self.user_id, items, flow }
    }

    /// The payload of a stored half message.
    ///
    /// # Errors
    /// [`PayloadError`], if this service did not write it.
    pub fn of_half(half: &HalfMessage) -> Result<Self, PayloadError> {
        let payload: Self = read(half)?;
        few(payload.items.len())?;
        Ok(payload)
    }
}

fn message(
    topic: &str,
    id: TransactionId,
    kind: EventType,
    order_id: OrderId,
    payload: serde_json::Value,
) -> Message {
    let event = Event {
        kind,
        source: SOURCE,
        id: id.as_uuid(),
        subject: order_id.as_uuid(),
        time: Utc::now(),
    };
    let message = Message::new(topic, payload.to_string()).key(order_id.to_string()).id(id);
    let add = |message: Message, (name, value)| message.header(name, value);
    event.headers().into_iter().fold(message, add)
}

fn read<T: DeserializeOwned>(half: &HalfMessage) -> Result<T, PayloadError> {
    Ok(serde_json::from_slice(half.payload.as_ref().ok_or(PayloadError::Missing)?)?)
}

fn few(items: usize) -> Result<(), PayloadError> {
    if items > MAX_ITEMS { Err(PayloadError::TooManyItems(items)) } else { Ok(()) }
}

//! The half message of flow A: what stock-svc is told to restore, and what a check-back needs to
//! write the tombstone of an order that it knows nothing else about.

use halfmsg_producer::{HalfMessage, Message, TransactionId};
use halfmsg_service_kit::validate::MAX_ITEMS;
use serde::{Deserialize, Serialize};

use crate::draft::Draft;
use crate::model::{Item, NewOrder, OrderId};

/// The purpose of flow A's half messages; it selects the listener.
pub const PURPOSE: &str = "order.rollback";

/// The payload of a half message.
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
}

/// An item of the payload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PayloadItem {
    /// The product.
    pub sku: String,
    /// How many.
    pub quantity: u32,
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
    /// The payload of an order.
    pub fn new(order_id: OrderId, order: &NewOrder) -> Self {
        let item = |item: &Item| PayloadItem { sku: item.sku.clone(), quantity: item.quantity };
        let items = order.items.iter().map(item).collect();
        Self { order_id, user_id: order.user_id.clone(), items }
    }

    /// The message that undoes the order on `topic`; messages of one order keep their order.
    pub fn to_message(&self, topic: &str) -> Message {
        let json = serde_json::json!({
            "order_id": self.order_id, "user_id": self.user_id, "items": self.items,
        });
        Message::new(topic, json.to_string()).key(self.order_id.to_string())
    }

    /// The draft that the half message was stored for, as far as it is known without its request.
    pub fn into_draft(self, transaction_id: TransactionId) -> Draft {
        let item = |item: PayloadItem| Item { sku: item.sku, quantity: item.quantity };
        let items = self.items.into_iter().map(item).collect();
        Draft { id: self.order_id, transaction_id, user_id: self.user_id, items }
    }

    /// The payload of a stored half message.
    ///
    /// # Errors
    /// [`PayloadError`], if this service did not write it.
    pub fn of_half(half: &HalfMessage) -> Result<Self, PayloadError> {
        let json = half.payload.as_ref().ok_or(PayloadError::Missing)?;
        let payload: Self = serde_json::from_slice(json)?;
        match payload.items.len() {
            0..=MAX_ITEMS => Ok(payload),
            items => Err(PayloadError::TooManyItems(items)),
        }
    }
}

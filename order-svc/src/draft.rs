//! An order that is being placed: it becomes one that stands, or a void one.

use std::collections::HashMap;

use halfmsg_producer::TransactionId;
use halfmsg_service_kit::db;

use crate::model::{Flow, Item, NewOrder, Order, OrderId, OrderLine, OrderStatus};

/// Prices of one piece in cents, by sku.
pub type Prices = HashMap<String, i64>;

/// An order under way: what was asked for, and the identities that it has been given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draft {
    /// The order's identity.
    pub id: OrderId,
    /// The half message that goes with it.
    pub transaction_id: TransactionId,
    /// Who orders.
    pub user_id: String,
    /// What is ordered.
    pub items: Vec<Item>,
    /// How order and stock are kept in agreement.
    pub flow: Flow,
}

/// The total does not fit into 64 bits of cents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the total is more than {} cents", i64::MAX)]
pub struct AmountTooLarge;

impl Draft {
    /// The draft of a request.
    pub fn new(id: OrderId, transaction_id: TransactionId, order: &NewOrder) -> Self {
        let NewOrder { user_id, items, flow } = order.clone();
        Self { id, transaction_id, user_id, items, flow }
    }

    /// The order at these prices as it is stored when nothing fails: confirmed if its stock is
    /// deducted before, else waiting for it.
    ///
    /// # Errors
    /// [`AmountTooLarge`]. A product without a price counts as one that cannot be paid for.
    pub fn standing(&self, prices: &Prices) -> Result<Order, AmountTooLarge> {
        let cost = |item: &Item| {
            let price_cents = prices.get(&item.sku)?;
            price_cents.checked_mul(i64::from(item.quantity))
        };
        let total_cents = self
            .items
            .iter()
            .try_fold(0_i64, |sum, item| sum.checked_add(cost(item)?))
            .ok_or(AmountTooLarge)?;
        let status = match self.flow {
            Flow::Rollback => OrderStatus::Confirmed,
            Flow::Saga => OrderStatus::PendingStock,
        };
        Ok(Order { status, total_cents, ..self.order(Some(prices)) })
    }

    /// The void order: the tombstone of a local transaction that failed, or must not happen. No
    /// stock is ever deducted for one of [`Flow::Saga`]: the message that asks for it is dropped.
    pub fn void(&self, reason: String, prices: Option<&Prices>, stock_untouched: bool) -> Order {
        let stock_untouched = stock_untouched || self.flow == Flow::Saga;
        Order { reason: Some(reason), stock_untouched, ..self.order(prices) }
    }

    fn order(&self, prices: Option<&Prices>) -> Order {
        let line = |item: &Item| OrderLine {
            sku: item.sku.clone(),
            quantity: item.quantity,
            unit_price_cents: prices.and_then(|prices| prices.get(&item.sku)).copied(),
        };
        let now = db::now();
        Order {
            id: self.id,
            transaction_id: self.transaction_id,
            user_id: Some(self.user_id.clone()),
            flow: self.flow,
            status: OrderStatus::Void,
            items: self.items.iter().map(line).collect(),
            total_cents: 0,
            reason: None,
            stock_untouched: false,
            created_at: now,
            updated_at: now,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draft(items: &[(&str, u32)]) -> Draft {
        let item = |(sku, quantity): &(&str, u32)| Item { sku: (*sku).into(), quantity: *quantity };
        Draft {
            id: OrderId::generate(),
            transaction_id: TransactionId::from_uuid(uuid::Uuid::now_v7()),
            user_id: "u".into(),
            items: items.iter().map(item).collect(),
            flow: Flow::Rollback,
        }
    }

    fn prices(of: &[(&str, i64)]) -> Prices {
        of.iter().map(|(sku, cents)| ((*sku).to_owned(), *cents)).collect()
    }

    #[test]
    fn the_total_is_the_sum_in_cents() {
        let order = draft(&[("a", 3), ("b", 1)]).standing(&prices(&[("a", 199), ("b", 50)]));
        let order = order.expect("a small total");
        assert_eq!((order.total_cents, order.status), (647, OrderStatus::Confirmed));
        assert_eq!(order.items[0].unit_price_cents, Some(199));
    }

    #[test]
    fn a_total_past_64_bits_is_refused_wherever_it_overflows() {
        let product = draft(&[("a", 2)]).standing(&prices(&[("a", i64::MAX)]));
        assert_eq!(product, Err(AmountTooLarge));
        let sum = draft(&[("a", 1), ("b", 1)]).standing(&prices(&[("a", i64::MAX), ("b", 1)]));
        assert_eq!(sum, Err(AmountTooLarge));
        let fits = draft(&[("a", 1)]).standing(&prices(&[("a", i64::MAX)]));
        assert_eq!(fits.expect("exactly the maximum").total_cents, i64::MAX);
    }

    #[test]
    fn a_void_order_costs_nothing() {
        let order = draft(&[("a", 1)]).void("fenced".into(), None, false);
        assert_eq!((order.total_cents, order.items[0].unit_price_cents), (0, None));
        assert_eq!(order.status, OrderStatus::Void);
    }
}

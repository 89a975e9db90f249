//! What the orders that stand hold of each product: one side of the books.

use std::collections::BTreeMap;

use sea_orm::{ConnectionTrait, Statement};

use super::{OrderStore, StoreError};
use crate::model::OrderStatus;

/// All lines of such orders are read: for views, not for each order.
const LIVE: &str = "\
    SELECT l.sku AS sku, o.status AS status, CAST(SUM(l.quantity) AS BIGINT) AS quantity \
    FROM order_line l JOIN orders o ON o.id = l.order_id \
    WHERE o.status IN ('confirmed', 'pending_stock') GROUP BY l.sku, o.status";

/// Quantities of one product in orders.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Live {
    /// Of confirmed ones: deducted, and not to be restored.
    pub confirmed: i64,
    /// Of those that wait for stock: deducted or not.
    pub pending: i64,
}

impl OrderStore {
    /// What orders hold, by product, at one moment.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn live(&self) -> Result<BTreeMap<String, Live>, StoreError> {
        self.bounded(async {
            let database = &self.requests;
            let statement = Statement::from_string(database.get_database_backend(), LIVE);
            let mut live = BTreeMap::<String, Live>::new();
            for row in database.query_all_raw(statement).await? {
                let status: String = row.try_get("", "status")?;
                let quantity: i64 = row.try_get("", "quantity")?;
                let of = live.entry(row.try_get("", "sku")?).or_default();
                if status == OrderStatus::Confirmed.as_str() {
                    of.confirmed = quantity;
                } else {
                    of.pending = quantity;
                }
            }
            Ok(live)
        })
        .await
    }
}

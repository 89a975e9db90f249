//! What the orders that stand hold of each product: one side of the books.

use std::collections::BTreeMap;
use std::time::Duration;

use sea_orm::{ConnectionTrait, DbBackend, QueryResult, Statement, TransactionTrait};

use super::{OrderStore, StoreError, within};
use crate::model::OrderStatus;

/// All lines of such orders are read: for views, not for each order.
const LIVE: &str = "\
    SELECT l.sku AS sku, o.status AS status, CAST(SUM(l.quantity) AS BIGINT) AS quantity \
    FROM order_line l JOIN orders o ON o.id = l.order_id \
    WHERE o.status IN ('confirmed', 'pending_stock') GROUP BY l.sku, o.status";

/// PostgreSQL ends the statement after so long, whoever has gone away meanwhile. It reads all orders:
/// longer than a request may, and never so long that a connection is lost to the requests.
pub const SCAN_TIMEOUT: Duration = Duration::from_secs(5);
/// And so long is waited for PostgreSQL, a connection included: longer than it takes to end it.
const SCAN_DEADLINE: Duration = Duration::from_secs(10);

/// Quantities of one product in orders.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Live {
    /// Of confirmed ones: deducted, and not to be restored.
    pub confirmed: i64,
    /// Of those that wait for stock: deducted or not.
    pub pending: i64,
}

impl OrderStore {
    /// What orders hold, by product, at one moment. Takes one connection for as long as it takes to read
    /// all orders: for one caller at a time, who must not give up before its end (SQLite's statement runs
    /// on without him).
    ///
    /// # Errors
    /// [`StoreError`]; on PostgreSQL [`StoreError::Contended`] after [`SCAN_TIMEOUT`].
    pub async fn live(&self) -> Result<BTreeMap<String, Live>, StoreError> {
        let backend = self.requests.get_database_backend();
        let scan = Statement::from_string(backend, LIVE);
        let rows = if backend == DbBackend::Postgres {
            within(SCAN_DEADLINE, async {
                let tx = self.requests.begin().await?;
                let millis = SCAN_TIMEOUT.as_millis();
                tx.execute_unprepared(&format!("SET LOCAL statement_timeout = {millis}")).await?;
                let rows = tx.query_all_raw(scan).await?;
                tx.rollback().await?;
                Ok(rows)
            })
            .await?
        } else {
            self.requests.query_all_raw(scan).await?
        };
        by_product(&rows)
    }
}

fn by_product(rows: &[QueryResult]) -> Result<BTreeMap<String, Live>, StoreError> {
    let mut live = BTreeMap::<String, Live>::new();
    for row in rows {
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
}

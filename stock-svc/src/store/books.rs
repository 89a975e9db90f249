//! What came in, went out and came back of each product: one side of the books.

use sea_orm::{ConnectionTrait, DbErr, QueryResult, Statement};
use serde::Serialize;

use super::{StockStore, StoreError};

/// One statement, so that what is available and the movements are of one moment.
const BOOKS: &str = "\
    SELECT p.sku AS sku, p.name AS name, p.price_cents AS price_cents, s.available AS available, \
    CAST(SUM(CASE WHEN m.kind = 'receipt' THEN m.quantity ELSE 0 END) AS BIGINT) AS received, \
    CAST(SUM(CASE WHEN m.kind = 'deduct' THEN m.quantity ELSE 0 END) AS BIGINT) AS deducted, \
    CAST(SUM(CASE WHEN m.kind = 'restore' THEN m.quantity ELSE 0 END) AS BIGINT) AS restored \
    FROM (SELECT sku, name, price_cents FROM product WHERE sku > $1 ORDER BY sku LIMIT $2) p \
    JOIN stock s ON s.sku = p.sku LEFT JOIN stock_movement m ON m.sku = p.sku \
    GROUP BY p.sku, p.name, p.price_cents, s.available ORDER BY p.sku";

/// A product's stock with the sums of its movements, as it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct StockBook {
    /// The product.
    pub sku: String,
    /// What people call it.
    pub name: String,
    /// The price of one, in cents.
    pub price_cents: i64,
    /// How many can be sold now; always `received` - `deducted` + `restored`.
    pub available: i64,
    /// How many ever came in.
    pub received: i64,
    /// How many orders ever took.
    pub deducted: i64,
    /// How many of those orders gave back.
    pub restored: i64,
}

impl StockBook {
    fn of(row: &QueryResult) -> Result<Self, DbErr> {
        Ok(Self {
            sku: row.try_get("", "sku")?,
            name: row.try_get("", "name")?,
            price_cents: row.try_get("", "price_cents")?,
            available: row.try_get("", "available")?,
            received: row.try_get("", "received")?,
            deducted: row.try_get("", "deducted")?,
            restored: row.try_get("", "restored")?,
        })
    }
}

impl StockStore {
    /// The products behind a sku, at most so many, in the order of their skus. Adds all their
    /// movements up: for views.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn books(
        &self,
        after: Option<&str>,
        limit: u64,
    ) -> Result<Vec<StockBook>, StoreError> {
        self.within(async {
            let values = [after.unwrap_or_default().into(), limit.into()];
            let backend = self.database.get_database_backend();
            let statement = Statement::from_sql_and_values(backend, BOOKS, values);
            let rows = self.database.query_all_raw(statement).await?;
            Ok(rows.iter().map(StockBook::of).collect::<Result<_, _>>()?)
        })
        .await
    }
}

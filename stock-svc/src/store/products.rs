//! Products and what is available of them.

use halfmsg_service_kit::db::now;
use sea_orm::ActiveValue::Set;
use sea_orm::sea_query::{Expr, OnConflict};
use sea_orm::{
    ColumnTrait, DatabaseTransaction, EntityTrait, QueryFilter, QueryOrder, QuerySelect,
};
use serde::Serialize;

use super::entity::{product, stock};
use super::{LOCK_TIMEOUT, StockStore, StoreError};

/// A product, as it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Product {
    /// Its identity.
    pub sku: String,
    /// What people call it.
    pub name: String,
    /// The price of one, in cents.
    pub price_cents: i64,
    /// How many can be sold now.
    pub available: i64,
    /// When it was first put.
    pub created_at: chrono::DateTime<chrono::Utc>,
    /// When it was last put.
    pub updated_at: chrono::DateTime<chrono::Utc>,
}

impl Product {
    fn of((row, stock): (product::Model, Option<stock::Model>)) -> Self {
        Self {
            sku: row.sku,
            name: row.name,
            price_cents: row.price_cents,
            available: stock.map_or(0, |stock| stock.available),
            created_at: row.created_at,
            updated_at: row.updated_at,
        }
    }
}

/// Makes a product and the row of its stock, with nothing available. False if it is there already;
/// where another transaction is making it, this waits for its end.
pub(super) async fn insert_product_in_tx(
    transaction: &DatabaseTransaction,
    sku: &str,
    name: &str,
    price_cents: i64,
) -> Result<bool, StoreError> {
    let at = now();
    let row = product::ActiveModel {
        sku: Set(sku.to_owned()),
        name: Set(name.to_owned()),
        price_cents: Set(price_cents),
        created_at: Set(at),
        updated_at: Set(at),
    };
    let made = product::Entity::insert(row)
        .on_conflict(OnConflict::column(product::Column::Sku).do_nothing().to_owned())
        .exec_without_returning(transaction)
        .await?;
    if made > 0 {
        let nothing = stock::ActiveModel { sku: Set(sku.to_owned()), available: Set(0) };
        stock::Entity::insert(nothing).exec_without_returning(transaction).await?;
    }
    Ok(made > 0)
}

impl StockStore {
    /// Makes a product, with nothing available, or changes its name and price. True if made.
    ///
    /// # Errors
    /// [`StoreError`]; repeating is harmless.
    pub async fn put_product(
        &self,
        sku: &str,
        name: &str,
        price_cents: i64,
    ) -> Result<(Product, bool), StoreError> {
        self.within(async {
            let transaction = self.begin(LOCK_TIMEOUT).await?;
            let made = insert_product_in_tx(&transaction, sku, name, price_cents).await?;
            if !made {
                product::Entity::update_many()
                    .col_expr(product::Column::Name, Expr::value(name))
                    .col_expr(product::Column::PriceCents, Expr::value(price_cents))
                    .col_expr(product::Column::UpdatedAt, Expr::value(now()))
                    .filter(product::Column::Sku.eq(sku))
                    .exec(&transaction)
                    .await?;
            }
            let found = product::Entity::find_by_id(sku)
                .find_also_related(stock::Entity)
                .one(&transaction)
                .await?;
            transaction.commit().await?;
            let found = found.ok_or_else(|| StoreError::Unreadable(format!("product '{sku}'")))?;
            Ok((Product::of(found), made))
        })
        .await
    }

    /// One product.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn product(&self, sku: &str) -> Result<Option<Product>, StoreError> {
        self.within(async {
            let find = product::Entity::find_by_id(sku).find_also_related(stock::Entity);
            Ok(find.one(&self.database).await?.map(Product::of))
        })
        .await
    }

    /// Products in the order of their skus, those behind `after`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn products(
        &self,
        after: Option<&str>,
        limit: u64,
    ) -> Result<Vec<Product>, StoreError> {
        self.within(async {
            let mut find = product::Entity::find();
            if let Some(after) = after {
                find = find.filter(product::Column::Sku.gt(after));
            }
            let rows = find
                .order_by_asc(product::Column::Sku)
                .limit(limit)
                .find_also_related(stock::Entity)
                .all(&self.database)
                .await?;
            Ok(rows.into_iter().map(Product::of).collect())
        })
        .await
    }

    /// Those of these products that there are.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn products_named(&self, skus: &[String]) -> Result<Vec<Product>, StoreError> {
        self.within(async {
            let rows = product::Entity::find()
                .filter(product::Column::Sku.is_in(skus))
                .order_by_asc(product::Column::Sku)
                .find_also_related(stock::Entity)
                .all(&self.database)
                .await?;
            Ok(rows.into_iter().map(Product::of).collect())
        })
        .await
    }
}

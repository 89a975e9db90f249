//! Stock that comes in, once per reference.

use halfmsg_service_kit::db::now;
use sea_orm::ActiveValue::Set;
use sea_orm::sea_query::{Expr, ExprTrait, OnConflict};
use sea_orm::{ColumnTrait, DatabaseTransaction, EntityTrait, QueryFilter};

use super::entity::{receipt, stock};
use super::movements::{Kind, NewMovement, record_in_tx};
use super::{LOCK_TIMEOUT, StockStore, StoreError, lock_stock_in_tx};

/// The most that can be available of one product: the largest integer that every JSON client
/// reads exactly.
pub const MAX_AVAILABLE: i64 = 1 << 53;

/// The largest quantity of one receipt.
pub const MAX_RECEIPT: i64 = 1_000_000_000;

/// What became of a receipt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Received {
    /// The stock was added now.
    Added {
        /// How many can be sold now.
        available: i64,
    },
    /// It was added before, under the same reference.
    Before {
        /// How many can be sold now.
        available: i64,
    },
    /// The reference was used with this other quantity; nothing was added.
    OtherQuantity(i64),
    /// There would be more than [`MAX_AVAILABLE`]; nothing was added.
    TooMany,
    /// There is no such product.
    UnknownSku,
}

impl StockStore {
    /// Adds stock, once per sku and reference.
    ///
    /// # Errors
    /// [`StoreError`]; repeating is harmless.
    pub async fn receive(
        &self,
        sku: &str,
        reference: &str,
        quantity: i64,
    ) -> Result<Received, StoreError> {
        self.within(async {
            let transaction = self.begin(LOCK_TIMEOUT).await?;
            let received = receive_in_tx(&transaction, sku, reference, quantity).await?;
            if matches!(received, Received::Added { .. }) {
                transaction.commit().await?;
            }
            Ok(received)
        })
        .await
    }
}

pub(super) async fn receive_in_tx(
    transaction: &DatabaseTransaction,
    sku: &str,
    reference: &str,
    quantity: i64,
) -> Result<Received, StoreError> {
    let locked = lock_stock_in_tx(transaction, [sku.to_owned()]).await?;
    let Some(available) = locked.get(sku).copied() else { return Ok(Received::UnknownSku) };
    let row = receipt::ActiveModel {
        sku: Set(sku.to_owned()),
        reference: Set(reference.to_owned()),
        quantity: Set(quantity),
        created_at: Set(now()),
    };
    let once = OnConflict::columns([receipt::Column::Sku, receipt::Column::Reference])
        .do_nothing()
        .to_owned();
    let added =
        receipt::Entity::insert(row).on_conflict(once).exec_without_returning(transaction).await?;
    if added == 0 {
        let before = receipt::Entity::find_by_id((sku.to_owned(), reference.to_owned()))
            .one(transaction)
            .await?;
        return match before {
            Some(before) if before.quantity == quantity => Ok(Received::Before { available }),
            Some(before) => Ok(Received::OtherQuantity(before.quantity)),
            None => Err(StoreError::Unreadable(format!("receipt '{reference}' of '{sku}'"))),
        };
    }
    match available.checked_add(quantity) {
        Some(total) if total <= MAX_AVAILABLE => {
            stock::Entity::update_many()
                .col_expr(
                    stock::Column::Available,
                    Expr::col(stock::Column::Available).add(quantity),
                )
                .filter(stock::Column::Sku.eq(sku))
                .exec(transaction)
                .await?;
            let movement = NewMovement {
                order_id: None,
                reference: Some(reference),
                sku,
                kind: Kind::Receipt,
                quantity,
            };
            record_in_tx(transaction, [movement]).await?;
            Ok(Received::Added { available: total })
        }
        _ => Ok(Received::TooMany),
    }
}

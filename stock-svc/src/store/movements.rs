//! The audit trail: every change of what is available, with its cause.

use halfmsg_service_kit::db::now;
use sea_orm::ActiveValue::Set;
use sea_orm::{
    ColumnTrait, DatabaseTransaction, EntityTrait, QueryFilter, QueryOrder, QuerySelect,
};
use serde::Serialize;
use uuid::Uuid;

use super::entity::movement;
use super::{ROWS_PER_STATEMENT, StockStore, StoreError};

/// What kind of change. The names are those in the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Stock came in.
    Receipt,
    /// An order took some.
    Deduct,
    /// An order gave it back.
    Restore,
    /// An order was given up before it took any: quantity 0.
    Void,
}

impl Kind {
    /// Its name in the database.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Receipt => "receipt",
            Self::Deduct => "deduct",
            Self::Restore => "restore",
            Self::Void => "void",
        }
    }
}

/// A change, as it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Movement {
    /// Its identity (UUIDv7): sorts by time.
    pub id: Uuid,
    /// The order that caused it.
    #[schema(required)]
    pub order_id: Option<Uuid>,
    /// The receipt that caused it.
    #[schema(required)]
    pub reference: Option<String>,
    /// The product.
    pub sku: String,
    /// `receipt`, `deduct`, `restore` or `void`.
    #[schema(pattern = "^(receipt|deduct|restore|void)$")]
    pub kind: String,
    /// How many; the kind says in which direction.
    pub quantity: i64,
    /// When.
    pub created_at: chrono::DateTime<chrono::Utc>,
}

/// A change that is about to be recorded.
pub(super) struct NewMovement<'a> {
    pub(super) order_id: Option<Uuid>,
    pub(super) reference: Option<&'a str>,
    pub(super) sku: &'a str,
    pub(super) kind: Kind,
    pub(super) quantity: i64,
}

/// Records changes. A second one of the same order, sku and kind fails, and the transaction with
/// it.
pub(super) async fn record_in_tx<'a>(
    transaction: &DatabaseTransaction,
    movements: impl IntoIterator<Item = NewMovement<'a>>,
) -> Result<(), StoreError> {
    let at = now();
    let rows: Vec<_> = movements
        .into_iter()
        .map(|new| movement::ActiveModel {
            id: Set(Uuid::now_v7()),
            order_id: Set(new.order_id),
            reference: Set(new.reference.map(str::to_owned)),
            sku: Set(new.sku.to_owned()),
            kind: Set(new.kind.as_str().to_owned()),
            quantity: Set(new.quantity),
            created_at: Set(at),
        })
        .collect();
    for part in rows.chunks(ROWS_PER_STATEMENT) {
        let part = part.iter().cloned();
        movement::Entity::insert_many(part).exec_without_returning(transaction).await?;
    }
    Ok(())
}

/// Which movements are wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MovementFilter {
    /// Of this order.
    pub order_id: Option<Uuid>,
    /// Of this product.
    pub sku: Option<String>,
    /// Behind this one.
    pub after: Option<Uuid>,
    /// At most so many.
    pub limit: u64,
}

impl StockStore {
    /// Movements, oldest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn movements(&self, filter: MovementFilter) -> Result<Vec<Movement>, StoreError> {
        self.within(async {
            let mut find = movement::Entity::find();
            if let Some(order_id) = filter.order_id {
                find = find.filter(movement::Column::OrderId.eq(order_id));
            }
            if let Some(sku) = filter.sku {
                find = find.filter(movement::Column::Sku.eq(sku));
            }
            if let Some(after) = filter.after {
                find = find.filter(movement::Column::Id.gt(after));
            }
            let find = find.order_by_asc(movement::Column::Id).limit(filter.limit);
            Ok(find.all(&self.database).await?.into_iter().map(Movement::of).collect())
        })
        .await
    }
}

impl Movement {
    fn of(row: movement::Model) -> Self {
        Self {
            id: row.id,
            order_id: row.order_id,
            reference: row.reference,
            sku: row.sku,
            kind: row.kind,
            quantity: row.quantity,
            created_at: row.created_at,
        }
    }
}

//! Everything that is said to the database of stock.
//!
//! # Layout
//! - this file: the store, its errors and deadlines
//! - [`products`]: products and what is available of them
//! - [`receipts`]: stock that comes in, once per reference
//! - `seed`: products that are there from the start
//! - [`barrier`]: deductions and restores, which meet at one row
//! - [`movements`]: the audit trail; [`books`]: its sums
//! - `entity`: the tables

pub mod barrier;
pub mod books;
pub mod movements;
pub mod products;
pub mod receipts;

mod entity;
mod seed;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use halfmsg_service_kit::ApiError;
use halfmsg_service_kit::db::{DbFault, begin_write, set_lock_timeout_in_tx};
use sea_orm::{
    ColumnTrait, DatabaseConnection, DatabaseTransaction, DbErr, EntityTrait, QueryFilter,
    QueryOrder, QuerySelect,
};
use tokio::time::timeout;

use entity::stock;

/// One operation on behalf of a request, waiting for a connection and for locks included.
pub const DEADLINE: Duration = Duration::from_secs(5);
/// How long a statement waits for a lock, on PostgreSQL.
pub const LOCK_TIMEOUT: Duration = Duration::from_secs(2);

/// What the database did not do.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No answer in time. A write may have taken effect; repeating it is harmless.
    #[error("the database did not answer within {DEADLINE:?}")]
    TimedOut,
    /// An error of the database. A write may have taken effect; repeating it is harmless.
    #[error(transparent)]
    Database(#[from] DbErr),
    /// A row that this version cannot read.
    #[error("{0}")]
    Unreadable(String),
}

impl StoreError {
    /// Whether repeating can help.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::TimedOut => true,
            Self::Database(error) => DbFault::of(error).is_transient(),
            Self::Unreadable(_) => false,
        }
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::TimedOut => {
                tracing::warn!("{error}");
                Self::database_unavailable()
            }
            StoreError::Database(error) => error.into(),
            StoreError::Unreadable(_) => Self::internal(error),
        }
    }
}

/// The database of stock. Cheap to clone.
#[derive(Debug, Clone)]
pub struct StockStore {
    database: DatabaseConnection,
}

impl StockStore {
    /// A store on a pool whose schema is up to date.
    pub fn new(database: DatabaseConnection) -> Self {
        Self { database }
    }

    /// Whether the database answers.
    ///
    /// # Errors
    /// [`StoreError`], within [`DEADLINE`].
    pub async fn ping(&self) -> Result<(), StoreError> {
        within(async { Ok(self.database.ping().await?) }).await
    }

    async fn begin(&self) -> Result<DatabaseTransaction, StoreError> {
        let transaction = begin_write(&self.database).await?;
        set_lock_timeout_in_tx(&transaction, LOCK_TIMEOUT).await?;
        Ok(transaction)
    }
}

/// Cut off at [`DEADLINE`], a transaction is rolled back, or committed if it was just committing.
async fn within<T>(work: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
    timeout(DEADLINE, work).await.unwrap_or(Err(StoreError::TimedOut))
}

/// Locks what is available of these products, always in the order of the skus, so that two
/// transactions cannot wait for each other. Unknown skus are missing in the answer.
async fn lock_stock_in_tx(
    transaction: &DatabaseTransaction,
    skus: impl IntoIterator<Item = String>,
) -> Result<BTreeMap<String, i64>, StoreError> {
    let skus: BTreeSet<String> = skus.into_iter().collect();
    if skus.is_empty() {
        return Ok(BTreeMap::new());
    }
    let rows = stock::Entity::find()
        .filter(stock::Column::Sku.is_in(skus))
        .order_by_asc(stock::Column::Sku)
        .lock_exclusive()
        .all(transaction)
        .await?;
    Ok(rows.into_iter().map(|row| (row.sku, row.available)).collect())
}

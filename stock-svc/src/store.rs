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
    ColumnTrait, DatabaseConnection, DatabaseTransaction, DbBackend, DbErr, EntityTrait,
    QueryFilter, QueryOrder, QuerySelect,
};
use tokio::time::timeout;

use entity::stock;

/// One operation on behalf of a request, waiting for a connection and for locks included.
pub const DEADLINE: Duration = Duration::from_secs(5);
/// How long a statement waits for a lock, on PostgreSQL.
pub const LOCK_TIMEOUT: Duration = Duration::from_secs(2);

/// Rows that one statement writes, or keys that it names: databases bound the values of a statement,
/// SQLite at 32,766.
const ROWS_PER_STATEMENT: usize = 500;

/// What the database did not do.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// No answer in time. A write may have taken effect; repeating it is harmless.
    #[error("the database did not answer within {DEADLINE:?}")]
    TimedOut,
    /// An error of the database. A write may have taken effect; repeating it is harmless.
    #[error(transparent)]
    Database(#[from] DbErr),
    /// Too much waits for the database: nothing was begun.
    #[error("too many requests wait for the database")]
    Busy,
    /// A row that this version cannot read.
    #[error("{0}")]
    Unreadable(String),
}

impl StoreError {
    /// Whether repeating can help.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::TimedOut | Self::Busy => true,
            Self::Database(error) => DbFault::of(error).is_transient(),
            Self::Unreadable(_) => false,
        }
    }

    /// Whether it would meet any other request just now.
    fn is_database_away(&self) -> bool {
        match self {
            Self::TimedOut | Self::Busy => true,
            Self::Database(error) => DbFault::of(error) == DbFault::Unavailable,
            Self::Unreadable(_) => false,
        }
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::TimedOut | StoreError::Busy => {
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

    /// Which database it is.
    pub fn backend(&self) -> DbBackend {
        self.database.get_database_backend()
    }

    /// Whether the database answers.
    ///
    /// # Errors
    /// [`StoreError`], within [`DEADLINE`].
    pub async fn ping(&self) -> Result<(), StoreError> {
        within(async { Ok(self.database.ping().await?) }).await
    }

    async fn begin(&self, lock_timeout: Duration) -> Result<DatabaseTransaction, StoreError> {
        let transaction = begin_write(&self.database).await?;
        set_lock_timeout_in_tx(&transaction, lock_timeout).await?;
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
    let skus: Vec<String> = skus.into_iter().collect();
    let mut locked = BTreeMap::new();
    for part in skus.chunks(ROWS_PER_STATEMENT) {
        let rows = stock::Entity::find()
            .filter(stock::Column::Sku.is_in(part.iter().map(String::as_str)))
            .order_by_asc(stock::Column::Sku)
            .lock_exclusive()
            .all(transaction)
            .await?;
        locked.extend(rows.into_iter().map(|row| (row.sku, row.available)));
    }
    Ok(locked)
}

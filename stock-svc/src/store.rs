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
use halfmsg_service_kit::db::{DbFault, begin_write, most_connections, set_lock_timeout_in_tx};
use sea_orm::sea_query::{Expr, LockBehavior, LockType};
use sea_orm::{
    ColumnTrait, DatabaseConnection, DatabaseTransaction, DbBackend, DbErr, EntityTrait,
    QueryFilter, QueryOrder, QuerySelect,
};
use tokio::time::timeout;
use uuid::Uuid;

use entity::stock;

/// One operation on behalf of a request, waiting for a connection and for locks included, if nothing else is
/// asked for.
pub const DEADLINE: Duration = Duration::from_secs(5);
/// How long a statement waits for a lock, on PostgreSQL.
pub const LOCK_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a statement waits for a lock where others wait with it: several orders in one transaction, a
/// consumer's batch, or a place that others need. Short, because whoever needs the lock can wait for [`LOCK_TIMEOUT`]
/// apart from them.
pub const SHARED_LOCK_WAIT: Duration = Duration::from_millis(100);

/// Rows that one statement writes, or keys that it names: databases bound the values of a statement,
/// SQLite at 32,766.
const ROWS_PER_STATEMENT: usize = 500;

/// What the database did not do.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// No answer in time. A write may have taken effect; repeating it is harmless.
    #[error("the database did not answer within {0:?}")]
    TimedOut(Duration),
    /// An error of the database. A write may have taken effect; repeating it is harmless.
    #[error(transparent)]
    Database(#[from] DbErr),
    /// Too much waits for the database: nothing was begun.
    #[error("too many requests wait for the database")]
    Busy,
    /// Somebody else has held this product for [`LOCK_TIMEOUT`]: nothing was begun.
    #[error("product {0} has been held by somebody else for {LOCK_TIMEOUT:?}")]
    Held(String),
    /// A row that this version cannot read.
    #[error("{0}")]
    Unreadable(String),
}

impl StoreError {
    /// Whether repeating can help.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::TimedOut(_) | Self::Busy | Self::Held(_) => true,
            Self::Database(error) => DbFault::of(error).is_transient(),
            Self::Unreadable(_) => false,
        }
    }

    /// Whether somebody else held a lock for too long, or this one had to make way: nothing happened.
    pub(crate) fn is_contended(&self) -> bool {
        match self {
            Self::Database(error) => DbFault::of(error) == DbFault::Contended,
            Self::Held(_) => true,
            Self::TimedOut(_) | Self::Busy | Self::Unreadable(_) => false,
        }
    }

    /// Whether it would meet any other request just now.
    fn is_database_away(&self) -> bool {
        match self {
            Self::TimedOut(_) | Self::Busy => true,
            Self::Database(error) => DbFault::of(error) == DbFault::Unavailable,
            Self::Held(_) | Self::Unreadable(_) => false,
        }
    }
}

/// The problem of an error about one order: what is logged names it, and so does the answer.
pub(crate) fn order_problem(
    order_id: Uuid,
    transaction_id: Option<Uuid>,
    error: StoreError,
) -> ApiError {
    let told = transaction_id.map(tracing::field::display);
    // The line that says that it is held has the order, too.
    let problem = if error.is_database_away() {
        tracing::warn!(%order_id, transaction_id = told, %error, "the database is away");
        ApiError::database_unavailable()
    } else if error.is_contended() {
        tracing::warn!(%order_id, transaction_id = told, %error, "the database is busy");
        ApiError::database_busy()
    } else {
        return ApiError::internal_of(order_id, transaction_id, error);
    };
    problem.with("order_id", order_id)
}

/// The same where no order is known.
impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::TimedOut(_) | StoreError::Busy => {
                tracing::warn!("{error}");
                Self::database_unavailable()
            }
            // Who gave the order up has said so, with its id.
            StoreError::Held(_) => Self::database_busy(),
            StoreError::Database(error) => error.into(),
            StoreError::Unreadable(_) => Self::internal(error),
        }
    }
}

/// The database of stock. Cheap to clone.
#[derive(Debug, Clone)]
pub struct StockStore {
    database: DatabaseConnection,
    deadline: Duration,
}

impl StockStore {
    /// A store on a pool whose schema is up to date.
    pub fn new(database: DatabaseConnection) -> Self {
        Self { database, deadline: DEADLINE }
    }

    /// The same with another bound than [`DEADLINE`] for one operation.
    #[must_use]
    pub fn with_deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Which database it is.
    pub fn backend(&self) -> DbBackend {
        self.database.get_database_backend()
    }

    /// At most how many connections its pool has.
    pub(crate) fn connections(&self) -> u32 {
        most_connections(&self.database)
    }

    /// Whether the database answers.
    ///
    /// # Errors
    /// [`StoreError`], within the deadline.
    pub async fn ping(&self) -> Result<(), StoreError> {
        self.within(async { Ok(self.database.ping().await?) }).await
    }

    /// Those of these products that somebody else has locked just now; who looks, as this does, has not.
    /// None on SQLite, which has one lock for everything.
    pub(crate) async fn locked_elsewhere(
        &self,
        skus: impl IntoIterator<Item = String>,
    ) -> Result<BTreeSet<String>, StoreError> {
        Ok(self.lockers(skus).await?.into_keys().collect())
    }

    /// Those of these products that one and the same transaction has locked before `meanwhile` and behind
    /// it: they are held. One that others use in turn, each for a moment, is not, however often it is met.
    pub(crate) async fn held_elsewhere(
        &self,
        skus: impl IntoIterator<Item = String>,
        meanwhile: impl Future<Output = ()>,
    ) -> Result<BTreeSet<String>, StoreError> {
        let before = self.lockers(skus).await?;
        if before.is_empty() {
            return Ok(BTreeSet::new());
        }
        meanwhile.await;
        let behind = self.lockers(before.keys().cloned()).await?;
        let same = |(sku, locker): &(String, String)| before.get(sku) == Some(locker);
        Ok(behind.into_iter().filter(same).map(|(sku, _)| sku).collect())
    }

    /// Those of these products that somebody else has locked just now, and who.
    async fn lockers(
        &self,
        skus: impl IntoIterator<Item = String>,
    ) -> Result<BTreeMap<String, String>, StoreError> {
        if self.backend() == DbBackend::Sqlite {
            return Ok(BTreeMap::new());
        }
        let skus: BTreeSet<String> = skus.into_iter().collect();
        self.within(async {
            let transaction = self.begin(SHARED_LOCK_WAIT).await?;
            let free = read_stock_in_tx(&transaction, &skus, Reading::SkippingLocked).await?;
            let locked = skus.into_iter().filter(|sku| !free.contains_key(sku)).collect();
            let lockers = lockers_in_tx(&transaction, &locked).await?;
            transaction.rollback().await?;
            Ok(lockers)
        })
        .await
    }

    /// Waits until nobody holds this product, for [`LOCK_TIMEOUT`]. Somebody may hold it again by the
    /// time that this returns.
    pub(crate) async fn wait_for_stock(&self, sku: &str) -> Result<(), StoreError> {
        let skus = BTreeSet::from([sku.to_owned()]);
        self.within(async {
            let transaction = self.begin(LOCK_TIMEOUT).await?;
            read_stock_in_tx(&transaction, &skus, Reading::Locking).await?;
            Ok(transaction.rollback().await?)
        })
        .await
    }

    async fn begin(&self, lock_timeout: Duration) -> Result<DatabaseTransaction, StoreError> {
        let transaction = begin_write(&self.database).await?;
        set_lock_timeout_in_tx(&transaction, lock_timeout).await?;
        Ok(transaction)
    }

    /// Cut off at the deadline, a transaction is rolled back, or committed if it was just committing.
    pub(crate) async fn within<T>(
        &self,
        work: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        timeout(self.deadline, work).await.unwrap_or(Err(StoreError::TimedOut(self.deadline)))
    }
}

/// Locks what is available of these products, always in the order of the skus, so that two
/// transactions cannot wait for each other. Unknown skus are missing in the answer.
async fn lock_stock_in_tx(
    transaction: &DatabaseTransaction,
    skus: impl IntoIterator<Item = String>,
) -> Result<BTreeMap<String, i64>, StoreError> {
    let skus = skus.into_iter().collect();
    read_stock_in_tx(transaction, &skus, Reading::Locking).await
}

/// Who locked each of these products last: the number of a transaction of PostgreSQL, which no other one
/// has. It may have let go since; unknown skus, and those that nobody has locked as they are, are missing.
async fn lockers_in_tx(
    transaction: &DatabaseTransaction,
    skus: &BTreeSet<String>,
) -> Result<BTreeMap<String, String>, StoreError> {
    let skus: Vec<&str> = skus.iter().map(String::as_str).collect();
    let mut found = BTreeMap::new();
    for part in skus.chunks(ROWS_PER_STATEMENT) {
        let select = stock::Entity::find()
            .select_only()
            .column(stock::Column::Sku)
            .expr_as(Expr::cust("CAST(xmax AS text)"), "locker")
            .filter(stock::Column::Sku.is_in(part.iter().copied()));
        let rows = select.into_tuple::<(String, String)>().all(transaction).await?;
        found.extend(rows.into_iter().filter(|(_, locker)| locker != NOBODY));
    }
    Ok(found)
}

/// The number that no transaction has.
const NOBODY: &str = "0";

/// How rows are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reading {
    /// Locked, after waiting for who has them.
    Locking,
    /// Those that nobody else has, and so that others may do the same: looking holds up no look.
    SkippingLocked,
}

async fn read_stock_in_tx(
    transaction: &DatabaseTransaction,
    skus: &BTreeSet<String>,
    reading: Reading,
) -> Result<BTreeMap<String, i64>, StoreError> {
    let skus: Vec<&str> = skus.iter().map(String::as_str).collect();
    let mut found = BTreeMap::new();
    for part in skus.chunks(ROWS_PER_STATEMENT) {
        let mut select = stock::Entity::find()
            .filter(stock::Column::Sku.is_in(part.iter().copied()))
            .order_by_asc(stock::Column::Sku);
        match reading {
            Reading::Locking => select = select.lock_exclusive(),
            Reading::SkippingLocked => {
                select = select.lock_with_behavior(LockType::Share, LockBehavior::SkipLocked);
            }
        }
        let rows = select.all(transaction).await?;
        found.extend(rows.into_iter().map(|row| (row.sku, row.available)));
    }
    Ok(found)
}

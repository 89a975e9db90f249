//! Everything that is said to the database of orders.
//!
//! An order's row is the fence of its local transaction: whoever inserts it first has decided. It
//! must never be deleted, and a void row must never become another one.
//!
//! # Layout
//! - this file: storing an order, writing it void, reading it
//! - [`fence`]: what the check-back reads and writes, on connections of its own
//! - [`cancel`]: cancelling, and the answers of stock-svc
//! - [`list`]: pages of orders; [`live`]: what the orders that stand hold of each product
//! - [`idempotency`]: requests that may be repeated
//! - `entity`: the tables

pub mod cancel;
mod entity;
pub mod fence;
pub mod idempotency;
pub mod list;
pub mod live;

use std::future::Future;
use std::time::Duration;

use halfmsg_producer::TransactionId;
use halfmsg_service_kit::db::{DbFault, begin_write, writers_turn};
use sea_orm::sea_query::{Expr, OnConflict};
use sea_orm::{
    ActiveValue::Set, ColumnTrait, ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbErr,
    EntityTrait, QueryFilter, QueryOrder,
};
use tokio::time::Instant;

use crate::events::Hub;
use crate::model::{Flow, Order, OrderId, OrderLine, OrderStatus};
use entity::{order_line, orders};

/// What the database did not do.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// No answer in time. A write may have taken effect: read the row.
    #[error("the database did not answer within {0:?}")]
    TimedOut(Duration),
    /// It is away or overloaded. A commit may have taken effect: read the row.
    #[error("the database is unavailable: {0}")]
    Unavailable(DbErr),
    /// Somebody else holds a lock for too long. Nothing was written; try again.
    #[error("the database is busy: {0}")]
    Contended(DbErr),
    /// Neither waiting nor repeating helps.
    #[error("the database refuses: {0}")]
    Refused(DbErr),
    /// A row that this version cannot read.
    #[error("{0}")]
    Unreadable(String),
    /// The row of an order that this version cannot read.
    #[error("order {order_id}: {what}")]
    UnreadableOrder {
        /// The order.
        order_id: OrderId,
        /// Its local transaction, where the row says so.
        transaction_id: Option<TransactionId>,
        /// What is wrong with it.
        what: String,
    },
}

impl StoreError {
    /// Whether the same call may succeed later.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::TimedOut(_) | Self::Unavailable(_) | Self::Contended(_))
    }
}

impl From<DbErr> for StoreError {
    fn from(error: DbErr) -> Self {
        match DbFault::of(&error) {
            DbFault::Unavailable => Self::Unavailable(error),
            DbFault::Contended => Self::Contended(error),
            DbFault::UniqueViolation | DbFault::Other => Self::Refused(error),
        }
    }
}

/// What became of an attempt to store an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// It stands.
    Inserted,
    /// There was a row already: this transaction came too late, and left nothing behind.
    Fenced,
}

/// The bounds of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoreLimits {
    /// One operation on behalf of a request, waiting for a connection included.
    pub deadline: Duration,
    /// The whole of a local transaction: one that has time left waits for the database as long as it
    /// has, but for the time that writing it void may take.
    pub local_deadline: Duration,
    /// One check-back's wait for a lock. On SQLite it is the busy timeout of its pool that counts.
    pub lock_timeout: Duration,
    /// Answering one batch of check-backs; what is not reached by then is unknown.
    pub check_budget: Duration,
}

impl Default for StoreLimits {
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(1),
            local_deadline: Duration::from_secs(3),
            lock_timeout: Duration::from_millis(100),
            check_budget: Duration::from_secs(2),
        }
    }
}

/// The orders. Cheap to clone.
#[derive(Debug, Clone)]
pub struct OrderStore {
    requests: DatabaseConnection,
    checks: DatabaseConnection,
    limits: StoreLimits,
    /// Told of every status that is committed; nothing depends on it.
    events: Option<Hub>,
}

impl OrderStore {
    /// A store on two pools of one database: requests cannot take the check-back's connections.
    pub fn new(
        requests: DatabaseConnection,
        checks: DatabaseConnection,
        limits: StoreLimits,
    ) -> Self {
        Self { requests, checks, limits, events: None }
    }

    /// The same, which tells `events` of every status that it has written.
    #[must_use]
    pub fn watched(self, events: Hub) -> Self {
        Self { events: Some(events), ..self }
    }

    /// To be called when the row is committed.
    fn tell(&self, order: &Order) {
        if let Some(events) = &self.events {
            events.order(order);
        }
    }

    /// Whether the database answers.
    ///
    /// # Errors
    /// [`StoreError`], within the deadline.
    pub async fn ping(&self) -> Result<(), StoreError> {
        self.bounded(async { Ok(self.requests.ping().await?) }).await
    }

    /// Stores an order and its lines in one transaction, unless it has a row. The local transaction
    /// that does it `began` then: what is left of its deadline may be waited for the database.
    ///
    /// Cancelled, it is stored or not: read the row.
    ///
    /// # Errors
    /// [`StoreError`]; it does not say whether the order is stored. The row does.
    pub async fn insert_order(&self, order: &Order, began: Instant) -> Result<Stored, StoreError> {
        within(self.left(began), async {
            let tx = begin_write(&self.requests).await?;
            if insert_order_in_tx(&tx, order).await? {
                tx.commit().await?;
                self.tell(order);
                Ok(Stored::Inserted)
            } else {
                tx.rollback().await?;
                Ok(Stored::Fenced)
            }
        })
        .await
    }

    /// Writes an order void, unless it has a row, and gives the row that it has now.
    ///
    /// Cancelled, it is written or not; repeating it is harmless.
    ///
    /// # Errors
    /// [`StoreError`]; it does not say whether the row is written.
    pub async fn write_void(&self, void: &Order) -> Result<Order, StoreError> {
        self.bounded(async {
            let tx = begin_write(&self.requests).await?;
            if insert_order_in_tx(&tx, void).await? {
                tx.commit().await?;
                self.tell(void);
                return Ok(void.clone());
            }
            let found = read_order(&tx, void.id).await?;
            tx.rollback().await?;
            found.ok_or_else(|| conflicting(void.id))
        })
        .await
    }

    /// The order of this identity, if it has a row.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn find(&self, id: OrderId) -> Result<Option<Order>, StoreError> {
        self.bounded(read_order(&self.requests, id)).await
    }

    /// Gives a void row that was written before its half message was known (see
    /// [`crate::decision::Fate`]) the half message that it goes with.
    ///
    /// # Errors
    /// [`StoreError`]; nothing depends on it but what people see.
    pub async fn adopt(&self, id: OrderId, by: TransactionId) -> Result<(), StoreError> {
        self.bounded(async {
            let _turn = writers_turn(&self.requests).await;
            orders::Entity::update_many()
                .col_expr(orders::Column::TransactionId, Expr::value(by.as_uuid()))
                .filter(orders::Column::Id.eq(id.as_uuid()))
                .filter(orders::Column::TransactionId.eq(id.as_uuid()))
                .filter(orders::Column::Status.eq(OrderStatus::Void.as_str()))
                .exec(&self.requests)
                .await?;
            Ok(())
        })
        .await
    }

    async fn bounded<T>(
        &self,
        work: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        within(self.limits.deadline, work).await
    }

    /// How long a local transaction that began then may wait for the database. An order must not end
    /// void, nor be fenced by its check, while there is time: another writer may be in the way for
    /// longer than one operation's deadline.
    fn left(&self, began: Instant) -> Duration {
        let StoreLimits { deadline, local_deadline, .. } = self.limits;
        let left = local_deadline.saturating_sub(began.elapsed() + deadline / 2);
        left.max(deadline)
    }
}

async fn within<T>(
    deadline: Duration,
    work: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    tokio::time::timeout(deadline, work).await.unwrap_or(Err(StoreError::TimedOut(deadline)))
}

/// Inserts an order and its lines; false if there was a row already, and then nothing is written.
pub(crate) async fn insert_order_in_tx(
    tx: &DatabaseTransaction,
    order: &Order,
) -> Result<bool, StoreError> {
    let row = orders::ActiveModel {
        id: Set(order.id.as_uuid()),
        transaction_id: Set(order.transaction_id.as_uuid()),
        user_id: Set(order.user_id.clone()),
        flow: Set(order.flow.as_str().to_owned()),
        status: Set(order.status.as_str().to_owned()),
        stock_untouched: Set(order.stock_untouched),
        reason: Set(order.reason.clone()),
        total_cents: Set(order.total_cents),
        created_at: Set(order.created_at),
        updated_at: Set(order.updated_at),
    };
    // Without naming the key: of two inserts at once, one may meet the other first at the unique
    // transaction id, which would be an error if only the id were named.
    let inserted = orders::Entity::insert(row)
        .on_conflict(OnConflict::new().do_nothing().to_owned())
        .exec_without_returning(tx)
        .await?;
    if inserted == 0 {
        return Ok(false);
    }
    let mut lines = Vec::with_capacity(order.items.len());
    for (at, line) in order.items.iter().enumerate() {
        let unfit = |_| StoreError::UnreadableOrder {
            order_id: order.id,
            transaction_id: Some(order.transaction_id),
            what: format!("line {at}"),
        };
        lines.push(order_line::ActiveModel {
            order_id: Set(order.id.as_uuid()),
            line_no: Set(i32::try_from(at + 1).map_err(unfit)?),
            sku: Set(line.sku.clone()),
            quantity: Set(i32::try_from(line.quantity).map_err(unfit)?),
            unit_price_cents: Set(line.unit_price_cents),
        });
    }
    order_line::Entity::insert_many(lines).exec_without_returning(tx).await?;
    Ok(true)
}

async fn read_order(db: &impl ConnectionTrait, id: OrderId) -> Result<Option<Order>, StoreError> {
    let Some(row) = orders::Entity::find_by_id(id.as_uuid()).one(db).await? else {
        return Ok(None);
    };
    let lines = order_line::Entity::find()
        .filter(order_line::Column::OrderId.eq(id.as_uuid()))
        .order_by_asc(order_line::Column::LineNo)
        .all(db)
        .await?;
    to_order(row, lines).map(Some)
}

fn to_order(row: orders::Model, lines: Vec<order_line::Model>) -> Result<Order, StoreError> {
    let id = OrderId::from_uuid(row.id);
    let transaction_id = TransactionId::from_uuid(row.transaction_id);
    let unreadable = |column, value: &str| unreadable(id, transaction_id, column, value);
    let status =
        OrderStatus::from_name(&row.status).ok_or_else(|| unreadable("status", &row.status))?;
    let flow = Flow::from_name(&row.flow).ok_or_else(|| unreadable("flow", &row.flow))?;
    let line = |line: order_line::Model| {
        let quantity = u32::try_from(line.quantity)
            .map_err(|_| unreadable("quantity", &line.quantity.to_string()))?;
        Ok(OrderLine { sku: line.sku, quantity, unit_price_cents: line.unit_price_cents })
    };
    let items = lines.into_iter().map(line).collect::<Result<_, StoreError>>()?;
    Ok(Order {
        id,
        transaction_id,
        user_id: row.user_id,
        flow,
        status,
        items,
        total_cents: row.total_cents,
        reason: row.reason,
        stock_untouched: row.stock_untouched,
        created_at: row.created_at,
        updated_at: row.updated_at,
    })
}

fn unreadable(
    order_id: OrderId,
    transaction_id: TransactionId,
    column: &str,
    value: &str,
) -> StoreError {
    let what = format!("the {column} '{value}' is not known");
    StoreError::UnreadableOrder { order_id, transaction_id: Some(transaction_id), what }
}

/// The insert met a row, and the next statement did not: rows are never deleted.
fn conflicting(id: OrderId) -> StoreError {
    let what = "a row conflicts and cannot be read".to_owned();
    StoreError::UnreadableOrder { order_id: id, transaction_id: None, what }
}

//! Cancelling, and what stock-svc answered: the two that may change the status of a stored order,
//! each by comparing it first. Whoever is first on the row's lock decides what the other one finds.

use std::time::Duration;

use chrono::{DateTime, Utc};
use halfmsg_producer::fence::{self, FenceError, FenceOptions};
use halfmsg_producer::{HalfMessage, ListenerResult, LocalTransactionState, TransactionId};
use halfmsg_service_kit::db::{begin_write, now};
use sea_orm::sea_query::Expr;
use sea_orm::{
    ColumnTrait, DatabaseTransaction, EntityTrait, PaginatorTrait, QueryFilter, QueryOrder,
};
use tokio::time::Instant;

use super::entity::orders;
use super::{OrderStore, StoreError, read_order, within};
use crate::model::{Order, OrderId, OrderStatus};

/// What became of a cancellation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cancelled {
    /// This transaction cancelled it.
    Now(Order),
    /// It is not one that this could cancel: it was cancelled before, or never stood.
    Not(Order),
    /// There is no such order.
    Missing,
    /// The check-back came first, and this transaction never commits.
    Fenced,
}

/// What stock-svc said about the stock of an order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StockAnswer {
    /// The order.
    pub order_id: OrderId,
    /// None if the stock was deducted, else why it was not.
    pub refusal: Option<String>,
}

impl StockAnswer {
    /// The status that an order gets by it.
    pub fn status(&self) -> OrderStatus {
        if self.refusal.is_none() { OrderStatus::Confirmed } else { OrderStatus::Rejected }
    }
}

/// What became of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answered {
    /// The order has its status by it, since then.
    Now(OrderStatus, DateTime<Utc>),
    /// It says what the order's status says already.
    Before(OrderStatus),
    /// The order was cancelled; the message of its cancellation gives the stock back.
    Cancelled,
    /// The order has another status, which no answer like this may follow.
    Contradicts(OrderStatus),
    /// There is no such order.
    Missing,
}

impl OrderStore {
    /// Cancels an order that is confirmed or waits for its stock, behind the fence of this
    /// transaction: the check-back of `transaction_id` says `Commit` if and only if this one did it.
    ///
    /// Cancelled, or with an error, it is done or not: the check-back of `transaction_id` tells.
    ///
    /// # Errors
    /// [`StoreError`]; it does not say whether the order is cancelled.
    pub async fn cancel(
        &self,
        id: OrderId,
        transaction_id: TransactionId,
    ) -> Result<Cancelled, StoreError> {
        // It is all that its local transaction does.
        within(self.left(Instant::now()), async {
            let tx = begin_write(&self.requests).await?;
            match fence::enter_in_tx(&tx, transaction_id).await {
                Ok(()) => {}
                Err(FenceError::Fenced(_) | FenceError::Forgotten(_)) => {
                    tx.rollback().await?;
                    return Ok(Cancelled::Fenced);
                }
                Err(error) => return Err(fence_error(error)),
            }
            let changed = orders::Entity::update_many()
                .col_expr(orders::Column::Status, Expr::value(OrderStatus::Cancelled.as_str()))
                .col_expr(orders::Column::UpdatedAt, Expr::value(now()))
                .filter(orders::Column::Id.eq(id.as_uuid()))
                .filter(orders::Column::Status.is_in(CANCELLABLE.map(OrderStatus::as_str)))
                .exec(&tx)
                .await?;
            let found = read_order(&tx, id).await?;
            if changed.rows_affected == 0 {
                // The fence goes with it: the check-back finds no row, and shuts it out.
                tx.rollback().await?;
                return Ok(found.map_or(Cancelled::Missing, Cancelled::Not));
            }
            let order = found.ok_or_else(|| super::conflicting(id))?;
            tx.commit().await?;
            self.tell(&order);
            Ok(Cancelled::Now(order))
        })
        .await
    }

    /// What became of cancellations, for the check-back: in the order of `halves`.
    pub async fn cancelled(
        &self,
        halves: &[HalfMessage],
    ) -> Vec<ListenerResult<LocalTransactionState>> {
        let limits = &self.limits;
        let options =
            FenceOptions { lock_timeout: limits.lock_timeout, budget: limits.check_budget };
        fence::check(&self.checks, halves, options).await
    }

    /// Forgets the fences of cancellations that are older than `retention`; says how many.
    ///
    /// # Errors
    /// [`StoreError`]; repeating it is harmless.
    pub async fn forget_fences(&self, retention: Duration) -> Result<u64, StoreError> {
        fence::clean(&self.requests, retention).await.map_err(fence_error)
    }

    /// How many orders wait for their stock since before this moment, and since when the oldest.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn stuck(
        &self,
        before: DateTime<Utc>,
    ) -> Result<(u64, Option<DateTime<Utc>>), StoreError> {
        let pending = || {
            orders::Entity::find()
                .filter(orders::Column::Status.eq(OrderStatus::PendingStock.as_str()))
        };
        self.bounded(async {
            let late = pending().filter(orders::Column::CreatedAt.lt(before));
            let count = late.count(&self.requests).await?;
            let oldest = pending().order_by_asc(orders::Column::CreatedAt).one(&self.requests);
            Ok((count, oldest.await?.map(|order| order.created_at)))
        })
        .await
    }
}

/// What can be cancelled.
const CANCELLABLE: [OrderStatus; 2] = [OrderStatus::Confirmed, OrderStatus::PendingStock];

/// Moves an order from waiting to confirmed or rejected, if it waits.
pub(crate) async fn answer_in_tx(
    tx: &DatabaseTransaction,
    answer: &StockAnswer,
) -> Result<Answered, StoreError> {
    let (status, at) = (answer.status(), now());
    let changed = orders::Entity::update_many()
        .col_expr(orders::Column::Status, Expr::value(status.as_str()))
        .col_expr(orders::Column::Reason, Expr::value(answer.refusal.clone()))
        .col_expr(orders::Column::UpdatedAt, Expr::value(at))
        .filter(orders::Column::Id.eq(answer.order_id.as_uuid()))
        .filter(orders::Column::Status.eq(OrderStatus::PendingStock.as_str()))
        .exec(tx)
        .await?;
    if changed.rows_affected > 0 {
        return Ok(Answered::Now(status, at));
    }
    Ok(match read_order(tx, answer.order_id).await?.map(|order| order.status) {
        None => Answered::Missing,
        Some(OrderStatus::Cancelled) => Answered::Cancelled,
        Some(found) if found == status => Answered::Before(found),
        Some(found) => Answered::Contradicts(found),
    })
}

fn fence_error(error: FenceError) -> StoreError {
    match error {
        FenceError::Contended(error) => StoreError::Contended(error),
        FenceError::Unavailable(error) => StoreError::Unavailable(error),
        FenceError::Refused(error) => StoreError::Refused(error),
        FenceError::TimedOut(after) => StoreError::TimedOut(after),
        error => StoreError::Unreadable(error.to_string()),
    }
}

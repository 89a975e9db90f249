//! What an order's row says about its half message. Nothing else ever decides: no error, no
//! timeout, no memory of the process.

use halfmsg_producer::{LocalTransactionState, TransactionId};

use crate::model::{Flow, Order, OrderId, OrderStatus};

/// The part of a row that decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fate {
    /// The order.
    pub id: OrderId,
    /// The half message that the row was written for.
    pub transaction_id: TransactionId,
    /// Where the order stands.
    pub status: OrderStatus,
    /// Whether the writer of a void row knew that no stock was deducted.
    pub stock_untouched: bool,
}

impl From<&Order> for Fate {
    fn from(order: &Order) -> Self {
        Self {
            id: order.id,
            transaction_id: order.transaction_id,
            status: order.status,
            stock_untouched: order.stock_untouched,
        }
    }
}

/// The row belongs to another half message; it says nothing about this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("order {order_id} belongs to half message {found}, not to {asked}")]
pub struct ForeignRow {
    /// The order.
    pub order_id: OrderId,
    /// Whose it is.
    pub found: TransactionId,
    /// Who asked.
    pub asked: TransactionId,
}

impl Fate {
    /// Whether the row was written void before its half message was known: by a repeated request
    /// that found its predecessor gone. Its transaction id is then the order's own id.
    pub fn is_unclaimed(&self) -> bool {
        self.status == OrderStatus::Void && self.transaction_id.as_uuid() == self.id.as_uuid()
    }

    /// What becomes of the half message `asked` that was stored for an order of this flow.
    ///
    /// [`Flow::Rollback`]'s restores the stock: an order that stands drops it, and so does a void
    /// order whose stock was never touched; any other void order delivers it. [`Flow::Saga`]'s asks
    /// for the stock: a void order drops it, any other delivers it, also one that was cancelled
    /// meanwhile: the message of its cancellation meets this one at stock-svc's barrier.
    ///
    /// # Errors
    /// [`ForeignRow`] if the row was written for another half message.
    pub fn decides(
        &self,
        asked: TransactionId,
        flow: Flow,
    ) -> Result<LocalTransactionState, ForeignRow> {
        if self.transaction_id != asked && !self.is_unclaimed() {
            let (order_id, found) = (self.id, self.transaction_id);
            return Err(ForeignRow { order_id, found, asked });
        }
        if flow == Flow::Saga {
            return Ok(match self.status {
                OrderStatus::Void => LocalTransactionState::Rollback,
                _ => LocalTransactionState::Commit,
            });
        }
        Ok(match self.status {
            OrderStatus::Confirmed | OrderStatus::Cancelled => LocalTransactionState::Rollback,
            OrderStatus::Void if self.stock_untouched => LocalTransactionState::Rollback,
            OrderStatus::Void => LocalTransactionState::Commit,
            // Flow A writes neither.
            OrderStatus::PendingStock | OrderStatus::Rejected => LocalTransactionState::Unknown,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn transaction() -> TransactionId {
        TransactionId::from_uuid(uuid::Uuid::now_v7())
    }

    #[test]
    fn the_row_alone_decides() {
        use LocalTransactionState::{Commit, Rollback, Unknown};
        let transaction_id = transaction();
        for (status, stock_untouched, expected) in [
            (OrderStatus::Confirmed, false, Rollback),
            (OrderStatus::Cancelled, false, Rollback),
            (OrderStatus::Void, true, Rollback),
            (OrderStatus::Void, false, Commit),
            (OrderStatus::PendingStock, false, Unknown),
            (OrderStatus::Rejected, false, Unknown),
        ] {
            let fate = Fate { id: OrderId::generate(), transaction_id, status, stock_untouched };
            assert_eq!(fate.decides(transaction_id, Flow::Rollback), Ok(expected), "{status:?}");
            let of_saga = if status == OrderStatus::Void { Rollback } else { Commit };
            assert_eq!(fate.decides(transaction_id, Flow::Saga), Ok(of_saga), "{status:?}");
            for flow in Flow::ALL {
                assert!(fate.decides(transaction(), flow).is_err());
            }
        }
    }

    #[test]
    fn a_row_written_void_before_its_half_was_known_answers_for_any_half() {
        let id = OrderId::generate();
        let own = TransactionId::from_uuid(id.as_uuid());
        let void = OrderStatus::Void;
        let fate = Fate { id, transaction_id: own, status: void, stock_untouched: false };
        let flow = Flow::Rollback;
        assert_eq!(fate.decides(transaction(), flow), Ok(LocalTransactionState::Commit));
        let of_saga = fate.decides(transaction(), Flow::Saga);
        assert_eq!(of_saga, Ok(LocalTransactionState::Rollback));
        let stands = Fate { status: OrderStatus::Confirmed, ..fate };
        assert!(stands.decides(transaction(), flow).is_err());
    }
}

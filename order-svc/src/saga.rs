//! Flow B's local transaction: the order, waiting for its stock, in one database transaction; and
//! the check-back's answers about it.
//!
//! No stock is touched here: what is committed asks for it. So a void order drops its message, and
//! there is nothing to undo.

use async_trait::async_trait;
use halfmsg_producer::{HalfMessage, ListenerResult, LocalTransactionState, TransactionListener};
use halfmsg_service_kit::db::now;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::checks::{RowChecks, tell_life};
use crate::decision::Fate;
use crate::fault::{Fault, crash_at};
use crate::model::{Flow, Order};
use crate::payload::CreatedPayload;
use crate::reason::VoidReason;
use crate::store::{OrderStore, StoreError, Stored};

/// The argument of one local transaction.
#[derive(Debug)]
pub struct LocalSaga {
    /// The order as it is to be stored.
    pub order: Order,
    /// The failure that is asked for.
    pub fault: Option<Fault>,
    /// Told the order's row as soon as there is one. Nobody needs to listen.
    pub tell: oneshot::Sender<Order>,
}

/// Runs and answers for the local transactions of purpose `order.created`. Cheap to clone.
#[derive(Debug, Clone)]
pub struct SagaListener {
    store: OrderStore,
    checks: RowChecks,
}

impl SagaListener {
    /// A listener on this store.
    pub fn new(store: OrderStore) -> Self {
        Self { checks: RowChecks::new(store.clone()), store }
    }

    /// Stores the order, or finds whoever was first; an order that cannot be stored is void.
    async fn store(&self, order: &Order, fault: Option<Fault>) -> Result<Order, StoreError> {
        let mut stored = order.clone().written_at(now());
        if fault == Some(Fault::OrderInsert) {
            // The schema forbids it, so the database transaction really fails.
            stored.total_cents = -1;
        }
        let reason = match self.store.insert_order(&stored, Instant::now()).await {
            Ok(Stored::Inserted) => return Ok(stored),
            Ok(Stored::Fenced) => VoidReason::Fenced,
            Err(error) => {
                // It may be stored all the same: writing it void finds that out.
                let Order { id: order_id, transaction_id, .. } = order;
                tracing::warn!(%order_id, %transaction_id, %error, "the order may not be stored");
                VoidReason::OrderInsertFailed
            }
        };
        let void = order.clone().into_void(reason.to_text("")).written_at(now());
        self.store.write_void(&void).await
    }
}

#[async_trait]
impl TransactionListener for SagaListener {
    type Arg = LocalSaga;

    /// Cancelled, the order has a row or not: its check decides.
    async fn execute_local_transaction(
        &self,
        half: &HalfMessage,
        arg: LocalSaga,
    ) -> ListenerResult<LocalTransactionState> {
        let LocalSaga { order, fault, tell } = arg;
        crash_at(Fault::CrashAfterHalf, fault, order.id, half.transaction_id);
        let row = self.store(&order, fault).await?;
        crash_at(Fault::CrashAfterOrder, fault, order.id, half.transaction_id);
        let fate = Fate::from(&row);
        self.checks.adopt(&fate, half.transaction_id).await;
        tell_life(&row);
        // Nobody listens if the request's deadline has passed.
        drop(tell.send(row));
        Ok(fate.decides(half.transaction_id, Flow::Saga)?)
    }

    async fn check_local_transaction(
        &self,
        half: &HalfMessage,
    ) -> ListenerResult<LocalTransactionState> {
        let mut answers = self.check_local_transactions(std::slice::from_ref(half)).await;
        answers.pop().unwrap_or(Ok(LocalTransactionState::Unknown))
    }

    async fn check_local_transactions(
        &self,
        halves: &[HalfMessage],
    ) -> Vec<ListenerResult<LocalTransactionState>> {
        let read =
            |half: &HalfMessage| Ok(CreatedPayload::of_half(half)?.into_draft(half.transaction_id));
        self.checks.states(halves, read).await
    }
}

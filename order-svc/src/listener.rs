//! Flow A's local transaction, and the check-back's answers about it.
//!
//! Price lookup, deduction at stock-svc, then the order in one database transaction. Whatever
//! fails after the half message is stored first writes the order void; then the order's row alone
//! decides. No HTTP call and no sleep happens inside a database transaction.

use std::time::Duration;

use async_trait::async_trait;
use halfmsg_producer::{
    HalfMessage, ListenerResult, LocalTransactionState, TransactionId, TransactionListener,
};
use halfmsg_service_kit::db::now;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};

use crate::checks::{RowChecks, tell_life};
use crate::decision::Fate;
use crate::draft::{Draft, Prices};
use crate::fault::{Fault, crash_at};
use crate::model::{Flow, NewOrder, Order, OrderId};
use crate::payload::RollbackPayload;
use crate::reason::VoidReason;
use crate::stock::{PriceError, StockClient};
use crate::store::{OrderStore, StoreError, Stored};

/// The times of a local transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalTimes {
    /// Price lookup and deduction together; shorter than the local deadline, so that there is
    /// time left to write the order or its tombstone.
    pub stock: Duration,
    /// How long the fault slow-local stalls; longer than local deadline and first check.
    pub stall: Duration,
}

/// The argument of one local transaction.
#[derive(Debug)]
pub struct LocalOrder {
    /// The order's identity.
    pub id: OrderId,
    /// What is ordered.
    pub order: NewOrder,
    /// The failure that is asked for.
    pub fault: Option<Fault>,
    /// Told the order's row as soon as there is one. Nobody needs to listen.
    pub tell: oneshot::Sender<Order>,
}

/// Runs and answers for the local transactions of purpose `order.rollback`. Cheap to clone.
#[derive(Debug, Clone)]
pub struct OrderListener {
    store: OrderStore,
    checks: RowChecks,
    stock: StockClient,
    times: LocalTimes,
}

/// Why a local transaction ends with a void order.
struct Failure {
    reason: VoidReason,
    detail: String,
    stock_untouched: bool,
    prices: Option<Prices>,
}

impl Failure {
    fn before_deduct(reason: VoidReason, detail: impl ToString) -> Self {
        Self { reason, detail: detail.to_string(), stock_untouched: true, prices: None }
    }

    fn after_deduct(reason: VoidReason, prices: Prices) -> Self {
        let prices = Some(prices);
        Self { reason, detail: String::new(), stock_untouched: false, prices }
    }
}

impl OrderListener {
    /// A listener on this store and this stock.
    pub fn new(store: OrderStore, stock: StockClient, times: LocalTimes) -> Self {
        Self { checks: RowChecks::new(store.clone()), store, stock, times }
    }

    /// Runs the local transaction of a half message that is stored, and gives the order's row.
    ///
    /// Cancelled, the order has a row or not: its check decides.
    ///
    /// # Errors
    /// [`StoreError`] if the row cannot be written or read: its check decides.
    pub async fn run_local(
        &self,
        transaction_id: TransactionId,
        local: LocalOrder,
    ) -> Result<Order, StoreError> {
        crash_at(Fault::CrashAfterHalf, local.fault, local.id, transaction_id);
        let draft = Draft::new(local.id, transaction_id, &local.order);
        let row = match self.attempt(&draft, local.fault).await {
            Ok(order) => order,
            Err(failure) => {
                let Failure { reason, detail, stock_untouched, prices } = failure;
                let text = reason.to_text(&detail);
                let void = draft.void(text, prices.as_ref(), stock_untouched);
                self.store.write_void(&void).await?
            }
        };
        self.checks.adopt(&Fate::from(&row), transaction_id).await;
        tell_life(&row);
        // Nobody listens if the request's deadline has passed.
        drop(local.tell.send(row.clone()));
        Ok(row)
    }

    async fn attempt(&self, draft: &Draft, fault: Option<Fault>) -> Result<Order, Failure> {
        let began = Instant::now();
        let until = began + self.times.stock;
        let prices = self.stock.prices(&draft.items, fault, until).await;
        let prices = prices.map_err(|error| match &error {
            PriceError::UnknownSku(skus) => Failure::before_deduct(VoidReason::UnknownSku, skus),
            PriceError::Failed(_) => Failure::before_deduct(VoidReason::PriceLookupFailed, error),
        })?;
        let mut order = draft
            .standing(&prices)
            .map_err(|error| Failure::before_deduct(VoidReason::AmountTooLarge, error))?;
        if let Err(error) =
            self.stock.deduct((draft.id, draft.transaction_id), &draft.items, fault, until).await
        {
            return Err(Failure {
                reason: error.reason(),
                detail: error.to_string(),
                stock_untouched: error.untouched(),
                prices: Some(prices),
            });
        }
        crash_at(Fault::CrashAfterDeduct, fault, draft.id, draft.transaction_id);
        match fault {
            Some(Fault::AfterDeduct) => {
                return Err(Failure::after_deduct(VoidReason::AfterDeductFailed, prices));
            }
            Some(Fault::SlowLocal) => sleep(self.times.stall).await,
            // The schema forbids it, so the database transaction really fails.
            Some(Fault::OrderInsert) => order.total_cents = -1,
            _ => {}
        }
        let order = order.written_at(now());
        match self.store.insert_order(&order, began).await {
            Ok(Stored::Inserted) => {
                crash_at(Fault::CrashAfterOrder, fault, draft.id, draft.transaction_id);
                Ok(order)
            }
            Ok(Stored::Fenced) => Err(Failure::after_deduct(VoidReason::Fenced, prices)),
            Err(error) => {
                // It may be stored all the same: writing it void finds that out.
                let Draft { id: order_id, transaction_id, .. } = draft;
                tracing::warn!(%order_id, %transaction_id, %error, "the order may not be stored");
                Err(Failure::after_deduct(VoidReason::OrderInsertFailed, prices))
            }
        }
    }
}

#[async_trait]
impl TransactionListener for OrderListener {
    type Arg = LocalOrder;

    async fn execute_local_transaction(
        &self,
        half: &HalfMessage,
        arg: LocalOrder,
    ) -> ListenerResult<LocalTransactionState> {
        let row = self.run_local(half.transaction_id, arg).await?;
        Ok(Fate::from(&row).decides(half.transaction_id, Flow::Rollback)?)
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
        let read = |half: &HalfMessage| {
            Ok(RollbackPayload::of_half(half)?.into_draft(half.transaction_id))
        };
        self.checks.states(halves, read).await
    }
}

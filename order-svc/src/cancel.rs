//! Flow C: cancels an order that stands or waits for its stock, and tells stock-svc to give back
//! what it took.
//!
//! The half message comes first, then the order's status behind the fence of this transaction, so
//! that the check-back can say whether this cancellation, and not another one, did it. Whether
//! there is anything to give back is not known here and need not be: restore and deduction meet at
//! stock-svc's barrier, whichever comes first.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use axum::http::StatusCode;
use halfmsg_producer::{
    HalfMessage, ListenerResult, LocalTransactionState, PrepareError, SendResult, TransactionId,
    TransactionListener, TransactionProducer,
};
use halfmsg_service_kit::ApiError;
use halfmsg_service_kit::telemetry::LIFE;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::metrics::OrderMetrics;
use crate::model::{Order, OrderId, OrderStatus};
use crate::payload::{CANCEL_PURPOSE, RollbackPayload};
use crate::place::{
    LOOK_AGAIN_SECS, Placer, TRY_AGAIN_SECS, order_problem, overloaded, prepare_problem,
};
use crate::store::OrderStore;
use crate::store::cancel::Cancelled;

/// Cancellations at once; more are refused.
pub const MAX_CANCELS_AT_ONCE: usize = 1_024;

/// The argument of one local transaction.
#[derive(Debug)]
pub struct LocalCancel {
    /// The order.
    pub id: OrderId,
    /// Told what became of it. Nobody needs to listen.
    pub tell: oneshot::Sender<Cancelled>,
}

/// Runs and answers for the local transactions of purpose `order.cancel`. Cheap to clone.
#[derive(Debug, Clone)]
pub struct CancelListener {
    store: OrderStore,
}

impl CancelListener {
    /// A listener on this store.
    pub fn new(store: OrderStore) -> Self {
        Self { store }
    }
}

#[async_trait]
impl TransactionListener for CancelListener {
    type Arg = LocalCancel;

    async fn execute_local_transaction(
        &self,
        half: &HalfMessage,
        arg: LocalCancel,
    ) -> ListenerResult<LocalTransactionState> {
        let done = self.store.cancel(arg.id, half.local_transaction_id).await?;
        // Rolled back, and nobody tries it again under this identity.
        let state = match done {
            Cancelled::Now(_) => LocalTransactionState::Commit,
            _ => LocalTransactionState::Rollback,
        };
        // Nobody listens if the request's deadline has passed.
        drop(arg.tell.send(done));
        Ok(state)
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
        self.store.cancelled(halves).await
    }
}

/// What it takes to build a [`Canceller`].
pub struct Parts {
    /// Stores half messages, with a [`CancelListener`] registered under [`CANCEL_PURPOSE`].
    pub producer: TransactionProducer,
    /// The orders.
    pub store: OrderStore,
    /// Waits at the end for what goes on after an answer.
    pub placer: Placer,
    /// The topic of rollbacks.
    pub topic: String,
    /// From the request to its answer.
    pub answer: Duration,
    /// What is counted.
    pub metrics: OrderMetrics,
}

/// Cancels orders.
pub struct Canceller {
    parts: Parts,
    places: Arc<Semaphore>,
}

type Sending = JoinHandle<Result<SendResult, PrepareError>>;

impl Canceller {
    /// A canceller of these parts.
    pub fn new(parts: Parts) -> Self {
        Self::with_places(parts, MAX_CANCELS_AT_ONCE)
    }

    pub(crate) fn with_places(parts: Parts, at_once: usize) -> Self {
        Self { parts, places: Arc::new(Semaphore::new(at_once)) }
    }

    /// Cancels an order, or finds it cancelled.
    ///
    /// Run it in a task of its own. Cancelled or failed, the order is cancelled or not; repeating
    /// it is harmless.
    ///
    /// # Errors
    /// 404, 409 `order_not_cancellable`, or 503 and 504: repeat it.
    pub async fn cancel(&self, id: OrderId, trace: Option<String>) -> Result<Order, ApiError> {
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            return Err(overloaded("too many orders are being cancelled"));
        };
        let order = self.parts.store.find(id).await;
        let order = order.map_err(|error| order_problem(id, None, error))?;
        let order = order.ok_or_else(|| missing(id))?;
        if let Some(answer) = settled(&order) {
            return answer;
        }
        let transaction_id = self.parts.producer.new_transaction_id();
        let sending = self.send(&order, transaction_id, trace, place);
        let cancelled = timeout(self.parts.answer, sending).await;
        let cancelled = cancelled.unwrap_or_else(|_| Err(unknown(id)));
        match &cancelled {
            Ok(order) => {
                self.parts.metrics.cancelled("cancelled");
                let order_id = order.id;
                tracing::info!(target: LIFE, %order_id, %transaction_id, "order cancelled");
            }
            Err(problem) => self.parts.metrics.cancelled(problem.code()),
        }
        cancelled
    }

    /// The place is taken until all of it is done, which may be long after the answer.
    async fn send(
        &self,
        order: &Order,
        transaction_id: TransactionId,
        trace: Option<String>,
        place: OwnedSemaphorePermit,
    ) -> Result<Order, ApiError> {
        let id = order.id;
        let producer = self.parts.producer.clone();
        let payload = RollbackPayload::of_cancelled(order);
        let mut message = payload.to_message(&self.parts.topic, transaction_id);
        if let Some(trace) = trace {
            message = message.header(crate::http::trace::HEADER, trace);
        }
        let (tell, mut told) = oneshot::channel();
        let arg = LocalCancel { id, tell };
        let send = async move {
            let _place = place;
            producer.send_in_transaction(CANCEL_PURPOSE, message, arg).await
        };
        let mut sending: Sending = tokio::spawn(self.parts.placer.track(send));
        let sent = tokio::select! {
            biased;
            Ok(done) = &mut told => return answer(id, done),
            sent = &mut sending => sent,
        };
        if let Ok(done) = told.try_recv() {
            return answer(id, done);
        }
        match sent {
            Ok(Err(error)) => Err(prepare_problem(id, transaction_id, error)),
            // Its local transaction failed, and the check has answered for it: the row tells.
            Ok(Ok(sent)) => self.read(id, transaction_id, sent.state).await,
            Err(error) => {
                tracing::error!(order_id = %id, %transaction_id, %error, "a cancellation broke off");
                self.read(id, transaction_id, LocalTransactionState::Unknown).await
            }
        }
    }

    async fn read(
        &self,
        id: OrderId,
        transaction_id: TransactionId,
        state: LocalTransactionState,
    ) -> Result<Order, ApiError> {
        let found = self.parts.store.find(id).await;
        let found = found.map_err(|error| order_problem(id, Some(transaction_id), error))?;
        let order = found.ok_or_else(|| missing(id))?;
        match settled(&order) {
            Some(answer) => answer,
            None if state == LocalTransactionState::Rollback => Err(given_up(id)),
            None => Err(unknown(id)),
        }
    }
}

/// The answer, if the order's status has one for good.
fn settled(order: &Order) -> Option<Result<Order, ApiError>> {
    match order.status {
        OrderStatus::Cancelled => Some(Ok(order.clone())),
        OrderStatus::Rejected | OrderStatus::Void => Some(Err(not_cancellable(order))),
        OrderStatus::Confirmed | OrderStatus::PendingStock => None,
    }
}

fn answer(id: OrderId, done: Cancelled) -> Result<Order, ApiError> {
    match done {
        Cancelled::Now(order) => Ok(order),
        Cancelled::Not(order) => settled(&order).unwrap_or_else(|| Err(given_up(id))),
        Cancelled::Missing => Err(missing(id)),
        Cancelled::Fenced => Err(given_up(id)),
    }
}

fn missing(id: OrderId) -> ApiError {
    ApiError::not_found("no order has this id").with("order_id", id)
}

fn not_cancellable(order: &Order) -> ApiError {
    ApiError::new(
        StatusCode::CONFLICT,
        "order_not_cancellable",
        "The order never stood, so it cannot be cancelled.",
    )
    .detail(format!("its status is {}", order.status.as_str()))
    .with("order_id", order.id)
    .with("order_status", order.status)
}

fn given_up(id: OrderId) -> ApiError {
    ApiError::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "cancel_given_up",
        "The cancellation took too long and was given up; the order is as it was.",
    )
    .with("order_id", id)
    .retry_after(TRY_AGAIN_SECS)
}

fn unknown(id: OrderId) -> ApiError {
    ApiError::new(
        StatusCode::GATEWAY_TIMEOUT,
        "outcome_unknown",
        "Whether the order is cancelled is not known yet.",
    )
    .detail("repeat the request: an order is cancelled once")
    .with("order_id", id)
    .retry_after(LOOK_AGAIN_SECS)
}

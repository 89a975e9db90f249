//! From an order that keeps every limit to its half message, in both flows.

use halfmsg_producer::{Message, PrepareError, SendResult, TransactionId, TransactionListener};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::{Parts, PlaceOrder};
use crate::draft::Draft;
use crate::fault::Fault;
use crate::listener::LocalOrder;
use crate::model::{Flow, Order, OrderId};
use crate::payload::{CREATED_PURPOSE, CreatedPayload, PURPOSE, RollbackPayload};
use crate::reason::VoidReason;
use crate::saga::LocalSaga;
use crate::stock::PriceError;

/// A local transaction that is about to run.
pub(super) enum Local {
    /// Deducts, then stores the order; with the identity of its half message.
    Rollback(LocalOrder, TransactionId),
    /// Stores the order.
    Saga(LocalSaga),
}

impl Local {
    /// The identity of the half message that it gets.
    pub(super) fn transaction_id(&self) -> TransactionId {
        match self {
            Self::Rollback(_, id) => *id,
            Self::Saga(local) => local.order.transaction_id,
        }
    }
}

/// How one half message is sent.
struct Sending {
    order_id: OrderId,
    purpose: &'static str,
    message: Message,
    /// Whether its decision is to be lost.
    lose: bool,
}

impl Parts {
    /// What is to run for this request; or the order in its place that is void already, because no
    /// price is known, and a half message would ask for the stock of an order without an amount.
    pub(super) async fn local(
        &self,
        id: OrderId,
        request: PlaceOrder,
        tell: oneshot::Sender<Order>,
    ) -> Result<Local, Order> {
        let PlaceOrder { order, fault, .. } = request;
        let transaction_id = self.producer.new_transaction_id();
        if order.flow == Flow::Rollback {
            return Ok(Local::Rollback(LocalOrder { id, order, fault, tell }, transaction_id));
        }
        let draft = Draft::new(id, transaction_id, &order);
        let order = self.priced(&draft, fault).await.map_err(|(reason, detail)| {
            // It never gets a half message: it is known by its own id.
            let transaction_id = TransactionId::from_uuid(id.as_uuid());
            Draft { transaction_id, ..draft.clone() }.void(reason.to_text(&detail), None, true)
        })?;
        Ok(Local::Saga(LocalSaga { order, fault, tell }))
    }

    async fn priced(
        &self,
        draft: &Draft,
        fault: Option<Fault>,
    ) -> Result<Order, (VoidReason, String)> {
        let until = Instant::now() + self.stock_deadline;
        let prices = self.stock.prices(&draft.items, fault, until).await;
        let prices = prices.map_err(|error| match error {
            PriceError::UnknownSku(skus) => (VoidReason::UnknownSku, skus),
            PriceError::Failed(why) => (VoidReason::PriceLookupFailed, why),
        })?;
        draft.standing(&prices).map_err(|error| (VoidReason::AmountTooLarge, error.to_string()))
    }

    /// Stores the half message, runs the local transaction, records the decision.
    pub(super) async fn send(
        &self,
        local: Local,
        trace: Option<String>,
    ) -> Result<Option<SendResult>, PrepareError> {
        let traced = |message: Message| match trace {
            Some(trace) => message.header(crate::http::trace::HEADER, trace),
            None => message,
        };
        match local {
            Local::Rollback(local, id) => {
                let payload = RollbackPayload::new(local.id, &local.order);
                let message = traced(payload.to_message(&self.topics.rollback, id));
                let lose = local.fault == Some(Fault::DecisionLost);
                let order_id = local.id;
                let sending = Sending { order_id, purpose: PURPOSE, message, lose };
                self.carry_out(sending, &self.listener, local).await
            }
            Local::Saga(local) => {
                let payload = CreatedPayload::new(&local.order);
                let id = local.order.transaction_id;
                let message = traced(payload.to_message(&self.topics.created, id));
                let lose = local.fault == Some(Fault::DecisionLost);
                let order_id = local.order.id;
                let sending = Sending { order_id, purpose: CREATED_PURPOSE, message, lose };
                self.carry_out(sending, &self.saga, local).await
            }
        }
    }

    async fn carry_out<L: TransactionListener>(
        &self,
        sending: Sending,
        listener: &L,
        arg: L::Arg,
    ) -> Result<Option<SendResult>, PrepareError> {
        let Sending { order_id, purpose, message, lose } = sending;
        if !lose {
            return self.producer.send_in_transaction(purpose, message, arg).await.map(Some);
        }
        let transaction = self.producer.begin(purpose, message).await?;
        if let Err(error) = listener.execute_local_transaction(transaction.half(), arg).await {
            let transaction_id = transaction.receipt().transaction_id;
            tracing::warn!(%order_id, %transaction_id, %error, "the order may not be stored");
        }
        transaction.leave_open();
        Ok(None)
    }
}

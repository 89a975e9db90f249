//! The handler of the topic by which orders ask for their stock: deducts, and answers.
//!
//! The deduction and its answer commit together: the answer is stored with the inbox row, and sent
//! after it. An order that was given up before, because its restore came first, is told so.

use std::fmt::Display;

use async_trait::async_trait;
use halfmsg_consumer::{Context, HandlerError, MessageHandler, ReceivedMessage, Reply, reply_id};
use halfmsg_service_kit::db::{now, set_lock_timeout_in_tx};
use halfmsg_service_kit::event::TYPE_HEADER;
use halfmsg_service_kit::telemetry::LIFE;
use halfmsg_service_kit::{Event, EventType};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::locked::blame;
use crate::metrics::StockMetrics;
use crate::model::{Item, Items, Refusal};
use crate::store::barrier::{Deduct, DeductRequest, deduct_all_in_tx};
use crate::store::{SHARED_LOCK_WAIT, StockStore};

/// An order waits for its stock.
pub const CREATED: EventType = EventType { name: "halfmsg.order.created", major: 1 };
/// What became of the stock of an order.
pub const OUTBOUND: EventType = EventType { name: "halfmsg.stock.outbound", major: 1 };
/// Who sends: the source of its events.
pub const SOURCE: &str = "/stock-svc";

/// Deducts what orders ask for, and answers.
#[derive(Debug, Clone)]
pub struct Deducter {
    /// Where answers go.
    pub outbound_topic: String,
    /// The name of its consumer: the identities of answers are made from it.
    pub subscriber: String,
    /// What is deducted from.
    pub store: StockStore,
    /// What is counted.
    pub metrics: StockMetrics,
}

/// What is read of `order.created`. Unknown fields are accepted: a later version of order-svc may
/// add some.
#[derive(Deserialize)]
struct Created {
    order_id: Uuid,
    items: Vec<CreatedItem>,
}

#[derive(Deserialize)]
struct CreatedItem {
    sku: String,
    quantity: i64,
}

/// The payload of `stock.outbound`.
#[derive(Debug, Serialize)]
struct Outbound<'a> {
    order_id: Uuid,
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
    items: &'a Items,
}

#[async_trait]
impl MessageHandler for Deducter {
    async fn handle(
        &self,
        context: &Context<'_>,
        batch: &[ReceivedMessage],
    ) -> Result<(), HandlerError> {
        let requests: Vec<DeductRequest> = batch.iter().map(decode).collect::<Result<_, _>>()?;
        let transaction = context.transaction();
        // Whoever wants a product that it has locked already waits as well.
        set_lock_timeout_in_tx(transaction, SHARED_LOCK_WAIT).await?;
        let done = match deduct_all_in_tx(transaction, &requests).await {
            Ok(done) => done,
            Err(error) => {
                let skus: Vec<_> = requests.iter().map(|request| request.items.skus()).collect();
                return Err(blame(&self.store, error, batch, &skus).await);
            }
        };
        for ((message, request), done) in batch.iter().zip(requests).zip(done) {
            context.publish(message, self.answer(message, &request, &done)?)?;
            let metrics = self.metrics.clone();
            context.after_commit(move || tell(&metrics, &request, &done));
        }
        Ok(())
    }
}

impl Deducter {
    fn answer(
        &self,
        message: &ReceivedMessage,
        request: &DeductRequest,
        done: &Deduct,
    ) -> Result<Reply, HandlerError> {
        let order_id = request.order_id;
        let refusal = match done {
            Deduct::Deducted { .. } => None,
            Deduct::Refused { refusal, .. } => Some((code(refusal), refusal.to_string())),
            Deduct::OrderVoid(_) => {
                Some(("order_void", "the order was given up before".to_owned()))
            }
            // Not an answer: what was deducted is another order's wish, and a person must look.
            Deduct::OtherItems => {
                let why = format!("order {order_id} was deducted with other items before");
                return Err(HandlerError::Undecodable(why));
            }
        };
        let outcome = if refusal.is_none() { "deducted" } else { "refused" };
        let (code, detail) = refusal.unzip();
        let payload = Outbound { order_id, outcome, code, detail, items: &request.items };
        let payload = serde_json::to_vec(&payload)
            .map_err(|error| HandlerError::Failed(error.to_string()))?;
        let event = Event {
            kind: OUTBOUND,
            source: SOURCE,
            // That of its first and only answer.
            id: reply_id(&self.subscriber, &message.inbox_key(), 0),
            subject: order_id,
            time: now(),
        };
        let mut reply = Reply::new(&self.outbound_topic, payload).with_key(order_id.to_string());
        let header = |(name, value): (&str, String)| (name.to_owned(), Some(value.into()));
        reply.headers = event.headers().into_iter().map(header).collect();
        // The answer belongs to the trace of the question.
        let traces = message.headers.iter().filter(|(name, _)| name == TRACE_HEADER);
        reply.headers.extend(traces.cloned());
        Ok(reply)
    }
}

/// W3C Trace Context.
const TRACE_HEADER: &str = "traceparent";

fn code(refusal: &Refusal) -> &'static str {
    match refusal {
        Refusal::UnknownSku { .. } => "unknown_sku",
        Refusal::InsufficientStock { .. } | Refusal::Induced => "insufficient_stock",
    }
}

fn decode(message: &ReceivedMessage) -> Result<DeductRequest, HandlerError> {
    let undecodable = |why: String| HandlerError::Undecodable(why);
    CREATED.accept(message.header(TYPE_HEADER)).map_err(|error| undecodable(error.to_string()))?;
    let payload = message.payload.as_deref().ok_or_else(|| undecodable("no payload".into()))?;
    let created: Created =
        serde_json::from_slice(payload).map_err(|error| undecodable(error.to_string()))?;
    let item = |item: CreatedItem| Item { sku: item.sku, quantity: item.quantity };
    let items = Items::new(created.items.into_iter().map(item).collect());
    let items = items.map_err(|error| undecodable(error.to_string()))?;
    let transaction_id = message.transaction_id();
    Ok(DeductRequest { order_id: created.order_id, items, induced: false, transaction_id })
}

/// Counts a deduction of an order, and says what became of it.
pub(crate) fn tell(metrics: &StockMetrics, request: &DeductRequest, done: &Deduct) {
    let DeductRequest { order_id, items, .. } = request;
    let (outcome, line) = match done {
        Deduct::Deducted { before: false } => ("deducted", format!("deducted {items}")),
        Deduct::Deducted { before: true } => ("repeated", format!("deducted {items} before")),
        Deduct::Refused { refusal, before: false } => ("refused", not_deducted(refusal)),
        Deduct::Refused { refusal, before: true } => ("repeated", not_deducted(refusal)),
        Deduct::OrderVoid(_) => ("order_void", not_deducted("the order was given up before")),
        Deduct::OtherItems => ("conflict", not_deducted("other items were asked for before")),
    };
    metrics.deduction(outcome);
    let transaction_id = request.transaction_id.map(tracing::field::display);
    tracing::info!(target: LIFE, transaction_id, %order_id, "{line}");
}

fn not_deducted(why: impl Display) -> String {
    format!("deducted nothing ({why})")
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0198c0de-0000-7000-8000-000000000001";

    fn message(kind: Option<&'static str>, payload: String) -> ReceivedMessage {
        let header = |kind: &'static str| (TYPE_HEADER.to_owned(), Some(kind.into()));
        ReceivedMessage {
            topic: "t".into(),
            partition: 0,
            offset: 0,
            key: None,
            headers: kind.map(header).into_iter().collect(),
            payload: Some(payload.into()),
        }
    }

    fn created(items: &str) -> String {
        format!(r#"{{"order_id":"{ID}","user_id":"u","items":{items},"new":{{}}}}"#)
    }

    #[test]
    fn reads_what_order_svc_writes() {
        let items = r#"[{"sku":"b","quantity":1,"unit_price_cents":5},{"sku":"a","quantity":2}]"#;
        for kind in [None, Some("halfmsg.order.created.v1")] {
            let request = decode(&message(kind, created(items))).unwrap();
            assert_eq!(request.order_id.to_string(), ID);
            assert_eq!(request.items.to_string(), "2 x a, 1 x b");
        }
    }

    #[test]
    fn names_what_cannot_be_read() {
        let good = r#"[{"sku":"a","quantity":2}]"#;
        for (kind, items, why) in [
            (Some("halfmsg.order.created.v2"), good, "upgrade"),
            (Some("halfmsg.stock.outbound.v1"), good, "expected"),
            (None, "[]", "item"),
            (None, r#"[{"sku":"a","quantity":-1}]"#, "quantity"),
            (None, r#"[{"sku":"a"}]"#, "quantity"),
        ] {
            match decode(&message(kind, created(items))) {
                Err(HandlerError::Undecodable(text)) => assert!(text.contains(why), "{text}"),
                other => panic!("{items}: {other:?}"),
            }
        }
    }

    #[test]
    fn an_answer_is_the_same_event_however_often_it_is_given() {
        let deducter = Deducter {
            outbound_topic: "out".into(),
            subscriber: "s".into(),
            store: StockStore::new(sea_orm::DatabaseConnection::default()),
            metrics: StockMetrics::default(),
        };
        let message = message(None, created(r#"[{"sku":"a","quantity":2}]"#));
        let request = decode(&message).unwrap();
        let id = |done: Deduct| {
            let reply = deducter.answer(&message, &request, &done).unwrap();
            let found = reply.headers.iter().find(|(name, _)| name == "ce_id").unwrap();
            (found.1.clone(), reply.payload.unwrap())
        };
        let first = id(Deduct::Deducted { before: false });
        assert_eq!(first, id(Deduct::Deducted { before: true }));
        let payload: serde_json::Value = serde_json::from_slice(&first.1).unwrap();
        assert_eq!((&payload["outcome"], &payload["code"]), (&"deducted".into(), &().into()));
        let refused = id(Deduct::OrderVoid(crate::model::DeductionState::Void)).1;
        let refused: serde_json::Value = serde_json::from_slice(&refused).unwrap();
        assert_eq!(
            (&refused["outcome"], &refused["code"]),
            (&"refused".into(), &"order_void".into())
        );
        assert!(deducter.answer(&message, &request, &Deduct::OtherItems).is_err());
    }
}

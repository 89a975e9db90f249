//! The handler of the topic that asks for restores.
//!
//! A message says for which order; how much is given back is what the movements say.

use std::collections::BTreeSet;

use async_trait::async_trait;
use halfmsg_consumer::{Context, HandlerError, MessageHandler, ReceivedMessage};
use halfmsg_service_kit::db::set_lock_timeout_in_tx;
use halfmsg_service_kit::event::TYPE_HEADER;
use halfmsg_service_kit::telemetry::LIFE;
use halfmsg_service_kit::{EventType, validate};
use serde::Deserialize;
use uuid::Uuid;

use crate::locked::blame;
use crate::metrics::StockMetrics;
use crate::model::{DeductionState, in_words};
use crate::store::barrier::{Restore, RestoreRequest, restore_in_tx};
use crate::store::{SHARED_LOCK_WAIT, StockStore};

/// The stock of an order is to be given back.
pub const ROLLBACK: EventType = EventType { name: "halfmsg.stock.rollback", major: 1 };
/// A reason is cut at this many characters.
const MAX_REASON: usize = 500;

/// Restores what orders have taken.
#[derive(Debug, Clone)]
pub struct Restorer {
    store: StockStore,
    metrics: StockMetrics,
}

impl Restorer {
    /// A handler for this stock, which counts in `metrics`.
    pub fn new(store: StockStore, metrics: StockMetrics) -> Self {
        Self { store, metrics }
    }
}

/// The payload. Unknown fields are accepted: a later version of order-svc may add some.
#[derive(Deserialize)]
struct Rollback {
    order_id: Uuid,
    items: Vec<RollbackItem>,
    reason: Option<String>,
}

/// Only its sku is of interest, for the trace of an order that took nothing.
#[derive(Deserialize)]
struct RollbackItem {
    sku: String,
}

#[async_trait]
impl MessageHandler for Restorer {
    async fn handle(
        &self,
        context: &Context<'_>,
        batch: &[ReceivedMessage],
    ) -> Result<(), HandlerError> {
        let requests: Vec<RestoreRequest> = batch.iter().map(decode).collect::<Result<_, _>>()?;
        let transaction = context.transaction();
        // Whoever wants a product that it has locked already waits as well.
        set_lock_timeout_in_tx(transaction, SHARED_LOCK_WAIT).await?;
        let answers = match restore_in_tx(transaction, &requests).await {
            Ok(answers) => answers,
            Err(error) => {
                let skus: Vec<_> = requests.iter().map(|request| request.skus.clone()).collect();
                return Err(blame(&self.store, error, batch, &skus).await);
            }
        };
        for ((request, answer), message) in requests.into_iter().zip(answers).zip(batch) {
            let (metrics, transaction_id) = (self.metrics.clone(), message.transaction_id());
            context.after_commit(move || tell(&metrics, request.order_id, transaction_id, &answer));
        }
        Ok(())
    }
}

fn decode(message: &ReceivedMessage) -> Result<RestoreRequest, HandlerError> {
    ROLLBACK
        .accept(message.header(TYPE_HEADER))
        .map_err(|error| HandlerError::Undecodable(error.to_string()))?;
    let payload = message.payload.as_deref();
    let payload = payload.ok_or_else(|| HandlerError::Undecodable("no payload".into()))?;
    let rollback: Rollback = serde_json::from_slice(payload)
        .map_err(|error| HandlerError::Undecodable(error.to_string()))?;
    let skus: BTreeSet<String> = rollback
        .items
        .into_iter()
        .map(|item| item.sku)
        .filter(|sku| validate::sku("sku", sku).is_ok())
        .take(validate::MAX_ITEMS)
        .collect();
    // PostgreSQL's text cannot hold a NUL.
    let reason = rollback.reason.map(|reason| {
        reason.chars().filter(|c| !c.is_control()).take(MAX_REASON).collect::<String>()
    });
    Ok(RestoreRequest { order_id: rollback.order_id, skus: skus.into_iter().collect(), reason })
}

/// Counts a restore and says what became of it, after the commit.
fn tell(metrics: &StockMetrics, order_id: Uuid, transaction_id: Option<Uuid>, answer: &Restore) {
    metrics.restore(match answer {
        Restore::Restored(_) => "restored",
        Restore::Voided => "void",
        Restore::Before(_) => "repeated",
    });
    let transaction_id = transaction_id.map(tracing::field::display);
    tracing::info!(target: LIFE, transaction_id, %order_id, "{}", line(answer));
}

fn line(answer: &Restore) -> String {
    let why = match answer {
        Restore::Restored(items) => {
            return format!("restored {}", in_words(items));
        }
        Restore::Voided => "null compensation",
        Restore::Before(DeductionState::Refused) => "its deduction was refused",
        Restore::Before(DeductionState::Void) => "it was void before",
        Restore::Before(_) => "it was restored before",
    };
    format!("nothing to restore ({why})")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(payload: Option<&str>) -> ReceivedMessage {
        ReceivedMessage {
            topic: "t".into(),
            partition: 0,
            offset: 0,
            key: None,
            headers: Vec::new(),
            payload: payload.map(|text| text.to_owned().into()),
        }
    }

    #[test]
    fn reads_what_order_svc_writes() {
        let id = "0198c0de-0000-7000-8000-000000000001";
        let payload = format!(
            r#"{{"order_id":"{id}","user_id":"u","items":[{{"sku":"b","quantity":1}},
               {{"sku":"a","quantity":2}},{{"sku":"a b","quantity":2}}],"reason":"x\u0000y",
               "new":true}}"#
        );
        let request = decode(&message(Some(&payload))).unwrap();
        assert_eq!(request.order_id.to_string(), id);
        assert_eq!(request.skus, ["a", "b"]);
        assert_eq!(request.reason.as_deref(), Some("xy"));
    }

    #[test]
    fn says_what_was_restored() {
        let item = crate::model::Item { sku: "apple".into(), quantity: 1 };
        let restored = line(&Restore::Restored(vec![item]));
        assert_eq!(restored, "restored 1 x apple");
        let void = line(&Restore::Voided);
        assert_eq!(void, "nothing to restore (null compensation)");
    }

    #[test]
    fn names_what_cannot_be_read() {
        for payload in
            [None, Some(""), Some("{}"), Some("[]"), Some(r#"{"order_id":"x","items":[]}"#)]
        {
            let error = decode(&message(payload)).unwrap_err();
            assert!(matches!(error, HandlerError::Undecodable(_)), "{payload:?}: {error}");
        }
    }
}

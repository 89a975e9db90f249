//! The handler of `stock.outbound`: what stock-svc says about the stock of an order moves the order
//! from waiting to confirmed or rejected.
//!
//! It must never move an order that does not wait: the first answer and a cancellation stand.

use async_trait::async_trait;
use halfmsg_consumer::{Context, HandlerError, MessageHandler, ReceivedMessage};
use halfmsg_service_kit::EventType;
use halfmsg_service_kit::event::TYPE_HEADER;
use halfmsg_service_kit::telemetry::LIFE;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tracing::field::display;
use uuid::Uuid;

use crate::events::Hub;
use crate::metrics::OrderMetrics;
use crate::model::OrderId;
use crate::store::StoreError;
use crate::store::cancel::{Answered, StockAnswer, answer_in_tx};

/// What stock-svc says about the stock of an order.
pub const OUTBOUND: EventType = EventType { name: "halfmsg.stock.outbound", major: 1 };
/// Characters of a reason that are kept.
const MAX_REASON: usize = 500;

/// The payload of `stock.outbound`. Unknown fields are accepted.
#[derive(Debug, Deserialize)]
pub(crate) struct OutboundPayload {
    order_id: OrderId,
    outcome: Outcome,
    code: Option<String>,
    detail: Option<String>,
}

/// Another one would be another major version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Outcome {
    Deducted,
    Refused,
}

impl OutboundPayload {
    /// The answer in it.
    ///
    /// # Errors
    /// [`HandlerError::Undecodable`].
    pub(crate) fn of(message: &ReceivedMessage) -> Result<StockAnswer, HandlerError> {
        let payload: Self = decode(message, OUTBOUND)?;
        let refusal = (payload.outcome == Outcome::Refused).then(|| {
            let code = payload.code.unwrap_or_else(|| "refused".into());
            let text = match payload.detail {
                Some(detail) if !detail.is_empty() => format!("{code}: {detail}"),
                _ => code,
            };
            // PostgreSQL's text cannot hold a NUL.
            text.chars().filter(|c| !c.is_control()).take(MAX_REASON).collect()
        });
        Ok(StockAnswer { order_id: payload.order_id, refusal })
    }
}

/// The payload of an event of this kind.
///
/// # Errors
/// [`HandlerError::Undecodable`]: another kind, a newer version, or not what it says.
pub(crate) fn decode<T: DeserializeOwned>(
    message: &ReceivedMessage,
    kind: EventType,
) -> Result<T, HandlerError> {
    let undecodable = |why: String| HandlerError::Undecodable(why);
    kind.accept(message.header(TYPE_HEADER)).map_err(|error| undecodable(error.to_string()))?;
    let payload = message.payload.as_deref().ok_or_else(|| undecodable("no payload".into()))?;
    serde_json::from_slice(payload).map_err(|error| undecodable(error.to_string()))
}

/// What the handlers of order-svc fail with.
pub(crate) fn failed(error: StoreError) -> HandlerError {
    match error {
        StoreError::Unavailable(error)
        | StoreError::Contended(error)
        | StoreError::Refused(error) => HandlerError::Database(error),
        error => HandlerError::Failed(error.to_string()),
    }
}

/// Applies answers.
#[derive(Debug, Clone, Default)]
pub struct AnswerHandler {
    metrics: OrderMetrics,
    events: Hub,
}

impl AnswerHandler {
    /// A handler that counts in `metrics` and tells `events` of what it has changed.
    pub fn new(metrics: OrderMetrics, events: Hub) -> Self {
        Self { metrics, events }
    }
}

#[async_trait]
impl MessageHandler for AnswerHandler {
    async fn handle(
        &self,
        context: &Context<'_>,
        batch: &[ReceivedMessage],
    ) -> Result<(), HandlerError> {
        let read = |message| Ok((message, OutboundPayload::of(message)?));
        let mut answers: Vec<(&ReceivedMessage, StockAnswer)> =
            batch.iter().map(read).collect::<Result<_, HandlerError>>()?;
        // Stable, so of two for one order the first stays the first; sorted, so that two replicas
        // with the same messages do not wait for each other.
        answers.sort_by_key(|(_, answer)| answer.order_id);
        for (message, answer) in answers {
            let answered = answer_in_tx(context.transaction(), &answer).await.map_err(failed)?;
            let outcome = outcome(&answer, &answered)?;
            let transaction_id = message.transaction_id();
            let (metrics, events) = (self.metrics.clone(), self.events.clone());
            context.after_commit(move || {
                tell(&metrics, transaction_id, &answer, outcome);
                if let Answered::Now(status, at) = answered {
                    events.answered(answer.order_id, (status, at), answer.refusal.as_deref());
                }
            });
        }
        Ok(())
    }
}

/// What to count, or why this answer cannot be applied.
fn outcome(answer: &StockAnswer, answered: &Answered) -> Result<&'static str, HandlerError> {
    let id = answer.order_id;
    match answered {
        Answered::Now(status, _) => Ok(status.as_str()),
        Answered::Before(_) => Ok("repeated"),
        Answered::Cancelled => Ok("cancelled_before"),
        // Its message is sent after its row is committed, and rows are never deleted: this is
        // another database, or one that was put back to an earlier state.
        Answered::Missing => Err(HandlerError::Failed(format!("there is no order {id}"))),
        Answered::Contradicts(found) => Err(HandlerError::Undecodable(format!(
            "order {id} is {}, which the answer '{}' contradicts",
            found.as_str(),
            answer.refusal.as_deref().unwrap_or("deducted")
        ))),
    }
}

fn tell(
    metrics: &OrderMetrics,
    transaction_id: Option<Uuid>,
    answer: &StockAnswer,
    outcome: &'static str,
) {
    metrics.answered(outcome);
    let (order_id, why) = (answer.order_id, answer.refusal.as_deref().unwrap_or("deducted"));
    let transaction_id = transaction_id.map(display);
    tracing::info!(target: LIFE, %order_id, transaction_id, "stock answered ({why}): {outcome}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: Option<&str>, payload: &str) -> ReceivedMessage {
        let value = |text: &str| Some(bytes::Bytes::copy_from_slice(text.as_bytes()));
        let headers = kind.map(|kind| (TYPE_HEADER.to_owned(), value(kind)));
        ReceivedMessage {
            topic: "t".into(),
            partition: 0,
            offset: 0,
            key: None,
            headers: headers.into_iter().collect(),
            payload: value(payload),
        }
    }

    const ID: &str = "0198c0de-0000-7000-8000-000000000001";

    #[test]
    fn reads_what_stock_svc_writes_and_passes_over_what_is_new() {
        let text = format!(r#"{{"order_id":"{ID}","outcome":"deducted","items":[],"new":[1]}}"#);
        let answer = OutboundPayload::of(&message(Some("halfmsg.stock.outbound.v1"), &text));
        let answer = answer.expect("an answer");
        assert_eq!((answer.order_id.to_string().as_str(), answer.refusal), (ID, None));
        let text = format!(
            r#"{{"order_id":"{ID}","outcome":"refused","code":"order_void","detail":"a\u0000b"}}"#
        );
        let answer = OutboundPayload::of(&message(None, &text)).expect("an answer");
        assert_eq!(answer.refusal.as_deref(), Some("order_void: ab"));
    }

    #[test]
    fn a_newer_version_is_named() {
        let text = format!(r#"{{"order_id":"{ID}","outcome":"deducted"}}"#);
        let error = OutboundPayload::of(&message(Some("halfmsg.stock.outbound.v2"), &text));
        let Err(HandlerError::Undecodable(why)) = error else { panic!("{error:?}") };
        assert!(why.contains("v2") && why.contains("upgrade"), "{why}");
        for (kind, text) in [(None, "{}"), (Some("halfmsg.order.created.v1"), text.as_str())] {
            let error = OutboundPayload::of(&message(kind, text));
            assert!(matches!(error, Err(HandlerError::Undecodable(_))), "{kind:?}");
        }
    }
}

//! The answer to `POST /orders`: a function of the order's row, so that it can be given again.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use halfmsg_service_kit::ApiError;
use serde_json::Value;

use crate::model::{Flow, Order, OrderId, OrderStatus};
use crate::reason::VoidReason;
use crate::store::idempotency::StoredAnswer;

/// Set on an answer that an earlier request got already.
pub const REPLAYED: &str = "idempotency-replayed";

/// An answer that follows an order's row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    stored: StoredAnswer,
    replayed: bool,
}

impl Answer {
    /// The answer of this row: 201 with the order, or 202 if it waits, or waited, for its stock; or
    /// the problem that made it void.
    ///
    /// # Errors
    /// An order that cannot be written as JSON; never in practice.
    pub fn of(order: &Order) -> Result<Self, ApiError> {
        let (status, body) = match order.status {
            OrderStatus::Void => {
                let problem = void_problem(order);
                (problem.status(), problem.body())
            }
            _ => {
                let of = |error| ApiError::internal_of(order.id, Some(order.transaction_id), error);
                (accepted(order.flow), serde_json::to_value(order).map_err(of)?)
            }
        };
        let stored = StoredAnswer {
            order_id: order.id,
            status: status.as_u16(),
            body: Value::to_string(&body),
        };
        Ok(Self { stored, replayed: false })
    }

    /// The answer that an earlier request got.
    pub fn again(stored: StoredAnswer) -> Self {
        Self { stored, replayed: true }
    }

    /// The order.
    pub fn order_id(&self) -> OrderId {
        self.stored.order_id
    }

    /// The order's local transaction, as the answer's body says it: for the log.
    pub fn transaction_id(&self) -> Option<String> {
        let body: Value = serde_json::from_str(&self.stored.body).ok()?;
        Some(body.get("transaction_id")?.as_str()?.to_owned())
    }

    /// Its HTTP status.
    pub fn status(&self) -> u16 {
        self.stored.status
    }

    /// What is kept of it for a repeated request.
    pub fn stored(&self) -> &StoredAnswer {
        &self.stored
    }
}

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        let status =
            StatusCode::from_u16(self.stored.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, self.stored.body).into_response();
        let headers = response.headers_mut();
        let content_type =
            if status.is_success() { "application/json" } else { "application/problem+json" };
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        if status.is_success()
            && let Ok(place) = HeaderValue::try_from(path_of(self.stored.order_id))
        {
            headers.insert(header::LOCATION, place);
        }
        if self.replayed {
            headers.insert(REPLAYED, HeaderValue::from_static("true"));
        }
        response
    }
}

fn accepted(flow: Flow) -> StatusCode {
    match flow {
        Flow::Rollback => StatusCode::CREATED,
        Flow::Saga => StatusCode::ACCEPTED,
    }
}

/// Where an order is found.
pub fn path_of(order_id: OrderId) -> String {
    format!("/orders/{order_id}")
}

fn void_problem(order: &Order) -> ApiError {
    let text = order.reason.as_deref().unwrap_or_default();
    let problem = match VoidReason::of_text(text) {
        Some((reason, detail)) => {
            let status = StatusCode::from_u16(reason.http_status())
                .unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            let problem = ApiError::new(status, reason.as_str(), reason.title(order.flow));
            if detail.is_empty() { problem } else { problem.detail(detail) }
        }
        None => {
            ApiError::new(StatusCode::CONFLICT, "order_void", "The order is void.").detail(text)
        }
    };
    let problem = problem.with("order_id", order.id);
    // An order that was void before it got a half message has its own id in place of one.
    if order.transaction_id.as_uuid() == order.id.as_uuid() {
        return problem;
    }
    problem.with("transaction_id", order.transaction_id.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::draft::{Draft, Prices};
    use crate::model::Item;
    use halfmsg_producer::TransactionId;
    use uuid::Uuid;

    fn draft() -> Draft {
        Draft {
            id: OrderId::generate(),
            transaction_id: TransactionId::from_uuid(Uuid::now_v7()),
            user_id: "u".into(),
            items: vec![Item { sku: "a".into(), quantity: 2 }],
            flow: Flow::Rollback,
        }
    }

    #[test]
    fn a_confirmed_order_is_created_and_located() {
        let order = draft().standing(&Prices::from([("a".to_owned(), 5)])).expect("it fits");
        let response = Answer::of(&order).expect("an answer").into_response();
        assert_eq!(response.status(), StatusCode::CREATED);
        assert_eq!(response.headers()["location"], path_of(order.id).as_str());
        assert_eq!(response.headers()["content-type"], "application/json");
    }

    #[test]
    fn an_order_that_waits_for_its_stock_is_accepted_and_located() {
        let draft = Draft { flow: Flow::Saga, ..draft() };
        let pending = draft.standing(&Prices::from([("a".to_owned(), 5)])).expect("it fits");
        let response = Answer::of(&pending).expect("an answer").into_response();
        assert_eq!(response.status(), StatusCode::ACCEPTED);
        assert_eq!(response.headers()["location"], path_of(pending.id).as_str());
        let void = draft.void(VoidReason::Fenced.to_text(""), None, false);
        let body: Value =
            serde_json::from_str(&Answer::of(&void).expect("one").stored().body).expect("JSON");
        assert!(!body["title"].as_str().expect("a title").contains("restored"), "{body}");
    }

    #[test]
    fn a_void_order_answers_with_its_reason() {
        for reason in VoidReason::ALL {
            let order = draft().void(reason.to_text("why"), None, false);
            let answer = Answer::of(&order).expect("an answer");
            assert_eq!(answer.status(), reason.http_status());
            let body: Value = serde_json::from_str(&answer.stored().body).expect("JSON");
            assert_eq!(body["code"], reason.as_str());
            assert_eq!(body["detail"], "why");
            assert_eq!(body["order_id"], order.id.to_string());
            assert_eq!(body["transaction_id"], order.transaction_id.to_string());
            let response = answer.into_response();
            assert_eq!(response.headers()["content-type"], "application/problem+json");
        }
    }

    #[test]
    fn a_reason_of_a_later_version_is_an_ordinary_conflict() {
        let order = draft().void("from the future".into(), None, false);
        assert_eq!(Answer::of(&order).expect("an answer").status(), 409);
    }
}

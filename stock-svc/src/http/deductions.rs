//! Deductions: what an order takes.

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use halfmsg_consumer::TRANSACTION_ID_HEADER;
use halfmsg_service_kit::openapi::{BODY, DATABASE, FAULT, OpenApiRouter, ProblemType, problem};
use halfmsg_service_kit::telemetry::LIFE;
use halfmsg_service_kit::{ApiError, Json, task};
use serde::{Deserialize, Serialize};
use utoipa_axum::routes;
use uuid::Uuid;

use super::Api;
use crate::deduct::tell;
use crate::fault::{Fault, STALL};
use crate::model::{DeductionState, Item, Items, Refusal};
use crate::store::barrier::{Deduct, DeductRequest};
use crate::store::order_problem;

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::default().routes(routes!(deduct))
}

#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = DeductionRequest, example = json!({
    "order_id": "0198c0de-0000-7000-8000-000000000001",
    "items": [{"sku": "apple", "quantity": 2}]
}))]
struct Request {
    /// The order; what it is answered is kept, and answered again.
    order_id: Uuid,
    /// No sku twice.
    #[schema(min_items = 1, max_items = 100)]
    items: Vec<Item>,
}

#[derive(Debug, Serialize, utoipa::ToSchema)]
struct Deduction {
    order_id: Uuid,
    state: DeductionState,
    /// In the order of their skus.
    #[schema(value_type = Vec<Item>)]
    items: Items,
}

const REFUSED: &[ProblemType] = &[
    problem(409, "insufficient_stock", "less is there than was asked for; nothing was taken"),
    problem(409, "order_void", "the order was given up before"),
    problem(409, "deduction_conflict", "the order was deducted with other items"),
    problem(422, "unknown_sku", "there is no such product; nothing was taken"),
];
halfmsg_service_kit::problems!(DeductProblems: BODY, FAULT, REFUSED, DATABASE);

/// Takes an order's items from the stock: all or none, once per order
#[utoipa::path(
    post, path = "/deductions", tag = "deductions", request_body = Request,
    params((
        "X-Fault" = Option<String>, Header,
        description = "An induced failure, where they are on: `deduct-refused`, `deduct-timeout`",
        pattern = "^deduct-(refused|timeout)$"
    ), (
        "halfmsg-transaction-id" = Option<String>, Header,
        description = "The half message of the order, for the log: what is no UUID is taken for none"
    )),
    responses((status = 200, description = "Deducted", body = Deduction), DeductProblems)
)]
async fn deduct(
    State(api): State<Api>,
    headers: HeaderMap,
    Json(request): Json<Request>,
) -> Result<Json<Deduction>, ApiError> {
    let known = [Fault::DeductRefused, Fault::DeductTimeout];
    let fault = Fault::asked(&headers, api.faults, &known)?;
    let order_id = request.order_id;
    let items = Items::new(request.items).map_err(|error| error.with("order_id", order_id))?;
    let induced = fault == Some(Fault::DeductRefused);
    // A client that hangs up leaves no deduction in the middle, and none untold.
    let transaction_id = transaction_id(&headers);
    let asked = DeductRequest { order_id, items: items.clone(), induced, transaction_id };
    let work = async move {
        let done = api.deductions.deduct(asked.clone()).await;
        let done = done.map_err(|error| order_problem(order_id, transaction_id, error))?;
        tell(&api.metrics, &asked, &done);
        Ok(done)
    };
    let done = task::run_to_end(work).await.map_err(|error| error.with("order_id", order_id))?;
    if fault == Some(Fault::DeductTimeout) {
        let transaction_id = transaction_id.map(tracing::field::display);
        tracing::info!(target: LIFE, %order_id, transaction_id, "holding back the answer (X-Fault)");
        tokio::time::sleep(STALL).await;
    }
    answer(order_id, items, done)
}

/// The half message that the caller names for the log; nothing else depends on it.
fn transaction_id(headers: &HeaderMap) -> Option<Uuid> {
    Uuid::try_parse_ascii(headers.get(TRANSACTION_ID_HEADER)?.as_bytes()).ok()
}

fn answer(order_id: Uuid, items: Items, done: Deduct) -> Result<Json<Deduction>, ApiError> {
    let problem = match done {
        Deduct::Deducted { .. } => {
            return Ok(Json(Deduction { order_id, state: DeductionState::Deducted, items }));
        }
        Deduct::Refused { refusal, .. } => refused(&refusal),
        Deduct::OrderVoid(state) => {
            conflict("order_void", "the order was given up before").with("state", state)
        }
        Deduct::OtherItems => {
            conflict("deduction_conflict", "the order was deducted with other items")
        }
    };
    Err(problem.with("order_id", order_id))
}

fn refused(refusal: &Refusal) -> ApiError {
    let detail = refusal.to_string();
    match refusal {
        Refusal::UnknownSku { sku } => ApiError::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "unknown_sku",
            "there is no such product",
        )
        .detail(detail)
        .with("sku", sku),
        Refusal::InsufficientStock { sku, requested, available } => {
            conflict("insufficient_stock", "there is not enough stock")
                .detail(detail)
                .with("sku", sku)
                .with("requested", requested)
                .with("available", available)
        }
        Refusal::Induced => {
            conflict("insufficient_stock", "there is not enough stock").detail(detail)
        }
    }
}

fn conflict(code: &'static str, title: &str) -> ApiError {
    ApiError::new(StatusCode::CONFLICT, code, title)
}

//! Deductions: what an order takes.

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use halfmsg_service_kit::telemetry::LIFE;
use halfmsg_service_kit::{ApiError, Json, task};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::Api;
use crate::deduct::tell;
use crate::fault::{Fault, STALL};
use crate::model::{DeductionState, Item, Items, Refusal};
use crate::store::barrier::{Deduct, DeductRequest};

pub(super) fn routes() -> Router<Api> {
    Router::new().route("/deductions", post(deduct))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    order_id: Uuid,
    items: Vec<Item>,
}

#[derive(Debug, Serialize)]
struct Deduction {
    order_id: Uuid,
    state: DeductionState,
    items: Items,
}

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
    let asked = DeductRequest { order_id, items: items.clone(), induced };
    let work = async move {
        let done = api.deductions.deduct(asked.clone()).await?;
        tell(&api.metrics, (order_id, None), &asked.items, &done);
        Ok(done)
    };
    let done = task::run_to_end(work).await.map_err(|error| error.with("order_id", order_id))?;
    if fault == Some(Fault::DeductTimeout) {
        tracing::info!(target: LIFE, %order_id, "holding back the answer (X-Fault)");
        tokio::time::sleep(STALL).await;
    }
    answer(order_id, items, done)
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

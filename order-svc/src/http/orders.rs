//! Orders: placing one, looking at one, listing them.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::{get, post};
use chrono::TimeDelta;
use halfmsg_service_kit::telemetry::LIFE;
use halfmsg_service_kit::{ApiError, Json, Path, Query, db, task};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Api, page_limit, trace};
use crate::answer::Answer;
use crate::fault::{self, Fault};
use crate::model::{Flow, NewOrder, Order, OrderId, OrderStatus, PlaceRequest};
use crate::place::{PlaceOrder, database_problem};
use crate::store::idempotency::RepeatKey;
use crate::store::list::{DEFAULT_LIMIT, MAX_LIMIT, OrderFilter, Place};

/// Names a request that may be repeated.
pub const IDEMPOTENCY_KEY: &str = "idempotency-key";
/// Bytes of an Idempotency-Key.
pub const MAX_KEY_BYTES: usize = 255;

pub(super) fn routes() -> Router<Api> {
    Router::new()
        .route("/orders", post(place).get(list))
        .route("/orders/{id}", get(find))
        .route("/orders/{id}/cancel", post(cancel))
}

async fn place(
    State(api): State<Api>,
    headers: HeaderMap,
    Json(request): Json<PlaceRequest>,
) -> Result<Answer, ApiError> {
    let fault = asked_fault(&headers, api.faults)?;
    let order = request.validate()?;
    fault_of_flow(fault, order.flow)?;
    let key = repeat_key(&headers, &order)?;
    let placer = api.placer.clone();
    let request = PlaceOrder { order, fault, key, trace: trace::parent(&headers) };
    let answered = task::run_to_end(api.placer.track(async move { placer.place(request).await }));
    let answered = answered.await;
    match &answered {
        Ok(answer) => {
            let order_id = answer.order_id();
            tracing::info!(target: LIFE, %order_id, "request answered: {}", answer.status());
        }
        Err(problem) => {
            let (order_id, transaction_id) =
                (problem.member("order_id"), problem.member("transaction_id"));
            tracing::info!(target: LIFE, order_id, transaction_id, "request answered: {problem}");
        }
    }
    answered
}

async fn find(State(api): State<Api>, Path(id): Path<OrderId>) -> Result<Json<Order>, ApiError> {
    let found = api.store.find(id).await.map_err(database_problem)?;
    found.map(Json).ok_or_else(|| {
        ApiError::not_found("no order has this id; one that was just asked for may come soon")
            .with("order_id", id)
    })
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ListQuery {
    status: Option<OrderStatus>,
    older_than_seconds: Option<u32>,
    limit: Option<u64>,
    cursor: Option<String>,
}

#[derive(Debug, Serialize)]
struct OrderList {
    items: Vec<Order>,
    next_cursor: Option<String>,
}

async fn list(
    State(api): State<Api>,
    Query(query): Query<ListQuery>,
) -> Result<Json<OrderList>, ApiError> {
    let limit = page_limit(query.limit, DEFAULT_LIMIT, MAX_LIMIT)?;
    let after = match query.cursor.as_deref() {
        None => None,
        Some(cursor) => Some(Place::parse(cursor).ok_or_else(|| {
            ApiError::invalid("cursor must be the next_cursor of an earlier page")
        })?),
    };
    let age = query.older_than_seconds.map(|seconds| TimeDelta::seconds(i64::from(seconds)));
    let before = age.map(|age| db::now() - age);
    let filter = OrderFilter { status: query.status, before, limit, after };
    let page = api.store.list(filter).await.map_err(database_problem)?;
    let next_cursor = page.next.map(Place::to_cursor);
    Ok(Json(OrderList { items: page.orders, next_cursor }))
}

async fn cancel(
    State(api): State<Api>,
    headers: HeaderMap,
    Path(id): Path<OrderId>,
) -> Result<Json<Order>, ApiError> {
    let canceller = Arc::clone(&api.canceller);
    let trace = trace::parent(&headers);
    let work = api.placer.track(async move { canceller.cancel(id, trace).await });
    Ok(Json(task::run_to_end(work).await?))
}

fn asked_fault(headers: &HeaderMap, faults: bool) -> Result<Option<Fault>, ApiError> {
    let Some(asked) = headers.get(fault::HEADER) else { return Ok(None) };
    if !faults {
        return Err(ApiError::new(
            StatusCode::FORBIDDEN,
            "faults_disabled",
            "Induced failures are switched off.",
        )
        .detail("start the service with HALFMSG_FAULTS=on to allow X-Fault"));
    }
    let known = asked.to_str().ok().and_then(Fault::from_name);
    known.map(Some).ok_or_else(|| {
        let names: Vec<_> = Fault::ALL.into_iter().map(Fault::as_str).collect();
        ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "unknown_fault", "No such X-Fault.")
            .detail(format!("known are: {}", names.join(", ")))
    })
}

fn fault_of_flow(fault: Option<Fault>, flow: Flow) -> Result<(), ApiError> {
    let Some(fault) = fault.filter(|fault| !fault.is_of(flow)) else { return Ok(()) };
    let known = Fault::ALL.into_iter().filter(|fault| fault.is_of(flow));
    let names: Vec<_> = known.map(Fault::as_str).collect();
    Err(ApiError::new(
        StatusCode::UNPROCESSABLE_ENTITY,
        "fault_not_of_flow",
        "The X-Fault cannot happen in this flow.",
    )
    .detail(format!(
        "{} is not of flow {}: {}",
        fault.as_str(),
        flow.as_str(),
        names.join(", ")
    )))
}

fn repeat_key(headers: &HeaderMap, order: &NewOrder) -> Result<Option<RepeatKey>, ApiError> {
    let Some(key) = headers.get(IDEMPOTENCY_KEY) else { return Ok(None) };
    let fit = |key: &&str| (1..=MAX_KEY_BYTES).contains(&key.len());
    let Some(key) = key.to_str().ok().filter(fit) else {
        return Err(ApiError::invalid(format!(
            "the header Idempotency-Key must be 1 to {MAX_KEY_BYTES} visible ASCII characters"
        )));
    };
    let body = serde_json::to_vec(order).map_err(ApiError::internal)?;
    let body_hash = format!("{:x}", Sha256::digest(&body));
    Ok(Some(RepeatKey { key: key.to_owned(), body_hash }))
}

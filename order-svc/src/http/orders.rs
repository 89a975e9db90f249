//! Orders: placing one, looking at one, listing them.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use chrono::TimeDelta;
use halfmsg_service_kit::list::limit as page_limit;
use halfmsg_service_kit::openapi::{
    BODY, DATABASE, FAULT, OpenApiRouter, PATH, ProblemType, QUERY, problem,
};
use halfmsg_service_kit::telemetry::LIFE;
use halfmsg_service_kit::{ApiError, Json, List, Path, Query, db, task};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use utoipa_axum::routes;

use super::{Api, trace};
use crate::answer::Answer;
use crate::fault::{self, Fault};
use crate::model::{Flow, NewOrder, Order, OrderId, OrderStatus, PlaceRequest};
use crate::place::{PlaceOrder, database_problem, order_problem};
use crate::reason::VoidReason;
use crate::store::idempotency::RepeatKey;
use crate::store::list::{DEFAULT_LIMIT, MAX_LIMIT, OrderFilter, Place};

/// Names a request that may be repeated.
pub const IDEMPOTENCY_KEY: &str = "idempotency-key";
/// Bytes of an Idempotency-Key.
pub const MAX_KEY_BYTES: usize = 255;

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::default()
        .routes(routes!(place, list))
        .routes(routes!(find))
        .routes(routes!(cancel))
}

const BEGINNING: &[ProblemType] = &[
    problem(503, "kafka_unavailable", "Kafka cannot be reached; nothing was changed"),
    problem(503, "topic_missing", "a topic of the service does not exist yet"),
    problem(503, "overloaded", "too much is under way"),
    problem(503, "shutting_down", "the service is stopping"),
];
const PLACING: &[ProblemType] = &[
    problem(409, "order_in_progress", "the first request with this Idempotency-Key still runs"),
    problem(409, "order_void", "the order is void for a reason of another version"),
    problem(422, "idempotency_key_reused", "the Idempotency-Key was used for another order"),
    problem(422, "fault_not_of_flow", "the `X-Fault` cannot happen in this flow"),
    problem(504, "outcome_unknown", "the order's status tells soon"),
];
/// A void order answers with the reason in its row.
const VOID: [ProblemType; VoidReason::ALL.len()] = {
    let mut all = [problem(0, "", ""); VoidReason::ALL.len()];
    let mut index = 0;
    while index < all.len() {
        let reason = VoidReason::ALL[index];
        let title = reason.title(Flow::Rollback);
        all[index] = problem(reason.http_status(), reason.as_str(), title);
        index += 1;
    }
    all
};
const CANCELLING: &[ProblemType] = &[
    problem(409, "order_not_cancellable", "it is rejected or void"),
    problem(503, "cancel_given_up", "it took too long; the order is as it was"),
    problem(504, "outcome_unknown", "repeat it: an order is cancelled once"),
];

halfmsg_service_kit::problems!(
    PlaceProblems: BODY, FAULT, PLACING, &VOID, BEGINNING, DATABASE
);
halfmsg_service_kit::problems!(FindProblems: PATH, DATABASE);
halfmsg_service_kit::problems!(ListProblems: QUERY, DATABASE);
halfmsg_service_kit::problems!(CancelProblems: PATH, CANCELLING, BEGINNING, DATABASE);

/// Places an order
///
/// With an `Idempotency-Key` it may be repeated: same key and body get the first answer again, with
/// `Idempotency-Replayed`. Every problem that names an `order_id` leaves a void order behind, whose
/// stock is restored.
#[utoipa::path(
    post, path = "/orders", tag = "orders", operation_id = "place_order",
    request_body = PlaceRequest,
    params(
        ("Idempotency-Key" = Option<String>, Header, description = "Makes a repeat safe, for 24 h",
            min_length = 1, max_length = 255, pattern = "^[ -~]+$"),
        ("X-Fault" = Option<String>, Header,
            description = "An induced failure, where they are on; else 403",
            pattern = "^(price-lookup|deduct-refused|deduct-timeout|after-deduct|order-insert|decision-lost|slow-local|crash-after-half|crash-after-deduct|crash-after-order)$"),
        ("traceparent" = Option<String>, Header,
            description = "W3C Trace Context; a broken one is passed over"),
    ),
    responses(
        (status = 201, description = "Flow `rollback`: confirmed", body = Order, headers(
            ("Location" = String, description = "Where the order is"),
            ("Idempotency-Replayed" = Option<String>, description = "`true`: the first answer"),
        )),
        (status = 202, description = "Flow `saga`: it waits for its stock", body = Order, headers(
            ("Location" = String, description = "Where the order is"),
            ("Idempotency-Replayed" = Option<String>, description = "`true`: the first answer"),
        )),
        PlaceProblems
    )
)]
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
            tracing::info!(
                target: LIFE, %order_id, transaction_id = answer.transaction_id(),
                "request answered: {}", answer.status()
            );
        }
        Err(problem) => {
            let (order_id, transaction_id) =
                (problem.member("order_id"), problem.member("transaction_id"));
            tracing::info!(target: LIFE, order_id, transaction_id, "request answered: {problem}");
        }
    }
    answered
}

/// Shows an order
#[utoipa::path(
    get, path = "/orders/{id}", tag = "orders", operation_id = "show_order",
    params(("id" = OrderId, Path, description = "The order")),
    responses((status = 200, description = "The order", body = Order), FindProblems)
)]
async fn find(State(api): State<Api>, Path(id): Path<OrderId>) -> Result<Json<Order>, ApiError> {
    let found = api.store.find(id).await.map_err(|error| order_problem(id, None, error))?;
    found.map(Json).ok_or_else(|| {
        ApiError::not_found("no order has this id; one that was just asked for may come soon")
            .with("order_id", id)
    })
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct ListQuery {
    /// With this status.
    #[param(inline)]
    status: Option<OrderStatus>,
    /// Placed so long ago: `status=pending_stock&older_than_seconds=60` got no answer.
    older_than_seconds: Option<u32>,
    /// At most so many; 50 if not given.
    #[param(minimum = 1, maximum = 500)]
    limit: Option<u64>,
    /// `next_cursor` of the page before.
    #[param(pattern = "^[0-9]{1,17}[.][0-9a-f]{32}$")]
    cursor: Option<String>,
}

/// Lists orders, the newest first
#[utoipa::path(
    get, path = "/orders", tag = "orders", operation_id = "list_orders", params(ListQuery),
    responses((status = 200, description = "A page", body = List<Order>), ListProblems)
)]
async fn list(
    State(api): State<Api>,
    Query(query): Query<ListQuery>,
) -> Result<Json<List<Order>>, ApiError> {
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
    Ok(Json(List { items: page.orders, next_cursor }))
}

/// Cancels an order, of either flow, at any moment; repeating it is harmless
#[utoipa::path(
    post, path = "/orders/{id}/cancel", tag = "orders", operation_id = "cancel_order",
    params(
        ("id" = OrderId, Path, description = "The order"),
        ("traceparent" = Option<String>, Header,
            description = "W3C Trace Context; a broken one is passed over"),
    ),
    responses((status = 200, description = "It is cancelled", body = Order), CancelProblems)
)]
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

#[cfg(test)]
mod tests {
    use halfmsg_service_kit::validate;

    use super::*;

    /// Attributes take no constants.
    #[test]
    fn the_document_has_the_limits_that_are_checked() {
        let (_, api) = routes().split_for_parts();
        let api = serde_json::to_value(api).expect("JSON");
        let place = &api["paths"]["/orders"]["post"]["parameters"];
        let names = Fault::ALL.map(Fault::as_str).join("|");
        assert_eq!(place[1]["schema"]["pattern"], format!("^({names})$"));
        assert_eq!(place[0]["schema"]["maxLength"], MAX_KEY_BYTES);
        let list = &api["paths"]["/orders"]["get"]["parameters"][2];
        assert_eq!(
            (&list["name"], &list["schema"]["maximum"]),
            (&"limit".into(), &MAX_LIMIT.into())
        );
        let schemas = &api["components"]["schemas"];
        let request = &schemas["PlaceRequest"]["properties"];
        assert_eq!(request["user_id"]["maxLength"], crate::model::MAX_USER_ID_CHARS);
        assert_eq!(request["items"]["maxItems"], validate::MAX_ITEMS);
        let item = &schemas["RequestedItem"]["properties"];
        assert_eq!(item["sku"]["maxLength"], validate::MAX_SKU);
        assert_eq!(item["quantity"]["maximum"], validate::MAX_QUANTITY);
    }
}

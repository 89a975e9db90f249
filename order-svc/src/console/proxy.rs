//! What the page needs of stock-svc, from this origin: movements and dead letters. A token that the
//! page sends is passed on; nothing is added to it and nothing kept.

use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use halfmsg_consumer::DeadLetterState;
use halfmsg_service_kit::dead_letters::Discard;
use halfmsg_service_kit::openapi::{BODY, OpenApiRouter, PATH, ProblemType, QUERY, TOKEN, problem};
use halfmsg_service_kit::{ApiError, Json, Path, Query};
use serde::{Deserialize, Serialize};
use utoipa_axum::routes;
use uuid::Uuid;

use crate::http::Api;
use crate::stock::{StockClient, brief, read};

/// For one question of the page to stock-svc, its answer included.
pub(super) const VIEW_DEADLINE: Duration = Duration::from_secs(3);
/// A replay runs the handler before it is answered.
const REPLAY_DEADLINE: Duration = Duration::from_secs(15);
/// When to ask again.
const ASK_AGAIN_SECS: u64 = 2;
/// What of an answer's head is passed on.
const PASSED_ON: [HeaderName; 3] =
    [header::CONTENT_TYPE, header::RETRY_AFTER, header::WWW_AUTHENTICATE];

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::default()
        .routes(routes!(movements))
        .routes(routes!(dead_letters))
        .routes(routes!(dead_letter))
        .routes(routes!(replay))
        .routes(routes!(discard))
}

/// With those of stock-svc, whose answer is passed on.
pub(super) const STOCK: &[ProblemType] = &[
    problem(503, "stock_unreachable", "stock-svc gives no answer"),
    problem(503, "database_unavailable", "stock-svc's database cannot be reached"),
    problem(503, "database_busy", "stock-svc's database is busy"),
];
const NOT_OPEN: &[ProblemType] =
    &[problem(409, "not_open", "it is queued, replayed or discarded already")];
const BEHIND: &[ProblemType] =
    &[problem(409, "behind", "an earlier message of its key waits for its retry: queue it")];
const NO_HANDLER: &[ProblemType] =
    &[problem(409, "no_handler", "stock-svc has no handler for its topic: discard it")];
const SETTLED: &[ProblemType] = &[
    problem(409, "not_open", "it is replayed or discarded already"),
    problem(409, "being_tried", "its queued replay is being tried right now: ask again"),
];
const FAILED: &[ProblemType] = &[problem(409, "replay_failed", "the message failed again")];
halfmsg_service_kit::problems!(MovementsProblems: QUERY, STOCK);
halfmsg_service_kit::problems!(LettersProblems: QUERY, TOKEN, STOCK);
halfmsg_service_kit::problems!(LetterProblems: PATH, TOKEN, STOCK);
halfmsg_service_kit::problems!(ReplayProblems: PATH, TOKEN, NOT_OPEN, BEHIND, NO_HANDLER, FAILED, STOCK);
halfmsg_service_kit::problems!(DiscardProblems: BODY, PATH, TOKEN, SETTLED, STOCK);

#[derive(Debug, Deserialize, Serialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct MovementsQuery {
    /// Of this order.
    order_id: Uuid,
}

/// stock-svc's movements of an order, for the console
#[utoipa::path(
    get, path = "/api/movements", tag = "console", operation_id = "console_movements",
    params(MovementsQuery),
    responses(
        (status = 200, description = "As stock-svc's GET /movements", body = serde_json::Value),
        MovementsProblems
    )
)]
async fn movements(
    State(api): State<Api>,
    Query(query): Query<MovementsQuery>,
) -> Result<Response, ApiError> {
    let ask = Ask::view("movements");
    ask.pass_on(api.desk.stock(), &query, &HeaderMap::new()).await
}

#[derive(Debug, Deserialize, Serialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct LettersQuery {
    /// In this state.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[param(inline)]
    state: Option<DeadLetterState>,
    /// At most so many; 50 if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[param(minimum = 1, maximum = 500)]
    limit: Option<u64>,
    /// `next_cursor` of the page before.
    #[serde(skip_serializing_if = "Option::is_none")]
    cursor: Option<Uuid>,
}

/// stock-svc's dead letters, for the console
#[utoipa::path(
    get, path = "/api/dead-letters", tag = "console", operation_id = "console_dead_letters",
    params(LettersQuery),
    responses(
        (status = 200, description = "As stock-svc's GET /dead-letters", body = serde_json::Value),
        LettersProblems
    ),
    security((), ("operator" = []))
)]
async fn dead_letters(
    State(api): State<Api>,
    headers: HeaderMap,
    Query(query): Query<LettersQuery>,
) -> Result<Response, ApiError> {
    Ask::view("dead-letters").pass_on(api.desk.stock(), &query, &headers).await
}

/// A dead letter of stock-svc, for the console; its payload only with the operators' token
#[utoipa::path(
    get, path = "/api/dead-letters/{id}", tag = "console",
    operation_id = "console_show_dead_letter",
    params(("id" = Uuid, Path, description = "The dead letter")),
    responses(
        (status = 200, description = "As stock-svc's answer", body = serde_json::Value),
        LetterProblems
    ),
    security((), ("operator" = []))
)]
async fn dead_letter(
    State(api): State<Api>,
    headers: HeaderMap,
    Path(id): Path<Uuid>,
) -> Result<Response, ApiError> {
    let ask = Ask::view(format!("dead-letters/{id}"));
    ask.pass_on(api.desk.stock(), &(), &headers).await
}

/// Replays a dead letter of stock-svc, for the console
#[utoipa::path(
    post, path = "/api/dead-letters/{id}/replay", tag = "console",
    operation_id = "console_replay_dead_letter",
    params(("id" = Uuid, Path, description = "The dead letter")),
    responses(
        (status = 200, description = "As stock-svc's answer", body = serde_json::Value),
        ReplayProblems
    ),
    security(("operator" = []))
)]
async fn replay(
    State(api): State<Api>,
    headers: HeaderMap,
    Path(id): Path<Uuid>,
) -> Result<Response, ApiError> {
    let ask = Ask::act(format!("dead-letters/{id}/replay"), None);
    ask.pass_on(api.desk.stock(), &(), &headers).await
}

/// Gives a dead letter of stock-svc up for good, open or queued, for the console
#[utoipa::path(
    post, path = "/api/dead-letters/{id}/discard", tag = "console",
    operation_id = "console_discard_dead_letter",
    params(("id" = Uuid, Path, description = "The dead letter")), request_body = Discard,
    responses(
        (status = 200, description = "As stock-svc's answer", body = serde_json::Value),
        DiscardProblems
    ),
    security(("operator" = []))
)]
async fn discard(
    State(api): State<Api>,
    headers: HeaderMap,
    Path(id): Path<Uuid>,
    Json(why): Json<Discard>,
) -> Result<Response, ApiError> {
    let body = serde_json::to_value(why).map_err(ApiError::internal)?;
    let ask = Ask::act(format!("dead-letters/{id}/discard"), Some(body));
    ask.pass_on(api.desk.stock(), &(), &headers).await
}

/// A question to stock-svc.
struct Ask {
    method: Method,
    path: String,
    body: Option<serde_json::Value>,
    deadline: Duration,
}

impl Ask {
    fn view(path: impl Into<String>) -> Self {
        Self { method: Method::GET, path: path.into(), body: None, deadline: VIEW_DEADLINE }
    }

    fn act(path: String, body: Option<serde_json::Value>) -> Self {
        Self { method: Method::POST, path, body, deadline: REPLAY_DEADLINE }
    }

    /// Asks, and gives stock-svc's answer as it is.
    async fn pass_on(
        self,
        stock: &StockClient,
        query: &impl Serialize,
        headers: &HeaderMap,
    ) -> Result<Response, ApiError> {
        let request = stock.view(self.method, &self.path).map_err(ApiError::internal)?;
        let mut request = request.query(query).timeout(self.deadline);
        if let Some(token) = headers.get(header::AUTHORIZATION) {
            request = request.header(header::AUTHORIZATION, token);
        }
        if let Some(body) = &self.body {
            request = request.json(body);
        }
        let answer = request.send().await.map_err(|error| unreachable(&brief(&error)))?;
        let status = answer.status();
        let mut passed = HeaderMap::new();
        for name in PASSED_ON {
            if let Some(value) = answer.headers().get(&name) {
                passed.insert(name, value.clone());
            }
        }
        let body = read(answer).await.map_err(|error| unreachable(&error))?;
        Ok((status, passed, body).into_response())
    }
}

/// stock-svc gave no answer.
pub(super) fn unreachable(why: &str) -> ApiError {
    ApiError::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "stock_unreachable",
        "The stock cannot be looked at.",
    )
    .detail(why)
    .retry_after(ASK_AGAIN_SECS)
}

//! What the page needs of stock-svc, from this origin: movements and dead letters. A token that the
//! page sends is passed on; nothing is added to it and nothing kept.

use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use halfmsg_service_kit::{ApiError, Json, Path, Query};
use serde::{Deserialize, Serialize};
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

pub(super) fn routes() -> Router<Api> {
    Router::new()
        .route("/api/movements", get(movements))
        .route("/api/dead-letters", get(dead_letters))
        .route("/api/dead-letters/{id}", get(dead_letter))
        .route("/api/dead-letters/{id}/replay", post(replay))
        .route("/api/dead-letters/{id}/discard", post(discard))
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct MovementsQuery {
    order_id: Uuid,
}

async fn movements(
    State(api): State<Api>,
    Query(query): Query<MovementsQuery>,
) -> Result<Response, ApiError> {
    let ask = Ask::view("movements");
    ask.pass_on(api.desk.stock(), &query, &HeaderMap::new()).await
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct LettersQuery {
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cursor: Option<Uuid>,
}

async fn dead_letters(
    State(api): State<Api>,
    headers: HeaderMap,
    Query(query): Query<LettersQuery>,
) -> Result<Response, ApiError> {
    Ask::view("dead-letters").pass_on(api.desk.stock(), &query, &headers).await
}

async fn dead_letter(
    State(api): State<Api>,
    headers: HeaderMap,
    Path(id): Path<Uuid>,
) -> Result<Response, ApiError> {
    let ask = Ask::view(format!("dead-letters/{id}"));
    ask.pass_on(api.desk.stock(), &(), &headers).await
}

async fn replay(
    State(api): State<Api>,
    headers: HeaderMap,
    Path(id): Path<Uuid>,
) -> Result<Response, ApiError> {
    let ask = Ask::act(format!("dead-letters/{id}/replay"), None);
    ask.pass_on(api.desk.stock(), &(), &headers).await
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Discard {
    reason: String,
}

async fn discard(
    State(api): State<Api>,
    headers: HeaderMap,
    Path(id): Path<Uuid>,
    Json(reason): Json<Discard>,
) -> Result<Response, ApiError> {
    let body = serde_json::to_value(reason).map_err(ApiError::internal)?;
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

//! Half messages as operators see and settle them.

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::routing::{get, post};
use halfmsg_producer::{
    AdminError, HalfDetail, HalfFilter, HalfState, HalfView, OperatorRequest, Page, TransactionId,
};
use halfmsg_service_kit::{ApiError, Json, Path, Query};
use serde::Deserialize;

use super::{Api, page_limit};

/// Halves in one page, if the client does not say.
const DEFAULT_LIMIT: u64 = 50;
/// The most halves in one page.
const MAX_LIMIT: u64 = 500;
/// The operator's name in the journal, if the request does not give one.
const UNNAMED: &str = "operator";
/// When to look again at what was not confirmed in time.
const LOOK_AGAIN_SECS: u64 = 1;

pub(super) fn routes() -> Router<Api> {
    Router::new()
        .route("/halves", get(list))
        .route("/halves/{transaction_id}", get(find))
        .route("/halves/{transaction_id}/commit", post(commit))
        .route("/halves/{transaction_id}/rollback", post(rollback))
        .route("/halves/{transaction_id}/check", post(check))
        .route("/halves/{transaction_id}/resume", post(resume))
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum StateName {
    Open,
    Parked,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ListQuery {
    state: Option<StateName>,
    limit: Option<u64>,
    cursor: Option<String>,
}

async fn list(
    State(api): State<Api>,
    Query(query): Query<ListQuery>,
) -> Result<Json<Page<HalfView>>, ApiError> {
    let limit = page_limit(query.limit, DEFAULT_LIMIT, MAX_LIMIT)?;
    let state = query.state.map(|state| match state {
        StateName::Open => HalfState::Open,
        StateName::Parked => HalfState::Parked,
    });
    let limit = usize::try_from(limit).map_err(ApiError::internal)?;
    let filter = HalfFilter { state, limit, cursor: query.cursor };
    api.admin.list(filter).await.map(Json).map_err(problem)
}

async fn find(
    State(api): State<Api>,
    headers: HeaderMap,
    Path(id): Path<String>,
) -> Result<Json<HalfDetail>, ApiError> {
    let id = parse_id(&id)?;
    // Who shows a token must show the right one; who shows none sees no payload.
    let trusted = headers.contains_key(header::AUTHORIZATION);
    if trusted {
        api.token.require(&headers)?;
    }
    let found = api.admin.get(id).await.map_err(problem)?;
    let mut detail = found.ok_or_else(|| problem(AdminError::NotFound(id)))?;
    if !trusted {
        detail.payload = None;
        detail.headers.clear();
    }
    Ok(Json(detail))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SettleRequest {
    reason: String,
    #[serde(default)]
    force: bool,
    operator: Option<String>,
}

impl From<SettleRequest> for OperatorRequest {
    fn from(request: SettleRequest) -> Self {
        let operator = request.operator.unwrap_or_else(|| UNNAMED.to_owned());
        Self { operator, reason: request.reason, force: request.force }
    }
}

type Settled = Result<Json<HalfView>, ApiError>;

async fn commit(
    State(api): State<Api>,
    headers: HeaderMap,
    Path(id): Path<String>,
    Json(request): Json<SettleRequest>,
) -> Settled {
    api.token.require(&headers)?;
    settled(api.admin.commit(parse_id(&id)?, request.into()).await)
}

async fn rollback(
    State(api): State<Api>,
    headers: HeaderMap,
    Path(id): Path<String>,
    Json(request): Json<SettleRequest>,
) -> Settled {
    api.token.require(&headers)?;
    settled(api.admin.rollback(parse_id(&id)?, request.into()).await)
}

async fn check(
    State(api): State<Api>,
    headers: HeaderMap,
    Path(id): Path<String>,
    Json(request): Json<SettleRequest>,
) -> Settled {
    api.token.require(&headers)?;
    settled(api.admin.check(parse_id(&id)?, request.into()).await)
}

async fn resume(
    State(api): State<Api>,
    headers: HeaderMap,
    Path(id): Path<String>,
    Json(request): Json<SettleRequest>,
) -> Settled {
    api.token.require(&headers)?;
    settled(api.admin.resume(parse_id(&id)?, request.into()).await)
}

fn settled(done: Result<HalfView, AdminError>) -> Settled {
    done.map(Json).map_err(problem)
}

fn parse_id(text: &str) -> Result<TransactionId, ApiError> {
    let id: Result<TransactionId, _> = text.parse();
    id.map_err(|error| ApiError::not_found(error.to_string()))
}

fn problem(error: AdminError) -> ApiError {
    let (code, detail) = (error.code(), error.to_string());
    let conflict = || ApiError::new(StatusCode::CONFLICT, code, "It stays as it is.");
    let later = |title| {
        ApiError::new(StatusCode::SERVICE_UNAVAILABLE, code, title).retry_after(LOOK_AGAIN_SECS)
    };
    match error {
        AdminError::NotFound(id) => {
            ApiError::not_found(detail).with("transaction_id", id.to_string())
        }
        AdminError::Contradiction { .. }
        | AdminError::NeedsForce { .. }
        | AdminError::AlreadyClosed { .. }
        | AdminError::NotParked(_)
        | AdminError::NotOpen(_)
        | AdminError::Stopped(_)
        | AdminError::Refused(_) => conflict().detail(detail),
        AdminError::Invalid(_) => ApiError::invalid(detail),
        AdminError::NoTopic(_) | AdminError::Unreachable(_) => {
            later("Kafka is unavailable.").detail(detail)
        }
        AdminError::Incomplete(_) => later("Not everything could be looked at.").detail(detail),
        AdminError::Unavailable(_) => {
            later("It is not confirmed, and may be done all the same.").detail(detail)
        }
    }
}

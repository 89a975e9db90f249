//! Half messages as operators see and settle them.

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use halfmsg_producer::{
    AdminError, HalfDetail, HalfFilter, HalfState, HalfView, OperatorRequest, Page, TransactionId,
};
use halfmsg_service_kit::list::limit as page_limit;
use halfmsg_service_kit::openapi::problem as may;
use halfmsg_service_kit::openapi::{BODY, OpenApiRouter, PATH, ProblemType, QUERY, TOKEN};
use halfmsg_service_kit::{ApiError, Json, Path, Query, validate};
use serde::Deserialize;
use utoipa_axum::routes;

use super::Api;

/// Halves in one page, if the client does not say.
const DEFAULT_LIMIT: u64 = 50;
/// The most halves in one page.
const MAX_LIMIT: u64 = 500;
/// The operator's name in the journal, if the request does not give one.
const UNNAMED: &str = "operator";
/// Characters of a reason, and of an operator's name.
const MAX_REASON_CHARS: usize = 1_000;
const MAX_OPERATOR_CHARS: usize = 200;
/// When to look again at what was not confirmed in time.
const LOOK_AGAIN_SECS: u64 = 1;

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::default()
        .routes(routes!(list))
        .routes(routes!(find))
        .routes(routes!(commit))
        .routes(routes!(rollback))
        .routes(routes!(check))
        .routes(routes!(resume))
}

const STORE: &[ProblemType] = &[
    may(503, "no_topic", "a topic of the store is missing"),
    may(503, "kafka_unavailable", "Kafka does not answer; nothing was done"),
    may(503, "incomplete", "not every partition could be looked at; nothing was done"),
    may(503, "not_confirmed", "not confirmed in time, and may be done all the same: look again"),
    may(409, "partition_stopped", "its partition stands still; nothing behind is carried out"),
];
const SETTLING: &[ProblemType] = &[
    may(409, "contradiction", "the check says the opposite"),
    may(409, "needs_force", "the check gives no answer: `force` decides all the same"),
    may(409, "already_closed", "it is decided already"),
    may(409, "not_parked", "only a parked message can be resumed"),
    may(409, "not_open", "only an open message can be checked"),
    may(409, "refused", "the state of things forbids it"),
    may(503, "effect_unseen", "stored; whether it had its effect could not be seen: look again"),
];

halfmsg_service_kit::problems!(ListProblems: QUERY, STORE);
halfmsg_service_kit::problems!(FindProblems: PATH, TOKEN, STORE);
halfmsg_service_kit::problems!(SettleProblems: BODY, PATH, TOKEN, SETTLING, STORE);

#[derive(Debug, Clone, Copy, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
enum StateName {
    Open,
    Parked,
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct ListQuery {
    /// In this state; both if not given.
    #[param(inline)]
    state: Option<StateName>,
    /// At most so many; 50 if not given.
    #[param(minimum = 1, maximum = 500)]
    limit: Option<u64>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
}

/// Lists open and parked half messages, of all replicas' partitions
///
/// A partition of the store that nobody leads now, or that stands still, is named, and the others are
/// listed.
#[utoipa::path(
    get, path = "/halves", tag = "half messages", operation_id = "list_halves", params(ListQuery),
    responses((status = 200, description = "A page", body = Page<HalfView>), ListProblems)
)]
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

/// Which half message.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Path)]
struct OfHalf {
    /// Its identity
    #[param(value_type = uuid::Uuid)]
    transaction_id: String,
}

impl OfHalf {
    /// A text that is no identity is nobody's.
    fn id(&self) -> Result<TransactionId, ApiError> {
        let id: Result<TransactionId, _> = self.transaction_id.parse();
        id.map_err(|error| ApiError::not_found(error.to_string()))
    }
}

/// Shows one, with its history; its payload and headers only with the operators' token
///
/// Recently closed ones too.
#[utoipa::path(
    get, path = "/halves/{transaction_id}", tag = "half messages", operation_id = "show_half",
    params(OfHalf),
    responses((status = 200, description = "The half message", body = HalfDetail), FindProblems),
    security((), ("operator" = []))
)]
async fn find(
    State(api): State<Api>,
    headers: HeaderMap,
    Path(half): Path<OfHalf>,
) -> Result<Json<HalfDetail>, ApiError> {
    let id = half.id()?;
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

#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"reason": "seen in the journal", "operator": "olga", "force": false}))]
struct SettleRequest {
    /// Why; kept in the journal.
    #[schema(min_length = 1, max_length = 1_000, pattern = "^[^\\x00-\\x1f\\x7f-\\x9f]*$")]
    reason: String,
    /// Decide although nobody can tell what became of the local transaction.
    #[serde(default)]
    force: bool,
    /// Who; kept in the journal.
    #[schema(min_length = 1, max_length = 200, pattern = "^[^\\x00-\\x1f\\x7f-\\x9f]*$")]
    operator: Option<String>,
}

impl SettleRequest {
    /// Checks the limits.
    fn valid(self) -> Result<OperatorRequest, ApiError> {
        validate::text("reason", &self.reason, MAX_REASON_CHARS)?;
        let operator = self.operator.as_deref();
        operator.map_or(Ok(()), |name| validate::text("operator", name, MAX_OPERATOR_CHARS))?;
        Ok(self.into())
    }
}

impl From<SettleRequest> for OperatorRequest {
    fn from(request: SettleRequest) -> Self {
        let operator = request.operator.unwrap_or_else(|| UNNAMED.to_owned());
        Self { operator, reason: request.reason, force: request.force }
    }
}

type Settled = Result<Json<HalfView>, ApiError>;

/// Commits one: its message is delivered
///
/// The listener is asked first: agreement is recorded, contradiction is refused, and only what
/// nobody can tell may be forced.
#[utoipa::path(
    post, path = "/halves/{transaction_id}/commit", tag = "half messages",
    operation_id = "commit_half", request_body = SettleRequest,
    params(OfHalf),
    responses((status = 200, description = "As it is now", body = HalfView), SettleProblems),
    security(("operator" = []))
)]
async fn commit(
    State(api): State<Api>,
    headers: HeaderMap,
    Path(half): Path<OfHalf>,
    Json(request): Json<SettleRequest>,
) -> Settled {
    api.token.require(&headers)?;
    settled(api.admin.commit(half.id()?, request.valid()?).await)
}

/// Rolls one back: its message is dropped
///
/// The listener is asked first: agreement is recorded, contradiction is refused, and only what
/// nobody can tell may be forced.
#[utoipa::path(
    post, path = "/halves/{transaction_id}/rollback", tag = "half messages",
    operation_id = "rollback_half", request_body = SettleRequest,
    params(OfHalf),
    responses((status = 200, description = "As it is now", body = HalfView), SettleProblems),
    security(("operator" = []))
)]
async fn rollback(
    State(api): State<Api>,
    headers: HeaderMap,
    Path(half): Path<OfHalf>,
    Json(request): Json<SettleRequest>,
) -> Settled {
    api.token.require(&headers)?;
    settled(api.admin.rollback(half.id()?, request.valid()?).await)
}

/// Asks its listener now
///
/// Its answer is recorded with the operator's name and reason.
#[utoipa::path(
    post, path = "/halves/{transaction_id}/check", tag = "half messages",
    operation_id = "check_half", request_body = SettleRequest,
    params(OfHalf),
    responses((status = 200, description = "As it is now", body = HalfView), SettleProblems),
    security(("operator" = []))
)]
async fn check(
    State(api): State<Api>,
    headers: HeaderMap,
    Path(half): Path<OfHalf>,
    Json(request): Json<SettleRequest>,
) -> Settled {
    api.token.require(&headers)?;
    settled(api.admin.check(half.id()?, request.valid()?).await)
}

/// Opens a parked one again, and asks its listener at once
#[utoipa::path(
    post, path = "/halves/{transaction_id}/resume", tag = "half messages",
    operation_id = "resume_half", request_body = SettleRequest,
    params(OfHalf),
    responses((status = 200, description = "As it is now", body = HalfView), SettleProblems),
    security(("operator" = []))
)]
async fn resume(
    State(api): State<Api>,
    headers: HeaderMap,
    Path(half): Path<OfHalf>,
    Json(request): Json<SettleRequest>,
) -> Settled {
    api.token.require(&headers)?;
    settled(api.admin.resume(half.id()?, request.valid()?).await)
}

fn settled(done: Result<HalfView, AdminError>) -> Settled {
    done.map(Json).map_err(problem)
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
        AdminError::Unseen(_) => {
            later("It is stored, and its effect is not seen yet.").detail(detail)
        }
        AdminError::Unavailable(_) => {
            later("It is not confirmed, and may be done all the same.").detail(detail)
        }
    }
}

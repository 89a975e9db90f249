//! Messages that a service's consumers have given up on: seen by anybody, without their payloads;
//! replayed and discarded by operators, of whom the log tells.

use std::num::NonZeroU32;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use chrono::{DateTime, Datelike, Utc};
use halfmsg_consumer::{
    DeadLetter, DeadLetterError, DeadLetterFilter, DeadLetterState, ReplayError, Replayed,
};
use serde::{Deserialize, Serialize};
use tracing::field::{DisplayValue, display};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use crate::openapi::{BODY, DATABASE, PATH, ProblemType, QUERY, TOKEN, problem as may};
use crate::telemetry::AUDIT;
use crate::{AdminToken, ApiError, Json, Letters, List, Path, Query, list, task, validate};

/// Dead letters of a page, if the client does not say.
const DEFAULT_LIMIT: u64 = 50;
/// The most dead letters of a page.
const MAX_LIMIT: u64 = 500;
/// Replays a second, if the operator does not say.
const DEFAULT_RATE: u32 = 10;
/// The most replays a second.
const MAX_RATE: u32 = 10_000;
/// The longest text of a filter: Kafka's longest topic.
const MAX_TEXT: usize = 249;
/// The longest reason, and the longest name of an operator.
const MAX_REASON: usize = 500;
const MAX_OPERATOR: usize = 100;
/// The operator's name, if the request does not give one.
const UNNAMED: &str = "operator";

#[derive(Clone)]
struct Desk {
    letters: Letters,
    token: AdminToken,
}

/// `/dead-letters` and what is below it.
pub fn routes<S: Clone + Send + Sync + 'static>(
    letters: Letters,
    token: AdminToken,
) -> OpenApiRouter<S> {
    OpenApiRouter::default()
        .routes(routes!(list))
        .routes(routes!(replay_all))
        .routes(routes!(show))
        .routes(routes!(replay))
        .routes(routes!(discard))
        .with_state(Desk { letters, token })
}

const NOT_OPEN: &[ProblemType] =
    &[may(409, "not_open", "it is queued, replayed or discarded already")];
const BEHIND: &[ProblemType] =
    &[may(409, "behind", "an earlier message of its key waits for its retry: queue it instead")];
const NO_HANDLER: &[ProblemType] =
    &[may(409, "no_handler", "no consumer here has a handler for its topic: discard it")];
const SETTLED: &[ProblemType] = &[
    may(409, "not_open", "it is replayed or discarded already"),
    may(409, "being_tried", "a replica tries its queued replay right now: ask again"),
];
const FAILED: &[ProblemType] =
    &[may(409, "replay_failed", "the message failed again; cause and attempts are noted")];

crate::problems!(ListProblems: QUERY, TOKEN, DATABASE);
crate::problems!(ShowProblems: PATH, TOKEN, DATABASE);
crate::problems!(ReplayProblems: PATH, TOKEN, NOT_OPEN, BEHIND, NO_HANDLER, FAILED, DATABASE);
crate::problems!(ReplayAllProblems: BODY, TOKEN, DATABASE);
crate::problems!(DiscardProblems: BODY, PATH, TOKEN, SETTLED, DATABASE);

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct ListQuery {
    /// Of this topic.
    #[param(min_length = 1, max_length = 249, pattern = "^[^\\x00-\\x1f\\x7f-\\x9f]*$")]
    topic: Option<String>,
    /// With this text in the cause.
    #[param(min_length = 1, max_length = 249, pattern = "^[^\\x00-\\x1f\\x7f-\\x9f]*$")]
    cause: Option<String>,
    /// That failed last at this moment or later.
    since: Option<DateTime<Utc>>,
    /// In this state.
    #[param(inline)]
    state: Option<DeadLetterState>,
    /// At most so many; 50 if not given.
    #[param(minimum = 1, maximum = 500)]
    limit: Option<u64>,
    /// `next_cursor` of the page before.
    cursor: Option<Uuid>,
}

/// Lists them, the newest first, without payloads
#[utoipa::path(
    get, path = "/dead-letters", tag = "dead letters", operation_id = "list_dead_letters",
    params(ListQuery),
    responses((status = 200, description = "A page", body = List<DeadLetter>), ListProblems),
    security((), ("operator" = []))
)]
async fn list(
    State(api): State<Desk>,
    headers: HeaderMap,
    Query(query): Query<ListQuery>,
) -> Result<Json<List<DeadLetter>>, ApiError> {
    let limit = list::limit(query.limit, DEFAULT_LIMIT, MAX_LIMIT)?;
    // A wrong token is refused here too, though no list shows payloads.
    trusted(&api, &headers)?;
    let ListQuery { topic, cause, since, state, .. } = query;
    let filter = filter(topic, cause, since, state)?;
    let items = api.letters.list(&filter, query.cursor, limit + 1).await?;
    Ok(Json(List::page(items, limit, |letter| letter.id.to_string())))
}

/// What is asked for, within what every database can compare with.
fn filter(
    topic: Option<String>,
    cause: Option<String>,
    since: Option<DateTime<Utc>>,
    state: Option<DeadLetterState>,
) -> Result<DeadLetterFilter, ApiError> {
    for (name, text) in [("topic", &topic), ("cause", &cause)] {
        text.as_deref().map_or(Ok(()), |text| validate::text(name, text, MAX_TEXT))?;
    }
    if since.is_some_and(|since| !(1..=9999).contains(&since.year())) {
        return Err(ApiError::invalid("since must be in the years 1 to 9999"));
    }
    Ok(DeadLetterFilter { topic, cause, since, state })
}

/// Shows one; its payload only with the operators' token
#[utoipa::path(
    get, path = "/dead-letters/{id}", tag = "dead letters", operation_id = "show_dead_letter",
    params(("id" = Uuid, Path, description = "The dead letter")),
    responses((status = 200, description = "The dead letter", body = DeadLetter), ShowProblems),
    security((), ("operator" = []))
)]
async fn show(
    State(api): State<Desk>,
    headers: HeaderMap,
    Path(id): Path<Uuid>,
) -> Result<Json<DeadLetter>, ApiError> {
    let trusted = trusted(&api, &headers)?;
    let letter = api.letters.find(id).await?;
    let mut letter = letter.ok_or_else(|| problem(ReplayError::NotFound(id)))?;
    if !trusted {
        letter.payload = None;
    }
    Ok(Json(letter))
}

/// Who shows a token must show the right one; who shows none sees no payloads.
fn trusted(api: &Desk, headers: &HeaderMap) -> Result<bool, ApiError> {
    let trusted = headers.contains_key(header::AUTHORIZATION);
    if trusted {
        api.token.require(headers)?;
    }
    Ok(trusted)
}

#[derive(Debug, Serialize, utoipa::ToSchema)]
struct Replay {
    /// Whether the message had its effect before this call.
    before: bool,
    #[serde(flatten)]
    letter: DeadLetter,
}

/// Gives the message to its handler again, now
///
/// It has its effect once, however often it is replayed.
#[utoipa::path(
    post, path = "/dead-letters/{id}/replay", tag = "dead letters",
    operation_id = "replay_dead_letter",
    params(("id" = Uuid, Path, description = "The dead letter")),
    responses((status = 200, description = "It had its effect", body = Replay), ReplayProblems),
    security(("operator" = []))
)]
async fn replay(
    State(api): State<Desk>,
    headers: HeaderMap,
    Path(id): Path<Uuid>,
) -> Result<Json<Replay>, ApiError> {
    api.token.require(&headers)?;
    let replayed = task::run_to_end(async move {
        let replayed = api.letters.replay(id).await;
        // Whose it is, for the log; an error does not tell it.
        let known = match &replayed {
            Ok(Replayed::Done(letter) | Replayed::Before(letter)) => Some(letter.clone()),
            Err(ReplayError::NotFound(_)) => None,
            Err(_) => api.letters.find(id).await.ok().flatten(),
        };
        let outcome = replayed.as_ref().err().map_or_else(|| "done".into(), ToString::to_string);
        if !matches!(replayed, Err(ReplayError::NotFound(_))) {
            let (transaction_id, key) = named(known.as_ref());
            tracing::info!(
                target: AUDIT, %id, transaction_id, key,
                "an operator replayed a dead letter: {outcome}"
            );
        }
        Ok(replayed)
    })
    .await?;
    match replayed {
        Ok(Replayed::Done(letter)) => Ok(Json(Replay { before: false, letter })),
        Ok(Replayed::Before(letter)) => Ok(Json(Replay { before: true, letter })),
        Err(error) => Err(problem(error)),
    }
}

/// Whose message it is and its key, as fields of a line.
fn named(letter: Option<&DeadLetter>) -> (Option<DisplayValue<Uuid>>, Option<&str>) {
    let transaction_id = letter.and_then(|letter| letter.transaction_id);
    (transaction_id.map(display), letter.and_then(|letter| letter.key.as_deref()))
}

#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"topic": "stock.rollback", "rate_per_second": 10}))]
struct ReplayAll {
    /// Of this topic.
    #[schema(min_length = 1, max_length = 249, pattern = "^[^\\x00-\\x1f\\x7f-\\x9f]*$")]
    topic: Option<String>,
    /// With this text in the cause.
    #[schema(min_length = 1, max_length = 249, pattern = "^[^\\x00-\\x1f\\x7f-\\x9f]*$")]
    cause: Option<String>,
    /// That failed last at this moment or later.
    since: Option<DateTime<Utc>>,
    /// So many a second of each consumer become due; 10 if not given. What became due while no consumer ran
    /// is tried as fast as it goes, and several calls add up.
    #[schema(minimum = 1, maximum = 10_000)]
    rate_per_second: Option<u32>,
}

#[derive(Debug, Serialize, utoipa::ToSchema)]
struct Queued {
    /// How many.
    queued: u64,
}

/// Queues all open ones of a filter for a replay; an empty object means all
///
/// Those whose topic has no handler here stay open and are not counted.
#[utoipa::path(
    post, path = "/dead-letters/replay", tag = "dead letters",
    operation_id = "replay_dead_letters", request_body = ReplayAll,
    responses((status = 202, description = "Queued", body = Queued), ReplayAllProblems),
    security(("operator" = []))
)]
async fn replay_all(
    State(api): State<Desk>,
    headers: HeaderMap,
    Json(asked): Json<ReplayAll>,
) -> Result<(StatusCode, Json<Queued>), ApiError> {
    api.token.require(&headers)?;
    let rate = asked.rate_per_second.unwrap_or(DEFAULT_RATE);
    let rate = NonZeroU32::new(rate).filter(|rate| rate.get() <= MAX_RATE);
    let rate =
        rate.ok_or_else(|| ApiError::invalid(format!("rate_per_second must be 1 to {MAX_RATE}")))?;
    let ReplayAll { topic, cause, since, .. } = asked;
    let filter = filter(topic, cause, since, None)?;
    let queued = task::run_to_end(async move {
        let queued = api.letters.queue_all(&filter, Some(rate)).await?;
        if queued > 0 {
            tracing::info!(
                target: AUDIT,
                "an operator queued {queued} dead letters, due at {rate} a second: {filter:?}"
            );
        }
        Ok(queued)
    });
    Ok((StatusCode::ACCEPTED, Json(Queued { queued: queued.await? })))
}

/// Why a dead letter is given up, as it is asked for, and passed on.
#[derive(Debug, Deserialize, Serialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"reason": "a test message", "operator": "olga"}))]
pub struct Discard {
    /// Why; kept with the dead letter.
    #[schema(min_length = 1, max_length = 500, pattern = "^[^\\x00-\\x1f\\x7f-\\x9f]*$")]
    reason: String,
    /// Who; kept before the reason.
    #[schema(min_length = 1, max_length = 100, pattern = "^[^\\x00-\\x1f\\x7f-\\x9f]*$")]
    #[serde(skip_serializing_if = "Option::is_none")]
    operator: Option<String>,
}

/// Gives one up for good, open or queued; its row stays, with the reason
///
/// A queued one is taken out of the retries, unless a replica tries it right now.
#[utoipa::path(
    post, path = "/dead-letters/{id}/discard", tag = "dead letters",
    operation_id = "discard_dead_letter",
    params(("id" = Uuid, Path, description = "The dead letter")), request_body = Discard,
    responses((status = 200, description = "Discarded", body = DeadLetter), DiscardProblems),
    security(("operator" = []))
)]
async fn discard(
    State(api): State<Desk>,
    headers: HeaderMap,
    Path(id): Path<Uuid>,
    Json(Discard { reason, operator }): Json<Discard>,
) -> Result<Json<DeadLetter>, ApiError> {
    api.token.require(&headers)?;
    validate::text("reason", &reason, MAX_REASON)?;
    if reason.trim().is_empty() {
        return Err(ApiError::invalid("a reason is needed"));
    }
    let kept = match &operator {
        None => reason.clone(),
        Some(operator) => {
            validate::text("operator", operator, MAX_OPERATOR)?;
            format!("{operator}: {reason}")
        }
    };
    let who = operator.unwrap_or_else(|| UNNAMED.to_owned());
    let discarded = task::run_to_end(async move {
        let discarded = api.letters.discard(id, &kept).await;
        if let Ok(letter) = &discarded {
            let (transaction_id, key) = named(Some(letter));
            tracing::info!(
                target: AUDIT, %id, transaction_id, key,
                "{who} discarded a dead letter: {reason}"
            );
        }
        Ok(discarded)
    });
    discarded.await?.map(Json).map_err(|error| match error {
        DeadLetterError::NotFound(id) => problem(ReplayError::NotFound(id)),
        DeadLetterError::NotOpen { id, state } => problem(ReplayError::NotOpen { id, state }),
        DeadLetterError::NoHandler { id, topic } => problem(ReplayError::NoHandler { id, topic }),
        DeadLetterError::BeingTried(_) => {
            ApiError::new(StatusCode::CONFLICT, "being_tried", "its replay is being tried")
                .detail(error.to_string())
        }
        DeadLetterError::Database(error) => error.into(),
    })
}

fn problem(error: ReplayError) -> ApiError {
    let detail = error.to_string();
    match error {
        ReplayError::NotFound(_) => ApiError::not_found(detail),
        ReplayError::NotOpen { .. } => {
            ApiError::new(StatusCode::CONFLICT, "not_open", "the dead letter is not open")
                .detail(detail)
        }
        ReplayError::Behind(_) => {
            let title = "an earlier message of its key waits: queue it";
            ApiError::new(StatusCode::CONFLICT, "behind", title).detail(detail)
        }
        ReplayError::NoHandler { .. } => {
            let title = "nobody here can replay it: discard it";
            ApiError::new(StatusCode::CONFLICT, "no_handler", title).detail(detail)
        }
        ReplayError::Failed(_) => {
            ApiError::new(StatusCode::CONFLICT, "replay_failed", "the message failed again")
                .detail(detail)
        }
        ReplayError::Unavailable(_) => {
            tracing::warn!("{detail}");
            ApiError::database_unavailable()
        }
        ReplayError::Database(error) => error.into(),
    }
}

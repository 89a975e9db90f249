//! Messages that were given up on: seen by anybody, without their payloads; replayed and discarded
//! by operators.

use std::num::NonZeroU32;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::routing::{get, post};
use chrono::{DateTime, Utc};
use halfmsg_consumer::{
    DeadLetter, DeadLetterError, DeadLetterFilter, DeadLetterState, ReplayError, Replayed,
};
use halfmsg_service_kit::{ApiError, Json, Path, Query, task};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Api, List, limit};

/// Replays a second, if the operator does not say.
const DEFAULT_RATE: u32 = 10;
/// The most replays a second.
const MAX_RATE: u32 = 10_000;

pub(super) fn routes() -> Router<Api> {
    Router::new()
        .route("/dead-letters", get(list))
        .route("/dead-letters/replay", post(replay_all))
        .route("/dead-letters/{id}", get(show))
        .route("/dead-letters/{id}/replay", post(replay))
        .route("/dead-letters/{id}/discard", post(discard))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ListQuery {
    topic: Option<String>,
    cause: Option<String>,
    since: Option<DateTime<Utc>>,
    state: Option<DeadLetterState>,
    limit: Option<u64>,
    cursor: Option<Uuid>,
}

async fn list(
    State(api): State<Api>,
    headers: HeaderMap,
    Query(query): Query<ListQuery>,
) -> Result<Json<List<DeadLetter>>, ApiError> {
    let limit = limit(query.limit)?;
    // A wrong token is refused here too, though no list shows payloads.
    trusted(&api, &headers)?;
    let ListQuery { topic, cause, since, state, .. } = query;
    let filter = DeadLetterFilter { topic, cause, since, state };
    let items = api.dead_letters.list(&filter, query.cursor, limit + 1).await?;
    Ok(Json(List::page(items, limit, |letter| letter.id.to_string())))
}

async fn show(
    State(api): State<Api>,
    headers: HeaderMap,
    Path(id): Path<Uuid>,
) -> Result<Json<DeadLetter>, ApiError> {
    let trusted = trusted(&api, &headers)?;
    let letter = api.dead_letters.find(id).await?;
    let mut letter = letter.ok_or_else(|| problem(ReplayError::NotFound(id)))?;
    if !trusted {
        letter.payload = None;
    }
    Ok(Json(letter))
}

/// Who shows a token must show the right one; who shows none sees no payloads.
fn trusted(api: &Api, headers: &HeaderMap) -> Result<bool, ApiError> {
    let trusted = headers.contains_key(header::AUTHORIZATION);
    if trusted {
        api.token.require(headers)?;
    }
    Ok(trusted)
}

#[derive(Debug, Serialize)]
struct Replay {
    /// Whether the message had its effect before this call.
    before: bool,
    #[serde(flatten)]
    letter: DeadLetter,
}

async fn replay(
    State(api): State<Api>,
    headers: HeaderMap,
    Path(id): Path<Uuid>,
) -> Result<Json<Replay>, ApiError> {
    api.token.require(&headers)?;
    let replayed = task::run_to_end(async move { Ok(api.dead_letters.replay(id).await) }).await?;
    match replayed {
        Ok(Replayed::Done(letter)) => Ok(Json(Replay { before: false, letter })),
        Ok(Replayed::Before(letter)) => Ok(Json(Replay { before: true, letter })),
        Err(error) => Err(problem(error)),
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ReplayAll {
    topic: Option<String>,
    cause: Option<String>,
    since: Option<DateTime<Utc>>,
    rate_per_second: Option<u32>,
}

#[derive(Debug, Serialize)]
struct Queued {
    queued: u64,
}

async fn replay_all(
    State(api): State<Api>,
    headers: HeaderMap,
    Json(asked): Json<ReplayAll>,
) -> Result<(StatusCode, Json<Queued>), ApiError> {
    api.token.require(&headers)?;
    let rate = asked.rate_per_second.unwrap_or(DEFAULT_RATE);
    let rate = NonZeroU32::new(rate).filter(|rate| rate.get() <= MAX_RATE);
    let rate =
        rate.ok_or_else(|| ApiError::invalid(format!("rate_per_second must be 1 to {MAX_RATE}")))?;
    let ReplayAll { topic, cause, since, .. } = asked;
    let filter = DeadLetterFilter { topic, cause, since, state: None };
    let queued =
        task::run_to_end(async move { Ok(api.dead_letters.queue_all(&filter, Some(rate)).await?) })
            .await?;
    Ok((StatusCode::ACCEPTED, Json(Queued { queued })))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Discard {
    reason: String,
}

async fn discard(
    State(api): State<Api>,
    headers: HeaderMap,
    Path(id): Path<Uuid>,
    Json(Discard { reason }): Json<Discard>,
) -> Result<Json<DeadLetter>, ApiError> {
    api.token.require(&headers)?;
    if reason.trim().is_empty() {
        return Err(ApiError::invalid("a reason is needed"));
    }
    let discarded = api.dead_letters.discard(id, &reason).await;
    discarded.map(Json).map_err(|error| match error {
        DeadLetterError::NotFound(id) => problem(ReplayError::NotFound(id)),
        DeadLetterError::NotOpen { id, state } => problem(ReplayError::NotOpen { id, state }),
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

//! Messages that were given up on.

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::routing::{get, post};
use halfmsg_consumer::{DeadLetter, ReplayError, Replayed};
use halfmsg_service_kit::{ApiError, Json, Path, Query, task};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Api, List, limit};

pub(super) fn routes() -> Router<Api> {
    Router::new().route("/dead-letters", get(list)).route("/dead-letters/{id}/replay", post(replay))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ListQuery {
    limit: Option<u64>,
    cursor: Option<Uuid>,
}

async fn list(
    State(api): State<Api>,
    headers: HeaderMap,
    Query(query): Query<ListQuery>,
) -> Result<Json<List<DeadLetter>>, ApiError> {
    let limit = limit(query.limit)?;
    // Who shows a token must show the right one; who shows none sees no payloads.
    let trusted = headers.contains_key(header::AUTHORIZATION);
    if trusted {
        api.token.require(&headers)?;
    }
    let mut items = api.dead_letters.list(query.cursor, limit + 1).await?;
    if !trusted {
        items.iter_mut().for_each(|letter| letter.payload = None);
    }
    Ok(Json(List::page(items, limit, |letter| letter.id.to_string())))
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

fn problem(error: ReplayError) -> ApiError {
    let detail = error.to_string();
    match error {
        ReplayError::NotFound(_) => ApiError::not_found(detail),
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

//! The audit trail.

use axum::Router;
use axum::extract::State;
use axum::routing::get;
use halfmsg_service_kit::{ApiError, Json, Query};
use serde::Deserialize;
use uuid::Uuid;

use super::{Api, List, limit};
use crate::store::movements::{Movement, MovementFilter};

pub(super) fn routes() -> Router<Api> {
    Router::new().route("/movements", get(list))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ListQuery {
    order_id: Option<Uuid>,
    sku: Option<String>,
    limit: Option<u64>,
    cursor: Option<Uuid>,
}

async fn list(
    State(api): State<Api>,
    Query(query): Query<ListQuery>,
) -> Result<Json<List<Movement>>, ApiError> {
    let limit = limit(query.limit)?;
    let ListQuery { order_id, sku, cursor: after, .. } = query;
    let filter = MovementFilter { order_id, sku, after, limit: limit + 1 };
    let items = api.store.movements(filter).await?;
    Ok(Json(List::page(items, limit, |movement| movement.id.to_string())))
}

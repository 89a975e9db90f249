//! The audit trail.

use axum::extract::State;
use halfmsg_service_kit::openapi::{DATABASE, OpenApiRouter, QUERY};
use halfmsg_service_kit::{ApiError, Json, List, Query, validate};
use serde::Deserialize;
use utoipa_axum::routes;
use uuid::Uuid;

use super::{Api, limit};
use crate::store::movements::{Movement, MovementFilter};

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::default().routes(routes!(list))
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct ListQuery {
    /// Of this order.
    order_id: Option<Uuid>,
    /// Of this product.
    #[param(min_length = 1, max_length = 64, pattern = "^[A-Za-z0-9._-]+$", example = "apple")]
    sku: Option<String>,
    /// At most so many; 50 if not given.
    #[param(minimum = 1, maximum = 500)]
    limit: Option<u64>,
    /// `next_cursor` of the page before.
    cursor: Option<Uuid>,
}

halfmsg_service_kit::problems!(ListProblems: QUERY, DATABASE);

/// Every change of what is available, with its cause, oldest first
#[utoipa::path(
    get, path = "/movements", tag = "stock", operation_id = "list_movements", params(ListQuery),
    responses((status = 200, description = "A page", body = List<Movement>), ListProblems)
)]
async fn list(
    State(api): State<Api>,
    Query(query): Query<ListQuery>,
) -> Result<Json<List<Movement>>, ApiError> {
    let limit = limit(query.limit)?;
    let ListQuery { order_id, sku, cursor: after, .. } = query;
    sku.as_deref().map_or(Ok(()), |sku| validate::sku("sku", sku))?;
    let filter = MovementFilter { order_id, sku, after, limit: limit + 1 };
    let items = api.store.movements(filter).await?;
    Ok(Json(List::page(items, limit, |movement| movement.id.to_string())))
}

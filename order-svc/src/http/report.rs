//! The product report: seen by anybody, made anew by operators.

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use chrono::{DateTime, Utc};
use halfmsg_service_kit::list::limit as page_limit;
use halfmsg_service_kit::openapi::{DATABASE, OpenApiRouter, QUERY, TOKEN};
use halfmsg_service_kit::{ApiError, Json, Query, task, validate};
use serde::{Deserialize, Serialize};
use utoipa_axum::routes;

use super::Api;
use crate::report::fold;
use crate::report::store::ProductRow;

/// Products of a page, if the client does not say.
const DEFAULT_LIMIT: u64 = 100;
/// The most products of a page.
const MAX_LIMIT: u64 = 500;

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::default().routes(routes!(list)).routes(routes!(rebuild))
}

halfmsg_service_kit::problems!(ListProblems: QUERY, DATABASE);
halfmsg_service_kit::problems!(RebuildProblems: TOKEN, DATABASE);

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct ListQuery {
    /// At most so many; 100 if not given.
    #[param(minimum = 1, maximum = 500)]
    limit: Option<u64>,
    /// `next_cursor` of the page before: a sku.
    #[param(min_length = 1, max_length = 64, pattern = "^[A-Za-z0-9._-]+$")]
    cursor: Option<String>,
}

#[derive(Debug, Serialize, utoipa::ToSchema)]
struct Amount {
    quantity: i64,
    amount_cents: i64,
}

#[derive(Debug, Serialize, utoipa::ToSchema)]
#[schema(as = ReportedProduct)]
struct Product {
    sku: String,
    ordered: Amount,
    confirmed: Amount,
    rejected: Amount,
    cancelled: Amount,
}

#[derive(Debug, Serialize, utoipa::ToSchema)]
struct Report {
    items: Vec<Product>,
    /// For the query parameter `cursor` of the next page; null on the last.
    #[schema(required)]
    next_cursor: Option<String>,
    /// Since when the topics have been read; earlier events are in it as far as they keep them.
    #[schema(required)]
    read_since: Option<DateTime<Utc>>,
}

impl From<fold::Amount> for Amount {
    fn from(fold::Amount { quantity, cents }: fold::Amount) -> Self {
        Self { quantity, amount_cents: cents }
    }
}

impl From<ProductRow> for Product {
    fn from(ProductRow { sku, sums }: ProductRow) -> Self {
        Self {
            sku,
            ordered: sums.ordered.into(),
            confirmed: sums.confirmed.into(),
            rejected: sums.rejected.into(),
            cancelled: sums.cancelled.into(),
        }
    }
}

/// What orders of the saga were ordered, confirmed, rejected and cancelled, per product
#[utoipa::path(
    get, path = "/report", tag = "report", operation_id = "show_report", params(ListQuery),
    responses((status = 200, description = "A page", body = Report), ListProblems)
)]
async fn list(
    State(api): State<Api>,
    Query(query): Query<ListQuery>,
) -> Result<Json<Report>, ApiError> {
    let limit = page_limit(query.limit, DEFAULT_LIMIT, MAX_LIMIT)?;
    if let Some(cursor) = &query.cursor {
        validate::sku("cursor", cursor)?;
    }
    let mut rows = api.report.products(query.cursor.as_deref(), limit + 1).await?;
    let shown = usize::try_from(limit).unwrap_or(usize::MAX);
    let more = rows.len() > shown;
    rows.truncate(shown);
    let next_cursor = if more { rows.last().map(|row| row.sku.clone()) } else { None };
    let read_since = api.report.began_at().await?;
    let items = rows.into_iter().map(Product::from).collect();
    Ok(Json(Report { items, next_cursor, read_since }))
}

#[derive(Debug, Serialize, utoipa::ToSchema)]
struct Rebuilt {
    /// The new report's.
    generation: uuid::Uuid,
}

/// Makes the report anew from what the topics keep
#[utoipa::path(
    post, path = "/report/rebuild", tag = "report", operation_id = "rebuild_report",
    responses((status = 202, description = "It begins", body = Rebuilt), RebuildProblems),
    security(("operator" = []))
)]
async fn rebuild(
    State(api): State<Api>,
    headers: HeaderMap,
) -> Result<(StatusCode, Json<Rebuilt>), ApiError> {
    api.token.require(&headers)?;
    let report = api.report.clone();
    let generation = task::run_to_end(async move { Ok(report.rebuild().await?) }).await?;
    Ok((StatusCode::ACCEPTED, Json(Rebuilt { generation })))
}

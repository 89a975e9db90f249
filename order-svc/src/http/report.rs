//! The product report: seen by anybody, made anew by operators.

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::{get, post};
use chrono::{DateTime, Utc};
use halfmsg_service_kit::{ApiError, Json, Query, task, validate};
use serde::{Deserialize, Serialize};

use super::{Api, page_limit};
use crate::report::fold;
use crate::report::store::ProductRow;

/// Products of a page, if the client does not say.
const DEFAULT_LIMIT: u64 = 100;
/// The most products of a page.
const MAX_LIMIT: u64 = 500;

pub(super) fn routes() -> Router<Api> {
    Router::new().route("/report", get(list)).route("/report/rebuild", post(rebuild))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ListQuery {
    limit: Option<u64>,
    cursor: Option<String>,
}

#[derive(Debug, Serialize)]
struct Amount {
    quantity: i64,
    amount_cents: i64,
}

#[derive(Debug, Serialize)]
struct Product {
    sku: String,
    ordered: Amount,
    confirmed: Amount,
    rejected: Amount,
    cancelled: Amount,
}

#[derive(Debug, Serialize)]
struct Report {
    items: Vec<Product>,
    next_cursor: Option<String>,
    /// Since when the topics have been read; earlier events are in it as far as they keep them.
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

#[derive(Debug, Serialize)]
struct Rebuilt {
    generation: uuid::Uuid,
}

async fn rebuild(
    State(api): State<Api>,
    headers: HeaderMap,
) -> Result<(StatusCode, Json<Rebuilt>), ApiError> {
    api.token.require(&headers)?;
    let report = api.report.clone();
    let generation = task::run_to_end(async move { Ok(report.rebuild().await?) }).await?;
    Ok((StatusCode::ACCEPTED, Json(Rebuilt { generation })))
}

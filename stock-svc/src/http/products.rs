//! Products, what is available of them, and the receipts that add to it.

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::{get, post};
use halfmsg_service_kit::{ApiError, Json, Path, Query, task, validate};
use serde::{Deserialize, Serialize};

use super::{Api, List, limit};
use crate::fault::Fault;
use crate::store::books::StockBook;
use crate::store::products::Product;
use crate::store::receipts::{MAX_AVAILABLE, MAX_RECEIPT, Received};

/// The longest name of a product, in characters.
const MAX_NAME: usize = 200;
/// The longest reference of a receipt, in characters.
const MAX_REFERENCE: usize = 128;

pub(super) fn routes() -> Router<Api> {
    Router::new()
        .route("/products", get(list))
        .route("/products/{sku}", get(find).put(put))
        .route("/products/{sku}/receipts", post(receive))
        .route("/stock", get(books))
        .route("/stock/{sku}", get(stock))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ListQuery {
    skus: Option<String>,
    limit: Option<u64>,
    cursor: Option<String>,
}

async fn list(
    State(api): State<Api>,
    headers: HeaderMap,
    Query(query): Query<ListQuery>,
) -> Result<Json<List<Product>>, ApiError> {
    if Fault::asked(&headers, api.faults, &[Fault::PriceLookup])?.is_some() {
        return Err(ApiError::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "induced_failure",
            "the price lookup failed because X-Fault asked for it",
        ));
    }
    if let Some(skus) = &query.skus {
        if query.limit.is_some() || query.cursor.is_some() {
            return Err(ApiError::invalid("skus takes neither limit nor cursor"));
        }
        let items = api.store.products_named(&named(skus)?).await?;
        return Ok(Json(List { items, next_cursor: None }));
    }
    let limit = limit(query.limit)?;
    let items = api.store.products(query.cursor.as_deref(), limit + 1).await?;
    Ok(Json(List::page(items, limit, |product| product.sku.clone())))
}

/// The skus of a query: as many as an order may have.
fn named(skus: &str) -> Result<Vec<String>, ApiError> {
    let skus: Vec<String> = skus.split(',').map(str::to_owned).collect();
    if skus.len() > validate::MAX_ITEMS {
        let most = validate::MAX_ITEMS;
        return Err(ApiError::invalid(format!("skus must be 1 to {most}, not {}", skus.len())));
    }
    skus.iter().try_for_each(|sku| validate::sku("skus", sku))?;
    Ok(skus)
}

fn unknown(sku: &str) -> ApiError {
    ApiError::new(StatusCode::NOT_FOUND, "unknown_sku", "there is no such product").with("sku", sku)
}

async fn find(State(api): State<Api>, Path(sku): Path<String>) -> Result<Json<Product>, ApiError> {
    api.store.product(&known(&sku)?).await?.map(Json).ok_or_else(|| unknown(&sku))
}

/// A text that cannot be a sku names no product.
fn known(sku: &str) -> Result<String, ApiError> {
    validate::sku("sku", sku).map(|()| sku.to_owned()).map_err(|_| unknown(sku))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PutProduct {
    name: String,
    price_cents: i64,
}

async fn put(
    State(api): State<Api>,
    Path(sku): Path<String>,
    Json(product): Json<PutProduct>,
) -> Result<(StatusCode, Json<Product>), ApiError> {
    validate::sku("sku", &sku)?;
    validate::text("name", &product.name, MAX_NAME)?;
    validate::price_cents("price_cents", product.price_cents)?;
    let put =
        async move { Ok(api.store.put_product(&sku, &product.name, product.price_cents).await?) };
    let (product, made) = task::run_to_end(put).await?;
    Ok((if made { StatusCode::CREATED } else { StatusCode::OK }, Json(product)))
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Receive {
    quantity: i64,
    reference: String,
}

#[derive(Debug, Serialize)]
struct Receipt {
    sku: String,
    reference: String,
    quantity: i64,
    available: i64,
}

async fn receive(
    State(api): State<Api>,
    Path(sku): Path<String>,
    Json(receive): Json<Receive>,
) -> Result<(StatusCode, Json<Receipt>), ApiError> {
    let sku = known(&sku)?;
    let Receive { quantity, reference } = receive;
    validate::text("reference", &reference, MAX_REFERENCE)?;
    if !(1..=MAX_RECEIPT).contains(&quantity) {
        return Err(ApiError::invalid(format!(
            "quantity must be 1 to {MAX_RECEIPT}, not {quantity}"
        )));
    }
    let (store, asked) = (api.store.clone(), (sku.clone(), reference.clone()));
    let received =
        task::run_to_end(async move { Ok(store.receive(&asked.0, &asked.1, quantity).await?) });
    let (status, available) = match received.await? {
        Received::Added { available } => (StatusCode::CREATED, available),
        Received::Before { available } => (StatusCode::OK, available),
        Received::OtherQuantity(before) => {
            return Err(ApiError::new(
                StatusCode::CONFLICT,
                "receipt_conflict",
                "the reference was used with another quantity",
            )
            .detail(format!("'{reference}' brought {before}; use another reference"))
            .with("sku", sku)
            .with("quantity", before));
        }
        Received::TooMany => {
            return Err(ApiError::invalid(format!(
                "quantity would make more than {MAX_AVAILABLE} available"
            )));
        }
        Received::UnknownSku => return Err(unknown(&sku)),
    };
    Ok((status, Json(Receipt { sku, reference, quantity, available })))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct BooksQuery {
    limit: Option<u64>,
    cursor: Option<String>,
}

async fn books(
    State(api): State<Api>,
    Query(query): Query<BooksQuery>,
) -> Result<Json<List<StockBook>>, ApiError> {
    let limit = limit(query.limit)?;
    let items = api.store.books(query.cursor.as_deref(), limit + 1).await?;
    Ok(Json(List::page(items, limit, |book| book.sku.clone())))
}

#[derive(Debug, Serialize)]
struct Stock {
    sku: String,
    available: i64,
}

async fn stock(State(api): State<Api>, Path(sku): Path<String>) -> Result<Json<Stock>, ApiError> {
    let found = api.store.product(&known(&sku)?).await?.ok_or_else(|| unknown(&sku))?;
    Ok(Json(Stock { sku: found.sku, available: found.available }))
}

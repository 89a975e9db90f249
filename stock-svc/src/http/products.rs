//! Products, what is available of them, and the receipts that add to it.

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use halfmsg_service_kit::openapi::{
    BODY, DATABASE, FAULT, OpenApiRouter, ProblemType, QUERY, problem,
};
use halfmsg_service_kit::{ApiError, Json, List, Path, Query, task, validate};
use serde::{Deserialize, Serialize};
use utoipa_axum::routes;

use super::{Api, limit};
use crate::fault::Fault;
use crate::store::books::StockBook;
use crate::store::products::Product;
use crate::store::receipts::{MAX_AVAILABLE, MAX_RECEIPT, Received};

/// The longest name of a product, in characters.
const MAX_NAME: usize = 200;
/// The longest reference of a receipt, in characters.
const MAX_REFERENCE: usize = 128;

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::default()
        .routes(routes!(list))
        .routes(routes!(find, put))
        .routes(routes!(receive))
        .routes(routes!(books))
        .routes(routes!(stock))
}

const UNKNOWN: &[ProblemType] = &[problem(404, "unknown_sku", "there is no such product")];
const PATH: &[ProblemType] = &[problem(404, "not_found", "the path is no text")];
const INDUCED: &[ProblemType] =
    &[problem(500, "induced_failure", "`X-Fault` asked for it, where induced failures are on")];
const CONFLICT: &[ProblemType] =
    &[problem(409, "receipt_conflict", "the reference was used with another quantity")];

halfmsg_service_kit::problems!(ListProblems: QUERY, FAULT, INDUCED, DATABASE);
halfmsg_service_kit::problems!(FindProblems: UNKNOWN, PATH, DATABASE);
halfmsg_service_kit::problems!(PutProblems: BODY, PATH, DATABASE);
halfmsg_service_kit::problems!(ReceiveProblems: BODY, UNKNOWN, PATH, CONFLICT, DATABASE);
halfmsg_service_kit::problems!(BooksProblems: QUERY, DATABASE);

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct ListQuery {
    /// Only these, 1 to 100 with commas between; neither `limit` nor `cursor` then.
    #[param(
        pattern = "^[A-Za-z0-9._-]{1,64}(,[A-Za-z0-9._-]{1,64}){0,99}$",
        example = "apple,banana"
    )]
    skus: Option<String>,
    /// At most so many; 50 if not given.
    #[param(minimum = 1, maximum = 500)]
    limit: Option<u64>,
    /// `next_cursor` of the page before: a sku.
    #[param(min_length = 1, max_length = 64, pattern = "^[A-Za-z0-9._-]+$")]
    cursor: Option<String>,
}

/// Lists products, in the order of their skus
#[utoipa::path(
    get, path = "/products", tag = "products", operation_id = "list_products",
    params(ListQuery, (
        "X-Fault" = Option<String>, Header,
        description = "An induced failure, where they are on: `price-lookup`",
        pattern = "^price-lookup$"
    )),
    responses((status = 200, description = "A page", body = List<Product>), ListProblems)
)]
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
    cursor(query.cursor.as_deref())?;
    let items = api.store.products(query.cursor.as_deref(), limit + 1).await?;
    Ok(Json(List::page(items, limit, |product| product.sku.clone())))
}

/// A cursor is a sku; another text is none that a page has given.
fn cursor(cursor: Option<&str>) -> Result<(), ApiError> {
    cursor.map_or(Ok(()), |sku| validate::sku("cursor", sku))
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

/// Which product.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Path)]
struct OfProduct {
    /// The product
    #[param(max_length = 64, pattern = "^[A-Za-z0-9._-]+$", example = "apple")]
    sku: String,
}

/// Shows a product
#[utoipa::path(
    get, path = "/products/{sku}", tag = "products", operation_id = "show_product",
    params(OfProduct),
    responses((status = 200, description = "The product", body = Product), FindProblems)
)]
async fn find(
    State(api): State<Api>,
    Path(OfProduct { sku }): Path<OfProduct>,
) -> Result<Json<Product>, ApiError> {
    api.store.product(&known(&sku)?).await?.map(Json).ok_or_else(|| unknown(&sku))
}

/// A text that cannot be a sku names no product.
fn known(sku: &str) -> Result<String, ApiError> {
    validate::sku("sku", sku).map(|()| sku.to_owned()).map_err(|_| unknown(sku))
}

#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
struct PutProduct {
    /// What people call it; no control characters.
    #[schema(
        min_length = 1,
        max_length = 200,
        pattern = "^[^\\x00-\\x1f\\x7f-\\x9f]*$",
        example = "Apple"
    )]
    name: String,
    /// The price of one, in cents; at most 2^53.
    #[schema(minimum = 0, maximum = 9_007_199_254_740_992_i64, example = 25)]
    price_cents: i64,
}

/// Makes a product, or changes its name and price
#[utoipa::path(
    put, path = "/products/{sku}", tag = "products", operation_id = "put_product",
    params(OfProduct),
    request_body = PutProduct,
    responses(
        (status = 200, description = "Changed", body = Product),
        (status = 201, description = "Made, with nothing in stock", body = Product),
        PutProblems
    )
)]
async fn put(
    State(api): State<Api>,
    Path(OfProduct { sku }): Path<OfProduct>,
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

#[derive(Debug, Clone, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
struct Receive {
    /// How many came in.
    #[schema(minimum = 1, maximum = 1_000_000_000, example = 100)]
    quantity: i64,
    /// Makes a repeat safe; no control characters.
    #[schema(
        min_length = 1,
        max_length = 128,
        pattern = "^[^\\x00-\\x1f\\x7f-\\x9f]*$",
        example = "delivery-17"
    )]
    reference: String,
}

#[derive(Debug, Serialize, utoipa::ToSchema)]
struct Receipt {
    sku: String,
    reference: String,
    quantity: i64,
    /// How many can be sold now.
    available: i64,
}

/// Adds stock of a product, once per reference
#[utoipa::path(
    post, path = "/products/{sku}/receipts", tag = "products", operation_id = "receive_stock",
    params(OfProduct),
    request_body = Receive,
    responses(
        (status = 200, description = "Added before, under this reference", body = Receipt),
        (status = 201, description = "Added", body = Receipt),
        ReceiveProblems
    )
)]
async fn receive(
    State(api): State<Api>,
    Path(OfProduct { sku }): Path<OfProduct>,
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

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct BooksQuery {
    /// At most so many; 50 if not given.
    #[param(minimum = 1, maximum = 500)]
    limit: Option<u64>,
    /// `next_cursor` of the page before: a sku.
    #[param(min_length = 1, max_length = 64, pattern = "^[A-Za-z0-9._-]+$")]
    cursor: Option<String>,
}

/// What is available of each product, and the sums of its movements
#[utoipa::path(
    get, path = "/stock", tag = "stock", operation_id = "list_stock", params(BooksQuery),
    responses((status = 200, description = "A page", body = List<StockBook>), BooksProblems)
)]
async fn books(
    State(api): State<Api>,
    Query(query): Query<BooksQuery>,
) -> Result<Json<List<StockBook>>, ApiError> {
    let limit = limit(query.limit)?;
    cursor(query.cursor.as_deref())?;
    let items = api.store.books(query.cursor.as_deref(), limit + 1).await?;
    Ok(Json(List::page(items, limit, |book| book.sku.clone())))
}

#[derive(Debug, Serialize, utoipa::ToSchema)]
struct Stock {
    sku: String,
    /// How many can be sold now.
    available: i64,
}

/// What is available of a product
#[utoipa::path(
    get, path = "/stock/{sku}", tag = "stock", operation_id = "show_stock",
    params(OfProduct),
    responses((status = 200, description = "Its stock", body = Stock), FindProblems)
)]
async fn stock(
    State(api): State<Api>,
    Path(OfProduct { sku }): Path<OfProduct>,
) -> Result<Json<Stock>, ApiError> {
    let found = api.store.product(&known(&sku)?).await?.ok_or_else(|| unknown(&sku))?;
    Ok(Json(Stock { sku: found.sku, available: found.available }))
}

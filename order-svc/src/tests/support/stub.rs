//! stock-svc as far as order-svc sees it.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};

use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use halfmsg_service_kit::ApiError;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use uuid::Uuid;

/// stock-svc as far as order-svc sees it.
pub(in crate::tests) struct StubStock {
    pub(in crate::tests) url: String,
    state: Arc<Mutex<StubState>>,
}

#[derive(Default)]
struct StubState {
    products: HashMap<String, (i64, u64)>,
    deducted: HashSet<Uuid>,
    requests: usize,
}

type Stub = State<Arc<Mutex<StubState>>>;

impl StubStock {
    /// apple 100 at 120 cents, banana 50 at 35, gold 9 at 2^53.
    #[expect(clippy::disallowed_methods, reason = "routes of a test are in no document")]
    pub(in crate::tests) async fn start() -> Self {
        let products = [("apple", 120, 100), ("banana", 35, 50), ("gold", 1 << 53, 1_000_000_000)];
        let products = products.map(|(sku, price, left)| (sku.to_owned(), (price, left)));
        let state = StubState { products: products.into(), ..StubState::default() };
        let state = Arc::new(Mutex::new(state));
        let routes = Router::new()
            .route("/products", get(products_of))
            .route("/deductions", post(deduct))
            .with_state(Arc::clone(&state));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, routes).await });
        Self { url, state }
    }

    pub(in crate::tests) fn has_deducted(&self, order_id: &str) -> bool {
        self.state.lock().unwrap().deducted.contains(&order_id.parse().unwrap())
    }

    pub(in crate::tests) fn requests(&self) -> usize {
        self.state.lock().unwrap().requests
    }
}

async fn products_of(
    State(state): Stub,
    Query(query): Query<HashMap<String, String>>,
    headers: HeaderMap,
) -> Response {
    let mut state = state.lock().unwrap();
    state.requests += 1;
    if headers.get("x-fault").is_some_and(|fault| fault == "price-lookup") {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    }
    let items: Vec<Value> = query["skus"]
        .split(',')
        .filter_map(|sku| {
            let (price_cents, _) = state.products.get(sku)?;
            Some(json!({"sku": sku, "name": sku, "price_cents": price_cents}))
        })
        .collect();
    Json(json!({"items": items, "next_cursor": null})).into_response()
}

async fn deduct(
    State(state): Stub,
    headers: HeaderMap,
    Json(request): Json<Value>,
) -> Result<Json<Value>, ApiError> {
    let fault = headers.get("x-fault").map(|fault| fault.to_str().unwrap().to_owned());
    {
        let mut state = state.lock().unwrap();
        state.requests += 1;
        let items = request["items"].as_array().unwrap();
        let enough = items.iter().all(|item| {
            let quantity = item["quantity"].as_u64().unwrap();
            let left = state.products.get(item["sku"].as_str().unwrap()).map(|(_, left)| *left);
            left.is_some_and(|left| left >= quantity)
        });
        if !enough || fault.as_deref() == Some("deduct-refused") {
            let conflict = StatusCode::CONFLICT;
            return Err(ApiError::new(conflict, "insufficient_stock", "too little")
                .detail("apple: fewer than asked for"));
        }
        for item in items {
            let quantity = item["quantity"].as_u64().unwrap();
            let product = state.products.get_mut(item["sku"].as_str().unwrap()).unwrap();
            product.1 -= quantity;
        }
        state.deducted.insert(request["order_id"].as_str().unwrap().parse().unwrap());
    }
    if fault.as_deref() == Some("deduct-timeout") {
        std::future::pending::<()>().await;
    }
    Ok(Json(json!({"order_id": request["order_id"], "state": "deducted"})))
}

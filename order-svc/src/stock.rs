//! The client of stock-svc: prices and deductions, one attempt each, within the caller's deadline.
//!
//! It must never guess: an answer that could hide a deduction is [`DeductError`] with
//! `untouched()` false.

mod client_span;

use std::collections::HashMap;
use std::time::Duration;

use halfmsg_consumer::TRANSACTION_ID_HEADER;
use halfmsg_producer::TransactionId;
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode, Url};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::fault::{self, Fault};
use crate::model::{Item, OrderId};
use crate::reason::VoidReason;

/// Bytes of one answer that are read; a hundred products fit many times.
const MAX_ANSWER_BYTES: usize = 256 * 1024;
/// Characters of an answer's detail that go into the order's reason.
const MAX_DETAIL_CHARS: usize = 200;
/// Connections to stock-svc that are kept while idle.
const MAX_IDLE_CONNECTIONS: usize = 64;

/// Asks stock-svc. Cheap to clone.
#[derive(Debug, Clone)]
pub struct StockClient {
    http: Client,
    products: Url,
    deductions: Url,
    base: Url,
}

/// An address that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StockUrlError {
    /// Not a URL.
    #[error("STOCK_URL is '{0}', which is not a URL: it must be http://host:port")]
    NotAUrl(String),
    /// Another scheme.
    #[error("STOCK_URL has the scheme '{0}': only http is supported; end TLS in a proxy beside it")]
    Scheme(String),
    /// The HTTP client cannot be made.
    #[error("the HTTP client cannot be created: {0}")]
    Client(#[from] reqwest::Error),
}

/// Why there are no prices. Nothing was deducted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PriceError {
    /// stock-svc does not know these products.
    #[error("unknown: {0}")]
    UnknownSku(String),
    /// No usable answer.
    #[error("{0}")]
    Failed(String),
}

/// Why the deduction is not known to have happened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeductError {
    /// Refused, for good: nothing was deducted.
    #[error("{1}")]
    Refused(VoidReason, String),
    /// No connection, so no request left the process: nothing was deducted.
    #[error("{0}")]
    Unreachable(String),
    /// The order's restore came first: whatever was deducted is restored.
    #[error("the stock of this order was restored before")]
    OrderVoid,
    /// No answer in time.
    #[error("no answer within the deadline")]
    Timeout,
    /// An answer that says neither.
    #[error("{0}")]
    Failed(String),
}

impl DeductError {
    /// What the order is void for.
    pub fn reason(&self) -> VoidReason {
        match self {
            Self::Refused(reason, _) => *reason,
            Self::Unreachable(_) => VoidReason::StockUnreachable,
            Self::OrderVoid => VoidReason::Fenced,
            Self::Timeout => VoidReason::DeductTimeout,
            Self::Failed(_) => VoidReason::DeductFailed,
        }
    }

    /// Whether it is certain that nothing was deducted.
    pub fn untouched(&self) -> bool {
        matches!(self, Self::Refused(..) | Self::Unreachable(_))
    }
}

#[derive(Deserialize)]
struct ProductList {
    items: Vec<Product>,
}

#[derive(Deserialize)]
struct Product {
    sku: String,
    price_cents: i64,
}

#[derive(Serialize)]
struct DeductRequest<'a> {
    order_id: OrderId,
    items: &'a [Item],
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Problem {
    r#type: String,
    title: String,
    detail: String,
}

impl Problem {
    /// The stable part of its type.
    fn slug(&self) -> &str {
        self.r#type.rsplit('/').next().unwrap_or_default()
    }

    fn into_detail(self) -> String {
        let text = if self.detail.is_empty() { self.title } else { self.detail };
        text.chars().take(MAX_DETAIL_CHARS).collect()
    }
}

impl StockClient {
    /// A client of the stock-svc at `url`, like `http://127.0.0.1:8081`.
    ///
    /// Proxies of the environment are not used, redirects not followed, nothing is retried.
    ///
    /// # Errors
    /// [`StockUrlError`] if the address is not an http URL.
    pub fn new(url: &str) -> Result<Self, StockUrlError> {
        let base = parse_url(url)?;
        let join = |path: &str| {
            let text = format!("{}/{path}", base.as_str().trim_end_matches('/'));
            Url::parse(&text).map_err(|_| StockUrlError::NotAUrl(url.to_owned()))
        };
        let http = Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .pool_max_idle_per_host(MAX_IDLE_CONNECTIONS)
            .build()?;
        Ok(Self { http, products: join("products")?, deductions: join("deductions")?, base })
    }

    /// A request for something that only people look at.
    ///
    /// # Errors
    /// [`StockUrlError::NotAUrl`] if the path makes no address.
    pub(crate) fn view(&self, method: Method, path: &str) -> Result<RequestBuilder, StockUrlError> {
        let text = format!("{}/{path}", self.base.as_str().trim_end_matches('/'));
        let url = Url::parse(&text).map_err(|_| StockUrlError::NotAUrl(text))?;
        Ok(self.http.request(method, url))
    }

    /// The price of one piece of each product, in cents, by sku.
    ///
    /// # Errors
    /// [`PriceError`]; nothing was changed anywhere.
    pub async fn prices(
        &self,
        items: &[Item],
        fault: Option<Fault>,
        until: Instant,
    ) -> Result<HashMap<String, i64>, PriceError> {
        let skus: Vec<_> = items.iter().map(|item| item.sku.as_str()).collect();
        let mut request = self
            .http
            .get(self.products.clone())
            .query(&[("skus", skus.join(","))])
            .timeout(left(until));
        if let Some(fault @ Fault::PriceLookup) = fault {
            request = request.header(fault::HEADER, fault.as_str());
        }
        let answer = client_span::send(request, Method::GET, &self.products).await;
        let answer = answer.map_err(|error| PriceError::Failed(brief(&error)))?;
        let status = answer.status();
        let body = read(answer).await.map_err(PriceError::Failed)?;
        if status != StatusCode::OK {
            return Err(PriceError::Failed(format!("stock-svc answered {status}")));
        }
        let list: ProductList = serde_json::from_slice(&body)
            .map_err(|error| PriceError::Failed(format!("stock-svc's answer: {error}")))?;
        let prices: HashMap<_, _> =
            list.items.into_iter().map(|product| (product.sku, product.price_cents)).collect();
        let unknown: Vec<_> =
            skus.iter().filter(|sku| !prices.contains_key(**sku)).copied().collect();
        if !unknown.is_empty() {
            let text = unknown.join(", ");
            return Err(PriceError::UnknownSku(text.chars().take(MAX_DETAIL_CHARS).collect()));
        }
        if prices.values().any(|price_cents| *price_cents < 0) {
            return Err(PriceError::Failed("stock-svc's answer: a negative price".into()));
        }
        Ok(prices)
    }

    /// Deducts the items of an order, all or none. The half message is named for stock-svc's log.
    ///
    /// Cancelled, the stock may be deducted or not: like [`DeductError::Timeout`].
    ///
    /// # Errors
    /// [`DeductError`], which says whether stock may have been deducted.
    pub async fn deduct(
        &self,
        (order_id, transaction_id): (OrderId, TransactionId),
        items: &[Item],
        fault: Option<Fault>,
        until: Instant,
    ) -> Result<(), DeductError> {
        let body = DeductRequest { order_id, items };
        let mut request = self.http.post(self.deductions.clone()).json(&body).timeout(left(until));
        request = request.header(TRANSACTION_ID_HEADER, transaction_id.to_string());
        if let Some(fault @ (Fault::DeductRefused | Fault::DeductTimeout)) = fault {
            request = request.header(fault::HEADER, fault.as_str());
        }
        let answer = match client_span::send(request, Method::POST, &self.deductions).await {
            Ok(answer) => answer,
            Err(error) if error.is_timeout() => return Err(DeductError::Timeout),
            Err(error) if error.is_connect() => {
                return Err(DeductError::Unreachable(brief(&error)));
            }
            Err(error) => return Err(DeductError::Failed(brief(&error))),
        };
        let status = answer.status();
        if status == StatusCode::OK {
            // The status says it; a body that cannot be read changes nothing.
            return Ok(());
        }
        let body = read(answer).await.unwrap_or_default();
        let problem: Problem = serde_json::from_slice(&body).unwrap_or_default();
        Err(match (status, problem.slug()) {
            (StatusCode::CONFLICT, "insufficient_stock") => {
                DeductError::Refused(VoidReason::InsufficientStock, problem.into_detail())
            }
            (StatusCode::UNPROCESSABLE_ENTITY, "unknown_sku") => {
                DeductError::Refused(VoidReason::UnknownSku, problem.into_detail())
            }
            (StatusCode::CONFLICT, "order_void") => DeductError::OrderVoid,
            _ => DeductError::Failed(format!("stock-svc answered {status}")),
        })
    }
}

/// The address of stock-svc, if it is one.
///
/// # Errors
/// [`StockUrlError::NotAUrl`] and [`StockUrlError::Scheme`].
pub fn parse_url(url: &str) -> Result<Url, StockUrlError> {
    let parsed = Url::parse(url).map_err(|_| StockUrlError::NotAUrl(url.to_owned()))?;
    match parsed.scheme() {
        "http" if parsed.host_str().is_some() => Ok(parsed),
        "http" => Err(StockUrlError::NotAUrl(url.to_owned())),
        other => Err(StockUrlError::Scheme(other.to_owned())),
    }
}

fn left(until: Instant) -> Duration {
    until.saturating_duration_since(Instant::now())
}

/// The body of an answer, up to a bound.
///
/// # Errors
/// In words, without the URL.
pub(crate) async fn read(mut answer: Response) -> Result<Vec<u8>, String> {
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(|error| brief(&error))? {
        if body.len() + chunk.len() > MAX_ANSWER_BYTES {
            return Err(format!("stock-svc's answer is longer than {MAX_ANSWER_BYTES} bytes"));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// What went wrong, without the URL: it becomes part of an order's reason.
pub(crate) fn brief(error: &reqwest::Error) -> String {
    let kind = match error {
        error if error.is_timeout() => "no answer within the deadline",
        error if error.is_connect() => "no connection to stock-svc",
        _ => "the exchange with stock-svc broke off",
    };
    tracing::debug!(%error, "stock-svc: {kind}");
    kind.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_http_addresses_are_taken() {
        assert!(StockClient::new("http://127.0.0.1:8081").is_ok());
        assert!(StockClient::new("http://stock.internal/base/").is_ok());
        assert!(matches!(StockClient::new("https://stock"), Err(StockUrlError::Scheme(_))));
        assert!(matches!(StockClient::new("stock:8081"), Err(StockUrlError::Scheme(_))));
        assert!(matches!(StockClient::new("nonsense"), Err(StockUrlError::NotAUrl(_))));
    }

    #[test]
    fn only_a_refusal_or_no_connection_leaves_the_stock_untouched() {
        assert!(DeductError::Refused(VoidReason::InsufficientStock, String::new()).untouched());
        assert!(DeductError::Unreachable(String::new()).untouched());
        for touched in
            [DeductError::Timeout, DeductError::OrderVoid, DeductError::Failed(String::new())]
        {
            assert!(!touched.untouched(), "{touched:?}");
        }
    }

    #[test]
    fn a_problems_slug_is_the_end_of_its_type() {
        let problem = |json| serde_json::from_str::<Problem>(json).expect("a problem");
        assert_eq!(problem(r#"{"type":"/problems/order_void"}"#).slug(), "order_void");
        assert_eq!(problem(r#"{"type":"order_void","status":409}"#).slug(), "order_void");
        assert_eq!(problem("{}").slug(), "");
    }
}

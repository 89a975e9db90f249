//! The frame around a service's routes: health, metrics, limits, and answers for what no route
//! handles.

use std::any::Any;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{DefaultBodyLimit, MatchedPath, Request, State};
use axum::http::{Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use halfmsg_traces::Span;
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use serde::Serialize;
use tower_http::catch_panic::CatchPanicLayer;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::docs::{self, Document};
use crate::extract::{BODY_LIMIT_BYTES, Json};
use crate::openapi::{problem as may, text_of};
use crate::problem::ApiError;

/// How long `/health/ready` waits for the check of the service.
pub const READY_DEADLINE: Duration = Duration::from_secs(2);

mod server_span;

type Check = Arc<dyn Fn() -> Ready + Send + Sync>;
type Ready = Pin<Box<dyn Future<Output = Result<(), String>> + Send>>;

/// Adds to a service's routes: `/health/live`, `/health/ready`, `/metrics`, the document of them all
/// at `/openapi.json` and as a page at `/docs`, problem+json for unknown paths (404) and wrong methods (405), the body limit, request metrics by route, and a
/// 500 in place of a handler's panic.
pub struct Frame {
    registry: Registry,
    requests: HttpMetrics,
    ready: Check,
    warnings: Warnings,
}

type Warnings = Arc<dyn Fn() -> Vec<String> + Send + Sync>;

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Labels {
    route: String,
    method: String,
    status: u16,
}

#[derive(Clone)]
struct HttpMetrics {
    count: Family<Labels, Counter>,
    seconds: Family<Labels, Histogram>,
}

/// From 1 ms to 16 s, in doublings.
fn request_buckets() -> Histogram {
    Histogram::new(prometheus_client::metrics::histogram::exponential_buckets(0.001, 2.0, 15))
}

impl Default for Frame {
    fn default() -> Self {
        Self::new()
    }
}

impl Frame {
    /// A frame whose service is always ready.
    pub fn new() -> Self {
        let requests = HttpMetrics {
            count: Family::default(),
            seconds: Family::new_with_constructor(request_buckets),
        };
        let mut registry = Registry::default();
        registry.register(
            "http_requests",
            "Requests by the answer's status; 499 if the caller went away before it",
            requests.count.clone(),
        );
        registry.register(
            "http_request_duration_seconds",
            "From the request's head to the answer's head, or to the caller's going away",
            requests.seconds.clone(),
        );
        let ready = || -> Ready { Box::pin(async { Ok(()) }) };
        Self { registry, requests, ready: Arc::new(ready), warnings: Arc::new(Vec::new) }
    }

    /// Where the service registers its own metrics.
    pub fn registry(&mut self) -> &mut Registry {
        &mut self.registry
    }

    /// The check behind `/health/ready`: `Ok`, or the reason why not (answered with 503). It is
    /// given up after [`READY_DEADLINE`].
    #[must_use]
    pub fn ready<F, Fut>(mut self, check: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), String>> + Send + 'static,
    {
        self.ready = Arc::new(move || Box::pin(check()));
        self
    }

    /// What is wrong although the service is ready, in words: told by `/health/ready` as well.
    #[must_use]
    pub fn warnings(mut self, warnings: impl Fn() -> Vec<String> + Send + Sync + 'static) -> Self {
        self.warnings = Arc::new(warnings);
        self
    }

    /// The routes within the frame.
    ///
    /// # Panics
    /// When two routes are the same, or the document of the routes cannot be written: a defect that
    /// every start shows.
    pub fn wrap(self, routes: OpenApiRouter) -> Router {
        let document = Document::default();
        let own = OpenApiRouter::default()
            .routes(routes!(live))
            .merge(
                OpenApiRouter::default()
                    .routes(routes!(ready))
                    .with_state((self.ready, self.warnings)),
            )
            .merge(
                OpenApiRouter::default()
                    .routes(routes!(metrics))
                    .with_state(Arc::new(self.registry)),
            )
            .merge(docs::routes(document.clone()));
        let (routes, api) = routes.merge(own).split_for_parts();
        document.fill(text_of(&api).expect("a document of texts and numbers can be written"));
        routes
            .fallback(unknown_path)
            .method_not_allowed_fallback(wrong_method)
            .layer(DefaultBodyLimit::max(BODY_LIMIT_BYTES))
            .layer(CatchPanicLayer::custom(panicked))
            .layer(middleware::from_fn_with_state(self.requests, count))
    }
}

/// Whether the process lives, or is ready.
#[derive(Debug, Serialize, utoipa::ToSchema)]
struct Health {
    /// `live` or `ready`.
    #[schema(pattern = "^(live|ready)$", example = "ready")]
    status: &'static str,
    /// What is wrong although the service is ready, in words.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    warnings: Vec<String>,
}

crate::problems!(LiveProblems: &[]);
crate::problems!(
    ReadyProblems: &[may(503, "not_ready", "the service cannot work now; `detail` says why")]
);

/// Whether the process answers
#[utoipa::path(
    get, path = "/health/live", tag = "service",
    responses((status = 200, description = "It does", body = Health), LiveProblems)
)]
async fn live() -> Json<Health> {
    Json(Health { status: "live", warnings: Vec::new() })
}

/// Whether the service can work: what it stands on is there
#[utoipa::path(
    get, path = "/health/ready", tag = "service",
    responses((status = 200, description = "It can", body = Health), ReadyProblems)
)]
async fn ready(State((check, warnings)): State<(Check, Warnings)>) -> Response {
    let reason = match tokio::time::timeout(READY_DEADLINE, check()).await {
        Ok(Ok(())) => {
            return Json(Health { status: "ready", warnings: warnings() }).into_response();
        }
        Ok(Err(reason)) => reason,
        Err(_) => format!("the check took longer than {READY_DEADLINE:?}"),
    };
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "not_ready", "the service is not ready")
        .detail(reason)
        .retry_after(1)
        .into_response()
}

/// What is measured
#[utoipa::path(
    get, path = "/metrics", tag = "service",
    responses(
        (status = 200, description = "OpenMetrics text", body = String,
            content_type = "application/openmetrics-text"),
        LiveProblems
    )
)]
async fn metrics(State(registry): State<Arc<Registry>>) -> Response {
    let mut body = String::new();
    match text::encode(&mut body, &registry) {
        Ok(()) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], body).into_response()
        }
        Err(error) => ApiError::internal(error).into_response(),
    }
}

async fn unknown_path(request: Request) -> ApiError {
    ApiError::not_found(format!("no route for {}", request.uri().path()))
}

async fn wrong_method(method: Method) -> ApiError {
    ApiError::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "method_not_allowed",
        "this path does not take this method",
    )
    .detail(format!("{method} is not in the header Allow"))
}

fn panicked(panic: Box<dyn Any + Send>) -> Response {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no text");
    ApiError::internal(format!("a handler panicked: {text}")).into_response()
}

async fn count(State(metrics): State<HttpMetrics>, mut request: Request, next: Next) -> Response {
    // The route and not the path, and known methods only: the number of series has a bound.
    let route = request.extensions().get::<MatchedPath>().map_or("unmatched", MatchedPath::as_str);
    let route = route.to_owned();
    let method = match *request.method() {
        Method::GET | Method::POST | Method::PUT | Method::DELETE | Method::HEAD => {
            request.method().as_str()
        }
        _ => "other",
    };
    let method = method.to_owned();
    let started = Instant::now();
    let span = server_span::begin(&mut request, &method, &route);
    let labels = Labels { route, method, status: CALLER_GONE };
    let mut asked = Asked { metrics, labels, started, span };
    let response = match &asked.span {
        None => next.run(request).await,
        Some(span) => server_span::within(span, next.run(request)).await,
    };
    asked.labels.status = response.status().as_u16();
    response
}

/// What is counted for a request whose caller went away before it was answered: no answer has it.
const CALLER_GONE: u16 = 499;

/// A request until its answer, or until its caller goes away: the server drops what it waits for then, and
/// the calls of those who lost patience are the ones that a percentile must not miss.
struct Asked {
    metrics: HttpMetrics,
    labels: Labels,
    started: Instant,
    span: Option<Span>,
}

impl Drop for Asked {
    fn drop(&mut self) {
        let Self { metrics, labels, started, span } = self;
        metrics.seconds.get_or_create(labels).observe(started.elapsed().as_secs_f64());
        metrics.count.get_or_create(labels).inc();
        if let Some(span) = span {
            let status = Some(labels.status).filter(|status| *status != CALLER_GONE);
            server_span::end(span, status);
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::routing::{get, post};
    use http_body_util::BodyExt;
    use serde_json::Value;
    use tower::ServiceExt;

    use super::*;

    #[expect(clippy::disallowed_methods, reason = "routes of a test are in no document")]
    fn router() -> Router {
        let echo = async |Json(value): Json<Value>| Json(value);
        let panicking = async || -> Json<()> { panic!("secret") };
        let routes = Router::new().route("/echo", post(echo)).route("/panic", get(panicking));
        Frame::new().ready(async || Err("the database is away".to_owned())).wrap(routes.into())
    }

    /// The server drops the future when the caller hangs up.
    #[tokio::test]
    #[expect(clippy::disallowed_methods, reason = "routes of a test are in no document")]
    async fn a_caller_who_goes_away_is_counted_and_timed() {
        let stuck = async || std::future::pending::<Json<()>>().await;
        let router = Frame::new().wrap(Router::new().route("/stuck", get(stuck)).into());
        let mut call = Box::pin(router.clone().oneshot(request("GET", "/stuck", "")));
        assert!(futures::poll!(&mut call).is_pending());
        drop(call);
        let answer = router.oneshot(request("GET", "/metrics", "")).await.unwrap();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        let body = String::from_utf8(body.to_vec()).unwrap();
        let labels = r#"{route="/stuck",method="GET",status="499"}"#;
        for series in ["http_requests_total", "http_request_duration_seconds_count"] {
            assert!(body.contains(&format!("{series}{labels} 1\n")), "{body}");
        }
    }

    async fn call(request: Request) -> (StatusCode, String, String) {
        let response = router().oneshot(request).await.unwrap();
        let status = response.status();
        let kind = response.headers()[header::CONTENT_TYPE].to_str().unwrap().to_owned();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, kind, String::from_utf8(body.to_vec()).unwrap())
    }

    fn request(method: &str, path: &str, body: impl Into<Body>) -> Request {
        let builder = Request::builder().method(method).uri(path);
        builder.header(header::CONTENT_TYPE, "application/json").body(body.into()).unwrap()
    }

    #[tokio::test]
    async fn every_refusal_is_a_problem() {
        let large = format!("\"{}\"", "x".repeat(BODY_LIMIT_BYTES));
        for (request, status) in [
            (request("GET", "/nowhere", ""), 404),
            (request("GET", "/echo", ""), 405),
            (request("POST", "/echo", "{"), 400),
            (request("POST", "/echo", large), 413),
            (request("GET", "/panic", ""), 500),
            (request("GET", "/health/ready", ""), 503),
        ] {
            let what = format!("{request:?}");
            let (found, kind, body) = call(request).await;
            assert_eq!(found, status, "{what}");
            assert_eq!(kind, "application/problem+json", "{what}");
            assert!(!body.contains("secret"), "{body}");
        }
    }

    #[tokio::test]
    async fn the_largest_body_passes() {
        let body = format!("\"{}\"", "x".repeat(BODY_LIMIT_BYTES - 2));
        assert_eq!(call(request("POST", "/echo", body)).await.0, 200);
    }

    #[tokio::test]
    async fn a_wrong_method_names_the_right_ones() {
        let response = router().oneshot(request("GET", "/echo", "")).await.unwrap();
        assert_eq!(response.headers()[header::ALLOW], "POST");
    }

    #[tokio::test]
    async fn counts_by_route() {
        let router = router();
        let live = request("GET", "/health/live", "");
        assert_eq!(router.clone().oneshot(live).await.unwrap().status(), 200);
        let unknown = request("GET", "/a/b/c", "");
        assert_eq!(router.clone().oneshot(unknown).await.unwrap().status(), 404);
        let answer = router.oneshot(request("GET", "/metrics", "")).await.unwrap();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        let body = String::from_utf8(body.to_vec()).unwrap();
        for route in ["/health/live", "unmatched"] {
            assert!(body.contains(&format!("http_requests_total{{route=\"{route}\"")), "{body}");
        }
        assert!(!body.contains("/a/b/c"), "{body}");
    }
}

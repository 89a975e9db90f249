//! The one error type that becomes an answer: RFC 9457 `application/problem+json`.

use std::fmt::{self, Display};

use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use halfmsg_db::DbFault;
use sea_orm::DbErr;
use serde::Serialize;
use serde_json::{Map, Value, json};
use tracing::field::display;
use uuid::Uuid;

use crate::openapi::Problem;

/// Seconds after which a client may try again when the database is away.
const RETRY_DATABASE_SECS: u64 = 1;

/// A refusal or a failure, as the client sees it.
///
/// The body is `{"type":"/problems/<code>","code":"<code>","title","status","detail"?, …}` with
/// the extension members given by [`ApiError::with`]. Clients match on `type` or `code`; both
/// are stable. `title` and `detail` are for people.
///
/// ```
/// use axum::http::StatusCode;
/// use halfmsg_service_kit::ApiError;
/// let error = ApiError::new(StatusCode::CONFLICT, "insufficient_stock", "not enough stock")
///     .detail("3 of sku 'apple' are left")
///     .with("order_id", "0198c0de");
/// assert_eq!(error.code(), "insufficient_stock");
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct ApiError(Box<Inner>);

/// Boxed, because a `Result` is as large as its larger half and this half is rare.
#[derive(Debug, Clone, PartialEq)]
struct Inner {
    status: StatusCode,
    code: &'static str,
    title: String,
    detail: Option<String>,
    members: Map<String, Value>,
    retry_after_secs: Option<u64>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl ApiError {
    /// An error with a status, a stable code in snake case and a short title.
    pub fn new(status: StatusCode, code: &'static str, title: impl Into<String>) -> Self {
        Self(Box::new(Inner {
            status,
            code,
            title: title.into(),
            detail: None,
            members: Map::new(),
            retry_after_secs: None,
            headers: Vec::new(),
        }))
    }

    /// 422 `invalid_request`: understood, but against the limits or the meaning of a field.
    pub fn invalid(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid_request", "the request is not valid")
            .detail(detail)
    }

    /// 404 `not_found`.
    pub fn not_found(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", "there is no such thing").detail(detail)
    }

    /// 500 `internal_error`. The cause goes to the log under an `error_id`, which is all that the
    /// client learns.
    pub fn internal(cause: impl Display) -> Self {
        let error_id = Uuid::now_v7();
        tracing::error!(%error_id, %cause, "internal error");
        Self::hidden(error_id)
    }

    /// The same about one order: the line and the answer name it, and its local transaction if that
    /// is known.
    pub fn internal_of(
        order_id: impl Display,
        transaction_id: Option<impl Display>,
        cause: impl Display,
    ) -> Self {
        let error_id = Uuid::now_v7();
        let told = transaction_id.as_ref().map(display);
        tracing::error!(%error_id, %order_id, transaction_id = told, %cause, "internal error");
        let problem = Self::hidden(error_id).with("order_id", order_id.to_string());
        match transaction_id {
            Some(id) => problem.with("transaction_id", id.to_string()),
            None => problem,
        }
    }

    fn hidden(error_id: Uuid) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", "something went wrong here")
            .detail("the log has the cause under this error_id")
            .with("error_id", error_id)
    }

    /// 503 `database_busy` with Retry-After.
    pub fn database_busy() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "database_busy", "the database is busy")
            .retry_after(RETRY_DATABASE_SECS)
    }

    /// 503 `database_unavailable` with Retry-After.
    pub fn database_unavailable() -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "database_unavailable",
            "the database cannot be reached",
        )
        .retry_after(RETRY_DATABASE_SECS)
    }

    /// What happened this time, for people.
    #[must_use]
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.0.detail = Some(detail.into());
        self
    }

    /// An extension member, such as `order_id`. A value that cannot be serialized becomes null.
    #[must_use]
    pub fn with(mut self, name: impl Into<String>, value: impl Serialize) -> Self {
        let value = serde_json::to_value(value).unwrap_or(Value::Null);
        self.0.members.insert(name.into(), value);
        self
    }

    /// The text of an extension member, if it has one of this name.
    pub fn member(&self, name: &str) -> Option<&str> {
        self.0.members.get(name)?.as_str()
    }

    /// Seconds after which it makes sense to try again (header `Retry-After`).
    #[must_use]
    pub fn retry_after(mut self, seconds: u64) -> Self {
        self.0.retry_after_secs = Some(seconds);
        self
    }

    /// A header of the answer.
    #[must_use]
    pub fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.0.headers.push((name, value));
        self
    }

    /// The stable code.
    pub fn code(&self) -> &'static str {
        self.0.code
    }

    /// The status of the answer.
    pub fn status(&self) -> StatusCode {
        self.0.status
    }

    /// The body, for instance to store it under an idempotency key.
    pub fn body(&self) -> Value {
        let Inner { status, code, title, detail, members, .. } = &*self.0;
        let problem = Problem {
            members: members.clone(),
            kind: format!("/problems/{code}"),
            code,
            title: title.clone(),
            status: status.as_u16(),
            detail: detail.clone(),
        };
        json!(problem)
    }
}

impl Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.0.status.as_u16(), self.0.code, self.0.title)?;
        self.0.detail.iter().try_for_each(|detail| write!(f, " ({detail})"))
    }
}

impl std::error::Error for ApiError {}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.0.status, self.body().to_string()).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(seconds) = self.0.retry_after_secs {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        headers.extend(self.0.headers);
        response
    }
}

impl From<DbErr> for ApiError {
    fn from(error: DbErr) -> Self {
        match DbFault::of(&error) {
            DbFault::Unavailable => {
                tracing::warn!(%error, "the database is away");
                Self::database_unavailable()
            }
            DbFault::Contended => {
                tracing::warn!(%error, "the database is busy");
                Self::database_busy()
            }
            DbFault::UniqueViolation | DbFault::Other => Self::internal(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renders_type_code_and_members() {
        let body = ApiError::new(StatusCode::CONFLICT, "order_void", "the order is void")
            .with("order_id", "x")
            .body();
        assert_eq!(body["type"], "/problems/order_void");
        assert_eq!(body["code"], "order_void");
        assert_eq!(body["status"], 409);
        assert_eq!(body["order_id"], "x");
        assert!(body.get("detail").is_none());
    }

    #[test]
    fn members_cannot_replace_the_standard_ones() {
        let body = ApiError::invalid("x").with("status", 200).with("type", "y").body();
        assert_eq!(
            (&body["status"], &body["type"]),
            (&json!(422), &json!("/problems/invalid_request"))
        );
    }

    #[test]
    fn an_internal_error_tells_the_client_nothing() {
        let error = ApiError::internal("password=hunter2 at db.rs:7");
        assert!(!error.body().to_string().contains("hunter2"));
        assert!(error.body()["error_id"].is_string());
    }

    #[test]
    fn sets_the_headers() {
        let response = ApiError::database_unavailable().into_response();
        assert_eq!(response.headers()["retry-after"], "1");
        assert_eq!(response.headers()["content-type"], "application/problem+json");
    }
}

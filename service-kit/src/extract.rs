//! Extractors whose rejections are [`ApiError`]s.

use std::error::Error;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde::de::{DeserializeOwned, IgnoredAny};

use crate::problem::ApiError;

/// The largest body that is read, in bytes.
pub const BODY_LIMIT_BYTES: usize = 1024 * 1024;

/// How long a client may take to send its body.
pub const BODY_DEADLINE: Duration = Duration::from_secs(10);

/// A JSON body, or a JSON answer.
///
/// Refused: another content type 415, more than [`BODY_LIMIT_BYTES`] 413, not sent within
/// [`BODY_DEADLINE`] 408, not JSON 400 `malformed_json`, JSON of another shape 422
/// `invalid_request` with a detail that names the field.
#[derive(Debug, Clone, Copy, Default)]
pub struct Json<T>(pub T);

/// The variables of the path. One that cannot be read is 404: it names nothing.
#[derive(Debug, Clone, Copy)]
pub struct Path<T>(pub T);

/// The query of the URL; refused with 422 `invalid_request`.
#[derive(Debug, Clone, Copy)]
pub struct Query<T>(pub T);

impl<T, S> FromRequest<S> for Json<T>
where
    T: DeserializeOwned,
    S: Send + Sync,
{
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        if !is_json(request.headers()) {
            return Err(ApiError::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "unsupported_media_type",
                "the body must be JSON",
            )
            .detail("send it with the header Content-Type: application/json"));
        }
        parse(&body(request, state).await?)
    }
}

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        match serde_json::to_vec(&self.0) {
            Ok(body) => {
                let json = HeaderValue::from_static("application/json");
                ([(header::CONTENT_TYPE, json)], body).into_response()
            }
            Err(error) => ApiError::internal(error).into_response(),
        }
    }
}

async fn body<S: Send + Sync>(request: Request, state: &S) -> Result<Bytes, ApiError> {
    let read = Bytes::from_request(request, state);
    match tokio::time::timeout(BODY_DEADLINE, read).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(rejection)) if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE => Err(
            ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", "the body is too large")
                .detail(format!("at most {BODY_LIMIT_BYTES} bytes are read")),
        ),
        Ok(Err(_)) => Err(ApiError::new(
            StatusCode::BAD_REQUEST,
            "incomplete_body",
            "the body could not be read to its end",
        )),
        Err(_) => Err(ApiError::new(
            StatusCode::REQUEST_TIMEOUT,
            "body_timeout",
            "the body did not arrive in time",
        )),
    }
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<Json<T>, ApiError> {
    let error = match axum::Json::<T>::from_bytes(bytes) {
        Ok(axum::Json(value)) => return Ok(Json(value)),
        Err(error) => error,
    };
    // The parser stops at the first thing that it dislikes: a wrong field may come before the
    // place where the JSON breaks off, and a number such as 1e999 is well-formed all the same.
    match serde_json::from_slice::<IgnoredAny>(bytes) {
        Ok(_) => Err(ApiError::invalid(root(&error))),
        Err(syntax) => Err(ApiError::new(
            StatusCode::BAD_REQUEST,
            "malformed_json",
            "the body is not well-formed JSON",
        )
        .detail(syntax.to_string())),
    }
}

/// The first cause below the extractor's own words: it names the field and the position.
fn root(error: &dyn Error) -> String {
    error.source().map_or_else(|| error.to_string(), ToString::to_string)
}

fn is_json(headers: &HeaderMap) -> bool {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let essence = value.map(|value| value.split(';').next().unwrap_or_default().trim());
    essence.is_some_and(|essence| {
        let essence = essence.to_ascii_lowercase();
        essence == "application/json"
            || (essence.starts_with("application/") && essence.ends_with("+json"))
    })
}

impl<T, S> FromRequestParts<S> for Path<T>
where
    T: DeserializeOwned + Send,
    S: Send + Sync,
{
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match axum::extract::Path::<T>::from_request_parts(parts, state).await {
            Ok(axum::extract::Path(value)) => Ok(Self(value)),
            Err(PathRejection::FailedToDeserializePathParams(error)) => {
                Err(ApiError::not_found(error.body_text()))
            }
            Err(error) => Err(ApiError::internal(error)),
        }
    }
}

impl<T, S> FromRequestParts<S> for Query<T>
where
    T: DeserializeOwned,
    S: Send + Sync,
{
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match axum::extract::Query::<T>::from_request_parts(parts, state).await {
            Ok(axum::extract::Query(value)) => Ok(Self(value)),
            Err(QueryRejection::FailedToDeserializeQueryString(error)) => {
                Err(ApiError::invalid(format!("query: {}", root(&error))))
            }
            Err(error) => Err(ApiError::internal(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Order {
        items: Vec<Item>,
    }

    #[derive(Debug, Deserialize)]
    struct Item {
        #[expect(dead_code, reason = "read by the deserializer only")]
        quantity: u32,
    }

    fn refusal(body: &str) -> (u16, String) {
        let error = parse::<Order>(body.as_bytes()).map(|order| order.0.items.len()).unwrap_err();
        (error.status().as_u16(), error.to_string())
    }

    #[test]
    fn tells_syntax_from_shape() {
        assert_eq!(refusal("{").0, 400);
        assert_eq!(refusal("").0, 400);
        assert_eq!(refusal("{\"items\":[]} x").0, 400);
        assert_eq!(refusal("{\"more\":1} x").0, 400);
        for shape in [
            r#"{"items":[{"quantity":-1}]}"#,
            r#"{"items":[{"quantity":99999999999999999999}]}"#,
            r#"{"items":[{"quantity":1e999}]}"#,
            r#"{"items":[{"quantity":"1"}]}"#,
            r#"{"items":[{"quantity":1.5}]}"#,
            r#"{"items":[{}]}"#,
            r#"{}"#,
            r#"{"items":[],"more":1}"#,
            "[]",
        ] {
            assert_eq!(refusal(shape).0, 422, "{shape}");
        }
    }

    #[test]
    fn names_the_field() {
        let (_, text) = refusal(r#"{"items":[{"quantity":1},{"quantity":-1}]}"#);
        assert!(text.contains("items[1].quantity"), "{text}");
    }

    #[test]
    fn knows_json_by_its_content_type() {
        let with =
            |value: &str| HeaderMap::from_iter([(header::CONTENT_TYPE, value.parse().unwrap())]);
        for yes in ["application/json", "Application/JSON; charset=utf-8", "application/x+json"] {
            assert!(is_json(&with(yes)), "{yes}");
        }
        for no in ["text/plain", "application/jsonx", ""] {
            assert!(!is_json(&with(no)), "{no}");
        }
        assert!(!is_json(&HeaderMap::new()));
    }
}

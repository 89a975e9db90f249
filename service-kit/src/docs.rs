//! `/openapi.json`, the document of the service, and `/docs`, the page that shows it.
//!
//! The page is Swagger UI, embedded in the program: it must not ask anything of another origin.

use std::borrow::Cow;
use std::sync::{Arc, OnceLock};

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use utoipa_swagger_ui::Config;

use crate::extract::Path;
use crate::openapi::PATH;
use crate::page::{self, CSS, HTML, SCRIPT};
use crate::problem::ApiError;

/// As the console's, and pictures within the style sheet of Swagger UI.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
    connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; \
    frame-ancestors 'none'";

/// The document, as soon as all routes are in it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Document(Arc<OnceLock<Bytes>>);

impl Document {
    /// Fills it in, once.
    pub(crate) fn fill(&self, json: String) {
        self.0.get_or_init(|| json.into());
    }
}

crate::problems!(DocumentProblems: &[]);
crate::problems!(FileProblems: PATH);

pub(crate) fn routes(document: Document) -> OpenApiRouter {
    OpenApiRouter::default()
        .routes(routes!(openapi))
        .routes(routes!(docs))
        .routes(routes!(file))
        .with_state(document)
}

/// This document
#[utoipa::path(
    get, path = "/openapi.json", tag = "service",
    responses((status = 200, description = "OpenAPI 3.1", body = serde_json::Value), DocumentProblems)
)]
async fn openapi(State(document): State<Document>) -> Result<Response, ApiError> {
    let json = document.0.get().ok_or_else(|| ApiError::internal("no document was made"))?;
    let kind = HeaderValue::from_static("application/json");
    Ok(([(header::CONTENT_TYPE, kind)], json.clone()).into_response())
}

/// This document as a page
#[utoipa::path(
    get, path = "/docs", tag = "service",
    responses(
        (status = 200, description = "The page", body = String, content_type = "text/html"),
        DocumentProblems
    )
)]
async fn docs() -> Response {
    page::file(HTML, POLICY, include_str!("docs/index.html"))
}

/// A file of that page
#[utoipa::path(
    get, path = "/docs/{file}", tag = "service",
    params(("file" = String, Path, description = "Its name", example = "docs.js")),
    responses(
        (status = 200, description = "The file", content(
            (String = "text/css"), (String = "text/javascript")
        )),
        FileProblems
    )
)]
async fn file(Path(name): Path<String>) -> Result<Response, ApiError> {
    match name.as_str() {
        "docs.js" => Ok(page::file(SCRIPT, POLICY, include_str!("docs/docs.js"))),
        "docs.css" => Ok(page::file(CSS, POLICY, include_str!("docs/docs.css"))),
        "swagger-ui-bundle.js" => swagger(SCRIPT, &name),
        "swagger-ui.css" => swagger(CSS, &name),
        _ => Err(ApiError::not_found("the page has no such file")),
    }
}

fn swagger(kind: &'static str, name: &str) -> Result<Response, ApiError> {
    let found = utoipa_swagger_ui::serve(name, Arc::new(Config::default()));
    let found = found.map_err(ApiError::internal)?;
    let file = found.ok_or_else(|| ApiError::internal(format!("Swagger UI has no {name}")))?;
    Ok(match file.bytes {
        Cow::Borrowed(bytes) => page::file(kind, POLICY, bytes),
        Cow::Owned(bytes) => page::file(kind, POLICY, bytes),
    })
}

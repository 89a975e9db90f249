//! The page's files, embedded in the program, and the headers that protect them.

use axum::Router;
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
    X_FRAME_OPTIONS,
};
use axum::http::{HeaderMap, HeaderValue};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use halfmsg_service_kit::ApiError;

use crate::http::Api;

/// Only files of this origin, nothing inline, and no page around this one.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
    connect-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; \
    frame-ancestors 'none'";
/// Asked again at each visit: a page of another version than its service would be confusing.
const CACHING: &str = "no-cache";

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";

/// Path, type, content.
macro_rules! files {
    ($($name:literal $kind:ident)*) => {
        [$((concat!("/console/", $name), $kind, include_str!(concat!("assets/", $name)))),*]
    };
}

const FILES: &[(&str, &str, &str)] = &files![
    "icon.svg" SVG
    "base.css" CSS
    "parts.css" CSS
    "app.js" SCRIPT
    "api.js" SCRIPT
    "charts.js" SCRIPT
    "dialog.js" SCRIPT
    "dom.js" SCRIPT
    "events.js" SCRIPT
    "halves.js" SCRIPT
    "lane.js" SCRIPT
    "lanes.js" SCRIPT
    "letters.js" SCRIPT
    "metrics.js" SCRIPT
    "order.js" SCRIPT
    "stock.js" SCRIPT
];

pub(super) fn routes() -> Router<Api> {
    let page = get(|| async { file(HTML, include_str!("assets/index.html")) });
    FILES.iter().fold(Router::new().route("/", page), |routes, (path, kind, content)| {
        routes.route(path, get(move || async { file(kind, content) }))
    })
}

fn file(kind: &'static str, content: &'static str) -> Result<Response, ApiError> {
    let mut headers = HeaderMap::new();
    for (name, value) in [
        (CONTENT_TYPE, kind),
        (CACHE_CONTROL, CACHING),
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (X_FRAME_OPTIONS, "DENY"),
        (REFERRER_POLICY, "no-referrer"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    Ok((headers, content).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_that_the_page_names_is_there() {
        let known = |path: &str| FILES.iter().any(|(known, ..)| *known == path);
        let page = include_str!("assets/index.html");
        let named: Vec<_> = page.split('"').filter(|part| part.starts_with("/console/")).collect();
        assert!(named.len() >= 4, "{named:?}");
        assert!(named.iter().all(|path| known(path)), "{named:?}");
        for (path, _, script) in FILES.iter().filter(|(_, kind, _)| *kind == SCRIPT) {
            for import in script.split("from \"./").skip(1) {
                let name = import.split('"').next().unwrap_or_default();
                assert!(known(&format!("/console/{name}")), "{path} imports {name}");
            }
        }
    }

    #[test]
    fn nothing_comes_from_elsewhere_and_nothing_is_inline() {
        let page = include_str!("assets/index.html");
        for part in page.split("<script").skip(1) {
            assert!(part.contains("src=\"/console/") && part.contains("></script>"), "{part}");
        }
        assert!(
            !page.contains("<style") && !page.contains(" style=") && !page.contains(" onclick")
        );
        for (path, _, content) in FILES {
            let content = content.replace("http://www.w3.org/", "");
            assert!(!content.contains("http://") && !content.contains("https://"), "{path}");
        }
    }
}

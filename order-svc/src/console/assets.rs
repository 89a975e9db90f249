//! The page's files, embedded in the program.

use axum::response::Response;
use halfmsg_service_kit::openapi::{OpenApiRouter, PATH};
use halfmsg_service_kit::page::{self, CSS, HTML, POLICY, SCRIPT, SVG};
use halfmsg_service_kit::{ApiError, Path};
use utoipa_axum::routes;

use crate::http::Api;

/// Name, type, content.
macro_rules! files {
    ($($name:literal $kind:ident)*) => {
        [$(($name, $kind, include_str!(concat!("assets/", $name)))),*]
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

halfmsg_service_kit::problems!(PageProblems: &[]);
halfmsg_service_kit::problems!(FileProblems: PATH);

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::default().routes(routes!(console)).routes(routes!(file))
}

/// The console
#[utoipa::path(
    get, path = "/", tag = "console",
    responses(
        (status = 200, description = "The page", body = String, content_type = "text/html"),
        PageProblems
    )
)]
async fn console() -> Response {
    page::file(HTML, POLICY, include_str!("assets/index.html"))
}

/// A file of the console
#[utoipa::path(
    get, path = "/console/{file}", tag = "console", operation_id = "console_file",
    params(("file" = String, Path, description = "Its name", example = "app.js")),
    responses(
        (status = 200, description = "The file", content(
            (String = "text/css"), (String = "text/javascript"), (String = "image/svg+xml")
        )),
        FileProblems
    )
)]
async fn file(Path(name): Path<String>) -> Result<Response, ApiError> {
    let found = FILES.iter().find(|(known, ..)| *known == name);
    let (_, kind, content) =
        found.ok_or_else(|| ApiError::not_found("the console has no such file"))?;
    Ok(page::file(kind, POLICY, *content))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_that_the_page_names_is_there() {
        let known = |path: &str| {
            let name = path.strip_prefix("/console/").expect("a file of the console");
            FILES.iter().any(|(known, ..)| *known == name)
        };
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

//! What the OpenAPI documents of both services have in common: the frame of the document, the
//! operators' token, and the problems that operations answer with.
//!
//! It must not describe what a type or a handler says itself: schemas are derived from the types
//! that are read and written, paths and methods from the routes.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Map, Value, json};
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa::openapi::{
    ComponentsBuilder, ContentBuilder, HeaderBuilder, InfoBuilder, LicenseBuilder, ObjectBuilder,
    OpenApi, OpenApiBuilder, Ref, RefOr, Response, ResponseBuilder, Schema, Type,
    schema::AllOfBuilder, tag::TagBuilder,
};

pub use utoipa::IntoResponses;
pub use utoipa_axum::router::OpenApiRouter;

/// The name of the security scheme: the operators' token.
pub const OPERATOR: &str = "operator";
const PROBLEM_JSON: &str = "application/problem+json";

const ABOUT_ALL: &str = "\n\nErrors are `application/problem+json` (RFC 9457). Match on `type` or \
    `code`: they are stable, `title` and `detail` are for people. A path that is not listed here \
    answers 404 `not_found`, a method that is not listed for its path 405 `method_not_allowed` with \
    `Allow`; `HEAD` is answered wherever `GET` is. Request bodies are JSON of at most 1 MiB; an \
    unknown field is refused, and an unknown query parameter where there are any. 503 means that nothing is known to have been done \
    by the call beyond what its problem says: repeat it after `Retry-After`.";

/// A problem (RFC 9457). `order_id`, `transaction_id` and other members say more where they exist.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[schema(example = json!({
    "type": "/problems/insufficient_stock",
    "code": "insufficient_stock",
    "title": "There is not enough stock; the order is void.",
    "status": 409,
    "detail": "3 of 'apple' were asked for, 1 are there",
    "order_id": "0198c0de-0000-7000-8000-000000000001"
}))]
pub struct Problem {
    /// What else is known. First, so that none replaces a standard member.
    #[serde(flatten)]
    pub(crate) members: Map<String, Value>,
    /// `/problems/` and the code; stable.
    #[serde(rename = "type")]
    pub(crate) kind: String,
    /// What it is; stable.
    pub(crate) code: &'static str,
    /// The same for people.
    pub(crate) title: String,
    /// The status of the answer.
    #[schema(minimum = 400, maximum = 599)]
    pub(crate) status: u16,
    /// What happened this time, for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) detail: Option<String>,
}

/// A problem that an operation may answer with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProblemType {
    /// The status of the answer.
    pub status: u16,
    /// The stable code.
    pub code: &'static str,
    /// When.
    pub when: &'static str,
}

/// A [`ProblemType`], in short.
pub const fn problem(status: u16, code: &'static str, when: &'static str) -> ProblemType {
    ProblemType { status, code, when }
}

/// What may be wrong with a path.
pub const PATH: &[ProblemType] = &[problem(404, "not_found", "nothing has this identity")];
/// What may be wrong with a query or a header.
pub const QUERY: &[ProblemType] =
    &[problem(422, "invalid_request", "against the limits or the meaning of a field")];
/// What may be wrong with a body; see [`crate::Json`].
pub const BODY: &[ProblemType] = &[
    problem(400, "malformed_json", "not well-formed JSON"),
    problem(400, "incomplete_body", "the body broke off"),
    problem(408, "body_timeout", "the body did not arrive in time"),
    problem(413, "body_too_large", "more than 1 MiB"),
    problem(415, "unsupported_media_type", "not `application/json`"),
    problem(422, "invalid_request", "against the limits or the meaning of a field"),
];
/// What may be wrong with the operators' token, where it is needed or shown.
pub const TOKEN: &[ProblemType] = &[
    problem(401, "unauthorized", "the operators' token is missing or wrong"),
    problem(403, "admin_disabled", "the service has no operators' token"),
];
/// What may be wrong with `X-Fault`.
pub const FAULT: &[ProblemType] = &[
    problem(403, "faults_disabled", "`X-Fault`, and induced failures are switched off"),
    problem(422, "unknown_fault", "no such `X-Fault` here"),
];
/// The database that is away or busy.
pub const DATABASE: &[ProblemType] = &[
    problem(503, "database_unavailable", "the database cannot be reached"),
    problem(503, "database_busy", "the database is busy"),
];
const ALWAYS: &[ProblemType] =
    &[problem(500, "internal_error", "a defect; the log has it under `error_id`")];

/// Declares a type that stands for the problems of an operation, for `responses(…)` of
/// `#[utoipa::path]`.
///
/// ```
/// use halfmsg_service_kit::openapi::{DATABASE, PATH, problem};
/// halfmsg_service_kit::problems!(FindProblems: PATH, DATABASE, &[problem(409, "gone", "too late")]);
/// ```
#[macro_export]
macro_rules! problems {
    ($visibility:vis $name:ident: $($group:expr),+ $(,)?) => {
        $visibility struct $name;

        impl $crate::openapi::IntoResponses for $name {
            fn responses() -> ::std::collections::BTreeMap<
                String,
                ::utoipa::openapi::RefOr<::utoipa::openapi::Response>,
            > {
                $crate::openapi::answers([$($group.iter().copied()),+].into_iter().flatten())
            }
        }
    };
}

/// The answers that these problems make, by status, and the one that every operation may give.
pub fn answers(
    problems: impl IntoIterator<Item = ProblemType>,
) -> BTreeMap<String, RefOr<Response>> {
    let mut by_status: BTreeMap<u16, Vec<ProblemType>> = BTreeMap::new();
    for problem in problems.into_iter().chain(ALWAYS.iter().copied()) {
        let known = by_status.entry(problem.status).or_default();
        if known.iter().all(|known| known.code != problem.code) {
            known.push(problem);
        }
    }
    by_status
        .iter()
        .map(|(status, all)| (status.to_string(), answer(*status, all).into()))
        .collect()
}

fn answer(status: u16, problems: &[ProblemType]) -> Response {
    let lines: Vec<_> =
        problems.iter().map(|problem| format!("`{}`: {}", problem.code, problem.when)).collect();
    let codes: Vec<_> = problems.iter().map(|problem| problem.code).collect();
    let types: Vec<_> = codes.iter().map(|code| format!("/problems/{code}")).collect();
    let text = |values: Vec<String>| {
        ObjectBuilder::new().schema_type(Type::String).enum_values(Some(values))
    };
    let this = ObjectBuilder::new()
        .property("code", text(codes.iter().map(ToString::to_string).collect()))
        .property("type", text(types))
        .property(
            "status",
            ObjectBuilder::new().schema_type(Type::Integer).enum_values(Some([status])),
        );
    let schema: RefOr<Schema> =
        AllOfBuilder::new().item(Ref::from_schema_name("Problem")).item(this).into();
    let example = problems.first().map(|first| {
        json!({
            "type": format!("/problems/{}", first.code),
            "code": first.code,
            "title": first.when,
            "status": status,
        })
    });
    let content = ContentBuilder::new().schema(Some(schema)).example(example).build();
    let header = |kind, what: &str| {
        HeaderBuilder::new()
            .schema(Some(ObjectBuilder::new().schema_type(kind)))
            .description(Some(what))
            .build()
    };
    let builder =
        ResponseBuilder::new().description(lines.join("; ")).content(PROBLEM_JSON, content);
    match status {
        401 => builder.header("WWW-Authenticate", header(Type::String, "`Bearer`")).build(),
        503 => builder
            .header("Retry-After", header(Type::Integer, "Seconds after which to repeat it"))
            .build(),
        _ => builder.build(),
    }
}

/// A service's document, before its routes are in it; its tags in this order.
pub fn document(title: &str, about: &str, tags: &[&str]) -> OpenApi {
    let info = InfoBuilder::new()
        .title(title)
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(format!("{about}{ABOUT_ALL}")))
        .license(Some(LicenseBuilder::new().name("Apache-2.0").build()));
    let mut token = Http::new(HttpAuthScheme::Bearer);
    token.description = Some("HALFMSG_ADMIN_TOKEN of the service, for what operators do".into());
    let components = ComponentsBuilder::new()
        .schema_from::<Problem>()
        .security_scheme(OPERATOR, SecurityScheme::Http(token));
    let tags = tags.iter().map(|name| TagBuilder::new().name(*name).build());
    OpenApiBuilder::new().info(info).components(Some(components.build())).tags(Some(tags)).build()
}

/// The text of a document. A parameter that need not be there is never null, as the types of those
/// that are read would have it.
///
/// # Errors
/// A document that cannot be written; never in practice.
pub(crate) fn text_of(api: &OpenApi) -> Result<String, serde_json::Error> {
    let mut json = serde_json::to_value(api)?;
    let paths = json["paths"].as_object_mut().into_iter().flat_map(|paths| paths.values_mut());
    let operations = paths.filter_map(Value::as_object_mut).flat_map(|path| path.values_mut());
    for operation in operations {
        for parameter in operation["parameters"].as_array_mut().into_iter().flatten() {
            let kind = &mut parameter["schema"]["type"];
            let first = kind.as_array().and_then(|kinds| kinds.iter().find(|kind| *kind != "null"));
            if let Some(first) = first.cloned() {
                *kind = first;
            }
        }
    }
    serde_json::to_string(&json)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_of_one_status_are_one_answer() {
        let all = [BODY, QUERY, TOKEN, DATABASE].into_iter().flatten().copied();
        let found = serde_json::to_value(answers(all)).unwrap();
        let statuses: Vec<_> = found.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(statuses, ["400", "401", "403", "408", "413", "415", "422", "500", "503"]);
        let schema = &found["400"]["content"][PROBLEM_JSON]["schema"]["allOf"];
        assert_eq!(schema[0]["$ref"], "#/components/schemas/Problem");
        assert_eq!(
            schema[1]["properties"]["code"]["enum"],
            json!(["malformed_json", "incomplete_body"])
        );
        assert_eq!(
            found["422"]["content"][PROBLEM_JSON]["schema"]["allOf"][1]["properties"]["type"]["enum"],
            json!(["/problems/invalid_request"])
        );
        assert!(found["503"]["headers"]["Retry-After"].is_object());
    }
}

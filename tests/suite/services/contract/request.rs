//! Requests as a document has them, and their answers. What may be said against an answer is not
//! decided here.

use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderName, HeaderValue};
use reqwest::{Client, Method, RequestBuilder, Url};
use serde_json::Value;

use super::document::{Document, Operation, Parameter, Token};
use super::targets::Targets;
use crate::suite::services::http::Answer;
use crate::suite::services::shop::TOKEN;

pub(super) const JSON: &str = "application/json";
/// A well-formed identity that nothing has.
pub(super) const NOBODY: &str = "0198c0de-0000-7000-8000-0000000000ff";

/// A request that is about to be sent.
#[derive(Debug, Clone)]
pub(super) struct Ask {
    pub(super) path: String,
    pub(super) query: Vec<(String, String)>,
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    pub(super) token: Option<HeaderValue>,
    pub(super) body: Option<(Option<&'static str>, Vec<u8>)>,
}

/// Makes and sends the requests of one service's document.
#[derive(Clone)]
pub(super) struct Requests<'a> {
    pub(super) document: &'a Document,
    pub(super) base: String,
    pub(super) http: &'a Client,
    pub(super) targets: Targets,
}

impl Requests<'_> {
    /// What the document's examples make, with the operators' token where it is asked for.
    pub(super) fn base(&self, operation: &Operation) -> Ask {
        let token = HeaderValue::try_from(format!("Bearer {TOKEN}")).expect("a header");
        let body = operation.has_body.then(|| self.example(operation).to_string().into_bytes());
        let required = operation.at("query").filter(|parameter| parameter.required);
        Ask {
            path: self.path(operation, None),
            query: required.map(|one| (one.name.clone(), NOBODY.to_owned())).collect(),
            headers: Vec::new(),
            token: (operation.token != Token::Never).then_some(token),
            body: body.map(|body| (Some(JSON), body)),
        }
    }

    pub(super) fn example(&self, operation: &Operation) -> Value {
        let schema = self.document.body(operation);
        let resolved = self.document.resolved(&schema);
        match &resolved["example"] {
            Value::Null => {
                let properties = resolved["properties"].as_object().into_iter().flatten();
                properties.map(|(name, one)| (name.clone(), one["example"].clone())).collect()
            }
            example => example.clone(),
        }
    }

    /// The example with each name that one of its members may have.
    pub(super) fn named(&self, operation: &Operation) -> Vec<Value> {
        let schema = self.document.body(operation);
        let properties = self.document.resolved(&schema)["properties"].as_object();
        let mut all = Vec::new();
        for (member, schema) in properties.into_iter().flatten() {
            for name in self.document.names(schema) {
                let mut body = self.example(operation);
                body[member] = name;
                all.push(body);
            }
        }
        all
    }

    /// The path with its targets, or with another value for one of its parameters.
    pub(super) fn path(&self, operation: &Operation, other: Option<(&str, &str)>) -> String {
        let mut path = operation.path.clone();
        for parameter in operation.at("path") {
            let name = parameter.name.as_str();
            let of = |id: &str| {
                let found =
                    self.targets.iter().find(|((of, known), _)| *of == id && *known == name);
                found.map(|(_, value)| value.as_str())
            };
            let value = match other {
                Some((other, value)) if other == name => Some(value),
                _ => of(&operation.id).or_else(|| of("")).or(parameter.example.as_deref()),
            };
            let value = value.unwrap_or_else(|| panic!("{} has no {name}", operation.id));
            path = path.replace(&format!("{{{name}}}"), value);
        }
        path
    }

    /// The request, ready to be sent.
    pub(super) fn request(&self, operation: &Operation, ask: &Ask) -> RequestBuilder {
        let method: Method = operation.method.to_uppercase().parse().expect("a method");
        let mut url: Url = format!("{}{}", self.base, ask.path).parse().expect("an address");
        if !ask.query.is_empty() {
            url.query_pairs_mut().extend_pairs(&ask.query);
        }
        let mut request = self.http.request(method, url);
        for (name, value) in ask.headers.iter().cloned() {
            request = request.header(name, value);
        }
        if let Some(token) = ask.token.clone() {
            request = request.header(AUTHORIZATION, token);
        }
        if let Some((kind, body)) = ask.body.clone() {
            request = kind.into_iter().fold(request, |all, kind| all.header(CONTENT_TYPE, kind));
            request = request.body(body);
        }
        request
    }

    /// Reads the answer to its end, or the beginning of one that has none.
    pub(super) async fn send(&self, request: reqwest::RequestBuilder) -> Answer {
        let mut answer = request.send().await.expect("the service answers");
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        let endless = headers.get(CONTENT_TYPE).is_some_and(|kind| kind == "text/event-stream");
        let text = if endless {
            let first = answer.chunk().await.expect("the stream goes on");
            String::from_utf8_lossy(&first.unwrap_or_default()).into_owned()
        } else {
            answer.text().await.expect("a body")
        };
        let body = serde_json::from_str(&text).unwrap_or_default();
        Answer { status, headers, text, body }
    }
}

impl Ask {
    pub(super) fn with_json(&self, body: &Value) -> Self {
        Self { body: Some((Some(JSON), body.to_string().into_bytes())), ..self.clone() }
    }

    pub(super) fn in_words(&self) -> String {
        let body = self.body.as_ref().map(|(kind, body)| (kind, String::from_utf8_lossy(body)));
        let Self { path, query, headers, token, .. } = self;
        format!("{path} {query:?} {headers:?} token {token:?} body {body:?}")
    }

    /// Sets a query's or header's value; false if it cannot be sent.
    pub(super) fn set(&mut self, parameter: &Parameter, value: &str) -> bool {
        if parameter.place == "query" {
            self.query.push((parameter.name.clone(), value.to_owned()));
            return true;
        }
        let name: HeaderName = parameter.name.parse().expect("a header's name");
        let value = HeaderValue::from_str(value).ok();
        self.headers.extend(value.clone().map(|value| (name, value)));
        value.is_some()
    }
}

//! What is asked of one service, and what is said against its answers.

use std::collections::{BTreeMap, BTreeSet};

use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderName, HeaderValue};
use reqwest::{Client, Method, Url};
use serde_json::Value;

use super::Targets;
use super::data::Data;
use super::document::{Document, Operation, Parameter, Token};
use crate::suite::services::http::Answer;
use crate::suite::services::shop::TOKEN;

const JSON: &str = "application/json";
/// Random bodies and random queries of each operation.
const RANDOM_REQUESTS: usize = 6;
/// A body of more than 1 MiB.
const TOO_LARGE_BYTES: usize = 1024 * 1024 + 1;
/// A well-formed identity that nothing has.
const NOBODY: &str = "0198c0de-0000-7000-8000-0000000000ff";
/// All that are tried where they are not documented.
const METHODS: [&str; 6] = ["GET", "PUT", "POST", "DELETE", "PATCH", "OPTIONS"];
/// What takes from the others what they are asked about.
const LAST: [&str; 2] = ["replay_dead_letters", "rebuild_report"];
/// Complaints of one service, which are then enough.
const MAX_COMPLAINTS: usize = 40;

/// What an answer may be, beyond being documented.
#[derive(Debug, Clone, Copy)]
enum Expect {
    /// The document allows the request: it is not refused for its form.
    Fit,
    /// One of these.
    Refused(&'static [u16]),
    /// Whatever is documented.
    Documented,
}

/// A request that is about to be sent.
#[derive(Debug, Clone)]
struct Ask {
    path: String,
    query: Vec<(String, String)>,
    headers: Vec<(HeaderName, HeaderValue)>,
    token: Option<HeaderValue>,
    body: Option<(Option<&'static str>, Vec<u8>)>,
}

/// One service under trial.
pub(super) struct Trial<'a> {
    document: &'a Document,
    base: String,
    http: &'a Client,
    targets: Targets,
    pub(super) complaints: Vec<String>,
    /// Operations that answered with success.
    pub(super) succeeded: BTreeSet<String>,
    /// The first answer of each status of each operation.
    pub(super) remembered: BTreeMap<(String, u16), Answer>,
    pub(super) asked: usize,
}

impl<'a> Trial<'a> {
    pub(super) fn new(
        document: &'a Document,
        base: String,
        http: &'a Client,
        targets: Targets,
    ) -> Self {
        let (complaints, succeeded, remembered) = Default::default();
        Self { document, base, http, targets, complaints, succeeded, remembered, asked: 0 }
    }

    /// The same service with another document.
    pub(super) fn with<'b>(&self, document: &'b Document) -> Trial<'b>
    where
        'a: 'b,
    {
        Trial::new(document, self.base.clone(), self.http, self.targets.clone())
    }

    /// Everything.
    pub(super) async fn run(&mut self, seed: u64) {
        let mut data = Data::new(self.document, seed);
        let is_last = |operation: &&Operation| LAST.contains(&operation.id.as_str());
        let (last, first): (Vec<_>, Vec<_>) = self.document.operations.iter().partition(is_last);
        for operation in first.into_iter().chain(last) {
            self.fits(operation, &mut data).await;
            self.tokens(operation).await;
            self.parameters(operation, &data).await;
            self.paths(operation).await;
            if operation.has_body {
                self.bodies(operation, &mut data).await;
                self.raw_bodies(operation).await;
            }
        }
        let paths: Vec<_> = self.document.paths().keys().map(ToString::to_string).collect();
        for path in paths {
            self.other_methods(&path).await;
        }
        self.unknown_path().await;
    }

    /// As the example has it, then each parameter alone, then random bodies.
    async fn fits(&mut self, operation: &Operation, data: &mut Data<'_>) {
        let base = self.base(operation);
        self.ask(operation, base.clone(), Expect::Fit).await;
        for parameter in &operation.parameters {
            for _ in 0..RANDOM_REQUESTS / 2 {
                if parameter.place != "path" && !is_opaque(parameter) {
                    let mut ask = base.clone();
                    ask.query.retain(|(name, _)| *name != parameter.name);
                    ask.set(parameter, &text(&data.valid(&parameter.schema)));
                    self.ask(operation, ask, Expect::Fit).await;
                }
            }
        }
        if operation.has_body {
            let schema = self.document.body(operation);
            for _ in 0..RANDOM_REQUESTS {
                let body = data.valid(&schema);
                assert!(self.document.allows(operation, &body), "{}: {body}", operation.id);
                self.ask(operation, base.with_json(&body), Expect::Fit).await;
            }
        }
    }

    /// No token, another one, and what is none.
    async fn tokens(&mut self, operation: &Operation) {
        let (without, with) = match operation.token {
            Token::Never => return,
            Token::Shown => (Expect::Fit, Expect::Refused(&[401])),
            Token::Needed => (Expect::Refused(&[401]), Expect::Refused(&[401])),
        };
        let base = self.base(operation);
        self.ask(operation, Ask { token: None, ..base.clone() }, without).await;
        let wrong: [&[u8]; 5] =
            [b"Bearer wrong", b"Bearer", b"", b"Basic b3BlcmF0b3Jz", b"Bearer \xfc\xff"];
        for wrong in wrong {
            let token = HeaderValue::from_bytes(wrong).expect("a header");
            self.ask(operation, Ask { token: Some(token), ..base.clone() }, with).await;
        }
    }

    /// Queries and headers that are not allowed.
    async fn parameters(&mut self, operation: &Operation, data: &Data<'_>) {
        let base = self.base(operation);
        let refused = Expect::Refused(&[422]);
        for parameter in operation.parameters.iter().filter(|one| one.place != "path") {
            for unfit in data.unfit(&parameter.schema) {
                let mut ask = base.clone();
                ask.query.retain(|(name, _)| *name != parameter.name);
                if ask.set(parameter, &unfit) {
                    self.ask(operation, ask, refused).await;
                }
            }
            if parameter.required {
                let mut ask = base.clone();
                ask.query.retain(|(name, _)| *name != parameter.name);
                self.ask(operation, ask, refused).await;
            }
        }
        if operation.at("query").next().is_some() {
            let mut ask = base;
            ask.query.push(("nonsense".into(), "1".into()));
            self.ask(operation, ask, refused).await;
        }
    }

    /// Identities that nothing has, or that are none.
    async fn paths(&mut self, operation: &Operation) {
        let long = "a".repeat(300);
        let odd = ["nonsense", NOBODY, "%00", "%ff", "a%20b", "..%2F..%2Fetc%2Fpasswd", &long];
        for parameter in operation.at("path") {
            for other in odd {
                let mut ask = self.base(operation);
                ask.path = self.path(operation, Some((&parameter.name, other)));
                let is_sku = parameter.name == "sku";
                let expect = if is_sku { Expect::Documented } else { Expect::Refused(&[404]) };
                self.ask(operation, ask, expect).await;
            }
        }
    }

    /// Bodies that the schema does not allow, each with one thing changed; those that it does allow
    /// are not refused for their form.
    async fn bodies(&mut self, operation: &Operation, data: &mut Data<'_>) {
        let schema = self.document.body(operation);
        let example = self.example(operation);
        let base = self.base(operation);
        for changed in data.changed(&schema, &example) {
            let allowed = self.document.allows(operation, &changed);
            let expect = if allowed { Expect::Fit } else { Expect::Refused(&[422]) };
            self.ask(operation, base.with_json(&changed), expect).await;
        }
    }

    /// Bodies that are no JSON, too large, or of another type.
    async fn raw_bodies(&mut self, operation: &Operation) {
        let base = self.base(operation);
        let example = self.example(operation).to_string();
        let deep = "[".repeat(200);
        let malformed: [&[u8]; 6] = [b"", b"{", b"nonsense", b"\0", b"{}{}", deep.as_bytes()];
        for malformed in malformed {
            let body = Some((Some(JSON), malformed.to_vec()));
            let ask = Ask { body, ..base.clone() };
            self.ask(operation, ask, Expect::Refused(&[400])).await;
        }
        let ask = Ask { body: Some((Some(JSON), b"{\"\xff\":\"\xfe\"}".to_vec())), ..base.clone() };
        self.ask(operation, ask, Expect::Refused(&[400, 422])).await;
        let large = " ".repeat(TOO_LARGE_BYTES) + &example;
        let ask = Ask { body: Some((Some(JSON), large.into_bytes())), ..base.clone() };
        self.ask(operation, ask, Expect::Refused(&[413])).await;
        for kind in [None, Some("text/plain"), Some("application/x-www-form-urlencoded")] {
            let ask = Ask { body: Some((kind, example.clone().into_bytes())), ..base.clone() };
            self.ask(operation, ask, Expect::Refused(&[415])).await;
        }
    }

    /// Every method that the document does not have for a path is refused, and the right ones named:
    /// so the service has no method that the document lacks, and the other way round.
    pub(super) async fn other_methods(&mut self, path: &str) {
        let known = self.document.paths()[path].clone();
        let mut allowed = known.clone();
        if known.contains("GET") {
            allowed.insert("HEAD".into());
        }
        let any = self.document.operations.iter().find(|operation| operation.path == path);
        let url = format!("{}{}", self.base, self.path(any.expect("an operation"), None));
        for method in METHODS.into_iter().filter(|method| !known.contains(*method)) {
            let what = format!("{method} {path}");
            let request = self.http.request(method.parse().expect("a method"), &url);
            let answer = self.send(request).await;
            let named = answer.header("allow").split(',').map(|one| one.trim().to_owned());
            let named: BTreeSet<String> = named.filter(|one| !one.is_empty()).collect();
            if (answer.status, answer.code()) != (405, "method_not_allowed") || named != allowed {
                self.complain(format!(
                    "{what}: {} names {named:?}: {}",
                    answer.status, answer.text
                ));
            }
        }
    }

    async fn unknown_path(&mut self) {
        for path in ["/nowhere", "/orders/", "/docs/", "//", "/products/apple/nowhere"] {
            let answer = self.send(self.http.get(format!("{}{path}", self.base))).await;
            if (answer.status, answer.code()) != (404, "not_found") {
                self.complain(format!("GET {path}: {} {}", answer.status, answer.text));
            }
        }
    }

    /// What the document's examples make, with the operators' token where it is asked for.
    fn base(&self, operation: &Operation) -> Ask {
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

    fn example(&self, operation: &Operation) -> Value {
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

    /// The path with its targets, or with another value for one of its parameters.
    fn path(&self, operation: &Operation, other: Option<(&str, &str)>) -> String {
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

    async fn ask(&mut self, operation: &Operation, ask: Ask, expect: Expect) {
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
        let answer = self.send(request).await;
        if let Err(why) = self.holds(operation, &ask, &answer, expect) {
            let shown: String = ask.in_words().chars().take(600).collect();
            let text: String = answer.text.chars().take(400).collect();
            let (id, status) = (&operation.id, answer.status);
            self.complain(format!("{id}: {why}; {status} {text} to {expect:?} {shown}"));
        }
        if answer.status < 300 {
            self.succeeded.insert(operation.id.clone());
        }
        self.remembered.entry((operation.id.clone(), answer.status)).or_insert(answer);
    }

    fn holds(
        &self,
        operation: &Operation,
        ask: &Ask,
        answer: &Answer,
        expect: Expect,
    ) -> Result<(), String> {
        self.document.judge(operation, answer)?;
        let induced = ask.headers.iter().any(|(name, _)| name == "x-fault");
        if answer.status >= 500 && answer.status != 503 && !induced {
            return Err("it failed".into());
        }
        match expect {
            Expect::Fit if [400, 408, 413, 415].contains(&answer.status) => {
                Err("it is refused, and fits the document".into())
            }
            Expect::Fit if answer.code() == "invalid_request" => {
                Err("it is called invalid, and fits the document".into())
            }
            Expect::Refused(statuses) if !statuses.contains(&answer.status) => {
                Err(format!("not one of {statuses:?}"))
            }
            Expect::Fit | Expect::Refused(_) | Expect::Documented => Ok(()),
        }
    }

    /// Reads the answer to its end, or the beginning of one that has none.
    async fn send(&mut self, request: reqwest::RequestBuilder) -> Answer {
        self.asked += 1;
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

    #[track_caller]
    fn complain(&mut self, what: String) {
        self.complaints.push(what);
        assert!(self.complaints.len() < MAX_COMPLAINTS, "enough: {:#?}", self.complaints);
    }
}

impl Ask {
    fn with_json(&self, body: &Value) -> Self {
        Self { body: Some((Some(JSON), body.to_string().into_bytes())), ..self.clone() }
    }

    fn in_words(&self) -> String {
        let body = self.body.as_ref().map(|(kind, body)| (kind, String::from_utf8_lossy(body)));
        let Self { path, query, headers, token, .. } = self;
        format!("{path} {query:?} {headers:?} token {token:?} body {body:?}")
    }

    /// Sets a query's or header's value; false if it cannot be sent.
    fn set(&mut self, parameter: &Parameter, value: &str) -> bool {
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

/// A cursor whose form only the service knows.
fn is_opaque(parameter: &Parameter) -> bool {
    let has = |name: &str| parameter.schema.get(name).is_some();
    parameter.name == "cursor" && !has("pattern") && !has("format")
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

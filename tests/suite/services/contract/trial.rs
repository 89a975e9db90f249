//! What is asked of one service, and what is said against its answers.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use reqwest::RequestBuilder;
use reqwest::header::HeaderValue;
use serde_json::Value;
use tokio::time::sleep;

use super::data::Data;
use super::document::{Document, Operation, Parameter, Token};
use super::request::{Ask, JSON, NOBODY, Requests};
use crate::suite::PATIENCE;
use crate::suite::services::http::Answer;
use crate::suite::services::shop::{SHORTEST_WAIT, stood_still};

/// Random bodies and random queries of each operation.
const RANDOM_REQUESTS: usize = 6;
/// A body of more than 1 MiB.
const TOO_LARGE_BYTES: usize = 1024 * 1024 + 1;
/// All that are tried where they are not documented.
const METHODS: [&str; 6] = ["GET", "PUT", "POST", "DELETE", "PATCH", "OPTIONS"];
/// What takes from the others what they are asked about.
const LAST: [&str; 2] = ["replay_dead_letters", "rebuild_report"];
/// Before the same is asked again.
const AGAIN: Duration = Duration::from_millis(100);
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

/// One service under trial.
pub(super) struct Trial<'a> {
    requests: Requests<'a>,
    pub(super) complaints: Vec<String>,
    /// The first answer of each status of each operation.
    pub(super) remembered: BTreeMap<(String, u16), Answer>,
    pub(super) asked: usize,
    /// What the service depends on is away: the only time at which it may say 503, and 502 unless
    /// that was induced.
    is_away: bool,
}

impl<'a> Trial<'a> {
    pub(super) fn new(requests: Requests<'a>) -> Self {
        let (complaints, remembered) = Default::default();
        Self { requests, complaints, remembered, asked: 0, is_away: false }
    }

    /// The same service with another document.
    pub(super) fn with<'b>(&self, document: &'b Document) -> Trial<'b>
    where
        'a: 'b,
    {
        Trial::new(Requests { document, ..self.requests.clone() })
    }

    /// Everything.
    pub(super) async fn run(&mut self, seed: u64) {
        let mut data = Data::new(self.requests.document, seed);
        let is_last = |operation: &&Operation| LAST.contains(&operation.id.as_str());
        let (last, first): (Vec<_>, Vec<_>) =
            self.requests.document.operations.iter().partition(is_last);
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
        let paths: Vec<_> =
            self.requests.document.paths().keys().map(ToString::to_string).collect();
        for path in paths {
            self.other_methods(&path).await;
        }
        self.unknown_path().await;
    }

    /// Each operation once, while what the service depends on is away. Gives those that said 503.
    pub(super) async fn run_while_away(&mut self) -> BTreeSet<String> {
        self.is_away = true;
        for operation in &self.requests.document.operations {
            self.ask(operation, self.requests.base(operation), Expect::Documented).await;
        }
        let all = self.remembered.keys().filter(|(_, status)| *status == 503);
        all.map(|(id, _)| id.clone()).collect()
    }

    /// As the example has it, then each parameter alone, then each of the names that a member may have,
    /// then random bodies.
    async fn fits(&mut self, operation: &Operation, data: &mut Data<'_>) {
        let base = self.requests.base(operation);
        // Twice: a repetition may have an answer of its own.
        for _ in 0..2 {
            self.ask(operation, base.clone(), Expect::Fit).await;
        }
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
            let schema = self.requests.document.body(operation);
            for body in self.requests.named(operation) {
                self.ask(operation, base.with_json(&body), Expect::Fit).await;
            }
            for _ in 0..RANDOM_REQUESTS {
                let body = data.valid(&schema);
                assert!(
                    self.requests.document.allows(operation, &body),
                    "{}: {body}",
                    operation.id
                );
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
        let base = self.requests.base(operation);
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
        let base = self.requests.base(operation);
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
                let mut ask = self.requests.base(operation);
                ask.path = self.requests.path(operation, Some((&parameter.name, other)));
                let is_sku = parameter.name == "sku";
                let expect = if is_sku { Expect::Documented } else { Expect::Refused(&[404]) };
                self.ask(operation, ask, expect).await;
            }
        }
    }

    /// Bodies that the schema does not allow, each with one thing changed; those that it does allow
    /// are not refused for their form.
    async fn bodies(&mut self, operation: &Operation, data: &mut Data<'_>) {
        let schema = self.requests.document.body(operation);
        let example = self.requests.example(operation);
        let base = self.requests.base(operation);
        for changed in data.changed(&schema, &example) {
            let allowed = self.requests.document.allows(operation, &changed);
            let expect = if allowed { Expect::Fit } else { Expect::Refused(&[422]) };
            self.ask(operation, base.with_json(&changed), expect).await;
        }
    }

    /// Bodies that are no JSON, too large, or of another type.
    async fn raw_bodies(&mut self, operation: &Operation) {
        let base = self.requests.base(operation);
        let example = self.requests.example(operation).to_string();
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
        let known = self.requests.document.paths()[path].clone();
        let mut allowed = known.clone();
        if known.contains("GET") {
            allowed.insert("HEAD".into());
        }
        let any = self.requests.document.operations.iter().find(|operation| operation.path == path);
        let url = format!(
            "{}{}",
            self.requests.base,
            self.requests.path(any.expect("an operation"), None)
        );
        for method in METHODS.into_iter().filter(|method| !known.contains(*method)) {
            let what = format!("{method} {path}");
            let request = self.requests.http.request(method.parse().expect("a method"), &url);
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

    /// Documented successes that no answer was.
    pub(super) fn not_reached(&self) -> Vec<String> {
        let all = self.requests.document.operations.iter();
        let all = all.flat_map(|one| one.successes().map(move |status| (one.id.clone(), status)));
        let missing = all.filter(|success| !self.remembered.contains_key(success));
        missing.map(|(id, status)| format!("{id} never answered {status}")).collect()
    }

    async fn unknown_path(&mut self) {
        for path in ["/nowhere", "/orders/", "/docs/", "//", "/products/apple/nowhere"] {
            let answer =
                self.send(self.requests.http.get(format!("{}{path}", self.requests.base))).await;
            if (answer.status, answer.code()) != (404, "not_found") {
                self.complain(format!("GET {path}: {} {}", answer.status, answer.text));
            }
        }
    }

    async fn ask(&mut self, operation: &Operation, ask: Ask, expect: Expect) {
        let began = Instant::now();
        let answer = loop {
            let (request, sent) = (self.requests.request(operation, &ask), Instant::now());
            let answer = self.send(request).await;
            // As a client does: nothing is away, so what it waits for passes.
            let may_pass = !self.is_away && !is_induced(&ask) && answer.status >= 500;
            let was_held_up = stood_still(&answer) && sent.elapsed() >= SHORTEST_WAIT;
            if !(may_pass && was_held_up) || began.elapsed() > PATIENCE {
                break answer;
            }
            sleep(AGAIN).await;
        };
        if let Err(why) = self.holds(operation, &ask, &answer, expect) {
            let shown: String = ask.in_words().chars().take(600).collect();
            let text: String = answer.text.chars().take(400).collect();
            let (id, status) = (&operation.id, answer.status);
            self.complain(format!("{id}: {why}; {status} {text} to {expect:?} {shown}"));
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
        self.requests.document.judge(operation, answer)?;
        let induced = is_induced(ask);
        let may_fail = match answer.status {
            503 => self.is_away,
            502 => self.is_away || induced,
            _ => induced,
        };
        if answer.status >= 500 && !may_fail {
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

    async fn send(&mut self, request: RequestBuilder) -> Answer {
        self.asked += 1;
        self.requests.send(request).await
    }

    #[track_caller]
    fn complain(&mut self, what: String) {
        self.complaints.push(what);
        assert!(self.complaints.len() < MAX_COMPLAINTS, "enough: {:#?}", self.complaints);
    }
}

/// Whether a failure is asked for.
fn is_induced(ask: &Ask) -> bool {
    ask.headers.iter().any(|(name, _)| name == "x-fault")
}

/// A cursor whose form only the service knows.
fn is_opaque(parameter: &Parameter) -> bool {
    let has = |name: &str| parameter.schema.get(name).is_some();
    parameter.name == "cursor" && !has("pattern") && !has("format")
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

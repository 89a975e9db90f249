//! Requests, and what is asked of their answers.

use std::time::Duration;

use reqwest::header::{CONTENT_TYPE, HeaderMap, RETRY_AFTER};
use reqwest::{Client, RequestBuilder};
use serde_json::Value;
use uuid::Uuid;

use crate::suite::PATIENCE;

/// The longest wait for an answer; the services' own deadlines are far below.
const ANSWER_DEADLINE: Duration = PATIENCE;

/// A client that tells the truth: no proxy, no repetition behind the test's back, and no
/// connection that is kept, because a service that was killed would break the next request.
pub(crate) fn client() -> Client {
    Client::builder()
        .no_proxy()
        .timeout(ANSWER_DEADLINE)
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .pool_max_idle_per_host(0)
        .build()
        .expect("an HTTP client")
}

/// An answer, read to its end.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
    /// The body as JSON; null if it is none.
    pub(crate) body: Value,
}

/// Sends a request and reads the answer.
pub(crate) async fn send(request: RequestBuilder) -> Result<Answer, reqwest::Error> {
    let answer = request.send().await?;
    let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
    let text = answer.text().await?;
    let body = serde_json::from_str(&text).unwrap_or_default();
    Ok(Answer { status, headers, text, body })
}

impl Answer {
    /// The stable code of a problem, or nothing.
    pub(crate) fn code(&self) -> &str {
        self.body["code"].as_str().unwrap_or_default()
    }

    /// A header as text, or nothing.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// The order that the answer is about: its `id`, or the problem's `order_id`.
    #[track_caller]
    pub(crate) fn order_id(&self) -> Uuid {
        let id = if self.status < 300 { &self.body["id"] } else { &self.body["order_id"] };
        let id = id.as_str().and_then(|id| id.parse().ok());
        id.unwrap_or_else(|| panic!("no order in {} {}", self.status, self.text))
    }

    /// The half message that the answer is about.
    #[track_caller]
    pub(crate) fn transaction_id(&self) -> String {
        let id = self.body["transaction_id"].as_str();
        id.unwrap_or_else(|| panic!("no half message in {} {}", self.status, self.text)).to_owned()
    }

    /// Passes an answer of this status.
    #[track_caller]
    pub(crate) fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{}", self.text);
        self
    }

    /// Passes a refusal that is well-formed (RFC 9457) and has this status and code.
    #[track_caller]
    pub(crate) fn expect_problem(self, status: u16, code: &str) -> Self {
        assert_eq!((self.status, self.code()), (status, code), "{}", self.text);
        assert_eq!(self.header(CONTENT_TYPE.as_str()), "application/problem+json");
        assert_eq!(self.body["type"], format!("/problems/{code}"), "{}", self.text);
        assert_eq!(self.body["status"], status, "{}", self.text);
        assert!(
            self.body["title"].as_str().is_some_and(|title| !title.is_empty()),
            "{}",
            self.text
        );
        self
    }

    /// Passes an answer that says when to come again.
    #[track_caller]
    pub(crate) fn expect_retry_after(self) -> Self {
        let seconds = self.header(RETRY_AFTER.as_str()).parse::<u64>();
        assert!(seconds.is_ok_and(|seconds| seconds > 0), "Retry-After: {:?}", self.headers);
        self
    }
}

//! A balancer before the replicas of a service: requests go to the chosen one, answers that take long can be
//! ended in order, as an answer that is complete.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures::stream::unfold;
use reqwest::Client;
use tokio_util::sync::CancellationToken;

/// Of a request's body; the page's are small.
const MOST_BYTES: usize = 1 << 20;

/// It ends with the test's runtime.
pub(crate) struct Balancer {
    url: String,
    shared: Arc<Shared>,
}

struct Shared {
    http: Client,
    replicas: Vec<String>,
    chosen: AtomicUsize,
    /// Paths that were asked for, in their order.
    asked: Mutex<Vec<String>>,
    /// Cancelled, the answers of now end.
    answers: Mutex<CancellationToken>,
}

impl Balancer {
    /// Before replicas at these addresses; the first is chosen.
    pub(crate) async fn before(replicas: &[String]) -> Self {
        // An answer may take as long as it likes.
        let http = Client::builder().no_proxy().pool_max_idle_per_host(0).build();
        let shared = Arc::new(Shared {
            http: http.expect("an HTTP client"),
            replicas: replicas.to_vec(),
            chosen: AtomicUsize::new(0),
            asked: Mutex::default(),
            answers: Mutex::default(),
        });
        let router = Router::new().fallback(pass_on).with_state(Arc::clone(&shared));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a loopback port");
        let url = format!("http://{}/", listener.local_addr().expect("its address"));
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { url, shared }
    }

    /// Its address.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Requests from now on go to this one.
    pub(crate) fn choose(&self, replica: usize) {
        self.shared.chosen.store(replica, Ordering::SeqCst);
    }

    /// Ends the answers that go on, each as if it were complete.
    pub(crate) fn end_answers(&self) {
        let mut answers = self.shared.answers.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *answers).cancel();
    }

    /// How often a path that begins like this was asked for.
    pub(crate) fn asked(&self, path: &str) -> usize {
        let asked = self.shared.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.iter().filter(|known| known.starts_with(path)).count()
    }
}

async fn pass_on(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
    shared.asked.lock().unwrap_or_else(PoisonError::into_inner).push(path.to_owned());
    let ended = shared.answers.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let Ok(body) = to_bytes(body, MOST_BYTES).await else {
        return StatusCode::PAYLOAD_TOO_LARGE.into_response();
    };
    let replica = &shared.replicas[shared.chosen.load(Ordering::SeqCst)];
    let mut headers = head.headers;
    headers.remove(header::HOST);
    let asked = shared.http.request(head.method, format!("{replica}{path}"));
    match asked.headers(headers).body(body).send().await {
        Ok(answer) => pass_back(answer, ended),
        Err(_) => StatusCode::BAD_GATEWAY.into_response(),
    }
}

/// What breaks off behind the balancer breaks off before it, too.
fn pass_back(answer: reqwest::Response, ended: CancellationToken) -> Response {
    let (status, mut headers) = (answer.status(), answer.headers().clone());
    headers.remove(header::CONNECTION);
    headers.remove(header::TRANSFER_ENCODING);
    let pieces = unfold((answer, ended), |(mut answer, ended)| async move {
        let piece = ended.run_until_cancelled(answer.chunk()).await;
        let piece: Option<Result<Bytes, _>> = piece.unwrap_or(Ok(None)).transpose();
        Some((piece?, (answer, ended)))
    });
    (status, headers, Body::from_stream(pieces)).into_response()
}

//! `GET /events`: one task per watcher sends what it has not heard yet.
//!
//! A watcher that takes nothing is dropped after [`SLOW_DEADLINE`], one that falls behind what is
//! kept at once: it comes back with its Last-Event-ID and is told to read the lists again. One that
//! does not read takes what fits into the buffers on the way, which is hours of heartbeats: so every
//! stream ends after [`LONGEST`], and its place is free for who is there.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use halfmsg_service_kit::openapi::{OpenApiRouter, ProblemType, QUERY, problem};
use halfmsg_service_kit::{ApiError, Query};
use serde::Deserialize;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use utoipa_axum::routes;

use super::data::{EventStream, Hello, Reset};
use super::event::frame;
use super::hub::{Hub, MAX_SUBSCRIBERS, Start};
use crate::http::Api;

/// Without events a comment shows that the connection lives.
pub(super) const HEARTBEAT: Duration = Duration::from_secs(5);
/// A watcher that takes nothing for so long is dropped.
const SLOW_DEADLINE: Duration = Duration::from_secs(10);
/// A stream ends after so long; who still watches comes back where it was.
const LONGEST: Duration = Duration::from_secs(300);
/// Events in one piece, and pieces that wait for the watcher.
const EVENTS_AT_ONCE: usize = 256;
const PIECES_WAITING: usize = 8;
/// When a refused watcher may come again.
const COME_AGAIN_SECS: u64 = 5;
/// After a broken connection a browser comes back so soon.
const RETRY_MS: u64 = 1_000;
/// The names of the first event.
pub(super) const HELLO: &str = "hello";
pub(super) const RESET: &str = "reset";
const LAST_EVENT_ID: &str = "last-event-id";

pub(crate) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::default().routes(routes!(events))
}

const WATCHING: &[ProblemType] = &[
    problem(503, "too_many_watchers", "as many watch the events as may"),
    problem(503, "shutting_down", "the service is stopping"),
];
halfmsg_service_kit::problems!(EventsProblems: QUERY, WATCHING);

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct EventsQuery {
    /// For clients that cannot set the header Last-Event-ID.
    last_event_id: Option<String>,
}

/// What happens, as it happens: server-sent events
///
/// The first event is `hello`, or `reset` if events were missed: then read the lists again. The schema
/// has the stream as the list of its events; each is an object of the fields that server-sent events
/// have, and `data` is JSON. Before the first a block with `retry` alone says how soon to come back; a
/// comment every 5 s shows that the connection lives. It ends after 5 minutes; come back with Last-Event-ID.
#[utoipa::path(
    get, path = "/events", tag = "events", operation_id = "watch_events",
    params(EventsQuery, ("Last-Event-ID" = Option<String>, Header,
        description = "The last event that was heard: the next ones follow")),
    responses(
        (status = 200, description = "Events, for 5 minutes", body = EventStream,
            content_type = "text/event-stream"),
        EventsProblems
    )
)]
async fn events(
    State(api): State<Api>,
    headers: HeaderMap,
    Query(query): Query<EventsQuery>,
) -> Result<Response, ApiError> {
    let refused = |code, title: String| {
        ApiError::new(StatusCode::SERVICE_UNAVAILABLE, code, title).retry_after(COME_AGAIN_SECS)
    };
    if api.events.closed().is_cancelled() {
        return Err(refused("shutting_down", "The service is stopping.".into()));
    }
    let place = api.events.place().ok_or_else(|| {
        refused("too_many_watchers", format!("{MAX_SUBSCRIBERS} watch the events already."))
    })?;
    let last_id = match headers.get(LAST_EVENT_ID) {
        // An id that is no text is none of ours.
        Some(id) => Some(id.to_str().unwrap_or_default().to_owned()),
        None => query.last_event_id,
    };
    let (pieces, mut waiting) = mpsc::channel::<Bytes>(PIECES_WAITING);
    tokio::spawn(async move {
        let (hub, faults) = (api.events, api.faults);
        let watcher = Watcher { hub, pieces, faults, longest: LONGEST, _place: place };
        watcher.run(last_id.as_deref()).await;
    });
    let body = futures::stream::poll_fn(move |context| waiting.poll_recv(context));
    let body = Body::from_stream(body.map(Ok::<_, Infallible>));
    let headers = [
        (header::CONTENT_TYPE, "text/event-stream"),
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        // A proxy that gathers the answer would make it silent.
        (header::HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    Ok((headers, body).into_response())
}

/// One connection. Its end closes the answer, and gives its place back.
struct Watcher {
    hub: Hub,
    pieces: mpsc::Sender<Bytes>,
    faults: bool,
    /// It ends after so long.
    longest: Duration,
    _place: OwnedSemaphorePermit,
}

/// The watcher is gone, or too slow.
struct Over;

impl Watcher {
    async fn run(self, last_id: Option<&str>) {
        let work = async {
            if self.greet(last_id).await.is_err() {
                tracing::debug!("a watcher of the events is gone or too slow");
            }
        };
        tokio::select! {
            () = self.hub.closed().cancelled() => {}
            () = self.pieces.closed() => {}
            () = sleep(self.longest) => {}
            () = work => {}
        }
    }

    async fn greet(&self, last_id: Option<&str>) -> Result<(), Over> {
        let mut news = self.hub.listen();
        let Start { after, reset } = self.hub.start(last_id);
        let mut hello = format!("retry: {RETRY_MS}\n\n");
        let (boot, faults) = (self.hub.boot(), self.faults);
        match reset {
            Some(reason) => frame(boot, after, RESET, &Reset { reason, faults }, &mut hello),
            None => frame(boot, after, HELLO, &Hello { faults }, &mut hello),
        }
        self.send(hello).await?;
        let mut heartbeat = interval(HEARTBEAT);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut heard = after;
        loop {
            heard = self.send_after(heard).await?;
            tokio::select! {
                changed = news.changed() => changed.map_err(|_| Over)?,
                _ = heartbeat.tick() => self.send(":\n\n".into()).await?,
            }
        }
    }

    /// Sends all that is there behind a number; the number of the last.
    async fn send_after(&self, heard: u64) -> Result<u64, Over> {
        let mut heard = heard;
        loop {
            let events = self.hub.after(heard, EVENTS_AT_ONCE).map_err(|_| Over)?;
            if events.is_empty() {
                return Ok(heard);
            }
            let mut piece = String::new();
            for event in events {
                heard += 1;
                event.write(self.hub.boot(), heard, &mut piece);
            }
            self.send(piece).await?;
        }
    }

    async fn send(&self, piece: String) -> Result<(), Over> {
        match timeout(SLOW_DEADLINE, self.pieces.send(piece.into())).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(Over),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Long enough for a busy machine, short enough to fail.
    const PATIENCE: Duration = Duration::from_secs(120);

    /// A stopped client whose buffers take everything, and one of which nothing is taken: neither
    /// keeps its place.
    #[tokio::test]
    async fn one_that_does_not_read_gives_its_place_back() {
        for takes in [true, false] {
            let hub = Hub::default();
            let mut places: Vec<_> = (0..MAX_SUBSCRIBERS).map_while(|_| hub.place()).collect();
            let _place = places.pop().expect("a place");
            let (pieces, mut waiting) = mpsc::channel(PIECES_WAITING);
            let longest = Duration::from_millis(50);
            let watcher = Watcher { hub: hub.clone(), pieces, faults: false, longest, _place };
            assert!(hub.place().is_none(), "it has its place");
            let watching = tokio::spawn(async move { watcher.run(None).await });
            let buffers = async {
                while takes && waiting.recv().await.is_some() {}
                watching.await.expect("no panic");
            };
            timeout(PATIENCE, buffers).await.expect("it ends by itself");
            assert!(hub.place().is_some(), "its place is free");
        }
    }
}

//! `GET /api/stock`: what stock-svc counts, what the orders hold, and whether the two agree.
//!
//! For every product: received = available + quantities of live orders. The two databases are not
//! read at one moment, and a half message is there because they differ for a while; so a difference
//! is broken only when nothing has been left that could mend it for a while. What began after a difference
//! was there is not its cause and does not count: else traffic would hide it for ever.
//!
//! This file asks both sides and what is under way, one reading at a time (`reading`); `judge` says what
//! follows.

use std::collections::BTreeSet;
use std::time::Instant;

use axum::extract::State;
use axum::http::Method;
use chrono::{DateTime, Utc};
use halfmsg_producer::{HalfFilter, HalfView};
use halfmsg_service_kit::openapi::{DATABASE, OpenApiRouter, ProblemType, problem};
use halfmsg_service_kit::{ApiError, Json};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use utoipa_axum::routes;
use uuid::Uuid;

use super::proxy::{STOCK, VIEW_DEADLINE, unreachable};
use crate::http::Api;
use crate::place::database_problem;
use crate::stock::{brief, read};

mod judge;
mod reading;
#[cfg(test)]
mod tests;

pub use reading::Desk;

use judge::{Counted, Line, Looked, Standing, UnderWay, Verdict, judge, lines};

/// What of its metrics counts messages that have arrived, and have not had their effect.
const WAITING: [&str; 3] = ["halfmsg_consumer_retry_depth{", LAG, "halfmsg_consumer_in_flight{"];
/// The one that a consumer without partitions has none of.
const LAG: &str = "halfmsg_consumer_lag_records{";
/// Products in one question, and the most that are looked at.
const PRODUCTS_AT_ONCE: u64 = 500;
const MAX_PRODUCTS: usize = 2_000;
/// Half messages that are counted; more is said as so many.
const MAX_COUNTED: usize = 500;
/// Dead letters in one question, likewise.
const LETTERS: u64 = 50;

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::default().routes(routes!(stock))
}

/// Where a first reading takes long.
const NOT_READ: &[ProblemType] =
    &[problem(503, "books_not_read", "they are read for the first time")];
halfmsg_service_kit::problems!(StockProblems: STOCK, DATABASE, NOT_READ);

/// Both sides of the books, and whether they agree, for the console
#[utoipa::path(
    get, path = "/api/stock", tag = "console", operation_id = "console_stock",
    responses(
        (status = 200, description = "The last that could be read; `age_seconds` says when", body = Books),
        StockProblems
    )
)]
async fn stock(State(api): State<Api>) -> Result<Json<Books>, ApiError> {
    api.desk.books(&api).await.map(Json)
}

/// A dead letter, as far as it matters when it began.
#[derive(Debug, Deserialize)]
struct Letter {
    transaction_id: Option<Uuid>,
}

impl Letter {
    /// When its message was: the time is in its transaction id (UUIDv7). A foreign one does not tell.
    fn begun(&self) -> Option<DateTime<Utc>> {
        let (seconds, nanos) = self.transaction_id?.get_timestamp()?.to_unix();
        DateTime::from_timestamp(i64::try_from(seconds).ok()?, nanos)
    }
}

#[derive(Debug, Deserialize)]
struct List<T> {
    items: Vec<T>,
    next_cursor: Option<String>,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
struct Books {
    at: DateTime<Utc>,
    /// How old that is; more than a few seconds if the orders cannot be read, or not as fast.
    age_seconds: u64,
    state: Verdict,
    #[schema(required)]
    under_way: Option<UnderWay>,
    items: Vec<Line>,
    /// There are more products than are looked at.
    truncated: bool,
}

/// Why the books are not read.
#[derive(Debug, Clone)]
enum Unread {
    /// Of the orders: what was read before is better than nothing.
    Orders(ApiError),
    /// Of the stock.
    Stock(ApiError),
}

impl Desk {
    async fn read(&self, api: &Api, standing: &mut Standing) -> Result<Books, Unread> {
        // Orders first: what they hold by now was deducted before.
        let live = api.store.live().await.map_err(database_problem).map_err(Unread::Orders)?;
        let (counted, truncated) = self.counted().await.map_err(Unread::Stock)?;
        let lines = lines(counted, live, truncated);
        let now = (Instant::now(), Utc::now());
        standing.look(&lines, now);
        let looked = match standing.by_sku.is_empty() {
            true => None,
            false => Some(self.under_way(api).await),
        };
        standing.weigh(&lines, looked);
        let under_way = looked.map(|looked| looked.under_way);
        let unknown = under_way.is_some_and(|under_way| under_way.unknown);
        let state = judge(&lines, unknown, standing, now.0);
        Ok(Books { at: now.1, age_seconds: 0, state, under_way, items: lines, truncated })
    }

    async fn counted(&self) -> Result<(Vec<Counted>, bool), ApiError> {
        let mut counted = Vec::new();
        let mut cursor: Option<String> = None;
        let until = tokio::time::Instant::now() + VIEW_DEADLINE;
        loop {
            let mut query = vec![("limit", PRODUCTS_AT_ONCE.to_string())];
            query.extend(cursor.take().map(|cursor| ("cursor", cursor)));
            let page = tokio::time::timeout_at(until, self.list("stock", &query)).await;
            let List { items, next_cursor } =
                page.unwrap_or_else(|_| Err(unreachable("no answer within the deadline")))?;
            counted.extend(items);
            cursor = next_cursor;
            if cursor.is_none() || counted.len() >= MAX_PRODUCTS {
                return Ok((counted, cursor.is_some()));
            }
        }
    }

    /// What could mend a difference. What cannot be looked at explains everything.
    async fn under_way(&self, api: &Api) -> Looked {
        match tokio::time::timeout(VIEW_DEADLINE, self.look(api)).await {
            Ok(Some(looked)) if api.placer.is_delivering() => looked,
            _ => Looked::UNKNOWN,
        }
    }

    /// `None` if something cannot be looked at, or not all of it.
    async fn look(&self, api: &Api) -> Option<Looked> {
        let filter = HalfFilter { limit: MAX_COUNTED, ..HalfFilter::default() };
        let halves = api.admin.list(filter).await.ok()?;
        if !halves.missing_partitions.is_empty() {
            return None;
        }
        let stored = |half: &HalfView| DateTime::parse_from_rfc3339(&half.stored_at).ok();
        let mut begun: Vec<Option<DateTime<Utc>>> =
            halves.items.iter().map(|half| Some(stored(half)?.to_utc())).collect();
        let mut dead_letters = 0;
        let mut is_all = halves.next_cursor.is_none();
        // One that is queued for its replay is open no more, and has had no effect yet.
        for state in ["open", "queued"] {
            let query = [("state", state.to_owned()), ("limit", LETTERS.to_string())];
            let letters = self.list::<Letter>("dead-letters", &query).await.ok()?;
            dead_letters += letters.items.len();
            is_all &= letters.next_cursor.is_none();
            begun.extend(letters.items.iter().map(Letter::begun));
        }
        if !is_all {
            begun.push(None);
        }
        let count = |state| halves.items.iter().filter(|half| half.state == state).count();
        let under_way = UnderWay {
            open_halves: count("open"),
            parked_halves: count("parked"),
            dead_letters,
            waiting: self.waiting().await.ok()?,
            unknown: false,
        };
        let oldest = begun.into_iter().map(|at| at.unwrap_or(DateTime::<Utc>::MIN_UTC)).min();
        Some(Looked { under_way, oldest })
    }

    /// Its gauges stand still where it is not ready.
    async fn waiting(&self) -> Result<u64, ApiError> {
        self.ask("health/ready", &[]).await?;
        let text = self.ask("metrics", &[]).await?;
        waiting(&String::from_utf8_lossy(&text))
            .ok_or_else(|| unreachable("stock-svc's metrics tell nothing of its consumers"))
    }

    async fn list<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, String)],
    ) -> Result<List<T>, ApiError> {
        serde_json::from_slice(&self.ask(path, query).await?)
            .map_err(|error| unreachable(&format!("stock-svc's answer: {error}")))
    }

    async fn ask(&self, path: &str, query: &[(&str, String)]) -> Result<Vec<u8>, ApiError> {
        let request = self.stock().view(Method::GET, path).map_err(ApiError::internal)?;
        let answer = request.query(query).timeout(VIEW_DEADLINE).send().await;
        let answer = answer.map_err(|error| unreachable(&brief(&error)))?;
        let status = answer.status();
        let body = read(answer).await.map_err(|error| unreachable(&error))?;
        if !status.is_success() {
            return Err(unreachable(&format!("stock-svc answered {status}")));
        }
        Ok(body)
    }
}

/// Messages that have arrived at stock-svc and have not had their effect; `None` if it does not tell,
/// also if it does not tell the lag of each of its subscribers: one that has none has no partitions, or
/// has not asked yet.
fn waiting(metrics: &str) -> Option<u64> {
    let (mut known, mut with_lag) = (BTreeSet::new(), BTreeSet::new());
    let mut waiting = 0_u64;
    for line in metrics.lines().filter(|line| WAITING.iter().any(|name| line.starts_with(name))) {
        let (series, value) = line.rsplit_once(' ')?;
        let (_, subscriber) = series.split_once("subscriber=\"")?;
        let (subscriber, _) = subscriber.split_once('"')?;
        known.insert(subscriber);
        if line.starts_with(LAG) {
            with_lag.insert(subscriber);
        }
        waiting = waiting.checked_add(value.parse().ok()?)?;
    }
    (!known.is_empty() && known == with_lag).then_some(waiting)
}

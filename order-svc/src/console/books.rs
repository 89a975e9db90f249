//! `GET /api/stock`: what stock-svc counts, what the orders hold, and whether the two agree.
//!
//! For every product: received = available + quantities of live orders. The two databases are not
//! read at one moment, and a half message is there because they differ for a while; so a difference
//! is broken only when nothing is left that could mend it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::http::Method;
use halfmsg_producer::{Admin, HalfFilter};
use halfmsg_service_kit::openapi::{DATABASE, OpenApiRouter};
use halfmsg_service_kit::{ApiError, Json};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use utoipa_axum::routes;

use super::proxy::{STOCK, VIEW_DEADLINE, unreachable};
use crate::http::Api;
use crate::place::database_problem;
use crate::stock::{StockClient, brief, read};
use crate::store::live::Live;

/// However many pages are open, the books are read at most so often.
const FRESH: Duration = Duration::from_secs(1);
/// A difference that nothing under way explains is broken when it has stood still for so long: a
/// delivered message takes a moment to be consumed.
const SETTLE_WITHIN: Duration = Duration::from_secs(60);
/// Products in one question, and the most that are looked at.
const PRODUCTS_AT_ONCE: u64 = 500;
const MAX_PRODUCTS: usize = 2_000;
/// Half messages that are counted; more is said as so many.
const MAX_COUNTED: usize = 500;

pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::default().routes(routes!(stock))
}

halfmsg_service_kit::problems!(StockProblems: STOCK, DATABASE);

/// Both sides of the books, and whether they agree, for the console
#[utoipa::path(
    get, path = "/api/stock", tag = "console", operation_id = "console_stock",
    responses((status = 200, description = "At most a second old", body = Books), StockProblems)
)]
async fn stock(State(api): State<Api>) -> Result<Json<Arc<Books>>, ApiError> {
    api.desk.books(&api).await.map(Json)
}

/// What stock-svc counts of a product.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, utoipa::ToSchema)]
struct Counted {
    sku: String,
    name: String,
    price_cents: i64,
    available: i64,
    received: i64,
    deducted: i64,
    restored: i64,
}

#[derive(Debug, Deserialize)]
struct List<T> {
    items: Vec<T>,
    next_cursor: Option<String>,
}

/// One product in the books.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
struct Line {
    #[serde(flatten)]
    counted: Counted,
    /// What confirmed orders hold.
    live: i64,
    /// What waits for stock.
    pending: i64,
    /// Taken out of the stock, and held by no confirmed order.
    difference: i64,
    /// stock-svc's own sum: available = received - deducted + restored, and not negative.
    adds_up: bool,
}

impl Line {
    fn new(counted: Counted, live: Live) -> Self {
        let Counted { available, received, deducted, restored, .. } = counted;
        Self {
            difference: deducted - restored - live.confirmed,
            adds_up: available == received - deducted + restored && available >= 0,
            live: live.confirmed,
            pending: live.pending,
            counted,
        }
    }
}

/// Whether the books agree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    /// Every product adds up.
    Balanced,
    /// It does not yet; something is under way that will mend it, or waits for an operator.
    Settling,
    /// It does not, and nothing is under way.
    Broken,
}

/// What could mend a difference.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, utoipa::ToSchema)]
struct UnderWay {
    open_halves: usize,
    parked_halves: usize,
    dead_letters: usize,
    /// Not everything could be looked at: nothing is called broken then.
    unknown: bool,
}

impl UnderWay {
    fn is_something(self) -> bool {
        self.unknown || self.open_halves + self.parked_halves + self.dead_letters > 0
    }
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
struct Books {
    at: chrono::DateTime<chrono::Utc>,
    state: Verdict,
    #[schema(required)]
    under_way: Option<UnderWay>,
    items: Vec<Line>,
    /// There are more products than are looked at.
    truncated: bool,
}

/// Differences by product, and since when they are the same.
type Standing = (BTreeMap<String, i64>, Instant);

/// Reads the books for every page. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Desk {
    stock: StockClient,
    last: Arc<Mutex<Last>>,
}

#[derive(Debug, Default)]
struct Last {
    read: Option<(Instant, Result<Arc<Books>, ApiError>)>,
    standing: Option<Standing>,
}

impl Desk {
    /// A desk on this stock.
    pub fn new(stock: StockClient) -> Self {
        Self { stock, last: Arc::default() }
    }

    pub(super) fn stock(&self) -> &StockClient {
        &self.stock
    }

    /// The books as they were at most [`FRESH`] ago. One reads, everybody else waits for it.
    async fn books(&self, api: &Api) -> Result<Arc<Books>, ApiError> {
        let mut last = self.last.lock().await;
        if let Some((at, books)) = &last.read
            && at.elapsed() < FRESH
        {
            return books.clone();
        }
        let read = self.read(api, &mut last.standing).await.map(Arc::new);
        last.read = Some((Instant::now(), read.clone()));
        read
    }

    async fn read(&self, api: &Api, standing: &mut Option<Standing>) -> Result<Books, ApiError> {
        // Orders first: what they hold by now was deducted before.
        let live = api.store.live().await.map_err(database_problem)?;
        let (counted, truncated) = self.counted().await?;
        let lines = lines(counted, live, truncated);
        let differences = differences(&lines);
        let since = match standing.take() {
            Some((same, since)) if same == differences => since,
            _ => Instant::now(),
        };
        *standing = Some((differences.clone(), since));
        let under_way = match differences.is_empty() {
            true => None,
            false => Some(self.under_way(&api.admin).await),
        };
        let state = judge(&lines, under_way.unwrap_or_default(), since.elapsed());
        Ok(Books { at: chrono::Utc::now(), state, under_way, items: lines, truncated })
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
    async fn under_way(&self, admin: &Admin) -> UnderWay {
        let filter = HalfFilter { limit: MAX_COUNTED, ..HalfFilter::default() };
        let halves = tokio::time::timeout(VIEW_DEADLINE, admin.list(filter)).await;
        let query = [("state", "open".to_owned()), ("limit", "50".to_owned())];
        let letters = self.list::<serde_json::Value>("dead-letters", &query).await;
        let (Ok(Ok(halves)), Ok(letters)) = (halves, letters) else {
            return UnderWay { unknown: true, ..UnderWay::default() };
        };
        let count = |state| halves.items.iter().filter(|half| half.state == state).count();
        UnderWay {
            open_halves: count("open"),
            parked_halves: count("parked"),
            dead_letters: letters.items.len(),
            unknown: false,
        }
    }

    async fn list<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, String)],
    ) -> Result<List<T>, ApiError> {
        let request = self.stock.view(Method::GET, path).map_err(ApiError::internal)?;
        let answer = request.query(query).timeout(VIEW_DEADLINE).send().await;
        let answer = answer.map_err(|error| unreachable(&brief(&error)))?;
        let status = answer.status();
        let body = read(answer).await.map_err(|error| unreachable(&error))?;
        if !status.is_success() {
            return Err(unreachable(&format!("stock-svc answered {status}")));
        }
        serde_json::from_slice(&body)
            .map_err(|error| unreachable(&format!("stock-svc's answer: {error}")))
    }
}

/// Every product of either side. One that only orders know is left out if products are.
fn lines(counted: Vec<Counted>, live: BTreeMap<String, Live>, truncated: bool) -> Vec<Line> {
    let mut live = live;
    let mut lines: Vec<Line> = counted
        .into_iter()
        .map(|counted| {
            let held = live.remove(&counted.sku).unwrap_or_default();
            Line::new(counted, held)
        })
        .collect();
    if !truncated {
        lines.extend(live.into_iter().map(|(sku, live)| {
            let name = sku.clone();
            let counted = Counted {
                sku,
                name,
                price_cents: 0,
                available: 0,
                received: 0,
                deducted: 0,
                restored: 0,
            };
            Line::new(counted, live)
        }));
    }
    lines
}

fn differences(lines: &[Line]) -> BTreeMap<String, i64> {
    let differ = lines.iter().filter(|line| line.difference != 0);
    differ.map(|line| (line.counted.sku.clone(), line.difference)).collect()
}

/// `unchanged`: since when the differences are what they are.
fn judge(lines: &[Line], under_way: UnderWay, unchanged: Duration) -> Verdict {
    if !lines.iter().all(|line| line.adds_up) {
        return Verdict::Broken;
    }
    if lines.iter().all(|line| line.difference == 0) {
        return Verdict::Balanced;
    }
    let pending = lines.iter().any(|line| line.difference != 0 && line.pending != 0);
    if pending || under_way.is_something() || unchanged < SETTLE_WITHIN {
        Verdict::Settling
    } else {
        Verdict::Broken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(available: i64, deducted: i64, restored: i64, live: Live) -> Line {
        let (sku, name) = ("apple".to_owned(), "Apple".to_owned());
        let counted =
            Counted { sku, name, price_cents: 1, available, received: 100, deducted, restored };
        Line::new(counted, live)
    }

    fn confirmed(confirmed: i64) -> Live {
        Live { confirmed, pending: 0 }
    }

    #[test]
    fn what_adds_up_is_balanced_whatever_is_under_way() {
        let lines = [line(95, 8, 3, confirmed(5))];
        let busy = UnderWay { open_halves: 1, ..UnderWay::default() };
        assert_eq!(judge(&lines, busy, Duration::ZERO), Verdict::Balanced);
    }

    #[test]
    fn a_difference_is_broken_when_nothing_can_mend_it_any_more() {
        let lines = [line(92, 8, 0, confirmed(5))];
        assert_eq!(lines[0].difference, 3);
        let nothing = UnderWay::default();
        assert_eq!(judge(&lines, nothing, SETTLE_WITHIN), Verdict::Broken);
        assert_eq!(judge(&lines, nothing, SETTLE_WITHIN / 2), Verdict::Settling);
        for busy in [
            UnderWay { open_halves: 1, ..nothing },
            UnderWay { parked_halves: 1, ..nothing },
            UnderWay { dead_letters: 1, ..nothing },
            UnderWay { unknown: true, ..nothing },
        ] {
            assert_eq!(judge(&lines, busy, SETTLE_WITHIN * 9), Verdict::Settling, "{busy:?}");
        }
        let waiting = [line(92, 8, 0, Live { confirmed: 5, pending: 3 })];
        assert_eq!(judge(&waiting, nothing, SETTLE_WITHIN), Verdict::Settling);
    }

    #[test]
    fn a_stock_that_does_not_add_up_is_broken_at_once() {
        let busy = UnderWay { open_halves: 1, ..UnderWay::default() };
        for line in [line(94, 5, 0, confirmed(5)), line(-1, 101, 0, confirmed(101))] {
            assert_eq!(judge(&[line], busy, Duration::ZERO), Verdict::Broken);
        }
    }

    #[test]
    fn a_product_that_only_orders_know_is_shown() {
        let live = || BTreeMap::from([("ghost".to_owned(), confirmed(2))]);
        let shown = lines(Vec::new(), live(), false);
        assert_eq!((shown[0].counted.sku.as_str(), shown[0].difference), ("ghost", -2));
        assert_eq!(lines(Vec::new(), live(), true), []);
    }
}

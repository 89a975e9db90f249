//! One reading of the books at a time, for whoever looks: it runs to its end though everybody goes away,
//! and the next one begins only when it has rested in proportion. So however many pages are open, it
//! takes one connection of the orders' pool at most, and a third of its time at most.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use halfmsg_service_kit::ApiError;
use tokio::sync::watch;
use tokio::time::timeout;

use super::judge::Standing;
use super::{Books, Unread};
use crate::http::Api;
use crate::stock::StockClient;

/// Between two readings, at least.
const FRESH: Duration = Duration::from_secs(1);
/// And so many times as long as the last one took. Even with the longest that one may take, differences are
/// looked at more often than [`super::judge::LOOKS_APART`].
const RESTS: u32 = 2;
/// So long somebody waits for the reading that is under way; then he is shown the one before.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);
/// When to ask again for books that were never read.
const ASK_AGAIN_SECS: u64 = 2;

/// Reads the books for every page. Cheap to clone; clones share what was read.
#[derive(Debug, Clone)]
pub struct Desk {
    stock: StockClient,
    state: Arc<Mutex<State>>,
    standing: Arc<tokio::sync::Mutex<Standing>>,
}

#[derive(Debug, Default)]
struct State {
    /// Under way as long as its sender lives, which its task owns.
    reading: Option<watch::Receiver<()>>,
    /// Not before then is the next one.
    rests_until: Option<Instant>,
    /// Why the last one failed, if it did.
    failed: Option<Unread>,
    good: Option<(Instant, Arc<Books>)>,
}

impl Desk {
    /// A desk on this stock.
    pub fn new(stock: StockClient) -> Self {
        Self { stock, state: Arc::default(), standing: Arc::default() }
    }

    pub(in crate::console) fn stock(&self) -> &StockClient {
        &self.stock
    }

    /// The books as they were read last, which is a moment ago if they can be read as fast.
    pub(super) async fn books(&self, api: &Api) -> Result<Books, ApiError> {
        let desk = self.clone();
        let api = api.clone();
        self.shared(move || async move {
            let mut standing = desk.standing.lock().await;
            desk.read(&api, &mut standing).await
        })
        .await
    }

    /// Has `read` called if nobody reads and it is time, waits for who reads, and shows the last.
    async fn shared<F>(&self, read: impl FnOnce() -> F) -> Result<Books, ApiError>
    where
        F: Future<Output = Result<Books, Unread>> + Send + 'static,
    {
        if let Some(mut ended) = self.reading(read) {
            // Nothing is ever sent: it ends with its sender.
            drop(timeout(ANSWER_WITHIN, ended.changed()).await);
        }
        self.last()
    }

    /// The reading that is under way, begun here if need be; none while the last one is fresh.
    fn reading<F>(&self, read: impl FnOnce() -> F) -> Option<watch::Receiver<()>>
    where
        F: Future<Output = Result<Books, Unread>> + Send + 'static,
    {
        let mut state = self.state();
        if let Some(reading) = &state.reading
            && reading.has_changed().is_ok()
        {
            return Some(reading.clone());
        }
        if state.rests_until.is_some_and(|until| Instant::now() < until) {
            return None;
        }
        let (under_way, ended) = watch::channel(());
        state.reading = Some(ended.clone());
        let (desk, read) = (self.clone(), read());
        tokio::spawn(async move {
            let began = Instant::now();
            let books = read.await;
            desk.keep(began, books);
            drop(under_way);
        });
        Some(ended)
    }

    fn keep(&self, began: Instant, books: Result<Books, Unread>) {
        let now = Instant::now();
        let mut state = self.state();
        state.rests_until = Some(now + FRESH.max(now.duration_since(began) * RESTS));
        match books {
            Ok(books) => (state.good, state.failed) = (Some((now, Arc::new(books))), None),
            Err(error) => state.failed = Some(error),
        }
    }

    fn last(&self) -> Result<Books, ApiError> {
        let state = self.state();
        match (&state.good, &state.failed) {
            (_, Some(Unread::Stock(error))) | (None, Some(Unread::Orders(error))) => {
                Err(error.clone())
            }
            (Some((at, books)), _) => {
                let age_seconds = at.elapsed().as_secs();
                Ok(Books { age_seconds, ..Books::clone(books) })
            }
            (None, None) => Err(never_read()),
        }
    }

    /// Held for no await.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn never_read() -> ApiError {
    let title = "The books are being read for the first time, or the reading broke off.";
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "books_not_read", title)
        .retry_after(ASK_AGAIN_SECS)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use chrono::Utc;
    use tokio::sync::Notify;

    use super::super::judge::Verdict;
    use super::*;

    fn desk() -> Desk {
        Desk::new(StockClient::new("http://127.0.0.1:1").unwrap())
    }

    fn books() -> Books {
        let (state, items) = (Verdict::Balanced, Vec::new());
        Books { at: Utc::now(), age_seconds: 0, state, under_way: None, items, truncated: false }
    }

    fn away() -> Unread {
        Unread::Orders(ApiError::database_unavailable())
    }

    fn rested(desk: &Desk) {
        desk.state().rests_until = None;
    }

    #[tokio::test]
    async fn one_reads_for_all_and_to_its_end() {
        let (desk, begun) = (desk(), Arc::new(AtomicUsize::new(0)));
        let go_on = Arc::new(Notify::new());
        let read = || {
            let (begun, go_on) = (Arc::clone(&begun), Arc::clone(&go_on));
            move || async move {
                begun.fetch_add(1, Ordering::SeqCst);
                go_on.notified().await;
                Ok(books())
            }
        };
        // They come, and go away.
        for _ in 0..20 {
            let mut shared = Box::pin(desk.shared(read()));
            assert!(futures::poll!(&mut shared).is_pending());
            drop(shared);
            tokio::task::yield_now().await;
        }
        assert_eq!(begun.load(Ordering::SeqCst), 1);
        go_on.notify_one();
        desk.shared(read()).await.unwrap();
        // It is fresh, however long this test stands still.
        let rests_until = desk.state().rests_until.expect("it rests");
        desk.state().rests_until = Some(rests_until + Duration::from_secs(3_600));
        desk.shared(read()).await.unwrap();
        assert_eq!(begun.load(Ordering::SeqCst), 1, "it is fresh");
        rested(&desk);
        go_on.notify_one();
        desk.shared(read()).await.unwrap();
        assert_eq!(begun.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn while_it_takes_long_or_fails_the_last_good_one_is_shown_with_its_age() {
        let desk = desk();
        assert!(desk.shared(|| async { Err(away()) }).await.is_err(), "there is none before");
        rested(&desk);
        assert!(desk.shared(|| async { Ok(books()) }).await.is_ok());
        let old = Instant::now().checked_sub(Duration::from_secs(7)).unwrap();
        desk.state().good.as_mut().unwrap().0 = old;
        rested(&desk);
        assert!(desk.shared(|| async { Err(away()) }).await.unwrap().age_seconds >= 7);
        rested(&desk);
        let shown = desk.shared(std::future::pending).await.unwrap();
        assert!(shown.age_seconds >= 7);
    }

    #[tokio::test]
    async fn a_reading_that_breaks_off_holds_up_no_other() {
        let desk = desk();
        assert!(
            desk.shared(|| async { Err(away()).inspect_err(|_| panic!("a defect")) })
                .await
                .is_err()
        );
        desk.shared(|| async { Ok(books()) }).await.unwrap();
    }

    #[tokio::test]
    async fn a_stock_that_cannot_be_asked_is_told() {
        let desk = desk();
        desk.shared(|| async { Ok(books()) }).await.unwrap();
        rested(&desk);
        let error = || Unread::Stock(ApiError::database_unavailable());
        assert!(desk.shared(|| async move { Err(error()) }).await.is_err());
    }

    #[test]
    fn it_rests_twice_as_long_as_it_took() {
        let desk = desk();
        let before = Instant::now();
        let began = before.checked_sub(Duration::from_secs(5)).unwrap();
        desk.keep(began, Ok(books()));
        let after = Instant::now();
        let until = |kept: Instant| kept + 2 * (kept - began);
        let rests_until = desk.state().rests_until.unwrap();
        assert!((until(before)..=until(after)).contains(&rests_until), "{rests_until:?}");
    }
}

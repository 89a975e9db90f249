//! Group commit: deductions that are asked for over HTTP while others are under way share the next
//! transaction.
//!
//! Nothing is waited for: a deduction that finds nobody at work begins at once and alone; what comes
//! meanwhile goes together when it is done. Each order has its own answer, as if it had come alone.
//! It must never give up a deduction because of another one: what fails together is asked for alone.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use sea_orm::DbBackend;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use crate::metrics::StockMetrics;
use crate::store::barrier::{Deduct, DeductRequest, TogetherError};
use crate::store::{DEADLINE, StockStore, StoreError};

/// Orders that share a transaction, if nothing else is set.
pub const DEFAULT_ORDERS: usize = 64;
/// The most orders that may share a transaction.
pub const MAX_ORDERS: usize = 1_000;
/// Items of all orders of a transaction: it holds that many locks. One order alone may have more.
pub const MAX_ITEMS: usize = 1_000;
/// Deductions that wait for their turn; more are refused.
pub const MAX_WAITING: usize = 4_096;
/// Transactions under way at once, where the database has more than one writer: so another product's
/// deductions go on while one group waits for a lock.
const LEADERS: usize = 2;
/// Connections that deductions may take which are asked for alone because they failed together.
const ALONE_AT_ONCE: usize = 4;

/// Deductions, several of them in one transaction where several wait. Cheap to clone.
#[derive(Debug, Clone)]
pub struct GroupCommit {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    store: StockStore,
    metrics: StockMetrics,
    max_orders: usize,
    max_leaders: usize,
    queue: Mutex<Queue>,
    alone: Arc<Semaphore>,
    tasks: TaskTracker,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Waiting>,
    /// Tasks that take from it. None of them is left while something waits.
    leaders: usize,
}

#[derive(Debug)]
struct Waiting {
    request: DeductRequest,
    answer: oneshot::Sender<Result<Deduct, StoreError>>,
}

impl Waiting {
    /// Nobody hears it if the caller's deadline has passed.
    fn tell(self, answer: Result<Deduct, StoreError>) {
        let _ = self.answer.send(answer);
    }
}

impl GroupCommit {
    /// At most `max_orders` orders in a transaction; 1 gives each a transaction of its own.
    pub fn new(store: StockStore, metrics: StockMetrics, max_orders: usize) -> Self {
        // SQLite has one writer: a second would only wait for it.
        let leaders = if store.backend() == DbBackend::Sqlite { 1 } else { LEADERS };
        Self::with_leaders(store, metrics, max_orders, leaders)
    }

    pub(crate) fn with_leaders(
        store: StockStore,
        metrics: StockMetrics,
        max_orders: usize,
        max_leaders: usize,
    ) -> Self {
        let shared = Shared {
            store,
            metrics,
            max_orders,
            max_leaders,
            queue: Mutex::default(),
            alone: Arc::new(Semaphore::new(ALONE_AT_ONCE)),
            tasks: TaskTracker::new(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Takes the items of an order from the stock, all or none, within
    /// [`DEADLINE`].
    ///
    /// Cancelling gives up the answer, and the deduction only if its transaction has not begun.
    ///
    /// # Errors
    /// [`StoreError`]; but for [`StoreError::Busy`] it may have happened all the same, and repeating is
    /// harmless.
    pub async fn deduct(&self, request: DeductRequest) -> Result<Deduct, StoreError> {
        if self.shared.max_orders <= 1 {
            self.shared.metrics.deduction_transaction();
            let DeductRequest { order_id, items, induced } = request;
            return self.shared.store.deduct(order_id, &items, induced).await;
        }
        let (answer, answered) = oneshot::channel();
        self.enqueue(Waiting { request, answer })?;
        match timeout(DEADLINE, answered).await {
            Ok(Ok(answer)) => answer,
            // Its transaction broke off.
            Ok(Err(_)) => Err(StoreError::Unreadable("a deduction broke off".into())),
            Err(_) => Err(StoreError::TimedOut),
        }
    }

    /// Waits for what is under way, also of clients that have hung up.
    pub async fn drain(&self) {
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
    }

    /// How many wait for their turn.
    #[cfg(any(test, feature = "scenarios"))]
    pub(crate) fn waiting(&self) -> usize {
        self.shared.queue().waiting.len()
    }

    fn enqueue(&self, one: Waiting) -> Result<(), StoreError> {
        let mut queue = self.shared.queue();
        if queue.waiting.len() >= MAX_WAITING {
            return Err(StoreError::Busy);
        }
        queue.waiting.push_back(one);
        if queue.leaders < self.shared.max_leaders {
            queue.leaders += 1;
            self.shared.tasks.spawn(lead(Arc::clone(&self.shared)));
        }
        Ok(())
    }
}

impl Shared {
    fn queue(&self) -> std::sync::MutexGuard<'_, Queue> {
        // Nothing in it is ever half done.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What goes together next, the oldest first; none, and one leader less, if nothing waits.
    fn next(&self) -> Option<Vec<Waiting>> {
        let mut queue = self.queue();
        let (mut group, mut items) = (Vec::new(), 0);
        while let Some(one) = queue.waiting.front() {
            items += one.request.items.iter().count();
            let full = group.len() >= self.max_orders || items > MAX_ITEMS;
            if full && !group.is_empty() {
                break;
            }
            // Those whose deadline has passed are left out.
            group.extend(queue.waiting.pop_front().filter(|one| !one.answer.is_closed()));
        }
        if group.is_empty() {
            queue.leaders -= 1;
            return None;
        }
        Some(group)
    }
}

/// One group after the other, until nothing waits.
async fn lead(shared: Arc<Shared>) {
    while let Some(group) = shared.next() {
        // In a task of its own: if it panics, its callers are told, and the next ones go on.
        let work = shared.tasks.spawn(carry_out(Arc::clone(&shared), group));
        if let Err(error) = work.await {
            tracing::error!(%error, "deductions broke off");
        }
    }
}

async fn carry_out(shared: Arc<Shared>, group: Vec<Waiting>) {
    shared.metrics.deduction_transaction();
    let (requests, answers): (Vec<_>, Vec<_>) =
        group.into_iter().map(|one| (one.request, one.answer)).unzip();
    let done = shared.store.deduct_together(&requests).await;
    let group = requests.into_iter().zip(answers);
    let group = group.map(|(request, answer)| Waiting { request, answer });
    match done {
        Ok(done) => group.zip(done).for_each(|(one, done)| one.tell(Ok(done))),
        Err(TogetherError::One(error)) if group.len() > 1 => {
            tracing::debug!(%error, orders = group.len(), "deductions are asked for one by one");
            for one in group {
                shared.tasks.spawn(alone(Arc::clone(&shared), one));
            }
        }
        Err(TogetherError::All(error) | TogetherError::One(error)) => {
            group.for_each(|one| one.tell(Err(error.clone())));
        }
    }
}

/// What failed together is asked for alone; meanwhile others go on.
async fn alone(shared: Arc<Shared>, one: Waiting) {
    // It is never closed.
    let _place = shared.alone.acquire().await;
    if one.answer.is_closed() {
        return;
    }
    shared.metrics.deduction_transaction();
    let DeductRequest { order_id, items, induced } = &one.request;
    let done = shared.store.deduct(*order_id, items, *induced).await;
    one.tell(done);
}

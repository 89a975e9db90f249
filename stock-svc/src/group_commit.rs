//! Group commit: deductions that are asked for over HTTP while others are under way share the next
//! transaction.
//!
//! Nothing is waited for: a deduction that finds nobody at work begins at once and alone; what comes
//! meanwhile goes together when it is done. Each order has its own answer, as if it had come alone.
//! It must never give up a deduction because of another one: who meets a lock waits for it apart from
//! the others, and what fails together for another reason is asked for alone.
//!
//! # Layout
//! - this file: the queue, and its groups
//! - `held_up`: what becomes of a group that failed
//! - `places`: the connections that it may take

mod held_up;
mod places;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sea_orm::DbBackend;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use self::places::Places;
use crate::metrics::StockMetrics;
use crate::store::barrier::{Deduct, DeductRequest, TogetherError};
use crate::store::{SHARED_LOCK_WAIT, StockStore, StoreError};

/// Orders that share a transaction, if nothing else is set.
pub const DEFAULT_ORDERS: usize = 64;
/// The most orders that may share a transaction.
pub const MAX_ORDERS: usize = 1_000;
/// Items of all orders of a transaction: it holds that many locks. One order alone may have more.
pub const MAX_ITEMS: usize = 1_000;
/// Deductions that wait for their turn; more are refused.
pub const MAX_WAITING: usize = 4_096;
/// Groups under way at once, where the database has more than one writer.
const LEADERS: usize = 2;
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
    places: Places,
    tasks: TaskTracker,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Waiting>,
    /// Tasks that take from it. None of them is left while something waits.
    leaders: usize,
    /// By a product that somebody else holds, the deductions that wait for it, and others that want it
    /// too, the oldest first. Each has a task that looks after it; the entry ends with that.
    held_up: BTreeMap<String, VecDeque<HeldUp>>,
}

#[derive(Debug)]
struct HeldUp {
    one: Waiting,
    since: Instant,
}

#[derive(Debug)]
struct Waiting {
    request: DeductRequest,
    answer: oneshot::Sender<Result<Deduct, StoreError>>,
    /// When it met a product that somebody else held for the first time: others that hold it in turn must
    /// not keep it waiting for longer than one.
    held_since: Option<Instant>,
}

impl From<Waiting> for HeldUp {
    fn from(mut one: Waiting) -> Self {
        let since = *one.held_since.get_or_insert_with(Instant::now);
        Self { one, since }
    }
}

impl Waiting {
    fn skus(&self) -> impl Iterator<Item = String> + use<> {
        self.request.items.skus().into_iter()
    }

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
        let places = Places::of(store.connections());
        let shared = Shared {
            store,
            metrics,
            max_orders,
            max_leaders,
            queue: Mutex::default(),
            places,
            tasks: TaskTracker::new(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Takes the items of an order from the stock, all or none, within
    /// the deadline of the store.
    ///
    /// Cancelling gives up the answer, and the deduction only if its transaction has not begun.
    ///
    /// # Errors
    /// [`StoreError`]; but for [`StoreError::Busy`] it may have happened all the same, and repeating is
    /// harmless.
    pub async fn deduct(&self, request: DeductRequest) -> Result<Deduct, StoreError> {
        if self.shared.max_orders <= 1 {
            return self.each_its_own(request).await;
        }
        let (answer, answered) = oneshot::channel();
        self.enqueue(Waiting { request, answer, held_since: None })?;
        // Without an answer its transaction broke off.
        let broke_off = |_| Err(StoreError::Unreadable("a deduction broke off".into()));
        self.shared.store.within(async { answered.await.unwrap_or_else(broke_off) }).await
    }

    async fn each_its_own(&self, request: DeductRequest) -> Result<Deduct, StoreError> {
        let work = async {
            let _place = self.shared.places.any.acquire().await;
            self.shared.metrics.deduction_transaction();
            let DeductRequest { order_id, items, induced, .. } = request;
            self.shared.store.deduct(order_id, &items, induced).await
        };
        self.shared.store.within(work).await
    }

    /// Waits for what is under way, also of clients that have hung up.
    pub async fn drain(&self) {
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
    }

    /// Holds the groups back until what it returns is dropped: so a test knows what goes together.
    /// It waits for those under way.
    #[cfg(any(test, feature = "scenarios"))]
    pub(crate) async fn hold_back(&self) -> HeldBack {
        while !self.shared.take_all_leaders() {
            tokio::task::yield_now().await;
        }
        HeldBack { shared: Arc::clone(&self.shared) }
    }

    /// How many wait for their turn.
    #[cfg(any(test, feature = "scenarios"))]
    pub(crate) fn waiting(&self) -> usize {
        self.shared.queue().count()
    }

    /// How many of them wait for a product that somebody else holds.
    #[cfg(any(test, feature = "scenarios"))]
    pub(crate) fn held_up(&self) -> usize {
        self.shared.queue().held_up.values().map(VecDeque::len).sum()
    }

    fn enqueue(&self, one: Waiting) -> Result<(), StoreError> {
        let queue = &mut *self.shared.queue();
        if queue.count() >= MAX_WAITING {
            return Err(StoreError::Busy);
        }
        if let Some(one) = queue.unless_held_up(one) {
            self.shared.queue_up(queue, one);
        }
        Ok(())
    }
}

#[cfg(any(test, feature = "scenarios"))]
impl Shared {
    fn take_all_leaders(&self) -> bool {
        let mut queue = self.queue();
        let idle = queue.leaders == 0;
        if idle {
            queue.leaders = self.max_leaders;
        }
        idle
    }
}

/// While it lives, no group begins.
#[cfg(any(test, feature = "scenarios"))]
pub(crate) struct HeldBack {
    shared: Arc<Shared>,
}

#[cfg(any(test, feature = "scenarios"))]
impl Drop for HeldBack {
    fn drop(&mut self) {
        for _ in 0..self.shared.max_leaders {
            self.shared.tasks.spawn(lead(Arc::clone(&self.shared)));
        }
    }
}

impl Queue {
    fn count(&self) -> usize {
        self.waiting.len() + self.held_up.values().map(VecDeque::len).sum::<usize>()
    }

    /// Whoever wants what others wait for would only hold up a group: it waits with them, and does not
    /// come back.
    fn unless_held_up(&mut self, one: Waiting) -> Option<Waiting> {
        let held_up = one.skus().find(|sku| self.held_up.contains_key(sku));
        match held_up.and_then(|sku| self.held_up.get_mut(&sku)) {
            Some(others) => {
                others.push_back(one.into());
                None
            }
            None => Some(one),
        }
    }
}

impl Shared {
    fn queue(&self) -> std::sync::MutexGuard<'_, Queue> {
        // Nothing in it is ever half done.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn queue_up(self: &Arc<Self>, queue: &mut Queue, one: Waiting) {
        queue.waiting.push_back(one);
        if queue.leaders < self.max_leaders {
            queue.leaders += 1;
            self.tasks.spawn(lead(Arc::clone(self)));
        }
    }

    /// What goes together next; none, and one leader less, if nothing waits.
    fn next(&self) -> Option<Vec<Waiting>> {
        let mut queue = self.queue();
        let group = self.take(&mut queue);
        if group.is_empty() {
            queue.leaders -= 1;
            return None;
        }
        Some(group)
    }

    /// As many as may go together, the oldest first. Nothing is left if there are none.
    fn take(&self, queue: &mut Queue) -> Vec<Waiting> {
        let (mut group, mut items) = (Vec::new(), 0);
        while group.len() < self.max_orders {
            let Some(one) = queue.waiting.pop_front() else { break };
            // Those whose deadline has passed are left out.
            if one.answer.is_closed() {
                continue;
            }
            // What they want may be held since they came.
            let Some(one) = queue.unless_held_up(one) else { continue };
            items += one.request.items.iter().count();
            if items > MAX_ITEMS && !group.is_empty() {
                queue.waiting.push_front(one);
                break;
            }
            group.push(one);
        }
        group
    }

    /// Deducts in one transaction, and tells each its answer. Gives back what may succeed in other
    /// company, with what went wrong: nothing has happened then.
    async fn together(
        &self,
        group: Vec<Waiting>,
        lock_wait: Duration,
    ) -> Result<(), (Vec<Waiting>, StoreError)> {
        // Whoever waits for longer than the others has a place of its own for that.
        let _place = if lock_wait > SHARED_LOCK_WAIT {
            None
        } else {
            self.places.short.acquire().await.ok()
        };
        self.metrics.deduction_transaction();
        let (requests, answers): (Vec<_>, Vec<_>) =
            group.into_iter().map(|one| (one.request, one.answer)).unzip();
        let done = self.store.deduct_together(&requests, lock_wait).await;
        let group = requests.into_iter().zip(answers);
        let group = group.map(|(request, answer)| Waiting { request, answer, held_since: None });
        match done {
            Ok(done) => group.zip(done).for_each(|(one, done)| one.tell(Ok(done))),
            Err(TogetherError::All(error)) => group.for_each(|one| one.tell(Err(error.clone()))),
            Err(TogetherError::One(error)) => return Err((group.collect(), error)),
        }
        Ok(())
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
    if let Err((group, error)) = shared.together(group, SHARED_LOCK_WAIT).await {
        held_up::sort_out(&shared, group, error).await;
    }
}

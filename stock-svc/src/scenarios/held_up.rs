//! Deductions whose products somebody else holds: who waits, for how long, and what it costs the others.
//!
//! SQLite has one lock for everything, so that nobody can hold one product: there is nothing to show.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use halfmsg_consumer::testkit::{self, ConsumerKit, Counts, EveryWait};
use halfmsg_consumer::{Consumer, ConsumerConfig, KeyOrder, RetryLevels};
use halfmsg_service_kit::db::{DbOptions, begin_write, connect};
use sea_orm::{ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbBackend};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::timeout;
use uuid::Uuid;

use super::group::{Answers, ask, deduction, holder, until};
use super::{DEADLINE, available, new_sku, product, request, restore_one, retried, store_of};
use crate::deduct::Deducter;
use crate::group_commit::{DEFAULT_ORDERS, GroupCommit};
use crate::metrics::StockMetrics;
use crate::restore::Restorer;
use crate::store::barrier::{Deduct, DeductRequest, restore_in_tx};
use crate::store::{LOCK_TIMEOUT, SHARED_LOCK_WAIT, StockStore};

/// More than there are places to wait in for a lock.
const HELD: usize = 5;

fn group_of(store: &StockStore) -> GroupCommit {
    GroupCommit::new(store.clone(), StockMetrics::default(), DEFAULT_ORDERS)
}

fn has_one_lock(database: &DatabaseConnection) -> bool {
    database.get_database_backend() == DbBackend::Sqlite
}

async fn products(store: &StockStore, count: usize) -> Vec<String> {
    let mut skus = Vec::new();
    for _ in 0..count {
        skus.push(product(store, 1_000).await);
    }
    skus
}

async fn held(others: &DatabaseConnection, skus: &[String]) -> Vec<DatabaseTransaction> {
    let mut holders = Vec::new();
    for sku in skus {
        holders.push(holder(others, sku).await);
    }
    holders
}

/// More products are held than there are places to wait in: those of one that is free again are answered,
/// whichever it is, while the others are still held. The one that came last is free first: in a queue for
/// the places, all others would be before it.
pub async fn who_wants_what_is_free_again_is_answered(database: &DatabaseConnection, url: &str) {
    const CALLERS: usize = 4;
    /// So many that the last in a queue for the three places would wait for four times `LOCK_TIMEOUT`.
    const MANY: usize = 16;
    const WITHIN: Duration = LOCK_TIMEOUT.saturating_mul(2);
    if has_one_lock(database) {
        return;
    }
    let store = store_of(database);
    let group = group_of(&store);
    let skus = products(&store, MANY).await;
    let max_connections = u32::try_from(MANY).unwrap();
    let others =
        connect(url, &DbOptions { max_connections, ..DbOptions::default() }).await.unwrap();
    let holders = held(&others, &skus).await;
    let mut callers: Vec<JoinSet<Deduct>> = Vec::new();
    for sku in &skus {
        let mut of_one = JoinSet::new();
        for _ in 0..CALLERS {
            let (group, wanted) = (group.clone(), deduction(Uuid::now_v7(), sku, 1));
            // Who has waited for as long as for a lock asks again, as a client does.
            of_one.spawn(async move { retried(|| group.deduct(wanted.clone())).await });
        }
        callers.push(of_one);
    }
    until("all of them are held up", || group.held_up() == MANY * CALLERS).await;
    let mut waits = Vec::new();
    for ((holder, mut of_one), sku) in holders.into_iter().zip(callers).zip(&skus).rev() {
        assert!(of_one.try_join_next().is_none(), "{sku} is held");
        holder.rollback().await.unwrap();
        let free = Instant::now();
        let answers = timeout(DEADLINE, of_one.join_all()).await.unwrap();
        waits.push(free.elapsed());
        assert_eq!(answers, vec![Deduct::Deducted { before: false }; CALLERS]);
        assert_eq!(available(&store, sku).await, 1_000 - CALLERS as i64);
    }
    others.close().await.unwrap();
    println!("free again: answered within {waits:?}");
    // In a queue most would be late. A machine that stands still for a moment makes a few late at most.
    let late = waits.iter().filter(|waited| **waited > WITHIN).count();
    assert!(late <= MANY / 4, "{waits:?}");
}

/// Many products and many orders are held at once: whoever waits for them leaves connections to the
/// consumers and to the health.
pub async fn waiting_never_uses_the_pool_up(
    database: &DatabaseConnection,
    others: &DatabaseConnection,
) {
    /// All wait for as long as for a lock: a machine that stands still for longer shows nothing.
    const TRIES: usize = 5;
    if has_one_lock(database) {
        return;
    }
    let mut tries = 0;
    while !there_is_room_while_all_wait(database, others).await {
        tries += 1;
        assert!(tries < TRIES, "the first was answered before there was room");
    }
}

/// Whether connections were to be had before the first had its answer.
async fn there_is_room_while_all_wait(
    database: &DatabaseConnection,
    others: &DatabaseConnection,
) -> bool {
    /// As many as are needed at once: see `Places`.
    const LEFT: usize = 4;
    let store = store_of(database);
    let group = group_of(&store);
    let skus = products(&store, HELD + 1).await;
    let (free, taken) = skus.split_last().unwrap();
    let holders = held(others, taken).await;
    // Orders that somebody else works on wait as well, each for itself.
    let working = begin_write(others).await.unwrap();
    let orders: Vec<Uuid> = (0..12).map(|_| Uuid::now_v7()).collect();
    let restores: Vec<_> = orders.iter().map(|order_id| request(*order_id, free)).collect();
    restore_in_tx(&working, &restores).await.unwrap();
    let mut wanted: Vec<DeductRequest> =
        orders.iter().map(|order_id| deduction(*order_id, free, 1)).collect();
    wanted.extend((0..32).map(|number| deduction(Uuid::now_v7(), &taken[number % HELD], 1)));
    let mut waiting: Answers = ask(&group, &wanted);
    until("some are held up", || group.held_up() > 0).await;
    // Who held a connection for a lock would let go of it when it has its answer, and not before.
    let (mut longest, mut rounds) = (Duration::ZERO, 0);
    while waiting.len() == wanted.len() {
        let began = Instant::now();
        let mut connections = Vec::new();
        for _ in 0..LEFT {
            connections.push(begin_write(database).await.unwrap());
        }
        longest = longest.max(began.elapsed());
        for connection in connections {
            connection.rollback().await.unwrap();
        }
        match waiting.try_join_next() {
            None => rounds += 1,
            Some(ended) => drop(ended.unwrap()),
        }
    }
    println!("{LEFT} connections, {rounds} times while all waited: within {longest:?}");
    for holder in holders {
        holder.rollback().await.unwrap();
    }
    working.rollback().await.unwrap();
    timeout(DEADLINE, waiting.join_all()).await.unwrap();
    group.drain().await;
    rounds > 0
}

/// A batch of questions, and one of restores, half of which are about a product that somebody holds: the
/// other half has its effect at once, and however long it takes, it costs nobody an attempt.
pub async fn a_batch_leaves_out_what_is_held(
    database: &DatabaseConnection,
    others: &DatabaseConnection,
) {
    const MESSAGES: usize = 300;
    /// More than the attempts of a message.
    const ROUNDS: usize = 4;
    /// Who would find them one by one would wait for the lock for each: longer than any machine stands still.
    const ONE_BY_ONE: Duration = SHARED_LOCK_WAIT.saturating_mul(MESSAGES as u32 / 2);
    if has_one_lock(database) {
        return;
    }
    let store = store_of(database);
    let skus = products(&store, 2).await;
    let kit = kit(database, &store);
    let orders: Vec<Uuid> = (0..MESSAGES).map(|_| Uuid::now_v7()).collect();
    for (topic, left) in [(ASKED, 1_000 - MESSAGES as i64 / 2), (ROLLED_BACK, 1_000)] {
        let message = |(number, order_id): (usize, &Uuid)| {
            let items = serde_json::json!([{"sku": skus[number % 2], "quantity": 1}]);
            let payload = serde_json::json!({"order_id": order_id, "items": items});
            kit.message(topic, payload.to_string())
        };
        let batch: Vec<_> = orders.iter().enumerate().map(message).collect();
        let holder = holder(others, &skus[1]).await;
        let began = Instant::now();
        let counts = kit.deliver(&batch).await;
        let took = began.elapsed();
        let half = MESSAGES as u64 / 2;
        assert_eq!(counts, Counts { applied: half, retried: half, ..Counts::default() }, "{topic}");
        println!("{topic}: {half} of {MESSAGES} in spite of a held product within {took:?}");
        assert!(took < ONE_BY_ONE, "{topic}: {took:?}");
        for _ in 0..ROUNDS {
            assert_eq!(kit.retry_now().await.unwrap(), Counts::default(), "{topic}");
        }
        holder.rollback().await.unwrap();
        let settled = kit.settle_all().await.unwrap();
        assert_eq!(settled, Counts { applied: half, ..Counts::default() }, "{topic}");
        for sku in &skus {
            assert_eq!(available(&store, sku).await, left, "{topic}");
        }
    }
    assert_eq!(kit.replies().len(), MESSAGES);
}

/// Others that look at a product do not hold it, nor does who has let it go by the second look, nor do two
/// that have it at one look each.
pub async fn what_is_only_in_use_is_not_held(
    database: &DatabaseConnection,
    others: &DatabaseConnection,
) {
    if has_one_lock(database) {
        return;
    }
    let store = store_of(database);
    let skus = products(&store, 4).await;
    let [looked_at, busy, in_turn, held] = [0, 1, 2, 3].map(|number| &skus[number]);
    let looking = begin_write(others).await.unwrap();
    let look = format!("SELECT sku FROM stock WHERE sku = '{looked_at}' FOR SHARE");
    looking.execute_unprepared(&look).await.unwrap();
    let (using, first) = (holder(others, busy).await, holder(others, in_turn).await);
    let holding = holder(others, held).await;
    let locked = |skus: &[&String]| skus.iter().map(|sku| (*sku).clone()).collect::<BTreeSet<_>>();
    let found = store.locked_elsewhere(skus.clone()).await.unwrap();
    assert_eq!(found, locked(&[busy, in_turn, held]));
    // One is free at the second look, one is somebody else's, and one was changed by who has it still.
    let mut second = None;
    let meanwhile = async {
        using.rollback().await.unwrap();
        first.rollback().await.unwrap();
        second = Some(holder(others, in_turn).await);
        let change = format!("UPDATE stock SET available = available - 1 WHERE sku = '{held}'");
        holding.execute_unprepared(&change).await.unwrap();
    };
    let found = store.held_elsewhere(skus.clone(), meanwhile).await.unwrap();
    assert_eq!(found, locked(&[held]));
    let found = store.locked_elsewhere(skus.clone()).await.unwrap();
    assert_eq!(found, locked(&[in_turn, held]), "the second look found both");
    for transaction in [Some(looking), second, Some(holding)].into_iter().flatten() {
        transaction.rollback().await.unwrap();
    }
}

const ASKED: &str = "order.created";
const ROLLED_BACK: &str = "stock.rollback";

/// Both handlers; of each message one attempt, and one retry.
fn kit(database: &DatabaseConnection, store: &StockStore) -> ConsumerKit {
    let (subscriber, metrics) = (new_sku(), StockMetrics::default());
    let deducter = Deducter {
        outbound_topic: "stock.outbound".into(),
        subscriber: subscriber.clone(),
        store: store.clone(),
        metrics: metrics.clone(),
    };
    let config = ConsumerConfig {
        quick_attempts: 1,
        retry: RetryLevels::new([Duration::from_millis(1)]),
        concurrency: 1,
        key_order: KeyOrder::GiveUp,
        ..testkit::config(database.clone(), subscriber)
    };
    Consumer::builder(config)
        .subscribe(ASKED, deducter)
        .subscribe(ROLLED_BACK, Restorer::new(store.clone(), metrics))
        .test_kit()
        .unwrap()
}

/// Wherever the process dies while some wait for a product that is held, and while they go on behind it:
/// each order was deducted once or not at all, and asked again, it is once.
pub async fn dies_wherever_it_waits(url: &str, others: &DatabaseConnection) {
    if has_one_lock(others) {
        return;
    }
    let store = store_of(others);
    let mut tries = EveryWait::default();
    while let Some(waits) = tries.next_try() {
        let (held, free) = (product(&store, 10).await, product(&store, 10).await);
        let of = |sku: &String| deduction(Uuid::now_v7(), sku, 1);
        let wanted: Vec<_> = [&held, &held, &held, &free, &free].map(of).into();
        // An order that somebody else worked on before.
        restore_one(others, wanted[4].order_id, &free).await;
        let process = Process { url: url.to_owned(), held: held.clone(), wanted: wanted.clone() };
        let died = tokio::task::spawn_blocking(move || process.dies_at(waits)).await.unwrap();
        for request in &wanted {
            retried(|| store.deduct(request.order_id, &request.items, false)).await;
        }
        for (sku, left) in [(&held, 7), (&free, 9)] {
            assert_eq!(available(&store, sku).await, left, "at wait {waits}");
        }
        tries.died(died);
    }
}

/// One that has a runtime of its own, which ends with all that it does.
struct Process {
    url: String,
    held: String,
    wanted: Vec<DeductRequest>,
}

impl Process {
    /// Dies where it has nothing to do but to wait, for the so many-th time. Whether it did.
    fn dies_at(self, waits: u32) -> bool {
        let (waited, dies) = (Arc::new(AtomicU32::new(0)), Arc::new(Notify::new()));
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime.enable_all();
        let (counted, told) = (Arc::clone(&waited), Arc::clone(&dies));
        runtime.on_thread_park(move || {
            if counted.fetch_add(1, Ordering::Relaxed) + 1 == waits {
                told.notify_one();
            }
        });
        let runtime = runtime.build().unwrap();
        runtime.block_on(async move {
            let database = connect(&self.url, &DbOptions::default()).await.unwrap();
            let holder = holder(&database, &self.held).await;
            // Whoever was told before died while it started: that is not of interest.
            waited.store(0, Ordering::Relaxed);
            let _ = timeout(Duration::ZERO, dies.notified()).await;
            tokio::select! {
                () = dies.notified() => true,
                () = self.work(&database, holder) => false,
            }
        })
    }

    /// Some of them are answered, then the others can be.
    async fn work(&self, database: &DatabaseConnection, holder: DatabaseTransaction) {
        let group = group_of(&store_of(database));
        let mut answers = ask(&group, &self.wanted);
        for _ in 0..2 {
            let (number, _) = answers.join_next().await.unwrap().unwrap();
            assert!(number >= 3, "the others are held up");
        }
        holder.rollback().await.unwrap();
        answers.join_all().await;
    }
}

//! Deductions that share a transaction: each has its own answer, and none pays for another.

use std::time::Instant;

use halfmsg_service_kit::db::begin_write;
use sea_orm::{ConnectionTrait, DatabaseConnection, DbBackend};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use super::{DEADLINE, available, items, product, request, restore_one, retried};
use crate::group_commit::GroupCommit;
use crate::metrics::StockMetrics;
use crate::model::DeductionState;
use crate::store::barrier::{Deduct, DeductRequest, deduct_in_tx, restore_in_tx};
use crate::store::{StockStore, StoreError};

/// One leader, so that what waits for it is one group.
struct World {
    store: StockStore,
    metrics: StockMetrics,
    group: GroupCommit,
}

type Answers = JoinSet<(usize, Result<Deduct, StoreError>)>;

impl World {
    fn new(database: &DatabaseConnection) -> Self {
        let (store, metrics) = (StockStore::new(database.clone()), StockMetrics::default());
        let group = GroupCommit::with_leaders(store.clone(), metrics.clone(), 64, 1);
        Self { store, metrics, group }
    }

    /// Asks for all of these; they wait until `leader` may go on, and then go together.
    async fn ask_behind(&self, blocked: &Blocked, requests: &[DeductRequest]) -> Answers {
        let mut answers = Answers::new();
        let own = blocked.another();
        let ask = |number: usize, request: DeductRequest, answers: &mut Answers| {
            let group = self.group.clone();
            answers.spawn(async move { (number, group.deduct(request).await) });
        };
        let before = self.metrics.deduction_transactions();
        ask(usize::MAX, own, &mut answers);
        until("the leader is at work", || self.metrics.deduction_transactions() > before).await;
        for (number, request) in requests.iter().enumerate() {
            ask(number, request.clone(), &mut answers);
        }
        until("all of them wait", || self.group.waiting() == requests.len()).await;
        answers
    }
}

/// A product whose stock another transaction holds; on SQLite it holds everything.
struct Blocked {
    sku: String,
    holder: sea_orm::DatabaseTransaction,
}

impl Blocked {
    async fn new(world: &World, database: &DatabaseConnection) -> Self {
        let sku = product(&world.store, 1_000).await;
        let holder = begin_write(database).await.unwrap();
        deduct_in_tx(&holder, Uuid::now_v7(), &items(&[(&sku, 1)]), false).await.unwrap();
        Self { sku, holder }
    }

    fn another(&self) -> DeductRequest {
        deduction(Uuid::now_v7(), &self.sku, 1)
    }

    async fn release(self) {
        self.holder.rollback().await.unwrap();
    }
}

fn deduction(order_id: Uuid, sku: &str, quantity: i64) -> DeductRequest {
    DeductRequest { order_id, items: items(&[(sku, quantity)]), induced: false }
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < DEADLINE, "{what}");
        sleep(std::time::Duration::from_millis(1)).await;
    }
}

/// The answers in the order of the requests, without the leader's.
async fn all(answers: Answers, count: usize) -> Vec<Result<Deduct, StoreError>> {
    let mut done = timeout(DEADLINE, answers.join_all()).await.unwrap();
    done.sort_by_key(|(number, _)| *number);
    done.into_iter().map(|(_, answer)| answer).take(count).collect()
}

/// A hot product, asked for by more than it lasts for, one order twice, one void, one refused in any
/// case: two transactions, and to each the answer that it had got alone.
pub async fn those_that_wait_go_together(database: &DatabaseConnection) {
    let world = World::new(database);
    let sku = product(&world.store, 10).await;
    let (twice, void, induced) = (Uuid::now_v7(), Uuid::now_v7(), Uuid::now_v7());
    restore_one(database, void, &sku).await;
    let mut requests: Vec<_> = (0..12).map(|_| deduction(Uuid::now_v7(), &sku, 1)).collect();
    requests[1].order_id = twice;
    requests[3] = deduction(twice, &sku, 1);
    requests[5] = deduction(twice, &sku, 2);
    requests[7].order_id = void;
    requests[9] = DeductRequest { induced: true, ..deduction(induced, &sku, 1) };
    requests.push(deduction(Uuid::now_v7(), &sku, 100));
    requests.extend((0..4).map(|_| deduction(Uuid::now_v7(), &sku, 1)));
    let blocked = Blocked::new(&world, database).await;
    let answers = world.ask_behind(&blocked, &requests).await;
    blocked.release().await;
    let answers: Vec<_> =
        all(answers, requests.len()).await.into_iter().map(Result::unwrap).collect();
    assert_eq!(world.metrics.deduction_transactions(), 2, "the leader's, and one for all");
    assert_eq!(answers[3], Deduct::Deducted { before: true });
    assert_eq!(answers[5], Deduct::OtherItems);
    assert_eq!(answers[7], Deduct::OrderVoid(DeductionState::Void));
    let taken = answers.iter().filter(|one| **one == Deduct::Deducted { before: false }).count();
    assert_eq!((taken, available(&world.store, &sku).await), (10, 0));
    // The rest is refused, and hears so again.
    for (request, answer) in requests.iter().zip(&answers) {
        let DeductRequest { order_id, items, .. } = request;
        let again = world.store.deduct(*order_id, items, false).await.unwrap();
        match answer {
            Deduct::Deducted { .. } => assert_eq!(again, Deduct::Deducted { before: true }),
            Deduct::Refused { refusal, before } => {
                assert!(!before);
                assert_eq!(again, Deduct::Refused { refusal: refusal.clone(), before: true });
            }
            other => assert_eq!(again, *other),
        }
    }
}

/// One whose barrier an unfinished restore holds waits alone: the others have their answers
/// meanwhile. (SQLite has one lock for all, so nobody can be meanwhile.)
pub async fn a_taken_barrier_holds_up_one(database: &DatabaseConnection) {
    if database.get_database_backend() == DbBackend::Sqlite {
        return;
    }
    let world = World::new(database);
    let sku = product(&world.store, 10).await;
    let held = Uuid::now_v7();
    let restoring = begin_write(database).await.unwrap();
    restore_in_tx(&restoring, &[request(held, &sku)]).await.unwrap();
    let mut requests: Vec<_> = (0..8).map(|_| deduction(Uuid::now_v7(), &sku, 1)).collect();
    requests[4].order_id = held;
    let blocked = Blocked::new(&world, database).await;
    let mut answers = world.ask_behind(&blocked, &requests).await;
    blocked.release().await;
    for _ in 0..8 {
        let (number, answer) =
            timeout(DEADLINE, answers.join_next()).await.unwrap().unwrap().unwrap();
        assert_ne!(number, 4, "it cannot know yet");
        assert_eq!(answer.unwrap(), Deduct::Deducted { before: false });
    }
    restoring.commit().await.unwrap();
    let (_, last) = timeout(DEADLINE, answers.join_next()).await.unwrap().unwrap().unwrap();
    match last {
        Ok(answer) => assert_eq!(answer, Deduct::OrderVoid(DeductionState::Void)),
        // A busy machine: its own wait for the lock was over before the commit.
        Err(error) => assert!(error.is_transient(), "{error}"),
    }
    assert_eq!(available(&world.store, &sku).await, 3);
}

/// A row that nobody can read costs its own order the answer, and no other.
pub async fn an_unreadable_row_costs_no_other(database: &DatabaseConnection) {
    let world = World::new(database);
    let sku = product(&world.store, 10).await;
    let broken = Uuid::now_v7();
    let mut refused = deduction(broken, &sku, 1);
    refused.induced = true;
    world.group.deduct(refused.clone()).await.unwrap();
    let id = match database.get_database_backend() {
        DbBackend::Sqlite => format!("X'{}'", broken.simple()),
        _ => format!("'{broken}'"),
    };
    let damage = format!("UPDATE deduction SET reason = 'damaged' WHERE order_id = {id}");
    assert_eq!(database.execute_unprepared(&damage).await.unwrap().rows_affected(), 1);
    let mut requests: Vec<_> = (0..6).map(|_| deduction(Uuid::now_v7(), &sku, 1)).collect();
    requests[2] = refused;
    let blocked = Blocked::new(&world, database).await;
    let answers = world.ask_behind(&blocked, &requests).await;
    blocked.release().await;
    for (number, answer) in all(answers, requests.len()).await.into_iter().enumerate() {
        match answer {
            Err(StoreError::Unreadable(_)) => assert_eq!(number, 2),
            answer => assert_eq!(answer.unwrap(), Deduct::Deducted { before: false }, "{number}"),
        }
    }
    assert_eq!(available(&world.store, &sku).await, 5);
}

/// Who hangs up before its turn takes nothing; who hangs up later changes nothing for the others;
/// and what is under way is waited for.
pub async fn who_hangs_up_holds_up_nobody(database: &DatabaseConnection) {
    let world = World::new(database);
    let sku = product(&world.store, 10).await;
    let requests: Vec<_> = (0..4).map(|_| deduction(Uuid::now_v7(), &sku, 1)).collect();
    let blocked = Blocked::new(&world, database).await;
    let answers = world.ask_behind(&blocked, &requests).await;
    // All of them hang up, the leader's client too: only that one is under way.
    drop(answers);
    let (group, last) = (world.group.clone(), deduction(Uuid::now_v7(), &sku, 2));
    let last = tokio::spawn(async move { group.deduct(last).await });
    until("it waits too", || world.group.waiting() == requests.len() + 1).await;
    let taken = blocked.sku.clone();
    blocked.release().await;
    let last = timeout(DEADLINE, last).await.unwrap().unwrap().unwrap();
    assert_eq!(last, Deduct::Deducted { before: false });
    timeout(DEADLINE, world.group.drain()).await.unwrap();
    assert_eq!(available(&world.store, &taken).await, 999);
    assert_eq!(available(&world.store, &sku).await, 8);
}

/// Many at once on a few products, as many leaders as the database takes: as much is sold as there
/// was, to whom it was said so.
pub async fn a_crowd_sells_what_there_is(database: &DatabaseConnection) {
    const CALLERS: usize = 120;
    const STOCK: i64 = 50;
    let (store, metrics) = (StockStore::new(database.clone()), StockMetrics::default());
    let group = GroupCommit::new(store.clone(), metrics, 16);
    let skus = [product(&store, STOCK).await, product(&store, STOCK).await];
    let mut tasks = JoinSet::new();
    for caller in 0..CALLERS {
        let (group, order) = (group.clone(), Uuid::now_v7());
        let (one, other) = (&skus[caller % 2], &skus[(caller + 1) % 2]);
        let wanted =
            if caller % 3 == 0 { items(&[(one, 1), (other, 1)]) } else { items(&[(one, 1)]) };
        let wanted = DeductRequest { order_id: order, items: wanted, induced: false };
        tasks.spawn(async move {
            let done = retried(|| group.deduct(wanted.clone())).await;
            let units = wanted.items.iter().count() as i64;
            if matches!(done, Deduct::Deducted { .. }) { units } else { 0 }
        });
    }
    let sold: i64 = timeout(DEADLINE, tasks.join_all()).await.unwrap().into_iter().sum();
    let left = available(&store, &skus[0]).await + available(&store, &skus[1]).await;
    assert_eq!(sold + left, 2 * STOCK);
    assert!(left <= 1, "{left} are left, and nobody who wanted one got it");
}

/// Wherever the process dies, a group was deducted whole or not at all; asked again, each is once.
pub async fn a_group_dies_whole(database: &DatabaseConnection) {
    let store = StockStore::new(database.clone());
    // What answers at once is not waited for: five in a row must run through.
    let (mut waits, mut deaths, mut survivors) = (0, 0, 0);
    while survivors < 5 {
        waits += 1;
        assert!(waits < 100, "it never ran through");
        let sku = product(&store, 3).await;
        let requests: Vec<_> = (0..4).map(|_| deduction(Uuid::now_v7(), &sku, 1)).collect();
        let died = super::dies_at(waits, store.deduct_together(&requests)).await.is_none();
        let left = available(&store, &sku).await;
        assert!(left == 3 || left == 0, "at wait {waits}: {left}");
        for request in &requests {
            retried(|| store.deduct(request.order_id, &request.items, false)).await;
        }
        assert_eq!(available(&store, &sku).await, 0, "at wait {waits}");
        deaths += i32::from(died);
        survivors = if died { 0 } else { survivors + 1 };
    }
    assert!(deaths >= 2, "it died {deaths} times");
}

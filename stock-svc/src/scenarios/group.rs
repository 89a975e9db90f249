//! Deductions that share a transaction: each has its own answer, and none pays for another.

use std::time::Instant;

use halfmsg_consumer::testkit::{EveryWait, dies_at};
use halfmsg_service_kit::db::begin_write;
use sea_orm::{ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbBackend};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use super::{DEADLINE, available, items, product, request, restore_one, retried, store_of};
use crate::group_commit::GroupCommit;
use crate::metrics::StockMetrics;
use crate::model::DeductionState;
use crate::store::barrier::{Deduct, DeductRequest, deduct_in_tx, restore_in_tx};
use crate::store::{LOCK_TIMEOUT, StockStore, StoreError};

/// One leader, so that what waits for it is one group.
struct World {
    store: StockStore,
    metrics: StockMetrics,
    group: GroupCommit,
}

pub(super) type Answers = JoinSet<(usize, Result<Deduct, StoreError>)>;

impl World {
    fn new(database: &DatabaseConnection) -> Self {
        let (store, metrics) = (store_of(database), StockMetrics::default());
        let group = GroupCommit::with_leaders(store.clone(), metrics.clone(), 64, 1);
        Self { store, metrics, group }
    }

    /// Asks for all of these, one behind the other, which then go together.
    async fn ask(&self, requests: &[DeductRequest]) -> Answers {
        let held_back = self.group.hold_back().await;
        let mut answers = Answers::new();
        for (number, request) in requests.iter().cloned().enumerate() {
            let group = self.group.clone();
            answers.spawn(async move { (number, group.deduct(request).await) });
            until("it waits", || self.group.waiting() == number + 1).await;
        }
        drop(held_back);
        answers
    }
}

pub(super) fn ask(group: &GroupCommit, requests: &[DeductRequest]) -> Answers {
    let mut answers = Answers::new();
    for (number, request) in requests.iter().cloned().enumerate() {
        let group = group.clone();
        answers.spawn(async move { (number, group.deduct(request).await) });
    }
    answers
}

/// Another transaction that holds a product's stock; on SQLite it holds everything.
pub(super) async fn holder(database: &DatabaseConnection, sku: &str) -> DatabaseTransaction {
    let holder = begin_write(database).await.unwrap();
    deduct_in_tx(&holder, Uuid::now_v7(), &items(&[(sku, 1)]), false).await.unwrap();
    holder
}

pub(super) fn deduction(order_id: Uuid, sku: &str, quantity: i64) -> DeductRequest {
    DeductRequest {
        order_id,
        items: items(&[(sku, quantity)]),
        induced: false,
        transaction_id: None,
    }
}

pub(super) async fn until(what: &str, condition: impl Fn() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < DEADLINE, "{what}");
        sleep(std::time::Duration::from_millis(1)).await;
    }
}

/// The answers in the order of the requests.
async fn all(answers: Answers) -> Vec<Result<Deduct, StoreError>> {
    let mut done = timeout(DEADLINE, answers.join_all()).await.unwrap();
    done.sort_by_key(|(number, _)| *number);
    done.into_iter().map(|(_, answer)| answer).collect()
}

/// Each was, at the latest when it was asked for again: a machine that stands still in the middle of a
/// transaction has others wait for its locks for longer than they do.
async fn are_deducted(
    group: &GroupCommit,
    requests: &[DeductRequest],
    answers: Vec<Result<Deduct, StoreError>>,
) {
    for (request, answer) in requests.iter().zip(answers) {
        match answer {
            Ok(answer) => assert_eq!(answer, Deduct::Deducted { before: false }),
            Err(error) => {
                assert!(error.is_transient(), "{error}");
                let again = retried(|| group.deduct(request.clone())).await;
                assert!(matches!(again, Deduct::Deducted { .. }), "{again:?}");
            }
        }
    }
}

/// A hot product, asked for by more than it lasts for, one order twice, one void, one refused in any
/// case: one transaction, and to each the answer that it had got alone.
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
    let answers = world.ask(&requests).await;
    let answers: Vec<_> = all(answers).await.into_iter().map(Result::unwrap).collect();
    assert_eq!(world.metrics.deduction_transactions(), 1, "one for all");
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
    let mut answers = world.ask(&requests).await;
    for _ in 0..7 {
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
    let answers = world.ask(&requests).await;
    for (number, answer) in all(answers).await.into_iter().enumerate() {
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
    let held_back = world.group.hold_back().await;
    let early = ask(&world.group, &requests);
    until("they wait", || world.group.waiting() == requests.len()).await;
    drop(early);
    let last = ask(&world.group, &[deduction(Uuid::now_v7(), &sku, 2)]);
    until("it waits too", || world.group.waiting() == requests.len() + 1).await;
    drop(held_back);
    let last = all(last).await.pop().unwrap().unwrap();
    assert_eq!(
        (last, available(&world.store, &sku).await),
        (Deduct::Deducted { before: false }, 8)
    );
    // In the middle of its transaction.
    let taken = product(&world.store, 10).await;
    let holder = holder(database, &taken).await;
    let before = world.metrics.deduction_transactions();
    let late = ask(&world.group, &[deduction(Uuid::now_v7(), &taken, 1)]);
    until("it is under way", || world.metrics.deduction_transactions() > before).await;
    drop(late);
    holder.rollback().await.unwrap();
    timeout(DEADLINE, world.group.drain()).await.unwrap();
    let left = available(&world.store, &taken).await;
    // Where its first transaction waited for too long, there is none for somebody who is gone.
    assert!(left == 9 || left == 10, "{left}");
}

/// A product that somebody holds for longer than anybody waits: who wants another one has its answer
/// all the same, and who wants this one ends as a transaction of its own would, by the lock. (SQLite
/// has one lock for all: who holds it holds up everybody, and nobody once it is free.)
pub async fn a_locked_product_holds_up_its_own(database: &DatabaseConnection) {
    const HELD: usize = 16;
    const FREE: usize = 64;
    let (store, metrics) = (store_of(database), StockMetrics::default());
    let group = GroupCommit::new(store.clone(), metrics, 64);
    let mut others = Vec::new();
    for _ in 0..4 {
        others.push(product(&store, 1_000).await);
    }
    // The last in the order of locks: who waits for it with others locked would hold those up.
    let locked = product(&store, 1_000).await;
    assert!(others.iter().all(|sku| *sku < locked));
    let of_locked = |number: usize| {
        let mut wanted = deduction(Uuid::now_v7(), &locked, 1);
        if number.is_multiple_of(2) {
            wanted.items = items(&[(&locked, 1), (&others[number % 4], 1)]);
        }
        wanted
    };
    let of_other = |number: usize| deduction(Uuid::now_v7(), &others[number % 4], 1);
    let held: Vec<_> = (0..HELD).map(of_locked).collect();
    let free: Vec<_> = (0..FREE).map(of_other).collect();
    let holder = holder(database, &locked).await;
    let held_back = group.hold_back().await;
    let held_answers = ask(&group, &held);
    until("those of the locked product wait", || group.waiting() == HELD).await;
    let free_answers = ask(&group, &free);
    until("all of them wait", || group.waiting() == HELD + FREE).await;
    drop(held_back);
    let mut holder = Some(holder);
    let one_lock = database.get_database_backend() == DbBackend::Sqlite;
    if let Some(holder) = holder.take_if(|_| one_lock) {
        holder.rollback().await.unwrap();
    }
    are_deducted(&group, &free, all(free_answers).await).await;
    // While those of the locked product wait, others come.
    let more: Vec<_> = (0..FREE).map(of_other).collect();
    are_deducted(&group, &more, all(ask(&group, &more)).await).await;
    for answer in all(held_answers).await {
        match answer {
            Ok(answer) => assert!(one_lock, "{answer:?} in spite of the lock"),
            Err(error) => assert!(!one_lock && error.is_contended(), "{error}"),
        }
    }
    if let Some(holder) = holder {
        holder.rollback().await.unwrap();
    }
    for request in &held {
        retried(|| group.deduct(request.clone())).await;
    }
    assert_eq!(available(&store, &locked).await, 1_000 - HELD as i64);
    assert_eq!(group.waiting(), 0);
}

/// Many at once on a few products, as many leaders as the database takes: as much is sold as there
/// was, to whom it was said so.
pub async fn a_crowd_sells_what_there_is(database: &DatabaseConnection) {
    const CALLERS: usize = 120;
    const STOCK: i64 = 50;
    let (store, metrics) = (store_of(database), StockMetrics::default());
    let group = GroupCommit::new(store.clone(), metrics, 16);
    let skus = [product(&store, STOCK).await, product(&store, STOCK).await];
    let mut tasks = JoinSet::new();
    for caller in 0..CALLERS {
        let (group, order) = (group.clone(), Uuid::now_v7());
        let (one, other) = (&skus[caller % 2], &skus[(caller + 1) % 2]);
        let wanted =
            if caller % 3 == 0 { items(&[(one, 1), (other, 1)]) } else { items(&[(one, 1)]) };
        let wanted =
            DeductRequest { order_id: order, items: wanted, induced: false, transaction_id: None };
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
    let store = store_of(database);
    let mut tries = EveryWait::default();
    while let Some(waits) = tries.next_try() {
        let sku = product(&store, 3).await;
        let requests: Vec<_> = (0..4).map(|_| deduction(Uuid::now_v7(), &sku, 1)).collect();
        let together = store.deduct_together(&requests, LOCK_TIMEOUT);
        let died = dies_at(waits, together).await.is_none();
        let left = available(&store, &sku).await;
        assert!(left == 3 || left == 0, "at wait {waits}: {left}");
        for request in &requests {
            retried(|| store.deduct(request.order_id, &request.items, false)).await;
        }
        assert_eq!(available(&store, &sku).await, 0, "at wait {waits}");
        tries.died(died);
    }
}

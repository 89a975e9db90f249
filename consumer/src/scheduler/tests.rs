//! Retries and what waits behind them, without Kafka.

use std::sync::atomic::Ordering;

use sea_orm::sea_query::{Expr, ExprTrait, Query};
use sea_orm::{ConnectionTrait, TransactionTrait};

use super::*;
use crate::config::{KeyOrder, RetryLevels};
use crate::retry::{Failures, Place};
use crate::worker::Verdict;
use crate::worker::tests::{QUICK, World, message, world};

/// Any number of steps within which these tests end.
const STEPS: usize = 1_000;

fn scheduler(world: &World, delays: &[u64]) -> Scheduler {
    let worker = &world.worker;
    let levels = RetryLevels::new(delays.iter().map(|millis| Duration::from_millis(*millis)));
    Scheduler {
        deliverer: worker.deliverer.clone(),
        sender: worker.sender.clone(),
        retries: Retries { levels, ..worker.retries.clone() },
        poll: Duration::from_millis(1),
        max_batch: 100,
        max_batch_bytes: 1_000,
        handle: ConsumerHandle::default(),
        metrics: worker.metrics.clone(),
        wake: worker.wake.clone(),
        health: worker.health.clone(),
        failing: Failing::default(),
        shutdown: CancellationToken::new(),
    }
}

async fn rows(world: &World, with_a_turn: bool) -> usize {
    let mut select = Query::select();
    select.column("id").from("retry");
    if with_a_turn {
        select.and_where(Expr::col("next_at").is_not_null());
    }
    world.worker.deliverer.database.query_all(&select).await.unwrap().len()
}

/// Ten messages of one key, the first of which fails once more in its first retry.
async fn a_key_behind_its_first(delays: &[u64]) -> (World, Scheduler) {
    let mut world = world(QUICK + 1, KeyOrder::Keep).await;
    world.worker.retries.levels = RetryLevels::new([Duration::ZERO]);
    let payload = |offset| if offset == 0 { "poison" } else { "fine" };
    let batch = (0..10).map(|offset| message(offset, "k", payload(offset))).collect();
    assert_eq!(world.process(batch).await, Verdict::Done);
    let scheduler = scheduler(&world, delays);
    (world, scheduler)
}

#[tokio::test]
async fn only_the_first_of_a_key_has_a_turn_also_once_it_is_put_off() {
    let (world, scheduler) = a_key_behind_its_first(&[0, 600_000]).await;
    assert_eq!((rows(&world, true).await, rows(&world, false).await), (1, 10));
    let mut pace = Pace { size: 1, outages: 0, contended: 0 };
    scheduler.step(&mut pace).await;
    assert_eq!((rows(&world, true).await, rows(&world, false).await), (1, 10));
    assert!(scheduler.due_in().await.unwrap() > Duration::from_secs(500));
}

#[tokio::test]
async fn what_waited_behind_a_message_follows_it_in_order_and_together() {
    let (world, scheduler) = a_key_behind_its_first(&[0, 0]).await;
    let mut pace = Pace { size: 100, outages: 0, contended: 0 };
    let before = world.script.calls.load(Ordering::Acquire);
    for _ in 0..STEPS {
        if rows(&world, false).await == 0 {
            break;
        }
        scheduler.step(&mut pace).await;
    }
    assert_eq!(world.passed(), (0..10).collect::<Vec<_>>());
    // Down to the first, its failure and its success, then 2, 4 and the rest.
    let calls = world.script.calls.load(Ordering::Acquire) - before;
    assert!(calls <= 4 + 2 + 3, "{calls} transactions");
}

#[tokio::test]
async fn who_works_on_the_first_and_who_stores_behind_it_do_not_miss_each_other() {
    let (world, scheduler) = a_key_behind_its_first(&[0, 0]).await;
    // Another one stored while the first was being taken out, as PostgreSQL allows.
    let database = &world.worker.deliverer.database;
    let transaction = database.begin().await.unwrap();
    let place = Place { next_at: Some(now()), dead_letter_id: None };
    let late = message(10, "k", "fine");
    retry::store_in_tx(&transaction, "s", &late, &Failures::default(), place).await.unwrap();
    transaction.commit().await.unwrap();
    let mut pace = Pace { size: 100, outages: 0, contended: 0 };
    for _ in 0..STEPS {
        if rows(&world, false).await == 0 {
            break;
        }
        scheduler.step(&mut pace).await;
    }
    assert_eq!(world.passed(), (0..11).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_topic_without_a_handler_is_left_to_others() {
    let (world, scheduler) = a_key_behind_its_first(&[0]).await;
    let turns = Turns { topics: vec!["another"], ..scheduler.turns() };
    let database = &world.worker.deliverer.database;
    assert_eq!(retry::next_due(database, &turns).await.unwrap(), None);
    assert!(retry::next_due(database, &scheduler.turns()).await.unwrap().is_some());
}

#[tokio::test]
async fn a_claim_ends_at_its_bytes() {
    let (world, scheduler) = a_key_behind_its_first(&[0]).await;
    let transaction = begin_write(&world.worker.deliverer.database).await.unwrap();
    // "poison" and "fine" make 10.
    let bounds = Bounds { messages: 100, bytes: 10 };
    let claimed = retry::claim_in_tx(&transaction, &scheduler.turns(), bounds).await.unwrap();
    let offsets: Vec<_> = claimed.iter().map(|one| one.message.offset).collect();
    assert_eq!(offsets, [0, 1]);
}

#[tokio::test]
async fn a_message_that_only_waited_has_its_quick_attempts_and_all_levels() {
    let world = world(0, KeyOrder::Keep).await;
    let scheduler = scheduler(&world, &[60_000]);
    let after = |attempts, level| {
        let failures = Failures { attempts, ..Failures::default() };
        let (id, message) = (uuid::Uuid::nil(), message(0, "k", ""));
        let waiting = Waiting { id, message, failures, level, dead_letter_id: None };
        scheduler.fate(&waiting, &AttemptError::Failed("why".into()))
    };
    let minute = Fate::Retry(Duration::from_secs(60));
    for attempts in 0..QUICK - 1 {
        let (fate, level) = after(attempts, 0);
        assert!(matches!(fate, Fate::Retry(pause) if pause < Duration::from_secs(1)));
        assert_eq!(level, 0);
    }
    assert_eq!(after(QUICK - 1, 0), (minute, 0));
    assert_eq!(after(QUICK, 0), (Fate::Dead, 1));
}

//! Retries and what waits behind them, without Kafka.

use std::sync::atomic::{AtomicUsize, Ordering};

use halfmsg_db::begin_write;
use sea_orm::sea_query::{Expr, ExprTrait, Query};
use sea_orm::{ConnectionTrait, TransactionTrait};

use super::*;
use crate::config::{KeyOrder, RetryLevels};
use crate::inbox::tests::make_older;
use crate::retry::{Failures, Place};
use crate::testkit::{EveryWait, dies_at};
use crate::worker::Verdict;
use crate::worker::tests::{PATIENCE, QUICK, World, message, world};

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
        concurrency: 1,
        taken: Taken::default(),
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

#[tokio::test]
async fn somebody_elses_lock_burns_no_retry_for_a_while() {
    const ROUNDS: u32 = 3;
    let mut world = world(u32::MAX, KeyOrder::Keep).await;
    world.worker.retries.quick_attempts = 1;
    let batch = vec![message(0, "a", "locked"), message(1, "b", "fine")];
    assert_eq!(world.process(batch).await, Verdict::Done);
    // One retry, and one that fails would be the last.
    let scheduler = scheduler(&world, &[1]);
    let due = |failed_since: &str| {
        let update = format!(
            "UPDATE retry SET next_at = datetime('now', '-1 minute'), \
             first_failed_at = datetime('now', '{failed_since}')"
        );
        let database = world.worker.deliverer.database.clone();
        async move { database.execute_unprepared(&update).await.unwrap() }
    };
    let mut pace = Pace { size: 100, outages: 0, contended: 0 };
    for _ in 0..ROUNDS {
        due("-9 minutes").await;
        let begun = std::time::Instant::now();
        assert_eq!(scheduler.step(&mut pace).await, Duration::ZERO);
        // Not at once: it waits for the lock. The machine may stand still between the two.
        let due_in = scheduler.due_in().await.unwrap();
        assert!(due_in + begun.elapsed() > Duration::from_secs(3), "{due_in:?}");
        assert_eq!(world.attempts().await, [0]);
    }
    assert_eq!(world.script.calls.load(Ordering::Acquire), 2 + ROUNDS);
    // A lock that is held for ever is told in the end.
    for left in [1, 0] {
        due("-11 minutes").await;
        scheduler.step(&mut pace).await;
        assert_eq!(rows(&world, false).await, left);
    }
    assert_eq!(world.worker.metrics.dead_letters(), 1);
}

/// The same for what the database cannot do for one of them, while it answers: it holds up no other, and is
/// told in the end.
#[tokio::test]
async fn what_the_database_cannot_do_for_one_retry_holds_up_no_other() {
    let mut world = world(u32::MAX, KeyOrder::Keep).await;
    world.worker.retries.quick_attempts = 1;
    let batch = vec![message(0, "a", "too much"), message(1, "b", "locked")];
    let processed = tokio::time::timeout(PATIENCE, world.process(batch)).await;
    assert_eq!(processed.unwrap(), Verdict::Done);
    assert_eq!(world.attempts().await, [0, 0]);
    let database = world.worker.deliverer.database.clone();
    let due = "UPDATE retry SET next_at = datetime('now', '-1 minute'), \
               payload = CASE \"offset\" WHEN 0 THEN payload ELSE CAST('fine' AS BLOB) END";
    database.execute_unprepared(due).await.unwrap();
    let scheduler = scheduler(&world, &[1]);
    let mut pace = Pace { size: 100, outages: 0, contended: 0 };
    for _ in 0..STEPS {
        if rows(&world, false).await == 1 {
            break;
        }
        scheduler.step(&mut pace).await;
    }
    assert_eq!((world.passed(), world.attempts().await), (vec![1], vec![0]));
    for left in [1, 0] {
        let old = "UPDATE retry SET next_at = datetime('now', '-1 minute'), \
                   first_failed_at = datetime('now', '-11 minutes')";
        database.execute_unprepared(old).await.unwrap();
        scheduler.step(&mut pace).await;
        assert_eq!(rows(&world, false).await, left);
    }
    assert_eq!(world.worker.metrics.dead_letters(), 1);
}

/// A dead letter that is queued again is young: what happened before its replay is not held against it.
#[tokio::test]
async fn a_replay_that_meets_a_lock_burns_no_attempt() {
    let mut world = world(u32::MAX, KeyOrder::Keep).await;
    (world.worker.retries.quick_attempts, world.worker.retries.levels) = (1, RetryLevels::new([]));
    let batch = vec![message(0, "a", "poison")];
    assert_eq!(world.process(batch).await, Verdict::Done);
    let database = world.worker.deliverer.database.clone();
    let long_ago = "UPDATE dead_letter SET payload = CAST('locked' AS BLOB), \
                    first_failed_at = datetime('now', '-1 day')";
    database.execute_unprepared(long_ago).await.unwrap();
    let letters = crate::dead_letter::DeadLetterStore::new(database, "s");
    let filter = crate::dead_letter::DeadLetterFilter::default();
    assert_eq!(letters.queue_all(&filter, None).await.unwrap(), 1);
    // It has no retries: the first failure that counts ends the replay.
    let scheduler = scheduler(&world, &[]);
    let mut pace = Pace { size: 100, outages: 0, contended: 0 };
    scheduler.step(&mut pace).await;
    assert_eq!(world.attempts().await, [1]);
    let letter = letters.list(&filter, None, 1).await.unwrap().remove(0);
    assert_eq!(letter.state, crate::DeadLetterState::Queued);
    assert!(now() - letter.first_failed_at > TimeDelta::hours(23), "the letter keeps its own");
}

/// With order given up nothing waits behind another message: no key is asked for. What a former setting has
/// left there has its turn all the same.
#[tokio::test]
async fn a_batch_without_order_asks_for_no_key() {
    let mut world = world(0, KeyOrder::GiveUp).await;
    let turns = Arc::new(AtomicUsize::new(0));
    let counted = turns.clone();
    let deliverer = Arc::get_mut(&mut world.worker.deliverer).unwrap();
    deliverer.database.set_metric_callback(move |told| {
        let turn = told.statement.sql.starts_with("UPDATE \"retry\"");
        counted.fetch_add(usize::from(turn), Ordering::AcqRel);
    });
    let database = deliverer.database.clone();
    let store = async |offset: i64, key: String, next_at| {
        let one = ReceivedMessage { key: Some(key.into()), ..message(offset, "", "fine") };
        let place = Place { next_at, dead_letter_id: None };
        let transaction = begin_write(&database).await.unwrap();
        retry::store_in_tx(&transaction, "s", &one, &Failures::default(), place).await.unwrap();
        transaction.commit().await.unwrap();
    };
    for offset in 0..50 {
        store(offset, offset.to_string(), Some(now())).await;
    }
    let scheduler = scheduler(&world, &[0]);
    let mut pace = Pace { size: 100, outages: 0, contended: 0 };
    scheduler.step(&mut pace).await;
    assert_eq!((rows(&world, false).await, world.passed().len()), (0, 50));
    assert_eq!(turns.load(Ordering::Acquire), 0);
    store(50, "k".into(), Some(now())).await;
    store(51, "k".into(), None).await;
    scheduler.step(&mut pace).await;
    assert_eq!((rows(&world, true).await, rows(&world, false).await), (1, 1));
    scheduler.step(&mut pace).await;
    assert_eq!((rows(&world, false).await, world.passed().len()), (0, 52));
}

/// Five messages that fail, each of a key of its own, in the retry table.
async fn five_that_fail(failures: u32) -> World {
    let mut world = world(failures, KeyOrder::Keep).await;
    (world.worker.retries.quick_attempts, world.worker.retries.levels) =
        (1, RetryLevels::new([Duration::ZERO]));
    let keys = ["a", "b", "c", "d", "e"];
    let batch = (0..5).zip(keys).map(|(offset, key)| message(offset, key, "poison")).collect();
    assert_eq!(world.process(batch).await, Verdict::Done);
    assert_eq!(rows(&world, false).await, 5);
    world
}

/// Loops of one replica: what one has in hand is no other's, also between its failure and the decision
/// about it, where its row is unlocked and due. Each attempt is counted.
#[tokio::test]
async fn loops_of_one_replica_never_take_the_same_message() {
    const RETRIES: u32 = 10;
    let world = five_that_fail(u32::MAX).await;
    let before = world.script.calls.load(Ordering::Acquire);
    let scheduler =
        Scheduler { concurrency: 4, max_batch: 1, ..scheduler(&world, &[0; RETRIES as usize]) };
    let ended = async {
        while rows(&world, false).await > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        scheduler.shutdown.cancel();
    };
    tokio::time::timeout(5 * PATIENCE, async { tokio::join!(scheduler.run(), ended) })
        .await
        .unwrap();
    assert_eq!(world.worker.metrics.dead_letters(), 5);
    let attempts = world.script.calls.load(Ordering::Acquire) - before;
    assert_eq!(attempts, 5 * RETRIES, "each is one retry of one message");
    assert!(scheduler.taken.rows().is_empty());
}

/// What a replica had in hand when it died is nobody's in hand: all have their effect, once.
#[tokio::test]
async fn what_two_loops_had_in_hand_is_free_when_they_die() {
    let mut tries = EveryWait::default();
    while let Some(waits) = tries.next_try() {
        // All fail once more, and then no more.
        let world = five_that_fail(10).await;
        let work = async |scheduler: &Scheduler| {
            let mut pace = Pace { size: 1, outages: 0, contended: 0 };
            for _ in 0..STEPS {
                if rows(&world, false).await == 0 {
                    return;
                }
                scheduler.step(&mut pace).await;
            }
            panic!("they never end");
        };
        let first = Scheduler { max_batch: 1, ..scheduler(&world, &[0; 8]) };
        let both = async { tokio::join!(work(&first), work(&first)) };
        let died = dies_at(waits, both).await.is_none();
        drop(first);
        // A statement may still run in its thread: the writer's turn comes when it has ended.
        world
            .worker
            .deliverer
            .database
            .execute_unprepared("DELETE FROM inbox WHERE 0")
            .await
            .unwrap();
        work(&Scheduler { max_batch: 1, ..scheduler(&world, &[0; 8]) }).await;
        let mut passed = world.passed();
        passed.sort_unstable();
        let mut effects = passed.clone();
        effects.dedup();
        // A transaction that died before its commit has passed the handler, and has no effect.
        assert_eq!(effects, [0, 1, 2, 3, 4], "at wait {waits}");
        assert!(passed.len() <= 5 + 2, "at wait {waits}: {passed:?}");
        assert_eq!(world.worker.metrics.dead_letters(), 0, "at wait {waits}");
        tries.died(died);
    }
}

/// By either bound: while it waits for a retry it is remembered whatever comes behind it, and once it has had
/// its effect no longer than others.
#[tokio::test]
async fn what_went_through_retries_is_forgotten_in_its_turn() {
    const KEEP: u64 = 10;
    for by_key in [true, false] {
        let mut world = world(QUICK + 2, KeyOrder::GiveUp).await;
        world.worker.retries.levels = RetryLevels::new([Duration::ZERO]);
        Arc::get_mut(&mut world.worker.deliverer).unwrap().inbox_by_key = by_key;
        let database = world.worker.deliverer.database.clone();
        let poison = message(0, "k", "poison");
        assert_eq!(world.process(vec![poison.clone()]).await, Verdict::Done);
        for offset in 1..=15 {
            assert_eq!(world.process(vec![message(offset, "k", "fine")]).await, Verdict::Done);
        }
        make_older(&database).await;
        let forgets = async || match by_key {
            true => inbox::clean_by_key(&database, "s", KEEP, 100).await.unwrap(),
            false => inbox::clean(&database, "s", now() - inbox::LEAST_AGE, 100).await.unwrap(),
        };
        assert_eq!(forgets().await, if by_key { 5 } else { 15 }, "it waits, and is remembered");
        let scheduler = scheduler(&world, &[0, 0, 0]);
        let mut pace = Pace { size: 1, outages: 0, contended: 0 };
        for attempt in ["one fails", "another one", "one has its effect"] {
            assert_eq!((rows(&world, false).await, forgets().await), (1, 0), "{attempt}");
            scheduler.step(&mut pace).await;
        }
        assert_eq!((rows(&world, false).await, world.passed().len()), (0, 16));
        // It comes again, as where its offset was not committed.
        assert_eq!(world.process(vec![poison]).await, Verdict::Done);
        assert_eq!((world.passed().len(), world.worker.metrics.duplicates()), (16, 1));
        make_older(&database).await;
        assert_eq!((forgets().await, forgets().await), (1, 0), "by key: {by_key}");
    }
}

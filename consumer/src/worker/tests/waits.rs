//! What a batch waits for: locks of others, deadlines, tables that take nothing; and what its health says of it.

use halfmsg_db::begin_write;
use tokio::time::timeout;

use super::*;

#[tokio::test]
async fn after_a_deadline_messages_are_tried_one_by_one() {
    // The batch and the message; halving would have waited for four deadlines.
    let expected = ((0..7).collect::<Vec<_>>(), 2, 1);
    let mut found = Vec::new();
    // Where the machine stands still, others than the one that hangs outlast the deadline.
    while found.last() != Some(&expected) {
        assert!(found.len() < 5, "{found:?}");
        found.push(one_that_hangs_among_eight().await);
    }
}

/// What passed; how many attempts failed, and how many messages make way.
async fn one_that_hangs_among_eight() -> (Vec<i64>, u64, u64) {
    let mut world = world(0, KeyOrder::Keep).await;
    let deliverer = Arc::get_mut(&mut world.worker.deliverer).unwrap();
    deliverer.attempt_deadline = Duration::from_secs(5);
    let keys = ["a", "b", "c", "d", "e", "f", "g", "h"];
    let payload = |n| if n == 7 { "hangs" } else { "fine" };
    let batch = (0..8).zip(keys).map(|(n, key)| message(n, key, payload(n))).collect();
    world.worker.retries.quick_attempts = 1;
    assert_eq!(world.process(batch).await, Verdict::Done);
    let mut passed = world.passed();
    passed.sort_unstable();
    let metrics = &world.worker.metrics;
    (passed, metrics.failures(), metrics.retried())
}

/// Somebody else holds what the attempt needs, for many times as long as it may take.
#[tokio::test]
async fn a_deadline_that_another_one_is_to_blame_for_burns_no_attempt() {
    let mut world = world(1, KeyOrder::Keep).await;
    let deliverer = Arc::get_mut(&mut world.worker.deliverer).unwrap();
    deliverer.attempt_deadline = Duration::from_secs(1);
    let holder = begin_write(&world.worker.deliverer.database).await.unwrap();
    let batch = vec![message(0, "a", "poison"), message(1, "b", "fine")];
    let held = async {
        let failures = &world.worker.metrics.failures;
        // The batch, and more than its quick attempts for either message.
        while failures.get() < 1 + 2 * u64::from(QUICK) + 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        holder.rollback().await.unwrap();
    };
    let ended = timeout(5 * PATIENCE, async { tokio::join!(world.process(batch), held) });
    let (verdict, ()) = ended.await.unwrap();
    assert_eq!(verdict, Verdict::Done);
    let mut passed = world.passed();
    passed.sort_unstable();
    assert_eq!(passed, [0, 1]);
    // The one failure that is its own leaves it all other attempts.
    assert_eq!(world.worker.metrics.retried(), 0);
}

#[tokio::test]
async fn what_somebody_else_has_locked_waits_for_it_apart() {
    let world = world(u32::MAX, KeyOrder::Keep).await;
    let batch = vec![
        message(0, "a", "fine"),
        message(1, "b", "locked"),
        message(2, "b", "behind"),
        message(3, "c", "locked"),
        message(4, "d", "fine"),
    ];
    assert_eq!(world.process(batch.clone()).await, Verdict::Done);
    assert_eq!(world.passed(), [0, 4]);
    // One attempt finds them, and one is without them.
    assert_eq!(world.script.calls.load(Ordering::Acquire), 2);
    let metrics = &world.worker.metrics;
    assert_eq!((metrics.retried(), metrics.held(), metrics.dead_letters()), (2, 1, 0));
    assert_eq!(world.attempts().await, [0, 0, 0]);
    // Once more, as after a crash before its offsets were committed.
    assert_eq!(world.process(batch).await, Verdict::Done);
    assert_eq!((world.passed().len(), metrics.retried()), (2, 2));
}

/// A message with an earlier one of its key in the same attempt takes that one with it.
#[tokio::test]
async fn what_is_locked_takes_its_key_along_and_nothing_else() {
    for (order, passed) in [(KeyOrder::Keep, vec![3]), (KeyOrder::GiveUp, vec![0, 2, 3])] {
        let world = world(u32::MAX, order).await;
        let batch = vec![
            message(0, "b", "fine"),
            message(1, "b", "locked"),
            message(2, "b", "fine"),
            message(3, "c", "fine"),
        ];
        assert_eq!(world.process(batch).await, Verdict::Done);
        assert_eq!(world.passed(), passed, "{order:?}");
        // One attempt finds it, and one is without it.
        assert_eq!(world.script.calls.load(Ordering::Acquire), 2);
        let metrics = &world.worker.metrics;
        let behind = if order == KeyOrder::Keep { 2 } else { 0 };
        assert_eq!((metrics.retried(), metrics.held()), (1, behind), "{order:?}");
    }
}

/// The retry table cannot be written to at first.
#[tokio::test]
async fn what_cannot_be_set_aside_keeps_the_order_of_its_key() {
    let world = world(1, KeyOrder::Keep).await;
    world.worker.health.good(Cause::Client);
    let database = world.worker.deliverer.database.clone();
    let refuse =
        "CREATE TRIGGER refuse BEFORE INSERT ON retry BEGIN SELECT RAISE(ABORT, 'no'); END";
    database.execute_unprepared(refuse).await.unwrap();
    let batch = vec![message(0, "b", "fine"), message(1, "b", "locked"), message(2, "b", "fine")];
    assert_eq!(world.process(batch).await, Verdict::Done);
    assert_eq!(world.passed(), [0, 1, 2]);
    assert_eq!(world.worker.metrics.retried(), 0);
    assert_eq!(world.worker.health.check(), Ok(()));
}

#[tokio::test]
async fn a_lock_that_a_handler_cannot_name_burns_no_attempt_either() {
    let world = world(u32::MAX, KeyOrder::Keep).await;
    let url = format!("sqlite://{}", world.directory.path().join("a.db").display());
    let options = DbOptions { sqlite_busy_timeout: Duration::ZERO, ..DbOptions::default() };
    world.script.other.set(connect(&url, &options).await.unwrap()).unwrap();
    let keys = ["a", "b", "c", "d"];
    let payload = |n| if n == 2 { "contended" } else { "fine" };
    let batch = (0..4).zip(keys).map(|(n, key)| message(n, key, payload(n))).collect();
    assert_eq!(world.process(batch).await, Verdict::Done);
    let mut passed = world.passed();
    passed.sort_unstable();
    assert_eq!(passed, [0, 1, 3]);
    assert_eq!(world.attempts().await, [0]);
}

#[tokio::test]
async fn what_a_batch_waited_for_is_forgotten_when_it_is_let_go() {
    let world = world(0, KeyOrder::Keep).await;
    let health = &world.worker.health;
    health.bad(Cause::Database, "away".into());
    world.generation.store(2, Ordering::Release);
    assert_eq!(world.process(vec![message(0, "b", "fine")]).await, Verdict::Released);
    assert_eq!(health.check(), Err("the consumer is starting".into()));
}

/// All of a batch makes way: the database has answered, and no delivery will say so.
#[tokio::test]
async fn what_makes_way_for_a_batch_clears_what_the_batch_waited_for() {
    for payload in ["locked", "poison"] {
        let world = world(u32::MAX, KeyOrder::Keep).await;
        let health = &world.worker.health;
        health.good(Cause::Client);
        health.bad(Cause::Database, "away".into());
        assert_eq!(world.process(vec![message(0, "b", payload)]).await, Verdict::Done);
        assert_eq!((world.worker.metrics.retried(), health.check()), (1, Ok(())), "{payload}");
    }
}

/// The database answers everybody else.
#[tokio::test]
async fn what_the_database_cannot_do_for_one_message_holds_up_no_other() {
    let world = world(u32::MAX, KeyOrder::Keep).await;
    let keys = ["a", "b", "c", "d"];
    let payload = |n| if n == 1 { "too much" } else { "fine" };
    let batch = (0..4).zip(keys).map(|(n, key)| message(n, key, payload(n)));
    let batch = batch.chain([message(4, "b", "behind")]).collect();
    let verdict = timeout(PATIENCE, world.process(batch)).await.unwrap();
    assert_eq!(verdict, Verdict::Done);
    let mut passed = world.passed();
    passed.sort_unstable();
    assert_eq!(passed, [0, 2, 3]);
    let metrics = &world.worker.metrics;
    assert_eq!((metrics.retried(), metrics.held(), metrics.dead_letters()), (1, 1, 0));
    assert_eq!(world.attempts().await, [0, 0]);
}

/// Nor could it be set aside: the database is to blame, and the batch waits for it.
#[tokio::test]
async fn a_database_that_can_store_nothing_burns_no_attempt() {
    let world = world(2 * QUICK, KeyOrder::Keep).await;
    world.worker.health.good(Cause::Client);
    let database = world.worker.deliverer.database.clone();
    let refuse =
        "CREATE TRIGGER refuse BEFORE INSERT ON retry BEGIN SELECT RAISE(ABORT, 'no'); END";
    database.execute_unprepared(refuse).await.unwrap();
    let batch = vec![message(0, "a", "too much"), message(1, "a", "fine")];
    let verdict = timeout(PATIENCE, world.process(batch)).await.unwrap();
    assert_eq!(verdict, Verdict::Done);
    assert_eq!(world.passed(), [0, 1]);
    assert_eq!(world.worker.metrics.retried(), 0);
    assert_eq!(world.worker.health.check(), Ok(()));
}

//! Retries: their levels, through restarts and replicas; the order of keys; dead letters.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use halfmsg_consumer::{
    ConsumerConfig, DeadLetterFilter, DeadLetterState, KeyOrder, Replayed, RetryLevels,
};
use uuid::Uuid;

use super::ground::Ground;
use super::handler::{Effects, Rule};
use crate::suite::{Env, PATIENCE, until};

/// A handler that fails `poison…` while the switch is on.
fn failing() -> (Effects, Arc<AtomicBool>) {
    let switch = Arc::new(AtomicBool::new(true));
    let on = switch.clone();
    let rule = move |payload: &str| {
        if payload.starts_with("poison") && on.load(Ordering::Acquire) {
            Rule::Fail
        } else {
            Rule::Apply
        }
    };
    (Effects::by(rule), switch)
}

fn levels(millis: &[u64]) -> RetryLevels {
    RetryLevels::new(millis.iter().copied().map(Duration::from_millis))
}

/// Each level is waited for, then it is a dead letter with its history; once the cause is gone, a
/// replay has the effect, once.
pub(crate) async fn c36_the_levels_are_kept_then_a_dead_letter(env: Env) {
    /// Not in the first partition.
    const KEY: &str = "x";
    let ground = Ground::new(env).await;
    let (handler, failing) = failing();
    let delays = [300, 600, 900];
    let config = ConsumerConfig { retry: levels(&delays), ..ground.config() };
    let running = ground.start(config.clone(), &handler);
    // So that its partition, its offset and its attempts are different numbers.
    for n in 0..7 {
        ground.send(KEY, &format!("fine{n}")).await;
    }
    // It comes alone: in a batch it would be given to the handler for each halving, too.
    ground.sees(7).await;
    let id = Uuid::now_v7();
    let (partition, offset) = ground.send_as(id, KEY, "poison").await;
    assert!(partition > 0 && offset > i64::from(partition), "{partition}@{offset}");
    running.counts("a dead letter", |metrics| metrics.dead_letters() == 1).await;
    let times = handler.times("poison");
    assert_eq!(times.len(), 2 + delays.len(), "the quick attempts, and one for each level");
    for (level, delay) in delays.iter().enumerate() {
        let (before, after) = (times[level + 1], times[level + 2]);
        let waited = after - before;
        assert!(waited >= Duration::from_millis(*delay), "level {level}: {waited:?}");
    }
    let letters = running.dead_letters.list(&DeadLetterFilter::default(), None, 10).await;
    let letters = letters.expect("the table");
    let [letter] = letters.as_slice() else { panic!("{letters:?}") };
    assert_eq!(letter.transaction_id, Some(id));
    assert_eq!((letter.attempts, letter.state), (5, DeadLetterState::Open));
    let origin = (letter.topic.as_str(), letter.partition, letter.offset);
    assert_eq!(origin, (ground.topic.as_str(), partition, offset));
    assert_eq!(letter.key.as_deref(), Some(KEY));
    assert!(letter.cause.contains("told to fail"));
    let span = (letter.last_failed_at - letter.first_failed_at).to_std().expect("positive");
    assert!(span >= Duration::from_millis(delays.iter().sum()), "{span:?}");
    replay(&ground, &running.dead_letters, letter.id, &failing).await;
    running.stop().await;
    let fine = (0..7).map(|n| format!("fine{n}"));
    ground.one_each(fine.chain(["poison".to_owned()])).await;
}

/// Queued while the cause is there it is open again; when it is gone, replayed.
async fn replay(
    ground: &Ground,
    letters: &halfmsg_consumer::DeadLetters,
    id: Uuid,
    failing: &AtomicBool,
) {
    let state = async |state, attempts| {
        until(PATIENCE, "the dead letter's state", async || {
            let letter = letters.find(id).await.expect("the table").expect("it is kept");
            let found = (letter.state, letter.attempts);
            if found == (state, attempts) { Ok(()) } else { Err(format!("{found:?}")) }
        })
        .await;
    };
    letters.queue(id).await.expect("it is open");
    state(DeadLetterState::Open, 8).await;
    failing.store(false, Ordering::Release);
    let queued = letters.queue_all(&DeadLetterFilter::default(), None).await;
    assert_eq!(queued.expect("the table"), 1);
    state(DeadLetterState::Replayed, 8).await;
    assert!(matches!(letters.replay(id).await, Ok(Replayed::Before(_))));
    assert_eq!(ground.rows("retry").await, 0);
    let effects = ground.effects().await;
    assert_eq!(effects.iter().filter(|payload| *payload == "poison").count(), 1);
}

/// The process ends between the failure and the retry.
pub(crate) async fn c36_a_retry_scheduled_before_a_restart_fires_after_it(env: Env) {
    let ground = Ground::new(env).await;
    let (handler, failing) = failing();
    let config = ConsumerConfig { retry: levels(&[2_000]), ..ground.config() };
    let running = ground.start(config.clone(), &handler);
    ground.send("k", "poison").await;
    running.counts("a retry", |metrics| metrics.retried() == 1).await;
    let failed = *handler.times("poison").last().expect("it failed");
    running.tear_off().await;
    failing.store(false, Ordering::Release);
    let running = ground.start(config, &handler);
    ground.send("k2", "marker").await;
    ground.sees(2).await;
    let waited = *handler.times("poison").last().expect("it was tried again") - failed;
    assert!(waited >= Duration::from_secs(2), "{waited:?}");
    running.stop().await;
    ground.one_each(["marker", "poison"].map(str::to_owned)).await;
    assert_eq!(ground.rows("retry").await, 0);
}

/// Later messages of the key wait behind the one that fails, through a restart; other keys go on.
pub(crate) async fn c36_a_key_keeps_its_order_through_retries(env: Env) {
    let ground = Ground::new(env).await;
    let (handler, failing) = failing();
    let retry = RetryLevels { max_retries: u32::MAX, ..levels(&[100]) };
    let config = ConsumerConfig { retry, key_order: KeyOrder::Keep, ..ground.config() };
    let running = ground.start(config.clone(), &handler);
    ground.send("a", "poison").await;
    running.counts("a retry", |metrics| metrics.retried() == 1).await;
    ground.send_all((0..20).map(|n| ("a".into(), format!("a{n:02}")))).await;
    ground.send_all((0..20).map(|n| ("b".into(), format!("b{n:02}")))).await;
    running.counts("20 held", |metrics| metrics.held() == 20).await;
    let others = ground.sees(20).await;
    assert!(others.iter().all(|payload| payload.starts_with('b')), "{others:?}");
    running.tear_off().await;
    let running = ground.start(config, &handler);
    ground.send_all((20..30).map(|n| ("a".into(), format!("a{n:02}")))).await;
    running.counts("10 more", |metrics| metrics.held() == 10).await;
    failing.store(false, Ordering::Release);
    let effects = ground.sees(51).await;
    running.stop().await;
    let of_a: Vec<_> = effects.into_iter().filter(|payload| !payload.starts_with('b')).collect();
    let expected: Vec<_> =
        ["poison".to_owned()].into_iter().chain((0..30).map(|n| format!("a{n:02}"))).collect();
    assert_eq!(of_a, expected);
    assert_eq!((ground.effects().await.len(), ground.rows("retry").await), (51, 0));
}

/// Several replicas work on the same retries, some of which fail at first.
pub(crate) async fn c36_replicas_share_retries_and_each_has_one_effect(env: Env) {
    const MESSAGES: usize = 200;
    let ground = Ground::new(env).await;
    let (handler, failing) = failing();
    let retry = RetryLevels { max_retries: u32::MAX, ..levels(&[50]) };
    let config =
        ConsumerConfig { retry, quick_attempts: 1, key_order: KeyOrder::GiveUp, ..ground.config() };
    let all = || (0..MESSAGES).map(|n| format!("poison{n}"));
    ground.send_all(all().map(|payload| (payload.clone(), payload))).await;
    let first = ground.start(config.clone(), &handler);
    first.counts("all wait", |metrics| metrics.retried() == MESSAGES as u64).await;
    // Every replica has a scheduler, whether the group gave it partitions or not.
    let others = [0, 1].map(|_| ground.start(config.clone(), &handler));
    failing.store(false, Ordering::Release);
    ground.sees(MESSAGES).await;
    first.stop().await;
    for other in others {
        other.stop().await;
    }
    ground.one_each(all()).await;
    assert_eq!(ground.rows("retry").await, 0);
}

/// Three replicas, one of them torn off again and again, a handler that fails every third time, and
/// messages that come while earlier ones of their keys are retried, put behind and finished by
/// others: none overtakes, none is stuck, each has one effect.
pub(crate) async fn c36_a_key_keeps_its_order_among_replicas_that_retry(env: Env) {
    const KEYS: usize = 6;
    const MESSAGES: usize = 600;
    const ROUNDS: usize = 6;
    let ground = Ground::new(env).await;
    let calls = Arc::new(AtomicUsize::new(0));
    let handler = Effects::by(move |_| {
        // Not in step with batches or keys.
        let call = calls.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x9e37_79b9) >> 7;
        if call.is_multiple_of(3) { Rule::Fail } else { Rule::Apply }
    });
    let config = ConsumerConfig {
        key_order: KeyOrder::Keep,
        quick_attempts: 1,
        max_batch: 5,
        retry: levels(&[20; 60]),
        retry_poll: Duration::from_millis(20),
        ..ground.shared()
    };
    let replicas = [ground.start(config.clone(), &handler), ground.start(config.clone(), &handler)];
    let text =
        |number: usize| (format!("k{}", number % KEYS), format!("{}-{number:05}", number % KEYS));
    for round in 0..ROUNDS {
        let third = ground.start(config.clone(), &handler);
        let part = MESSAGES / ROUNDS;
        ground.send_all((round * part..(round + 1) * part).map(text)).await;
        // In the middle of the work, whatever it is at.
        ground.sees_within(round * part + part / 2, 3 * PATIENCE).await;
        third.tear_off().await;
    }
    let effects = ground.sees_within(MESSAGES, 3 * PATIENCE).await;
    for key in 0..KEYS {
        let of_key: Vec<_> =
            effects.iter().filter(|one| one.starts_with(&format!("{key}-"))).collect();
        assert!(of_key.is_sorted(), "the order of key {key} is not kept: {of_key:?}");
    }
    until(PATIENCE, "an empty retry table", async || match ground.rows("retry").await {
        0 => Ok(()),
        rows => Err(format!("{rows} are stuck")),
    })
    .await;
    let held: u64 = replicas.iter().map(|one| one.metrics.held()).sum();
    assert!(held > 0, "nothing was put behind another one");
    for replica in replicas {
        replica.stop().await;
    }
    ground.one_each((0..MESSAGES).map(|number| text(number).1)).await;
}

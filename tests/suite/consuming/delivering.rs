//! One effect for each message: repeated, beside poison, at once with others, held still, through
//! members that come and go.

use std::collections::BTreeMap;
use std::time::Duration;

use halfmsg_consumer::{ConsumerConfig, DeadLetterFilter, RetryLevels};
use halfmsg_service_kit::db::{DbOptions, connect};
use sea_orm::sea_query::{Expr, ExprTrait, Query};
use sea_orm::{ConnectionTrait, DatabaseConnection};
use uuid::Uuid;

use super::ground::{Ground, Running};
use super::handler::{Effects, Rule};
use crate::suite::database::patient;
use crate::suite::services::proxy::Proxy;
use crate::suite::{Env, PATIENCE, until};

/// The same message a hundred times.
pub(crate) async fn c34_the_same_message_100_times_has_one_effect(env: Env) {
    let ground = Ground::new(env).await;
    let id = Uuid::now_v7();
    for _ in 0..100 {
        ground.send_as(id, "k", "once").await;
    }
    let running = ground.start(ground.config(), &Effects::all());
    running.counts("99 duplicates", |metrics| metrics.duplicates() >= 99).await;
    running.stop().await;
    ground.one_each(["once".to_owned()]).await;
}

/// What goes wrong costs itself, and a logarithm of transactions.
pub(crate) async fn c37_poison_in_500_costs_only_itself(env: Env) {
    let ground = Ground::new(env).await;
    let rule = |payload: &str| match payload {
        "m123" => Rule::Fail,
        "m400" => Rule::Undecodable,
        _ => Rule::Apply,
    };
    let (handler, all) = (Effects::by(rule), || (0..500).map(|n| format!("m{n}")));
    ground.send_all(all().map(|payload| (payload.clone(), payload))).await;
    let running = ground.start(ground.config(), &handler);
    running.counts("two dead letters", |metrics| metrics.dead_letters() == 2).await;
    ground.sees(498).await;
    let letters = running.dead_letters.list(&DeadLetterFilter::default(), None, 10).await;
    let letters = letters.expect("the table");
    let attempts: BTreeMap<_, _> =
        letters.iter().map(|letter| (letter.key.as_deref(), letter.attempts)).collect();
    assert_eq!(attempts, BTreeMap::from([(Some("m123"), 2), (Some("m400"), 1)]));
    // For each of the two at most log2(500) on the way down, for some two batches, and its own.
    let failures = running.metrics.failures();
    assert!(failures <= 2 * (2 * 9 + 2), "{failures} failures");
    running.stop().await;
    ground.one_each(all().filter(|payload| payload != "m123" && payload != "m400")).await;
}

/// PostgreSQL ends such a transaction by rolling it back, and says nothing of it.
pub(crate) async fn c34_a_swallowed_failure_is_no_success(env: Env) {
    let ground = Ground::new(env).await;
    let rule = |payload: &str| if payload == "bad" { Rule::Swallow } else { Rule::Apply };
    let running = ground.start(ground.config(), &Effects::by(rule));
    ground.send_all(["good", "bad", "fine"].map(|text| (text.into(), text.into()))).await;
    running.counts("a dead letter", |metrics| metrics.dead_letters() == 1).await;
    ground.sees(2).await;
    let letters = running.dead_letters.list(&DeadLetterFilter::default(), None, 10).await;
    let cause = &letters.expect("the table")[0].cause;
    assert!(cause.contains("passed over a statement that failed"), "{cause}");
    running.stop().await;
    ground.one_each(["good", "fine"].map(str::to_owned)).await;
}

/// Held still it takes nothing, though another subscriber of the same topic does.
pub(crate) async fn consuming_holds_still_and_goes_on(env: Env) {
    let ground = Ground::new(env).await;
    let running = ground.start(ground.config(), &Effects::all());
    ground.send("k", "before").await;
    ground.sees(1).await;
    running.handle.pause();
    until(PATIENCE, "it stands still", async || {
        let stands = running.shows("halfmsg_consumer_paused", "1");
        if stands { Ok(()) } else { Err(running.sample()) }
    })
    .await;
    ground.send_all((0..100).map(|n| (format!("k{n}"), format!("m{n}")))).await;
    let subscriber = ground.env.named("another");
    let another = ground.start(ConsumerConfig { subscriber, ..ground.config() }, &Effects::all());
    another.counts("the other one", |metrics| metrics.messages() == 101).await;
    another.stop().await;
    assert_eq!(running.metrics.messages(), 1);
    running.handle.resume();
    running.counts("it goes on", |metrics| metrics.messages() == 101).await;
    running.stop().await;
    assert_eq!(ground.effects().await.len(), 202);
}

/// What is old is forgotten, in batches; what waits for a retry or is an open dead letter is not.
pub(crate) async fn consuming_forgets_by_age_and_by_key(env: Env) {
    let ground = Ground::new(env).await;
    let rule = |payload: &str| match payload {
        "waits" => Rule::Fail,
        "dead" => Rule::Undecodable,
        _ => Rule::Apply,
    };
    let config = ConsumerConfig {
        kafka: ground.kafka_of_one(),
        retry: RetryLevels::new([Duration::from_secs(3_600)]),
        inbox_retention: Some(Duration::from_secs(600)),
        clean_interval: Duration::from_millis(100),
        ..ground.config()
    };
    let running = ground.start(config, &Effects::by(rule));
    let (waits, dead) = (ground.send("w", "waits").await, ground.send("d", "dead").await);
    let fresh = ground.send("f", "fresh").await;
    ground.send_all((0..2_500).map(|n| (format!("k{n}"), format!("m{n}")))).await;
    running.counts("all", |m| m.messages() == 2_501 && m.retried() + m.dead_letters() == 2).await;
    age(&ground.pool, &fresh.to_string()).await;
    until(PATIENCE, "the old ones to be forgotten", async || match ground.rows("inbox").await {
        3 => Ok(()),
        rows => Err(format!("{rows} rows")),
    })
    .await;
    for (id, forgotten) in [(waits, false), (dead, false), (fresh, true), (fresh, false)] {
        let done = running.inbox.forget(&id.to_string()).await.expect("the table");
        assert_eq!(done, forgotten);
    }
    // The barrier still knows those two, and no longer the third.
    for (id, key, payload) in [(waits, "w", "waits"), (dead, "d", "dead"), (fresh, "f", "fresh")] {
        ground.send_as(id, key, payload).await;
    }
    running.counts("again", |m| m.messages() == 2_502 && m.duplicates() == 2).await;
    running.stop().await;
}

/// Of a key with many messages the newest are remembered, by a bound of its own; of others all.
pub(crate) async fn consuming_bounds_what_it_remembers_of_a_key(env: Env) {
    const KEEP: u64 = 30;
    const TOGETHER: usize = 10;
    let ground = Ground::new(env).await;
    let config = ConsumerConfig {
        kafka: ground.kafka_of_one(),
        max_batch: TOGETHER,
        inbox_retention: None,
        inbox_per_key: Some(KEEP),
        clean_interval: Duration::from_millis(100),
        ..ground.config()
    };
    let running = ground.start(config, &Effects::all());
    let oldest = ground.send("hot", "oldest").await;
    ground.send_all((0..300).map(|n| ("hot".to_owned(), format!("h{n}")))).await;
    ground.send_all((0..30).map(|n| (format!("k{n}"), format!("m{n}")))).await;
    let newest = ground.send("hot", "newest").await;
    running.counts("all", |metrics| metrics.messages() == 332).await;
    // Of those of one transaction nobody can tell which is newer.
    let least = 30 + usize::try_from(KEEP).expect("few");
    until(PATIENCE, "the old ones to be forgotten", async || match ground.rows("inbox").await {
        rows if (least..=least + TOGETHER).contains(&rows) => Ok(()),
        rows => Err(format!("{rows} rows")),
    })
    .await;
    // The newest is known; for the oldest the promise has ended.
    ground.send_as(newest, "hot", "newest").await;
    ground.send_as(oldest, "hot", "oldest").await;
    running.counts("again", |m| (m.messages(), m.duplicates()) == (333, 1)).await;
    running.stop().await;
}

/// Makes everything an hour older, but for one.
async fn age(pool: &DatabaseConnection, but: &str) {
    let mut update = Query::update();
    update
        .table("inbox")
        .value("received_at", chrono::Utc::now() - chrono::TimeDelta::hours(1))
        .and_where(Expr::col("message_key").ne(but));
    pool.execute(&update).await.expect("the table");
}

/// Different keys at once, each in its order.
pub(crate) async fn consuming_keys_run_at_once_and_keep_their_order(env: Env) {
    const KEYS: usize = 8;
    let ground = Ground::new(env).await;
    let nap = Duration::from_millis(150);
    let all = || (0..160).map(|n| (format!("k{}", n % KEYS), format!("{}-{n:03}", n % KEYS)));
    ground.send_all(all()).await;
    let handler = Effects::by(move |_| Rule::Slow(nap));
    let running = ground.start(ConsumerConfig { concurrency: 4, ..ground.config() }, &handler);
    let effects = ground.sees(160).await;
    // One after the other no two begin within one nap, on whatever machine.
    let first = |payload: String| handler.times(&payload).first().copied();
    let mut begun: Vec<_> = all().filter_map(|(_, payload)| first(payload)).collect();
    begun.sort_unstable();
    let at_once = begun.windows(2).filter(|two| two[1] - two[0] < nap).count();
    println!("{at_once} of 160 messages of {nap:?} began while another one was handled");
    assert!(at_once >= 40, "one after the other: {at_once} of 160 at once");
    for key in 0..KEYS {
        let of_key = effects.iter().filter(|payload| payload.starts_with(&format!("{key}-")));
        assert!(of_key.is_sorted());
    }
    running.stop().await;
    ground.one_each(all().map(|(_, payload)| payload)).await;
}

/// A handler that takes longer than `max.poll.interval.ms` is neither repeated nor taken for dead:
/// its offsets count.
pub(crate) async fn consuming_long_a_long_handler_keeps_its_partitions(env: Env) {
    const TRIES: usize = 3;
    let ground = Ground::new(env).await;
    let mut lost = Vec::new();
    while lost.len() < TRIES {
        // A group may take a machine that stands still for dead.
        match a_long_handler(&ground, lost.len()).await {
            Ok(()) => return,
            Err(why) => lost.push(why),
        }
    }
    panic!("{lost:?}");
}

/// One try, with a topic and a subscriber of its own.
async fn a_long_handler(ground: &Ground, number: usize) -> Result<(), String> {
    let ground = ground.at(&ground.env.topic(&format!("in-{number}")).await);
    let [long, behind, marker] =
        ["long", "behind", "marker"].map(|what| format!("{what}-{number}"));
    let before = ground.effects().await.len();
    let mut config = ConsumerConfig {
        patience: Duration::from_secs(1),
        subscriber: ground.env.named(&format!("subscriber-{number}")),
        ..ground.shared()
    };
    config.kafka.properties.insert("max.poll.interval.ms".into(), "10000".into());
    let handler = Effects::by(|payload| match payload.starts_with("long") {
        true => Rule::Slow(Duration::from_secs(13)),
        false => Rule::Apply,
    });
    let running = ground.start(config.clone(), &handler);
    ground.send("k", &long).await;
    until(PATIENCE, "it begins", async || handler.times(&long).first().copied().ok_or("not yet"))
        .await;
    ground.send("k", &behind).await;
    let is_told = until(PATIENCE, "the lag of its partition", async || {
        // Nothing lags any more if the machine stood still for as long as the handler takes.
        let is_over = ground.effects().await.len() >= before + 2;
        let sample = running.sample();
        let lags =
            |line: &str| line.starts_with("halfmsg_consumer_lag_records{") && !line.ends_with(" 0");
        let in_flight = running.shows("halfmsg_consumer_in_flight", "1");
        match in_flight && sample.lines().any(lags) {
            true => Ok(true),
            false if is_over => Ok(false),
            false => Err(sample),
        }
    })
    .await;
    ground.sees(before + 2).await;
    let (times, again) = (handler.times(&long).len(), running.metrics.duplicates());
    running.stop().await;
    let running = ground.start(config, &handler);
    ground.send("k", &marker).await;
    ground.sees(before + 3).await;
    let after = running.metrics.duplicates();
    let is_counted = running.shows("halfmsg_consumer_handler_seconds_count", "1");
    running.stop().await;
    let mut effects = ground.effects().await.split_off(before);
    effects.sort_unstable();
    assert_eq!(effects, [behind, long, marker], "one effect each");
    match (times, again, after) == (1, 0, 0) && is_told && is_counted {
        true => Ok(()),
        false => Err(format!(
            "{times} times, {again} duplicates, {after} behind the restart, lag told: {is_told}, \
             counted: {is_counted}"
        )),
    }
}

/// Members join, leave and are torn off under load, in the middle of their batches.
pub(crate) async fn c38_long_members_come_and_go_in_the_middle_of_batches(env: Env) {
    const MESSAGES: usize = 6_000;
    let ground = Ground::new(env).await;
    let handler = Effects::by(|_| Rule::Slow(Duration::from_millis(1)));
    let all = || (0..MESSAGES).map(|n| (format!("k{}", n % 100), format!("m{n}")));
    ground.send_all(all()).await;
    let member = || ground.start(ConsumerConfig { max_batch: 50, ..ground.shared() }, &handler);
    let works = async |running: &Running| {
        running.counts("it works", |metrics| metrics.messages() > 0).await;
    };
    let mut present = vec![member()];
    works(&present[0]).await;
    for round in 0..3 {
        present.push(member());
        ground.send_all((0..50).map(|n| (format!("k{n}"), format!("r{round}-{n}")))).await;
        ground.sees((round + 1) * MESSAGES / 8).await;
        let first = present.remove(0);
        if round % 2 == 0 {
            first.tear_off().await
        } else {
            first.stop().await
        }
        works(&present[0]).await;
    }
    let extra = (0..3).flat_map(|round| (0..50).map(move |n| format!("r{round}-{n}")));
    ground.sees(MESSAGES + 150).await;
    for running in present {
        running.stop().await;
    }
    ground.one_each(all().map(|(_, payload)| payload).chain(extra)).await;
}

/// The database goes away and comes back: no attempt is counted, nothing is lost or doubled.
pub(crate) async fn c36_a_database_that_is_away_burns_no_attempts(env: Env) {
    let ground = Ground::new(env).await;
    let url = ground.database_url();
    let (head, rest) = url.rsplit_once('@').expect("an address with a user");
    let (host, name) = rest.split_once('/').expect("an address with a database");
    let proxy = Proxy::to(host).await;
    let url = format!("{head}@127.0.0.1:{}/{name}", proxy.port());
    let options = DbOptions { acquire_timeout: Duration::from_millis(500), ..patient() };
    let pool = connect(&url, &options).await.expect("the proxy passes on");
    let config = ConsumerConfig { quick_attempts: 1, ..ground.config() };
    let running = ground.start(ConsumerConfig { database: pool, ..config }, &Effects::all());
    ground.send("k", "before").await;
    ground.sees(1).await;
    proxy.cut();
    ground.send_all((0..50).map(|n| (format!("k{n}"), format!("m{n}")))).await;
    running.counts("failures", |metrics| metrics.failures() >= 5).await;
    assert!(running.health.check().is_err());
    proxy.mend().await;
    ground.sees(51).await;
    assert_eq!((running.metrics.retried(), running.metrics.dead_letters()), (0, 0));
    running.stop().await;
    let all = (0..50).map(|n| format!("m{n}")).chain(["before".to_owned()]);
    ground.one_each(all).await;
}

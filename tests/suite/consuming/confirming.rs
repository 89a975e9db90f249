//! The inbox bounded by key, and a coordinator that does not confirm what was handled: nothing is handed
//! out that could push out of the inbox what comes again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use halfmsg_consumer::ConsumerConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{Offset, TopicPartitionList};
use sea_orm::ConnectionTrait;
use sea_orm::sea_query::{Expr, ExprTrait, Query};
use tokio::time::Instant;

use super::ground::Ground;
use super::handler::{Effects, Rule};
use crate::suite::env::PARTITIONS;
use crate::suite::{Env, PATIENCE, until};

/// What the inbox remembers of a key: as few as it may be told with these batches.
const KEEP: u64 = 3 * TOGETHER as u64;
const TOGETHER: usize = 10;
/// At most so many are handled beyond the confirmed offset: as README.md says, less one batch.
const BEYOND: usize = 2 * TOGETHER;
/// What fails for so long shows in the health.
const SHOWS_AFTER: Duration = Duration::from_secs(30);
/// The cleaning by key leaves alone what is younger.
const CLEANED_AFTER: chrono::TimeDelta = chrono::TimeDelta::seconds(11);
/// Until a group has given its dead members up.
const REJOINED_WITHIN: Duration = Duration::from_secs(300);
/// How long a question about offsets may take.
const ASK_DEADLINE: Duration = PATIENCE;

/// Where the broker keeps the offsets of all groups.
const OFFSETS: &str = "__consumer_offsets";
/// Less than any offset needs there, and Kafka's default.
const NO_ROOM: &str = "100";
const ROOM: &str = "1048588";

fn config(ground: &Ground) -> ConsumerConfig {
    ConsumerConfig {
        max_batch: TOGETHER,
        inbox_retention: None,
        inbox_per_key: Some(KEEP),
        clean_interval: Duration::from_millis(100),
        ..ground.shared()
    }
}

/// All of one key.
fn hot(numbers: std::ops::Range<usize>) -> impl Iterator<Item = (String, String)> {
    numbers.map(|n| ("hot".to_owned(), format!("h{n}")))
}

fn payloads(count: usize) -> impl Iterator<Item = String> {
    hot(0..count).map(|(_, payload)| payload)
}

/// How many messages of the topic lie before the offsets that the group's coordinator has.
pub(super) async fn confirmed(ground: &Ground, group: &str) -> usize {
    let (kafka, topic, group) = (ground.env.kafka(), ground.topic.clone(), group.to_owned());
    let asked = tokio::task::spawn_blocking(move || {
        let client: BaseConsumer = kafka.consumer(&group).create().expect("a client");
        let mut partitions = TopicPartitionList::new();
        partitions.add_partition_range(&topic, 0, PARTITIONS - 1);
        client.committed_offsets(partitions, ASK_DEADLINE).expect("the coordinator tells")
    });
    let offsets = asked.await.expect("it is asked");
    let of = |offset| match offset {
        Offset::Offset(offset) => usize::try_from(offset).expect("not negative"),
        _ => 0,
    };
    offsets.elements().iter().map(|element| of(element.offset())).sum()
}

/// The coordinator cannot write offsets down, but lives: it keeps the group and tells what it has. Messages
/// come meanwhile.
pub(crate) async fn consuming_long_nothing_is_handled_far_beyond_what_is_confirmed(env: Env) {
    const FIRST: usize = 5;
    const ALL: usize = 205;
    let ground = Ground::new(env.with_own_broker().await).await;
    let config = config(&ground);
    let group = config.subscriber.clone();
    let running = ground.start(config, &Effects::all());
    ground.send_all(hot(0..FIRST)).await;
    ground.sees(FIRST).await;
    until(PATIENCE, "the first offsets", async || match confirmed(&ground, &group).await {
        FIRST => Ok(()),
        other => Err(other.to_string()),
    })
    .await;
    let offsets_have = async |bytes| {
        let settings = [("cleanup.policy", "compact"), ("max.message.bytes", bytes)];
        ground.env.broker.alter_topic(OFFSETS, &settings).await;
    };
    offsets_have(NO_ROOM).await;
    let began = Instant::now();
    ground.send_all(hot(FIRST..ALL)).await;
    until(SHOWS_AFTER + PATIENCE, "the health to tell of it", async || {
        // In this order: what is confirmed in between only makes it stricter than it was.
        let handled = ground.effects().await.len();
        let confirmed = confirmed(&ground, &group).await;
        assert!(handled <= confirmed + BEYOND, "{handled} are handled, {confirmed} confirmed");
        match running.health.check() {
            Err(why) if why.contains("confirms no offsets") => Ok(()),
            other => Err(format!("{other:?}; {handled} are handled, {confirmed} confirmed")),
        }
    })
    .await;
    assert!(began.elapsed() >= SHOWS_AFTER, "after {:?}", began.elapsed());
    let (handled, confirmed) = (ground.effects().await.len(), confirmed(&ground, &group).await);
    assert!(handled > confirmed && handled < ALL, "{handled} handled, {confirmed} confirmed");
    offsets_have(ROOM).await;
    ground.sees(ALL).await;
    until(PATIENCE, "the health", async || running.health.check()).await;
    running.stop().await;
    ground.one_each(payloads(ALL)).await;
}

/// The broker is killed while messages that the client has fetched already wait. They are handled as far
/// as the bound goes; those whose offsets the coordinator never heard of come again when it is back, after
/// the inbox was cleaned, and have no second effect.
pub(crate) async fn consuming_long_what_the_coordinator_never_heard_of_has_one_effect(env: Env) {
    never_heard_of(env, false).await;
}

/// The same, and the consumer dies while it waits for the coordinator: the next one reads again what was
/// handled beyond what is confirmed, and the inbox knows all of it.
pub(crate) async fn consuming_long_whoever_dies_waiting_for_the_coordinator_is_followed(env: Env) {
    never_heard_of(env, true).await;
}

async fn never_heard_of(env: Env, dies: bool) {
    const ALL: usize = 300;
    /// More than is remembered, so that there is something to forget.
    const BEFORE: usize = 100;
    let ground = Ground::new(env.with_own_broker().await).await;
    ground.send_all(hot(0..ALL)).await;
    // Slow enough that some wait when the broker is gone, however long that takes.
    let gone = Arc::new(AtomicBool::new(false));
    let is_gone = Arc::clone(&gone);
    let handler = Effects::by(move |payload| {
        let number = payload.strip_prefix('h').and_then(|number| number.parse().ok());
        let waits = number.is_some_and(|number: usize| number >= BEFORE);
        let millis = if waits && !is_gone.load(Ordering::Acquire) { 200 } else { 20 };
        Rule::Slow(Duration::from_millis(millis))
    });
    let running = ground.start(config(&ground), &handler);
    ground.sees(BEFORE).await;
    ground.env.broker.stop().await;
    gone.store(true, Ordering::Release);
    let handled_before = ground.effects().await.len();
    until(PATIENCE, "it stands still", async || {
        let stands = running.shows("halfmsg_consumer_paused", "1");
        if stands { Ok(()) } else { Err(running.sample()) }
    })
    .await;
    until(PATIENCE, "the inbox to be cleaned of all that it may forget", async || {
        let (young, rows) = (young(&ground).await, ground.rows("inbox").await);
        let most = usize::try_from(KEEP).expect("few") + TOGETHER;
        if young == 0 && rows <= most { Ok(()) } else { Err(format!("{young} young of {rows}")) }
    })
    .await;
    let handled = ground.effects().await.len();
    // Nothing is confirmed that was not handled before.
    assert!(handled <= handled_before + BEYOND, "{handled_before}, then {handled}");
    assert!(handled < ALL, "all were handled before the broker was away");
    let running = if dies {
        assert!(running.shows("halfmsg_consumer_paused", "1"), "it waits for the coordinator");
        running.tear_off().await;
        ground.env.broker.resume().await;
        ground.start(config(&ground), &handler)
    } else {
        ground.env.broker.resume().await;
        running
    };
    ground.sees_within(ALL, REJOINED_WITHIN).await;
    until(PATIENCE, "the health", async || running.health.check()).await;
    let again = usize::try_from(running.metrics.duplicates()).expect("few");
    println!("{handled} of {ALL} before the broker was back, {again} of them came again");
    // What dies here is a task: its client may still say what it had to say, once the broker is back.
    let least = usize::from(!dies);
    assert!((least..=BEYOND).contains(&again), "{again} came again");
    running.stop().await;
    ground.one_each(payloads(ALL)).await;
}

/// The rows of the inbox that no cleaning by key may forget yet.
async fn young(ground: &Ground) -> usize {
    let mut select = Query::select();
    select
        .expr(Expr::val(1))
        .from("inbox")
        .and_where(Expr::col("received_at").gt(chrono::Utc::now() - CLEANED_AFTER));
    ground.pool.query_all(&select).await.expect("the table").len()
}

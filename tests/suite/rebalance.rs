//! Rows 23, 27 and 31, on real Kafka: replicas that come and go, and two that both believe to own a
//! partition. Nothing is lost, nothing comes twice, and a key keeps its order.

use std::time::Duration;

use halfmsg_producer::{Assignment, Emission, ProducerConfig, TransactionProducer};
use tokio::time::{Instant, sleep};

use super::env::SESSION_TIMEOUT;
use super::load::Load;
use super::metrics::metric;
use super::random::Random;
use super::setup::Setup;
use super::told::Do;
use super::{Env, PATIENCE, until};

/// How long replicas come and go.
const STORM: Duration = Duration::from_secs(60);
/// The longest pause between two changes; there may be none.
const LONGEST_CALM_MS: u64 = 3_000;
/// Changes, however long they take on a machine that stands still.
const LEAST_CHANGES: usize = 6;
/// Besides the one that stays.
const GUESTS: usize = 2;
/// Transactions while the replicas are so many.
const BETWEEN: usize = 200;

/// Replicas start, stop in good order and are dropped without a word of their program, which is an orderly
/// end as well, at any moment of each other's joining and leaving. Deaths are in `services::replicas`.
pub(crate) async fn c27_long_replicas_come_and_go(env: Env) {
    let config = env.asking_group().await;
    storm(env, config, STORM).await;
}

/// The same while the store is trimmed as often as can be, and hardly a body is kept in memory.
pub(crate) async fn c27_long_with_trimming_and_a_small_budget(env: Env) {
    let mut config = env.asking_group().await;
    config.trim_interval = Some(Duration::from_millis(100));
    config.body_budget_bytes = 64;
    storm(env, config, STORM / 3).await;
}

/// At least once: what is delivered again is not lost either.
pub(crate) async fn c27_long_at_least_once_loses_nothing(env: Env) {
    let mut config = env.asking_group().await;
    config.emission = Emission::AtLeastOnce;
    storm(env, config, STORM / 3).await;
}

async fn storm(env: Env, config: ProducerConfig, lasts: Duration) {
    let setup = Setup::with(env, config, Do::Rollback).await;
    let load = Load::on(&setup);
    let mut random = Random::new(27);
    let mut guests: [Option<TransactionProducer>; GUESTS] = [const { None }; GUESTS];
    let (end, mut changes) = (Instant::now() + lasts, 0);
    while Instant::now() < end || changes < LEAST_CHANGES {
        let guest = &mut guests[usize::try_from(random.below(2)).expect("a few")];
        match guest.take() {
            None => *guest = Some(Env::start(&setup.config, &setup.told).await),
            Some(leaves) if random.chance(50) => leaves.shutdown().await,
            Some(dropped) => drop(dropped),
        }
        changes += 1;
        if random.chance(70) {
            sleep(Duration::from_millis(random.below(LONGEST_CALM_MS))).await;
        }
    }
    println!("{changes} changes");
    drop(guests);
    load.ends(&setup).await;
    setup.producer.shutdown().await;
}

/// One replica, three, and then another one alone.
pub(crate) async fn c27_long_scaled_up_and_down(env: Env) {
    let mut setup = Setup::asking(env, Do::Rollback).await;
    let load = Load::on(&setup);
    load.goes_on(BETWEEN).await;
    let second = Env::start(&setup.config, &setup.told).await;
    let third = Env::start(&setup.config, &setup.told).await;
    members(&setup, 3).await;
    fence_nobody([&setup.producer, &second, &third], &load).await;
    second.shutdown().await;
    load.go_through(&third);
    let first = std::mem::replace(&mut setup.producer, third);
    first.shutdown().await;
    members(&setup, 1).await;
    load.goes_on(BETWEEN).await;
    load.ends(&setup).await;
    setup.producer.shutdown().await;
}

/// Replicas that share the partitions go on and fence nobody, once all have theirs.
async fn fence_nobody(replicas: [&TransactionProducer; 3], load: &Load) {
    until(PATIENCE, "the partitions of all", async || {
        replicas.iter().try_for_each(|replica| replica.health())
    })
    .await;
    let lost = || replicas.map(|replica| metric(replica, "halfmsg_lost_lanes_total"));
    let before = lost();
    load.goes_on(BETWEEN).await;
    assert_eq!(lost(), before, "lanes are lost, though nobody comes or goes");
}

/// Waits until the group has so many members, all of which know their partitions.
pub(crate) async fn members(setup: &Setup, count: usize) {
    until(PATIENCE, &format!("a group of {count}"), async || {
        let group = setup.env.broker.group(&setup.config.store_topic()).await?;
        if group == ("Stable".to_owned(), count) { Ok(()) } else { Err(format!("{group:?}")) }
    })
    .await;
}

/// Two that own everything at once, which no group would allow: each fences the other's partitions
/// in turn, with batches under way, and what either delivers is delivered once.
pub(crate) async fn c23_long_two_owners_fence_each_other(env: Env) {
    let mut config = env.asking_group().await;
    config.assignment = Assignment::All;
    let setup = Setup::with(env, config, Do::Rollback).await;
    let load = Load::on(&setup);
    load.goes_on(BETWEEN).await;
    let other = Env::start(&setup.config, &setup.told).await;
    until(2 * PATIENCE, "both to be fenced", async || {
        let lost = [&setup.producer, &other].map(|of| metric(of, "halfmsg_lost_lanes_total"));
        if lost[0] >= 8 && lost[1] >= 4 { Ok(()) } else { Err(format!("{lost:?} times")) }
    })
    .await;
    other.shutdown().await;
    load.goes_on(BETWEEN).await;
    load.ends(&setup).await;
    setup.producer.shutdown().await;
}

/// Two replicas with the same instance id, by mistake: the group throws either out for the other, in
/// turn, and what is delivered is delivered once all the same. With one of them gone all is well.
pub(crate) async fn c23_long_two_replicas_with_one_instance_id(env: Env) {
    let mut config = env.asking_group().await;
    config.instance_id = Some("the-same".into());
    // One with an instance id leaves without a word.
    config.kafka.properties.remove(SESSION_TIMEOUT);
    let setup = Setup::with(env, config, Do::Rollback).await;
    setup.ready().await;
    let load = Load::on(&setup);
    load.goes_on(BETWEEN).await;
    let other = Env::start(&setup.config, &setup.told).await;
    until(PATIENCE, "one that is thrown out not to be ready", async || {
        let told = [&setup.producer, &other].map(TransactionProducer::health);
        let is_told = |health: &Result<(), String>| {
            health.as_ref().is_err_and(|why| why.contains("has the instance id the-same"))
        };
        if told.iter().any(is_told) { Ok(()) } else { Err(format!("{told:?}")) }
    })
    .await;
    load.goes_on(5 * BETWEEN).await;
    other.shutdown().await;
    load.goes_on(BETWEEN).await;
    load.ends(&setup).await;
    setup.producer.shutdown().await;
}

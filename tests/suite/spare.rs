//! Row 27, on real Kafka: more replicas than the store has partitions. The ones that get none are
//! ready, take new messages, see all, and take over when another one goes.

use std::collections::BTreeSet;
use std::ops::Range;

use halfmsg_producer::{HalfFilter, HalfState, Message, TransactionProducer};

use super::metrics::samples;
use super::rebalance::members;
use super::setup::{Setup, answered, as_promised, operator, text};
use super::told::{Do, PURPOSE};
use super::{Env, PATIENCE, until};

const PARTITIONS: i32 = 2;
const REPLICAS: usize = 4;
/// Messages through each replica.
const EACH: usize = 20;

/// How many of the store's partitions a replica owns.
fn owned(replica: &TransactionProducer) -> usize {
    samples(replica, "halfmsg_open_halves{")
}

/// Each partition has one owner, and every replica is ready.
async fn dealt_out(replicas: &[TransactionProducer]) -> Vec<usize> {
    until(2 * PATIENCE, "two partitions among the replicas", async || {
        let owned: Vec<usize> = replicas.iter().map(owned).collect();
        let ready: Vec<_> = replicas.iter().map(TransactionProducer::health).collect();
        let is_so = owned.iter().sum::<usize>() == PARTITIONS as usize
            && owned.iter().all(|count| *count <= 1)
            && ready.iter().all(Result::is_ok);
        if is_so { Ok(owned) } else { Err(format!("{owned:?}, {ready:?}")) }
    })
    .await
}

async fn sends(setup: &Setup, replica: &TransactionProducer, numbers: Range<usize>) {
    for number in numbers {
        let message = Message::new(&setup.target, text(number)).key(format!("key {number}"));
        let sent = replica.send_in_transaction(PURPOSE, message, Do::Commit).await;
        assert!(sent.expect("any replica stores it").decision_recorded);
    }
}

/// Four replicas of a store with two partitions.
pub(crate) async fn c27_more_replicas_than_partitions(env: Env) {
    let mut config = env.group().await;
    config.store_partitions = PARTITIONS;
    let mut setup = Setup::with(env, config, Do::Rollback).await;
    let mut replicas = vec![setup.producer.clone()];
    while replicas.len() < REPLICAS {
        replicas.push(Env::start(&setup.config, &setup.told).await);
    }
    members(&setup, REPLICAS).await;
    let owns = dealt_out(&replicas).await;
    println!("partitions by replica: {owns:?}");
    let spare = owns.iter().position(|count| *count == 0).expect("four share two");
    let owner = owns.iter().position(|count| *count == 1).expect("somebody owns one");

    // A spare one stores messages, and sees the halves of all partitions.
    for (which, replica) in replicas.iter().enumerate() {
        sends(&setup, replica, which * EACH..(which + 1) * EACH).await;
    }
    let mut open = Vec::new();
    for number in 0..8 {
        let message = Message::new(&setup.target, format!("open {number}")).key(number.to_string());
        let begun = replicas[spare].begin(PURPOSE, message).await.expect("it is stored");
        open.push(begun.leave_open());
    }
    let partitions: BTreeSet<i32> = open.iter().map(|of| of.partition).collect();
    assert_eq!(partitions.len(), PARTITIONS as usize, "{open:?}");
    until(PATIENCE, "the spare one to see all halves", async || {
        let filter = HalfFilter { state: Some(HalfState::Open), limit: 100, cursor: None };
        let seen = replicas[spare].admin().list(filter).await.map_err(|error| error.to_string())?;
        if seen.items.len() == open.len() { Ok(()) } else { Err(format!("{seen:#?}")) }
    })
    .await;

    // An owner goes: a spare one takes its partition over.
    let goes = replicas.remove(owner);
    // The last clone of it must go.
    setup.producer = replicas[0].clone();
    drop(goes);
    let owns = dealt_out(&replicas).await;
    println!("partitions by replica: {owns:?}");
    for (which, replica) in replicas.iter().enumerate() {
        let begin = (REPLICAS + which) * EACH;
        sends(&setup, replica, begin..begin + EACH).await;
    }
    for half in &open {
        let admin = replicas[0].admin();
        let rollback = async || admin.rollback(half.transaction_id, operator(true)).await;
        let rolled_back = answered(rollback).await;
        assert_eq!(rolled_back.expect("any replica settles it").state, "rolled_back");
    }
    setup.none_open().await;
    let delivered = setup.reader.everything_of(&setup.config).await;
    as_promised(&setup.config, &delivered, (0..(2 * REPLICAS - 1) * EACH).map(text));
    for replica in replicas {
        replica.shutdown().await;
    }
}

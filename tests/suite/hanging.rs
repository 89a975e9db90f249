//! A transaction that the broker never ended (KAFKA-20734): its offsets hang, and nobody could read
//! the progress of their partition any more.
//!
//! The broker is made to hang as it does by itself when it dies at the wrong moment: it takes an
//! offset in the name of a transaction that it does not know of. No client can be asked for that, so
//! the two requests are written by hand.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use halfmsg_producer::Emission;
use rdkafka::TopicPartitionList;
use rdkafka::consumer::{BaseConsumer, Consumer};

use super::progress::carried_out;
use super::setup::Setup;
use super::told::Do;
use super::{Env, PATIENCE, until};

/// The partition whose progress hangs.
pub(crate) const PARTITION: i32 = 1;
/// What can be read is there at once.
const LOOKUP: Duration = Duration::from_secs(3);
/// One answer of the broker.
const ANSWER: Duration = PATIENCE;

pub(crate) async fn c23_progress_that_hangs_is_given_up(env: Env) {
    let mut setup = Setup::new(env.with_own_broker().await, Do::Rollback).await;
    setup.send_all(20, |_| Do::Commit).await;
    carried_out(&setup.config, &[]).await;
    setup.producer.shutdown().await;

    make_hang(&setup).await;
    setup.start_again().await;
    for number in 20..40 {
        setup.send(number, Do::Commit).await;
    }
    setup.ends_with(0..40).await;
}

/// Makes the progress of [`PARTITION`] hang.
pub(crate) async fn make_hang(setup: &Setup) {
    setup.env.broker.alter_broker(&[("transaction.partition.verification.enable", "false")]).await;
    let (address, store) = (setup.config.kafka.brokers.clone(), setup.config.store_topic());
    let id = setup.config.transactional_id(PARTITION);
    // While the last transaction of this id is being ended, the coordinator begins no other epoch.
    until(PATIENCE, "the broker to take an offset", async || {
        let (address, id, store) = (address.clone(), id.clone(), store.clone());
        let made = tokio::task::spawn_blocking(move || hang(&address, &id, &store, PARTITION));
        made.await.expect("no panic")
    })
    .await;
    let read = is_read(setup).await;
    assert!(read.is_err(), "it does not hang, so this test proves nothing: {read:?}");
}

/// Whether the progress of [`PARTITION`] can be read.
pub(crate) async fn is_read(setup: &Setup) -> Result<(), String> {
    let (kafka, store) = (setup.config.kafka.clone(), setup.config.store_topic());
    let read = tokio::task::spawn_blocking(move || read(&kafka, &store, PARTITION));
    read.await.expect("no panic")
}

/// At least once there is no transaction that could end the former owner's.
pub(crate) async fn c23_at_least_once_progress_that_hangs_is_told(env: Env) {
    let env = env.with_own_broker().await;
    let exactly_once = env.group().await;
    let mut setup = Setup::with(env, exactly_once.clone(), Do::Rollback).await;
    setup.send_all(20, |_| Do::Commit).await;
    carried_out(&setup.config, &[]).await;
    setup.producer.shutdown().await;
    make_hang(&setup).await;

    setup.config.emission = Emission::AtLeastOnce;
    setup.producer = Env::start(&setup.config, &setup.told).await;
    until(PATIENCE, "it to be told", async || match setup.producer.health() {
        Err(why) if why.contains("KAFKA-20734") && why.contains(&setup.config.store_topic()) => {
            Ok(())
        }
        other => Err(format!("{other:?}")),
    })
    .await;
    setup.producer.shutdown().await;
    // As it says: one life as before ends it.
    setup.config = exactly_once;
    setup.start_again().await;
    setup.producer.shutdown().await;
    setup.config.emission = Emission::AtLeastOnce;
    setup.start_again().await;
    for number in 20..40 {
        setup.send(number, Do::Commit).await;
    }
    setup.ends_with(0..40).await;
}

/// The stored progress, as whoever takes over reads it.
fn read(kafka: &halfmsg_kafka::KafkaConfig, store: &str, partition: i32) -> Result<(), String> {
    let consumer: BaseConsumer =
        kafka.consumer(store).create().map_err(|error| error.to_string())?;
    let mut wanted = TopicPartitionList::new();
    wanted.add_partition(store, partition);
    consumer.committed_offsets(wanted, LOOKUP).map(drop).map_err(|error| error.to_string())
}

/// Begins a new epoch of this transactional id, and stores an offset of the group that has the
/// topic's name in a transaction of that epoch which the coordinator never hears of.
fn hang(broker: &str, id: &str, topic: &str, partition: i32) -> Result<(), String> {
    // InitProducerId, version 2: the first one with compact strings.
    let mut init = Vec::new();
    compact(&mut init, id);
    init.extend(60_000_i32.to_be_bytes());
    init.push(0);
    let answer = ask(broker, 22, 2, &init)?;
    // After the empty tags and the throttle time: error, producer id, epoch.
    let (error, producer) = (&answer[5..7], &answer[7..17]);
    if error != [0, 0] {
        return Err(format!("InitProducerId: error {error:?}"));
    }
    // TxnOffsetCommit, version 3: likewise.
    let mut commit = Vec::new();
    compact(&mut commit, id);
    compact(&mut commit, topic);
    commit.extend(producer);
    // No generation, no member, no instance.
    commit.extend((-1_i32).to_be_bytes());
    compact(&mut commit, "");
    commit.push(0);
    commit.push(2);
    compact(&mut commit, topic);
    commit.push(2);
    commit.extend(partition.to_be_bytes());
    commit.extend(1_i64.to_be_bytes());
    commit.extend((-1_i32).to_be_bytes());
    compact(&mut commit, "v1;P=1");
    // The tags of the partition, the topic and the request.
    commit.extend([0, 0, 0]);
    let answer = ask(broker, 28, 3, &commit)?;
    // Behind the one topic's name and the one partition's number.
    let at = 5 + 1 + 1 + topic.len() + 1 + 4;
    match answer.get(at..at + 2) {
        Some([0, 0]) => Ok(()),
        error => Err(format!("TxnOffsetCommit: error {error:?} in {answer:?}")),
    }
}

/// A string of less than 127 bytes.
fn compact(into: &mut Vec<u8>, text: &str) {
    into.push(u8::try_from(text.len() + 1).ok().filter(|len| *len < 128).expect("it is short"));
    into.extend(text.as_bytes());
}

/// One request with a header of version 2; the answer behind its correlation id.
fn ask(broker: &str, key: i16, version: i16, body: &[u8]) -> Result<Vec<u8>, String> {
    let failed = |error: std::io::Error| error.to_string();
    let mut request = Vec::new();
    request.extend(key.to_be_bytes());
    request.extend(version.to_be_bytes());
    request.extend(7_i32.to_be_bytes());
    request.extend(1_i16.to_be_bytes());
    request.extend([b'x', 0]);
    request.extend(body);
    let mut stream = TcpStream::connect(broker).map_err(failed)?;
    stream.set_read_timeout(Some(ANSWER)).map_err(failed)?;
    let size = u32::try_from(request.len()).expect("it is short");
    stream
        .write_all(&size.to_be_bytes())
        .and_then(|()| stream.write_all(&request))
        .map_err(failed)?;
    let mut size = [0; 4];
    stream.read_exact(&mut size).map_err(failed)?;
    let mut answer = vec![0; u32::from_be_bytes(size).min(1 << 20) as usize];
    stream.read_exact(&mut answer).map_err(failed)?;
    Ok(answer.split_off(4))
}

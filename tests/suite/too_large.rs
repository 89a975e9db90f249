//! Records that the parked topic does not take, because the store's limit was raised by hand or the
//! configured one lowered.

use std::sync::Arc;
use std::time::Duration;

use halfmsg_producer::{HalfState, ProducerConfig, TransactionId};
use halfmsg_protocol::{HEADER, HalfMeta, Record, codec};

use super::Env;
use super::env::PARTITIONS;
use super::setup::{Setup, text};
use super::told::{Do, PURPOSE};
use super::topic::{Entry, read_all, write};
use super::{PATIENCE, until};

/// More than the parked topic of this configuration takes, and less than its store.
const LARGE: usize = 600_000;
/// What the store takes.
const STORE_LIMIT: &str = "2000000";

/// Small messages, and a store that takes large ones all the same.
async fn lowered(env: &Env) -> ProducerConfig {
    let mut config = env.group().await;
    config.max_message_bytes = 10_000;
    config.max_checks = 1;
    let settings = [
        ("retention.ms", "-1"),
        ("retention.bytes", "-1"),
        ("message.timestamp.type", "LogAppendTime"),
        ("unclean.leader.election.enable", "false"),
        ("max.message.bytes", STORE_LIMIT),
    ];
    env.broker.create_topic(&config.store_topic(), PARTITIONS, &settings).await;
    config
}

/// A foreign record that the parked topic does not take is passed; what is kept says where it is.
pub(crate) async fn c30_large_garbage_is_passed_and_told(env: Env) {
    let config = lowered(&env).await;
    let setup = Setup::with(env, config, Do::Rollback).await;
    let partition = setup.send(0, Do::Commit).await.partition;
    let store = setup.config.store_topic();
    let garbage = Entry { partition, payload: Some(vec![b'x'; LARGE]), ..Entry::default() };
    let small = Entry { partition, payload: Some(b"small".to_vec()), ..Entry::default() };
    // Among others, which are kept whole.
    let before = write(&setup.config.kafka, &store, &small).await;
    let at = write(&setup.config.kafka, &store, &garbage).await;
    let after = write(&setup.config.kafka, &store, &small).await;
    // The same key, so the same partition.
    setup.send(8, Do::Commit).await;
    setup.reader.sees(&text(8)).await;
    setup.reader.everything_of(&setup.config).await;
    let entries = read_all(&setup.config.kafka, &setup.config.parked_topic()).await;
    let kept = |offset: i64| {
        let key = format!("foreign-{partition}-{offset}").into_bytes();
        let found = entries.iter().find(|entry| entry.key.as_ref() == Some(&key));
        found.unwrap_or_else(|| panic!("{offset} is not kept"))
    };
    for offset in [before, after] {
        assert_eq!(kept(offset).payload.as_deref(), Some(&b"small"[..]));
    }
    assert_eq!(kept(at).payload.as_deref(), Some(&b""[..]));
    let header = |name| String::from_utf8_lossy(kept(at).header(name).unwrap_or(b"")).into_owned();
    assert_eq!(header("halfmsg-foreign-at"), format!("partition {partition}, offset {at}"));
    assert_eq!(header("halfmsg-foreign-bytes"), LARGE.to_string());
    assert!(header("halfmsg-foreign-reason").contains(&setup.config.parked_topic()));
    setup.ready().await;
    setup.producer.shutdown().await;
}

/// A half message that the parked topic does not take holds its partition, so that nothing of it is
/// lost, until the topic takes it; health says what to do.
pub(crate) async fn c30_a_large_half_waits_for_a_parked_topic_that_takes_it(env: Env) {
    let config = lowered(&env).await;
    let setup = Setup::with(env, config, Do::Unknown).await;
    let id = TransactionId::from_bytes([7; 16]);
    let half = codec::encode(&Record::Half(Arc::new(HalfMeta {
        id,
        application: setup.config.application.clone(),
        purpose: PURPOSE.into(),
        topic: setup.target.clone(),
        timestamp_ms: 0,
        check_after: Some(Duration::from_millis(10)),
        local_transaction: None,
    })));
    let headers = vec![(HEADER.to_owned(), Some(half))];
    let large = Entry { headers, payload: Some(vec![b'x'; LARGE]), ..Entry::default() };
    write(&setup.config.kafka, &setup.config.store_topic(), &large).await;
    let parked = setup.config.parked_topic();
    until(PATIENCE, "health to say what to do", async || match setup.producer.health() {
        Err(why) if why.contains(&parked) && why.contains("max.message.bytes") => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    setup
        .env
        .broker
        .alter_topic(&parked, &[("cleanup.policy", "compact"), ("max.message.bytes", STORE_LIMIT)])
        .await;
    until(PATIENCE, "health to be well again", async || setup.producer.health()).await;
    setup.listed(HalfState::Parked, 1).await;
    let entries = read_all(&setup.config.kafka, &parked).await;
    let key = id.to_string().into_bytes();
    let found = entries.iter().find(|entry| entry.key.as_ref() == Some(&key));
    assert_eq!(found.and_then(|entry| entry.payload.as_ref()).map(Vec::len), Some(LARGE));
    setup.producer.shutdown().await;
}

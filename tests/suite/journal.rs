//! What operators did, who and why, is known when the store's records of it are trimmed away, and when
//! the parked topic is compacted.

use std::collections::BTreeMap;
use std::time::Duration;

use halfmsg_producer::{AdminError, HalfView};
use serde_json::{Value, json};

use super::bounds::bounds;
use super::operating::acts;
use super::setup::{Setup, answered, operator, text};
use super::told::Do;
use super::topic::{Entry, read_all, write};
use super::{Env, PATIENCE, until};

/// What a key of the journal begins with.
const KEY: &[u8] = b"halfmsg.journal-";

/// Asked about, decided, forced: each is told with the operator's name, the reason and the outcome, once nothing
/// else knows of it.
pub(crate) async fn operators_acts_outlive_the_stores_records(env: Env) {
    let mut config = env.group().await;
    config.trim_interval = Some(Duration::from_millis(100));
    let mut setup = Setup::with(env, config, Do::Unknown).await;
    let left = setup.leave_open(0..2).await;
    let [asked, forced] = [left[0].transaction_id, left[1].transaction_id];
    let admin = setup.producer.admin();
    let check = async || answered(async || admin.check(asked, operator(false)).await).await;
    became(check().await, "open");
    setup.told.check(text(0), &[Do::Commit]);
    became(check().await, "committed");
    became(answered(async || admin.rollback(forced, operator(true)).await).await, "rolled_back");
    setup.reader.sees(&text(0)).await;
    until(PATIENCE, "all of the store to be trimmed", async || {
        let bounds = bounds(&setup.config).await?;
        let is_empty = bounds.iter().all(|(start, end)| start == end);
        if is_empty { Ok(()) } else { Err(format!("{bounds:?}")) }
    })
    .await;
    drop(admin);
    // The next replica reads nothing of it any more.
    setup.restart().await;
    for id in [asked, forced] {
        let found = answered(async || setup.producer.admin().get(id).await).await;
        assert_eq!(found.expect("Kafka answers"), None);
    }
    setup.producer.shutdown().await;
    compacted(&setup).await;

    let done = |action: &'static str, detail: Value| {
        let config = &setup.config;
        async move {
            let acts = acts(config, action).await;
            acts.into_iter()
                .filter(|act| act["detail"] == detail)
                // It may have been written that it is done and not been seen, by a machine that stood still.
                .filter(|act| act["outcome"] == "done" || act["outcome"] == "begun")
                .count()
        }
    };
    let of = |id: halfmsg_producer::TransactionId| id.to_string();
    assert_eq!(done("check", json!({"transaction_id": of(asked)})).await, 2);
    let by_force = json!({"transaction_id": of(forced), "forced": true});
    assert_eq!(done("rollback", by_force).await, 1);
}

/// It is done, and seen if the machine did not stand still meanwhile.
fn became(done: Result<HalfView, AdminError>, state: &str) {
    match done {
        Ok(half) => assert_eq!(half.state, state),
        Err(AdminError::Unseen(_)) => {}
        Err(other) => panic!("it is open: {other}"),
    }
}

/// Has the broker compact the parked topic, and waits until of each act the end alone is left.
async fn compacted(setup: &Setup) {
    let (kafka, parked) = (&setup.config.kafka, setup.config.parked_topic());
    let soon = [
        ("cleanup.policy", "compact"),
        ("segment.ms", "100"),
        ("min.cleanable.dirty.ratio", "0.01"),
        ("max.compaction.lag.ms", "100"),
    ];
    let acts = async || {
        let mut acts = BTreeMap::<Vec<u8>, usize>::new();
        for key in read_all(kafka, &parked).await.into_iter().filter_map(|entry| entry.key) {
            if key.starts_with(KEY) {
                *acts.entry(key).or_default() += 1;
            }
        }
        acts
    };
    // An act that begins is written, and written again: there is something to be compacted.
    let before = acts().await;
    assert!(before.values().any(|times| *times > 1), "compacted before it was asked for");
    setup.env.broker.alter_topic(&parked, &soon).await;
    until(PATIENCE, "the parked topic to be compacted", async || {
        // A segment is closed by what comes behind it.
        for partition in 0..setup.config.store_partitions {
            let key = Some(b"behind".to_vec());
            let filler =
                Entry { partition, key, payload: Some(b"{}".to_vec()), ..Entry::default() };
            write(kafka, &parked, &filler).await;
        }
        let acts = acts().await;
        assert_eq!(acts.len(), before.len(), "none is lost");
        if acts.values().all(|times| *times == 1) { Ok(()) } else { Err(format!("{acts:?}")) }
    })
    .await;
}

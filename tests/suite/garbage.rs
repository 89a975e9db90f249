//! Row 30: records in the store that are none of ours, or of a newer version.

use std::collections::{BTreeMap, BTreeSet};

use halfmsg_producer::{HalfFilter, PrepareError, ProducerConfig};
use halfmsg_protocol::{
    Decision, Epoch, HEADER, HalfOffset, HalfRef, Origin, Record, Verdict, codec,
};

use super::reader::{counts, once_each};
use super::setup::{Setup, text};
use super::told::{Do, PURPOSE};
use super::topic::{Entry, read_all, write};
use super::{Env, PATIENCE, until};

/// A COMMIT of version 2, as the golden tests of the format have it.
pub(crate) const NEWER: [u8; 48] = [
    0x68, 0x6d, 0x73, 0x67, 0x02, 0x02, 0x90, 0xa7, 0x14, 0x75, 0x01, 0x98, 0x5f, 0x2e, 0x7c, 0x1a,
    0x7f, 0x00, 0x80, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x01, 0x06, 0x08, 0x00, 0x05, 0x04, 0x03,
    0x02, 0x01, 0x00, 0x00, 0x00, 0x07, 0x04, 0x00, 0x00, 0x00, 0x00, 0x00, 0x08, 0x01, 0x00, 0x01,
];
/// Messages before the damage; together they use every partition.
pub(crate) const BEFORE: usize = 16;

/// Sends the first messages; the partition that each key has.
pub(crate) async fn partitions_of_keys(setup: &Setup) -> BTreeMap<usize, i32> {
    let sent = setup.send_all(BEFORE, |_| Do::Commit).await;
    sent.iter().enumerate().map(|(number, sent)| (number, sent.partition)).collect()
}

/// A number of a message whose key has this partition.
pub(crate) fn number_in(
    partitions: &BTreeMap<usize, i32>,
    wanted: impl Fn(i32) -> bool,
) -> (usize, i32) {
    let keyed = partitions.iter().filter(|(number, _)| *number % 8 != 7);
    let found = keyed.into_iter().find(|(_, partition)| wanted(**partition));
    let (number, partition) = found.expect("a few keys use more than one partition");
    (*number, *partition)
}

/// Each record of garbage is copied to the parked topic, with its coordinates, and passed.
pub(crate) async fn c30_garbage_is_passed_and_kept(env: Env) {
    let mut setup = Setup::new(env, Do::Rollback).await;
    let (number, partition) = number_in(&partitions_of_keys(&setup).await, |_| true);
    let mut copies = BTreeSet::new();
    for garbage in garbage(partition) {
        let offset = write(&setup.config.kafka, &setup.config.store_topic(), &garbage).await;
        let payload = garbage.payload.clone().unwrap_or_default();
        copies.insert((format!("foreign-{partition}-{offset}"), garbage.headers, payload));
    }
    // A message of the same key, so of the same partition.
    let behind = number + 8 * BEFORE;
    let sent = setup.send(behind, Do::Commit).await;
    assert_eq!(sent.partition, partition);
    setup.reader.sees(&text(behind)).await;
    for round in 0..2 {
        let delivered = setup.reader.everything_of(&setup.config).await;
        assert_eq!(counts(&delivered), once_each((0..BEFORE).chain([behind]).map(text)));
        let kept = foreign(&setup.config).await;
        assert_eq!(kept.len(), copies.len(), "round {round}: each once");
        assert_eq!(kept.into_iter().collect::<BTreeSet<_>>(), copies);
        setup.ready().await;
        if round == 0 {
            setup.restart().await;
        }
    }
    setup.producer.shutdown().await;
}

/// Only the partition with the record of a newer version stands still; what is wrong is named.
pub(crate) async fn c30_a_newer_record_stops_its_partition_only(env: Env) {
    let mut setup = Setup::new(env, Do::Rollback).await;
    let partitions = partitions_of_keys(&setup).await;
    let (stopped, partition) = number_in(&partitions, |_| true);
    let (going_on, _) = number_in(&partitions, |found| found != partition);
    let headers = vec![(HEADER.to_owned(), Some(NEWER.to_vec()))];
    let newer = Entry { partition, headers, ..Entry::default() };
    let store = setup.config.store_topic();
    let offset = write(&setup.config.kafka, &store, &newer).await;
    let place = format!("{store}[{partition}]@{offset}");
    for round in 1..=2 {
        until(PATIENCE, "the stopped partition to be named", async || {
            match setup.producer.health() {
                Err(reason) if reason.contains(&place) && reason.contains("upgrade") => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
        // What lies behind is in nobody's memory: an empty list must not say that nothing is open.
        let admin = setup.producer.admin();
        let list = admin.list(HalfFilter { limit: 10, ..HalfFilter::default() }).await;
        let list = list.expect("the resolver answers");
        let [missing] = &list.missing_partitions[..] else { panic!("{list:?}") };
        assert_eq!((missing.partition, missing.stopped), (partition, true), "{missing:?}");
        assert!(missing.reason.contains(&place), "{missing:?}");
        let (refused, passed) = (stopped + 8 * BEFORE * round, going_on + 8 * BEFORE * round);
        // Nothing would carry its decision out, so its local transaction must not begin.
        match setup.producer.begin(PURPOSE, setup.message(refused)).await {
            Err(PrepareError::Unavailable { reason, .. }) => {
                assert!(reason.contains(&place), "{reason}");
            }
            other => panic!("{:?}", other.map(|begun| begun.receipt())),
        }
        let begun = setup.producer.begin(PURPOSE, setup.message(passed)).await;
        begun.expect("it is stored").commit().await.expect("it is stored");
        setup.reader.sees(&text(passed)).await;
        let delivered = setup.reader.everything_but(&setup.config, &[partition]).await;
        let passed = (1..=round).map(|round| going_on + 8 * BEFORE * round);
        assert_eq!(counts(&delivered), once_each((0..BEFORE).chain(passed).map(text)));
        if round == 1 {
            setup.producer.shutdown().await;
            setup.producer = Env::start(&setup.config, &setup.told).await;
        }
    }
    assert_eq!(foreign(&setup.config).await, []);
    setup.producer.shutdown().await;
}

/// What may stand in a topic that anybody can write to.
fn garbage(partition: i32) -> Vec<Entry> {
    let decision = Record::Decision(Decision {
        of: HalfRef {
            id: halfmsg_producer::TransactionId::from_bytes([7; 16]),
            half: HalfOffset(0),
            epoch: Epoch(0),
        },
        verdict: Verdict::Commit,
        origin: Origin::Producer,
        operator: None,
        reason: String::new(),
    });
    let good = codec::encode(&decision);
    let mut damaged = good.clone();
    if let Some(last) = damaged.last_mut() {
        *last ^= 0xFF;
    }
    let mut wrong_magic = good.clone();
    wrong_magic[0] = b'X';
    let ours = |bytes: Option<Vec<u8>>| vec![(HEADER.to_owned(), bytes)];
    let plain = Entry { partition, ..Entry::default() };
    vec![
        plain.clone(),
        Entry { payload: Some(b"somebody's message".to_vec()), ..plain.clone() },
        Entry { key: Some(vec![0xFF, 0xFE]), payload: Some(vec![0; 1_000]), ..plain.clone() },
        Entry {
            headers: vec![("other".into(), Some(vec![1])), ("x".into(), None)],
            ..plain.clone()
        },
        Entry { headers: ours(None), ..plain.clone() },
        Entry { headers: ours(Some(Vec::new())), ..plain.clone() },
        Entry { headers: ours(Some(good[..good.len() - 1].to_vec())), ..plain.clone() },
        Entry { headers: ours(Some(damaged)), ..plain.clone() },
        Entry { headers: ours(Some(wrong_magic)), ..plain },
    ]
}

type Copy = (String, Vec<(String, Option<Vec<u8>>)>, Vec<u8>);

/// What the parked topic keeps of records that are none of ours.
async fn foreign(config: &ProducerConfig) -> Vec<Copy> {
    let entries = read_all(&config.kafka, &config.parked_topic()).await;
    let copies = entries.into_iter().filter_map(|entry| {
        let key = String::from_utf8(entry.key?).ok()?;
        key.starts_with("foreign-").then_some((
            key,
            entry.headers,
            entry.payload.unwrap_or_default(),
        ))
    });
    copies.collect()
}

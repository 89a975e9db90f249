//! Row 24 at length: a partition with a million records between L and P, and 100,000 open halves, comes
//! back. Its log is written by a client that knows nothing of transactions, because as many through
//! the interface would take minutes and show nothing more.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use halfmsg_producer::{AdminError, HalfState, ProducerConfig};
use halfmsg_protocol::{
    Decision, Epoch, HEADER, HalfMeta, HalfOffset, HalfRef, Origin, Record, TransactionId, Verdict,
    codec,
};
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use uuid::Uuid;

use super::env::logged;
use super::metrics::metric;
use super::progress::store_by_hand;
use super::setup::{Setup, answered, operator};
use super::told::{Do, PURPOSE};
use super::turns::alone;
use super::{Env, PATIENCE, until};

/// Messages that were committed and delivered: each has a HALF and a COMMIT.
const DELIVERED: i64 = 500_000;
/// Halves that are open: the first stands in front of everything else, so that all of it is replayed.
const OPEN: i64 = 100_000;
/// HALF records in a row before their COMMIT records.
const AT_ONCE: i64 = 100;
/// Writing, and replaying with an unoptimised program on a machine that does other things.
const LONG: Duration = Duration::from_secs(300);

/// Writes the log of partition 0 of a store that is empty.
struct Writer {
    client: ThreadedProducer<DefaultProducerContext>,
    store: String,
    target: String,
    next: i64,
}

impl Writer {
    fn new(config: &ProducerConfig, target: &str) -> Self {
        let mut client = config.kafka.producer();
        client.set("linger.ms", "5");
        let client = client.create().expect("a client");
        Self { client, store: config.store_topic(), target: target.into(), next: 0 }
    }

    /// The whole log; where it ends.
    fn write(mut self) -> i64 {
        self.half();
        for _ in 0..DELIVERED / AT_ONCE {
            let halves: Vec<HalfRef> = (0..AT_ONCE).map(|_| self.half()).collect();
            halves.into_iter().for_each(|of| self.commit(of));
        }
        for _ in 1..OPEN {
            self.half();
        }
        self.client.flush(LONG).expect("all is acknowledged");
        self.next
    }

    fn half(&mut self) -> HalfRef {
        let id = TransactionId::from_uuid(Uuid::now_v7());
        let meta = HalfMeta {
            id,
            application: "tests".into(),
            purpose: PURPOSE.into(),
            topic: self.target.clone(),
            timestamp_ms: 0,
            check_after: None,
            local_transaction: None,
        };
        let half = HalfOffset(self.next);
        self.record(&Record::Half(Arc::new(meta)), Some(&[b'x'; 256]));
        HalfRef { id, half, epoch: Epoch::default() }
    }

    fn commit(&mut self, of: HalfRef) {
        let (verdict, origin) = (Verdict::Commit, Origin::Producer);
        let decision = Decision { of, verdict, origin, operator: None, reason: String::new() };
        self.record(&Record::Decision(decision), None);
    }

    fn record(&mut self, record: &Record, payload: Option<&[u8]>) {
        let packed = codec::encode(record);
        let headers = OwnedHeaders::new().insert(Header { key: HEADER, value: Some(&packed) });
        let mut message: BaseRecord<'_, [u8], [u8]> =
            BaseRecord::to(&self.store).partition(0).headers(headers);
        message.payload = payload;
        while let Err((error, back)) = self.client.send(message) {
            let full = error.rdkafka_error_code() == Some(RDKafkaErrorCode::QueueFull);
            assert!(full, "{error}");
            // Its own thread empties the queue.
            std::thread::yield_now();
            message = back;
        }
        self.next += 1;
    }
}

/// With the progress of the replay in the gauge and in the log.
pub(crate) async fn c24_long_a_long_log_comes_back(env: Env) {
    let _alone = alone().await;
    let mut config = env.group().await;
    config.store_partitions = 1;
    let mut setup = Setup::with(env, config, Do::Unknown).await;
    setup.ready().await;
    setup.producer.shutdown().await;
    let writer = Writer::new(&setup.config, &setup.target);
    let end = tokio::task::spawn_blocking(|| writer.write()).await.expect("it is written");
    assert_eq!(end, 2 * DELIVERED + OPEN);
    store_by_hand(&setup.config, 0, (0, format!("v1;P={end}"))).await;

    setup.producer = Env::start(&setup.config, &setup.told).await;
    let mut left = Vec::new();
    until(LONG, "the partition to come back", async || {
        // What was read before the takeover is not known says nothing.
        let now = metric(&setup.producer, "halfmsg_replay_left_records");
        if now > 0 {
            left.push(now);
        }
        setup.producer.health()
    })
    .await;
    assert!(!left.is_empty(), "the gauge tells how much is left");
    assert!(left.is_sorted_by(|one, next| one >= next), "it falls: {left:?}");
    until(PATIENCE, "nothing to be left", async || {
        let left = metric(&setup.producer, "halfmsg_replay_left_records");
        if left == 0 { Ok(()) } else { Err(left) }
    })
    .await;
    let lines = |what: &str| logged(&[what, &setup.config.store_topic()]);
    let under_way = lines("the store is being replayed");
    assert!(under_way.iter().any(|line| line.contains(" left=")), "{under_way:?}");
    let over = lines("the store's partitions are taken over");
    assert!(over.iter().any(|line| line.contains(&format!("open={OPEN}"))), "{over:?}");

    let list = async || setup.list(HalfState::Open).await;
    let first = until(PATIENCE, "the open halves", list).await;
    assert_eq!(
        (first[0].offset, first[1].offset),
        (0, 2 * DELIVERED + 1),
        "all between is decided"
    );
    assert!(setup.told.checked().is_empty(), "nothing is due");
    let again = setup.reader.everything_of(&setup.config).await;
    assert!(again.is_empty(), "what lies below P is delivered: {} messages", again.len());

    // What came back is whole: the first, one in between and the last are settled and arrive.
    let chosen = [&first[0], &first[first.len() / 2], &first[first.len() - 1]];
    let chosen = chosen.map(|half| half.transaction_id.parse().expect("an identity"));
    let admin = setup.producer.admin();
    for id in chosen {
        match answered(async || admin.commit(id, operator(true)).await).await {
            // The machine stood still behind its record.
            Ok(_) | Err(AdminError::Unseen(_)) => {}
            Err(other) => panic!("it is open: {other}"),
        }
    }
    let delivered = setup.reader.everything_of(&setup.config).await;
    let ids: Vec<TransactionId> = delivered.iter().map(|one| one.transaction_id).collect();
    assert_eq!((ids.len(), BTreeSet::from_iter(ids)), (3, BTreeSet::from(chosen)));
    setup.producer.shutdown().await;
}

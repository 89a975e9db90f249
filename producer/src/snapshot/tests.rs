//! Looks at a broker in this process, as operators take them.

use std::sync::{Arc, Mutex, Once};
use std::time::Duration;

use halfmsg_kafka::EmbeddedBroker;
use halfmsg_protocol::{
    Decision, Epoch, HEADER, HalfMeta, HalfOffset, HalfRef, Ignored, Origin, Outcome, Record,
    Verdict, codec,
};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::admin::{AdminError, HalfFilter, MAX_PAGE, OperatorRequest};
use crate::operator::{OperatorClient, ResetTo};
use crate::resolver::query::What;

const PREFIX: &str = "tests";
const GROUP: &str = "group";
const LONG: Duration = Duration::from_secs(120);

fn patient() -> SnapshotLimits {
    SnapshotLimits { deadline: 2 * LONG, ..SnapshotLimits::default() }
}

struct Ground {
    broker: EmbeddedBroker,
    producer: BaseProducer,
    config: ProducerConfig,
}

impl Ground {
    fn new(partitions: i32) -> Self {
        let broker = EmbeddedBroker::start().expect("a loopback port");
        let mut config = ProducerConfig::new(broker.config(), "tests", GROUP);
        config.topic_prefix = PREFIX.into();
        for topic in [config.store_topic(), config.parked_topic()] {
            broker.create_topic(&topic, partitions).expect("a topic");
        }
        let producer = broker.config().producer().create().expect("a client");
        Self { broker, producer, config }
    }

    /// With more patience than any machine stands still.
    fn client(&self) -> OperatorClient {
        let client = OperatorClient::new(self.broker.config(), PREFIX, GROUP);
        client.expect("valid settings").limits(patient())
    }

    fn write(&self, partition: i32, record: &Record, payload: &[u8]) {
        self.send(partition, record, payload);
        self.producer.flush(LONG).expect("stored");
    }

    fn send(&self, partition: i32, record: &Record, payload: &[u8]) {
        let packed = codec::encode(record);
        let header = Header { key: HEADER, value: Some(&packed) };
        let store = self.config.store_topic();
        let record: BaseRecord<'_, [u8], [u8]> = BaseRecord::to(&store)
            .partition(partition)
            .headers(OwnedHeaders::new().insert(header))
            .payload(payload);
        self.producer.send(record).map_err(|(error, _)| error).expect("room in the queue");
    }

    /// So many records that are none of ours.
    fn fill(&self, records: u64) {
        let store = self.config.store_topic();
        for _ in 0..records {
            let record: BaseRecord<'_, [u8], [u8]> =
                BaseRecord::to(&store).partition(0).payload(b"x");
            self.producer.send(record).map_err(|(error, _)| error).expect("room in the queue");
        }
        self.producer.flush(LONG).expect("stored");
    }

    fn half(&self, partition: i32, number: u8) {
        self.write(partition, &Record::Half(Arc::new(meta(number))), b"payload");
    }

    fn decide(&self, partition: i32, number: u8, half: i64, verdict: Verdict) {
        let of = HalfRef { id: id(number), half: HalfOffset(half), epoch: Epoch(0) };
        let origin = Origin::CheckBack;
        let reason = String::new();
        let decision = Decision { of, verdict, origin, operator: None, reason };
        self.write(partition, &Record::Decision(decision), b"");
    }
}

fn id(number: u8) -> TransactionId {
    TransactionId::from_bytes([number; 16])
}

fn meta(number: u8) -> HalfMeta {
    HalfMeta {
        id: id(number),
        application: "tests".into(),
        purpose: "test".into(),
        topic: "target".into(),
        timestamp_ms: 0,
        check_after: None,
        local_transaction: None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_without_a_leader_hides_no_other() {
    let ground = Ground::new(3);
    for number in 0..3 {
        ground.half(i32::from(number), number);
    }
    let client = ground.client();
    // One question about one partition has a deadline of its own: one that was missed is asked again.
    let list = async |missing: usize| {
        let mut tries = 0;
        loop {
            tries += 1;
            let shown = client.list(HalfFilter { limit: 10, ..HalfFilter::default() }).await;
            let found = shown.as_ref().map(|shown| shown.missing_partitions.len());
            if tries == 3 || found == Ok(missing) {
                break shown;
            }
        }
    };
    let shown = list(0).await.expect("all can be looked at");
    assert_eq!((shown.items.len(), shown.missing_partitions.len()), (3, 0));

    let store = ground.config.store_topic();
    ground.broker.without_leader(&store, 1).expect("it runs");
    let shown = list(1).await.expect("the others can");
    let of: Vec<i32> = shown.items.iter().map(|half| half.partition).collect();
    assert_eq!(of, [0, 2]);
    let [missing] = &shown.missing_partitions[..] else { panic!("{shown:?}") };
    assert!(missing.partition == 1 && missing.reason.contains(&store), "{missing:?}");

    // One that is there is found; one that is not may be in the partition that is missing.
    assert_eq!(client.show(id(2)).await.expect("it is there").half.partition, 2);
    match client.show(id(9)).await {
        Err(AdminError::Incomplete(why)) => assert!(why.contains("[1]"), "{why}"),
        other => panic!("{other:?}"),
    }
    ground.broker.without_leader(&ground.config.parked_topic(), 2).expect("it runs");
    let shown = list(2).await.expect("the first can");
    let missing: Vec<i32> = shown.missing_partitions.iter().map(|of| of.partition).collect();
    assert_eq!((shown.items.len(), missing), (1, vec![1, 2]));

    ground.broker.without_leader(&store, 0).expect("it runs");
    let none = client.list(HalfFilter { limit: 10, ..HalfFilter::default() }).await;
    assert!(matches!(none, Err(AdminError::Incomplete(_))), "{none:?}");
}

/// Once its record is stored, an act is never told as not done: here the log has grown, and the look
/// behind the record may not read so much.
#[tokio::test(flavor = "multi_thread")]
async fn an_act_whose_effect_cannot_be_looked_at_is_told_as_stored() {
    const RECORDS: u64 = 5_000;
    for verdict in [Verdict::Commit, Verdict::Rollback] {
        let ground = Ground::new(1);
        ground.half(0, 1);
        ground.fill(RECORDS);
        // The first look reports how far it is, and may read all that is there then.
        let (ground, grown) = (Arc::new(ground), Arc::new(Once::new()));
        let filler = Arc::clone(&ground);
        let limits = SnapshotLimits { max_records: RECORDS + 1, ..patient() };
        let client = ground.client().limits(limits).on_progress(move |_| {
            grown.call_once(|| filler.fill(RECORDS + 1));
        });
        let (operator, reason) = ("ann".to_owned(), "looked up".to_owned());
        let request = OperatorRequest { operator, reason, force: true };
        let done = match verdict {
            Verdict::Commit => client.commit(id(1), request).await,
            Verdict::Rollback => client.rollback(id(1), request).await,
        };
        match done {
            Err(error @ AdminError::Unseen(_)) => {
                let told = error.to_string();
                assert!(told.contains("is stored") && !told.contains("nothing"), "{told}");
            }
            other => panic!("{other:?}"),
        }
        let shown = ground.client().show(id(1)).await.expect("it is there");
        let stored = if verdict == Verdict::Commit { "committed" } else { "rolled_back" };
        assert_eq!(shown.half.state, stored);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_look_is_told() {
    let ground = Ground::new(1);
    ground.half(0, 1);
    let told = Arc::new(Mutex::new(Vec::new()));
    let tell = Arc::clone(&told);
    let client = ground.client().on_progress(move |progress| {
        tell.lock().expect("nobody panics with it").push(progress);
    });
    client.everything().await.expect("the broker answers");
    let last = told.lock().expect("nobody panics with it").last().copied();
    assert_eq!(last, Some(SnapshotProgress { read: 1, of: 1 }));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_look_sees_more_than_a_page() {
    const HALVES: usize = 2 * MAX_PAGE + 1;
    let ground = Ground::new(1);
    for number in 0..HALVES {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&number.to_be_bytes());
        let id = TransactionId::from_bytes(bytes);
        ground.send(0, &Record::Half(Arc::new(HalfMeta { id, ..meta(0) })), b"payload");
    }
    ground.producer.flush(LONG).expect("stored");
    let all = ground.client().everything().await.expect("all can be looked at");
    assert_eq!((all.items.len(), all.next_cursor), (HALVES, None));
}

/// The second copy of a half message is not taken for an open one because the look begins behind the
/// first.
#[tokio::test(flavor = "multi_thread")]
async fn a_trace_that_begins_between_two_copies_goes_back_to_the_first() {
    let ground = Ground::new(1);
    ground.half(0, 1);
    ground.half(0, 2);
    ground.half(0, 1);
    ground.decide(0, 1, 0, Verdict::Commit);
    let config = ground.config.clone();
    let traced = tokio::task::spawn_blocking(move || {
        let look = Look::new(patient(), CancellationToken::new(), None);
        trace(&config, id(1), Where::Lately(BTreeSet::new(), 2), &look)
    });
    let traced = traced.await.expect("no panic").expect("the broker answers").expect("it is there");
    assert_eq!(traced.steps.len(), 3, "its first copy, its second and its decision");
    let seen = traced.seen(id(1)).expect("the log holds its whole life");
    assert!(matches!(&seen.what, What::Closed(closed) if closed.half == HalfOffset(0)));
}

/// Another message under a used id is lost, and must not be shown as open, or as decided by what names
/// it, because the look begins behind the first.
#[tokio::test(flavor = "multi_thread")]
async fn a_trace_that_begins_with_another_message_of_the_id_goes_back_to_the_first() {
    for decided in [false, true] {
        let ground = Ground::new(1);
        ground.half(0, 1);
        ground.decide(0, 1, 0, Verdict::Rollback);
        ground.write(0, &Record::Half(Arc::new(meta(1))), b"another");
        if decided {
            ground.decide(0, 1, 2, Verdict::Commit);
        }
        let config = ground.config.clone();
        let traced = tokio::task::spawn_blocking(move || {
            let look = Look::new(patient(), CancellationToken::new(), None);
            trace(&config, id(1), Where::Lately(BTreeSet::new(), 1 + i64::from(decided)), &look)
        });
        let traced = traced.await.expect("no panic").expect("it answers").expect("it is there");
        let seen = traced.seen(id(1)).expect("the log holds its whole life");
        let What::Closed(closed) = &seen.what else { panic!("a lost message is shown as open") };
        assert_eq!((closed.half, closed.verdict), (HalfOffset(0), Verdict::Rollback));
        let other = traced.steps[2].outcome.as_ref();
        assert!(matches!(other, Some(Outcome::Ignored(Ignored::Reused { .. }))), "{other:?}");
    }
}

/// A new owner would ask about the copy, and deliver what is delivered.
#[tokio::test(flavor = "multi_thread")]
async fn progress_is_not_set_between_two_copies() {
    let ground = Ground::new(1);
    ground.half(0, 2);
    ground.half(0, 1);
    ground.decide(0, 2, 0, Verdict::Rollback);
    ground.half(0, 1);
    ground.decide(0, 1, 1, Verdict::Commit);
    let client = ground.client();
    for (to, refused) in [(0, false), (1, false), (2, true), (3, true), (4, false), (5, false)] {
        match client.plan_reset(0, ResetTo::Offset(to)).await {
            Ok(plan) => assert!(!refused && plan.to == to, "{plan:?}"),
            Err(AdminError::Refused(why)) => {
                assert!(refused && why.contains("take 1 or 4"), "{to}: {why}");
            }
            Err(other) => panic!("{to}: {other}"),
        }
    }
    for to in [ResetTo::Start, ResetTo::End] {
        client.plan_reset(0, to).await.expect("no copy lies across the log's ends");
    }
}

/// A slow broker is not given up on by the first request of one who has more patience.
#[test]
fn one_request_may_take_half_of_the_look() {
    let step = |seconds| {
        let limits =
            SnapshotLimits { deadline: Duration::from_secs(seconds), ..SnapshotLimits::default() };
        Look::new(limits, CancellationToken::new(), None).step()
    };
    assert_eq!(step(600), Duration::from_secs(300));
    assert_eq!(step(60), Duration::from_secs(30));
    assert!(step(10) <= Duration::from_secs(5) && step(2) <= Duration::from_secs(2));
}

//! Operators at a replica on a broker in this process: what they are told when a look fails.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use halfmsg_kafka::EmbeddedBroker;
use halfmsg_protocol::{HEADER, HalfMeta, Record, codec};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

use super::desk::LOOKS_AT_ONCE;
use super::*;
use crate::resolver::Input;
use crate::{
    HalfMessage, ListenerResult, LocalTransactionState, Message, ProducerConfig,
    TransactionListener,
};

mod dying;

const DEADLINE: Duration = Duration::from_secs(120);
/// Nothing is asked about by itself.
const NEVER: Duration = Duration::from_secs(3_600);
/// A COMMIT of version 2, as the golden tests of the format have it.
const NEWER: [u8; 48] = [
    0x68, 0x6d, 0x73, 0x67, 0x02, 0x02, 0x90, 0xa7, 0x14, 0x75, 0x01, 0x98, 0x5f, 0x2e, 0x7c, 0x1a,
    0x7f, 0x00, 0x80, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x01, 0x06, 0x08, 0x00, 0x05, 0x04, 0x03,
    0x02, 0x01, 0x00, 0x00, 0x00, 0x07, 0x04, 0x00, 0x00, 0x00, 0x00, 0x00, 0x08, 0x01, 0x00, 0x01,
];

/// Never knows.
struct Ignorant;

#[async_trait]
impl TransactionListener for Ignorant {
    type Arg = ();

    async fn execute_local_transaction(
        &self,
        _half: &HalfMessage,
        (): (),
    ) -> ListenerResult<LocalTransactionState> {
        Ok(LocalTransactionState::Unknown)
    }

    async fn check_local_transaction(
        &self,
        _half: &HalfMessage,
    ) -> ListenerResult<LocalTransactionState> {
        Ok(LocalTransactionState::Unknown)
    }
}

struct Ground {
    broker: EmbeddedBroker,
    producer: TransactionProducer,
}

impl Ground {
    async fn new() -> Self {
        Self::with(|_| {}).await
    }

    /// With more patience than any machine stands still, and these settings.
    async fn with(set: impl FnOnce(&mut ProducerConfig)) -> Self {
        let broker = EmbeddedBroker::start().expect("a loopback port");
        let mut config = ProducerConfig::new(broker.config(), "app", "group");
        for deadline in [
            &mut config.start_deadline,
            &mut config.prepare_deadline,
            &mut config.decision_deadline,
            &mut config.store_timeout,
            &mut config.check_deadline,
        ] {
            *deadline = DEADLINE;
        }
        config.check_after = NEVER;
        set(&mut config);
        for topic in [config.store_topic(), config.parked_topic(), "target".to_owned()] {
            broker.create_topic(&topic, 1).expect("a fresh broker");
        }
        let started = TransactionProducer::builder(config).listener("order", Ignorant).start();
        let producer = started.await.expect("it starts");
        until("the partition to be taken over", || producer.health().is_ok()).await;
        Self { broker, producer }
    }

    /// Its looks at the brokers, too, take as long as they take.
    fn admin(&self) -> Admin {
        let mut admin = self.producer.admin();
        for desk in [&mut admin.views, &mut admin.acts] {
            desk.limits.deadline = DEADLINE;
        }
        admin
    }

    async fn open(&self) -> TransactionId {
        let half = self.producer.begin("order", Message::new("target", "x").key("k")).await;
        half.expect("it is stored").leave_open().transaction_id
    }

    /// A record of a newer version comes into the store; its partition stands still there.
    async fn stop_the_partition(&self) {
        self.write(&NEWER);
        until("the partition to stand still", || {
            self.producer.health().is_err_and(|why| why.contains("is stopped"))
        })
        .await;
    }

    /// Writes a HALF, past the producer.
    fn write_half(&self, check_after: Option<Duration>) -> TransactionId {
        let id = TransactionId::from_uuid(uuid::Uuid::now_v7());
        self.write(&codec::encode(&Record::Half(Arc::new(HalfMeta {
            id,
            application: "app".into(),
            purpose: "order".into(),
            topic: "target".into(),
            timestamp_ms: 0,
            check_after,
            local_transaction: None,
        }))));
        id
    }

    /// Writes a record of the store, past the producer.
    fn write(&self, packed: &[u8]) {
        let producer: BaseProducer = self.broker.config().producer().create().expect("a client");
        let store = self.producer.inner.config.store_topic();
        let header = OwnedHeaders::new().insert(Header { key: HEADER, value: Some(packed) });
        let record: BaseRecord<'_, [u8], [u8]> =
            BaseRecord::to(&store).partition(0).headers(header).payload(b"x");
        producer.send(record).map_err(|(error, _)| error).expect("room in the queue");
        producer.flush(DEADLINE).expect("stored");
    }

    /// From here on the brokers are asked about everything.
    async fn without_resolver(&self) {
        self.producer.inner.inputs.send(Input::Stop).expect("it runs");
        until("the resolver to end", || {
            let health = self.producer.health();
            health.is_err_and(|why| why.contains("has ended"))
        })
        .await;
    }
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let until = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < until, "waited for {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn forced() -> OperatorRequest {
    OperatorRequest { operator: "ann".into(), reason: "looked up".into(), force: true }
}

#[tokio::test(flavor = "multi_thread")]
async fn views_leave_operators_a_place_to_look() {
    let ground = Ground::new().await;
    let id = ground.open().await;
    ground.without_resolver().await;
    let looks = Arc::clone(&ground.producer.inner.looks);
    let all = u32::try_from(LOOKS_AT_ONCE).expect("a few");
    let _views = looks.acquire_many_owned(all).await.expect("never closed");
    let done = ground.admin().rollback(id, forced()).await;
    assert_eq!(done.expect("a place of its own").state, "rolled_back");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_that_stands_still_is_named_by_its_owner_and_by_the_brokers() {
    let ground = Ground::new().await;
    let admin = ground.admin();
    let list = async || {
        let listed = admin.list(HalfFilter { limit: 10, ..HalfFilter::default() }).await;
        listed.expect("it answers")
    };
    let all = list().await;
    assert_eq!((all.items.len(), all.missing_partitions.len()), (0, 0));
    ground.stop_the_partition().await;
    let from_memory = list().await;
    let [stopped] = &from_memory.missing_partitions[..] else { panic!("{from_memory:?}") };
    assert!(stopped.stopped && stopped.reason.contains("upgrade"), "{stopped:?}");
    ground.without_resolver().await;
    assert_eq!(list().await, from_memory);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_act_that_cannot_be_written_down_is_not_begun() {
    let ground = Ground::new().await;
    let (id, admin) = (ground.open().await, ground.admin());
    let deadline = Instant::now() + DEADLINE;
    while admin.get(id).await.expect("it is in the store").is_none() {
        assert!(Instant::now() < deadline, "its owner has not read it");
    }
    let parked = ground.producer.inner.config.parked_topic();
    ground.broker.without_leader(&parked, 0).expect("it runs");
    let done = admin.commit(id, forced()).await;
    assert!(matches!(done, Err(AdminError::Unreachable(_))), "{done:?}");
    let shown = admin.get(id).await.expect("it is in the store").expect("likewise");
    assert_eq!(shown.half.state, "open");
    ground.broker.with_leader(&parked, 0).expect("it runs");
    assert_eq!(admin.commit(id, forced()).await.expect("it is open").state, "committed");
}

/// Until the parked topic has a message that is being parked, its payload is read from the store.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_being_parked_shows_its_payload() {
    let settings = |config: &mut ProducerConfig| {
        // Memory has no room for it.
        (config.max_checks, config.body_budget_bytes) = (1, 1);
    };
    let ground = Ground::with(settings).await;
    let parked = ground.producer.inner.config.parked_topic();
    ground.broker.without_leader(&parked, 0).expect("it runs");
    // No operator asks for the check: that would be written to the parked topic first.
    let id = ground.write_half(Some(Duration::ZERO));
    let (admin, deadline) = (ground.producer.admin(), Instant::now() + DEADLINE);
    loop {
        assert!(Instant::now() < deadline, "it is not parked");
        let Some(shown) = admin.get(id).await.expect("it is in the store") else { continue };
        assert_eq!(shown.payload.as_deref(), Some("x"), "{shown:?}");
        if shown.half.state == "parked" {
            break;
        }
    }
    ground.broker.with_leader(&parked, 0).expect("it runs");
}

/// A message behind the record at which its partition stands still is shown by its record; an act on it,
/// and a look for any other, is told that not everything could be looked at.
#[tokio::test(flavor = "multi_thread")]
async fn what_lies_behind_a_stop_is_not_said_to_be_settled() {
    let ground = Ground::new().await;
    let admin = ground.producer.admin();
    ground.stop_the_partition().await;
    let nowhere = TransactionId::from_uuid(uuid::Uuid::now_v7());
    // One that a replica of the newer version has stored.
    let behind = ground.write_half(None);
    for _ in 0..2 {
        let shown = admin.get(behind).await.expect("it is in the log").expect("likewise");
        assert_eq!(shown.half.state, "open");
        let not_settled = |error: AdminError| {
            let text = error.to_string();
            assert!(matches!(error, AdminError::Incomplete(_)), "{text}");
            assert!(text.contains("partition 0") && text.contains("upgrade"), "{text}");
        };
        not_settled(admin.get(nowhere).await.expect_err("it may be there"));
        not_settled(admin.rollback(behind, forced()).await.expect_err("likewise"));
        // The same by who is no owner.
        if ground.producer.health().is_err_and(|why| why.contains("is stopped")) {
            ground.without_resolver().await;
        }
    }
}

/// Nobody who owns a partition that was added since the start is asked for what this replica cannot know.
#[tokio::test(flavor = "multi_thread")]
async fn a_partition_that_was_added_is_looked_at_and_the_count_is_kept_up() {
    let ground = Ground::new().await;
    let (inner, admin) = (&ground.producer.inner, ground.admin());
    let all = HalfFilter { limit: 10, ..HalfFilter::default() };
    // Memory says all there is to know: nothing is looked at. It is asked again if it was too slow.
    inner.looks.close();
    let deadline = Instant::now() + DEADLINE;
    while let Err(error) = admin.list(all.clone()).await {
        assert!(Instant::now() < deadline, "not from memory: {error}");
    }
    let deadline = Instant::now() + DEADLINE;
    loop {
        // The count of the store itself may come in between.
        inner.shared.count(2);
        match admin.list(all.clone()).await {
            Err(AdminError::Incomplete(_)) => break,
            other => assert!(Instant::now() < deadline, "{other:?}"),
        }
    }
    until("the partitions to be counted again", || inner.shared.counted() == 1).await;
}

/// Who had a half message checked, and why, is in its history, also where its owner was asked.
#[tokio::test(flavor = "multi_thread")]
async fn a_check_by_hand_is_told_with_name_and_reason() {
    let ground = Ground::new().await;
    let (admin, mut tries) = (ground.admin(), 0);
    let (id, checked) = loop {
        let id = ground.open().await;
        let deadline = Instant::now() + DEADLINE;
        while admin.get(id).await.expect("it answers").is_none() {
            assert!(Instant::now() < deadline, "its owner has not read it");
        }
        tries += 1;
        match admin.check(id, OperatorRequest { force: false, ..forced() }).await {
            // What became of the record was not told in time: the machine may stand still once, or twice.
            Err(AdminError::Unseen(_)) if tries < 3 => {}
            checked => break (id, checked),
        }
    };
    assert_eq!(checked.expect("the listener answers").attempts, 1);
    let detail = admin.get(id).await.expect("it answers").expect("it is there");
    let told = detail.history.iter().filter(|entry| entry.event == "checked");
    let told: Vec<&str> = told.map(|entry| entry.detail.as_str()).collect();
    assert!(matches!(told[..], [told] if told.contains("by operator ann: looked up")), "{told:?}");
}

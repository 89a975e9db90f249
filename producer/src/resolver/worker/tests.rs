//! Whom a refused transaction is blamed on, on a broker in this process.

use std::time::Instant;

use halfmsg_kafka::EmbeddedBroker;
use halfmsg_protocol::{Body, Epoch, HalfMeta, HalfOffset, HalfRef, TransactionId};
use rdkafka::consumer::BaseConsumer;
use rdkafka::types::RDKafkaApiKey;
use rdkafka::types::RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED as DENIED;

use super::*;
use crate::config::ProducerConfig;
use crate::resolver::emitter::tests::parts;

fn half(topic: &str) -> Arc<Half> {
    let meta = HalfMeta {
        id: TransactionId::from_bytes([1; 16]),
        application: "tests".into(),
        purpose: "test".into(),
        topic: topic.into(),
        timestamp_ms: 0,
        check_after: None,
        local_transaction: None,
    };
    Arc::new(Half::new(meta, Body::default(), HalfOffset(0), 0))
}

fn deliver(topic: &str, settled: Option<HalfRef>) -> Item {
    let (at, since, appended_ms) = (1, Duration::ZERO, 0);
    Item { at, since, appended_ms, work: Work::Deliver(half(topic), settled) }
}

fn job(items: Vec<Item>, clears: Vec<TransactionId>) -> Job {
    Job { items, clears, progress: None }
}

/// With a target `t`.
fn broker(parts: impl Fn(&EmbeddedBroker) -> EmitterParts) -> (EmbeddedBroker, EmitterParts) {
    let broker = EmbeddedBroker::start().expect("a loopback port");
    let parts = parts(&broker);
    for topic in ["t", &parts.config.parked_topic(), &parts.config.store_topic()] {
        broker.create_topic(topic, 1).expect("a topic");
    }
    (broker, parts)
}

#[test]
fn a_target_is_not_blamed_for_the_parked_topic() {
    let (broker, parts) = broker(parts);
    let stop = AtomicBool::new(false);
    let mut worker = Worker::open(parts, 0, &stop).expect("it opens");
    let mut end = |job: Job, denials: usize| {
        let denials = vec![DENIED; denials];
        broker.refuse(RDKafkaApiKey::AddPartitionsToTxn, &denials).expect("it runs");
        match worker.carry_out(&job) {
            Some(JobEnd::Aborted(troubles)) => troubles,
            end => panic!("{end:?}"),
        }
    };
    let id = TransactionId::from_bytes([2; 16]);
    let settled = HalfRef { id, half: HalfOffset(0), epoch: Epoch(0) };
    assert_eq!(end(job(vec![deliver("t", None)], vec![id]), 2), [], "it may go without");
    let marked = end(job(vec![deliver("t", Some(settled))], Vec::new()), 2);
    let [(0, Trouble::Passing(why))] = &marked[..] else { panic!("{marked:?}") };
    assert!(why.contains("parked topic"), "{why}");
    let only = Item { work: Work::Settle(settled), ..deliver("t", None) };
    let only = end(job(vec![only], Vec::new()), 2);
    assert!(matches!(&only[..], [(0, Trouble::Passing(_))]), "health says why: {only:?}");
    // The parked topic takes the second one.
    let target = end(job(vec![deliver("t", Some(settled))], vec![id]), 1);
    assert!(matches!(&target[..], [(0, Trouble::Suspect(_))]), "{target:?}");
    let target = end(job(vec![deliver("t", None)], Vec::new()), 1);
    assert!(matches!(&target[..], [(0, Trouble::Suspect(_))]), "{target:?}");
}

#[test]
fn an_emitter_that_is_given_up_looks_for_no_target_and_sends_nothing() {
    let (broker, parts) = broker(parts);
    let stop = AtomicBool::new(false);
    let mut worker = Worker::open(parts, 0, &stop).expect("it opens");
    broker.stop().expect("it runs");
    stop.store(true, Ordering::Relaxed);
    let begun = Instant::now();
    let end = worker.carry_out(&job(vec![deliver("t", None), deliver("u", None)], Vec::new()));
    assert!(end.is_none() && begun.elapsed() < STEP, "{end:?}");
}

/// A mark must not stand where its delivery does not.
#[test]
fn at_least_once_a_message_that_its_target_refuses_is_not_marked_as_settled() {
    let (broker, mut parts) = broker(parts);
    let config = ProducerConfig { emission: Emission::AtLeastOnce, ..(*parts.config).clone() };
    parts.config = Arc::new(config);
    let (parked_topic, kafka) = (parts.config.parked_topic(), parts.config.kafka.clone());
    let stop = AtomicBool::new(false);
    let mut worker = Worker::open(parts, 0, &stop).expect("it opens");
    let settled =
        HalfRef { id: TransactionId::from_bytes([1; 16]), half: HalfOffset(0), epoch: Epoch(1) };
    let marks = || {
        let client: BaseConsumer = kafka.consumer("marks").create().expect("a client");
        client.fetch_watermarks(&parked_topic, 0, STEP).expect("the broker answers").1
    };
    broker.refuse(RDKafkaApiKey::Produce, &[DENIED]).expect("it runs");
    // The client may hear of one refusal twice: what it had sent again meanwhile is refused as well.
    let mut refused = 0;
    while let Some(JobEnd::Done(troubles)) =
        worker.carry_out(&job(vec![deliver("t", Some(settled))], Vec::new()))
        && !troubles.is_empty()
    {
        refused += 1;
        assert!(matches!(&troubles[..], [(0, Trouble::Suspect(_))]), "{troubles:?}");
        assert!(refused < 5 && marks() == 0, "{refused} refusals, {} marks", marks());
    }
    assert!(refused > 0, "it was refused");
    assert_eq!(marks(), 1);
}

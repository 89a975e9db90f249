//! Whom a refused transaction is blamed on, on a broker in this process.

use std::io;
use std::sync::Mutex;
use std::time::Instant;

use halfmsg_kafka::EmbeddedBroker;
use halfmsg_protocol::{Body, Epoch, HalfMeta, HalfOffset, HalfRef, TransactionId};
use rdkafka::consumer::BaseConsumer;
use rdkafka::types::RDKafkaApiKey;
use rdkafka::types::RDKafkaRespErr::{
    RD_KAFKA_RESP_ERR_NO_ERROR as TAKEN, RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED as DENIED,
};

use super::*;
use crate::config::ProducerConfig;
use crate::resolver::emitter::tests::{TRIES, parts};
use crate::targets::MISSING_FOR;

mod ladder;

/// Until the client asks a broker again about a topic that it was refused: before it does, it refuses the
/// topic's records by itself (librdkafka, `rd_kafka_topic_set_error`), some milliseconds on a quick
/// machine.
const TAKEN_AGAIN: Duration = Duration::from_secs(120);

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
    Arc::new(Half::new(Arc::new(meta), Body::default(), HalfOffset(0), 0))
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

/// With the target looked up: there and at its start it waits for one answer no longer than for some seconds.
fn open<'a>(parts: &EmitterParts, stop: &'a AtomicBool) -> Worker<'a> {
    parts.targets.look("t", TAKEN_AGAIN).expect("it is there");
    let mut refused = Vec::new();
    while refused.len() < TRIES {
        match Worker::open(parts.clone(), 0, stop) {
            Ok(worker) => return worker,
            Err(why) => refused.push(why),
        }
    }
    panic!("{refused:?}")
}

#[test]
fn a_target_is_not_blamed_for_the_parked_topic() {
    let (broker, parts) = broker(parts);
    let (stop, targets) = (AtomicBool::new(false), Arc::clone(&parts.targets));
    let mut worker = open(&parts, &stop);
    let mut end = |job: Job, denials: usize| {
        targets.look("t", TAKEN_AGAIN).expect("it is there");
        let denials = vec![DENIED; denials];
        broker.refuse(RDKafkaApiKey::AddPartitionsToTxn, &denials).expect("it runs");
        match worker.carry_out(&job) {
            Some(JobEnd::Aborted(troubles)) => troubles,
            end => panic!("{end:?}"),
        }
    };
    targets.denied_since("t", Instant::now() - MISSING_FOR);
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

/// A right that is new reaches the brokers one after the other.
#[test]
fn a_right_that_is_missing_for_a_moment_refuses_nothing_for_good() {
    for (emission, api) in [
        (Emission::ExactlyOnce, RDKafkaApiKey::AddPartitionsToTxn),
        (Emission::AtLeastOnce, RDKafkaApiKey::Produce),
    ] {
        let (broker, mut parts) = broker(parts);
        parts.config = Arc::new(ProducerConfig { emission, ..(*parts.config).clone() });
        let stop = AtomicBool::new(false);
        let mut worker = open(&parts, &stop);
        broker.refuse(api, &[DENIED]).expect("it runs");
        let end = worker.carry_out(&job(vec![deliver("t", None)], Vec::new()));
        let Some(JobEnd::Aborted(troubles) | JobEnd::Done(troubles)) = end else {
            panic!("{end:?}")
        };
        assert!(matches!(&troubles[..], [(0, Trouble::Passing(_))]), "{emission:?}: {troubles:?}");
        // The right has come.
        let begun = Instant::now();
        let mut end = None;
        while !matches!(&end, Some(JobEnd::Done(troubles)) if troubles.is_empty()) {
            assert!(begun.elapsed() < TAKEN_AGAIN, "{emission:?}: {end:?}");
            end = worker.carry_out(&job(vec![deliver("t", None)], Vec::new()));
        }
    }
}

/// What this thread logs.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("no panic").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_settled_message_that_is_not_cleared_is_named() {
    let (broker, mut parts) = broker(parts);
    let emission = Emission::AtLeastOnce;
    parts.config = Arc::new(ProducerConfig { emission, ..(*parts.config).clone() });
    let stop = AtomicBool::new(false);
    let mut worker = open(&parts, &stop);
    broker.refuse(RDKafkaApiKey::Produce, &[DENIED; 2]).expect("it runs");
    let log = Log::default();
    let writer = log.clone();
    let lines = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone());
    let ids = [2, 3].map(|byte| TransactionId::from_bytes([byte; 16]));
    let end = tracing::subscriber::with_default(lines.finish(), || {
        worker.carry_out(&job(Vec::new(), ids.to_vec()))
    });
    assert!(matches!(&end, Some(JobEnd::Done(troubles)) if troubles.is_empty()), "{end:?}");
    let text = String::from_utf8(log.0.lock().expect("no panic").clone()).expect("text");
    for id in ids {
        let line = |line: &&str| line.contains("stays in the parked topic");
        let named = |line: &str| line.contains(&format!("transaction_id={id}"));
        assert_eq!(text.lines().filter(line).filter(|line| named(line)).count(), 1, "{id}: {text}");
    }
}

#[test]
fn an_emitter_that_is_given_up_looks_for_no_target_and_sends_nothing() {
    let (broker, parts) = broker(parts);
    let stop = AtomicBool::new(false);
    let mut worker = open(&parts, &stop);
    broker.stop().expect("it runs");
    stop.store(true, Ordering::Relaxed);
    let mut took = Vec::new();
    // The machine may stand still once, or twice.
    for _ in 0..3 {
        let begun = Instant::now();
        let end = worker.carry_out(&job(vec![deliver("t", None), deliver("u", None)], Vec::new()));
        assert!(end.is_none(), "{end:?}");
        took.push(begun.elapsed());
    }
    assert!(took.iter().any(|took| *took < STEP), "{took:?}");
}

/// A mark must not stand where its delivery does not.
#[test]
fn at_least_once_a_message_that_its_target_refuses_is_not_marked_as_settled() {
    let (broker, mut parts) = broker(parts);
    let config = ProducerConfig { emission: Emission::AtLeastOnce, ..(*parts.config).clone() };
    parts.config = Arc::new(config);
    let (parked_topic, kafka) = (parts.config.parked_topic(), parts.config.kafka.clone());
    let (stop, targets) = (AtomicBool::new(false), Arc::clone(&parts.targets));
    let mut worker = open(&parts, &stop);
    let settled =
        HalfRef { id: TransactionId::from_bytes([1; 16]), half: HalfOffset(0), epoch: Epoch(1) };
    let marks = || {
        let client: BaseConsumer = kafka.consumer("marks").create().expect("a client");
        client.fetch_watermarks(&parked_topic, 0, TAKEN_AGAIN).expect("the broker answers").1
    };
    targets.denied_since("t", Instant::now() - MISSING_FOR);
    broker.refuse(RDKafkaApiKey::Produce, &[DENIED]).expect("it runs");
    let (mut refused, begun) = (0, Instant::now());
    while let Some(JobEnd::Done(troubles)) =
        worker.carry_out(&job(vec![deliver("t", Some(settled))], Vec::new()))
        && !troubles.is_empty()
    {
        refused += 1;
        assert!(matches!(&troubles[..], [(0, Trouble::Suspect(_))]), "{troubles:?}");
        assert_eq!(marks(), 0, "{refused} refusals");
        assert!(begun.elapsed() < TAKEN_AGAIN, "{refused} refusals");
    }
    assert!(refused > 0, "it was refused");
    assert_eq!(marks(), 1);
}

/// One whose mark cannot be written was delivered all the same.
#[test]
fn at_least_once_a_mark_that_is_refused_is_no_reason_to_deliver_again() {
    let (broker, mut parts) = broker(parts);
    let config = ProducerConfig { emission: Emission::AtLeastOnce, ..(*parts.config).clone() };
    parts.config = Arc::new(config);
    let (parked_topic, kafka) = (parts.config.parked_topic(), parts.config.kafka.clone());
    let stop = AtomicBool::new(false);
    let mut worker = open(&parts, &stop);
    let settled =
        HalfRef { id: TransactionId::from_bytes([1; 16]), half: HalfOffset(0), epoch: Epoch(1) };
    // The delivery is taken, its mark is not.
    broker.refuse(RDKafkaApiKey::Produce, &[TAKEN, DENIED]).expect("it runs");
    let end = worker.carry_out(&job(vec![deliver("t", Some(settled))], Vec::new()));
    let Some(JobEnd::Done(troubles)) = end else { panic!("{end:?}") };
    assert!(matches!(&troubles[..], [(0, Trouble::Unmarked(_))]), "{troubles:?}");
    let count = |topic: &str| {
        let client: BaseConsumer = kafka.consumer("marks").create().expect("a client");
        client.fetch_watermarks(topic, 0, TAKEN_AGAIN).expect("the broker answers").1
    };
    assert_eq!((count("t"), count(&parked_topic)), (1, 0));
    let mark = Item { work: Work::Settle(settled), ..deliver("t", None) };
    let begun = Instant::now();
    loop {
        let end = worker.carry_out(&job(vec![again(&mark)], Vec::new()));
        if matches!(&end, Some(JobEnd::Done(troubles)) if troubles.is_empty()) {
            break;
        }
        assert!(begun.elapsed() < TAKEN_AGAIN, "the parked topic takes it: {end:?}");
        assert_eq!(count(&parked_topic), 0, "{end:?}");
    }
    assert_eq!((count("t"), count(&parked_topic)), (1, 1));
}

fn again(item: &Item) -> Item {
    let Work::Settle(of) = &item.work else { panic!("a mark") };
    Item { work: Work::Settle(*of), ..*item }
}

//! Who may still fence, and what is known after a failed commit, on a broker in this process (which
//! fences nobody itself).

use std::time::{Duration, Instant};

use halfmsg_kafka::EmbeddedBroker;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

use super::*;
use crate::config::Emission;
use crate::log::StoreLog;
use crate::resolver::takeover::WITHDRAWN;
use crate::resolver::{assignment, worker};

const DEADLINE: Duration = Duration::from_secs(30);

pub(in crate::resolver) fn parts(broker: &EmbeddedBroker) -> EmitterParts {
    let mut config = ProducerConfig::new(broker.config(), "tests", "group");
    config.emission = Emission::ExactlyOnce;
    let log = StoreLog::new(&config.kafka, config.store_topic(), DEADLINE, 1_000_000);
    EmitterParts {
        consumer: assignment::consumer(&config, 1, Default::default()).expect("a client"),
        targets: Arc::new(Targets::new(Arc::new(log.expect("a client")))),
        inputs: mpsc::channel().0,
        generation: 1,
        claim: Arc::default(),
        config: Arc::new(config),
    }
}

/// Begins to take partition 0 over.
fn begin(parts: &EmitterParts) -> (Emitter, mpsc::Receiver<Ready>) {
    let (ready, answers) = mpsc::channel();
    (Emitter::start(parts.clone(), 0, ready).expect("a thread"), answers)
}

fn answer(answers: &mpsc::Receiver<Ready>) -> Result<(), String> {
    answers.recv_timeout(DEADLINE).expect("it answers").1
}

#[test]
fn an_overtaken_takeover_fences_nobody() {
    let broker = EmbeddedBroker::start().expect("a loopback port");
    let parts = parts(&broker);
    assert_eq!(answer(&begin(&parts).1), Ok(()), "it counts");
    // Given up, or assigned anew, before the next one's turn came.
    parts.claim.withdraw();
    assert_eq!(answer(&begin(&parts).1), Err(WITHDRAWN.to_owned()));
    assert!(parts.claim.is_quiet());
}

#[test]
fn a_takeover_that_is_overtaken_under_way_does_not_try_on() {
    let broker = EmbeddedBroker::start().expect("a loopback port");
    let parts = parts(&broker);
    broker.stop().expect("it runs");
    let (_emitter, answers) = begin(&parts);
    assert!(answers.recv_timeout(worker::INIT_STEP / 2).is_err(), "nobody answers its call");
    assert!(!parts.claim.is_quiet(), "it is under way");
    let overtaken = Instant::now();
    parts.claim.withdraw();
    assert_eq!(answer(&answers), Err(WITHDRAWN.to_owned()));
    // Its call comes to its end before the partitions are given up; a machine that stands still has its share.
    // One that tried on would go on for as long as the broker is away.
    let most = 6 * assignment::REVOKE_DEADLINE;
    assert!(overtaken.elapsed() < most, "{:?}", overtaken.elapsed());
}

#[test]
fn after_a_failed_commit_only_the_stored_progress_tells() {
    let broker = EmbeddedBroker::start().expect("a loopback port");
    let (inputs, ended) = mpsc::channel();
    let parts = EmitterParts { inputs, ..parts(&broker) };
    broker.create_topic(&parts.config.parked_topic(), 1).expect("a fresh broker");
    let (emitter, answers) = begin(&parts);
    assert_eq!(answer(&answers), Ok(()));
    // An error that the client does not know asks for an abort.
    let unknown = RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN;
    broker.refuse(RDKafkaApiKey::EndTxn, &[unknown]).expect("it runs");
    let clears = vec![TransactionId::from_bytes([1; 16])];
    let job = Job { items: Vec::new(), clears, progress: None };
    assert!(emitter.begin(job).is_ok());
    let ended = ended.recv_timeout(DEADLINE).expect("it ends");
    let Input::Emitted { end, .. } = ended else { panic!("the end of a batch") };
    assert!(matches!(end, JobEnd::Lost(_)), "sent again, it might be there twice: {end:?}");
}

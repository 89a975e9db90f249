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

const DEADLINE: Duration = Duration::from_secs(120);
/// What has a deadline of its own is tried so often: the machine may stand still once, or twice.
pub(in crate::resolver) const TRIES: usize = 3;

pub(in crate::resolver) fn parts(broker: &EmbeddedBroker) -> EmitterParts {
    let mut config = ProducerConfig::new(broker.config(), "tests", "group");
    config.emission = Emission::ExactlyOnce;
    // Records are given up after it.
    config.transaction_timeout = DEADLINE;
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

/// Takes partition 0 over.
fn begun(parts: &EmitterParts) -> Emitter {
    let mut refused = Vec::new();
    while refused.len() < TRIES {
        let (emitter, answers) = begin(parts);
        match answer(&answers) {
            Ok(()) => return emitter,
            Err(why) => refused.push(why),
        }
    }
    panic!("{refused:?}")
}

fn answer(answers: &mpsc::Receiver<Ready>) -> Result<(), String> {
    answers.recv_timeout(DEADLINE).expect("it answers").1
}

#[test]
fn an_overtaken_takeover_fences_nobody() {
    let broker = EmbeddedBroker::start().expect("a loopback port");
    let parts = parts(&broker);
    // It counts.
    drop(begun(&parts));
    // Given up, or assigned anew, before the next one's turn came.
    parts.claim.withdraw();
    assert_eq!(answer(&begin(&parts).1), Err(WITHDRAWN.to_owned()));
    assert!(parts.claim.is_quiet());
}

/// Its call comes to its end before the partitions are given up; a machine that stands still has its share.
/// One that tried on would go on for as long as the broker is away.
#[test]
fn a_takeover_that_is_overtaken_under_way_does_not_try_on() {
    let mut took = Vec::new();
    while took.iter().all(|took| *took >= 6 * assignment::REVOKE_DEADLINE) {
        assert!(took.len() < TRIES, "{took:?}");
        took.push(an_overtaken_takeover_takes());
    }
}

/// From when it is overtaken to its end.
fn an_overtaken_takeover_takes() -> Duration {
    let broker = EmbeddedBroker::start().expect("a loopback port");
    let parts = parts(&broker);
    broker.stop().expect("it runs");
    let begun = Instant::now();
    let (_emitter, answers) = begin(&parts);
    assert!(answers.recv_timeout(worker::INIT_STEP / 2).is_err(), "nobody answers its call");
    assert!(!parts.claim.is_quiet(), "it is under way");
    let overtaken = Instant::now();
    parts.claim.withdraw();
    let ended = answer(&answers);
    // Beyond, it has ended by itself.
    if begun.elapsed() < worker::OPEN_DEADLINE {
        assert_eq!(ended, Err(WITHDRAWN.to_owned()));
    }
    overtaken.elapsed()
}

#[test]
fn after_a_failed_commit_only_the_stored_progress_tells() {
    let broker = EmbeddedBroker::start().expect("a loopback port");
    let (inputs, ended) = mpsc::channel();
    let parts = EmitterParts { inputs, ..parts(&broker) };
    broker.create_topic(&parts.config.parked_topic(), 1).expect("a fresh broker");
    let emitter = begun(&parts);
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

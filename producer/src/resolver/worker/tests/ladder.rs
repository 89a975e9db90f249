//! How errors of the transactional calls are climbed down from: each class that librdkafka documents, and
//! what of it the client mends by itself.

use std::sync::mpsc;

use rdkafka::types::RDKafkaRespErr::{
    self, RD_KAFKA_RESP_ERR_COORDINATOR_LOAD_IN_PROGRESS as LOADING,
    RD_KAFKA_RESP_ERR_ILLEGAL_GENERATION as ILLEGAL_GENERATION,
    RD_KAFKA_RESP_ERR_INVALID_PRODUCER_EPOCH as OLD_EPOCH,
    RD_KAFKA_RESP_ERR_NOT_COORDINATOR as NOT_COORDINATOR,
    RD_KAFKA_RESP_ERR_PRODUCER_FENCED as FENCED, RD_KAFKA_RESP_ERR_UNKNOWN as UNKNOWN,
    RD_KAFKA_RESP_ERR_UNKNOWN_MEMBER_ID as UNKNOWN_MEMBER,
};

use super::*;

/// How a batch with progress ends.
#[derive(Debug, PartialEq)]
enum End {
    Done,
    /// The transaction is over, and the next one may be begun with the same client.
    Aborted,
    /// Another client must be made, which reads what was stored.
    Lost,
}

fn with_progress() -> Job {
    let progress = Some(Progress { low_water: 1, position: 2 });
    Job { progress, ..job(vec![deliver("t", None)], Vec::new()) }
}

fn end(worker: &mut Worker<'_>) -> End {
    // However long ago it was looked at.
    worker.parts.targets.look("t", TAKEN_AGAIN).expect("it is there");
    match worker.carry_out(&with_progress()) {
        Some(JobEnd::Done(troubles)) if troubles.is_empty() => End::Done,
        Some(JobEnd::Aborted(troubles)) if troubles.is_empty() => End::Aborted,
        Some(JobEnd::Lost(_)) => End::Lost,
        end => panic!("{end:?}"),
    }
}

#[test]
fn each_class_of_error_has_its_own_end() {
    use RDKafkaApiKey::{AddOffsetsToTxn, EndTxn, TxnOffsetCommit};
    let cases: &[(RDKafkaApiKey, &[RDKafkaRespErr], End)] = &[
        // Retried by the client itself.
        (AddOffsetsToTxn, &[LOADING, NOT_COORDINATOR], End::Done),
        (TxnOffsetCommit, &[LOADING, NOT_COORDINATOR], End::Done),
        (EndTxn, &[LOADING, NOT_COORDINATOR], End::Done),
        // The group has given the member up: its progress is another one's.
        (TxnOffsetCommit, &[UNKNOWN_MEMBER], End::Aborted),
        (TxnOffsetCommit, &[ILLEGAL_GENERATION], End::Aborted),
        // Another owner.
        (AddOffsetsToTxn, &[OLD_EPOCH], End::Lost),
        (EndTxn, &[FENCED], End::Lost),
        (EndTxn, &[OLD_EPOCH], End::Lost),
        // What asks for an abort of a commit does not say that nothing was committed.
        (EndTxn, &[UNKNOWN], End::Lost),
    ];
    for (request, errors, expected) in cases {
        let (broker, parts) = broker(parts);
        let stop = AtomicBool::new(false);
        let mut worker = open(&parts, &stop);
        assert_eq!(end(&mut worker), End::Done, "{request:?} {errors:?}: before");
        broker.refuse(*request, errors).expect("it runs");
        assert_eq!(end(&mut worker), *expected, "{request:?} {errors:?}");
        if *expected == End::Aborted {
            assert_eq!(end(&mut worker), End::Done, "{request:?} {errors:?}: behind it");
        }
    }
}

/// A call that gives up waiting has not failed: the very same one is made again, and ends although each
/// answer takes longer than one wait.
#[test]
fn long_a_call_that_is_answered_late_is_repeated() {
    let (broker, parts) = broker(parts);
    let stop = AtomicBool::new(false);
    let mut worker = open(&parts, &stop);
    assert_eq!(end(&mut worker), End::Done, "before");
    broker.round_trip_time(STEP + Duration::from_millis(500)).expect("it runs");
    let log = Log::default();
    let writer = log.clone();
    let lines = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::DEBUG)
        .with_ansi(false)
        .with_writer(move || writer.clone());
    let ended = std::thread::scope(|scope| {
        let (done, is_done) = mpsc::channel::<()>();
        let stop = &stop;
        scope.spawn(move || {
            if is_done.recv_timeout(TAKEN_AGAIN) == Err(mpsc::RecvTimeoutError::Timeout) {
                stop.store(true, Ordering::Relaxed);
            }
        });
        let ended = tracing::subscriber::with_default(lines.finish(), || end(&mut worker));
        drop(done);
        ended
    });
    assert_eq!(ended, End::Done);
    let text = String::from_utf8(log.0.lock().expect("no panic").clone()).expect("text");
    let repeated = text.lines().filter(|line| line.contains("a transactional call is repeated"));
    assert!(repeated.count() > 0, "{text}");
}

//! A client that has failed for good is replaced, and nobody waits for what it never sent.

use std::time::{Duration, Instant};

use halfmsg_kafka::EmbeddedBroker;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

use super::*;

const STORE: &str = "store";
const DEADLINE: Duration = Duration::from_secs(120);
/// What ends an idempotent client for good.
const REFUSED: RDKafkaRespErr = RDKafkaRespErr::RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED;

fn broker() -> EmbeddedBroker {
    let broker = EmbeddedBroker::start().expect("loopback");
    broker.create_topic(STORE, 1).expect("a fresh broker");
    broker
}

fn log(broker: &EmbeddedBroker) -> StoreLog {
    StoreLog::new(&broker.config(), STORE.into(), DEADLINE, 1_000_000).expect("valid settings")
}

async fn append(log: &StoreLog) -> Result<i64, AppendError> {
    let part = Part { payload: Some(b"x"), ..Part::default() };
    let written = log.append_by(0, b"packed", part, Instant::now() + DEADLINE).await?;
    Ok(written.offset)
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let until = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < until, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_client_that_has_failed_is_shown_and_replaced_by_the_next_record() {
    let broker = broker();
    broker.refuse(RDKafkaApiKey::InitProducerId, &[REFUSED]).expect("it runs");
    let log = log(&broker);
    until("the client fails", || log.problem().is_some()).await;
    assert_eq!(append(&log).await, Ok(0));
    assert_eq!(log.problem(), None);
}

#[tokio::test]
async fn without_a_record_the_look_at_the_broker_replaces_it() {
    let broker = broker();
    broker.refuse(RDKafkaApiKey::InitProducerId, &[REFUSED]).expect("it runs");
    let log = log(&broker);
    until("the client fails", || log.problem().is_some()).await;
    until("it is replaced and proven", || {
        log.look_after(DEADLINE).is_ok() && log.problem().is_none()
    })
    .await;
}

#[tokio::test]
async fn whoever_waits_when_the_client_fails_is_told() {
    let broker = broker();
    broker.stop().expect("it runs");
    let log = log(&broker);
    let waiting: Vec<_> = (0..10).map(|_| Arc::new(Waiter::caller())).collect();
    for waiter in &waiting {
        log.send(Way::Prompt, 0, b"packed", Part::default(), waiter);
    }
    broker.refuse(RDKafkaApiKey::InitProducerId, &[REFUSED]).expect("it runs");
    broker.resume().expect("it runs");
    for waiter in &waiting {
        let told = tokio::time::timeout(DEADLINE, Acked(waiter)).await;
        assert!(told.expect("told before the deadline").is_err());
    }
    // Nothing of theirs was stored, and nothing keeps them but us.
    assert_eq!(append(&log).await, Ok(0));
    until("the failed client lets go", || {
        waiting.iter().all(|waiter| Arc::strong_count(waiter) == 1)
    })
    .await;
}

#[tokio::test]
async fn one_that_fails_again_is_replaced_again_after_a_pause() {
    let broker = broker();
    broker.refuse(RDKafkaApiKey::InitProducerId, &[REFUSED, REFUSED]).expect("it runs");
    let log = log(&broker);
    until("the client fails", || log.problem().is_some()).await;
    let until = Instant::now() + DEADLINE;
    let mut failures = 0;
    while let Err(error) = append(&log).await {
        assert!(matches!(error, AppendError::Failed(_)), "{error}");
        assert!(Instant::now() < until, "it is not replaced");
        failures += 1;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(failures > 0, "the second client has failed too");
    assert_eq!(log.problem(), None);
}

/// What comes from now on is dense.
fn densely(log: StoreLog) -> StoreLog {
    StoreLog { pace: Pace::dense(), ..log }
}

fn is_second_client_used(log: &StoreLog) -> bool {
    log.patient.get().is_some_and(Option::is_some)
}

#[tokio::test]
async fn dense_records_go_through_a_client_of_their_own() {
    let broker = broker();
    let log = log(&broker);
    assert_eq!(append(&log).await, Ok(0));
    assert!(!is_second_client_used(&log), "nobody needs it");
    let log = densely(log);
    let all = futures::future::join_all((0..100).map(|_| append(&log))).await;
    let mut offsets: Vec<i64> = all.into_iter().map(|at| at.expect("stored")).collect();
    offsets.sort_unstable();
    assert_eq!(offsets, (1..=100).collect::<Vec<_>>());
    assert!(is_second_client_used(&log));
    log.flush(DEADLINE);
    assert!(log.look_after(DEADLINE).is_ok());
}

#[tokio::test]
async fn their_client_is_shown_when_it_has_failed_and_replaced() {
    let broker = broker();
    let log = log(&broker);
    assert_eq!(append(&log).await, Ok(0));
    broker.refuse(RDKafkaApiKey::InitProducerId, &[REFUSED]).expect("it runs");
    let log = densely(log);
    // Taken in by the client before it fails, and told; or sent through the next one.
    let first = append(&log).await;
    if first.is_err() {
        assert!(log.problem().is_some(), "{first:?}");
    }
    let stored = i64::from(first.is_ok());
    assert_eq!(append(&log).await, Ok(1 + stored));
    assert_eq!(log.problem(), None);
}

#[tokio::test]
async fn whoever_sets_the_wait_by_hand_has_it_for_all() {
    let broker = broker();
    for name in LINGER {
        let mut kafka = broker.config();
        kafka.properties.insert(name.into(), "0".into());
        let log = StoreLog::new(&kafka, STORE.into(), DEADLINE, 1_000_000).expect("valid settings");
        let log = densely(log);
        assert!(append(&log).await.is_ok());
        assert!(!is_second_client_used(&log), "{name}");
    }
}

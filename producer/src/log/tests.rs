//! A client that has failed for good is replaced, and nobody waits for what it never sent. Dense records of
//! many have a client of their own, of which the same holds, and without which they go through the first.

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

/// One at which what comes from now on is dense, and that has the client for it.
async fn dense_log(broker: &EmbeddedBroker) -> StoreLog {
    let log = StoreLog { pace: Pace::dense(), ..log(broker) };
    assert_eq!(log.way(MANY_OPEN), Way::Prompt, "a caller makes no client");
    until("it may be used", || is_second_usable(&log)).await;
    log
}

fn is_second_usable(log: &StoreLog) -> bool {
    log.look_after_second(DEADLINE);
    log.way(MANY_OPEN) == Way::Patient
}

fn send(log: &StoreLog, way: Way) -> Arc<Waiter> {
    log.sent(way, 0, b"packed", Part { payload: Some(b"x"), ..Part::default() })
}

async fn end(log: &StoreLog, sent: &Waiter) -> Result<i64, AppendError> {
    Ok(log.acked(sent, Instant::now() + DEADLINE).await?.offset)
}

#[tokio::test]
async fn dense_records_of_many_have_a_client_of_their_own_and_keep_their_order() {
    let broker = broker();
    let log = dense_log(&broker).await;
    assert_eq!(log.way(MANY_OPEN - 1), Way::Prompt, "few would wait for nobody");
    broker.stop().expect("it runs");
    let sent: Vec<_> = (0..100).map(|_| send(&log, log.way(MANY_OPEN))).collect();
    assert_eq!((log.prompt.under_way(), log.patient.under_way()), (0, 100));
    broker.resume().expect("it runs");
    for (number, waiter) in (0..).zip(&sent) {
        assert_eq!(end(&log, waiter).await, Ok(number));
    }
}

#[tokio::test]
async fn their_client_waits_for_company_and_the_other_does_not() {
    let log = log(&broker());
    assert_eq!(log.prompt.setting(LINGER[0]), Some("0"));
    assert_eq!(log.patient.setting(LINGER[0]), Some(COMPANY_MILLIS));
}

#[tokio::test]
async fn what_they_have_sent_is_waited_for_when_it_ends() {
    let broker = broker();
    let log = dense_log(&broker).await;
    let sent: Vec<_> = (0..100).map(|_| send(&log, Way::Patient)).collect();
    log.flush(DEADLINE);
    for waiter in sent {
        assert!(futures::poll!(Acked(&waiter)).is_ready());
    }
}

/// One whose second client fails when it asks for its id, and is not used for it.
#[tokio::test]
async fn without_their_client_they_go_through_the_other_until_it_is_replaced() {
    let broker = broker();
    let log = StoreLog { pace: Pace::dense(), ..log(&broker) };
    assert_eq!(append(&log).await, Ok(0));
    assert_eq!(log.way(MANY_OPEN), Way::Prompt);
    broker.refuse(RDKafkaApiKey::InitProducerId, &[REFUSED]).expect("it runs");
    log.look_after_second(DEADLINE);
    until("the second client fails", || log.patient.problem().is_some()).await;
    assert_eq!(end(&log, &send(&log, Way::Patient)).await, Ok(1), "the other takes it");
    assert_eq!(log.problem(), None, "nothing is refused for it");
    assert_eq!(log.way(MANY_OPEN), Way::Prompt);
    until("it is replaced", || is_second_usable(&log)).await;
    assert_eq!(end(&log, &send(&log, Way::Patient)).await, Ok(2));
}

#[tokio::test]
async fn a_client_of_which_nothing_is_acknowledged_is_not_used() {
    let broker = broker();
    let log = dense_log(&broker).await;
    broker.stop().expect("it runs");
    let sent = send(&log, Way::Patient);
    until("it is seen to stand still", || log.patient.stands_still()).await;
    broker.resume().expect("it runs");
    assert_eq!(end(&log, &sent).await, Ok(0));
    until("it may be used again", || is_second_usable(&log)).await;
}

#[tokio::test]
async fn whoever_sets_the_wait_by_hand_has_it_for_all() {
    let broker = broker();
    for name in LINGER {
        let mut kafka = broker.config();
        kafka.properties.insert(name.into(), "7".into());
        let log = StoreLog::new(&kafka, STORE.into(), DEADLINE, 1_000_000).expect("valid settings");
        let log = StoreLog { pace: Pace::dense(), ..log };
        assert_eq!(log.prompt.setting(LINGER[0]), Some("7"), "{name}");
        assert_eq!(log.way(MANY_OPEN), Way::Prompt);
        assert!(!is_second_usable(&log), "{name}");
    }
}

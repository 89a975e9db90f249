//! Row 29, on real Kafka: targets that are missing, go away or refuse; and a store that would lose
//! messages.

use std::time::{Duration, Instant};

use futures::future::{join_all, try_join_all};
use halfmsg_producer::{
    HalfState, Message, PrepareError, StartError, TransactionId, TransactionProducer,
};

use super::Env;
use super::env::PARTITIONS;
use super::metrics::metric;
use super::progress::carried_out;
use super::reader::{Reader, counts, once_each};
use super::setup::{Setup, answered, operator, text};
use super::told::{Do, PURPOSE, Told};
use super::{PATIENCE, until};

/// Refused before anything is stored or run.
pub(crate) async fn c29_missing_target_is_refused(env: Env) {
    let setup = Setup::new(env, Do::Rollback).await;
    let missing = setup.env.named("missing");
    let message = Message::new(&missing, "to nowhere");
    let refused = setup.producer.send_in_transaction(PURPOSE, message, Do::Commit).await;
    match refused {
        Err(PrepareError::UnknownTopic(topic)) => assert_eq!(topic, missing),
        other => panic!("{other:?}"),
    }
    assert!(setup.told.executed().is_empty());
    // It is known as soon as it is there.
    setup.env.broker.create_topic(&missing, PARTITIONS, &[]).await;
    let reader = Reader::start(&setup.config.kafka, &missing).await;
    let message = Message::new(&missing, "it is there now");
    let sent = setup.producer.send_in_transaction(PURPOSE, message, Do::Commit).await;
    sent.expect("it is stored");
    reader.sees("it is there now").await;
    setup.ends_with(0..0).await;
}

/// Deleted between prepare and commit: parked with the reason, the partition goes on; resumed when
/// the topic is back, it is delivered.
pub(crate) async fn c29_target_gone_parks_and_resumes(env: Env) {
    let setup = Setup::new(env, Do::Commit).await;
    let gone = setup.env.topic("gone").await;
    let first = Message::new(&gone, "undeliverable").key("one key");
    let first = setup.producer.begin(PURPOSE, first).await.expect("it is stored");
    setup.env.broker.delete_topic(&gone).await;
    first.commit().await.expect("it is stored");
    let id = first.receipt().transaction_id;
    let behind = Message::new(&setup.target, "behind it").key("one key");
    let behind = setup.producer.begin(PURPOSE, behind).await.expect("it is stored");
    assert_eq!(behind.receipt().partition, first.receipt().partition);
    behind.commit().await.expect("it is stored");
    setup.reader.sees("behind it").await;
    parked_as_undeliverable(&setup, id, &gone).await;
    setup.ready().await;

    setup.env.broker.create_topic(&gone, PARTITIONS, &[]).await;
    let reader = Reader::start(&setup.config.kafka, &gone).await;
    let resumed = answered(async || setup.producer.admin().resume(id, operator(false)).await).await;
    resumed.expect("it is parked");
    let found = reader.sees("undeliverable").await;
    assert_eq!(found.transaction_id, id);
    setup.none_open().await;
    let delivered = reader.everything_of(&setup.config).await;
    assert_eq!(counts(&delivered), once_each(["undeliverable".to_owned()]));
    setup.listed(HalfState::Parked, 0).await;
    setup.producer.shutdown().await;
}

/// Missing when it is looked for, as on a broker that lags behind: nothing is refused for good before
/// it has been missing for a while.
pub(crate) async fn c29_target_gone_for_a_moment_is_delivered_to(env: Env) {
    /// A moment: less than what makes it refused for good.
    const MOMENT: Duration = Duration::from_secs(9);
    const TRIES: usize = 5;
    let setup = Setup::new(env, Do::Commit).await;
    for number in 0..TRIES {
        if let Some(took) = gone_for_a_moment(&setup, number).await {
            assert!(took > MOMENT, "refused for good {took:?} after it went");
            println!("it was missing for {took:?}: once more");
            continue;
        }
        return setup.producer.shutdown().await;
    }
    panic!("a topic was missing for more than {MOMENT:?}, {TRIES} times");
}

/// One that goes and comes back. If the message was parked, because that took too long: how long.
async fn gone_for_a_moment(setup: &Setup, number: usize) -> Option<Duration> {
    let gone = setup.env.topic(&format!("gone-{number}")).await;
    let message = Message::new(&gone, "it is there again");
    let begun = setup.producer.begin(PURPOSE, message).await.expect("it is stored");
    let aborted = || metric(&setup.producer, "halfmsg_batches_total{outcome=\"aborted\"}");
    let before = aborted();
    let went = Instant::now();
    setup.env.broker.delete_topic(&gone).await;
    begun.commit().await.expect("it is stored");
    until(PATIENCE, "a delivery to fail", async || {
        if aborted() > before { Ok(()) } else { Err("none has") }
    })
    .await;
    setup.env.broker.create_topic(&gone, PARTITIONS, &[]).await;
    carried_out(&setup.config, &[]).await;
    let took = went.elapsed();
    let reader = Reader::start(&setup.config.kafka, &gone).await;
    let delivered = reader.everything_of(&setup.config).await;
    let id = begun.receipt().transaction_id;
    let state = answered(async || setup.producer.admin().get(id).await).await;
    let state = state.expect("Kafka answers").expect("it is known").half.state;
    if state == "parked" {
        assert!(delivered.is_empty(), "{delivered:?}");
        return Some(took);
    }
    assert_eq!(counts(&delivered), once_each(["it is there again".to_owned()]));
    None
}

/// A target that takes no message of this size: parked with the reason, the partition goes on.
pub(crate) async fn c29_target_that_refuses_parks(env: Env) {
    let setup = Setup::new(env, Do::Commit).await;
    let narrow = setup.env.named("narrow");
    let limit = [("max.message.bytes", "2000")];
    setup.env.broker.create_topic(&narrow, PARTITIONS, &limit).await;
    let reader = Reader::start(&setup.config.kafka, &narrow).await;
    let large = Message::new(&narrow, vec![b'x'; 10_000]).key("one key");
    let large = setup.producer.send_in_transaction(PURPOSE, large, Do::Commit).await;
    let large = large.expect("it is stored");
    let small = Message::new(&narrow, "small").key("one key");
    let small = setup.producer.send_in_transaction(PURPOSE, small, Do::Commit).await;
    assert_eq!(small.expect("it is stored").partition, large.partition);
    reader.sees("small").await;
    parked_as_undeliverable(&setup, large.transaction_id, &narrow).await;
    let delivered = reader.everything_of(&setup.config).await;
    assert_eq!(counts(&delivered), once_each(["small".to_owned()]));
    setup.ready().await;
    setup.producer.shutdown().await;
}

/// One of 500 that its target refuses: it is parked, the others are delivered once, and so is what
/// comes behind them.
pub(crate) async fn c29_one_of_500_is_refused(env: Env) {
    const ALL: usize = 500;
    const REFUSED: usize = 237;
    let setup = Setup::new(env, Do::Rollback).await;
    let narrow = setup.env.named("narrow");
    let limit = [("max.message.bytes", "200000")];
    setup.env.broker.create_topic(&narrow, PARTITIONS, &limit).await;
    let reader = Reader::start(&setup.config.kafka, &narrow).await;
    let begun = (0..ALL).map(|number| {
        let payload = if number == REFUSED { "x".repeat(300_000) } else { text(number) };
        // One store partition, so that they share batches.
        let message = Message::new(&narrow, payload).key("one key");
        setup.producer.begin(PURPOSE, message)
    });
    let begun = try_join_all(begun).await.expect("they are stored");
    for committed in join_all(begun.iter().map(|transaction| transaction.commit())).await {
        committed.expect("it is stored");
    }
    let behind = Message::new(&narrow, "behind them").key("one key");
    let behind = setup.producer.send_in_transaction(PURPOSE, behind, Do::Commit).await;
    behind.expect("it is stored");
    reader.sees("behind them").await;
    parked_as_undeliverable(&setup, begun[REFUSED].receipt().transaction_id, &narrow).await;
    let delivered = reader.everything_of(&setup.config).await;
    let others = (0..ALL).filter(|number| *number != REFUSED).map(text);
    assert_eq!(counts(&delivered), once_each(others.chain(["behind them".to_owned()])));
    setup.ready().await;
    setup.producer.shutdown().await;
}

async fn parked_as_undeliverable(setup: &Setup, id: TransactionId, topic: &str) {
    let seen = setup.shows(id, "it to be parked", |seen| seen.half.state == "parked").await;
    let reason = seen.half.last_outcome.unwrap_or_default();
    assert!(reason.starts_with("undeliverable") && reason.contains(topic), "{reason}");
    let events: Vec<_> = seen.history.iter().map(|entry| entry.event).collect();
    assert_eq!(events, ["stored", "committed", "parked"], "{:#?}", seen.history);
    assert!(seen.payload.is_some(), "its payload is shown");
    let listed = setup.listed(HalfState::Parked, 1).await;
    assert_eq!(listed[0].transaction_id, id.to_string());
}

/// A store whose records are deleted by time is refused at start; the message says what to do.
pub(crate) async fn c29_a_store_that_would_lose_messages_is_refused(env: Env) {
    let config = env.group().await;
    let store = config.store_topic();
    env.broker.create_topic(&store, PARTITIONS, &[("retention.ms", "3600000")]).await;
    let builder = TransactionProducer::builder(config);
    let started = builder.listener(PURPOSE, Told::otherwise(Do::Commit)).start().await;
    let Err(error) = started else { panic!("it started") };
    assert!(matches!(error, StartError::Topic(_)), "{error:?}");
    let text = error.to_string();
    for part in
        [store.as_str(), "retention.ms=3600000", "kafka-configs.sh", "messages could be lost"]
    {
        assert!(text.contains(part), "{text}");
    }
}

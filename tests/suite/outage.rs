//! Rows 6 and 25: Kafka is away, and comes back.

use std::time::{Duration, Instant};

use futures::future::join_all;
use halfmsg_producer::{Message, PrepareError, TransactionProducer};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::env::SOON_GIVEN_UP;
use super::load::Load;
use super::progress::{carried_out, carried_out_within};
use super::setup::{Setup, as_promised, text};
use super::told::{Do, PURPOSE};
use super::{Env, PATIENCE, until};

/// Over a deadline, on a loaded machine; less than the store's own timeout, which nobody waits for.
const MARGIN: Duration = Duration::from_secs(20);
/// From the end of an outage to the return of the partitions: a replica without an instance id comes
/// back as a new member, for which the group waits until it has given the old one up.
const REJOINED_WITHIN: Duration = Duration::from_secs(300);
/// Transactions between two outages.
const BETWEEN: usize = 150;
/// So long the broker stands still: a moment; longer than a drain; longer than transactions and the
/// group's session last.
const PAUSES: [Duration; 3] =
    [Duration::from_secs(1), Duration::from_secs(4), Duration::from_secs(14)];
/// Between two decisions while the broker is being stopped, which takes a few of them.
const STEP: Duration = Duration::from_millis(50);
/// Of each twelve decisions so many come once it is gone, however long that takes.
const AFTER: usize = 3;

/// The local transaction has not run, the caller hears of it in time, and once Kafka is back the
/// next transaction works, without a restart.
pub(crate) async fn c06_prepare_fails_while_kafka_is_away(env: Env) {
    let setup = Setup::asking(env.with_own_broker().await, Do::Rollback).await;
    setup.send_until_stored(0, Do::Commit).await;
    setup.reader.sees(&text(0)).await;
    // At least once: what is delivered and not stored as progress may be delivered again.
    carried_out(&setup.config, &[]).await;
    setup.env.broker.stop().await;

    let began = Instant::now();
    let sends = (1..4).map(|number| {
        setup.producer.send_in_transaction(PURPOSE, setup.message(number), Do::Commit)
    });
    for failed in join_all(sends).await {
        let error = failed.expect_err("nobody stores it");
        assert!(matches!(error, PrepareError::Unavailable { .. }), "{error}");
        assert!(error.is_retryable(), "{error}");
    }
    let took = began.elapsed();
    assert!(took < setup.config.prepare_deadline + MARGIN, "refused after {took:?}");
    assert_eq!(setup.told.executed().len(), 1, "a local transaction ran without its half");
    until(PATIENCE, "the producer to tell that Kafka is away", async || {
        match setup.producer.health() {
            Err(reason) if reason.contains("Kafka does not answer") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;

    setup.env.broker.resume().await;
    setup.ready().await;
    let sent = setup.send_until_stored(4, Do::Commit).await;
    assert!(sent.decision_recorded, "{sent:?}");
    setup.reader.sees(&text(4)).await;
    // One that was stored after all has no local transaction, as its check says.
    setup.ends_with([0, 4].into_iter()).await;
}

/// A broker that takes nothing slows callers, each up to its deadline, and what waits in memory has a
/// bound: beyond, callers are told at once. What was refused may come again under its id.
pub(crate) async fn c06_callers_of_a_broker_that_takes_nothing_wait_within_bounds(env: Env) {
    const CALLERS: usize = 400;
    const PAYLOAD: usize = 256 * 1_024;
    /// The queue of the store's client; what 400 callers send does not go through the second one.
    const QUEUE: usize = 64 * 1_024 * 1_024;
    let env = env.with_own_broker().await;
    let mut config = env.asking_group().await;
    config.max_transactions = CALLERS;
    let setup = Setup::with(env, config, Do::Rollback).await;
    setup.send_until_stored(0, Do::Commit).await;
    carried_out(&setup.config, &[]).await;
    setup.env.broker.stop().await;

    let calls = (0..CALLERS).map(async |_| {
        let id = setup.producer.new_transaction_id();
        let message = Message { id: Some(id), ..Message::new(&setup.target, vec![b'x'; PAYLOAD]) };
        let began = Instant::now();
        let refused = setup.producer.begin(PURPOSE, message).await.map(|begun| begun.receipt());
        (id, refused, began.elapsed())
    });
    let (mut waited, mut refused) = (0, Vec::new());
    for (id, call, took) in join_all(calls).await {
        match call {
            Err(PrepareError::Backpressure(why)) => {
                assert!(why.contains("queue is full"), "{why}");
                refused.push(id);
            }
            Err(PrepareError::Unavailable { .. }) => waited += 1,
            other => panic!("{other:?}"),
        }
        assert!(took < setup.config.prepare_deadline + MARGIN, "told after {took:?}");
    }
    assert!(waited > 0 && waited <= QUEUE / PAYLOAD, "{waited} in the queue");
    assert_eq!(waited + refused.len(), CALLERS);

    setup.env.broker.resume().await;
    setup.ready().await;
    // Never sent, so its id is free. What the queue holds goes out first.
    let sent = until(PATIENCE, "room in the queue", async || {
        let again = Message { id: Some(refused[0]), ..setup.message(1) };
        match setup.producer.send_in_transaction(PURPOSE, again, Do::Commit).await {
            Err(PrepareError::Backpressure(why)) => Err(why),
            sent => Ok(sent.expect("it is stored")),
        }
    })
    .await;
    assert!(sent.decision_recorded);
    setup.reader.sees(&text(1)).await;
    // Those that were stored after all have no local transaction, as their check says.
    setup.ends_with(0..2).await;
}

/// Every one ends as its local transaction did.
pub(crate) async fn c06_decisions_in_flight_while_kafka_goes_away(env: Env) {
    const COMMITTED: usize = 12;
    const ALL: usize = 24;
    let env = env.with_own_broker().await;
    let mut config = env.group().await;
    config.decision_deadline = SOON_GIVEN_UP;
    let mut setup = Setup::with(env, config, Do::Rollback).await;
    let mut begun = Vec::new();
    for number in 0..ALL {
        if number < COMMITTED {
            setup.told.check(text(number), &[Do::Commit]);
        }
        let transaction = setup.producer.begin(PURPOSE, setup.message(number)).await;
        begun.push(transaction.expect("it is stored"));
    }
    let gone = CancellationToken::new();
    // Some before the broker goes, some while it goes, some after it.
    let decided = join_all(begun.iter().enumerate().map(async |(number, transaction)| {
        match number % COMMITTED {
            early if early < COMMITTED - AFTER => {
                sleep(STEP * u32::try_from(early).expect("a few")).await;
            }
            _ => gone.cancelled().await,
        }
        if number < COMMITTED { transaction.commit().await } else { transaction.rollback().await }
    }));
    let stopped = async {
        setup.env.broker.stop().await;
        gone.cancel();
        Instant::now()
    };
    let (decided, stopped) = tokio::join!(decided, stopped);
    let took = stopped.elapsed();
    assert!(took < setup.config.decision_deadline + MARGIN, "told after {took:?}");
    let lost = decided.iter().filter(|decided| decided.is_err()).count();
    assert!(lost >= 2 * AFTER, "{lost} could not be stored");
    setup.env.broker.resume().await;
    setup.ready().await;
    setup.send(ALL, Do::Commit).await;
    setup.reader.sees(&text(ALL)).await;
    assert_eq!(setup.producer.conflicts(), 0);
    drop(begun);
    setup.ask_soon().await;
    setup.none_open().await;
    assert_eq!(setup.producer.conflicts(), 0);
    let delivered = setup.reader.everything_of(&setup.config).await;
    let committed = (0..COMMITTED).chain([ALL]);
    as_promised(&setup.config, &delivered, committed.map(text));
    setup.producer.shutdown().await;
}

/// Callers give decisions up, too, while the broker is away.
async fn impatient(env: Env) -> Setup {
    let env = env.with_own_broker().await;
    let mut config = env.asking_group().await;
    config.decision_deadline = SOON_GIVEN_UP;
    Setup::with(env, config, Do::Rollback).await
}

/// The broker is killed and comes back, again and again, under load: with halves open, decisions and
/// transactions in flight, nothing is lost and nothing comes twice.
pub(crate) async fn c25_long_broker_restarts_under_load(env: Env) {
    const RESTARTS: usize = 3;
    let setup = impatient(env).await;
    let load = Load::on(&setup);
    for _ in 0..RESTARTS {
        load.goes_on(BETWEEN).await;
        setup.env.broker.stop().await;
        setup.env.broker.resume().await;
    }
    load.goes_on(BETWEEN).await;
    carried_out_within(REJOINED_WITHIN, &setup.config, &[]).await;
    load.ends(&setup).await;
    setup.producer.shutdown().await;
}

/// The broker stands still under load, while a replica joins or leaves: transactions hang before
/// their commit, the group gives its members up, partitions go over with batches under way.
pub(crate) async fn c25_long_broker_stalls_under_load(env: Env) {
    let setup = impatient(env).await;
    let load = Load::on(&setup);
    let mut guest = None;
    for pause in PAUSES {
        load.goes_on(BETWEEN).await;
        let changes = async {
            match guest.take() {
                None => Some(Env::start(&setup.config, &setup.told).await),
                Some(leaves) => {
                    TransactionProducer::shutdown(&leaves).await;
                    None
                }
            }
        };
        let stands_still = async {
            setup.env.broker.pause().await;
            sleep(pause).await;
            setup.env.broker.unpause().await;
        };
        (guest, ()) = tokio::join!(changes, stands_still);
    }
    load.goes_on(BETWEEN).await;
    drop(guest);
    load.goes_on(BETWEEN).await;
    carried_out_within(REJOINED_WITHIN, &setup.config, &[]).await;
    load.ends(&setup).await;
    setup.producer.shutdown().await;
}

//! Rows 12 and 15: when a check is made, and what counts as one.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use halfmsg_producer::{
    HalfState, Invalid, PrepareError, ProducerConfig, TransactionId, TransactionProducer,
};

use super::env::{SOON_GIVEN_UP, asked_soon};
use super::metrics::metric;
use super::reader::{counts, once_each};
use super::setup::{Setup, answered, operator, text};
use super::store::{attempts_in, parks_in, read_store};
use super::told::{Do, PURPOSE, Told};
use super::{Env, PATIENCE, until};

/// From one half's check to the next one's.
const APART: Duration = Duration::from_millis(7_200);
/// Until no machine has stood still for so long.
const TRIES: usize = 4;

/// No half is checked before its time, which may be the message's own.
pub(crate) async fn c12_no_check_before_its_time(env: Env) {
    let mut config = env.asking_group().await;
    config.local_deadline = Duration::from_millis(100);
    config.check_after = 2 * APART;
    let setup = Setup::with(env, config, Do::Commit).await;
    // Kafka is warm then, and the group has its partitions.
    until(PATIENCE, "the first one to be stored", async || {
        setup.producer.send_in_transaction(PURPOSE, setup.message(0), Do::Commit).await
    })
    .await;
    setup.reader.sees(&text(0)).await;
    let mut stored = 1;
    for tries_left in (0..TRIES).rev() {
        let [early, default, late] = each_at_its_time(&setup, stored).await;
        stored += 3;
        if early < default && default < late {
            break;
        }
        // While the machine stood still, several became due.
        assert!(tries_left > 0, "the messages' own times were not honoured");
    }
    refuses_a_racing_check(&setup).await;
    let delivered = setup.reader.everything_of(&setup.config).await;
    // Of one that had to be stored again the first may be there as well.
    let ids: BTreeSet<_> = delivered.iter().map(|message| message.transaction_id).collect();
    assert_eq!(ids.len(), delivered.len(), "each once: {delivered:?}");
    assert!(counts(&delivered).into_keys().eq(once_each((0..stored).map(text)).into_keys()));
    setup.producer.shutdown().await;
}

/// When three messages were checked: one with the shortest time of its own, one with that of its group, one with
/// the longest. None before its time.
async fn each_at_its_time(setup: &Setup, first: usize) -> [Instant; 3] {
    let mut stored = Vec::new();
    for (number, own) in (first..).zip([Some(APART), None, Some(3 * APART)]) {
        let after = own.unwrap_or(setup.config.check_after);
        stored.push(
            until(PATIENCE, "one to be stored", async || {
                let mut message = setup.message(number);
                message.check_after = own;
                let before = Instant::now();
                let begun = setup.producer.begin(PURPOSE, message).await?;
                Ok::<_, PrepareError>((begun.leave_open().transaction_id, before, after))
            })
            .await,
        );
    }
    setup.none_open().await;
    let checked_at = |id: TransactionId| {
        let checks = setup.told.checks_of(id);
        assert_eq!(checks.len(), 1, "{checks:?}");
        checks[0].at
    };
    for (id, before, after) in &stored {
        let waited = checked_at(*id).duration_since(*before);
        assert!(waited >= *after, "checked {waited:?} after it was stored, not {after:?}");
    }
    [0, 1, 2].map(|at: usize| checked_at(stored[at].0))
}

/// A time in which the local transaction could still be running is refused.
async fn refuses_a_racing_check(setup: &Setup) {
    let least = setup.config.prepare_deadline + setup.config.local_deadline;
    let refused = setup.producer.begin(PURPOSE, setup.message(9).check_after(least)).await;
    let invalid = matches!(refused, Err(PrepareError::Invalid(Invalid::CheckAfter { .. })));
    assert!(invalid, "a check that races the local transaction was accepted");
}

/// Replicas that do not know the purpose use no attempts up, and neither does a call of the listener
/// that fails, panics or takes too long; every `Unknown` counts once.
pub(crate) async fn c15_only_real_attempts_count(env: Env) {
    let mut config = env.group().await;
    config.max_checks = 10;
    // One call of the listener is about one half.
    config.check_batch = 1;
    let mut setup = Setup::with(env, config, Do::Commit).await;
    let halves = setup.leave_open(0..3).await;
    setup.producer.shutdown().await;
    assert!(setup.told.checked().is_empty(), "checked before its time");
    setup.config = asked_soon(setup.config);
    // So long one that does not answer is waited for.
    setup.config.check_deadline = SOON_GIVEN_UP;

    let stranger = stranger(&setup.config).await;
    let wanted = 3 * u64::try_from(halves.len()).expect("a few");
    until(PATIENCE, "checks that nobody could be asked for", async || {
        let tried = unasked(&stranger);
        if tried >= wanted { Ok(()) } else { Err(format!("{tried} were")) }
    })
    .await;
    setup.producer = stranger;
    for half in setup.listed(HalfState::Open, halves.len()).await {
        assert_eq!((half.attempts, half.last_outcome), (0, None));
    }
    assert!(attempts(&setup.config, halves[0].transaction_id).await.is_empty());

    let script = [Do::Unknown, Do::Fail, Do::Panic, Do::Block, Do::Unknown, Do::Fail, Do::Commit];
    setup.told.check(text(0), &script);
    setup.restart().await;
    setup.none_open().await;
    let id = halves[0].transaction_id;
    assert_eq!(setup.told.checks_of(id).len(), script.len());
    // Of failures in a row the log is told once, under the number of the last attempt.
    assert_eq!(attempts(&setup.config, id).await, [1, 1, 2, 2]);
    let seen = setup.shows(id, "its end", |seen| seen.half.state == "committed").await;
    assert_eq!(seen.half.attempts, 2, "{seen:?}");
    let again = setup.producer.admin().check(id, operator(false)).await;
    assert!(again.is_err(), "a closed half was checked: {again:?}");
    setup.told.release();
    setup.ends_with(0..3).await;
}

/// A half message whose replicas have no listener for it is parked without an attempt, with that reason and
/// its payload, and is asked about and delivered once it is resumed under one that has.
pub(crate) async fn c15_without_a_listener_it_is_parked_and_resumed(env: Env) {
    let mut setup = Setup::new(env, Do::Commit).await;
    let half = setup.leave_open(0..1).await.remove(0);
    let id = half.transaction_id;
    setup.producer.shutdown().await;
    assert!(setup.told.checked().is_empty(), "checked before its time");
    setup.config = asked_soon(setup.config);
    setup.config.no_listener_grace = Duration::from_secs(1);

    setup.producer = stranger(&setup.config).await;
    let listed = setup.listed(HalfState::Parked, 1).await.remove(0);
    assert_eq!((&*listed.transaction_id, listed.attempts), (&*id.to_string(), 0), "{listed:?}");
    let reason = listed.last_outcome.as_deref().unwrap_or_default();
    for part in ["no_listener", PURPOSE, &setup.config.application] {
        assert!(reason.contains(part), "no {part} in {reason}");
    }
    let seen = setup.shows(id, "its payload", |seen| seen.payload.is_some()).await;
    assert_eq!(seen.payload, Some(text(0)));
    let parked = seen.history.iter().find(|entry| entry.event == "parked");
    assert!(parked.is_some_and(|entry| entry.detail.contains("no_listener")), "{seen:#?}");
    until(PATIENCE, "it to be counted", async || {
        match metric(&setup.producer, "halfmsg_parked_total{reason=\"no_listener\"}") {
            1 => Ok(()),
            count => Err(format!("{count} were")),
        }
    })
    .await;
    let store = read_store(&setup.config).await;
    assert_eq!((parks_in(&store, id), attempts_in(&store, id)), (1, Vec::new()));

    setup.restart().await;
    setup.listed(HalfState::Parked, 1).await;
    assert!(setup.told.checked().is_empty(), "it is parked");
    let view = answered(async || setup.producer.admin().resume(id, operator(false)).await).await;
    let view = view.expect("it is parked");
    assert_eq!(view.epoch, 1, "{view:?}");
    setup.reader.sees(&text(0)).await;
    setup.listed(HalfState::Parked, 0).await;
    assert_eq!(setup.told.checks_of(id).len(), 1);
    setup.ends_with(0..1).await;
}

/// A replica that has no listener for what the cases send.
async fn stranger(config: &ProducerConfig) -> TransactionProducer {
    TransactionProducer::builder(config.clone())
        .listener("another-purpose", Told::otherwise(Do::Commit))
        .start()
        .await
        .expect("it starts")
}

async fn attempts(config: &ProducerConfig, id: TransactionId) -> Vec<u32> {
    attempts_in(&read_store(config).await, id)
}

/// How often this producer found no listener to ask.
pub(crate) fn unasked(producer: &TransactionProducer) -> u64 {
    metric(producer, "halfmsg_checks_total{outcome=\"no_listener\"}")
}

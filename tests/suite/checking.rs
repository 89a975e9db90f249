//! Rows 12 and 15: when a check is made, and what counts as one.

use std::time::{Duration, Instant};

use halfmsg_producer::{
    HalfState, Invalid, PrepareError, ProducerConfig, TransactionId, TransactionProducer,
};

use super::metrics::metric;
use super::setup::{Setup, operator, text};
use super::store::{attempts_in, read_store};
use super::told::{Do, PURPOSE, Told};
use super::{Env, PATIENCE, until};

/// No half is checked before its time, which may be the message's own.
pub(crate) async fn c12_no_check_before_its_time(env: Env) {
    let mut config = env.group().await;
    config.prepare_deadline = Duration::from_millis(1_500);
    config.local_deadline = Duration::from_millis(100);
    config.check_after = Duration::from_millis(3_000);
    let setup = Setup::with(env, config, Do::Commit).await;
    // Kafka is warm then, and the group has its partitions.
    setup.send(0, Do::Commit).await;
    setup.reader.sees(&text(0)).await;
    let times = [None, Some(1_800), Some(4_500)].map(|ms| ms.map(Duration::from_millis));
    let mut stored = Vec::new();
    for (number, own) in (1..).zip(times) {
        let mut message = setup.message(number);
        message.check_after = own;
        let before = Instant::now();
        let begun = setup.producer.begin(PURPOSE, message).await.expect("it is stored");
        let after = own.unwrap_or(setup.config.check_after);
        stored.push((begun.leave_open().transaction_id, before, after));
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
    let [default, early, late] = [0, 1, 2].map(|at: usize| checked_at(stored[at].0));
    assert!(early < default && default < late, "the messages' own times were not honoured");
    refuses_a_racing_check(&setup).await;
    setup.ends_with(0..4).await;
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
    config.prepare_deadline = Duration::from_millis(1_500);
    config.check_after = Duration::from_millis(2_100);
    config.max_checks = 10;
    // One call of the listener is about one half.
    config.check_batch = 1;
    let mut setup = Setup::with(env, config, Do::Commit).await;
    let halves = setup.leave_open(0..3).await;
    setup.producer.shutdown().await;
    assert!(setup.told.checked().is_empty(), "checked before its time");

    let stranger = TransactionProducer::builder(setup.config.clone())
        .listener("another-purpose", Told::otherwise(Do::Commit))
        .start()
        .await
        .expect("it starts");
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

async fn attempts(config: &ProducerConfig, id: TransactionId) -> Vec<u32> {
    attempts_in(&read_store(config).await, id)
}

/// How often this producer found no listener to ask.
pub(crate) fn unasked(producer: &TransactionProducer) -> u64 {
    metric(producer, "halfmsg_checks_total{outcome=\"no_listener\"}")
}

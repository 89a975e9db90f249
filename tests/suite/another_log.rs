//! Row 26, on real Kafka: progress and log that do not belong together: progress expired, progress of
//! another log, records that somebody else deleted, a store that was made anew, partitions added.

use futures::future::join_all;
use halfmsg_producer::{Message, PrepareError, ResetTo};
use halfmsg_protocol::Record;

use super::env::{PARTITIONS, asked_soon};
use super::garbage::{BEFORE, number_in, partitions_of_keys};
use super::metrics::metric;
use super::operating::client;
use super::progress::{carried_out, store_by_hand, stored};
use super::reader::{counts, once_each};
use super::rebalance::members;
use super::setup::{Setup, operator, text};
use super::store::read_store;
use super::told::{Do, PURPOSE};
use super::{Env, PATIENCE, until};

/// Progress that was deleted, as the broker does days after a group's last member has left: nothing
/// that was dropped is delivered, what is open is decided, and of what was committed only that comes
/// again which the log still holds.
pub(crate) async fn c26_expired_progress(env: Env) {
    const EACH: usize = 8;
    let mut setup = Setup::new(env, Do::Rollback).await;
    // The first of their partitions, so that the log is not trimmed beyond them.
    let (open, committed, dropped) = (0..2 * EACH, 2 * EACH..3 * EACH, 3 * EACH..4 * EACH);
    setup.leave_open(open.clone()).await;
    let mut ids = Vec::new();
    for number in committed.clone().chain(dropped) {
        let decision = if committed.contains(&number) { Do::Commit } else { Do::Rollback };
        ids.push(setup.send(number, decision).await.transaction_id);
    }
    for number in open.clone().step_by(2) {
        setup.told.check(text(number), &[Do::Commit]);
    }
    carried_out(&setup.config, &[]).await;
    setup.producer.shutdown().await;
    assert!(setup.told.checked().is_empty(), "checked before its time");
    setup.env.broker.delete_group(&setup.config.store_topic()).await;
    let halves = read_store(&setup.config).await.into_iter().filter_map(|record| match record {
        Record::Half(meta) => Some(meta.id),
        _ => None,
    });
    let held: Vec<_> = halves.collect();

    setup.config = asked_soon(setup.config);
    setup.start_again().await;
    assert!(metric(&setup.producer, "halfmsg_unknown_progress_total") > 0, "it is counted");
    setup.none_open().await;
    let mut expected = once_each(open.step_by(2).map(text));
    for (number, id) in committed.zip(&ids) {
        expected.insert(text(number), if held.contains(id) { 2 } else { 1 });
    }
    assert!(expected.values().any(|times| *times == 2), "the log is empty");
    assert_eq!(counts(&setup.reader.everything_of(&setup.config).await), expected);
    // The new progress is worth what the old one was.
    setup.restart().await;
    assert_eq!(counts(&setup.reader.everything_of(&setup.config).await), expected);
    setup.producer.shutdown().await;
}

/// Progress that lies beyond the log was stored for another one: that partition stands still and is
/// named, the others go on; with the right progress it goes on too.
pub(crate) async fn c26_progress_of_another_log_stops_its_partition(env: Env) {
    let mut setup = Setup::new(env, Do::Rollback).await;
    let partitions = partitions_of_keys(&setup).await;
    let (stopped, partition) = number_in(&partitions, |_| true);
    let (going_on, _) = number_in(&partitions, |found| found != partition);
    let left = stopped + 8 * BEFORE;
    setup.told.check(text(left), &[Do::Commit]);
    setup.leave_open([left].into_iter()).await;
    carried_out(&setup.config, &[]).await;
    setup.producer.shutdown().await;
    let right = stored(&setup.config, partition).await;
    store_by_hand(&setup.config, partition, (10_000, "v1;P=10000".into())).await;

    let place = format!("{}[{partition}]", setup.config.store_topic());
    let mut expected: Vec<usize> = (0..BEFORE).collect();
    for round in 2..4 {
        setup.producer = Env::start(&setup.config, &setup.told).await;
        until(PATIENCE, "the stopped partition to be named", async || {
            match setup.producer.health() {
                Err(reason) if reason.contains(&place) && reason.contains("another log") => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
        match setup.producer.begin(PURPOSE, setup.message(stopped + 8 * BEFORE * round)).await {
            Err(PrepareError::Unavailable { reason, .. }) => {
                assert!(reason.contains(&place), "{reason}");
            }
            other => panic!("{:?}", other.map(|begun| begun.receipt())),
        }
        let passed = going_on + 8 * BEFORE * round;
        setup.send(passed, Do::Commit).await;
        setup.reader.sees(&text(passed)).await;
        expected.push(passed);
        let delivered = setup.reader.everything_but(&setup.config, &[partition]).await;
        assert_eq!(counts(&delivered), once_each(expected.iter().copied().map(text)));
        setup.producer.shutdown().await;
        assert_eq!(stored(&setup.config, partition).await.0, 10_000, "it stays as it was");
    }
    store_by_hand(&setup.config, partition, right).await;
    setup.config = asked_soon(setup.config);
    setup.start_again().await;
    expected.push(left);
    setup.ends_with(expected.into_iter()).await;
}

/// Somebody deletes an open half message: its partition goes on, and says so. Once more, with outcomes
/// that are not carried out: then it stands still, and tells the way out, until a person has gone it.
pub(crate) async fn c26_records_deleted_that_were_needed(env: Env) {
    let mut setup = Setup::new(env, Do::Rollback).await;
    let partitions = partitions_of_keys(&setup).await;
    let (number, partition) = number_in(&partitions, |_| true);
    let (other, _) = number_in(&partitions, |found| found != partition);
    let later = |number: usize, round: usize| number + 8 * BEFORE * round;
    let left = setup.leave_open([later(number, 1)].into_iter()).await;
    setup.send(later(number, 2), Do::Commit).await;
    carried_out(&setup.config, &[]).await;
    setup.producer.shutdown().await;
    let low_water = left[0].offset;
    assert_eq!(stored(&setup.config, partition).await.0, low_water, "it is the oldest");
    let store = setup.config.store_topic();
    setup.env.broker.delete_records(&store, partition, low_water + 1).await;

    setup.start_again().await;
    let place = format!("{store}[{partition}]: progress is stored at L={low_water} and P=");
    let warnings = setup.producer.warnings();
    assert!(warnings.iter().any(|warning| warning.contains(&place)), "{warnings:?}");
    setup.send(later(number, 3), Do::Commit).await;
    setup.none_open().await;
    setup.restart().await;
    // Its progress is in the log again.
    let warnings = setup.producer.warnings();
    let progress = format!("{store}[{partition}]: progress is stored at");
    assert!(!warnings.iter().any(|warning| warning.contains(&progress)), "{warnings:?}");
    setup.producer.shutdown().await;

    let undone = (low_water, format!("v1;P={low_water}"));
    store_by_hand(&setup.config, partition, undone.clone()).await;
    setup.producer = Env::start(&setup.config, &setup.told).await;
    until(PATIENCE, "the stopped partition to be named", async || match setup.producer.health() {
        Err(why) if why.contains(&place) && why.contains("reset-progress") => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    match setup.producer.begin(PURPOSE, setup.message(later(number, 4))).await {
        Err(PrepareError::Unavailable { reason, .. }) => assert!(reason.contains(&place)),
        other => panic!("{:?}", other.map(|begun| begun.receipt())),
    }
    setup.send(later(other, 4), Do::Commit).await;
    setup.reader.sees(&text(later(other, 4))).await;
    setup.producer.shutdown().await;
    assert_eq!(stored(&setup.config, partition).await, undone, "it stays as it was");

    let client = client(&setup.config);
    let plan = client.plan_reset(partition, ResetTo::Start).await.expect("Kafka answers");
    assert_eq!((plan.to, plan.loses()), (low_water + 1, false), "{plan:?}");
    client.reset_progress(&plan, operator(false)).await.expect("nobody runs");
    setup.start_again().await;
    setup.send(later(number, 5), Do::Commit).await;
    setup.none_open().await;
    let once = (0..BEFORE).chain([later(other, 4), later(number, 5)]);
    let mut expected = once_each(once.map(text));
    // What had been carried out behind the new start is so again.
    expected.extend([2, 3].map(|round| (text(later(number, round)), 2)));
    assert_eq!(counts(&setup.reader.everything_of(&setup.config).await), expected);
    setup.producer.shutdown().await;
}

/// The store is deleted and made anew under a running replica, and the broker forgets the progress with it:
/// all stands still and says so, nothing of the old log comes again, and it goes on with the new one once a
/// person has said where.
pub(crate) async fn c26_store_made_anew(env: Env) {
    // Enough to tell each partition's log from one that is made anew.
    const MANY: usize = 64;
    let mut setup = Setup::new(env, Do::Rollback).await;
    let half = |number: usize| if number.is_multiple_of(2) { Do::Commit } else { Do::Rollback };
    let sends = (0..MANY).map(async |number| {
        let message = spread(&setup, number);
        let sent = setup.producer.send_in_transaction(PURPOSE, message, half(number)).await;
        sent.expect("it is stored");
    });
    join_all(sends).await;
    carried_out(&setup.config, &[]).await;
    let store = setup.config.store_topic();
    setup.env.broker.delete_topic(&store).await;
    // As a start wants it; else the one in the end is refused.
    let settings = [
        ("retention.ms", "-1"),
        ("message.timestamp.type", "LogAppendTime"),
        ("max.message.bytes", "2000000"),
    ];
    setup.env.broker.create_topic(&store, PARTITIONS, &settings).await;
    until(PATIENCE, "the other log to be named", async || match setup.producer.health() {
        Err(why) if why.contains(&store) && why.contains("another log") => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    for number in MANY..MANY + 8 {
        match setup.producer.begin(PURPOSE, spread(&setup, number)).await {
            Err(PrepareError::Unavailable { reason, .. }) => {
                assert!(reason.contains("another log"), "{reason}");
            }
            other => panic!("{:?}", other.map(|begun| begun.receipt())),
        }
    }
    setup.producer.shutdown().await;

    let client = client(&setup.config);
    for partition in 0..PARTITIONS {
        let plan = client.plan_reset(partition, ResetTo::Start).await.expect("Kafka answers");
        assert!(!plan.loses(), "{plan:?}");
        client.reset_progress(&plan, operator(false)).await.expect("nobody runs");
    }
    setup.start_again().await;
    let number = MANY + 8;
    setup.send(number, Do::Commit).await;
    setup.ends_with((0..MANY).step_by(2).chain([number])).await;
}

/// Each with a key of its own: those without one may all go to the same partition.
fn spread(setup: &Setup, number: usize) -> Message {
    Message::new(&setup.target, text(number)).key(text(number))
}

/// Partitions that the store gets while replicas run: the next replica uses them, and whoever owns
/// them carries them out, the one that began without them too.
pub(crate) async fn c26_partitions_added(env: Env) {
    const MORE: i32 = PARTITIONS + 2;
    const EACH: usize = 30;
    let unhurried = env.group().await;
    let mut setup = Setup::with(env, unhurried.clone(), Do::Commit).await;
    setup.send_all(EACH, |_| Do::Commit).await;
    setup.ask_soon().await;
    // The parked topic first: a partition needs its part of both.
    setup.env.broker.add_partitions(&setup.config.parked_topic(), MORE).await;
    setup.env.broker.add_partitions(&setup.config.store_topic(), MORE).await;
    let second = Env::start(&unhurried, &setup.told).await;
    let begins = (EACH..3 * EACH).map(|number| second.begin(PURPOSE, spread(&setup, number)));
    let begun: Vec<_> =
        join_all(begins).await.into_iter().map(|begun| begun.expect("it is stored")).collect();
    for partition in 0..MORE {
        let used = begun.iter().filter(|of| of.receipt().partition == partition).count();
        assert!(used > 1, "partition {partition} is not used");
    }
    for committed in join_all(begun[..EACH].iter().map(|transaction| transaction.commit())).await {
        committed.expect("it is stored");
    }
    let delivered = setup.reader.everything_of(&setup.config).await;
    let found = counts(&delivered);
    assert!((0..2 * EACH).all(|number| found.get(&text(number)) == Some(&1)), "{found:?}");
    // The first alone has all of them, and asks about what the second has left.
    drop(begun);
    second.shutdown().await;
    setup.ends_with(0..3 * EACH).await;
}

/// Partitions that only the store gets: nobody knows what is parked in them, so they wait, and the
/// others go on; they follow as soon as the parked topic has them too.
pub(crate) async fn c26_partitions_added_to_the_store_only(env: Env) {
    const MORE: i32 = PARTITIONS + 2;
    const ALL: usize = 60;
    let setup = Setup::new(env, Do::Commit).await;
    setup.ready().await;
    setup.env.broker.add_partitions(&setup.config.store_topic(), MORE).await;
    // Its joining makes the group share all of them out.
    let second = Env::start(&setup.config, &setup.told).await;
    members(&setup, 2).await;
    let begins = (0..ALL).map(async |number| {
        let message = spread(&setup, number);
        let begun = second.begin(PURPOSE, message).await.expect("it is stored");
        begun.commit().await.expect("it is stored");
        (number, begun.receipt().partition)
    });
    let begun = join_all(begins).await;
    let before = begun.iter().filter(|(_, partition)| *partition < PARTITIONS);
    let before: Vec<String> = before.map(|(number, _)| text(*number)).collect();
    assert!(before.len() < ALL, "the new partitions are not used");
    for message in &before {
        setup.reader.sees(message).await;
    }
    let stopped: Vec<i32> = (PARTITIONS..MORE).collect();
    let delivered = setup.reader.everything_but(&setup.config, &stopped).await;
    assert_eq!(counts(&delivered), once_each(before));
    until(PATIENCE, "health to say what is missing", async || {
        let parked = setup.config.parked_topic();
        let health = [setup.producer.health(), second.health()];
        let says = |of: &Result<(), String>| of.as_ref().is_err_and(|why| why.contains(&parked));
        if health.iter().any(says) { Ok(()) } else { Err(format!("{health:?}")) }
    })
    .await;
    setup.env.broker.add_partitions(&setup.config.parked_topic(), MORE).await;
    for (number, _) in &begun {
        setup.reader.sees(&text(*number)).await;
    }
    second.shutdown().await;
    setup.ends_with(0..ALL).await;
}

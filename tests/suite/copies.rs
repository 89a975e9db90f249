//! Half messages that stand in the store more than once, as an idempotent client writes them that had
//! to begin a new epoch while a broker was away.

use halfmsg_producer::Message;
use halfmsg_protocol::{HEADER, Record, codec};

use super::metrics::metric;
use super::progress::carried_out;
use super::setup::{Setup, text};
use super::told::{Do, PURPOSE};
use super::topic::{Entry, read_all, write};
use super::{Env, PATIENCE, until};

/// Left to the check-back.
const LEFT: usize = 6;
/// Decided by their application.
const DECIDED: usize = 6;

/// Copies before the decision and after it, and an application that is told the place of the copy.
pub(crate) async fn c22_copies_of_a_half_are_one_message(env: Env) {
    let mut setup = Setup::asking(env, Do::Rollback).await;
    for number in 0..LEFT {
        setup.told.check(text(number), &[Do::Commit]);
    }
    setup.leave_open(0..LEFT).await;
    let mut begun = Vec::new();
    for number in LEFT..LEFT + DECIDED {
        let message = Message { check_after: Some(PATIENCE), ..setup.message(number) };
        begun.push(setup.producer.begin(PURPOSE, message).await.expect("stored"));
    }
    assert_eq!(copied(&setup).await, LEFT + DECIDED);
    for transaction in begun {
        transaction.commit().await.expect("recorded");
    }
    for number in 0..LEFT + DECIDED {
        setup.reader.sees(&text(number)).await;
    }
    setup.none_open().await;
    // Those that the check-back has decided may still be followed by copies, also by some that only
    // the next owner reads. Of each two stand in the log by now.
    assert_eq!(copied(&setup).await, 2 * (LEFT + DECIDED));
    until(PATIENCE, "the copies to be told apart", async || {
        let told = metric(&setup.producer, "halfmsg_ignored_records_total{reason=\"copy\"");
        if told >= 36 { Ok(()) } else { Err(format!("{told} are")) }
    })
    .await;
    carried_out(&setup.config, &[]).await;
    setup.restart().await;
    setup.ends_with(0..LEFT + DECIDED).await;
}

/// Writes every HALF of the store once more; how many.
async fn copied(setup: &Setup) -> usize {
    let (kafka, store) = (&setup.config.kafka, setup.config.store_topic());
    let is_half = |entry: &Entry| {
        let record = entry.header(HEADER).and_then(|packed| codec::decode(packed).ok());
        matches!(record, Some(Record::Half(_)))
    };
    let halves: Vec<Entry> = read_all(kafka, &store).await.into_iter().filter(is_half).collect();
    for half in &halves {
        write(kafka, &store, half).await;
    }
    halves.len()
}

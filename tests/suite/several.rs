//! Several messages of one local transaction share its fate, also when their decisions are lost.

use halfmsg_producer::{HalfState, Message, PrepareError, TransactionId};

use super::Env;
use super::reader::{counts, once_each};
use super::setup::{Setup, text};
use super::told::{Do, PURPOSE};

/// Messages of one transaction.
const SEVERAL: usize = 5;

fn messages(setup: &Setup, from: usize) -> Vec<Message> {
    (from..from + SEVERAL).map(|number| setup.message(number)).collect()
}

/// Committed, rolled back, decided by one check: all of them alike; each with an identity of its
/// own, and the shared one in front of the listener.
pub(crate) async fn several_messages_share_their_decision(env: Env) {
    let setup = Setup::new(env, Do::Unknown).await;
    let begin = async |from| {
        let begun = setup.producer.begin_several(PURPOSE, messages(&setup, from)).await;
        begun.expect("they are stored")
    };
    let committed = begin(0).await;
    committed.commit().await.expect("stored");
    committed.commit().await.expect("said again it changes nothing");
    begin(10).await.rollback().await.expect("stored");
    for number in 20..20 + SEVERAL {
        setup.told.check(text(number), &[Do::Commit]);
    }
    let checked = begin(20).await;
    let (local, receipts) = (checked.id(), checked.receipts());
    let of_each: std::collections::HashSet<TransactionId> =
        receipts.iter().map(|receipt| receipt.transaction_id).collect();
    assert_eq!(of_each.len(), SEVERAL, "each has its own");
    assert!(!of_each.contains(&local));
    let result = checked.check().await;
    assert!(result.decision_recorded, "{result:?}");
    // Nobody decides: the check-back asks about each, and finds the same.
    for number in 30..30 + SEVERAL {
        setup.told.check(text(number), &[Do::Commit]);
    }
    let left = begin(30).await.leave_open();
    assert_eq!(left.len(), SEVERAL);
    setup.none_open().await;
    let delivered = setup.reader.everything_of(&setup.config).await;
    let expected = [0, 20, 30].into_iter().flat_map(|from| from..from + SEVERAL);
    assert_eq!(counts(&delivered), once_each(expected.map(text)));
    setup.producer.shutdown().await;
}

/// One that cannot be stored: the others are rolled back, and the local transaction never runs.
pub(crate) async fn several_messages_are_stored_all_or_dropped(env: Env) {
    let setup = Setup::new(env, Do::Rollback).await;
    let mut all = messages(&setup, 0);
    all.push(Message::new("no-such-topic", "x"));
    match setup.producer.begin_several(PURPOSE, all).await {
        Err(PrepareError::UnknownTopic(topic)) => assert_eq!(topic, "no-such-topic"),
        other => panic!("{:?}", other.map(|begun| begun.receipts())),
    }
    for none in [Vec::new(), (0..101).map(|number| setup.message(number)).collect()] {
        let refused = setup.producer.begin_several(PURPOSE, none).await;
        assert!(matches!(refused, Err(PrepareError::Invalid(_))));
    }
    setup.listed(HalfState::Open, 0).await;
    setup.ends_with(0..0).await;
}

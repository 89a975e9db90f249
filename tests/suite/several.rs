//! Several messages of one local transaction share its fate, also when their decisions are lost.

use halfmsg_producer::{HalfState, Invalid, Message, PrepareError, TransactionId};

use super::env::SOON_GIVEN_UP;
use super::reader::{Delivered, Reader, counts, once_each};
use super::setup::{Setup, answered, operator, text};
use super::told::{Do, PURPOSE};
use super::{Env, PATIENCE, until};

/// Messages of one transaction.
const SEVERAL: usize = 5;

fn messages(setup: &Setup, from: usize) -> Vec<Message> {
    (from..from + SEVERAL).map(|number| setup.message(number)).collect()
}

/// Committed, rolled back, decided by one check: all of them alike, also to several targets; each with an
/// identity of its own, and the shared one in front of the listener.
pub(crate) async fn several_messages_share_their_decision(env: Env) {
    let mut setup = Setup::new(env, Do::Unknown).await;
    // Of those that a check decides together, each has a target of its own.
    let mut targets = Vec::new();
    for number in 20..20 + SEVERAL {
        let topic = setup.env.topic(&format!("target-{number}")).await;
        targets.push((number, Reader::start(&setup.env.kafka(), &topic).await, topic));
    }
    let begin = async |from| {
        let begun = setup.producer.begin_several(PURPOSE, messages(&setup, from)).await;
        begun.expect("they are stored")
    };
    let of_one_key = || messages(&setup, 0).into_iter().map(|message| message.key("one"));
    let committed = setup.producer.begin_several(PURPOSE, of_one_key().collect()).await;
    let committed = committed.expect("they are stored");
    committed.commit().await.expect("stored");
    committed.commit().await.expect("said again it changes nothing");
    begin(10).await.rollback().await.expect("stored");
    for number in 20..20 + SEVERAL {
        setup.told.check(text(number), &[Do::Commit]);
    }
    let of_targets = targets.iter().map(|(number, _, topic)| Message::new(topic, text(*number)));
    let checked = setup.producer.begin_several(PURPOSE, of_targets.collect()).await;
    let checked = checked.expect("they are stored");
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
    setup.ask_soon().await;
    setup.none_open().await;
    let delivered = setup.reader.everything_of(&setup.config).await;
    for (number, reader, _) in &targets {
        let delivered = reader.everything_of(&setup.config).await;
        assert_eq!(counts(&delivered), once_each([text(*number)]));
    }
    let expected = [0, 30].into_iter().flat_map(|from| from..from + SEVERAL);
    assert_eq!(counts(&delivered), once_each(expected.map(text)));
    let in_order: Vec<String> = (0..SEVERAL).map(text).collect();
    let of_one_key = delivered.iter().map(Delivered::text).filter(|text| in_order.contains(text));
    assert_eq!(of_one_key.collect::<Vec<_>>(), in_order, "those of one key in their order");
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

/// Messages that the caller names may be copies of those of an earlier life, whose local transaction has
/// run: one that cannot be stored leaves the others to their check, which knows.
pub(crate) async fn several_messages_named_by_the_caller_are_left_to_their_check(env: Env) {
    let mut setup = Setup::new(env, Do::Commit).await;
    let mut all = messages(&setup, 0);
    all.push(Message::new("no-such-topic", "x"));
    let named = |message: Message| message.id(setup.producer.new_transaction_id());
    let begun = setup.producer.begin_several(PURPOSE, all.into_iter().map(named).collect()).await;
    assert!(matches!(begun, Err(PrepareError::UnknownTopic(_))));
    setup.ask_soon().await;
    setup.ends_with(0..SEVERAL).await;
}

/// A person decides about one of several by force: the answer names the others. The views say that it
/// is one of several.
pub(crate) async fn several_messages_are_named_when_one_is_forced(env: Env) {
    let setup = Setup::new(env, Do::Unknown).await;
    let begun = setup.producer.begin_several(PURPOSE, messages(&setup, 0)).await;
    let begun = begun.expect("they are stored");
    let local = begun.id().to_string();
    let ids: Vec<TransactionId> =
        begun.leave_open().iter().map(|receipt| receipt.transaction_id).collect();
    let (first, others) = (ids[0], &ids[1..]);
    let alone = setup.producer.begin(PURPOSE, setup.message(50)).await.expect("it is stored");
    let admin = setup.producer.admin();
    for half in setup.listed(HalfState::Open, SEVERAL + 1).await {
        let is_alone = half.transaction_id == alone.receipt().transaction_id.to_string();
        assert_eq!(half.local_transaction_id, (!is_alone).then(|| local.clone()));
    }
    let force = async |id: TransactionId| {
        let settled = answered(async || admin.commit(id, operator(true)).await).await;
        settled.expect("it is forced")
    };
    let settled = force(first).await;
    assert_eq!(settled.local_transaction_id.as_ref(), Some(&local));
    let warning = settled.warning.expect("others are not decided with it");
    assert!(others.iter().all(|other| warning.contains(&other.to_string())), "{warning}");
    assert!(!warning.contains(&first.to_string()), "{warning}");
    for other in &others[1..] {
        force(*other).await;
    }
    let last = force(others[0]).await;
    assert_eq!(last.warning, None);
    let by_itself = alone.receipt().transaction_id;
    let by_itself = answered(async || admin.rollback(by_itself, operator(true)).await).await;
    let by_itself = by_itself.expect("it is forced");
    assert_eq!((by_itself.local_transaction_id, by_itself.warning), (None, None));
    setup.ends_with(0..SEVERAL).await;
}

/// Each of several messages takes a place among those under way.
pub(crate) async fn several_messages_take_several_places(env: Env) {
    let mut config = env.group().await;
    config.max_transactions = SEVERAL + 1;
    // So long who finds no place waits for one.
    config.prepare_deadline = SOON_GIVEN_UP;
    let mut setup = Setup::with(env, config, Do::Rollback).await;
    setup.ready().await;
    let mut tries = 0;
    let begun = until(PATIENCE, "five to be stored", async || {
        tries += 1;
        setup.producer.begin_several(PURPOSE, messages(&setup, 0)).await
    });
    let begun = begun.await;
    let alone = until(PATIENCE, "the last place", async || {
        tries += 1;
        setup.producer.begin(PURPOSE, setup.message(10)).await
    });
    let alone = alone.await;
    let refused = setup.producer.begin(PURPOSE, setup.message(11)).await.map(|_| ());
    assert!(matches!(refused, Err(PrepareError::Backpressure(_))), "{refused:?}");
    begun.rollback().await.expect("stored");
    alone.rollback().await.expect("stored");
    drop((begun, alone));
    let too_many = (0..SEVERAL + 2).map(|number| setup.message(number)).collect();
    let refused = setup.producer.begin_several(PURPOSE, too_many).await.map(|_| ());
    let most = SEVERAL + 1;
    let Err(PrepareError::Invalid(Invalid::MessageCount { count, most: bound })) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!((count, bound), (most + 1, most));
    if tries > 2 {
        // A broker that stood still may have stored some all the same.
        setup.ask_soon().await;
    }
    setup.ends_with(0..0).await;
}

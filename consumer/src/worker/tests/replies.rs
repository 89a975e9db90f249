//! The replies of a batch: whose they are, and the order in which they are stored.

use std::collections::BTreeSet;

use halfmsg_db::{begin_write, now};

use super::*;
use crate::handler::NewReply;
use crate::reply;

#[tokio::test]
async fn replies_are_stored_in_the_order_of_the_calls() {
    let world = world(0, KeyOrder::Keep).await;
    // As text, 10 comes before 9.
    let batch: Vec<_> = (8..12).map(|n| message(n, "a", "answered")).collect();
    let deliverer = &world.worker.deliverer;
    let answers = deliverer.deliver(&batch).await.unwrap().answers;
    let keys: Vec<String> = batch.iter().map(ReceivedMessage::inbox_key).collect();
    assert_eq!(answers.message_keys.len(), 4);
    let own = reply::to_messages(&deliverer.database, "s", &keys, 0, 100).await.unwrap();
    let seqs: Vec<i64> = own.iter().map(|one| one.seq).collect();
    let stored = reply::load(&deliverer.database, &seqs).await.unwrap();
    let ids: Vec<_> = keys.iter().map(|key| reply::reply_id("s", key, 0)).collect();
    assert_eq!(stored.iter().map(|one| one.id).collect::<Vec<_>>(), ids);
    // A later message's reply finds those before it, page by page, and that the first was refused.
    reply::refused(&deliverer.database, seqs[0], "why").await.unwrap();
    let chains = BTreeSet::from([own[3].chain.clone().unwrap()]);
    let page = async |after| {
        reply::of_chains(&deliverer.database, "s", &chains, after, seqs[3], 3).await.unwrap()
    };
    let (first, second) = (page(0).await, page(seqs[2]).await);
    assert_eq!(first.iter().map(|one| one.refused).collect::<Vec<_>>(), [true, false, false]);
    assert_eq!(second.iter().map(|one| one.seq).collect::<Vec<_>>(), seqs[3..]);
}

/// More than one statement has room for, and the same once more: as where the inbox has forgotten them.
#[tokio::test]
async fn many_replies_are_stored_in_few_statements_and_in_order() {
    const MANY: i64 = 1_234;
    let world = world(0, KeyOrder::Keep).await;
    let deliverer = &world.worker.deliverer;
    let reply = |n: i64| NewReply {
        inbox_key: format!("k-{n}"),
        index: 0,
        reply: Reply::new("replies", n.to_string()).with_key("k"),
    };
    let all: Vec<_> = (0..MANY).map(reply).collect();
    for stored in [&all[..100], &all[..], &all[..]] {
        let transaction = begin_write(&deliverer.database).await.unwrap();
        reply::store_in_tx(&transaction, "s", stored).await.unwrap();
        transaction.commit().await.unwrap();
    }
    let found =
        reply::left_behind(&deliverer.database, "s", i64::MIN, Some(now()), 10_000).await.unwrap();
    let mut payloads = Vec::new();
    for part in found.chunks(1_000) {
        let seqs: Vec<i64> = part.iter().map(|one| one.seq).collect();
        let loaded = reply::load(&deliverer.database, &seqs).await.unwrap();
        payloads.extend(loaded.into_iter().map(|one| one.reply.payload.unwrap()));
    }
    let expected: Vec<Bytes> = (0..MANY).map(|n| n.to_string().into()).collect();
    assert_eq!(payloads, expected);
}

#[tokio::test]
async fn a_reply_belongs_to_a_message_of_the_batch() {
    let world = world(0, KeyOrder::Keep).await;
    let deliverer = &world.worker.deliverer;
    let transaction = begin_write(&deliverer.database).await.unwrap();
    let batch = [message(1, "a", "fine"), message(2, "a", "fine")];
    let context = Context::new(&transaction, &batch);
    let reply = || Reply::new("replies", "{}");
    // A copy is as good as the message itself.
    context.publish(&batch[1].clone(), reply()).unwrap();
    let stranger = message(3, "a", "fine");
    let error = context.publish(&stranger, reply()).unwrap_err();
    assert!(error.to_string().contains("t-3@3"), "{error}");
    let (replies, _) = context.into_parts();
    assert_eq!(replies.len(), 1);
    transaction.rollback().await.unwrap();
}

/// Another replica has handled the message between this one's attempt and its giving up, and has died before
/// it could send.
#[tokio::test]
async fn what_was_handled_meanwhile_is_answered() {
    let world = world(0, KeyOrder::Keep).await;
    let given = world.worker.sender.give_to_nobody().await;
    let deliverer = &world.worker.deliverer;
    let answered = message(0, "a", "answered");
    deliverer.deliver(std::slice::from_ref(&answered)).await.unwrap();
    let failures = Failures { attempts: QUICK, ..Failures::default() };
    let pending = Pending { message: answered, failures, locks: 0 };
    let left = world.worker.failed(pending, AttemptError::Failed("late".into()), 1).await;
    assert!(matches!(left, Ok(None)));
    assert_eq!(*given.lock().unwrap(), ["replies"]);
    assert_eq!(reply::count(&deliverer.database, "s").await.unwrap(), 0);
    assert_eq!((world.worker.metrics.duplicates(), world.worker.metrics.retried()), (1, 0));
}

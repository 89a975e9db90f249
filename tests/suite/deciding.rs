//! Rows 1 to 5, 7, 9 and 10: who decides, and what follows.

use std::time::{Duration, Instant};

use futures::{StreamExt, stream};
use halfmsg_producer::{Backoff, LocalOutcome, LocalTransactionState, SendResult};

use super::env::NEVER;
use super::reader::{counts, once_each};
use super::setup::{AT_ONCE, Setup, text};
use super::told::{Do, PURPOSE};
use super::{Env, PATIENCE, until};

/// Transactions of the rows that want many.
const MANY: usize = 120;

/// Delivered once, whatever the listener would say.
pub(crate) async fn c01_all_commit(env: Env) {
    let setup = Setup::new(env, Do::Rollback).await;
    let sent = setup.send_all(MANY, |_| Do::Commit).await;
    assert!(sent.iter().all(|sent| sent.decision_recorded), "{sent:?}");
    assert_eq!(setup.told.executed().len(), MANY);
    setup.ends_with(0..MANY).await;
}

/// None is delivered.
pub(crate) async fn c02_all_rollback(env: Env) {
    let setup = Setup::new(env, Do::Commit).await;
    let sent = setup.send_all(MANY, |_| Do::Rollback).await;
    assert!(sent.iter().all(|sent| sent.decision_recorded), "{sent:?}");
    setup.ends_with(0..0).await;
}

/// The first half is asked about at once, the others when they are due, and again after that.
async fn all_unknown(env: Env, answer: Do) -> Setup {
    let mut setup = Setup::new(env, answer).await;
    let (at_once, later) = (0..MANY / 2, MANY / 2..MANY);
    for number in later.clone() {
        setup.told.check(text(number), &[Do::Unknown, answer]);
    }
    setup.leave_open(later).await;
    let sends = at_once.map(|number| setup.send(number, Do::Unknown));
    let sent: Vec<SendResult> = stream::iter(sends).buffered(AT_ONCE).collect().await;
    let expected = match answer {
        Do::Commit => LocalTransactionState::Commit,
        _ => LocalTransactionState::Rollback,
    };
    assert!(sent.iter().all(|sent| sent.state == expected && sent.decision_recorded), "{sent:?}");
    setup.ask_soon().await;
    setup
}

/// All unknown, the check says commit: all are delivered.
pub(crate) async fn c03_check_commits(env: Env) {
    all_unknown(env, Do::Commit).await.ends_with(0..MANY).await;
}

/// All unknown, the check says rollback: none is.
pub(crate) async fn c04_check_rolls_back(env: Env) {
    all_unknown(env, Do::Rollback).await.ends_with(0..0).await;
}

/// Exactly the right set.
pub(crate) async fn c05_a_mix(env: Env) {
    let mut setup = Setup::new(env, Do::Rollback).await;
    let committed = |number: usize| match number % 5 {
        0 => true,
        1 => false,
        // By its check: every third.
        _ => number.is_multiple_of(3),
    };
    for number in (0..MANY).filter(|number| number % 5 > 1 && committed(*number)) {
        setup.told.check(text(number), &[Do::Fail, Do::Unknown, Do::Commit]);
    }
    setup
        .send_all(MANY, |number| match number % 5 {
            0 => Do::Commit,
            1 => Do::Rollback,
            2 => Do::Unknown,
            3 => Do::Fail,
            _ => Do::Panic,
        })
        .await;
    setup.leave_open([MANY, MANY + 1].into_iter()).await;
    setup.told.check(text(MANY), &[Do::Commit]);
    setup.ask_soon().await;
    setup.ends_with((0..=MANY).filter(|number| *number == MANY || committed(*number))).await;
}

/// An error, a panic or a timeout: the check is asked at once, and decides. The first regular
/// check is so late here that the test would not see it.
pub(crate) async fn c07_local_fails_and_the_check_decides_at_once(env: Env) {
    let mut config = env.group().await;
    // Long enough for a local transaction that does not block, on a machine that stands still for a while.
    config.local_deadline = Duration::from_secs(7);
    // Nor would a second check come while the first attempt is looked for.
    config.check_backoff = Backoff { initial: NEVER, max: NEVER };
    let setup = Setup::with(env, config, Do::Unknown).await;
    let locals = [Do::Fail, Do::Panic, Do::Block];
    for (number, local) in locals.iter().chain(&locals).enumerate() {
        let answer = if number < locals.len() { Do::Commit } else { Do::Rollback };
        setup.told.check(text(number), &[answer]);
        let began = Instant::now();
        let sent = setup.send(number, *local).await;
        let took = began.elapsed();
        let expected = match answer {
            Do::Commit => LocalTransactionState::Commit,
            _ => LocalTransactionState::Rollback,
        };
        assert_eq!((sent.state, sent.decision_recorded), (expected, true), "{local:?}: {sent:?}");
        match local {
            Do::Block => assert_eq!(sent.local, LocalOutcome::TimedOut),
            _ => assert!(matches!(sent.local, LocalOutcome::Failed(_)), "{sent:?}"),
        }
        assert!(took < PATIENCE, "{local:?} took {took:?}");
        assert_eq!(setup.told.checks_of(sent.transaction_id).len(), 1, "{local:?}");
    }
    let open = setup.send(locals.len() * 2, Do::Fail).await;
    assert_eq!((open.state, open.decision_recorded), (LocalTransactionState::Unknown, false));
    let seen = setup
        .shows(open.transaction_id, "one attempt to be counted", |seen| seen.half.attempts == 1)
        .await;
    assert_eq!(seen.half.state, "open", "{seen:?}");
    let delivered = setup.reader.everything_of(&setup.config).await;
    assert_eq!(counts(&delivered), once_each((0..locals.len()).map(text)));
    setup.told.release();
    setup.producer.shutdown().await;
}

/// Delivered once, one after the other and at the same time.
pub(crate) async fn c09_commit_sent_twice(env: Env) {
    let setup = Setup::new(env, Do::Rollback).await;
    for number in 0..10 {
        let begun = setup.producer.begin(PURPOSE, setup.message(number)).await;
        let transaction = begun.expect("it is stored");
        let (first, second) = tokio::join!(transaction.commit(), transaction.commit());
        first.and(second).expect("both are stored");
        transaction.commit().await.expect("it is stored again");
    }
    assert_eq!(setup.producer.conflicts(), 0);
    setup.ends_with(0..10).await;
}

/// Whichever comes first holds, whoever says it; the other is counted as a conflict, and again after
/// a restart changes nothing.
pub(crate) async fn c10_a_late_contradiction_is_a_conflict(env: Env) {
    const EACH: usize = 6;
    let mut setup = Setup::new(env, Do::Unknown).await;
    let mut all = Vec::new();
    for number in 0..2 * EACH {
        let begun = setup.producer.begin(PURPOSE, setup.message(number)).await;
        let transaction = begun.expect("it is stored");
        let (first, second) = match number < EACH {
            true => (transaction.commit().await, transaction.rollback().await),
            false => (transaction.rollback().await, transaction.commit().await),
        };
        first.and(second).expect("both are stored");
        all.push(transaction.receipt());
    }
    let contradicted = u64::try_from(2 * EACH).expect("a few");
    until(PATIENCE, "every contradiction to be counted", async || {
        let conflicts = setup.producer.conflicts();
        if conflicts >= contradicted { Ok(()) } else { Err(format!("{conflicts} are")) }
    })
    .await;
    assert_eq!(setup.producer.conflicts(), contradicted);
    for (number, receipt) in all.iter().enumerate() {
        let state = if number < EACH { "committed" } else { "rolled_back" };
        setup
            .shows(receipt.transaction_id, "its first decision", |seen| seen.half.state == state)
            .await;
    }
    let delivered = setup.reader.everything_of(&setup.config).await;
    assert_eq!(counts(&delivered), once_each((0..EACH).map(text)));
    setup.restart().await;
    assert!(setup.told.checked().is_empty(), "a decided half was checked");
    setup.ends_with(0..EACH).await;
}

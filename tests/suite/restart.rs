//! Rows 22 and 24, the library's part: a producer that is dropped or restarted. That a process may
//! die at any step is shown with real processes.

use std::collections::BTreeSet;

use halfmsg_producer::HalfState;

use super::env::asked_soon;
use super::reader::{counts, once_each};
use super::setup::{Setup, as_promised, text};
use super::told::{Do, PURPOSE};
use super::{Env, PATIENCE, until};

/// Nothing that was committed is lost, nothing that was rolled back is delivered, and what was
/// open is checked by the next producer. At least once: what the first had not stored as progress
/// may come again.
pub(crate) async fn c22_dropped_without_shutdown(env: Env) {
    let mut setup = Setup::new(env, Do::Rollback).await;
    let committed = 0..30;
    let rolled_back = 30..60;
    let open_committed = 60..90;
    let open = 60..120;
    for number in open_committed.clone() {
        setup.told.check(text(number), &[Do::Unknown, Do::Commit]);
    }
    setup.leave_open(open).await;
    for number in committed.clone().chain(rolled_back) {
        let transaction = setup.producer.begin(PURPOSE, setup.message(number)).await;
        let transaction = transaction.expect("it is stored");
        let decided = match committed.contains(&number) {
            true => transaction.commit().await,
            false => transaction.rollback().await,
        };
        decided.expect("it is stored");
    }
    setup.config = asked_soon(setup.config);
    let setup = setup.drop_and_start_another().await;
    setup.none_open().await;
    let delivered = setup.reader.everything_of(&setup.config).await;
    as_promised(&setup.config, &delivered, committed.chain(open_committed).map(text));
    setup.producer.shutdown().await;
}

/// Without a handle nobody could stop it: the last one to be dropped does.
pub(crate) async fn c22_dropped_producer_ends(env: Env) {
    let setup = Setup::new(env, Do::Commit).await;
    setup.send(0, Do::Commit).await;
    let Setup { producer, told, reader: _reader, env: _env, .. } = setup;
    assert!(told.is_held());
    drop(producer);
    until(PATIENCE, "the dropped producer to let go of its listener", async || {
        if told.is_held() { Err("it holds it") } else { Ok(()) }
    })
    .await;
}

/// All are rebuilt, none is delivered again, and each is checked when it is due.
pub(crate) async fn c24_restart_with_open_halves(env: Env) {
    const OPEN: usize = 1_000;
    const DELIVERED: usize = 20;
    let mut setup = Setup::new(env, Do::Rollback).await;
    setup.send_all(DELIVERED, |_| Do::Commit).await;
    let left = setup.leave_open(DELIVERED..DELIVERED + OPEN).await;
    let ids: BTreeSet<_> = left.iter().map(|half| half.transaction_id.to_string()).collect();

    setup.restart().await;
    let listed = setup.listed(HalfState::Open, OPEN).await;
    let listed: BTreeSet<_> = listed.into_iter().map(|half| half.transaction_id).collect();
    assert_eq!(listed, ids);
    let delivered = setup.reader.everything_of(&setup.config).await;
    assert_eq!(counts(&delivered), once_each((0..DELIVERED).map(text)));
    assert!(setup.told.checked().is_empty(), "checked before its time");

    let is_committed = |number: &usize| *number < DELIVERED || number.is_multiple_of(2);
    for number in (DELIVERED..DELIVERED + OPEN).filter(is_committed) {
        setup.told.check(text(number), &[Do::Commit]);
    }
    setup.config = asked_soon(setup.config);
    setup.restart().await;
    setup.ends_with((0..DELIVERED + OPEN).filter(is_committed)).await;
}

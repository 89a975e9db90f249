//! Row 16: what nobody can tell is parked once, is seen, and is settled by an operator.

use halfmsg_producer::{AdminError, HalfState, TransactionId};
use halfmsg_protocol::{HEADER, Record, codec};

use super::progress::carried_out;
use super::reader::{counts, once_each};
use super::setup::{Setup, answered, operator, text};
use super::store::{attempts_in, parked_records, parks_in, read_store};
use super::told::Do;
use super::{Env, PATIENCE, until};

/// Checks before a half is parked here.
const MAX_CHECKS: u32 = 3;

/// A setup with so many parked halves.
async fn parked(env: Env, count: usize) -> (Setup, Vec<TransactionId>) {
    let mut config = env.group().await;
    config.max_checks = MAX_CHECKS;
    let mut setup = Setup::with(env, config, Do::Unknown).await;
    let left = setup.leave_open(0..count).await;
    setup.ask_soon().await;
    setup.listed(HalfState::Parked, count).await;
    (setup, left.into_iter().map(|receipt| receipt.transaction_id).collect())
}

/// Parked after exactly the allowed checks, listed with its reason, and not parked again by those
/// who replay the store.
pub(crate) async fn c16_parked_once_and_listed(env: Env) {
    let (mut setup, ids) = parked(env, 3).await;
    for round in 0..2 {
        let store = read_store(&setup.config).await;
        for id in &ids {
            assert_eq!(setup.told.checks_of(*id).len(), MAX_CHECKS as usize, "round {round}");
            assert_eq!(attempts_in(&store, *id), (1..=MAX_CHECKS).collect::<Vec<_>>());
            assert_eq!(parks_in(&store, *id), 1, "round {round}");
            assert_eq!(kept_as_parked(&setup, *id).await, [true], "round {round}");
        }
        let mut listed = setup.listed(HalfState::Parked, ids.len()).await;
        assert_eq!(setup.listed(HalfState::Open, 0).await, []);
        listed.sort_by(|a, b| a.transaction_id.cmp(&b.transaction_id));
        for half in &listed {
            assert_eq!((half.state, half.attempts, half.epoch), ("parked", MAX_CHECKS, 0));
            let reason = half.last_outcome.as_deref().unwrap_or_default();
            assert!(reason.starts_with("max_checks"), "{half:?}");
            assert_eq!(half.next_check_at, None);
        }
        if round == 0 {
            setup.restart().await;
            carried_out(&setup.config, &[]).await;
        }
    }
    setup.ends_with(0..0).await;
}

/// Resumed, it is checked at once and delivered; by hand it is committed only with force where
/// nobody can tell, dropped if the check agrees, and never against the check.
pub(crate) async fn c16_resumed_committed_or_dropped_by_an_operator(env: Env) {
    let (mut setup, ids) = parked(env, 3).await;
    let [resumed, committed, dropped] = [ids[0], ids[1], ids[2]];
    let admin = setup.producer.admin();

    setup.told.check(text(0), &[Do::Commit]);
    let view = answered(async || admin.resume(resumed, operator(false)).await).await;
    let view = view.expect("it is parked");
    assert_eq!(view.epoch, 1, "{view:?}");
    setup.reader.sees(&text(0)).await;

    let unforced = answered(async || admin.commit(committed, operator(false)).await).await;
    assert!(matches!(unforced, Err(AdminError::NeedsForce { .. })), "{unforced:?}");
    let view = answered(async || admin.commit(committed, operator(true)).await).await;
    let view = view.expect("forced");
    assert_eq!((view.state, view.epoch), ("committed", 1));

    setup.told.check(text(2), &[Do::Rollback]);
    let against = answered(async || admin.commit(dropped, operator(true)).await).await;
    assert!(matches!(against, Err(AdminError::Contradiction { .. })), "{against:?}");
    let view = answered(async || admin.rollback(dropped, operator(false)).await).await;
    let view = view.expect("the check agrees");
    assert_eq!(view.state, "rolled_back");
    let again = answered(async || admin.resume(dropped, operator(false)).await).await;
    assert!(matches!(again, Err(AdminError::AlreadyClosed { .. })), "{again:?}");

    setup.listed(HalfState::Parked, 0).await;
    setup.none_open().await;
    for id in &ids {
        until(PATIENCE, "the parked topic to forget it", async || {
            let kept = kept_as_parked(&setup, *id).await;
            if kept.last() == Some(&false) { Ok(()) } else { Err(format!("{kept:?}")) }
        })
        .await;
    }
    setup.restart().await;
    let delivered = setup.reader.everything_of(&setup.config).await;
    assert_eq!(counts(&delivered), once_each([text(0), text(1)]));
    assert_eq!(setup.listed(HalfState::Parked, 0).await, []);
    setup.ends_with([0, 1].into_iter()).await;
}

/// What the parked topic says of a half, oldest first: true where it is parked, false where it is
/// forgotten. Marks of the time between are left out.
async fn kept_as_parked(setup: &Setup, id: TransactionId) -> Vec<bool> {
    let records = parked_records(&setup.config, id).await;
    let says = records.iter().map(|entry| match (&entry.payload, entry.header(HEADER)) {
        (None, _) => Some(false),
        (Some(_), header) => {
            let record = header.and_then(|header| codec::decode(header).ok());
            matches!(record, Some(Record::Park(_))).then_some(true)
        }
    });
    says.flatten().collect()
}

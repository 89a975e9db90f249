//! A message that failed makes way: into the retry table, or to the dead letters. So does one that would
//! have to wait for somebody else's lock, without an attempt being counted.

use std::collections::HashSet;
use std::time::Duration;

use chrono::{DateTime, Utc};
use halfmsg_db::now;

use crate::config::KeyOrder;
use crate::deliver::{AttemptError, Deliverer, Stopwatch};
use crate::message::ReceivedMessage;
use crate::retry::{Failures, Place, PutOff, Waiting};
use crate::{backoff, dead_letter, inbox, retry};

/// Where a message goes that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Into the retry table, due so much later.
    Retry(Duration),
    /// To the dead letters.
    Dead,
}

/// Stores a message of the topic, in one transaction with its row in the inbox. False if the inbox
/// has it already: then it had its effect, or a retry or a dead letter stands for it.
pub(crate) async fn set_aside(
    deliverer: &Deliverer,
    message: &ReceivedMessage,
    failures: &Failures,
    fate: Fate,
) -> Result<bool, AttemptError> {
    deliverer
        .bounded(&Stopwatch::default(), async {
            let subscriber = &deliverer.subscriber;
            let transaction = deliverer.begin().await?;
            let one = std::slice::from_ref(message);
            let fresh =
                !inbox::remember_in_tx(&transaction, subscriber, deliverer.inbox_by_key, one)
                    .await?
                    .is_empty();
            match fate {
                _ if !fresh => {}
                Fate::Retry(delay) => {
                    let place =
                        Place { next_at: Some(backoff::after(delay)), dead_letter_id: None };
                    retry::store_in_tx(&transaction, subscriber, message, failures, place).await?;
                }
                Fate::Dead => {
                    dead_letter::store_in_tx(&transaction, subscriber, message, failures).await?;
                }
            }
            transaction.commit().await?;
            Ok(fresh)
        })
        .await
}

/// When a message that met somebody else's lock is tried again, at first and at last.
const LOCKED_PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(5));

/// The longer it lasts already, the longer the next pause.
fn when_locked(failures: &Failures) -> DateTime<Utc> {
    let (first, longest) = LOCKED_PAUSE;
    backoff::after(failures.age().clamp(first, longest))
}

/// A message that makes way for somebody else's lock.
pub(crate) struct MetALock {
    pub(crate) message: ReceivedMessage,
    pub(crate) failures: Failures,
    /// It needs what is locked; else it only keeps its order with one that does.
    pub(crate) named: bool,
}

/// What became of them.
#[derive(Debug, Default)]
pub(crate) struct SetAside {
    /// So many have a turn of their own.
    pub(crate) turns: usize,
    /// So many wait behind an earlier one of their key.
    pub(crate) behind: usize,
    /// By their inbox keys, those that the inbox had already.
    pub(crate) known: Vec<String>,
}

/// Puts messages of the topic aside, all in one transaction with their rows in the inbox, which wait for
/// somebody else's lock. They come in the order of their keys; with [`KeyOrder::Keep`] the first of a key
/// has a turn and the others wait behind it.
pub(crate) async fn set_aside_locked(
    deliverer: &Deliverer,
    messages: &[MetALock],
) -> Result<SetAside, AttemptError> {
    deliverer
        .bounded(&Stopwatch::default(), async {
            let subscriber = &deliverer.subscriber;
            let transaction = deliverer.begin().await?;
            let all: Vec<_> = messages.iter().map(|one| one.message.clone()).collect();
            let fresh =
                inbox::remember_in_tx(&transaction, subscriber, deliverer.inbox_by_key, &all).await;
            let fresh = fresh.map_err(AttemptError::of_barrier)?;
            let keys: HashSet<String> = fresh.iter().map(ReceivedMessage::inbox_key).collect();
            let (mut done, mut ahead) = (SetAside::default(), HashSet::new());
            for MetALock { message, failures, named } in messages {
                let inbox_key = message.inbox_key();
                if !keys.contains(&inbox_key) {
                    done.known.push(inbox_key);
                    continue;
                }
                let key = match deliverer.key_order {
                    KeyOrder::Keep => retry::ordering_key(message),
                    KeyOrder::GiveUp => None,
                };
                // Who takes out the first, from this transaction's end on, sees what is behind it.
                let has_turn = key.is_none_or(|key| ahead.insert(key));
                let when = || if *named { when_locked(failures) } else { now() };
                let place = Place { next_at: has_turn.then(when), dead_letter_id: None };
                retry::store_in_tx(&transaction, subscriber, message, failures, place).await?;
                if has_turn { done.turns += 1 } else { done.behind += 1 }
            }
            transaction.commit().await?;
            Ok(done)
        })
        .await
}

/// Puts retries off, all in one transaction, which met somebody else's lock: their attempts and levels stay.
pub(crate) async fn put_off_locked(
    deliverer: &Deliverer,
    waiting: &[&Waiting],
    cause: &str,
) -> Result<(), AttemptError> {
    let Deliverer { subscriber, key_order, .. } = deliverer;
    deliverer
        .bounded(&Stopwatch::default(), async {
            let transaction = deliverer.begin().await?;
            for one in waiting {
                let mut failures = one.failures.clone();
                failures.met_a_lock(cause.to_owned());
                let put_off = PutOff { next_at: when_locked(&failures), level: one.level };
                // Whoever has tried it meanwhile has decided it.
                retry::put_off_in_tx(&transaction, subscriber, *key_order, one, &failures, put_off)
                    .await?;
            }
            transaction.commit().await?;
            Ok(())
        })
        .await
}

/// Puts a retry off or gives it up, after one more failure. `level` is that of the row afterwards.
/// False if somebody else has tried it meanwhile: then it is theirs to decide.
pub(crate) async fn decide(
    deliverer: &Deliverer,
    waiting: &Waiting,
    failures: &Failures,
    fate: Fate,
    level: u32,
) -> Result<bool, AttemptError> {
    let Deliverer { subscriber, key_order, .. } = deliverer;
    deliverer
        .bounded(&Stopwatch::default(), async {
            let delay = match fate {
                Fate::Retry(delay) => delay,
                Fate::Dead => return bury(deliverer, waiting, failures).await,
            };
            let put_off = PutOff { next_at: backoff::after(delay), level };
            let transaction = deliverer.begin().await?;
            let done = retry::put_off_in_tx(
                &transaction,
                subscriber,
                *key_order,
                waiting,
                failures,
                put_off,
            )
            .await?;
            transaction.commit().await?;
            Ok(done)
        })
        .await
}

async fn bury(
    deliverer: &Deliverer,
    waiting: &Waiting,
    failures: &Failures,
) -> Result<bool, AttemptError> {
    let transaction = deliverer.begin().await?;
    if !retry::give_up_in_tx(&transaction, &deliverer.subscriber, waiting).await? {
        return Ok(false);
    }
    match waiting.dead_letter_id {
        Some(id) => dead_letter::failed_again_in_tx(&transaction, id, failures).await?,
        None => {
            let (subscriber, message) = (&deliverer.subscriber, &waiting.message);
            dead_letter::store_in_tx(&transaction, subscriber, message, failures).await?;
        }
    }
    transaction.commit().await?;
    Ok(true)
}

//! A message that failed makes way: into the retry table, or to the dead letters.

use std::time::Duration;

use halfmsg_db::begin_write;

use crate::deliver::{AttemptError, Deliverer};
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
        .bounded(async {
            let subscriber = &deliverer.subscriber;
            let transaction = begin_write(&deliverer.database).await?;
            let one = std::slice::from_ref(message);
            let fresh = !inbox::remember_in_tx(&transaction, subscriber, one).await?.is_empty();
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

/// Puts a retry off or gives it up, after one more failure. `level` is that of the row afterwards.
/// False if somebody else has tried it meanwhile: then it is theirs to decide.
pub(crate) async fn decide(
    deliverer: &Deliverer,
    waiting: &Waiting,
    failures: &Failures,
    fate: Fate,
    level: u32,
) -> Result<bool, AttemptError> {
    let Deliverer { database, subscriber, key_order, .. } = deliverer;
    deliverer
        .bounded(async {
            let delay = match fate {
                Fate::Retry(delay) => delay,
                Fate::Dead => return bury(deliverer, waiting, failures).await,
            };
            let put_off = PutOff { next_at: backoff::after(delay), level };
            let transaction = begin_write(database).await?;
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
    let transaction = begin_write(&deliverer.database).await?;
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

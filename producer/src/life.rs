//! One readable line for each step in the life of a half message, on the target
//! `halfmsg::life`.

use halfmsg_protocol::{Answer, Half, HalfRef, Origin, ParkedHalf};

use crate::message::HalfMessage;

const TARGET: &str = "halfmsg::life";

pub(crate) fn stored(half: &HalfMessage) {
    tracing::info!(
        target: TARGET,
        transaction_id = %half.transaction_id,
        "half message stored for topic {} (purpose {}, partition {}, offset {})",
        half.topic, half.purpose, half.partition, half.offset
    );
}

pub(crate) fn decided(half: &HalfMessage, verdict: &str, by: &str) {
    tracing::info!(
        target: TARGET,
        transaction_id = %half.transaction_id,
        "{verdict} decided by {by}"
    );
}

pub(crate) fn checked(of: HalfRef, answer: &Answer) {
    let text = match answer {
        Answer::Commit => "commit",
        Answer::Rollback => "rollback",
        Answer::Unknown(reason) | Answer::Failed(reason) => reason,
        Answer::NotAsked(_) => "not asked",
    };
    tracing::info!(target: TARGET, transaction_id = %of.id, "check-back asked; answer: {text}");
}

pub(crate) fn delivering(half: &Half) {
    tracing::info!(
        target: TARGET,
        transaction_id = %half.meta.id,
        "committed: delivering to topic {}", half.meta.topic
    );
}

pub(crate) fn dropped(half: &Half, origin: Origin, reason: &str) {
    let why = if reason.is_empty() { String::new() } else { format!(": {reason}") };
    tracing::info!(
        target: TARGET,
        transaction_id = %half.meta.id,
        "rolled back by {}: dropped{why}", origin.as_str()
    );
}

pub(crate) fn parked(parked: &ParkedHalf) {
    tracing::warn!(
        target: TARGET,
        transaction_id = %parked.half.meta.id,
        "parked ({}): {}; an operator decides", parked.cause.as_str(), parked.reason
    );
}

//! What operators did, who and why: written to the parked topic, under reserved keys that are never
//! deleted. The records of the store that carry name and reason, too, are trimmed once nothing needs them.
//!
//! An entry is written before the act and again, under the same key, after it: an act that nobody
//! knows the end of still shows as begun.
//!
//! # Layout
//! - this file: what is written
//! - `told`: what is read of it, for operators

use rdkafka::producer::{FutureProducer, FutureRecord};
use serde::Serialize;
use serde_json::Value;

use super::WRITE_DEADLINE;
use crate::admin::view::rfc3339;
use crate::admin::{AdminError, OperatorRequest};
use crate::clock;
use crate::config::ProducerConfig;

pub(crate) mod told;

/// The key, before a UUID whose order is that of time.
const KEY: &str = "halfmsg.journal-";
/// Outcomes that are no errors.
const BEGUN: &str = "begun";
const DONE: &str = "done";

#[derive(Debug, Serialize)]
struct Entry<'a> {
    action: &'a str,
    operator: &'a str,
    reason: &'a str,
    at: String,
    detail: &'a Value,
    outcome: &'a str,
}

/// An act that is written down.
pub(crate) struct Act<'a> {
    config: &'a ProducerConfig,
    partition: i32,
    key: String,
    action: &'static str,
    request: &'a OperatorRequest,
    detail: Value,
}

impl<'a> Act<'a> {
    /// Writes down that it begins.
    ///
    /// # Errors
    /// [`AdminError::Unreachable`]: nothing is to be done then.
    pub(crate) async fn begin(
        config: &'a ProducerConfig,
        partition: i32,
        action: &'static str,
        request: &'a OperatorRequest,
        detail: Value,
    ) -> Result<Self, AdminError> {
        let key = format!("{KEY}{}", uuid::Uuid::now_v7());
        let act = Self { config, partition, key, action, request, detail };
        let written = act.write(BEGUN).await;
        written.map_err(|error| AdminError::Unreachable(error.cause()))?;
        Ok(act)
    }

    /// As [`Act::end`], of an act whose record is stored if there is a result: no failure from here on means
    /// that nothing was done.
    pub(crate) async fn end_stored<T>(
        self,
        result: Result<T, AdminError>,
    ) -> Result<T, AdminError> {
        let is_stored = result.is_ok();
        let ended = self.end(result).await;
        if is_stored { ended.map_err(AdminError::behind_the_record) } else { ended }
    }

    /// Writes down how it ended, and gives its result back.
    pub(super) async fn end<T>(self, result: Result<T, AdminError>) -> Result<T, AdminError> {
        let outcome = match &result {
            Ok(_) => DONE.to_owned(),
            Err(error) => error.to_string(),
        };
        let written = self.write(&outcome).await;
        match (result, written) {
            (Ok(done), Ok(())) => Ok(done),
            (Ok(_), Err(error)) => Err(AdminError::Unavailable(format!(
                "{} is done, but the journal does not say so yet ({error})",
                self.action
            ))),
            (Err(error), _) => Err(error),
        }
    }

    async fn write(&self, outcome: &str) -> Result<(), AdminError> {
        let entry = Entry {
            action: self.action,
            operator: &self.request.operator,
            reason: &self.request.reason,
            at: rfc3339(clock::wall_ms()),
            detail: &self.detail,
            outcome,
        };
        let text = serde_json::to_string(&entry).map_err(|error| unwritten(&error))?;
        write_parked(self.config, self.partition, &self.key, &text).await
    }
}

/// Writes a record under a reserved key of the parked topic.
pub(super) async fn write_parked(
    config: &ProducerConfig,
    partition: i32,
    key: &str,
    text: &str,
) -> Result<(), AdminError> {
    let mut client = config.kafka.producer();
    client.set("message.timeout.ms", WRITE_DEADLINE.as_millis().to_string());
    let producer: FutureProducer = client.create().map_err(|error| unwritten(&error))?;
    let topic = config.parked_topic();
    let record = FutureRecord::to(&topic).partition(partition).key(key).payload(text);
    let sent = producer.send(record, WRITE_DEADLINE).await;
    sent.map(|_| ()).map_err(|(error, _)| unwritten(&error))
}

fn unwritten(error: &dyn std::fmt::Display) -> AdminError {
    AdminError::Unavailable(format!("the parked topic cannot be written: {error}"))
}

//! Passing a record of a newer format, at which its partition stands still.

use std::collections::BTreeMap;

use rdkafka::message::Message;
use serde::Serialize;
use serde_json::json;

use super::OperatorClient;
use super::journal::{Act, write_parked};
use crate::admin::view::rfc3339;
use crate::admin::{AdminError, OperatorRequest};
use crate::config::ProducerConfig;
use crate::snapshot::{Found, Look, SnapshotError, Walk, read, walk};
use crate::{clock, parked};

/// A record that is passed from now on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Skipped {
    /// The store's partition.
    pub partition: i32,
    /// The record's offset.
    pub offset: i64,
    /// Why it could not be read.
    pub record: String,
}

impl OperatorClient {
    /// Lets the group pass a record of a newer format. What the record says is lost to this
    /// version: a HALF in it is never delivered, a decision in it does not count. Anything but
    /// such a record is refused.
    ///
    /// A replica that stands still at it goes on within seconds.
    ///
    /// # Errors
    /// [`AdminError::Refused`] and others.
    pub async fn skip(
        &self,
        partition: i32,
        offset: i64,
        request: OperatorRequest,
    ) -> Result<Skipped, AdminError> {
        request.validate()?;
        let config = self.desk.config.clone();
        let found = self.desk.look(move |look| look_at(&config, partition, offset, look)).await?;
        let record = match found {
            Some(At::Newer(error)) => error,
            Some(At::Readable(what)) => return Err(refused(partition, offset, &what)),
            None => return Err(refused(partition, offset, "no record: nothing stops there")),
        };
        let config = &*self.desk.config;
        let detail = json!({ "partition": partition, "offset": offset, "record": record });
        let act = Act::begin(config, partition, "skip", &request, detail).await?;
        let text = json!({
            "operator": request.operator,
            "reason": request.reason,
            "at": rfc3339(clock::wall_ms()),
        });
        let key = parked::skip_key(partition, offset);
        let written = write_parked(config, partition, &key, &text.to_string()).await;
        act.end(written.map(|()| Skipped { partition, offset, record })).await
    }
}

enum At {
    Newer(String),
    Readable(String),
}

fn look_at(
    config: &ProducerConfig,
    partition: i32,
    offset: i64,
    look: &Look,
) -> Result<Option<At>, SnapshotError> {
    let store = config.store_topic();
    let bounds = crate::snapshot::bounds(config, partition, look)?;
    if !bounds.contains(&offset) {
        return Ok(None);
    }
    let mut found = None;
    let ranges = BTreeMap::from([(partition, offset..offset + 1)]);
    walk(&config.kafka, &store, &ranges, look, |message| {
        if message.offset() == offset {
            found = Some(match read(message) {
                Found::Newer(error) => At::Newer(error.to_string()),
                Found::Foreign => {
                    At::Readable("a record that is none of ours: it is passed by itself".into())
                }
                Found::Record { record, .. } => {
                    At::Readable(format!("a readable record about {}", record.id()))
                }
            });
        }
        Walk::Leave
    })?;
    Ok(found)
}

fn refused(partition: i32, offset: i64, what: &str) -> AdminError {
    AdminError::Refused(format!(
        "{partition}@{offset} holds {what}; only a record of a newer format can be skipped"
    ))
}

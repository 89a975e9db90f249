//! What became of a message once the record of an operator's act is stored. It must never say that nothing
//! was done.

use std::sync::Arc;
use std::time::Instant;

use super::super::AdminError;
use super::super::desk::{Desk, Looked};
use super::LOOK_INTERVAL;
use crate::TransactionId;
use crate::resolver::query::{Query, Seen};
use crate::snapshot::{self, Wanted};

impl Desk {
    /// The message behind the record at this offset, which is stored: no failure from here on means
    /// that nothing was done.
    pub(super) async fn effect(
        &self,
        looked: Looked,
        id: TransactionId,
        offset: i64,
    ) -> Result<Seen, AdminError> {
        let applied = self.once_applied(looked, id, offset).await;
        applied.map_err(AdminError::behind_the_record)
    }

    /// The message once the record at this offset is applied: by this replica if it owns the
    /// partition, else by reading on from the first look, which sees what every owner sees.
    async fn once_applied(
        &self,
        Looked { seen, part }: Looked,
        id: TransactionId,
        offset: i64,
    ) -> Result<Seen, AdminError> {
        let partition = seen.partition;
        let wanted = Wanted { only: Some(partition), body_of: Some(id), ..Wanted::default() };
        let parts = match part {
            Some(part) => {
                let config = Arc::clone(&self.config);
                let read = move |look: &_| snapshot::go_on(&config, part, &wanted, look);
                vec![self.look(read).await?]
            }
            None => match self.applied_here(partition, id, offset).await? {
                Some(seen) => return Ok(seen),
                None => self.snapshot_of_all(wanted).await?,
            },
        };
        let applied = parts.iter().find(|part| part.ledger.position() > offset);
        applied
            .and_then(|part| part.find(id))
            .ok_or_else(|| AdminError::Unseen("it is not read yet".into()))
    }

    /// Nothing if the partition has gone to another replica.
    async fn applied_here(
        &self,
        partition: i32,
        id: TransactionId,
        offset: i64,
    ) -> Result<Option<Seen>, AdminError> {
        let until = Instant::now() + self.config.decision_deadline;
        while Instant::now() < until {
            match self.ask(|reply| Query::Position { partition, reply }).await? {
                Some(position) if position > offset => {
                    return Ok(self.ask(|reply| Query::Find { id, reply }).await?.what);
                }
                Some(_) => tokio::time::sleep(LOOK_INTERVAL).await,
                None => return Ok(None),
            }
        }
        Err(AdminError::Unseen("this replica has not applied it yet".into()))
    }
}

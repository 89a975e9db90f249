//! The check-back's side of the fence: it reads the rows of a batch at once, and where there is
//! none, it writes the tombstone that the local transaction cannot get past.
//!
//! It must never wait long for a running local transaction: that one half is unknown, no other.

use std::collections::HashMap;

use halfmsg_producer::TransactionId;
use halfmsg_service_kit::db::{begin_write, set_lock_timeout_in_tx};
use sea_orm::{ColumnTrait, ConnectionTrait, EntityTrait, QueryFilter, QuerySelect};
use tokio::time::Instant;
use uuid::Uuid;

use super::entity::orders;
use super::{OrderStore, StoreError, conflicting, insert_order_in_tx, unreadable};
use crate::decision::Fate;
use crate::draft::Draft;
use crate::model::{OrderId, OrderStatus};
use crate::reason::VoidReason;

/// What the fence says about one order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fenced {
    /// The row that is there now.
    pub fate: Fate,
    /// Whether this check wrote it.
    pub tombstone: bool,
}

impl OrderStore {
    /// Says of each order what its row says, after making sure that it has one. The results are in
    /// the order of `drafts`.
    ///
    /// Rows that exist are read in one statement; tombstones are written one by one, in the order
    /// of their keys, each in its own transaction. Cancelled, some tombstones are written, which
    /// the next check reads.
    ///
    /// # Errors
    /// Per order: its fate is not known now. [`StoreError::Contended`] if its local transaction is
    /// under way.
    pub async fn fence_check(&self, drafts: &[Draft]) -> Vec<Result<Fenced, StoreError>> {
        let until = Instant::now() + self.limits.check_budget;
        let unreached = || StoreError::TimedOut(self.limits.check_budget);
        let mut known = match self.fates(drafts).await {
            Ok(known) => known,
            Err(error) => {
                tracing::warn!(%error, orders = drafts.len(), "the check-back cannot read orders");
                return drafts.iter().map(|_| Err(error.clone())).collect();
            }
        };
        let mut missing: Vec<&Draft> =
            drafts.iter().filter(|draft| !known.contains_key(&draft.id)).collect();
        missing.sort_by_key(|draft| draft.id);
        for draft in missing {
            let left = until.saturating_duration_since(Instant::now());
            let written = tokio::time::timeout(left, self.write_tombstone(draft)).await;
            known.insert(draft.id, written.unwrap_or_else(|_| Err(unreached())));
        }
        drafts
            .iter()
            .map(|draft| known.remove(&draft.id).unwrap_or_else(|| Err(unreached())))
            .collect()
    }

    async fn fates(
        &self,
        drafts: &[Draft],
    ) -> Result<HashMap<OrderId, Result<Fenced, StoreError>>, StoreError> {
        let ids = drafts.iter().map(|draft| draft.id.as_uuid());
        let read = select_fates(&self.checks, ids.collect());
        let budget = self.limits.check_budget;
        let fates = tokio::time::timeout(budget, read).await;
        let fates = fates.unwrap_or(Err(StoreError::TimedOut(budget)))?;
        let found = |fate| Fenced { fate, tombstone: false };
        Ok(fates.into_iter().map(|(id, fate)| (id, fate.map(found))).collect())
    }

    async fn write_tombstone(&self, draft: &Draft) -> Result<Fenced, StoreError> {
        let tx = begin_write(&self.checks).await?;
        set_lock_timeout_in_tx(&tx, self.limits.lock_timeout).await?;
        let tombstone = draft.void(VoidReason::Fenced.to_text(""), None, false);
        if insert_order_in_tx(&tx, &tombstone).await? {
            tx.commit().await?;
            self.tell(&tombstone);
            return Ok(Fenced { fate: Fate::from(&tombstone), tombstone: true });
        }
        let fates = select_fates(&tx, vec![draft.id.as_uuid()]).await?;
        tx.rollback().await?;
        let (_, fate) = fates.into_iter().next().ok_or_else(|| conflicting(draft.id))?;
        Ok(Fenced { fate: fate?, tombstone: false })
    }
}

type FateRow = (Uuid, Uuid, String, bool);

/// The rows that are there; one that this version cannot read is an error for its order alone.
async fn select_fates(
    db: &impl ConnectionTrait,
    ids: Vec<Uuid>,
) -> Result<Vec<(OrderId, Result<Fate, StoreError>)>, StoreError> {
    let rows: Vec<FateRow> = orders::Entity::find()
        .select_only()
        .columns([
            orders::Column::Id,
            orders::Column::TransactionId,
            orders::Column::Status,
            orders::Column::StockUntouched,
        ])
        .filter(orders::Column::Id.is_in(ids))
        .into_tuple()
        .all(db)
        .await?;
    let fate = |(id, transaction_id, status, stock_untouched): FateRow| {
        let order_id = OrderId::from_uuid(id);
        let transaction_id = TransactionId::from_uuid(transaction_id);
        let fate = OrderStatus::from_name(&status)
            .map(|status| Fate { id: order_id, transaction_id, status, stock_untouched })
            .ok_or_else(|| unreadable(order_id, transaction_id, "status", &status));
        (order_id, fate)
    };
    Ok(rows.into_iter().map(fate).collect())
}

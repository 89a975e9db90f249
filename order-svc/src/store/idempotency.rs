//! Requests that may be repeated: who repeats one hears what the first one heard.
//!
//! A claim is committed before the half message is prepared, so a request that died is found by
//! its successor. The successor may not simply begin anew, because the first may still be running
//! somewhere: it first writes the first one's order void (the fence), and begins anew only if that
//! row is its own.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use halfmsg_producer::TransactionId;
use halfmsg_service_kit::db::{begin_write, set_lock_timeout_in_tx, writers_turn};
use sea_orm::sea_query::{Expr, ExprTrait, OnConflict, Query};
use sea_orm::{
    ActiveValue::Set, ColumnTrait, DatabaseTransaction, DbBackend, EntityTrait, QueryFilter,
    QuerySelect,
};

use super::entity::idempotency_key::{ActiveModel, Column, Entity, Model};
use super::{OrderStore, StoreError, conflicting, insert_order_in_tx, read_order};
use crate::draft::Draft;
use crate::model::{NewOrder, Order, OrderId};
use crate::reason::VoidReason;

/// Rows deleted in one statement of [`OrderStore::forget_keys`].
pub const CLEAN_BATCH: u64 = 500;

/// A request that may be repeated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepeatKey {
    /// The client's Idempotency-Key; unique per user.
    pub key: String,
    /// A digest of what was asked for, in hexadecimal.
    pub body_hash: String,
}

/// The answer that the first request got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredAnswer {
    /// The order.
    pub order_id: OrderId,
    /// Its HTTP status.
    pub status: u16,
    /// Its body, JSON.
    pub body: String,
}

/// What a request that may be repeated has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claim {
    /// It is the first, or the first one can no longer happen: place this order.
    Place(OrderId),
    /// The first one has been answered.
    Answered(StoredAnswer),
    /// The first one was not answered, but its order has a fate.
    Settled(Order),
    /// The first one may still be running, for this order if that is known.
    Running(Option<OrderId>),
    /// The key was used for another order.
    OtherBody(OrderId),
}

impl OrderStore {
    /// Claims a key for a new order. The claim is committed when this returns
    /// [`Claim::Place`], and is the caller's for the length of `lease`.
    ///
    /// Cancelled, the key may be claimed until the lease ends.
    ///
    /// # Errors
    /// [`StoreError`]; the order must not be placed then. [`StoreError::Contended`] if the first
    /// one is just storing its order.
    pub async fn claim_key(
        &self,
        key: &RepeatKey,
        order: &NewOrder,
        now: DateTime<Utc>,
        lease: Duration,
    ) -> Result<Claim, StoreError> {
        let id = OrderId::generate();
        let lease_until = later(now, lease);
        self.bounded(async {
            let tx = begin_write(&self.requests).await?;
            set_lock_timeout_in_tx(&tx, self.limits.lock_timeout).await?;
            if insert_key_in_tx(&tx, key, &order.user_id, id, now, lease_until).await? {
                tx.commit().await?;
                return Ok(Claim::Place(id));
            }
            let Some(first) = lock_key_in_tx(&tx, &order.user_id, &key.key).await? else {
                // Released between the two statements.
                return Ok(Claim::Running(None));
            };
            let first_id = OrderId::from_uuid(first.order_id);
            if let Some(claim) = claim_of_first(first, key, now) {
                return Ok(claim);
            }
            let abandoned = abandoned(first_id, order);
            if !insert_order_in_tx(&tx, &abandoned).await? {
                let settled = read_order(&tx, first_id).await?;
                return settled.map(Claim::Settled).ok_or_else(|| conflicting(first_id));
            }
            pass_key_on_in_tx(&tx, &order.user_id, &key.key, id, lease_until).await?;
            tx.commit().await?;
            self.tell(&abandoned);
            Ok(Claim::Place(id))
        })
        .await
    }

    /// Keeps the answer of the order that the key was claimed for.
    ///
    /// # Errors
    /// [`StoreError`]; then a repeated request hears the order's fate when the lease has ended.
    pub async fn keep_answer(
        &self,
        user_id: &str,
        key: &str,
        answer: &StoredAnswer,
    ) -> Result<(), StoreError> {
        self.bounded(async {
            let _turn = writers_turn(&self.requests).await;
            Entity::update_many()
                .col_expr(Column::ResponseStatus, Expr::value(i32::from(answer.status)))
                .col_expr(Column::ResponseBody, Expr::value(answer.body.as_str()))
                .filter(Column::UserId.eq(user_id))
                .filter(Column::Key.eq(key))
                .filter(Column::OrderId.eq(answer.order_id.as_uuid()))
                .exec(&self.requests)
                .await?;
            Ok(())
        })
        .await
    }

    /// Gives a key back whose order can never happen, because its local transaction did not begin.
    ///
    /// # Errors
    /// [`StoreError`]; the lease ends by itself.
    pub async fn release_key(
        &self,
        user_id: &str,
        key: &str,
        order_id: OrderId,
    ) -> Result<(), StoreError> {
        self.bounded(async {
            let _turn = writers_turn(&self.requests).await;
            Entity::delete_many()
                .filter(Column::UserId.eq(user_id))
                .filter(Column::Key.eq(key))
                .filter(Column::OrderId.eq(order_id.as_uuid()))
                .filter(Column::ResponseStatus.is_null())
                .exec(&self.requests)
                .await?;
            Ok(())
        })
        .await
    }

    /// Forgets keys that were claimed before `before`: at most [`CLEAN_BATCH`], and says how many.
    ///
    /// # Errors
    /// [`StoreError`]; repeating it is harmless.
    pub async fn forget_keys(&self, before: DateTime<Utc>) -> Result<u64, StoreError> {
        let old = Query::select()
            .columns([Column::UserId, Column::Key])
            .from(Entity)
            .and_where(Column::CreatedAt.lt(before))
            .and_where(Column::LeaseUntil.lt(before))
            .limit(CLEAN_BATCH)
            .to_owned();
        let these = Expr::tuple([Expr::col(Column::UserId), Expr::col(Column::Key)]);
        self.bounded(async {
            let _turn = writers_turn(&self.requests).await;
            let deleted =
                Entity::delete_many().filter(these.in_subquery(old)).exec(&self.requests).await?;
            Ok(deleted.rows_affected)
        })
        .await
    }
}

/// What the first request says to its successor; nothing if its lease is over and it was never
/// answered.
fn claim_of_first(first: Model, key: &RepeatKey, now: DateTime<Utc>) -> Option<Claim> {
    let order_id = OrderId::from_uuid(first.order_id);
    if first.body_hash != key.body_hash {
        return Some(Claim::OtherBody(order_id));
    }
    if let (Some(status), Some(body)) = (first.response_status, first.response_body) {
        let status = u16::try_from(status).unwrap_or(500);
        return Some(Claim::Answered(StoredAnswer { order_id, status, body }));
    }
    (first.lease_until > now).then_some(Claim::Running(Some(order_id)))
}

/// The tombstone of an order whose request is gone. Its half message is not known here, if it has
/// one at all; see [`crate::decision::Fate::is_unclaimed`].
fn abandoned(id: OrderId, order: &NewOrder) -> Order {
    let draft = Draft::new(id, TransactionId::from_uuid(id.as_uuid()), order);
    draft.void(VoidReason::Abandoned.to_text(""), None, false)
}

async fn insert_key_in_tx(
    tx: &DatabaseTransaction,
    key: &RepeatKey,
    user_id: &str,
    id: OrderId,
    now: DateTime<Utc>,
    lease_until: DateTime<Utc>,
) -> Result<bool, StoreError> {
    let row = ActiveModel {
        user_id: Set(user_id.to_owned()),
        key: Set(key.key.clone()),
        body_hash: Set(key.body_hash.clone()),
        order_id: Set(id.as_uuid()),
        lease_until: Set(lease_until),
        response_status: Set(None),
        response_body: Set(None),
        created_at: Set(now),
    };
    let unless_claimed = OnConflict::columns([Column::UserId, Column::Key]).do_nothing().to_owned();
    let inserted =
        Entity::insert(row).on_conflict(unless_claimed).exec_without_returning(tx).await?;
    Ok(inserted > 0)
}

async fn lock_key_in_tx(
    tx: &DatabaseTransaction,
    user_id: &str,
    key: &str,
) -> Result<Option<Model>, StoreError> {
    let found = Entity::find_by_id((user_id.to_owned(), key.to_owned()));
    // SQLite's write transaction is alone anyway, and knows no FOR UPDATE.
    let postgres = sea_orm::ConnectionTrait::get_database_backend(tx) == DbBackend::Postgres;
    let found = if postgres { found.lock_exclusive() } else { found };
    Ok(found.one(tx).await?)
}

/// The key is locked by this transaction, and is another order's from now on.
async fn pass_key_on_in_tx(
    tx: &DatabaseTransaction,
    user_id: &str,
    key: &str,
    id: OrderId,
    lease_until: DateTime<Utc>,
) -> Result<(), StoreError> {
    Entity::update_many()
        .col_expr(Column::OrderId, Expr::value(id.as_uuid()))
        .col_expr(Column::LeaseUntil, Expr::value(lease_until))
        .filter(Column::UserId.eq(user_id))
        .filter(Column::Key.eq(key))
        .exec(tx)
        .await?;
    Ok(())
}

fn later(now: DateTime<Utc>, by: Duration) -> DateTime<Utc> {
    let by = TimeDelta::from_std(by).unwrap_or(TimeDelta::MAX);
    now.checked_add_signed(by).unwrap_or(DateTime::<Utc>::MAX_UTC)
}

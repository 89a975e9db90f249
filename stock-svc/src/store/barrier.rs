//! Deductions and restores. For each order they meet at one row of `deduction`: both first insert
//! it, then lock it, then look at what is there.
//!
//! So a restore waits for a deduct that is not yet committed; a restore that comes first leaves
//! `void` behind, and the deduct that comes after it takes nothing; a repetition of either changes
//! nothing. The restored quantities come from the movements, never from a message.
//!
//! Every transaction goes three ways in the same order: it inserts the rows that are missing, then
//! locks those that were there, then locks stock; each in the order of the keys. Who inserts holds
//! no lock on a row that was there, and nobody who locks one waits for an insert, so no two wait in a
//! circle, however many orders share a transaction.
//!
//! # Layout
//! - this file: the row, and how it is entered
//! - `deduct`, `restore`: the two that meet at it

mod deduct;
mod restore;

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use halfmsg_service_kit::db::now;
use sea_orm::ActiveValue::Set;
use sea_orm::sea_query::{CaseStatement, Expr, ExprTrait, OnConflict};
use sea_orm::{
    ColumnTrait, ConnectionTrait, DatabaseTransaction, EntityTrait, QueryFilter, QueryOrder,
    QuerySelect, QueryTrait,
};
use uuid::Uuid;

use super::entity::{deduction, stock};
use super::movements::{Kind, NewMovement};
use super::{ROWS_PER_STATEMENT, StoreError};
use crate::model::{DeductionState, Item};

pub use deduct::{Deduct, DeductRequest, TogetherError, deduct_all_in_tx, deduct_in_tx};
pub use restore::{Restore, RestoreRequest, restore_in_tx};

/// What somebody wants to write into the barrier of an order if it is free.
struct Enter<'a> {
    state: DeductionState,
    items: &'a str,
    reason: Option<&'a str>,
}

/// The barriers of some orders, after they were entered.
struct Entered {
    /// Those whose row this transaction inserted.
    first: BTreeSet<Uuid>,
    /// The others, locked, as somebody else left them.
    before: BTreeMap<Uuid, deduction::Model>,
}

/// Inserts the rows of orders that have none, and locks the others. Where another transaction is
/// inserting one of them, this waits for its end.
async fn enter_in_tx(
    transaction: &DatabaseTransaction,
    wanted: &BTreeMap<Uuid, Enter<'_>>,
) -> Result<Entered, StoreError> {
    let at = now();
    let mut first = BTreeSet::new();
    let all: Vec<_> = wanted.iter().collect();
    for part in all.chunks(ROWS_PER_STATEMENT) {
        first.append(&mut insert_in_tx(transaction, part, at).await?);
    }
    let others: Vec<Uuid> = wanted.keys().filter(|id| !first.contains(*id)).copied().collect();
    let mut before = BTreeMap::new();
    for part in others.chunks(ROWS_PER_STATEMENT) {
        let locked = deduction::Entity::find()
            .filter(deduction::Column::OrderId.is_in(part.iter().copied()))
            .order_by_asc(deduction::Column::OrderId)
            .lock_exclusive()
            .all(transaction)
            .await?;
        before.extend(locked.into_iter().map(|row| (row.order_id, row)));
    }
    // Rows are never deleted.
    match others.iter().find(|id| !before.contains_key(*id)) {
        None => Ok(Entered { first, before }),
        Some(order_id) => Err(StoreError::Unreadable(format!("deduction {order_id}: no row"))),
    }
}

async fn insert_in_tx(
    transaction: &DatabaseTransaction,
    wanted: &[(&Uuid, &Enter<'_>)],
    at: DateTime<Utc>,
) -> Result<BTreeSet<Uuid>, StoreError> {
    let rows = wanted.iter().map(|(order_id, enter)| deduction::ActiveModel {
        order_id: Set(**order_id),
        state: Set(enter.state.as_str().to_owned()),
        reason: Set(enter.reason.map(str::to_owned)),
        items: Set(enter.items.to_owned()),
        created_at: Set(at),
        updated_at: Set(at),
    });
    let mut insert = deduction::Entity::insert_many(rows).into_query();
    insert
        .on_conflict(OnConflict::column(deduction::Column::OrderId).do_nothing().to_owned())
        .returning_col(deduction::Column::OrderId);
    let mut first = BTreeSet::new();
    for row in transaction.query_all(&insert).await? {
        first.insert(row.try_get::<Uuid>("", "order_id")?);
    }
    Ok(first)
}

fn state(row: &deduction::Model) -> Result<DeductionState, StoreError> {
    DeductionState::from_name(&row.state).ok_or_else(|| {
        StoreError::Unreadable(format!("deduction {}: state '{}'", row.order_id, row.state))
    })
}

/// Gives orders whose barriers this transaction has entered a state, each with its reason.
async fn set_state_in_tx(
    transaction: &DatabaseTransaction,
    state: DeductionState,
    orders: impl IntoIterator<Item = (Uuid, Option<String>)>,
) -> Result<(), StoreError> {
    let mut by_reason: BTreeMap<Option<String>, Vec<Uuid>> = BTreeMap::new();
    for (order_id, reason) in orders {
        by_reason.entry(reason).or_default().push(order_id);
    }
    for (reason, orders) in by_reason {
        for part in orders.chunks(ROWS_PER_STATEMENT) {
            deduction::Entity::update_many()
                .col_expr(deduction::Column::State, Expr::value(state.as_str()))
                .col_expr(deduction::Column::Reason, Expr::value(reason.clone()))
                .col_expr(deduction::Column::UpdatedAt, Expr::value(now()))
                .filter(deduction::Column::OrderId.is_in(part.iter().copied()))
                .exec(transaction)
                .await?;
        }
    }
    Ok(())
}

/// Changes what is available of products that this transaction has locked.
async fn change_in_tx(
    transaction: &DatabaseTransaction,
    changes: &BTreeMap<&str, i64>,
) -> Result<(), StoreError> {
    let all: Vec<(&str, i64)> = changes.iter().map(|(sku, by)| (*sku, *by)).collect();
    for part in all.chunks(ROWS_PER_STATEMENT) {
        let by = part.iter().fold(CaseStatement::new(), |case, (sku, by)| {
            case.case(Expr::col(stock::Column::Sku).eq(*sku), *by)
        });
        // No other sku is touched; without it the column could become null.
        let by = by.finally(0_i64);
        let changed = stock::Entity::update_many()
            .col_expr(stock::Column::Available, Expr::col(stock::Column::Available).add(by))
            .filter(stock::Column::Sku.is_in(part.iter().map(|(sku, _)| *sku)))
            .exec(transaction)
            .await?;
        if changed.rows_affected != part.len() as u64 {
            let skus = part.iter().map(|(sku, _)| *sku).collect::<Vec<_>>().join(", ");
            return Err(StoreError::Unreadable(format!("a product of {skus} has no stock")));
        }
    }
    Ok(())
}

fn of_order(order_id: Uuid, item: &Item, kind: Kind) -> NewMovement<'_> {
    let (sku, quantity) = (item.sku.as_str(), item.quantity);
    NewMovement { order_id: Some(order_id), reference: None, sku, kind, quantity }
}

//! Deductions and restores. For each order they meet at one row of `deduction`: both first insert
//! it, then lock it, then look at what is there.
//!
//! So a restore waits for a deduct that is not yet committed; a restore that comes first leaves
//! `void` behind, and the deduct that comes after it takes nothing; a repetition of either changes
//! nothing. The restored quantities come from the movements, never from a message.

use std::collections::BTreeMap;

use halfmsg_service_kit::db::now;
use sea_orm::ActiveValue::Set;
use sea_orm::sea_query::{Expr, ExprTrait, OnConflict};
use sea_orm::{
    ColumnTrait, DatabaseTransaction, EntityTrait, QueryFilter, QueryOrder, QuerySelect,
};
use uuid::Uuid;

use super::entity::{deduction, movement, stock};
use super::movements::{Kind, NewMovement, record_in_tx};
use super::{StockStore, StoreError, lock_stock_in_tx, within};
use crate::model::{DeductionState, Item, Items, Refusal};

/// What became of a deduct.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Deduct {
    /// All items are taken, now or by an earlier request.
    Deducted {
        /// An earlier request took them.
        before: bool,
    },
    /// Nothing is taken, now or by an earlier request.
    Refused {
        /// The reason of the first time.
        refusal: Refusal,
        /// An earlier request was refused.
        before: bool,
    },
    /// The order was given up before: nothing is taken.
    OrderVoid(DeductionState),
    /// An earlier request of this order asked for other items: nothing changed.
    OtherItems,
}

/// What a deduct is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeductRequest {
    /// The order.
    pub order_id: Uuid,
    /// What it takes.
    pub items: Items,
    /// Whether it is to be refused in any case.
    pub induced: bool,
}

/// What became of a restore.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Restore {
    /// These were given back now.
    Restored(Vec<Item>),
    /// Nothing had been taken, and nothing will be.
    Voided,
    /// Nothing to do: it was so before.
    Before(DeductionState),
}

/// What a restore is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestoreRequest {
    /// The order.
    pub order_id: Uuid,
    /// The skus that the order was about: only to leave a trace where nothing was deducted.
    pub skus: Vec<String>,
    /// Why.
    pub reason: Option<String>,
}

impl StockStore {
    /// Takes the items of an order from the stock, all or none. `induced` refuses in any case.
    ///
    /// # Errors
    /// [`StoreError`]; it may have happened all the same, and repeating is harmless.
    pub async fn deduct(
        &self,
        order_id: Uuid,
        items: &Items,
        induced: bool,
    ) -> Result<Deduct, StoreError> {
        within(async {
            let transaction = self.begin().await?;
            let done = deduct_in_tx(&transaction, order_id, items, induced).await?;
            let new = match done {
                Deduct::Deducted { before } | Deduct::Refused { before, .. } => !before,
                Deduct::OrderVoid(_) | Deduct::OtherItems => false,
            };
            if new {
                transaction.commit().await?;
            }
            Ok(done)
        })
        .await
    }
}

/// [`StockStore::deduct`] inside a caller's transaction, which the caller commits.
///
/// # Errors
/// [`StoreError`]; the transaction must be rolled back.
pub async fn deduct_in_tx(
    transaction: &DatabaseTransaction,
    order_id: Uuid,
    items: &Items,
    induced: bool,
) -> Result<Deduct, StoreError> {
    let request = DeductRequest { order_id, items: items.clone(), induced };
    let mut done = deduct_all_in_tx(transaction, std::slice::from_ref(&request)).await?;
    // One answer for each request.
    done.pop().ok_or_else(|| StoreError::Unreadable(format!("deduction {order_id}: no answer")))
}

/// Takes the items of these orders from the stock, each order's all or none, the earlier ones first.
/// The answers are in the order of the requests; of two for the same order the second finds the work
/// of the first.
///
/// As [`restore_in_tx`], it enters all barriers before it locks any stock.
///
/// # Errors
/// [`StoreError`]; the transaction must be rolled back.
pub async fn deduct_all_in_tx(
    transaction: &DatabaseTransaction,
    requests: &[DeductRequest],
) -> Result<Vec<Deduct>, StoreError> {
    let mut answers: Vec<Option<Deduct>> = vec![None; requests.len()];
    let mut again = Vec::new();
    let mut sorted: Vec<usize> = (0..requests.len()).collect();
    sorted.sort_by_key(|index| requests[*index].order_id);
    for index in sorted {
        let DeductRequest { order_id, items, .. } = &requests[index];
        let (order_id, asked) = (*order_id, items.to_json());
        let enter =
            Enter { order_id, state: DeductionState::Deducted, items: &asked, reason: None };
        let (first, row) = enter_in_tx(transaction, enter).await?;
        let of_this = requests[..index].iter().any(|request| request.order_id == order_id);
        match (first, of_this) {
            (true, _) => {}
            // What the first of them comes to is not known yet.
            (false, true) => again.push(index),
            (false, false) => answers[index] = Some(repeated(&row, &asked)?),
        }
    }
    take_in_tx(transaction, requests, &mut answers, &again).await?;
    for index in again {
        let DeductRequest { order_id, items, .. } = &requests[index];
        let row = deduction::Entity::find_by_id(*order_id).one(transaction).await?;
        let row = row.ok_or_else(|| StoreError::Unreadable(format!("deduction {order_id}")))?;
        answers[index] = Some(repeated(&row, &items.to_json())?);
    }
    let unanswered = || StoreError::Unreadable("a deduction without an answer".into());
    answers.into_iter().map(|answer| answer.ok_or_else(unanswered)).collect()
}

/// Takes the items of the requests that have no answer yet, in their order.
async fn take_in_tx(
    transaction: &DatabaseTransaction,
    requests: &[DeductRequest],
    answers: &mut [Option<Deduct>],
    but: &[usize],
) -> Result<(), StoreError> {
    let new: Vec<usize> = (0..requests.len())
        .filter(|index| answers[*index].is_none() && !but.contains(index))
        .collect();
    let skus = new.iter().flat_map(|index| requests[*index].items.skus());
    let mut left = lock_stock_in_tx(transaction, skus).await?;
    let (mut taken, mut movements) = (BTreeMap::new(), Vec::new());
    for index in new {
        let DeductRequest { order_id, items, induced } = &requests[index];
        let refusal = if *induced { Some(Refusal::Induced) } else { refusal(items, &left) };
        if let Some(refusal) = refusal {
            let reason = Some(refusal.to_json());
            set_state_in_tx(transaction, *order_id, DeductionState::Refused, reason).await?;
            answers[index] = Some(Deduct::Refused { refusal, before: false });
            continue;
        }
        for item in items.iter() {
            // It is there: else the order had been refused.
            *left.entry(item.sku.clone()).or_default() -= item.quantity;
            *taken.entry(item.sku.as_str()).or_default() += item.quantity;
            movements.push(of_order(*order_id, item, Kind::Deduct));
        }
        answers[index] = Some(Deduct::Deducted { before: false });
    }
    for (sku, quantity) in taken {
        let quantity: i64 = quantity;
        change_in_tx(transaction, sku, -quantity).await?;
    }
    record_in_tx(transaction, movements).await
}

/// Gives back what these orders have taken, each once. The answers are in the order of the
/// requests; of two for the same order the second finds the work of the first.
///
/// All barriers are entered before any stock is locked, and the stock of all orders is locked at
/// once in the order of the skus: so this cannot wait in a circle with deducts, which hold one
/// barrier each.
///
/// # Errors
/// [`StoreError`]; the transaction must be rolled back.
pub async fn restore_in_tx(
    transaction: &DatabaseTransaction,
    requests: &[RestoreRequest],
) -> Result<Vec<Restore>, StoreError> {
    let mut sorted: Vec<usize> = (0..requests.len()).collect();
    sorted.sort_by_key(|index| requests[*index].order_id);
    let mut taken: BTreeMap<usize, Vec<Item>> = BTreeMap::new();
    let mut answers = vec![Restore::Voided; requests.len()];
    for index in sorted {
        answers[index] = match enter_to_restore_in_tx(transaction, &requests[index]).await? {
            Entered::Done(answer) => answer,
            Entered::Taken(items) => {
                taken.insert(index, items.clone());
                Restore::Restored(items)
            }
        };
    }
    let skus = taken.values().flatten().map(|item| item.sku.clone());
    lock_stock_in_tx(transaction, skus).await?;
    for (index, items) in taken {
        let order_id = requests[index].order_id;
        for item in &items {
            change_in_tx(transaction, &item.sku, item.quantity).await?;
        }
        record_in_tx(transaction, items.iter().map(|item| of_order(order_id, item, Kind::Restore)))
            .await?;
    }
    Ok(answers)
}

enum Entered {
    Done(Restore),
    Taken(Vec<Item>),
}

async fn enter_to_restore_in_tx(
    transaction: &DatabaseTransaction,
    request: &RestoreRequest,
) -> Result<Entered, StoreError> {
    let order_id = request.order_id;
    let reason = request.reason.clone();
    let enter =
        Enter { order_id, state: DeductionState::Void, items: "[]", reason: reason.clone() };
    let (first, row) = enter_in_tx(transaction, enter).await?;
    if first {
        let trace = |sku: &String| Item { sku: sku.clone(), quantity: 0 };
        let trace: Vec<_> = request.skus.iter().map(trace).collect();
        record_in_tx(transaction, trace.iter().map(|item| of_order(order_id, item, Kind::Void)))
            .await?;
        return Ok(Entered::Done(Restore::Voided));
    }
    match state(&row)? {
        DeductionState::Deducted => {
            set_state_in_tx(transaction, order_id, DeductionState::Restored, reason).await?;
            Ok(Entered::Taken(taken_in_tx(transaction, order_id).await?))
        }
        state => Ok(Entered::Done(Restore::Before(state))),
    }
}

/// What somebody wants to write into the barrier if it is free.
struct Enter<'a> {
    order_id: Uuid,
    state: DeductionState,
    items: &'a str,
    reason: Option<String>,
}

/// Inserts the row of an order if there is none, and locks it. True if this transaction inserted
/// it. Where another transaction is inserting it, this waits for its end.
async fn enter_in_tx(
    transaction: &DatabaseTransaction,
    enter: Enter<'_>,
) -> Result<(bool, deduction::Model), StoreError> {
    let at = now();
    let row = deduction::ActiveModel {
        order_id: Set(enter.order_id),
        state: Set(enter.state.as_str().to_owned()),
        reason: Set(enter.reason),
        items: Set(enter.items.to_owned()),
        created_at: Set(at),
        updated_at: Set(at),
    };
    let inserted = deduction::Entity::insert(row)
        .on_conflict(OnConflict::column(deduction::Column::OrderId).do_nothing().to_owned())
        .exec_without_returning(transaction)
        .await?;
    let locked =
        deduction::Entity::find_by_id(enter.order_id).lock_exclusive().one(transaction).await?;
    // Rows are never deleted.
    let locked =
        locked.ok_or_else(|| StoreError::Unreadable(format!("deduction {}", enter.order_id)))?;
    Ok((inserted > 0, locked))
}

/// The first answer once more, if the request is the same.
fn repeated(row: &deduction::Model, asked: &str) -> Result<Deduct, StoreError> {
    let state = state(row)?;
    match state {
        DeductionState::Void | DeductionState::Restored => Ok(Deduct::OrderVoid(state)),
        _ if row.items != asked => Ok(Deduct::OtherItems),
        DeductionState::Deducted => Ok(Deduct::Deducted { before: true }),
        DeductionState::Refused => {
            let refusal = serde_json::from_str(row.reason.as_deref().unwrap_or_default());
            let refusal = refusal.map_err(|error| {
                StoreError::Unreadable(format!("deduction {}: reason: {error}", row.order_id))
            })?;
            Ok(Deduct::Refused { refusal, before: true })
        }
    }
}

fn state(row: &deduction::Model) -> Result<DeductionState, StoreError> {
    DeductionState::from_name(&row.state).ok_or_else(|| {
        StoreError::Unreadable(format!("deduction {}: state '{}'", row.order_id, row.state))
    })
}

/// An unknown sku goes before a lack: it will not come in.
fn refusal(items: &Items, locked: &BTreeMap<String, i64>) -> Option<Refusal> {
    let unknown = items.iter().find(|item| !locked.contains_key(&item.sku));
    if let Some(item) = unknown {
        return Some(Refusal::UnknownSku { sku: item.sku.clone() });
    }
    items.iter().find_map(|item| {
        let available = locked.get(&item.sku).copied().unwrap_or_default();
        (available < item.quantity).then(|| Refusal::InsufficientStock {
            sku: item.sku.clone(),
            requested: item.quantity,
            available,
        })
    })
}

async fn set_state_in_tx(
    transaction: &DatabaseTransaction,
    order_id: Uuid,
    state: DeductionState,
    reason: Option<String>,
) -> Result<(), StoreError> {
    deduction::Entity::update_many()
        .col_expr(deduction::Column::State, Expr::value(state.as_str()))
        .col_expr(deduction::Column::Reason, Expr::value(reason))
        .col_expr(deduction::Column::UpdatedAt, Expr::value(now()))
        .filter(deduction::Column::OrderId.eq(order_id))
        .exec(transaction)
        .await?;
    Ok(())
}

/// Changes what is available of a product that this transaction has locked.
async fn change_in_tx(
    transaction: &DatabaseTransaction,
    sku: &str,
    by: i64,
) -> Result<(), StoreError> {
    let changed = stock::Entity::update_many()
        .col_expr(stock::Column::Available, Expr::col(stock::Column::Available).add(by))
        .filter(stock::Column::Sku.eq(sku))
        .exec(transaction)
        .await?;
    if changed.rows_affected == 1 {
        return Ok(());
    }
    Err(StoreError::Unreadable(format!("the stock of '{sku}' has no row")))
}

async fn taken_in_tx(
    transaction: &DatabaseTransaction,
    order_id: Uuid,
) -> Result<Vec<Item>, StoreError> {
    let rows = movement::Entity::find()
        .filter(movement::Column::OrderId.eq(order_id))
        .filter(movement::Column::Kind.eq(Kind::Deduct.as_str()))
        .order_by_asc(movement::Column::Sku)
        .all(transaction)
        .await?;
    Ok(rows.into_iter().map(|row| Item { sku: row.sku, quantity: row.quantity }).collect())
}

fn of_order(order_id: Uuid, item: &Item, kind: Kind) -> NewMovement<'_> {
    let (sku, quantity) = (item.sku.as_str(), item.quantity);
    NewMovement { order_id: Some(order_id), reference: None, sku, kind, quantity }
}

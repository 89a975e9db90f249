//! Restores: what orders give back, each once.

use std::collections::BTreeMap;

use sea_orm::{ColumnTrait, DatabaseTransaction, EntityTrait, QueryFilter, QueryOrder};
use uuid::Uuid;

use super::super::entity::movement;
use super::super::movements::{Kind, NewMovement, record_in_tx};
use super::super::{LOCK_TIMEOUT, ROWS_PER_STATEMENT, StockStore, StoreError, lock_stock_in_tx};
use super::{Enter, change_in_tx, enter_in_tx, of_order, set_state_in_tx, state};
use crate::model::{DeductionState, Item};

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
    /// [`restore_in_tx`] in a transaction of its own.
    ///
    /// # Errors
    /// [`StoreError`]; it may have happened all the same, and repeating is harmless.
    pub async fn restore(&self, requests: &[RestoreRequest]) -> Result<Vec<Restore>, StoreError> {
        self.within(async {
            let transaction = self.begin(LOCK_TIMEOUT).await?;
            let done = restore_in_tx(&transaction, requests).await?;
            transaction.commit().await?;
            Ok(done)
        })
        .await
    }
}

/// Gives back what these orders have taken, each once. The answers are in the order of the
/// requests; of two for the same order the second finds the work of the first.
///
/// # Errors
/// [`StoreError`]; the transaction must be rolled back.
pub async fn restore_in_tx(
    transaction: &DatabaseTransaction,
    requests: &[RestoreRequest],
) -> Result<Vec<Restore>, StoreError> {
    // The first request of each order.
    let mut wanted: BTreeMap<Uuid, &RestoreRequest> = BTreeMap::new();
    for request in requests {
        wanted.entry(request.order_id).or_insert(request);
    }
    let mut done = enter_to_restore_in_tx(transaction, &wanted).await?;
    give_back_in_tx(transaction, &wanted, &mut done).await?;
    let answer = |request: &RestoreRequest| {
        let first =
            wanted.get(&request.order_id).is_some_and(|first| std::ptr::eq(*first, request));
        let order_id = request.order_id;
        let done = done.get(&order_id).cloned();
        let done = done.ok_or_else(|| StoreError::Unreadable(format!("restore {order_id}")))?;
        Ok(match done {
            done if first => done,
            Restore::Restored(_) => Restore::Before(DeductionState::Restored),
            Restore::Voided => Restore::Before(DeductionState::Void),
            Restore::Before(state) => Restore::Before(state),
        })
    };
    requests.iter().map(answer).collect()
}

/// Enters all barriers: void where nobody was, and of what was deducted nothing is known yet.
async fn enter_to_restore_in_tx(
    transaction: &DatabaseTransaction,
    wanted: &BTreeMap<Uuid, &RestoreRequest>,
) -> Result<BTreeMap<Uuid, Restore>, StoreError> {
    let enter = wanted.iter().map(|(order_id, request)| {
        let reason = request.reason.as_deref();
        (*order_id, Enter { state: DeductionState::Void, items: "[]", reason })
    });
    let entered = enter_in_tx(transaction, &enter.collect()).await?;
    let mut done = BTreeMap::new();
    for order_id in entered.first {
        done.insert(order_id, Restore::Voided);
    }
    for (order_id, row) in entered.before {
        done.insert(
            order_id,
            match state(&row)? {
                DeductionState::Deducted => Restore::Restored(Vec::new()),
                state => Restore::Before(state),
            },
        );
    }
    Ok(done)
}

/// Gives back what was deducted, as the movements say, and says so in `done`.
async fn give_back_in_tx(
    transaction: &DatabaseTransaction,
    wanted: &BTreeMap<Uuid, &RestoreRequest>,
    done: &mut BTreeMap<Uuid, Restore>,
) -> Result<(), StoreError> {
    let deducted = done.iter().filter(|(_, done)| matches!(done, Restore::Restored(_)));
    let deducted: Vec<Uuid> = deducted.map(|(order_id, _)| *order_id).collect();
    let taken = taken_in_tx(transaction, &deducted).await?;
    let skus = taken.values().flatten().map(|item| item.sku.clone());
    lock_stock_in_tx(transaction, skus).await?;
    let mut back: BTreeMap<&str, i64> = BTreeMap::new();
    for item in taken.values().flatten() {
        *back.entry(item.sku.as_str()).or_default() += item.quantity;
    }
    let reasons = deducted.iter().map(|order_id| {
        (*order_id, wanted.get(order_id).and_then(|request| request.reason.clone()))
    });
    set_state_in_tx(transaction, DeductionState::Restored, reasons).await?;
    change_in_tx(transaction, &back).await?;
    let traces = traces(wanted, done);
    record_in_tx(transaction, movements(&taken, &traces)).await?;
    for (order_id, items) in taken {
        done.insert(order_id, Restore::Restored(items));
    }
    Ok(())
}

/// What an order that took nothing leaves behind.
fn traces(
    wanted: &BTreeMap<Uuid, &RestoreRequest>,
    done: &BTreeMap<Uuid, Restore>,
) -> Vec<(Uuid, Item)> {
    let voided = |order_id: &Uuid| done.get(order_id) == Some(&Restore::Voided);
    let trace = |sku: &String| Item { sku: sku.clone(), quantity: 0 };
    let of = |order_id: Uuid, skus: &[String]| -> Vec<(Uuid, Item)> {
        skus.iter().map(|sku| (order_id, trace(sku))).collect()
    };
    let voided = wanted.iter().filter(|(order_id, _)| voided(order_id));
    voided.flat_map(|(order_id, request)| of(*order_id, &request.skus)).collect()
}

fn movements<'a>(
    taken: &'a BTreeMap<Uuid, Vec<Item>>,
    traces: &'a [(Uuid, Item)],
) -> Vec<NewMovement<'a>> {
    let mut movements = Vec::new();
    for (order_id, items) in taken {
        movements.extend(items.iter().map(|item| of_order(*order_id, item, Kind::Restore)));
    }
    movements.extend(traces.iter().map(|(order_id, item)| of_order(*order_id, item, Kind::Void)));
    movements
}

/// What these orders have taken.
async fn taken_in_tx(
    transaction: &DatabaseTransaction,
    orders: &[Uuid],
) -> Result<BTreeMap<Uuid, Vec<Item>>, StoreError> {
    let mut taken: BTreeMap<Uuid, Vec<Item>> = BTreeMap::new();
    for part in orders.chunks(ROWS_PER_STATEMENT) {
        let rows = movement::Entity::find()
            .filter(movement::Column::OrderId.is_in(part.iter().copied()))
            .filter(movement::Column::Kind.eq(Kind::Deduct.as_str()))
            .order_by_asc(movement::Column::Sku)
            .all(transaction)
            .await?;
        for row in rows {
            // Every one of them has an order: it was looked for by it.
            let Some(order_id) = row.order_id else { continue };
            let item = Item { sku: row.sku, quantity: row.quantity };
            taken.entry(order_id).or_default().push(item);
        }
    }
    Ok(taken)
}

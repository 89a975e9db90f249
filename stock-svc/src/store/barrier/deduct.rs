//! Deductions: what orders take, each all or none.

use std::collections::BTreeMap;
use std::time::Duration;

use sea_orm::{DatabaseTransaction, EntityTrait};
use uuid::Uuid;

use super::super::entity::deduction;
use super::super::movements::{Kind, record_in_tx};
use super::super::{LOCK_TIMEOUT, StockStore, StoreError, lock_stock_in_tx};
use super::{Enter, change_in_tx, enter_in_tx, of_order, set_state_in_tx, state};
use crate::model::{DeductionState, Items, Refusal};

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

impl Deduct {
    /// Whether this request left something to commit.
    fn is_new(&self) -> bool {
        match self {
            Self::Deducted { before } | Self::Refused { before, .. } => !before,
            Self::OrderVoid(_) | Self::OtherItems => false,
        }
    }
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
    /// The half message that it is asked for with, if it is known: for the log.
    pub transaction_id: Option<Uuid>,
}

/// Why several orders were not deducted together.
#[derive(Debug)]
pub enum TogetherError {
    /// It is nobody's fault: alone, each of them would fail as well.
    All(StoreError),
    /// It may be for one of them: without that, the others can succeed. Nothing has happened.
    One(StoreError),
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
        self.within(async {
            let transaction = self.begin(LOCK_TIMEOUT).await?;
            let done = deduct_in_tx(&transaction, order_id, items, induced).await?;
            if done.is_new() {
                transaction.commit().await?;
            }
            Ok(done)
        })
        .await
    }

    /// [`StockStore::deduct`] of several orders in one transaction, as if one came after the other:
    /// their answers in the order of the requests. On PostgreSQL a statement waits for a lock for
    /// `lock_wait`.
    ///
    /// # Errors
    /// Whether it is worth asking otherwise, which is harmless in any case.
    pub async fn deduct_together(
        &self,
        requests: &[DeductRequest],
        lock_wait: Duration,
    ) -> Result<Vec<Deduct>, TogetherError> {
        let work = async {
            let transaction = match self.begin(lock_wait).await {
                Ok(transaction) => transaction,
                Err(error) => return Ok(Err(TogetherError::All(error))),
            };
            let done = deduct_all_in_tx(&transaction, requests).await?;
            if done.iter().any(Deduct::is_new) {
                transaction.commit().await?;
            }
            Ok(Ok(done))
        };
        self.within(work).await.unwrap_or_else(|error| {
            let away = error.is_database_away();
            Err(if away { TogetherError::All(error) } else { TogetherError::One(error) })
        })
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
    let request = DeductRequest { order_id, items: items.clone(), induced, transaction_id: None };
    let mut done = deduct_all_in_tx(transaction, std::slice::from_ref(&request)).await?;
    // One answer for each request.
    done.pop().ok_or_else(|| StoreError::Unreadable(format!("deduction {order_id}: no answer")))
}

/// Takes the items of these orders from the stock, each order's all or none, the earlier ones first.
/// The answers are in the order of the requests; of two for the same order the second finds the work
/// of the first.
///
/// # Errors
/// [`StoreError`]; the transaction must be rolled back.
pub async fn deduct_all_in_tx(
    transaction: &DatabaseTransaction,
    requests: &[DeductRequest],
) -> Result<Vec<Deduct>, StoreError> {
    Deducting::enter_in_tx(transaction, requests).await?.take_in_tx(transaction).await
}

/// Requests whose barriers are entered, and whose stock is not locked yet.
struct Deducting<'a> {
    requests: &'a [DeductRequest],
    /// Of those whose order was there before.
    answers: Vec<Option<Deduct>>,
    /// What is to be taken: the first request of each order that was not.
    new: Vec<usize>,
    /// The later requests of those orders: what the first comes to is not known yet.
    again: Vec<usize>,
}

impl<'a> Deducting<'a> {
    async fn enter_in_tx(
        transaction: &DatabaseTransaction,
        requests: &'a [DeductRequest],
    ) -> Result<Self, StoreError> {
        let asked: Vec<String> = requests.iter().map(|request| request.items.to_json()).collect();
        let mut wanted = BTreeMap::new();
        for (request, items) in requests.iter().zip(&asked) {
            let enter = Enter { state: DeductionState::Deducted, items, reason: None };
            wanted.entry(request.order_id).or_insert(enter);
        }
        let mut entered = enter_in_tx(transaction, &wanted).await?;
        let mut found = Self {
            requests,
            answers: vec![None; requests.len()],
            new: Vec::new(),
            again: Vec::new(),
        };
        for (index, (request, asked)) in requests.iter().zip(&asked).enumerate() {
            if let Some(row) = entered.before.get(&request.order_id) {
                found.answers[index] = Some(repeated(row, asked)?);
            } else if entered.first.remove(&request.order_id) {
                found.new.push(index);
            } else {
                found.again.push(index);
            }
        }
        Ok(found)
    }

    /// Takes what is new, in the order of the requests.
    async fn take_in_tx(
        mut self,
        transaction: &DatabaseTransaction,
    ) -> Result<Vec<Deduct>, StoreError> {
        let requests = self.requests;
        let skus = self.new.iter().flat_map(|index| requests[*index].items.skus());
        let mut left = lock_stock_in_tx(transaction, skus).await?;
        let (mut taken, mut movements, mut refused) = (BTreeMap::new(), Vec::new(), Vec::new());
        for index in &self.new {
            let DeductRequest { order_id, items, induced, .. } = &requests[*index];
            let refusal = if *induced { Some(Refusal::Induced) } else { refusal(items, &left) };
            if let Some(refusal) = refusal {
                refused.push((*order_id, Some(refusal.to_json())));
                self.answers[*index] = Some(Deduct::Refused { refusal, before: false });
                continue;
            }
            for item in items.iter() {
                // It is there: else the order had been refused.
                *left.entry(item.sku.clone()).or_default() -= item.quantity;
                *taken.entry(item.sku.as_str()).or_default() -= item.quantity;
                movements.push(of_order(*order_id, item, Kind::Deduct));
            }
            self.answers[*index] = Some(Deduct::Deducted { before: false });
        }
        set_state_in_tx(transaction, DeductionState::Refused, refused).await?;
        change_in_tx(transaction, &taken).await?;
        record_in_tx(transaction, movements).await?;
        self.answers_in_tx(transaction).await
    }

    async fn answers_in_tx(
        mut self,
        transaction: &DatabaseTransaction,
    ) -> Result<Vec<Deduct>, StoreError> {
        for index in self.again {
            let DeductRequest { order_id, items, .. } = &self.requests[index];
            let row = deduction::Entity::find_by_id(*order_id).one(transaction).await?;
            let row = row.ok_or_else(|| StoreError::Unreadable(format!("deduction {order_id}")))?;
            self.answers[index] = Some(repeated(&row, &items.to_json())?);
        }
        let unanswered = || StoreError::Unreadable("a deduction without an answer".into());
        self.answers.into_iter().map(|answer| answer.ok_or_else(unanswered)).collect()
    }
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

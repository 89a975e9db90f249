//! The tables of the report. They can be made again from the topics; nothing else refers to them.
//!
//! # Layout
//! - this file: facts and sums
//! - `generation`: which reading of the topics they are from, and whether they are still whole
//! - `clean`: what former generations have left

mod clean;
mod generation;

use std::collections::BTreeMap;

use sea_orm::sea_query::{Expr, ExprTrait, OnConflict, Order, Query};
use sea_orm::{
    ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbErr, QueryResult, Value,
};

use super::fold::{Amount, Ending, Fact, Known, Sums, TooLarge};
use crate::model::OrderId;
use crate::store::StoreError;

pub use clean::CLEAN_BATCH;
pub(crate) use clean::subscriber;
pub use generation::Begun;
pub(crate) use generation::{Current, lock_in_tx};

/// Orders that are read, or deleted, in one statement.
const CHUNK: usize = 500;

/// The report. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ReportStore {
    database: DatabaseConnection,
}

/// The sums of a product.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProductRow {
    /// The product.
    pub sku: String,
    /// Its sums.
    pub sums: Sums,
}

impl ReportStore {
    /// On a pool whose schema is up to date.
    pub fn new(database: DatabaseConnection) -> Self {
        Self { database }
    }

    /// Products in the order of their skus, those behind `after`.
    ///
    /// # Errors
    /// What the database says.
    pub async fn products(
        &self,
        after: Option<&str>,
        limit: u64,
    ) -> Result<Vec<ProductRow>, DbErr> {
        let mut select = Query::select();
        let current = Query::select().column("reading").from("report_generation").take();
        select
            .columns(COLUMNS)
            .from("report_product")
            .and_where(Expr::col("reading").in_subquery(current))
            .order_by("sku", Order::Asc)
            .limit(limit);
        if let Some(after) = after {
            select.and_where(Expr::col("sku").gt(after));
        }
        self.database.query_all(&select).await?.iter().map(read_product).collect()
    }
}

/// Learns facts, in their order, and moves the sums by what they change. Returns how many said
/// something new. The report must be locked, and `reading` be the one that its lock gave.
pub(crate) async fn learn_in_tx(
    tx: &DatabaseTransaction,
    reading: i64,
    facts: Vec<(OrderId, Fact)>,
) -> Result<u64, StoreError> {
    let mut by_order: BTreeMap<OrderId, Vec<Fact>> = BTreeMap::new();
    for (id, fact) in facts {
        by_order.entry(id).or_default().push(fact);
    }
    let ids: Vec<OrderId> = by_order.keys().copied().collect();
    let mut known = read_orders(tx, reading, &ids).await?;
    let (mut learned, mut change, mut added) = (0, BTreeMap::new(), Vec::new());
    for (id, facts) in by_order {
        let found = known.remove(&id);
        let is_new = found.is_none();
        let mut order = found.unwrap_or_default();
        let before = order.sums().map_err(too_large)?;
        let news: u64 = facts.into_iter().map(|fact| u64::from(order.learn(fact))).sum();
        if news > 0 {
            learned += news;
            let after = order.sums().map_err(too_large)?;
            add_change(&mut change, &before, &after).ok_or_else(|| too_large(TooLarge))?;
            write_order(tx, reading, id, &order).await?;
            added.extend(is_new.then_some(id));
        }
    }
    let products = move_products(tx, reading, change).await?;
    if learned > 0 {
        generation::wrote_in_tx(tx, &added, products).await?;
    }
    Ok(learned)
}

fn too_large(error: TooLarge) -> StoreError {
    StoreError::Unreadable(error.to_string())
}

fn add_change(
    change: &mut BTreeMap<String, Sums>,
    before: &BTreeMap<String, Sums>,
    after: &BTreeMap<String, Sums>,
) -> Option<()> {
    // The items of an order are learned once: what was there before is there after.
    for (sku, sums) in after {
        let by = sums.minus(before.get(sku).unwrap_or(&Sums::default()))?;
        let of_product = change.entry(sku.clone()).or_default();
        *of_product = of_product.plus(&by)?;
    }
    Some(())
}

async fn read_orders(
    tx: &DatabaseTransaction,
    reading: i64,
    ids: &[OrderId],
) -> Result<BTreeMap<OrderId, Known>, StoreError> {
    let mut known = BTreeMap::new();
    for ids in ids.chunks(CHUNK) {
        let select = Query::select()
            .columns(["order_id", "items", "answer", "cancelled"])
            .from("report_order")
            .and_where(Expr::col("order_id").is_in(ids.iter().map(OrderId::as_uuid)))
            .and_where(Expr::col("reading").eq(reading))
            .to_owned();
        for row in tx.query_all(&select).await? {
            let id = OrderId::from_uuid(row.try_get("", "order_id")?);
            known.insert(id, read_known(id, &row)?);
        }
    }
    Ok(known)
}

fn read_known(id: OrderId, row: &QueryResult) -> Result<Known, StoreError> {
    let unreadable = |what: &str| StoreError::Unreadable(format!("report of order {id}: {what}"));
    let items: Option<String> = row.try_get("", "items")?;
    let items = items.map(|json| serde_json::from_str(&json));
    let answer: Option<String> = row.try_get("", "answer")?;
    let answer = answer.map(|name| Ending::from_name(&name).ok_or_else(|| unreadable(&name)));
    Ok(Known {
        items: items.transpose().map_err(|error| unreadable(&error.to_string()))?,
        answer: answer.transpose()?,
        cancelled: row.try_get("", "cancelled")?,
    })
}

/// Over what a former reading has left of it.
async fn write_order(
    tx: &DatabaseTransaction,
    reading: i64,
    id: OrderId,
    known: &Known,
) -> Result<(), StoreError> {
    let items = known.items.as_ref().map(serde_json::to_string).transpose();
    let items = items.map_err(|error| StoreError::Unreadable(error.to_string()))?;
    let row: [Value; 5] = [
        id.as_uuid().into(),
        items.into(),
        known.answer.map(|answer| answer.as_str().to_owned()).into(),
        known.cancelled.into(),
        reading.into(),
    ];
    let mut insert = Query::insert();
    insert
        .into_table("report_order")
        .columns(["order_id", "items", "answer", "cancelled", "reading"])
        .values_panic(row.map(Into::into))
        .on_conflict(
            OnConflict::column("order_id")
                .update_columns(["items", "answer", "cancelled", "reading"])
                .to_owned(),
        );
    tx.execute(&insert).await?;
    Ok(())
}

const COLUMNS: [&str; 9] = [
    "sku",
    "ordered_quantity",
    "ordered_cents",
    "confirmed_quantity",
    "confirmed_cents",
    "rejected_quantity",
    "rejected_cents",
    "cancelled_quantity",
    "cancelled_cents",
];

/// The sums are added here and not by the database: SQLite would go on with a rounded number where
/// one does not fit. Returns how many products are new.
async fn move_products(
    tx: &DatabaseTransaction,
    reading: i64,
    change: BTreeMap<String, Sums>,
) -> Result<i64, StoreError> {
    let skus: Vec<&str> = change.keys().map(String::as_str).collect();
    let mut present: BTreeMap<String, Sums> = BTreeMap::new();
    for skus in skus.chunks(CHUNK) {
        let select = Query::select()
            .columns(COLUMNS)
            .from("report_product")
            .and_where(Expr::col("sku").is_in(skus.iter().copied()))
            .and_where(Expr::col("reading").eq(reading))
            .to_owned();
        for row in tx.query_all(&select).await? {
            let ProductRow { sku, sums } = read_product(&row)?;
            present.insert(sku, sums);
        }
    }
    let mut added = 0;
    for (sku, by) in change {
        let sums = present.get(&sku).copied();
        added += i64::from(sums.is_none());
        let sums = sums.unwrap_or_default().plus(&by);
        write_product(tx, reading, &sku, &sums.ok_or_else(|| too_large(TooLarge))?).await?;
    }
    Ok(added)
}

/// Over what a former reading has left of it.
async fn write_product(
    tx: &DatabaseTransaction,
    reading: i64,
    sku: &str,
    sums: &Sums,
) -> Result<(), StoreError> {
    let Sums { ordered, confirmed, rejected, cancelled } = sums;
    let mut row: Vec<Value> = vec![reading.into(), sku.into()];
    for Amount { quantity, cents } in [ordered, confirmed, rejected, cancelled] {
        row.extend([Value::from(*quantity), Value::from(*cents)]);
    }
    let mut insert = Query::insert();
    insert
        .into_table("report_product")
        .columns(["reading"].into_iter().chain(COLUMNS))
        .values_panic(row.into_iter().map(Into::into))
        .on_conflict(
            OnConflict::column("sku")
                .update_columns(["reading"].into_iter().chain(COLUMNS.into_iter().skip(1)))
                .to_owned(),
        );
    tx.execute(&insert).await?;
    Ok(())
}

fn read_product(row: &QueryResult) -> Result<ProductRow, DbErr> {
    let amount = |name: &str| -> Result<Amount, DbErr> {
        Ok(Amount {
            quantity: row.try_get("", &format!("{name}_quantity"))?,
            cents: row.try_get("", &format!("{name}_cents"))?,
        })
    };
    let sums = Sums {
        ordered: amount("ordered")?,
        confirmed: amount("confirmed")?,
        rejected: amount("rejected")?,
        cancelled: amount("cancelled")?,
    };
    Ok(ProductRow { sku: row.try_get("", "sku")?, sums })
}

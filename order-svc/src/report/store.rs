//! The tables of the report. They can be made again from the topics; nothing else refers to them.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use halfmsg_service_kit::db::{begin_write, now};
use sea_orm::sea_query::{Expr, ExprTrait, LockType, OnConflict, Order, Query};
use sea_orm::{
    ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbErr, QueryResult, Value,
};
use uuid::Uuid;

use super::fold::{Amount, Ending, Fact, Known, Sums, TooLarge};
use crate::model::OrderId;
use crate::store::StoreError;

/// The key of the one row of `report_generation`.
const ONLY: i32 = 1;
/// Orders that are read, or deleted, in one statement.
const CHUNK: usize = 500;

/// The report. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ReportStore {
    database: DatabaseConnection,
}

/// A generation that can be read into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Begun {
    /// This one.
    pub generation: Uuid,
    /// The one before it, if this one has just begun.
    pub former: Option<Uuid>,
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

    /// The generation that is to be read; a new one if there is none, or if the report was emptied.
    /// One that has only learned nothing yet stays: else replicas would replace each other's.
    ///
    /// # Errors
    /// What the database says.
    pub async fn begin(&self) -> Result<Begun, DbErr> {
        let tx = begin_write(&self.database).await?;
        let former = lock_in_tx(&tx).await?;
        let first = Query::select().column("order_id").from("report_order").limit(1).to_owned();
        let is_empty = tx.query_one(&first).await?.is_none();
        let was_emptied = is_empty && has_learned_in_tx(&tx).await?;
        match (former, is_empty) {
            (Some(generation), _) if !was_emptied => {
                tx.rollback().await?;
                return Ok(Begun { generation, former: None });
            }
            // Somebody emptied one table of the two.
            (_, true) => {
                tx.execute(Query::delete().from_table("report_product")).await?;
            }
            (_, false) => {}
        }
        let generation = begin_in_tx(&tx).await?;
        tx.commit().await?;
        Ok(Begun { generation, former })
    }

    /// Empties the report and begins a new generation: replicas read the topics again.
    ///
    /// # Errors
    /// What the database says; nothing is changed then.
    pub async fn rebuild(&self) -> Result<Uuid, DbErr> {
        let tx = begin_write(&self.database).await?;
        lock_in_tx(&tx).await?;
        for table in ["report_product", "report_order"] {
            tx.execute(Query::delete().from_table(table)).await?;
        }
        let generation = begin_in_tx(&tx).await?;
        tx.commit().await?;
        Ok(generation)
    }

    /// The present generation, if there is one.
    ///
    /// # Errors
    /// What the database says.
    pub async fn generation(&self) -> Result<Option<Uuid>, DbErr> {
        let select = Query::select().column("generation").from("report_generation").to_owned();
        self.database.query_one(&select).await?.map(|row| row.try_get("", "generation")).transpose()
    }

    /// When the present generation began.
    ///
    /// # Errors
    /// What the database says.
    pub async fn began_at(&self) -> Result<Option<DateTime<Utc>>, DbErr> {
        let select = Query::select().column("began_at").from("report_generation").to_owned();
        self.database.query_one(&select).await?.map(|row| row.try_get("", "began_at")).transpose()
    }

    /// Deletes what a subscriber that is gone for good has left.
    ///
    /// # Errors
    /// What the database says; repeating it is harmless.
    pub async fn forget_subscriber(&self, subscriber: &str) -> Result<(), DbErr> {
        for table in ["inbox", "retry", "dead_letter"] {
            let mut delete = Query::delete();
            delete.from_table(table).and_where(Expr::col("subscriber").eq(subscriber));
            self.database.execute(&delete).await?;
        }
        Ok(())
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
        select.columns(COLUMNS).from("report_product").order_by("sku", Order::Asc).limit(limit);
        if let Some(after) = after {
            select.and_where(Expr::col("sku").gt(after));
        }
        self.database.query_all(&select).await?.iter().map(read_product).collect()
    }
}

/// Locks the report to the end of the transaction, and gives its generation.
pub(crate) async fn lock_in_tx(tx: &DatabaseTransaction) -> Result<Option<Uuid>, DbErr> {
    let mut select = Query::select();
    select.column("generation").from("report_generation").lock(LockType::Update);
    tx.query_one(&select).await?.map(|row| row.try_get("", "generation")).transpose()
}

async fn begin_in_tx(tx: &DatabaseTransaction) -> Result<Uuid, DbErr> {
    let generation = Uuid::now_v7();
    let row: [Value; 4] = [ONLY.into(), generation.into(), now().into(), false.into()];
    let mut insert = Query::insert();
    insert
        .into_table("report_generation")
        .columns(["id", "generation", "began_at", "learned"])
        .values_panic(row.map(Into::into))
        .on_conflict(
            OnConflict::column("id")
                .update_columns(["generation", "began_at", "learned"])
                .to_owned(),
        );
    tx.execute(&insert).await?;
    Ok(generation)
}

/// Learns facts, in their order, and moves the sums by what they change. Returns how many said
/// something new. The report must be locked.
pub(crate) async fn learn_in_tx(
    tx: &DatabaseTransaction,
    facts: Vec<(OrderId, Fact)>,
) -> Result<u64, StoreError> {
    let mut by_order: BTreeMap<OrderId, Vec<Fact>> = BTreeMap::new();
    for (id, fact) in facts {
        by_order.entry(id).or_default().push(fact);
    }
    let ids: Vec<OrderId> = by_order.keys().copied().collect();
    let mut known = read_orders(tx, &ids).await?;
    let (mut learned, mut change) = (0, BTreeMap::new());
    for (id, facts) in by_order {
        let mut order = known.remove(&id).unwrap_or_default();
        let before = order.sums().map_err(too_large)?;
        let news: u64 = facts.into_iter().map(|fact| u64::from(order.learn(fact))).sum();
        if news > 0 {
            learned += news;
            let after = order.sums().map_err(too_large)?;
            add_change(&mut change, &before, &after).ok_or_else(|| too_large(TooLarge))?;
            write_order(tx, id, &order).await?;
        }
    }
    move_products(tx, change).await?;
    if learned > 0 {
        let mut update = Query::update();
        update
            .table("report_generation")
            .value("learned", true)
            .and_where(Expr::col("learned").eq(false));
        tx.execute(&update).await?;
    }
    Ok(learned)
}

/// Whether anything was learned in the present generation.
async fn has_learned_in_tx(tx: &DatabaseTransaction) -> Result<bool, DbErr> {
    let select = Query::select().column("learned").from("report_generation").to_owned();
    let row = tx.query_one(&select).await?;
    row.map_or(Ok(false), |row| row.try_get("", "learned"))
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
    ids: &[OrderId],
) -> Result<BTreeMap<OrderId, Known>, StoreError> {
    let mut known = BTreeMap::new();
    for ids in ids.chunks(CHUNK) {
        let select = Query::select()
            .columns(["order_id", "items", "answer", "cancelled"])
            .from("report_order")
            .and_where(Expr::col("order_id").is_in(ids.iter().map(OrderId::as_uuid)))
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

async fn write_order(
    tx: &DatabaseTransaction,
    id: OrderId,
    known: &Known,
) -> Result<(), StoreError> {
    let items = known.items.as_ref().map(serde_json::to_string).transpose();
    let items = items.map_err(|error| StoreError::Unreadable(error.to_string()))?;
    let row: [Value; 4] = [
        id.as_uuid().into(),
        items.into(),
        known.answer.map(|answer| answer.as_str().to_owned()).into(),
        known.cancelled.into(),
    ];
    let mut insert = Query::insert();
    insert
        .into_table("report_order")
        .columns(["order_id", "items", "answer", "cancelled"])
        .values_panic(row.map(Into::into))
        .on_conflict(
            OnConflict::column("order_id")
                .update_columns(["items", "answer", "cancelled"])
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
/// one does not fit.
async fn move_products(
    tx: &DatabaseTransaction,
    change: BTreeMap<String, Sums>,
) -> Result<(), StoreError> {
    if change.is_empty() {
        return Ok(());
    }
    let skus: Vec<&str> = change.keys().map(String::as_str).collect();
    let mut present: BTreeMap<String, Sums> = BTreeMap::new();
    for skus in skus.chunks(CHUNK) {
        let select = Query::select()
            .columns(COLUMNS)
            .from("report_product")
            .and_where(Expr::col("sku").is_in(skus.iter().copied()))
            .to_owned();
        for row in tx.query_all(&select).await? {
            let ProductRow { sku, sums } = read_product(&row)?;
            present.insert(sku, sums);
        }
    }
    for (sku, by) in change {
        let sums = present.get(&sku).copied().unwrap_or_default().plus(&by);
        write_product(tx, &sku, &sums.ok_or_else(|| too_large(TooLarge))?).await?;
    }
    Ok(())
}

async fn write_product(tx: &DatabaseTransaction, sku: &str, sums: &Sums) -> Result<(), StoreError> {
    let Sums { ordered, confirmed, rejected, cancelled } = sums;
    let mut row: Vec<Value> = vec![sku.into()];
    for Amount { quantity, cents } in [ordered, confirmed, rejected, cancelled] {
        row.extend([Value::from(*quantity), Value::from(*cents)]);
    }
    let mut insert = Query::insert();
    insert
        .into_table("report_product")
        .columns(COLUMNS)
        .values_panic(row.into_iter().map(Into::into))
        .on_conflict(
            OnConflict::column("sku").update_columns(COLUMNS.into_iter().skip(1)).to_owned(),
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

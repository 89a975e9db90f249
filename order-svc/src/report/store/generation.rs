//! The one row of `report_generation`: which reading of the topics the report is made from, and what it
//! has written, so that a report that somebody has emptied is told from one that is whole.
//!
//! A generation counts the products that it has added, and knows the first order of which it has
//! learned. The program deletes neither: where there are fewer products than were counted, or that order is
//! gone, somebody else did, also if something was added since. It must never take a report for whole
//! that is not; one that is made anew without need is only work.
//!
//! Each row of the report carries the number of its reading, and one of another number than this row's
//! is as if it were not there: so a generation begins with this one row, however large the report was.
//! What is left of those before is written over, or goes away in [`super::clean`].

use chrono::{DateTime, Utc};
use halfmsg_service_kit::db::{begin_write, now};
use sea_orm::sea_query::{Expr, ExprTrait, LockType, OnConflict, Query};
use sea_orm::{ConnectionTrait, DatabaseTransaction, DbErr, QueryResult, Statement, Value};
use uuid::Uuid;

use super::ReportStore;
use crate::model::OrderId;

/// The key of the row.
const ONLY: i32 = 1;

/// One statement, so that it sees one moment: what a generation has written, and what is there.
const WRITTEN_AND_FOUND: &str = "SELECT generation, learned, products, \
     (SELECT COUNT(*) FROM report_product p WHERE p.reading = g.reading) AS products_found, \
     (SELECT COUNT(*) FROM report_order o \
     WHERE o.order_id = g.first_order AND o.reading = g.reading) AS first_found \
     FROM report_generation g";

/// Above every number that a row has, also if somebody has deleted the row that says which.
const NEXT_READING: &str = "SELECT 1 + MAX(reading) AS reading FROM ( \
     SELECT reading FROM report_generation UNION ALL SELECT MAX(reading) FROM report_order \
     UNION ALL SELECT MAX(reading) FROM report_product UNION ALL SELECT 0) AS readings";

/// A generation that can be read into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Begun {
    /// This one.
    pub generation: Uuid,
    /// The one before it, if this one has just begun.
    pub former: Option<Uuid>,
}

/// The generation that is locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Current {
    /// Its name.
    pub(crate) generation: Uuid,
    /// The number of its rows.
    pub(crate) reading: i64,
}

/// A generation, and whether all is there that it has written.
struct Found {
    generation: Uuid,
    is_whole: bool,
}

impl ReportStore {
    /// The generation that is to be read; a new one, of an empty report, if there is none, or if
    /// somebody has emptied one of its tables or taken products out. One that has only learned nothing
    /// yet stays: else replicas would replace each other's.
    ///
    /// # Errors
    /// What the database says; nothing is changed then.
    pub async fn begin(&self) -> Result<Begun, DbErr> {
        let tx = begin_write(&self.database).await?;
        lock_in_tx(&tx).await?;
        let found = find(&tx).await?;
        if let Some(Found { generation, is_whole: true }) = found {
            tx.rollback().await?;
            return Ok(Begun { generation, former: None });
        }
        let generation = begin_in_tx(&tx).await?;
        tx.commit().await?;
        Ok(Begun { generation, former: found.map(|found| found.generation) })
    }

    /// Begins a new generation, with an empty report: replicas read the topics again. One row is
    /// written.
    ///
    /// # Errors
    /// What the database says; nothing is changed then.
    pub async fn rebuild(&self) -> Result<Uuid, DbErr> {
        let tx = begin_write(&self.database).await?;
        lock_in_tx(&tx).await?;
        let generation = begin_in_tx(&tx).await?;
        tx.commit().await?;
        Ok(generation)
    }

    /// The present generation, whole or not.
    ///
    /// # Errors
    /// What the database says.
    pub async fn generation(&self) -> Result<Option<Uuid>, DbErr> {
        let select = Query::select().column("generation").from("report_generation").take();
        self.database.query_one(&select).await?.map(|row| row.try_get("", "generation")).transpose()
    }

    /// The present generation, if there is one and all is there that it has written.
    ///
    /// # Errors
    /// What the database says.
    pub async fn whole_generation(&self) -> Result<Option<Uuid>, DbErr> {
        let found = find(&self.database).await?;
        Ok(found.filter(|found| found.is_whole).map(|found| found.generation))
    }

    /// When the present generation began.
    ///
    /// # Errors
    /// What the database says.
    pub async fn began_at(&self) -> Result<Option<DateTime<Utc>>, DbErr> {
        let select = Query::select().column("began_at").from("report_generation").to_owned();
        self.database.query_one(&select).await?.map(|row| row.try_get("", "began_at")).transpose()
    }
}

async fn find(connection: &impl ConnectionTrait) -> Result<Option<Found>, DbErr> {
    let backend = connection.get_database_backend();
    let select = Statement::from_string(backend, WRITTEN_AND_FOUND);
    let read = |row: QueryResult| -> Result<Found, DbErr> {
        let number = |name| row.try_get::<i64>("", name);
        let learned: bool = row.try_get("", "learned")?;
        // A replica of a program that did not count them may have added some.
        let is_whole = number("products")? <= number("products_found")?
            && (!learned || number("first_found")? == 1);
        Ok(Found { generation: row.try_get("", "generation")?, is_whole })
    };
    connection.query_one_raw(select).await?.map(read).transpose()
}

/// Locks the report to the end of the transaction, and gives its generation.
pub(crate) async fn lock_in_tx(tx: &DatabaseTransaction) -> Result<Option<Current>, DbErr> {
    let mut select = Query::select();
    select.columns(["generation", "reading"]).from("report_generation").lock(LockType::Update);
    let read = |row: QueryResult| -> Result<Current, DbErr> {
        Ok(Current {
            generation: row.try_get("", "generation")?,
            reading: row.try_get("", "reading")?,
        })
    };
    tx.query_one(&select).await?.map(read).transpose()
}

/// Begins a generation that has written nothing, of the report, which is locked.
async fn begin_in_tx(tx: &DatabaseTransaction) -> Result<Uuid, DbErr> {
    let next = Statement::from_string(tx.get_database_backend(), NEXT_READING);
    let next = tx.query_one_raw(next).await?.map(|row| row.try_get::<i64>("", "reading"));
    let generation = Uuid::now_v7();
    let columns = ["generation", "began_at", "learned", "products", "first_order", "reading"];
    let row: [Value; 7] = [
        ONLY.into(),
        generation.into(),
        now().into(),
        false.into(),
        0_i64.into(),
        Option::<Uuid>::None.into(),
        next.transpose()?.unwrap_or(1).into(),
    ];
    let mut insert = Query::insert();
    insert
        .into_table("report_generation")
        .columns(["id"].into_iter().chain(columns))
        .values_panic(row.map(Into::into))
        .on_conflict(OnConflict::column("id").update_columns(columns).to_owned());
    tx.execute(&insert).await?;
    Ok(generation)
}

/// Notes what this transaction has written: orders that were not there, and so many products.
pub(super) async fn wrote_in_tx(
    tx: &DatabaseTransaction,
    added: &[OrderId],
    products: i64,
) -> Result<(), DbErr> {
    let select =
        Query::select().columns(["learned", "first_order"]).from("report_generation").take();
    let Some(row) = tx.query_one(&select).await? else { return Ok(()) };
    let learned: bool = row.try_get("", "learned")?;
    let before: Option<Uuid> = row.try_get("", "first_order")?;
    let first = match before {
        _ if !learned => added.first().map(OrderId::as_uuid),
        // It was gone, and an event brought it back without what was known of it.
        Some(first) if added.iter().any(|id| id.as_uuid() == first) => None,
        before => before,
    };
    if learned && first == before && products == 0 {
        return Ok(());
    }
    let mut update = Query::update();
    update
        .table("report_generation")
        .value("learned", true)
        .value("first_order", first)
        .value("products", Expr::col("products").add(products));
    tx.execute(&update).await.map(|_| ())
}

//! The database of order-svc.

use sea_orm_migration::prelude::*;

use crate::column::{moment, number, one_of, text, uuid};
use crate::consumer::{Delivery, InboxByKey, Recovery};
use crate::producer::Fence;

/// The migrations of order-svc.
pub struct OrderMigrator;

#[async_trait::async_trait]
impl MigratorTrait for OrderMigrator {
    fn migration_table_name() -> DynIden {
        "order_svc_migrations".into_iden()
    }

    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![
            Box::new(Orders),
            Box::new(Delivery),
            Box::new(Recovery),
            Box::new(Fence),
            Box::new(Report),
            Box::new(ReportCounts),
            Box::new(InboxByKey),
            Box::new(ReportReading),
        ]
    }
}

struct Orders;

impl MigrationName for Orders {
    fn name(&self) -> &str {
        "o0001_orders"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Orders {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.create_table(orders()).await?;
        manager.create_table(order_line()).await?;
        manager.create_table(idempotency_key()).await?;
        for index in indexes() {
            manager.create_index(index).await?;
        }
        Ok(())
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for table in ["idempotency_key", "order_line", "orders"] {
            manager.drop_table(Table::drop().table(table).to_owned()).await?;
        }
        Ok(())
    }
}

/// The product report: what the events of the saga have said so far. It can be made again from the
/// topics, so that nothing else may live here.
struct Report;

impl MigrationName for Report {
    fn name(&self) -> &str {
        "o0002_report"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Report {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for table in [report_generation(), report_order(), report_product()] {
            manager.create_table(table).await?;
        }
        Ok(())
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for table in ["report_product", "report_order", "report_generation"] {
            manager.drop_table(Table::drop().table(table).to_owned()).await?;
        }
        Ok(())
    }
}

/// One row: which reading of the topics the report is made from. Who writes the report locks it.
fn report_generation() -> TableCreateStatement {
    Table::create()
        .table("report_generation")
        .col(ColumnDef::new("id").integer().not_null().primary_key().check(Expr::col("id").eq(1)))
        .col(uuid("generation"))
        .col(moment("began_at"))
        // Whether anything was written by it: a report that is empty since then was emptied.
        .col(ColumnDef::new("learned").boolean().not_null().default(false))
        .to_owned()
}

/// What is known of an order, in whatever order the events came.
fn report_order() -> TableCreateStatement {
    let answers = ["confirmed", "rejected"];
    Table::create()
        .table("report_order")
        .col(uuid("order_id").primary_key())
        // JSON; null until order.created came.
        .col(ColumnDef::new("items").text())
        .col(ColumnDef::new("answer").text().check(Expr::col("answer").is_in(answers)))
        .col(ColumnDef::new("cancelled").boolean().not_null().default(false))
        .to_owned()
}

/// The sums. Amounts are in cents.
fn report_product() -> TableCreateStatement {
    let mut table = Table::create();
    table.table("report_product").col(text("sku").primary_key());
    for sum in ["ordered", "confirmed", "rejected", "cancelled"] {
        for unit in ["quantity", "cents"] {
            let name = format!("{sum}_{unit}");
            let at_least_none = Expr::col(name.clone()).gte(0);
            table
                .col(ColumnDef::new(name).big_integer().not_null().default(0).check(at_least_none));
        }
    }
    table.to_owned()
}

/// How many rows the report has: one that was emptied, in whole or in part, and written to since, is
/// told from one that is whole.
struct ReportCounts;

impl MigrationName for ReportCounts {
    fn name(&self) -> &str {
        "o0003_report_counts"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for ReportCounts {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        // The report is written to by whoever has locked its generation.
        let count = ColumnDef::new("products").big_integer().not_null().default(0).to_owned();
        let first = ColumnDef::new("first_order").uuid().to_owned();
        for column in [count, first] {
            let mut alter = Table::alter();
            manager.alter_table(alter.table("report_generation").add_column(column).take()).await?;
        }
        let connection = manager.get_connection();
        for sql in [
            "UPDATE report_generation SET products = (SELECT COUNT(*) FROM report_product)",
            "UPDATE report_generation SET first_order = \
             (SELECT order_id FROM report_order ORDER BY order_id LIMIT 1)",
        ] {
            connection.execute_unprepared(sql).await?;
        }
        Ok(())
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for column in ["first_order", "products"] {
            let mut alter = Table::alter();
            manager
                .alter_table(alter.table("report_generation").drop_column(column).take())
                .await?;
        }
        Ok(())
    }
}

/// Which reading of the topics a row of the report is from: a new one begins with one row, and those of
/// the readings before are deleted later, a few at a time.
struct ReportReading;

/// What is there is of the present reading, which has the number 0 as well.
const READINGS: [&str; 3] = ["report_generation", "report_order", "report_product"];

/// Name and table: by them the rows of former readings are found.
const BY_READING: [(&str, &str); 2] =
    [("report_order_by_reading", "report_order"), ("report_product_by_reading", "report_product")];

impl MigrationName for ReportReading {
    fn name(&self) -> &str {
        "o0004_report_reading"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for ReportReading {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for table in READINGS {
            // A constant: no row is written, however many there are.
            let reading = ColumnDef::new("reading").big_integer().not_null().default(0).take();
            manager.alter_table(Table::alter().table(table).add_column(reading).take()).await?;
        }
        for (name, table) in BY_READING {
            manager
                .create_index(Index::create().name(name).table(table).col("reading").take())
                .await?;
        }
        Ok(())
    }

    /// The version before takes every row for one of the present reading.
    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for (name, table) in BY_READING {
            let former = format!(
                "DELETE FROM {table} WHERE reading <> (SELECT reading FROM report_generation)"
            );
            manager.get_connection().execute_unprepared(&former).await?;
            manager.drop_index(Index::drop().name(name).table(table).to_owned()).await?;
        }
        for table in READINGS {
            manager.alter_table(Table::alter().table(table).drop_column("reading").take()).await?;
        }
        Ok(())
    }
}

/// One row per order. The row is the fence of its local transaction: it is never deleted.
fn orders() -> TableCreateStatement {
    let statuses = ["pending_stock", "confirmed", "rejected", "cancelled", "void"];
    Table::create()
        .table("orders")
        .col(uuid("id").primary_key())
        // The half message that goes with the order; a half speaks of one order only.
        .col(uuid("transaction_id").unique_key())
        .col(ColumnDef::new("user_id").text())
        .col(text("flow"))
        .col(one_of("status", &statuses))
        .col(ColumnDef::new("stock_untouched").boolean().not_null().default(false))
        .col(ColumnDef::new("reason").text())
        .col(number("total_cents", 0))
        .col(moment("created_at"))
        .col(moment("updated_at"))
        .to_owned()
}

/// The items. An order written by the check-back knows no prices.
fn order_line() -> TableCreateStatement {
    let positive = Expr::col("quantity").gt(0);
    let price = Expr::col("unit_price_cents").gte(0);
    Table::create()
        .table("order_line")
        .col(uuid("order_id"))
        .col(ColumnDef::new("line_no").integer().not_null())
        .col(text("sku"))
        .col(ColumnDef::new("quantity").integer().not_null().check(positive))
        .col(ColumnDef::new("unit_price_cents").big_integer().check(price))
        .primary_key(Index::create().col("order_id").col("line_no"))
        .index(Index::create().unique().name("order_line_once").col("order_id").col("sku"))
        .foreign_key(ForeignKey::create().from("order_line", "order_id").to("orders", "id"))
        .to_owned()
}

/// Requests that may be repeated. A row without a response belongs to a request that is running,
/// until its lease is over.
fn idempotency_key() -> TableCreateStatement {
    Table::create()
        .table("idempotency_key")
        .col(text("user_id"))
        .col(text("key"))
        .col(text("body_hash"))
        .col(uuid("order_id"))
        .col(moment("lease_until"))
        .col(ColumnDef::new("response_status").integer())
        .col(ColumnDef::new("response_body").text())
        .col(moment("created_at"))
        .primary_key(Index::create().col("user_id").col("key"))
        .to_owned()
}

/// Keyset pages of the listings, and the cleaning of old keys.
fn indexes() -> [IndexCreateStatement; 3] {
    let desc = IndexOrder::Desc;
    [
        Index::create()
            .name("orders_by_status")
            .table("orders")
            .col("status")
            .col(("created_at", desc.clone()))
            .col("id")
            .to_owned(),
        Index::create()
            .name("orders_by_age")
            .table("orders")
            .col(("created_at", desc))
            .col("id")
            .to_owned(),
        Index::create()
            .name("idempotency_key_by_age")
            .table("idempotency_key")
            .col("created_at")
            .to_owned(),
    ]
}

#[cfg(test)]
mod tests {
    use halfmsg_db::{DbOptions, connect};
    use sea_orm_migration::sea_orm::{DatabaseConnection, DbBackend, Statement};

    use super::*;
    use crate::migrate;
    use crate::tests::patient;

    /// Migrations before the report knew its readings.
    const BEFORE_READINGS: u32 = 7;

    async fn count(database: &DatabaseConnection, sql: &str) -> i64 {
        let statement = Statement::from_string(DbBackend::Sqlite, sql);
        database.query_one_raw(statement).await.unwrap().unwrap().try_get_by_index(0).unwrap()
    }

    #[tokio::test]
    async fn a_report_is_carried_over_to_its_readings_and_back() {
        let directory = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", directory.path().join("a.db").display());
        // As in a migration, which is one transaction: SQLite takes the former schema of another
        // connection for the present one when it renames a table.
        let options = DbOptions { max_connections: 1, ..patient() };
        let database = connect(&url, &options).await.unwrap();
        OrderMigrator::up(&database, Some(BEFORE_READINGS)).await.unwrap();
        for sql in [
            "INSERT INTO report_generation (id, generation, began_at, learned, products, \
             first_order) VALUES (1, x'01', '2025-01-01T00:00:00+00:00', true, 1, x'02')",
            "INSERT INTO report_order (order_id, answer) VALUES (x'02', 'confirmed')",
            "INSERT INTO report_product (sku, ordered_quantity) VALUES ('a', 7)",
        ] {
            database.execute_unprepared(sql).await.unwrap();
        }
        migrate::<OrderMigrator>(&database).await.unwrap();
        let whole = "SELECT p.ordered_quantity FROM report_generation g \
                     JOIN report_product p ON p.reading = g.reading \
                     JOIN report_order o ON o.reading = g.reading AND o.order_id = g.first_order";
        assert_eq!(count(&database, whole).await, 7);
        for sql in [
            "UPDATE report_generation SET reading = 1",
            "INSERT INTO report_order (order_id, reading) VALUES (x'03', 1)",
        ] {
            database.execute_unprepared(sql).await.unwrap();
        }
        OrderMigrator::down(&database, Some(1)).await.unwrap();
        assert_eq!(count(&database, "SELECT COUNT(*) FROM report_order").await, 1);
        assert_eq!(count(&database, "SELECT COUNT(*) FROM report_product").await, 0);
    }
}

//! The database of order-svc.

use sea_orm_migration::prelude::*;

use crate::column::{moment, number, one_of, text, uuid};
use crate::consumer::{Delivery, Recovery};
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

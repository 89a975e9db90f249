//! The database of stock-svc.

use sea_orm_migration::prelude::*;

use crate::column::{moment, number, one_of, text, uuid};
use crate::consumer::{Delivery, InboxByKey, Recovery};

/// The migrations of stock-svc.
pub struct StockMigrator;

#[async_trait::async_trait]
impl MigratorTrait for StockMigrator {
    // A name of its own, so that both services can share one database.
    fn migration_table_name() -> DynIden {
        "stock_svc_migrations".into_iden()
    }

    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![Box::new(Stock), Box::new(Delivery), Box::new(Recovery), Box::new(InboxByKey)]
    }
}

struct Stock;

impl MigrationName for Stock {
    fn name(&self) -> &str {
        "s0001_stock"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Stock {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for table in [product(), stock(), receipt(), deduction(), stock_movement()] {
            manager.create_table(table).await?;
        }
        let by_sku = Index::create()
            .name("stock_movement_by_sku")
            .table("stock_movement")
            .col("sku")
            .to_owned();
        manager.create_index(by_sku).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for table in ["stock_movement", "deduction", "receipt", "stock", "product"] {
            manager.drop_table(Table::drop().table(table).to_owned()).await?;
        }
        Ok(())
    }
}

fn product() -> TableCreateStatement {
    Table::create()
        .table("product")
        .col(text("sku").primary_key())
        .col(text("name"))
        .col(number("price_cents", 0))
        .col(moment("created_at"))
        .col(moment("updated_at"))
        .to_owned()
}

/// What can be sold now. It is never negative, whatever a program tries.
fn stock() -> TableCreateStatement {
    Table::create()
        .table("stock")
        .col(text("sku").primary_key())
        .col(number("available", 0))
        .foreign_key(ForeignKey::create().from("stock", "sku").to("product", "sku"))
        .to_owned()
}

/// Deliveries from suppliers: a reference counts once per sku.
fn receipt() -> TableCreateStatement {
    Table::create()
        .table("receipt")
        .col(text("reference"))
        .col(text("sku"))
        .col(number("quantity", 1))
        .col(moment("created_at"))
        .primary_key(Index::create().col("sku").col("reference"))
        .foreign_key(ForeignKey::create().from("receipt", "sku").to("product", "sku"))
        .to_owned()
}

/// The barrier: one row per order, inserted first by whoever comes first, deduct or restore.
fn deduction() -> TableCreateStatement {
    Table::create()
        .table("deduction")
        .col(uuid("order_id").primary_key())
        .col(one_of("state", &["deducted", "refused", "restored", "void"]))
        .col(ColumnDef::new("reason").text())
        // JSON, in the order of the skus: a repeated request must ask for the same.
        .col(text("items"))
        .col(moment("created_at"))
        .col(moment("updated_at"))
        .to_owned()
}

/// The audit trail. No foreign key on the sku: a refused or void one may be unknown.
fn stock_movement() -> TableCreateStatement {
    Table::create()
        .table("stock_movement")
        .col(uuid("id").primary_key())
        .col(ColumnDef::new("order_id").uuid())
        .col(ColumnDef::new("reference").text())
        .col(text("sku"))
        .col(one_of("kind", &["receipt", "deduct", "restore", "void"]))
        .col(number("quantity", 0))
        .col(moment("created_at"))
        .index(
            Index::create()
                .unique()
                .name("stock_movement_once")
                .col("order_id")
                .col("sku")
                .col("kind"),
        )
        .to_owned()
}

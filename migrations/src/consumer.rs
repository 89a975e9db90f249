//! The tables of halfmsg-consumer: the inbox, the dead letters, and in [`recovery`] the retries and
//! replies; [`by_key`] bounds the inbox by key.

pub mod by_key;
pub mod recovery;

use sea_orm_migration::prelude::*;

use crate::column::{moment, number, text, uuid};

pub use by_key::InboxByKey;
pub use recovery::Recovery;

/// The tables alone, for a service that has no migrator of its own to add [`Delivery`],
/// [`Recovery`] and [`InboxByKey`] to.
pub struct ConsumerMigrator;

#[async_trait::async_trait]
impl MigratorTrait for ConsumerMigrator {
    fn migration_table_name() -> DynIden {
        "halfmsg_consumer_migrations".into_iden()
    }

    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![Box::new(Delivery), Box::new(Recovery), Box::new(InboxByKey)]
    }
}

/// The migration, for the migrator of a service that consumes.
pub struct Delivery;

impl MigrationName for Delivery {
    fn name(&self) -> &str {
        "c0001_delivery"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Delivery {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        // Two services may share a database: the first of them has made the tables.
        if manager.has_table("inbox").await? {
            return Ok(());
        }
        manager.create_table(inbox()).await?;
        manager.create_table(dead_letter()).await?;
        let by_age =
            Index::create().name("inbox_by_age").table("inbox").col("received_at").to_owned();
        manager.create_index(by_age).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for table in ["dead_letter", "inbox"] {
            manager.drop_table(Table::drop().table(table).if_exists().to_owned()).await?;
        }
        Ok(())
    }
}

/// What each subscriber has had. The key is the barrier against a second effect.
fn inbox() -> TableCreateStatement {
    Table::create()
        .table("inbox")
        .col(text("subscriber"))
        .col(text("message_key"))
        .col(moment("received_at"))
        .primary_key(Index::create().col("subscriber").col("message_key"))
        .to_owned()
}

/// Messages that were given up on, whole, so that they can be replayed.
fn dead_letter() -> TableCreateStatement {
    Table::create()
        .table("dead_letter")
        .col(uuid("id").primary_key())
        .col(text("subscriber"))
        .col(text("message_key"))
        .col(text("topic"))
        .col(ColumnDef::new("partition").integer().not_null())
        .col(ColumnDef::new("offset").big_integer().not_null())
        .col(ColumnDef::new("key").binary())
        // A JSON array of {"name","text" or "hex" or null}: a header's value may be any bytes.
        .col(text("headers"))
        .col(ColumnDef::new("payload").binary())
        .col(text("cause"))
        .col(number("attempts", 0))
        .col(moment("first_failed_at"))
        .col(moment("last_failed_at"))
        .col(ColumnDef::new("replayed_at").timestamp_with_time_zone())
        .index(
            Index::create()
                .unique()
                .name("dead_letter_once")
                .col("subscriber")
                .col("topic")
                .col("partition")
                .col("offset"),
        )
        .to_owned()
}

//! The table of halfmsg-producer: the fence.

use sea_orm_migration::prelude::*;
use sea_orm_migration::sea_orm::DbBackend;

use crate::column::{moment, one_of, uuid};

/// The fence alone, for a service that has no migrator of its own to add [`Fence`] to.
pub struct FenceMigrator;

#[async_trait::async_trait]
impl MigratorTrait for FenceMigrator {
    fn migration_table_name() -> DynIden {
        "halfmsg_producer_migrations".into_iden()
    }

    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![Box::new(Fence)]
    }
}

/// The migration of `halfmsg_fence`, for the migrator of a service that sends half messages.
pub struct Fence;

/// The key of the mark: nil, which is no transaction's.
const MARK_KEY: [u8; 16] = [0; 16];

impl MigrationName for Fence {
    fn name(&self) -> &str {
        "p0001_fence"
    }
}

// MySQL commits every change of a schema by itself: each step here may be repeated.
#[async_trait::async_trait]
impl MigrationTrait for Fence {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.create_table(fence(manager.get_database_backend())).await?;
        manager.execute(mark()).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.drop_table(Table::drop().table("halfmsg_fence").to_owned()).await
    }
}

/// One row per local transaction that was entered or shut out, and one, the mark, that says up to
/// which moment rows were cleaned away.
fn fence(backend: DbBackend) -> TableCreateStatement {
    let mut table = Table::create();
    table
        .table("halfmsg_fence")
        .if_not_exists()
        .col(uuid("transaction_id").primary_key())
        .col(one_of("state", &["entered", "tombstone", "cleaned"]));
    if backend == DbBackend::MySql {
        // A TIMESTAMP would end in 2038 and keep whole seconds; only InnoDB has transactions.
        table.col(ColumnDef::new("created_at").custom("datetime(6)").not_null()).engine("InnoDB");
    } else {
        table.col(moment("created_at"));
    }
    table.take()
}

/// The mark, while nothing was cleaned. Inserted only where there is none.
fn mark() -> InsertStatement {
    let key = Value::Uuid(Some(sea_orm_migration::sea_orm::prelude::Uuid::from_bytes(MARK_KEY)));
    let never = sea_orm_migration::sea_orm::prelude::ChronoDateTimeUtc::UNIX_EPOCH;
    Query::insert()
        .into_table("halfmsg_fence")
        .columns(["transaction_id", "state", "created_at"])
        .values_panic([key.into(), "cleaned".into(), never.into()])
        .on_conflict(
            OnConflict::column("transaction_id").do_nothing_on(["transaction_id"]).to_owned(),
        )
        .to_owned()
}

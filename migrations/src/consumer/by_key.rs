//! What the inbox needs to be bounded by key.

use sea_orm_migration::prelude::*;
use sea_orm_migration::sea_orm::ConnectionTrait;

/// The migration behind [`super::Recovery`].
pub struct InboxByKey;

impl MigrationName for InboxByKey {
    fn name(&self) -> &str {
        "c0003_inbox_by_key"
    }
}

/// Only of rows that are written with such a bound: the others cost nothing.
const BY_KEY: &str = "CREATE INDEX inbox_by_key ON inbox (subscriber, key_hash, received_at) \
     WHERE key_hash IS NOT NULL";

#[async_trait::async_trait]
impl MigrationTrait for InboxByKey {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        // As in the migrations before: another service may have done it.
        if manager.has_column("inbox", "key_hash").await? {
            return Ok(());
        }
        let column = ColumnDef::new("key_hash").big_integer().null().take();
        let add = Table::alter().table("inbox").add_column(column).to_owned();
        manager.alter_table(add).await?;
        manager.get_connection().execute_unprepared(BY_KEY).await.map(|_| ())
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.drop_index(Index::drop().name("inbox_by_key").table("inbox").to_owned()).await?;
        let drop = Table::alter().table("inbox").drop_column("key_hash").to_owned();
        manager.alter_table(drop).await
    }
}

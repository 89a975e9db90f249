//! What a consumer needs to recover: retries, replies, dead letters that are more than a list.

use sea_orm_migration::prelude::*;
use sea_orm_migration::sea_orm::{ConnectionTrait, DbBackend};

use crate::column::{moment, number, text, uuid};

/// The migration behind [`super::Delivery`].
pub struct Recovery;

impl MigrationName for Recovery {
    fn name(&self) -> &str {
        "c0002_recovery"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Recovery {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        // As in the migration before: another service may have made them.
        if manager.has_table("retry").await? {
            return Ok(());
        }
        manager.create_table(retry()).await?;
        manager.create_table(reply()).await?;
        change_dead_letters(manager).await?;
        manager.drop_index(Index::drop().name("inbox_by_age").table("inbox").to_owned()).await?;
        for (name, table, columns) in INDEXES {
            manager.create_index(index(name, table, columns)).await?;
        }
        manager.get_connection().execute_unprepared(RETRY_BY_KEY).await.map(|_| ())
    }

    /// `dead_letter` keeps its new shape: the old one would refuse rows that it may have by now.
    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for table in ["reply", "retry"] {
            manager.drop_table(Table::drop().table(table).to_owned()).await?;
        }
        for name in ["dead_letter_by_message", "dead_letter_by_id"] {
            manager.drop_index(Index::drop().name(name).table("dead_letter").to_owned()).await?;
        }
        let by_age = Index::drop().name("inbox_by_subscriber_and_age").table("inbox").to_owned();
        manager.drop_index(by_age).await?;
        manager.create_index(index("inbox_by_age", "inbox", &["received_at"])).await
    }
}

/// Name, table, columns.
const INDEXES: [(&str, &str, &[&str]); 8] = [
    ("inbox_by_subscriber_and_age", "inbox", &["subscriber", "received_at"]),
    ("retry_by_time", "retry", &["subscriber", "next_at"]),
    ("retry_by_order", "retry", &["subscriber", "topic", "partition", "key_hash", "offset"]),
    ("reply_by_message", "reply", &["subscriber", "message_key"]),
    ("reply_by_order", "reply", &["subscriber", "key_hash", "seq"]),
    ("reply_by_time", "reply", &["subscriber", "next_at"]),
    ("dead_letter_by_message", "dead_letter", &["subscriber", "message_key"]),
    ("dead_letter_by_id", "dead_letter", &["subscriber", "id"]),
];

/// Those that have a turn: the rows that each batch of the keys' messages is compared with. However
/// many wait behind them, these are few.
const RETRY_BY_KEY: &str = "CREATE INDEX retry_by_key ON retry \
     (subscriber, key_hash, topic, \"partition\", \"offset\") WHERE next_at IS NOT NULL";

fn index(
    name: &'static str,
    table: &'static str,
    columns: &[&'static str],
) -> IndexCreateStatement {
    let mut index = Index::create().name(name).table(table).to_owned();
    for column in columns {
        index.col(*column);
    }
    index
}

/// Messages that failed and will be tried again, whole; and those that wait behind them.
fn retry() -> TableCreateStatement {
    Table::create()
        .table("retry")
        .col(uuid("id").primary_key())
        .col(text("subscriber"))
        .col(text("message_key"))
        .col(text("topic"))
        .col(ColumnDef::new("partition").integer().not_null())
        .col(ColumnDef::new("offset").big_integer().not_null())
        .col(ColumnDef::new("key").binary())
        // A key may be longer than an index entry may be.
        .col(ColumnDef::new("key_hash").big_integer())
        .col(text("headers"))
        .col(ColumnDef::new("payload").binary())
        .col(text("cause"))
        .col(number("attempts", 0))
        .col(number("level", 0))
        // Null while it has not failed itself.
        .col(ColumnDef::new("first_failed_at").timestamp_with_time_zone())
        .col(ColumnDef::new("last_failed_at").timestamp_with_time_zone())
        // Null while an earlier message of its key is in this table: who takes that one out gives
        // the next one its turn.
        .col(ColumnDef::new("next_at").timestamp_with_time_zone())
        // The dead letter that is being replayed.
        .col(ColumnDef::new("dead_letter_id").uuid())
        .index(Index::create().unique().name("retry_once").col("subscriber").col("message_key"))
        .to_owned()
}

/// Replies that were not yet acknowledged.
fn reply() -> TableCreateStatement {
    Table::create()
        .table("reply")
        // The order in which they are sent.
        .col(ColumnDef::new("seq").big_integer().not_null().auto_increment().primary_key())
        .col(uuid("id").unique_key())
        .col(text("subscriber"))
        .col(text("message_key"))
        .col(text("topic"))
        .col(ColumnDef::new("key").binary())
        .col(ColumnDef::new("key_hash").big_integer())
        .col(text("headers"))
        .col(ColumnDef::new("payload").binary())
        // Why it was refused the last time.
        .col(ColumnDef::new("cause").text())
        .col(moment("next_at"))
        .to_owned()
}

/// SQLite's: as they were, with what an operator did about them; without the rule that a place has one:
/// a topic that was made anew has the same places again, and its dead letters would be lost.
fn dead_letter() -> TableCreateStatement {
    Table::create()
        .table("dead_letter_new")
        .col(uuid("id").primary_key())
        .col(text("subscriber"))
        .col(text("message_key"))
        .col(text("topic"))
        .col(ColumnDef::new("partition").integer().not_null())
        .col(ColumnDef::new("offset").big_integer().not_null())
        .col(ColumnDef::new("key").binary())
        .col(text("headers"))
        .col(ColumnDef::new("payload").binary())
        .col(text("cause"))
        .col(number("attempts", 0))
        .col(moment("first_failed_at"))
        .col(moment("last_failed_at"))
        .col(ColumnDef::new("queued_at").timestamp_with_time_zone())
        .col(ColumnDef::new("replayed_at").timestamp_with_time_zone())
        .col(ColumnDef::new("discarded_at").timestamp_with_time_zone())
        .col(ColumnDef::new("discard_reason").text())
        .to_owned()
}

/// The columns that it had before.
const FORMER: [&str; 14] = [
    "id",
    "subscriber",
    "message_key",
    "topic",
    "partition",
    "offset",
    "key",
    "headers",
    "payload",
    "cause",
    "attempts",
    "first_failed_at",
    "last_failed_at",
    "replayed_at",
];

/// PostgreSQL changes the table where it stands: its lock keeps other sessions from writing between
/// two statements, so no dead letter of a replica that still runs is lost, and nothing is copied.
const ALTER_DEAD_LETTERS: &str = "ALTER TABLE dead_letter \
     DROP CONSTRAINT IF EXISTS dead_letter_once, \
     ADD COLUMN IF NOT EXISTS queued_at timestamp with time zone, \
     ADD COLUMN IF NOT EXISTS discarded_at timestamp with time zone, \
     ADD COLUMN IF NOT EXISTS discard_reason text";

async fn change_dead_letters(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    if manager.get_database_backend() == DbBackend::Postgres {
        return manager.get_connection().execute_unprepared(ALTER_DEAD_LETTERS).await.map(|_| ());
    }
    rebuild_dead_letters(manager).await
}

/// SQLite cannot drop a constraint: the table is made anew. Its one writer is this transaction.
async fn rebuild_dead_letters(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    manager.create_table(dead_letter()).await?;
    let all = Query::select().columns(FORMER).from("dead_letter").to_owned();
    let mut copy = Query::insert();
    copy.into_table("dead_letter_new").columns(FORMER);
    copy.select_from(all).map_err(|error| DbErr::Migration(error.to_string()))?;
    manager.execute(copy).await?;
    manager.drop_table(Table::drop().table("dead_letter").to_owned()).await?;
    manager.rename_table(Table::rename().table("dead_letter_new", "dead_letter").to_owned()).await
}

#[cfg(test)]
mod tests {
    use halfmsg_db::{DbOptions, connect};

    use super::*;
    use crate::consumer::ConsumerMigrator;
    use crate::migrate;
    use crate::tests::patient;

    #[tokio::test]
    async fn dead_letters_are_carried_over() {
        let directory = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", directory.path().join("a.db").display());
        // As in a migration, which is one transaction: SQLite takes the former schema of another
        // connection for the present one when it renames a table.
        let options = DbOptions { max_connections: 1, ..patient() };
        let database = connect(&url, &options).await.unwrap();
        ConsumerMigrator::up(&database, Some(1)).await.unwrap();
        let insert = "INSERT INTO dead_letter VALUES (x'01', 's', 'k', 't', 0, 7, NULL, '[]', NULL, \
                      'why', 3, '2025-01-01T00:00:00+00:00', '2025-01-01T00:00:00+00:00', NULL)";
        database.execute_unprepared(insert).await.unwrap();
        migrate::<ConsumerMigrator>(&database).await.unwrap();
        // The same place again, of a topic that was made anew.
        let again = "INSERT INTO dead_letter (id, subscriber, message_key, topic, partition, \
                     \"offset\", headers, cause, attempts, first_failed_at, last_failed_at) \
                     SELECT x'02', subscriber, message_key, topic, partition, \"offset\", headers, \
                     cause, attempts, first_failed_at, last_failed_at FROM dead_letter";
        let inserted = database.execute_unprepared(again).await.unwrap();
        assert_eq!(inserted.rows_affected(), 1);
        ConsumerMigrator::down(&database, Some(1)).await.unwrap();
        ConsumerMigrator::up(&database, Some(1)).await.unwrap();
        ConsumerMigrator::down(&database, None).await.unwrap();
        assert!(!SchemaManager::new(&database).has_table("retry").await.unwrap());
    }
}

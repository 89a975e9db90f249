//! Payments: an account is debited and a message is sent, both or neither; each is booked once.

pub mod book;
pub mod payment;

use halfmsg_migrations::{ConsumerMigrator, FenceMigrator};
use sea_orm::{ConnectionTrait, DatabaseConnection, DbErr};

/// Brings the schema up to date.
pub async fn migrate(db: &DatabaseConnection) -> Result<(), DbErr> {
    halfmsg_migrations::migrate::<FenceMigrator>(db).await?;
    halfmsg_migrations::migrate::<ConsumerMigrator>(db).await?;
    for table in [
        "account (name TEXT PRIMARY KEY, cents BIGINT NOT NULL CHECK (cents >= 0))",
        "booking (number TEXT NOT NULL, cents BIGINT NOT NULL)",
    ] {
        db.execute_unprepared(&format!("CREATE TABLE IF NOT EXISTS {table}")).await?;
    }
    Ok(())
}

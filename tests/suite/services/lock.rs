//! Holds the orders of a shop locked, so that a check-back cannot tell what became of an order.

use halfmsg_service_kit::db::begin_write;
use sea_orm::{ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbBackend};

use super::shop::settled::database;

/// A locked table; dropped, it is free as well.
pub(crate) struct Lock {
    transaction: DatabaseTransaction,
    database: DatabaseConnection,
}

/// Locks the table of orders against every writer, and on PostgreSQL against readers too.
pub(crate) async fn lock_orders(url: &str) -> Lock {
    let database = database(url).await;
    // SQLite's write transaction is alone from its beginning.
    let transaction = begin_write(&database).await.expect("a transaction of the test");
    if database.get_database_backend() == DbBackend::Postgres {
        // Reads go on, as with SQLite: a check that cannot even read has failed, and counts as none.
        let lock = "LOCK TABLE orders IN SHARE MODE";
        transaction.execute_unprepared(lock).await.expect("the table is there");
    }
    Lock { transaction, database }
}

impl Lock {
    /// Lets everybody in again; nothing was changed.
    pub(crate) async fn release(self) {
        self.transaction.rollback().await.expect("the transaction ends");
        self.database.close().await.expect("the connection ends");
    }
}

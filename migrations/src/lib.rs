//! The schemas of both services, as SeaORM migrations for PostgreSQL and SQLite; that of the fence
//! also for MySQL and MariaDB.
//!
//! The constraints live here and not in the services: available stock is never negative, a
//! movement and a line happen once, states are of a known set. A migration that has been released
//! must never be changed; a new one is added behind it.
//!
//! # Layout
//! - [`order`]: [`OrderMigrator`], the database of order-svc
//! - [`stock`]: [`StockMigrator`], the database of stock-svc
//! - [`consumer`]: the tables of halfmsg-consumer, made in the database of the service it runs in
//! - [`producer`]: the fence table of halfmsg-producer, for any service's database
//! - [`migrate`]: runs a migrator at start, one replica at a time; [`migrate_telling`]: and says what it does

pub mod consumer;
pub mod order;
pub mod producer;
pub mod stock;

mod column;

use std::time::Duration;

use halfmsg_db::{begin_write, set_lock_timeout_in_tx};
use sea_orm_migration::sea_orm::{
    ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbBackend, DbErr, Statement,
};
use sea_orm_migration::{MigrationStatus, MigratorTrait};

pub use consumer::ConsumerMigrator;
pub use order::OrderMigrator;
pub use producer::FenceMigrator;
pub use stock::StockMigrator;

/// How long a replica waits for another one that is migrating. On SQLite it is the pool's busy
/// timeout that counts.
pub const LOCK_TIMEOUT: Duration = Duration::from_secs(60);

/// The key of PostgreSQL's advisory lock: "halfmsg" in ASCII.
const LOCK_KEY: i64 = 0x0068_616c_666d_7367;

/// The name of MySQL's lock, which is the server's: one per database, within 64 characters.
const MYSQL_LOCK: &str = "CONCAT('halfmsg.', SHA1(DATABASE()))";

/// What a migration of a database found and did, by the names of the migrations, in their order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Migrated {
    /// Applied now.
    pub applied: Vec<String>,
    /// That were there already.
    pub present: Vec<String>,
}

/// A migration that is about to be applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Applying<'a> {
    /// Its name.
    pub name: &'a str,
    /// The first one has the number 1.
    pub number: usize,
    /// How many are to be applied.
    pub of: usize,
}

/// Brings the schema up to date.
///
/// Under a lock (an advisory lock on PostgreSQL and MySQL, the write lock on SQLite): replicas that
/// start at once run one after the other, and the later ones find nothing to do. On PostgreSQL and
/// SQLite all of it is one transaction: one that dies half-way, or is cancelled, leaves nothing
/// behind. MySQL and MariaDB commit each step by itself; cancelled, it runs to its end.
///
/// # Errors
/// What the database says; a schema newer than this program is an error too.
pub async fn migrate<M: MigratorTrait>(connection: &DatabaseConnection) -> Result<(), DbErr> {
    migrate_telling::<M>(connection, |_| {}).await.map(drop)
}

/// As [`migrate`]; tells of each migration before it is applied, and of all of them at the end. What is
/// told before that may yet be taken back with the transaction.
///
/// # Errors
/// As for [`migrate`].
pub async fn migrate_telling<M: MigratorTrait>(
    connection: &DatabaseConnection,
    tell: impl Fn(Applying<'_>) + Send + Sync + 'static,
) -> Result<Migrated, DbErr> {
    if connection.get_database_backend() == DbBackend::MySql {
        return migrate_mysql::<M>(connection.clone(), tell).await;
    }
    let transaction = begin_write(connection).await?;
    if connection.get_database_backend() == DbBackend::Postgres {
        set_lock_timeout_in_tx(&transaction, LOCK_TIMEOUT).await?;
        // The lock may take longer than a statement of a request may.
        transaction.execute_unprepared("SET LOCAL statement_timeout = 0").await?;
        let lock = format!("SELECT pg_advisory_xact_lock({LOCK_KEY})");
        transaction.execute_unprepared(&lock).await?;
    }
    let migrated = up::<M>(&transaction, &tell).await?;
    transaction.commit().await?;
    Ok(migrated)
}

/// MySQL's advisory lock belongs to the session and would go back to the pool with it. So it is
/// taken and released in a task that nobody cancels; if the process dies, the session ends.
async fn migrate_mysql<M: MigratorTrait>(
    connection: DatabaseConnection,
    tell: impl Fn(Applying<'_>) + Send + Sync + 'static,
) -> Result<Migrated, DbErr> {
    let task = tokio::spawn(async move {
        // The transaction only keeps to one session: MySQL ends it with the first table.
        let session = begin_write(&connection).await?;
        let lock = format!("SELECT GET_LOCK({MYSQL_LOCK}, {}) AS locked", LOCK_TIMEOUT.as_secs());
        let locked = session.query_one_raw(Statement::from_string(DbBackend::MySql, lock)).await?;
        let locked = locked.map(|row| row.try_get::<Option<i64>>("", "locked")).transpose()?;
        if locked.flatten() != Some(1) {
            let waited = format!("another replica has been migrating for {LOCK_TIMEOUT:?}");
            return Err(DbErr::Custom(waited));
        }
        let done = up::<M>(&session, &tell).await;
        session.execute_unprepared(&format!("DO RELEASE_LOCK({MYSQL_LOCK})")).await?;
        session.commit().await?;
        done
    });
    task.await.unwrap_or_else(|error| Err(DbErr::Custom(format!("the migration ended: {error}"))))
}

/// Applies what is missing, one after the other, so that each can be told of.
async fn up<M: MigratorTrait>(
    session: &DatabaseTransaction,
    tell: &(impl Fn(Applying<'_>) + Sync),
) -> Result<Migrated, DbErr> {
    let mut migrated = Migrated::default();
    for migration in M::get_migration_with_status(session).await? {
        let names = match migration.status() {
            MigrationStatus::Pending => &mut migrated.applied,
            MigrationStatus::Applied => &mut migrated.present,
        };
        names.push(migration.name().to_owned());
    }
    let of = migrated.applied.len();
    for (before, name) in migrated.applied.iter().enumerate() {
        tell(Applying { name, number: before + 1, of });
        M::up(session, Some(1)).await?;
    }
    Ok(migrated)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::{Arc, Mutex};

    use halfmsg_db::{DbFault, DbOptions, connect};
    use sea_orm_migration::SchemaManager;

    use super::*;

    async fn database() -> (tempfile::TempDir, DatabaseConnection) {
        let directory = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", directory.path().join("a.db").display());
        (directory, connect(&url, &patient()).await.unwrap())
    }

    /// A connection is waited for longer than any machine stands still.
    pub(crate) fn patient() -> DbOptions {
        let patience = std::time::Duration::from_secs(60);
        DbOptions {
            acquire_timeout: patience,
            sqlite_busy_timeout: patience,
            ..DbOptions::default()
        }
    }

    async fn run(connection: &DatabaseConnection, sql: &str) -> Result<(), DbErr> {
        connection.execute_unprepared(sql).await.map(|_| ())
    }

    #[tokio::test]
    async fn goes_up_twice_and_down() {
        let (_directory, connection) = database().await;
        migrate::<OrderMigrator>(&connection).await.unwrap();
        migrate::<OrderMigrator>(&connection).await.unwrap();
        let schema = SchemaManager::new(&connection);
        assert!(schema.has_table("orders").await.unwrap());
        OrderMigrator::down(&connection, None).await.unwrap();
        assert!(!schema.has_table("orders").await.unwrap());
        let (_directory, connection) = database().await;
        migrate::<StockMigrator>(&connection).await.unwrap();
        let schema = SchemaManager::new(&connection);
        assert!(schema.has_table("dead_letter").await.unwrap());
        // The fence may live in the same database.
        migrate::<FenceMigrator>(&connection).await.unwrap();
        migrate::<FenceMigrator>(&connection).await.unwrap();
        FenceMigrator::down(&connection, None).await.unwrap();
        assert!(!schema.has_table("halfmsg_fence").await.unwrap());
        StockMigrator::down(&connection, None).await.unwrap();
        assert!(!schema.has_table("dead_letter").await.unwrap());
    }

    #[tokio::test]
    async fn each_migration_is_told_of_before_it_is_applied() {
        let (_directory, connection) = database().await;
        OrderMigrator::up(&connection, Some(2)).await.unwrap();
        let names: Vec<String> =
            OrderMigrator::migrations().iter().map(|one| one.name().to_owned()).collect();
        let (there, missing) = names.split_at(2);
        let (told, telling) = Told::new();
        let migrated = migrate_telling::<OrderMigrator>(&connection, telling).await.unwrap();
        let expected = Migrated { applied: missing.to_vec(), present: there.to_vec() };
        assert_eq!(migrated, expected);
        let numbered = missing.iter().zip(1..).map(|(name, number)| (name.clone(), number));
        let numbered = numbered.map(|(name, number)| (name, number, missing.len()));
        assert_eq!(told.taken(), numbered.collect::<Vec<_>>());

        let (told, telling) = Told::new();
        let again = migrate_telling::<OrderMigrator>(&connection, telling).await.unwrap();
        assert_eq!(again, Migrated { applied: Vec::new(), present: names });
        assert_eq!(told.taken(), []);
    }

    /// Name, number, and how many there are.
    type Line = (String, usize, usize);

    struct Told(Arc<Mutex<Vec<Line>>>);

    impl Told {
        fn new() -> (Self, impl Fn(Applying<'_>) + Send + Sync + 'static) {
            let told = Arc::new(Mutex::new(Vec::new()));
            let lines = Arc::clone(&told);
            let tell = move |Applying { name, number, of }: Applying<'_>| {
                lines.lock().unwrap().push((name.to_owned(), number, of));
            };
            (Self(told), tell)
        }

        fn taken(self) -> Vec<Line> {
            std::mem::take(&mut self.0.lock().unwrap())
        }
    }

    #[tokio::test]
    async fn both_services_may_share_a_database() {
        for order_first in [true, false] {
            let (_directory, connection) = database().await;
            if order_first {
                migrate::<OrderMigrator>(&connection).await.unwrap();
            }
            migrate::<StockMigrator>(&connection).await.unwrap();
            migrate::<OrderMigrator>(&connection).await.unwrap();
            let schema = SchemaManager::new(&connection);
            for table in ["inbox", "retry", "reply", "deduction", "orders", "report_product"] {
                assert!(schema.has_table(table).await.unwrap(), "{table}");
            }
        }
    }

    #[tokio::test]
    async fn replicas_may_start_at_once() {
        let (_directory, connection) = database().await;
        let starts = (0..4).map(|_| {
            let connection = connection.clone();
            tokio::spawn(async move { migrate::<StockMigrator>(&connection).await })
        });
        for start in starts.collect::<Vec<_>>() {
            start.await.unwrap().unwrap();
        }
    }

    #[tokio::test]
    async fn the_schema_of_stock_refuses_what_must_not_be() {
        let (_directory, connection) = database().await;
        migrate::<StockMigrator>(&connection).await.unwrap();
        let now = "'2025-01-01T00:00:00+00:00'";
        let good = [
            format!("INSERT INTO product VALUES ('a', 'A', 0, {now}, {now})"),
            "INSERT INTO stock VALUES ('a', 0)".into(),
            format!("INSERT INTO deduction VALUES (x'01', 'void', NULL, '[]', {now}, {now})"),
            format!(
                "INSERT INTO stock_movement VALUES (x'01', x'01', NULL, 'a', 'void', 0, {now})"
            ),
        ];
        for sql in &good {
            run(&connection, sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
        }
        for (sql, unique) in [
            (format!("INSERT INTO product VALUES ('b', 'B', -1, {now}, {now})"), false),
            ("UPDATE stock SET available = -1".into(), false),
            ("INSERT INTO stock VALUES ('b', 0)".into(), false),
            (format!("INSERT INTO receipt VALUES ('r', 'a', 0, {now})"), false),
            (
                format!("INSERT INTO deduction VALUES (x'02', 'lost', NULL, '[]', {now}, {now})"),
                false,
            ),
            (good[2].clone(), true),
            (
                format!(
                    "INSERT INTO stock_movement VALUES (x'02', x'01', NULL, 'a', 'void', 0, {now})"
                ),
                true,
            ),
        ] {
            let error = run(&connection, &sql).await.expect_err(&sql);
            assert_eq!(DbFault::of(&error) == DbFault::UniqueViolation, unique, "{sql}: {error}");
        }
    }

    #[tokio::test]
    async fn the_schema_of_orders_refuses_what_must_not_be() {
        let (_directory, connection) = database().await;
        migrate::<OrderMigrator>(&connection).await.unwrap();
        let order = |id: &str, transaction: &str, status: &str, cents: i64| {
            format!(
                "INSERT INTO orders (id, transaction_id, flow, status, total_cents, created_at, \
                 updated_at) VALUES (x'{id}', x'{transaction}', 'rollback', '{status}', {cents}, \
                 '2025-01-01T00:00:00+00:00', '2025-01-01T00:00:00+00:00')"
            )
        };
        run(&connection, &order("01", "01", "void", 0)).await.unwrap();
        for (sql, unique) in [
            (order("01", "02", "confirmed", 0), true),
            (order("02", "01", "confirmed", 0), true),
            (order("02", "02", "lost", 0), false),
            (order("02", "02", "confirmed", -1), false),
            ("INSERT INTO order_line VALUES (x'01', 1, 'a', 0, NULL)".into(), false),
            ("INSERT INTO order_line VALUES (x'09', 1, 'a', 1, NULL)".into(), false),
        ] {
            let error = run(&connection, &sql).await.expect_err(&sql);
            assert_eq!(DbFault::of(&error) == DbFault::UniqueViolation, unique, "{sql}: {error}");
        }
        run(&connection, "INSERT INTO order_line VALUES (x'01', 1, 'a', 1, NULL)").await.unwrap();
        let again = "INSERT INTO order_line VALUES (x'01', 2, 'a', 1, NULL)";
        assert!(run(&connection, again).await.is_err(), "a sku twice");
    }
}

//! The report made anew where it is large: a generation begins with one row, and what the one before has
//! left goes away in small statements, wherever the process dies.

use std::time::Duration;

use halfmsg_consumer::testkit::{EveryWait, dies_at};
use halfmsg_service_kit::db::begin_write;
use sea_orm::{ConnectionTrait, DatabaseConnection, Statement};
use uuid::Uuid;

use super::support::TestDb;
use crate::model::OrderId;
use crate::payload::PricedItem;
use crate::report::fold::Fact;
use crate::report::store::{CLEAN_BATCH, ReportStore, learn_in_tx, lock_in_tx, subscriber};

const PREFIX: &str = "halfmsg.order-svc.report";
/// Rows of each table that a former generation has left.
const LARGE: i64 = 50_000;
/// What the rig's database deletes in a statement before the statement's deadline.
const IN_TIME: u64 = 2 * CLEAN_BATCH;

struct World {
    db: TestDb,
    connection: DatabaseConnection,
    report: ReportStore,
}

impl World {
    async fn new() -> Self {
        let db = TestDb::new().await;
        let connection = db.connect(Duration::from_secs(5)).await;
        Self { report: ReportStore::new(connection.clone()), connection, db }
    }

    async fn run(&self, sql: &str) {
        self.connection.execute_unprepared(sql).await.unwrap_or_else(|error| panic!("{error}"));
    }

    async fn number(&self, sql: &str) -> i64 {
        let statement = Statement::from_string(self.connection.get_database_backend(), sql);
        self.connection
            .query_one_raw(statement)
            .await
            .unwrap()
            .unwrap()
            .try_get_by_index(0)
            .unwrap()
    }

    /// An identity that is made of a number, as SQL.
    fn id(&self) -> &'static str {
        if self.db.is_sqlite() { "randomblob(16)" } else { "gen_random_uuid()" }
    }

    /// Gives a generation so many rows of everything, and a queued and an open dead letter.
    async fn fill(&self, of: Uuid, rows: i64) {
        let (subscriber, id) = (subscriber(PREFIX, of), self.id());
        let numbers = format!(
            "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < {rows})"
        );
        let reading = "(SELECT reading FROM report_generation)";
        let message = "'t', 0, n, '[]', 'why', 1";
        let of_message = "topic, partition, \"offset\", headers, cause, attempts";
        let letter = format!(
            "INSERT INTO dead_letter (id, subscriber, message_key, {of_message}, first_failed_at, \
             last_failed_at) {numbers} SELECT {id}, '{subscriber}', 'l' || n, {message}, \
             '2025-01-01T00:00:00+00:00', '2025-01-01T00:00:00+00:00' FROM n WHERE n < 3"
        );
        for sql in [
            format!(
                "INSERT INTO report_order (order_id, cancelled, reading) {numbers} \
                 SELECT {id}, false, {reading} FROM n"
            ),
            format!(
                "INSERT INTO report_product (sku, reading) {numbers} \
                 SELECT '{of}' || n, {reading} FROM n"
            ),
            format!(
                "INSERT INTO inbox (subscriber, message_key, received_at) {numbers} \
                 SELECT '{subscriber}', 'm' || n, '2025-01-01T00:00:00+00:00' FROM n"
            ),
            letter,
            format!(
                "INSERT INTO retry (id, subscriber, message_key, {of_message}, level, \
                 dead_letter_id) {numbers} SELECT {id}, '{subscriber}', 'm' || n, {message}, 0, \
                 CASE n WHEN 1 THEN (SELECT id FROM dead_letter WHERE message_key = 'l1' \
                 AND subscriber = '{subscriber}') END FROM n"
            ),
            format!(
                "UPDATE dead_letter SET queued_at = first_failed_at \
                 WHERE subscriber = '{subscriber}' AND message_key = 'l1'"
            ),
        ] {
            self.run(&sql).await;
        }
    }

    /// From here on the database refuses a statement that deletes more than it can in time. What a
    /// statement of SQLite is, its clock tells: it stands still within one.
    async fn bound_statements(&self) {
        for table in ["report_order", "report_product", "inbox", "retry", "dead_letter"] {
            let name = format!("in_time_{table}");
            if self.db.is_sqlite() {
                self.run(&format!("CREATE TABLE {name} (at REAL, rows INTEGER)")).await;
                self.run(&format!("INSERT INTO {name} VALUES (0, 0)")).await;
                let late =
                    format!("SELECT RAISE(ABORT, 'late') FROM {name} WHERE rows > {IN_TIME}");
                self.run(&format!(
                    "CREATE TRIGGER {name}_row BEFORE DELETE ON {table} BEGIN UPDATE {name} SET \
                     rows = CASE WHEN at = julianday('now') THEN rows + 1 ELSE 1 END, \
                     at = julianday('now'); {late}; END"
                ))
                .await;
            } else {
                self.run(&format!(
                    "CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
                     IF (SELECT COUNT(*) FROM gone) > {IN_TIME} THEN RAISE EXCEPTION 'late'; END IF; \
                     RETURN NULL; END $$"
                ))
                .await;
                self.run(&format!(
                    "CREATE TRIGGER {name} AFTER DELETE ON {table} REFERENCING OLD TABLE AS gone \
                     FOR EACH STATEMENT EXECUTE FUNCTION {name}()"
                ))
                .await;
            }
        }
    }

    /// What the present generation's subscriber has had stays.
    async fn fill_current(&self, of: Uuid) {
        let subscriber = subscriber(PREFIX, of);
        self.run(&format!(
            "INSERT INTO inbox (subscriber, message_key, received_at) \
             VALUES ('{subscriber}', 'present', '2025-01-01T00:00:00+00:00')"
        ))
        .await;
    }

    async fn learn(&self, sku: &str, quantity: u32) {
        let item = PricedItem { sku: sku.into(), quantity, unit_price_cents: 5 };
        let tx = begin_write(&self.connection).await.unwrap();
        let current = lock_in_tx(&tx).await.unwrap().expect("a generation");
        let facts = vec![(OrderId::generate(), Fact::Ordered(vec![item]))];
        assert_eq!(learn_in_tx(&tx, current.reading, facts).await.unwrap(), 1);
        tx.commit().await.unwrap();
    }

    async fn ordered(&self) -> Vec<(String, i64)> {
        let rows = self.report.products(None, 10).await.unwrap();
        rows.into_iter().map(|row| (row.sku, row.sums.ordered.quantity)).collect()
    }

    /// Rows that are not the present generation's, but for dead letters.
    async fn left(&self) -> i64 {
        let current = subscriber(PREFIX, self.report.generation().await.unwrap().unwrap());
        self.number(&format!(
            "SELECT (SELECT COUNT(*) FROM inbox WHERE subscriber <> '{current}') \
             + (SELECT COUNT(*) FROM retry WHERE subscriber <> '{current}') \
             + (SELECT COUNT(*) FROM report_order o, report_generation g \
                WHERE o.reading <> g.reading) \
             + (SELECT COUNT(*) FROM report_product p, report_generation g \
                WHERE p.reading <> g.reading)"
        ))
        .await
    }
}

#[tokio::test]
async fn a_large_report_is_made_anew_at_once_and_goes_away_in_small_statements() {
    let world = World::new().await;
    let first = world.report.begin().await.unwrap().generation;
    world.fill(first, LARGE).await;
    // Somebody else's, whose name only begins alike, stays.
    let others = format!("{PREFIX}.x");
    world
        .run(&format!(
            "INSERT INTO inbox (subscriber, message_key, received_at) \
             VALUES ('{others}', 'm', '2025-01-01T00:00:00+00:00')"
        ))
        .await;
    world.bound_statements().await;
    let second = world.report.rebuild().await.unwrap();
    assert!(world.ordered().await.is_empty(), "readers see the present generation alone");
    assert_eq!(world.left().await, 4 * LARGE + 1);
    // A product that the former one has left, and a new one.
    let known = format!("{first}1");
    world.learn(&known, 3).await;
    world.learn("new", 4).await;
    let mut expected = vec![(known, 3), ("new".to_owned(), 4)];
    expected.sort();
    assert_eq!(world.ordered().await, expected);
    world.fill_current(second).await;
    let mut rounds = 0;
    loop {
        let deleted = world.report.clean(PREFIX).await.unwrap();
        assert!(deleted <= CLEAN_BATCH);
        if deleted == 0 {
            break;
        }
        // So that SQLite's clock, which counts milliseconds, tells one statement from the next.
        tokio::time::sleep(Duration::from_millis(2)).await;
        rounds += 1;
    }
    assert!(rounds >= 4 * LARGE / i64::try_from(CLEAN_BATCH).unwrap(), "{rounds}");
    assert_eq!(world.left().await, 1, "somebody else's");
    assert_eq!(world.ordered().await, expected);
    assert_eq!(world.report.whole_generation().await.unwrap(), Some(second));
    let count = async |sql: &str| world.number(sql).await;
    assert_eq!(count("SELECT COUNT(*) FROM inbox WHERE message_key = 'present'").await, 1);
    assert_eq!(count("SELECT COUNT(*) FROM dead_letter").await, 2, "the operator's journal");
    let open = "SELECT COUNT(*) FROM dead_letter WHERE queued_at IS NULL";
    assert_eq!(count(open).await, 2, "no replay waits any more");
}

#[tokio::test]
async fn what_is_left_goes_away_wherever_the_process_dies() {
    let world = World::new().await;
    let (mut tries, mut letters) = (EveryWait::default(), 0);
    while let Some(waits) = tries.next_try() {
        let former = world.report.begin().await.unwrap().generation;
        world.fill(former, 2).await;
        letters += 2;
        world.learn("a", 1).await;
        let began = dies_at(waits, world.report.rebuild()).await.is_some();
        // It may have died before the new generation was there.
        let current = world.report.rebuild().await.unwrap();
        world.learn("a", 2).await;
        let mut died = false;
        for _ in 0..8 {
            died |= dies_at(waits, world.report.clean(PREFIX)).await.is_none();
        }
        while world.report.clean(PREFIX).await.unwrap() > 0 {}
        assert_eq!(world.left().await, 0, "at wait {waits}");
        assert_eq!(world.ordered().await, [("a".to_owned(), 2)], "at wait {waits}");
        assert_eq!(world.report.whole_generation().await.unwrap(), Some(current));
        tries.died(died || !began);
    }
    let lost = "SELECT COUNT(*) FROM dead_letter WHERE queued_at IS NOT NULL";
    assert_eq!(world.number(lost).await, 0);
    assert_eq!(world.number("SELECT COUNT(*) FROM dead_letter").await, letters);
}

/// The row that says which generation it is may be deleted, too.
#[tokio::test]
async fn rows_without_a_generation_are_not_taken_for_the_next_one() {
    let world = World::new().await;
    world.report.begin().await.unwrap();
    world.learn("a", 1).await;
    world.run("DELETE FROM report_generation").await;
    assert_eq!(world.report.clean(PREFIX).await.unwrap(), 0, "nobody knows what is over");
    world.report.begin().await.unwrap();
    assert!(world.ordered().await.is_empty());
    while world.report.clean(PREFIX).await.unwrap() > 0 {}
    assert_eq!(world.number("SELECT COUNT(*) FROM report_order").await, 0);
}

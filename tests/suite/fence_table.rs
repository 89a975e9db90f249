//! Row 14 on the fence table, on each database: what a check answers is what became of the local
//! transaction, and stays so.

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use halfmsg_migrations::{FenceMigrator, migrate};
use halfmsg_producer::fence::{self, FenceError, FenceOptions};
use halfmsg_producer::{HalfMessage, ListenerResult, LocalTransactionState, TransactionId};
use halfmsg_service_kit::db::{DbOptions, now};
use sea_orm::sea_query::{Alias, ColumnDef, Expr, ExprTrait, Query, Table};
use sea_orm::{
    ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbBackend, TransactionTrait,
};
use tokio::time::Instant;
use uuid::Uuid;

use super::Env;
use super::database::{Database, Kind, patient};
use super::random::Random;

use LocalTransactionState::{Commit, Rollback, Unknown};

/// Connections of a case's pools: local transactions, and checks.
const CONNECTIONS: (u32, u32) = (8, 4);
/// Bounds of a check that no busy machine exceeds; half of the budget is for waiting.
const UNHURRIED: FenceOptions =
    FenceOptions { lock_timeout: super::PATIENCE, budget: super::PATIENCE.saturating_mul(2) };
/// A retention, and what is older.
const RETENTION: Duration = Duration::from_secs(30 * 24 * 3_600);
const DAY: Duration = Duration::from_secs(24 * 3_600);
/// What a loaded machine adds to a check's budget; much less than anybody waits for a lock here.
const MARGIN: Duration = Duration::from_secs(15);

/// What a local transaction changes: a table that is no fence by itself. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Bookings {
    db: DatabaseConnection,
    pub(crate) checks: DatabaseConnection,
    _database: Arc<Database>,
}

impl Bookings {
    /// Empty tables, and checks that wait for any lock.
    pub(crate) async fn new(env: &Env) -> Self {
        Self::with(env, super::PATIENCE).await
    }

    /// Empty tables, and checks that wait as they do by default.
    pub(crate) async fn asked_in_a_hurry(env: &Env) -> Self {
        Self::with(env, FenceOptions::default().lock_timeout).await
    }

    async fn with(env: &Env, lock_timeout: Duration) -> Self {
        let database = env.database().await;
        let options = |max_connections, sqlite_busy_timeout| DbOptions {
            max_connections,
            sqlite_busy_timeout,
            acquire_timeout: super::PATIENCE,
            statement_timeout: super::PATIENCE,
            ..DbOptions::default()
        };
        let db = database.connect(&options(CONNECTIONS.0, super::PATIENCE)).await;
        let checks = database.connect(&options(CONNECTIONS.1, lock_timeout)).await;
        migrate::<FenceMigrator>(&db).await.expect("the schema can be made");
        let mut table = Table::create();
        table.table("booking").col(ColumnDef::new("id").uuid().not_null());
        db.execute(&table).await.expect("a table can be made");
        Self { db, checks, _database: Arc::new(database) }
    }

    /// The local transaction.
    pub(crate) async fn book(&self, id: TransactionId) -> Result<(), FenceError> {
        let tx = fence::begin_write(&self.db).await?;
        fence::enter_in_tx(&tx, id).await?;
        book_in_tx(&tx, id).await;
        Ok(tx.commit().await?)
    }

    /// Everything that is booked.
    pub(crate) async fn all(&self) -> BTreeSet<TransactionId> {
        let select = Query::select().column("id").from("booking").to_owned();
        let rows = self.db.query_all(&select).await.expect("the table can be read");
        let ids = rows.iter().map(|row| row.try_get::<Uuid>("", "id").expect("an id"));
        let ids: Vec<_> = ids.map(TransactionId::from_uuid).collect();
        let once: BTreeSet<_> = ids.iter().copied().collect();
        assert_eq!(once.len(), ids.len(), "booked twice");
        once
    }

    /// The state in the fence.
    pub(crate) async fn fence_of(&self, id: TransactionId) -> Option<String> {
        let select = Query::select()
            .column("state")
            .from("halfmsg_fence")
            .and_where(Expr::col(Alias::new("transaction_id")).eq(id.as_uuid()))
            .to_owned();
        let row = self.db.query_one(&select).await.expect("the table can be read");
        row.map(|row| row.try_get("", "state").expect("a state"))
    }

    /// However long it takes.
    async fn check(&self, ids: &[TransactionId]) -> Vec<LocalTransactionState> {
        self.check_with(ids, UNHURRIED).await
    }

    async fn check_with(
        &self,
        ids: &[TransactionId],
        options: FenceOptions,
    ) -> Vec<LocalTransactionState> {
        let halves: Vec<HalfMessage> = ids.iter().map(|id| half(*id)).collect();
        let answers = fence::check(&self.checks, &halves, options).await;
        answers.into_iter().map(known).collect()
    }
}

/// A database that cannot say is none that says "unknown"; the cases ask for what is known.
fn known(answer: ListenerResult<LocalTransactionState>) -> LocalTransactionState {
    answer.unwrap_or_else(|error| {
        println!("{error}");
        Unknown
    })
}

async fn book_in_tx(tx: &DatabaseTransaction, id: TransactionId) {
    let mut insert = Query::insert();
    insert.into_table("booking").columns(["id"]).values_panic([id.as_uuid().into()]);
    tx.execute(&insert).await.expect("it can be booked");
}

fn half(transaction_id: TransactionId) -> HalfMessage {
    HalfMessage {
        transaction_id,
        local_transaction_id: transaction_id,
        purpose: "booking".into(),
        topic: "bookings".into(),
        key: None,
        headers: Vec::new(),
        payload: None,
        partition: 0,
        offset: 0,
        epoch: 0,
        attempts: 0,
    }
}

fn new_id() -> TransactionId {
    TransactionId::from_uuid(Uuid::now_v7())
}

/// An id as it was made this long ago.
fn id_from(ago: Duration) -> TransactionId {
    let made = now() - ago;
    let millis = u64::try_from(made.timestamp_millis()).expect("after 1970");
    let mut bytes = *new_id().as_bytes();
    bytes[..6].copy_from_slice(&millis.to_be_bytes()[2..]);
    TransactionId::from_bytes(bytes)
}

/// A check that comes first shuts the local transaction out, which leaves nothing behind, at any
/// isolation.
async fn fence_first_business_second(bookings: Bookings) {
    let id = new_id();
    assert_eq!(bookings.check(&[id]).await, [Rollback]);
    let refused = bookings.book(id).await;
    assert!(matches!(refused, Err(FenceError::Fenced(fenced)) if fenced == id), "{refused:?}");
    // As the server is configured: REPEATABLE READ on MariaDB.
    let tx = bookings.db.begin().await.expect("the database answers");
    let refused = fence::enter_in_tx(&tx, id).await;
    assert!(matches!(refused, Err(FenceError::Fenced(_))), "{refused:?}");
    tx.rollback().await.expect("the database answers");
    assert_eq!(bookings.all().await, BTreeSet::new());
    assert_eq!(bookings.check(&[id]).await, [Rollback]);
    assert_eq!(bookings.fence_of(id).await.as_deref(), Some("tombstone"));
}

/// Committed, rolled back, never begun, repeated: the check says what is, for a batch in any order.
async fn answers_are_what_became_of_it(bookings: Bookings) {
    let (committed, rolled_back, never) = (new_id(), new_id(), new_id());
    bookings.book(committed).await.expect("nobody is in the way");
    let tx = fence::begin_write(&bookings.db).await.expect("the database answers");
    fence::enter_in_tx(&tx, rolled_back).await.expect("nobody is in the way");
    book_in_tx(&tx, rolled_back).await;
    tx.rollback().await.expect("the database answers");

    assert_eq!(bookings.check(&[]).await, []);
    let asked = [never, committed, rolled_back, committed, never];
    let answers = [Rollback, Commit, Rollback, Commit, Rollback];
    assert_eq!(bookings.check(&asked).await, answers);
    let again = bookings.book(committed).await;
    assert!(matches!(again, Err(FenceError::AlreadyEntered(_))), "{again:?}");
    for fenced in [rolled_back, never] {
        let late = bookings.book(fenced).await;
        assert!(matches!(late, Err(FenceError::Fenced(_))), "{late:?}");
    }
    assert_eq!(bookings.check(&asked).await, answers);
    assert_eq!(bookings.all().await, BTreeSet::from([committed]));
    // Nil is the mark's key, and nobody's id.
    let nil = TransactionId::from_uuid(Uuid::nil());
    assert!(matches!(bookings.book(nil).await, Err(FenceError::Refused(_))));
    assert_eq!(bookings.check(&[nil, committed]).await, [Unknown, Commit]);
}

/// A local transaction that is under way makes its own half unknown, soon, and no other; then it is
/// what it became.
async fn a_running_transaction_is_unknown_alone(bookings: Bookings) {
    let is_sqlite = bookings.db.get_database_backend() == DbBackend::Sqlite;
    for commits in [true, false] {
        let (stands, running, missing) = (new_id(), new_id(), new_id());
        bookings.book(stands).await.expect("nobody is in the way");
        let tx = fence::begin_write(&bookings.db).await.expect("the database answers");
        fence::enter_in_tx(&tx, running).await.expect("nobody is in the way");
        book_in_tx(&tx, running).await;

        // SQLite has one writer, so no tombstone at all can be written meanwhile.
        let of_missing = if is_sqlite { Unknown } else { Rollback };
        super::until(super::PATIENCE, "the answers about the others", async || {
            let (asked, began) = ([running, stands, missing], Instant::now());
            let answers = bookings.check_with(&asked, FenceOptions::default()).await;
            let took = began.elapsed();
            assert_eq!(answers[0], Unknown);
            println!("{:?}: {took:?}", bookings.db.get_database_backend());
            // Nothing else would end its wait. A machine that stands still uses up the time of all of them.
            let in_time = took < FenceOptions::default().budget + MARGIN;
            match in_time && answers[1..] == [Commit, of_missing] {
                true => Ok(()),
                false => Err(format!("{answers:?} after {took:?}")),
            }
        })
        .await;

        if commits {
            tx.commit().await.expect("the check does not hold it up");
        } else {
            tx.rollback().await.expect("the database answers");
        }
        let of_running = if commits { Commit } else { Rollback };
        assert_eq!(
            bookings.check(&[running, stands, missing]).await,
            [of_running, Commit, Rollback]
        );
        assert_eq!(bookings.all().await.contains(&running), commits);
    }
}

/// Many running ones do not use up the time of those behind them; and a pool that waits longer for
/// SQLite's writer than the check may take does not keep the check.
async fn a_check_ends_within_its_budget(bookings: Bookings) {
    let is_sqlite = bookings.db.get_database_backend() == DbBackend::Sqlite;
    let options = FenceOptions { budget: Duration::from_millis(1_500), ..FenceOptions::default() };
    let tx = fence::begin_write(&bookings.db).await.expect("the database answers");
    let mut halves = Vec::new();
    for _ in 0..40 {
        let id = new_id();
        fence::enter_in_tx(&tx, id).await.expect("nobody is in the way");
        halves.push(half(id));
    }
    // The last of all keys.
    let missing = new_id();
    halves.push(half(missing));
    let of_missing = if is_sqlite { Unknown } else { Rollback };
    super::until(super::PATIENCE, "the answer about the last one", async || {
        let began = Instant::now();
        let answers = fence::check(&bookings.db, &halves, options).await;
        let took = began.elapsed();
        let answers: Vec<_> = answers.into_iter().map(known).collect();
        assert!(answers[..40].iter().all(|state| *state == Unknown), "{answers:?}");
        // A machine that stands still uses its time up as well.
        match took < options.budget + MARGIN && answers[40] == of_missing {
            true => Ok(()),
            false => Err(format!("{answers:?} after {took:?}")),
        }
    })
    .await;
    tx.commit().await.expect("the check does not hold it up");
    let answers = super::until(super::PATIENCE, "the check", async || {
        let answers = fence::check(&bookings.checks, &halves, FenceOptions::default()).await;
        let answers: Vec<_> = answers.into_iter().map(known).collect();
        if answers.contains(&Unknown) { Err(format!("{answers:?}")) } else { Ok(answers) }
    })
    .await;
    assert!(answers[..40].iter().all(|state| *state == Commit), "{answers:?}");
    assert_eq!(answers[40], Rollback);
}

/// What was cleaned away is unknown to a check and closed to its local transaction: neither is taken
/// for one that never was.
async fn cleaned_away_is_unknown(bookings: Bookings) {
    assert_eq!(fence::clean(&bookings.db, RETENTION).await.expect("an empty table"), 0);
    let old = RETENTION + DAY;
    let (booked, fenced) = (id_from(old), id_from(old));
    let (kept, never_old, recent) = (id_from(RETENTION - DAY), id_from(old), new_id());
    for id in [booked, kept, recent] {
        bookings.book(id).await.expect("nobody is in the way");
    }
    assert_eq!(bookings.check(&[fenced]).await, [Rollback]);
    let tx = fence::begin_write(&bookings.db).await.expect("the database answers");
    let many = fence::CLEAN_BATCH + 1;
    for _ in 0..many {
        fence::enter_in_tx(&tx, id_from(old)).await.expect("nobody is in the way");
    }
    tx.commit().await.expect("the database answers");

    let short = fence::clean(&bookings.db, fence::MIN_RETENTION - DAY / 2).await;
    assert!(matches!(short, Err(FenceError::Retention(_))), "{short:?}");
    let cleaned = fence::clean(&bookings.db, RETENTION).await.expect("the database answers");
    assert_eq!(cleaned, many + 2);
    assert_eq!(fence::clean(&bookings.db, RETENTION).await.expect("the database answers"), 0);
    // The mark does not go back.
    fence::clean(&bookings.db, RETENTION * 2).await.expect("the database answers");

    let asked = [booked, fenced, never_old, kept, recent];
    assert_eq!(bookings.check(&asked).await, [Unknown, Unknown, Unknown, Commit, Commit]);
    for id in [booked, fenced, never_old] {
        let late = bookings.book(id).await;
        assert!(matches!(late, Err(FenceError::Forgotten(_))), "{late:?}");
        assert_eq!(bookings.fence_of(id).await, None);
    }
    assert_eq!(bookings.all().await, BTreeSet::from([booked, kept, recent]));
}

/// The time is counted back from the newest row: a cleaner whose clock is years ahead deletes
/// nothing that is recent. A table that was emptied otherwise tells nothing.
async fn emptied_tells_nothing(bookings: Bookings) {
    let (first, newest) = (id_from(RETENTION * 3), id_from(RETENTION * 3 - DAY));
    for id in [first, newest] {
        bookings.book(id).await.expect("nobody is in the way");
    }
    assert_eq!(fence::clean(&bookings.db, RETENTION).await.expect("the database answers"), 0);
    assert_eq!(bookings.check(&[first, newest]).await, [Commit, Commit]);
    let delete = Query::delete().from_table("halfmsg_fence").to_owned();
    bookings.db.execute(&delete).await.expect("it can be emptied");
    assert_eq!(bookings.check(&[first, new_id()]).await, [Unknown, Unknown]);
    let refused = bookings.book(new_id()).await;
    assert!(matches!(refused, Err(FenceError::NoMark)), "{refused:?}");
    let drop = Table::drop().table("halfmsg_fence").to_owned();
    bookings.db.execute(&drop).await.expect("it can be dropped");
    assert_eq!(bookings.check(&[first]).await, [Unknown]);
    let refused = bookings.book(new_id()).await;
    assert!(matches!(refused, Err(FenceError::Refused(_))), "{refused:?}");
}

/// Local transactions and checks that are given up at any point leave no transaction open and no
/// connection spoilt, and what became of them can be told.
async fn given_up_leaves_nothing_open(bookings: Bookings) {
    let mut random = Random::new(14);
    let mut ids = Vec::new();
    for round in 0..400 {
        let id = new_id();
        let after = Duration::from_micros(random.below(2_500));
        if round % 2 == 0 {
            given_up(after, bookings.book(id)).await;
        } else {
            given_up(after, bookings.check(&[id])).await;
        }
        ids.push(id);
    }
    let answers = super::until(super::PATIENCE, "every outcome", async || {
        let answers = bookings.check(&ids).await;
        let unknown = answers.iter().filter(|state| **state == Unknown).count();
        if unknown == 0 { Ok(answers) } else { Err(format!("{unknown} are unknown")) }
    })
    .await;
    let committed = ids.iter().zip(answers).filter(|(_, state)| *state == Commit);
    let committed: BTreeSet<_> = committed.map(|(id, _)| *id).collect();
    assert_eq!(bookings.all().await, committed);
    // Every connection of either pool has its turn.
    for _ in 0..CONNECTIONS.0 * 3 {
        let (booked, fenced) = (new_id(), new_id());
        bookings.book(booked).await.expect("nobody is in the way");
        assert_eq!(bookings.check(&[booked, fenced]).await, [Commit, Rollback]);
    }
}

/// Drops the work when the time is over. Not by the runtime's timer, which knows whole
/// milliseconds: a transaction takes less.
async fn given_up<T>(after: Duration, work: impl Future<Output = T>) {
    let until = Instant::now() + after;
    let time = async {
        while Instant::now() < until {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        biased;
        _ = work => {}
        () = time => {}
    }
}

/// Replicas that start at once make the table once.
async fn is_made_once(env: &Env) {
    let database = env.database().await;
    let mut starts = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let sqlite_busy_timeout = super::PATIENCE;
        let options = DbOptions { max_connections: 2, sqlite_busy_timeout, ..patient() };
        let db = database.connect(&options).await;
        starts.spawn(async move { migrate::<FenceMigrator>(&db).await });
    }
    for made in starts.join_all().await {
        made.expect("it waits for the other");
    }
}

/// On the tier's own database.
pub(crate) async fn c14_table_fence_first_business_second(env: Env) {
    fence_first_business_second(Bookings::new(&env).await).await;
}

/// On the tier's own database.
pub(crate) async fn c14_table_answers_are_what_became_of_it(env: Env) {
    answers_are_what_became_of_it(Bookings::new(&env).await).await;
}

/// On the tier's own database.
pub(crate) async fn c14_table_a_running_transaction_is_unknown_alone(env: Env) {
    a_running_transaction_is_unknown_alone(Bookings::asked_in_a_hurry(&env).await).await;
}

/// On the tier's own database.
pub(crate) async fn c14_table_a_check_ends_within_its_budget(env: Env) {
    a_check_ends_within_its_budget(Bookings::asked_in_a_hurry(&env).await).await;
}

/// On the tier's own database.
pub(crate) async fn c14_table_cleaned_away_is_unknown(env: Env) {
    cleaned_away_is_unknown(Bookings::new(&env).await).await;
}

/// On the tier's own database.
pub(crate) async fn c14_table_emptied_tells_nothing(env: Env) {
    emptied_tells_nothing(Bookings::new(&env).await).await;
}

/// On the tier's own database.
pub(crate) async fn c14_table_given_up_leaves_nothing_open(env: Env) {
    given_up_leaves_nothing_open(Bookings::new(&env).await).await;
}

/// On the tier's own database.
pub(crate) async fn c14_table_is_made_once(env: Env) {
    is_made_once(&env).await;
}

/// All of them on MariaDB.
pub(crate) async fn c14_table_on_mariadb(env: Env) {
    let env = env.with_database(Kind::Mariadb);
    fence_first_business_second(Bookings::new(&env).await).await;
    answers_are_what_became_of_it(Bookings::new(&env).await).await;
    a_running_transaction_is_unknown_alone(Bookings::asked_in_a_hurry(&env).await).await;
    a_check_ends_within_its_budget(Bookings::asked_in_a_hurry(&env).await).await;
    cleaned_away_is_unknown(Bookings::new(&env).await).await;
    emptied_tells_nothing(Bookings::new(&env).await).await;
    given_up_leaves_nothing_open(Bookings::new(&env).await).await;
    is_made_once(&env).await;
}

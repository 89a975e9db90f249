//! The test kit, with a listener that keeps the fence and with some that do not.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use halfmsg_db::{DbOptions, connect};
use halfmsg_migrations::{FenceMigrator, migrate};
use halfmsg_producer::fence::{self, FenceOptions};
use halfmsg_producer::testkit::{self, Fault, KitError, TestKit, TestStore};
use halfmsg_producer::{
    HalfMessage, ListenerResult, LocalTransactionState, Message, ProducerConfig, TransactionId,
    TransactionListener, TransactionProducer,
};
use sea_orm::{ConnectionTrait, DatabaseConnection, DbBackend, Statement};
use tempfile::TempDir;

use LocalTransactionState::{Commit, Rollback, Unknown};

/// Long enough for a busy machine; only a failing test waits as long.
const PATIENCE: Duration = Duration::from_secs(60);
/// On the clock of a kit, where it takes no time.
const CHECK_AFTER: Duration = Duration::from_secs(600);
/// What keeps the fence has the time of its check, which is real.
const FENCE: FenceOptions =
    FenceOptions { lock_timeout: PATIENCE, budget: PATIENCE.saturating_mul(2) };

fn config() -> ProducerConfig {
    ProducerConfig {
        local_deadline: PATIENCE,
        check_deadline: 3 * PATIENCE,
        check_after: CHECK_AFTER,
        ..testkit::config("app")
    }
}

/// Books one more, behind the fence or without it.
#[derive(Clone)]
struct Bookings {
    db: DatabaseConnection,
    checks: DatabaseConnection,
    fenced: bool,
    _directory: Arc<TempDir>,
}

impl Bookings {
    async fn new(fenced: bool) -> Self {
        let directory = Arc::new(tempfile::tempdir().expect("a temporary directory"));
        let url = format!("sqlite://{}", directory.path().join("a.db").display());
        let patient = DbOptions {
            acquire_timeout: PATIENCE,
            sqlite_busy_timeout: PATIENCE,
            ..DbOptions::default()
        };
        let db = connect(&url, &patient).await.expect("opens");
        let short = DbOptions { sqlite_busy_timeout: Duration::from_millis(100), ..patient };
        let checks = connect(&url, &short).await.expect("opens");
        migrate::<FenceMigrator>(&db).await.expect("migrates");
        db.execute_unprepared("CREATE TABLE booking (id TEXT)").await.expect("a table");
        Self { db, checks, fenced, _directory: directory }
    }

    async fn booked(&self) -> usize {
        let select = Statement::from_string(DbBackend::Sqlite, "SELECT id FROM booking");
        self.db.query_all_raw(select).await.expect("selects").len()
    }

    fn kit(&self, store: Option<TestStore>) -> TestKit {
        let builder = TransactionProducer::builder(config()).listener("book", self.clone());
        match store {
            Some(store) => builder.test_kit_on(store).expect("valid"),
            None => builder.test_kit().expect("valid"),
        }
    }
}

#[async_trait]
impl TransactionListener for Bookings {
    type Arg = ();

    async fn execute_local_transaction(
        &self,
        half: &HalfMessage,
        (): (),
    ) -> ListenerResult<LocalTransactionState> {
        let tx = fence::begin_write(&self.db).await?;
        if self.fenced {
            fence::enter_in_tx(&tx, half.local_transaction_id).await?;
        }
        let id = half.transaction_id.to_string();
        let insert = "INSERT INTO booking VALUES (?)";
        let insert = Statement::from_sql_and_values(DbBackend::Sqlite, insert, [id.into()]);
        tx.execute_raw(insert).await?;
        tx.commit().await?;
        Ok(Commit)
    }

    async fn check_local_transaction(
        &self,
        half: &HalfMessage,
    ) -> ListenerResult<LocalTransactionState> {
        if self.fenced {
            return fence::check_one(&self.checks, half, FENCE).await;
        }
        let id = half.transaction_id.to_string();
        let select = "SELECT id FROM booking WHERE id = ?";
        let select = Statement::from_sql_and_values(DbBackend::Sqlite, select, [id.into()]);
        let found = self.db.query_one_raw(select).await?;
        Ok(if found.is_some() { Commit } else { Rollback })
    }
}

/// Sends one with this fault, starts again after a crash, and lets everything settle.
async fn one(bookings: &Bookings, fault: Option<Fault>) -> (TestKit, Result<(), KitError>) {
    let mut kit = bookings.kit(None);
    fault.into_iter().for_each(|fault| kit.inject(fault));
    let sent = kit.send_in_transaction("book", Message::new("booked", "x"), ()).await.map(|_| ());
    if matches!(sent, Err(KitError::Crashed)) {
        assert!(matches!(kit.settle_all().await, Err(KitError::Crashed)), "{fault:?}");
        kit = bookings.kit(Some(kit.into_store()));
    }
    kit.settle_all().await.expect("settles");
    assert!(kit.open().is_empty() && kit.parked().is_empty(), "{fault:?}");
    (kit, sent)
}

#[tokio::test]
async fn a_fenced_listener_stands_every_fault() {
    let expected = |fault, booked| match fault {
        Fault::PrepareFails | Fault::PrepareUnacknowledged | Fault::CrashAfterHalf => (0, 0),
        Fault::CheckFirst => (0, 0),
        // At which statement it waits first differs from run to run.
        Fault::CrashDuringLocal { .. } => (booked, booked),
        Fault::DeliveredTwice => (1, 2),
        _ => (1, 1),
    };
    for fault in Fault::ALL {
        let bookings = Bookings::new(true).await;
        let (kit, _) = one(&bookings, Some(fault)).await;
        let booked = bookings.booked().await;
        assert_eq!((booked, kit.delivered().len()), expected(fault, booked), "{fault:?}");
        assert_eq!(kit.audit().await.expect("lives"), [], "{fault:?}");
        assert_eq!(kit.conflicts(), usize::from(fault == Fault::ContradictingDecision));
    }
}

#[tokio::test]
async fn dying_at_any_wait_leaves_booking_and_message_in_agreement() {
    let mut crashes = 0;
    for round in 0..48 {
        let (bookings, waits) = (Bookings::new(true).await, 1 + round % 12);
        let (kit, sent) = one(&bookings, Some(Fault::CrashDuringLocal { waits })).await;
        assert_eq!(bookings.booked().await, kit.delivered().len(), "at wait {waits}");
        assert_eq!(kit.audit().await.expect("lives"), [], "at wait {waits}");
        crashes += usize::from(sent.is_err());
    }
    assert!(crashes > 0, "none of 48 local transactions waited for its database");
}

#[tokio::test]
async fn a_listener_without_a_fence_is_found_out() {
    let bookings = Bookings::new(false).await;
    let (kit, sent) = one(&bookings, Some(Fault::CheckFirst)).await;
    assert!(sent.is_ok());
    assert_eq!((bookings.booked().await, kit.delivered().len()), (1, 0));
    let found = kit.audit().await.expect("lives");
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].decided, found[0].answered), (Rollback, Commit));
    assert_eq!(kit.dropped(), [found[0].transaction_id]);
}

#[tokio::test]
async fn a_new_process_delivers_nothing_again() {
    let bookings = Bookings::new(true).await;
    let (kit, _) = one(&bookings, None).await;
    let before = kit.delivered();
    assert_eq!(before.len(), 1);
    let id = before[0].transaction_id.to_string();
    let header = ("halfmsg-transaction-id".to_owned(), Some(id.into()));
    assert_eq!(before[0].headers, [header]);
    let kit = bookings.kit(Some(kit.into_store()));
    kit.settle_all().await.expect("settles");
    assert_eq!(kit.delivered(), before);
}

/// Never knows, and counts how often it was asked.
#[derive(Clone, Default)]
struct Ignorant(Arc<AtomicU32>);

#[async_trait]
impl TransactionListener for Ignorant {
    type Arg = ();

    async fn execute_local_transaction(
        &self,
        _: &HalfMessage,
        (): (),
    ) -> ListenerResult<LocalTransactionState> {
        Err("a connection was reset".into())
    }

    async fn check_local_transaction(
        &self,
        _: &HalfMessage,
    ) -> ListenerResult<LocalTransactionState> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Ok(Unknown)
    }
}

#[tokio::test]
async fn what_nobody_knows_is_parked_after_as_many_checks_as_allowed() {
    let (ignorant, config) = (Ignorant::default(), config());
    let builder = TransactionProducer::builder(config.clone()).listener("book", ignorant.clone());
    let kit = builder.test_kit().expect("valid");
    let sent = kit.send_in_transaction("book", Message::new("booked", "x"), ()).await;
    let sent = sent.expect("stored");
    assert_eq!((sent.state, sent.decision_recorded), (Unknown, false));
    assert_eq!(kit.open(), [sent.transaction_id]);
    let settled = kit.settle_all().await.expect("settles");
    // The first check is the one that followed the local transaction at once.
    assert_eq!(ignorant.0.load(Ordering::Relaxed), config.max_checks);
    assert_eq!(settled.checks, 14);
    assert!(settled.took > Duration::from_secs(1_800), "{settled:?}");
    let parked = kit.parked();
    assert_eq!((parked[0].transaction_id, parked[0].cause), (sent.transaction_id, "max_checks"));
}

#[tokio::test]
async fn several_share_a_decision_that_comes_in_time_or_from_the_check() {
    let bookings = Bookings::new(true).await;
    let kit = bookings.kit(None);
    let messages = || vec![Message::new("a", "1").key("k"), Message::new("b", "2").key("l")];
    let several = kit.begin_several("book", messages()).await.expect("stored");
    assert_eq!(several.halves().len(), 2);
    assert_eq!(kit.open().len(), 2);
    assert!(several.commit().await.expect("lives"));
    assert_eq!(kit.delivered().len(), 2);
    let left = kit.begin_several("book", messages()).await.expect("stored");
    drop(left);
    let second = Duration::from_secs(1);
    assert_eq!(kit.advance(CHECK_AFTER - second).await.expect("lives"), 0);
    assert_eq!(kit.open().len(), 2);
    assert_eq!(kit.advance(second).await.expect("lives"), 2);
    assert_eq!((kit.delivered().len(), kit.dropped().len()), (2, 2));
}

#[tokio::test]
async fn several_that_are_prepared_again_after_a_restart_are_the_same_messages() {
    let bookings = Bookings::new(true).await;
    let kit = bookings.kit(None);
    let ids: Vec<TransactionId> = (0..8).map(|_| kit.new_transaction_id()).collect();
    // With a key and without; in whatever order.
    let message = |at: usize| {
        let message = Message::new("booked", at.to_string()).id(ids[at]);
        if at.is_multiple_of(2) { message.key(at.to_string()) } else { message }
    };
    let first = kit.begin_several("book", (0..8).map(message).collect()).await.expect("stored");
    let local = first.id();
    drop(first);
    // Another message is none of them, whatever its id.
    let kit = bookings.kit(Some(kit.into_store()));
    let other = Message::new("booked", "another").key("0").id(ids[0]);
    let other = kit.begin("book", other).await.expect("stored");
    assert!(other.commit().await.expect("lives"));
    assert_eq!((kit.delivered().len(), kit.open().len()), (0, ids.len()));
    let kit = bookings.kit(Some(kit.into_store()));
    let again = kit.begin_several("book", (0..8).rev().map(message).collect()).await;
    let again = again.expect("stored");
    assert_eq!(again.id(), local, "one local transaction, one fence");
    assert!(again.commit().await.expect("lives"));
    kit.settle_all().await.expect("settles");
    let mut delivered: Vec<TransactionId> =
        kit.delivered().iter().map(|message| message.transaction_id).collect();
    delivered.sort_unstable();
    assert_eq!(delivered, ids, "each once");
    assert!(kit.open().is_empty() && kit.dropped().is_empty());
}

/// What is prepared again may have run: that it is stored in part says nothing of the first.
#[tokio::test]
async fn several_that_are_prepared_again_in_part_leave_the_first_to_their_check() {
    let bookings = Bookings::new(true).await;
    let kit = bookings.kit(None);
    let ids = [kit.new_transaction_id(), kit.new_transaction_id()];
    let messages = || ids.map(|id| Message::new("booked", "x").id(id)).to_vec();
    let first = kit.begin_several("book", messages()).await.expect("stored");
    let local = bookings.execute_local_transaction(&first.halves()[0], ()).await;
    assert_eq!(local.expect("books"), Commit);
    // It dies before the decision. The second message cannot be stored after the restart.
    drop(first);
    let kit = bookings.kit(Some(kit.into_store()));
    let other = kit.begin("book", Message::new("booked", "another").id(ids[1])).await;
    drop(other.expect("stored"));
    assert!(kit.begin_several("book", messages()).await.is_err());
    kit.settle_all().await.expect("settles");
    let mut delivered: Vec<TransactionId> =
        kit.delivered().iter().map(|message| message.transaction_id).collect();
    delivered.sort_unstable();
    assert_eq!((delivered, kit.dropped()), (ids.to_vec(), Vec::new()));
}

#[tokio::test]
async fn refuses_what_the_producer_refuses() {
    let kit = Bookings::new(true).await.kit(None);
    let reserved = Message::new("t", "x").header("halfmsg", "y");
    assert!(matches!(kit.begin("book", reserved).await, Err(KitError::Prepare(_))));
    assert!(matches!(kit.begin("cook", Message::new("t", "x")).await, Err(KitError::Prepare(_))));
    let wrong = kit.send_in_transaction("book", Message::new("t", "x"), 7_u8).await;
    assert!(wrong.is_err_and(|error| error.to_string().contains("takes a ()")));
    assert!(kit.begin_several("book", Vec::new()).await.is_err());
    assert!(kit.open().is_empty());
}

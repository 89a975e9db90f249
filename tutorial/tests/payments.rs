//! What must hold, whatever fails.

use anyhow::{Context, Result};
use halfmsg_consumer::testkit::{ConsumerKit, Counts, Crash, config as consumer_config, database};
use halfmsg_producer::ProducerBuilder;
use halfmsg_producer::testkit::{Delivered, Fault, KitError, config as producer_config};
use payments::payment::{PURPOSE, Payment, Payments, producer};
use payments::{book, migrate};
use sea_orm::{ConnectionTrait, DatabaseConnection, DbBackend, Statement};

/// A database in memory, where ann has 150.
async fn with_ann() -> Result<DatabaseConnection> {
    let db = database().await?;
    migrate(&db).await?;
    db.execute_unprepared("INSERT INTO account VALUES ('ann', 150)").await?;
    Ok(db)
}

/// The process, started for the first time or again.
fn start(db: &DatabaseConnection) -> ProducerBuilder {
    let payments = Payments { db: db.clone(), checks: db.clone() };
    producer(producer_config("payments"), payments)
}

fn of_ann(cents: i64) -> Payment {
    Payment { number: "p-1".into(), account: "ann".into(), cents }
}

async fn number(db: &DatabaseConnection, select: &str) -> Result<i64> {
    let select = Statement::from_string(DbBackend::Sqlite, select);
    let row = db.query_one_raw(select).await?.context("a row")?;
    Ok(row.try_get_by_index(0)?)
}

/// Hands over what the producer has delivered.
async fn deliver(kit: &ConsumerKit, messages: Vec<Delivered>) -> Counts {
    let received = |one: Delivered| kit.received(one.topic, one.key, one.headers, one.payload);
    let batch: Vec<_> = messages.into_iter().map(received).collect();
    kit.deliver(&batch).await
}

#[tokio::test]
async fn debit_and_booking_agree_whatever_fails() -> Result<()> {
    for fault in Fault::ALL {
        let db = with_ann().await?;
        let mut kit = start(&db).test_kit()?;
        kit.inject(fault);
        let payment = of_ann(100);
        let sent = kit.send_in_transaction(PURPOSE, payment.message()?, payment).await;
        if matches!(sent, Err(KitError::Crashed)) {
            kit = start(&db).test_kit_on(kit.into_store())?;
        }
        kit.settle_all().await?;
        assert!(kit.open().is_empty() && kit.parked().is_empty(), "{fault:?}");
        assert_eq!(kit.audit().await?, [], "{fault:?}");

        let book = book::consumer(consumer_config(db.clone(), "book")).test_kit()?;
        deliver(&book, kit.delivered()).await;
        let debited = 150 - number(&db, "SELECT cents FROM account").await?;
        let booked = number(&db, "SELECT COALESCE(SUM(cents), 0) FROM booking").await?;
        assert_eq!(debited, booked, "{fault:?}");
    }
    Ok(())
}

#[tokio::test]
async fn who_has_too_little_pays_nothing() -> Result<()> {
    let db = with_ann().await?;
    let kit = start(&db).test_kit()?;
    let payment = of_ann(200);
    kit.send_in_transaction(PURPOSE, payment.message()?, payment).await?;
    kit.settle_all().await?;
    assert_eq!((kit.delivered().len(), kit.dropped().len()), (0, 1));
    assert_eq!(number(&db, "SELECT cents FROM account").await?, 150);
    Ok(())
}

#[tokio::test]
async fn a_payment_is_booked_once_and_garbage_is_a_dead_letter() -> Result<()> {
    for crash in [Crash::BeforeCommit, Crash::AfterCommit] {
        let db = with_ann().await?;
        let kit = book::consumer(consumer_config(db.clone(), "book")).test_kit()?;
        let paid = [kit.message("payments.paid", serde_json::to_vec(&of_ann(100))?)];
        kit.deliver_and_crash(&paid, crash).await?;
        kit.deliver(&paid).await;
        kit.deliver(&paid).await;
        assert_eq!(number(&db, "SELECT COUNT(*) FROM booking").await?, 1, "{crash:?}");

        let garbage = [kit.message("payments.paid", "not a payment")];
        assert_eq!(kit.deliver(&garbage).await, Counts { dead: 1, ..Counts::default() });
    }
    Ok(())
}

//! One payment, from the debit to the booking.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use halfmsg_consumer::ConsumerConfig;
use halfmsg_db::{DbOptions, connect};
use halfmsg_kafka::EmbeddedBroker;
use halfmsg_producer::ProducerConfig;
use payments::payment::{PURPOSE, Payment, Payments, TOPIC, producer};
use payments::{book, migrate};
use sea_orm::ConnectionTrait;
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> Result<()> {
    let broker = EmbeddedBroker::start()?;
    let config = ProducerConfig::new(broker.config(), "payments", "payments");
    for topic in [&config.store_topic(), &config.parked_topic(), TOPIC] {
        broker.create_topic(topic, 4)?;
    }
    let directory = tempfile::tempdir()?;
    let url = format!("sqlite://{}", directory.path().join("payments.db").display());
    let db = connect(&url, &DbOptions::default()).await?;
    let busy = Duration::from_millis(100);
    let short = DbOptions { sqlite_busy_timeout: busy, ..DbOptions::default() };
    let checks = connect(&url, &short).await?;
    migrate(&db).await?;
    db.execute_unprepared("INSERT INTO account VALUES ('ann', 150)").await?;

    let producer = producer(config, Payments { db: db.clone(), checks }).start().await?;
    let consumer = book::consumer(ConsumerConfig::new(broker.config(), db, "book")).build()?;
    let (booked, shutdown) = (consumer.metrics(), CancellationToken::new());
    let consuming = tokio::spawn(consumer.run(shutdown.clone()));

    let payment = Payment { number: "p-1".into(), account: "ann".into(), cents: 100 };
    let sent = producer.send_in_transaction(PURPOSE, payment.message()?, payment).await?;
    println!("{}: {:?}", sent.transaction_id, sent.state);
    let until = Instant::now() + Duration::from_secs(60);
    while booked.messages() == 0 {
        ensure!(Instant::now() < until, "not booked within a minute");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    println!("booked");
    producer.shutdown().await;
    shutdown.cancel();
    Ok(consuming.await??)
}

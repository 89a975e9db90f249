//! Starts and stops the service.

use std::time::Duration;

use anyhow::Context;
use axum::Router;
use halfmsg_consumer::{Consumer, ConsumerConfig, KeyOrder};
use halfmsg_migrations::{StockMigrator, migrate};
use halfmsg_service_kit::{Frame, db, process, shutdown};
use sea_orm::DatabaseConnection;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::http::{Api, routes};
use crate::metrics::StockMetrics;
use crate::restore::Restorer;
use crate::settings::{Config, NAME, Settings};
use crate::store::StockStore;

/// Requests that run when the service stops, and after them the database's connections.
const DRAIN_DEADLINE: Duration = Duration::from_secs(4);
/// At most this many messages are restored in one transaction: each locks up to 100 products.
const MAX_BATCH: usize = 100;

/// The whole program: the log, the signals, and [`run`].
///
/// # Errors
/// Why it cannot start or go on.
pub async fn main(settings: Settings) -> anyhow::Result<()> {
    process::run(NAME, &settings.common.clone(), |shutdown| run(settings, shutdown)).await
}

/// Runs the service until the token is cancelled.
///
/// # Errors
/// Settings, database or topic that keep it from starting, in words for the operator.
pub async fn run(settings: Settings, shutdown: CancellationToken) -> anyhow::Result<()> {
    let config = settings.validate()?;
    let address = config.common.listen;
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address}: change HALFMSG_LISTEN"))?;
    // It may wait for the database, and must be stoppable meanwhile.
    let service = tokio::select! {
        () = shutdown.cancelled() => return Ok(()),
        started = Service::start(config) => started?,
    };
    tracing::info!("{NAME} listens on http://{}", listener.local_addr().unwrap_or(address));
    service.serve(listener, shutdown).await
}

/// The parts, before and while they serve.
pub struct Service {
    consumer: Consumer,
    database: DatabaseConnection,
    store: StockStore,
    router: Router,
}

impl Service {
    /// Connects, migrates, seeds. Kafka is not needed yet: the consumer waits for it.
    ///
    /// # Errors
    /// A database that keeps it from starting.
    pub async fn start(config: Config) -> anyhow::Result<Self> {
        let common = &config.common;
        let database = db::connect(&common.database_url, &common.db).await?;
        migrate::<StockMigrator>(&database).await.context("the schema cannot be brought up")?;
        let store = StockStore::new(database.clone());
        let seeded = store.seed(&config.seed).await.context("the stock cannot be seeded")?;
        if !seeded.is_empty() {
            tracing::info!("seeded {}", seeded.join(", "));
        }
        let metrics = StockMetrics::default();
        let consumer = Consumer::builder(consumer_config(&config, &database))
            .subscribe(&config.rollback_topic, Restorer::new(metrics.clone()))
            .build()?;
        let router = frame(&consumer, &metrics, &store).wrap(routes(Api {
            store: store.clone(),
            dead_letters: consumer.dead_letters(),
            token: common.admin_token.clone(),
            faults: common.faults,
            metrics,
        }));
        Ok(Self { consumer, database, store, router })
    }

    /// Everything that it answers.
    pub fn router(&self) -> Router {
        self.router.clone()
    }

    /// Its stock.
    pub fn store(&self) -> &StockStore {
        &self.store
    }

    /// Serves and consumes until the token is cancelled, then ends what runs, within bounds.
    /// Whichever part ends first, for whatever reason, ends the other.
    ///
    /// # Errors
    /// When the listener fails, or the topic cannot be used.
    pub async fn serve(
        self,
        listener: TcpListener,
        shutdown: CancellationToken,
    ) -> anyhow::Result<()> {
        let stop = shutdown.child_token();
        let serving = async {
            let served = shutdown::serve(listener, self.router, stop.clone(), DRAIN_DEADLINE).await;
            stop.cancel();
            served.context("serving ended")
        };
        let consuming = async {
            let consumed = self.consumer.run(stop.clone()).await;
            stop.cancel();
            consumed.context("consuming ended")
        };
        let (served, consumed) = tokio::join!(serving, consuming);
        if tokio::time::timeout(DRAIN_DEADLINE, self.database.close()).await.is_err() {
            tracing::warn!("database connections were still in use");
        }
        served.and(consumed)
    }
}

fn consumer_config(config: &Config, database: &DatabaseConnection) -> ConsumerConfig {
    let common = &config.common;
    ConsumerConfig {
        instance_id: common.instance_id.clone(),
        topic: config.topic.clone(),
        max_batch: MAX_BATCH,
        // Several transactions would wait for the same products.
        concurrency: 1,
        // A restore needs no order: the barrier decides.
        key_order: KeyOrder::GiveUp,
        retry: config.retry.clone(),
        inbox_retention: config.inbox_retention,
        ..ConsumerConfig::new(common.kafka.clone(), database.clone(), &config.group)
    }
}

fn frame(consumer: &Consumer, metrics: &StockMetrics, store: &StockStore) -> Frame {
    let (health, store) = (consumer.health(), store.clone());
    let mut frame = Frame::new().ready(move || {
        let (health, store) = (health.clone(), store.clone());
        async move {
            store.ping().await.map_err(|error| error.to_string())?;
            health.check()
        }
    });
    metrics.register(frame.registry());
    consumer.metrics().register(frame.registry());
    frame
}

//! Starts and stops the service.

use std::time::Duration;

use anyhow::Context;
use axum::Router;
use halfmsg_migrations::{OrderMigrator, migrate};
use halfmsg_producer::TransactionProducer;
use halfmsg_service_kit::{Frame, db, process, shutdown};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::housekeeping;
use crate::http::{Api, routes};
use crate::listener::OrderListener;
use crate::metrics::OrderMetrics;
use crate::payload::PURPOSE;
use crate::place::{Parts, Placer};
use crate::settings::{Config, NAME, Settings};
use crate::store::OrderStore;

/// Requests that run when the service stops: they may take as long as a local transaction.
const DRAIN_DEADLINE: Duration = Duration::from_secs(4);
/// What goes on after the answers.
const TASKS_DEADLINE: Duration = Duration::from_secs(1);

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
/// Settings, database or Kafka that keep it from starting, in words for the operator.
pub async fn run(settings: Settings, shutdown: CancellationToken) -> anyhow::Result<()> {
    let config = settings.validate()?;
    let address = config.common.listen;
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address}: change HALFMSG_LISTEN"))?;
    // It may wait for the database and for Kafka, and must be stoppable meanwhile.
    let service = tokio::select! {
        () = shutdown.cancelled() => return Ok(()),
        started = Service::start(config) => started?,
    };
    tracing::info!("{NAME} listens on http://{}", listener.local_addr().unwrap_or(address));
    service.serve(listener, shutdown).await
}

/// The running parts, before and while they serve.
pub struct Service {
    producer: TransactionProducer,
    placer: Placer,
    store: OrderStore,
    router: Router,
}

impl Service {
    /// Connects, migrates, starts the producer. Cancelled, nothing is left running but what ends
    /// with the process.
    ///
    /// # Errors
    /// Database or Kafka that keep it from starting.
    pub async fn start(config: Config) -> anyhow::Result<Self> {
        let common = &config.common;
        let requests = db::connect(&common.database_url, &common.db).await?;
        migrate::<OrderMigrator>(&requests).await.context("the schema cannot be brought up")?;
        let checks = db::connect(&common.database_url, &config.check_db).await?;
        let store = OrderStore::new(requests, checks, config.store);
        let listener = OrderListener::new(store.clone(), config.stock, config.local);
        let producer = TransactionProducer::builder(config.producer)
            .listener(PURPOSE, listener.clone())
            .start()
            .await?;
        let metrics = OrderMetrics::default();
        let (ready_store, ready_producer) = (store.clone(), producer.clone());
        let mut frame = Frame::new().ready(move || {
            let (store, producer) = (ready_store.clone(), ready_producer.clone());
            async move {
                store.ping().await.map_err(|error| error.to_string())?;
                producer.health()
            }
        });
        metrics.register(frame.registry());
        producer.register_metrics(frame.registry());
        let placer = Placer::new(Parts {
            producer: producer.clone(),
            store: store.clone(),
            listener,
            topic: config.rollback_topic,
            limits: config.place,
            metrics,
        });
        let router = frame.wrap(routes(Api {
            placer: placer.clone(),
            store: store.clone(),
            admin: producer.admin(),
            token: common.admin_token.clone(),
            faults: common.faults,
        }));
        Ok(Self { producer, placer, store, router })
    }

    /// Everything that it answers.
    pub fn router(&self) -> Router {
        self.router.clone()
    }

    /// Its orders.
    pub fn store(&self) -> &OrderStore {
        &self.store
    }

    /// Serves until the token is cancelled, then ends what runs, within bounds.
    ///
    /// # Errors
    /// When the listener fails.
    pub async fn serve(
        self,
        listener: TcpListener,
        shutdown: CancellationToken,
    ) -> anyhow::Result<()> {
        let cleaning = tokio::spawn(housekeeping::run(self.store.clone(), shutdown.clone()));
        let served =
            shutdown::serve(listener, self.router.clone(), shutdown.clone(), DRAIN_DEADLINE).await;
        shutdown.cancel();
        self.stop().await;
        if let Err(error) = cleaning.await {
            tracing::warn!(%error, "forgetting old keys ended early");
        }
        served.context("serving ended")
    }

    /// Ends what runs, within bounds.
    pub async fn stop(&self) {
        self.placer.drain(TASKS_DEADLINE).await;
        self.producer.shutdown().await;
    }
}

//! Starts and stops the service.

use std::time::Duration;

use anyhow::Context;
use axum::Router;
use halfmsg_consumer::{
    Consumer, ConsumerConfig, ConsumerError, ConsumerFamilies, Health, KeyOrder,
};
use halfmsg_migrations::{StockMigrator, migrate};
use halfmsg_service_kit::{Frame, Letters, db, process, shutdown};
use sea_orm::DatabaseConnection;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::deduct::Deducter;
use crate::group_commit::GroupCommit;
use crate::http::{Api, routes};
use crate::metrics::StockMetrics;
use crate::restore::Restorer;
use crate::settings::{Config, NAME, Settings};
use crate::store::StockStore;

/// Requests that run when the service stops, and after them the database's connections.
const DRAIN_DEADLINE: Duration = Duration::from_secs(4);
/// Messages that are restored, or deducted, in one transaction, if nothing else is set.
pub const DEFAULT_MESSAGES: usize = 500;
/// The most messages of a transaction: each locks up to 100 products.
pub const MAX_MESSAGES: usize = 5_000;

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
    consumers: Consumers,
    database: DatabaseConnection,
    store: StockStore,
    deductions: GroupCommit,
    router: Router,
}

impl Service {
    /// Connects, migrates, seeds. Kafka is not needed yet: the consumer waits for it.
    ///
    /// # Errors
    /// A database that keeps it from starting.
    pub async fn start(config: Config) -> anyhow::Result<Self> {
        let common = &config.common;
        config.delivery.tell();
        let database = db::connect(&common.database_url, &common.db).await?;
        migrate::<StockMigrator>(&database).await.context("the schema cannot be brought up")?;
        let store = StockStore::new(database.clone());
        let seeded = store.seed(&config.seed).await.context("the stock cannot be seeded")?;
        if !seeded.is_empty() {
            tracing::info!("seeded {}", seeded.join(", "));
        }
        let metrics = StockMetrics::default();
        let consumers = Consumers::build(&config, &database, &metrics)?;
        let deductions = GroupCommit::new(store.clone(), metrics.clone(), config.deduct_together);
        let router = frame(&consumers, &metrics, &store).wrap(routes(Api {
            store: store.clone(),
            deductions: deductions.clone(),
            dead_letters: Letters::of([
                consumers.restores.dead_letters(),
                consumers.deductions.dead_letters(),
            ]),
            token: common.admin_token.clone(),
            faults: common.faults,
            metrics,
        }));
        Ok(Self { consumers, database, store, deductions, router })
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
    /// When the listener fails, or a topic cannot be used.
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
            let consumed = self.consumers.run(&stop).await;
            consumed.context("consuming ended")
        };
        let (served, consumed) = tokio::join!(serving, consuming);
        let closing = async {
            self.deductions.drain().await;
            self.database.close().await
        };
        if tokio::time::timeout(DRAIN_DEADLINE, closing).await.is_err() {
            tracing::warn!("database connections were still in use");
        }
        served.and(consumed)
    }
}

/// Two, each with transactions of its own: a batch enters all its barriers before it locks stock,
/// which a batch of both topics could not.
struct Consumers {
    restores: Consumer,
    deductions: Consumer,
}

impl Consumers {
    fn build(
        config: &Config,
        database: &DatabaseConnection,
        metrics: &StockMetrics,
    ) -> Result<Self, ConsumerError> {
        let store = StockStore::new(database.clone());
        let restorer = Restorer::new(store.clone(), metrics.clone());
        let subscriber = format!("{}.deductions", config.group);
        let deducter = Deducter {
            outbound_topic: config.outbound_topic.clone(),
            subscriber: subscriber.clone(),
            store,
            metrics: metrics.clone(),
        };
        let families = ConsumerFamilies::default();
        Ok(Self {
            restores: Consumer::builder(consumer_config(config, database, &config.group))
                .metrics(families.of(&config.group))
                .subscribe(&config.rollback_topic, restorer)
                .build()?,
            deductions: Consumer::builder(consumer_config(config, database, &subscriber))
                .metrics(families.of(&subscriber))
                .subscribe(&config.created_topic, deducter)
                .build()?,
        })
    }

    /// Until `stop`, or until one of them cannot go on.
    async fn run(self, stop: &CancellationToken) -> Result<(), ConsumerError> {
        let until_one_ends = async |consumer: Consumer| {
            let consumed = consumer.run(stop.clone()).await;
            stop.cancel();
            consumed
        };
        let (restored, deducted) =
            tokio::join!(until_one_ends(self.restores), until_one_ends(self.deductions));
        restored.and(deducted)
    }
}

fn consumer_config(
    config: &Config,
    database: &DatabaseConnection,
    subscriber: &str,
) -> ConsumerConfig {
    let common = &config.common;
    config.delivery.of(ConsumerConfig {
        instance_id: common.instance_id.clone(),
        max_batch: config.messages_together,
        // Several transactions would wait for the same products.
        concurrency: 1,
        retry_concurrency: 1,
        // Neither needs an order: the barrier decides.
        key_order: KeyOrder::GiveUp,
        ..ConsumerConfig::new(common.kafka.clone(), database.clone(), subscriber)
    })
}

fn frame(consumers: &Consumers, metrics: &StockMetrics, store: &StockStore) -> Frame {
    let Consumers { restores, deductions } = consumers;
    let healths = [restores.health(), deductions.health()];
    let store = store.clone();
    let mut frame = Frame::new().ready(move || {
        let (healths, store) = (healths.clone(), store.clone());
        async move {
            store.ping().await.map_err(|error| error.to_string())?;
            healths.iter().try_for_each(Health::check)
        }
    });
    metrics.register(frame.registry());
    // With those of the deductions, which are of the same families.
    restores.metrics().register(frame.registry());
    frame
}

//! Starts and stops the service.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use halfmsg_consumer::{Consumer, ConsumerConfig, ConsumerFamilies, KeyOrder};
use halfmsg_migrations::{OrderMigrator, migrate};
use halfmsg_producer::TransactionProducer;
use halfmsg_service_kit::{Frame, Letters, db, process, shutdown};
use sea_orm::DatabaseConnection;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::answers::AnswerHandler;
use crate::cancel::{self, CancelListener, Canceller};
use crate::console::Desk;
use crate::events::Hub;
use crate::housekeeping;
use crate::http::{Api, routes};
use crate::listener::OrderListener;
use crate::metrics::OrderMetrics;
use crate::payload::{CANCEL_PURPOSE, CREATED_PURPOSE, PURPOSE};
use crate::place::{Parts, Placer};
use crate::report::Reporter;
use crate::report::store::ReportStore;
use crate::report::trouble::Trouble;
use crate::saga::SagaListener;
use crate::settings::{Config, NAME, Settings};
use crate::store::OrderStore;

/// Requests that run when the service stops: they may take as long as a local transaction.
const DRAIN_DEADLINE: Duration = Duration::from_secs(4);
/// Answers of stock-svc in one transaction.
const MAX_BATCH: usize = 100;
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
    events: Hub,
    router: Router,
    answers: Consumer,
    reporter: Reporter,
    metrics: OrderMetrics,
    stuck_after: Duration,
}

impl Service {
    /// Connects, migrates, starts the producer. Cancelled, nothing is left running but what ends
    /// with the process.
    ///
    /// # Errors
    /// Database or Kafka that keep it from starting.
    pub async fn start(config: Config) -> anyhow::Result<Self> {
        let common = &config.common;
        config.delivery.tell();
        let requests = db::connect(&common.database_url, &common.db).await?;
        migrate::<OrderMigrator>(&requests).await.context("the schema cannot be brought up")?;
        let checks = db::connect(&common.database_url, &config.check_db).await?;
        let events = Hub::default();
        let store = OrderStore::new(requests.clone(), checks, config.store).watched(events.clone());
        let desk = Desk::new(config.stock.clone());
        let metrics = OrderMetrics::default();
        let families = ConsumerFamilies::default();
        let consumer = consumer_config(&config, &requests, "answers");
        let counted = families.of(&consumer.subscriber);
        let answers = Consumer::builder(consumer)
            .metrics(counted)
            .subscribe(&config.topics.outbound, AnswerHandler::new(metrics.clone(), events.clone()))
            .build()?;
        let report = ReportStore::new(requests.clone());
        let letters = Letters::of([answers.dead_letters()]);
        let reporter = Reporter {
            letters: letters.clone(),
            consumer: consumer_config(&config, &requests, "report"),
            families,
            topics: config.topics.clone(),
            store: report.clone(),
            metrics: metrics.clone(),
            trouble: Trouble::default(),
        };
        let listener = OrderListener::new(store.clone(), config.stock.clone(), config.local);
        let saga = SagaListener::new(store.clone());
        let producer = TransactionProducer::builder(config.producer.clone())
            .listener(PURPOSE, listener.clone())
            .listener(CREATED_PURPOSE, saga.clone())
            .listener(CANCEL_PURPOSE, CancelListener::new(store.clone()))
            .observer(events.clone())
            .start()
            .await?;
        let mut frame = frame(&store, &producer, &answers, reporter.trouble.clone());
        metrics.register(frame.registry());
        events.register(frame.registry());
        let placer = Placer::new(Parts {
            producer: producer.clone(),
            store: store.clone(),
            listener,
            saga,
            stock: config.stock.clone(),
            stock_deadline: config.local.stock,
            topics: config.topics.clone(),
            limits: config.place,
            metrics: metrics.clone(),
        });
        let canceller = Arc::new(Canceller::new(cancel::Parts {
            producer: producer.clone(),
            store: store.clone(),
            placer: placer.clone(),
            topic: config.topics.rollback.clone(),
            answer: config.place.answer,
            metrics: metrics.clone(),
        }));
        let router = frame.wrap(routes(Api {
            placer: placer.clone(),
            canceller,
            report,
            store: store.clone(),
            admin: producer.admin(),
            dead_letters: letters,
            token: common.admin_token.clone(),
            faults: common.faults,
            events: events.clone(),
            desk,
        }));
        let stuck_after = config.stuck_after;
        Ok(Self {
            producer,
            placer,
            store,
            events,
            router,
            answers,
            reporter,
            metrics,
            stuck_after,
        })
    }

    /// Everything that it answers.
    pub fn router(&self) -> Router {
        self.router.clone()
    }

    /// Its orders.
    pub fn store(&self) -> &OrderStore {
        &self.store
    }

    /// Serves and consumes until the token is cancelled, then ends what runs, within bounds.
    ///
    /// # Errors
    /// When the listener fails, or the topic of answers cannot be used.
    pub async fn serve(
        self,
        listener: TcpListener,
        shutdown: CancellationToken,
    ) -> anyhow::Result<()> {
        let Self {
            producer,
            placer,
            store,
            events,
            router,
            answers,
            reporter,
            metrics,
            stuck_after,
        } = self;
        let stop = shutdown.child_token();
        let beside = [
            tokio::spawn(housekeeping::run(store.clone(), stop.clone())),
            tokio::spawn(housekeeping::count_stuck(store, metrics, stuck_after, stop.clone())),
            tokio::spawn(reporter.run(stop.clone())),
            tokio::spawn(close(events, stop.clone())),
        ];
        let serving = async {
            let served = shutdown::serve(listener, router, stop.clone(), DRAIN_DEADLINE).await;
            stop.cancel();
            served.context("serving ended")
        };
        let consuming = async {
            let consumed = answers.run(stop.clone()).await;
            stop.cancel();
            consumed.context("consuming the answers of stock-svc ended")
        };
        let (served, consumed) = tokio::join!(serving, consuming);
        stop_producing(&placer, &producer).await;
        for task in beside {
            if let Err(error) = task.await {
                tracing::warn!(%error, "a task in the background ended early");
            }
        }
        served.and(consumed)
    }

    /// Ends what runs, within bounds, where [`Service::serve`] was not called.
    pub async fn stop(&self) {
        stop_producing(&self.placer, &self.producer).await;
    }
}

async fn stop_producing(placer: &Placer, producer: &TransactionProducer) {
    placer.drain(TASKS_DEADLINE).await;
    producer.shutdown().await;
}

/// Streams have no end of their own, and would be waited for.
async fn close(events: Hub, stop: CancellationToken) {
    stop.cancelled().await;
    events.close();
}

/// Its groups lie under the names that its topics have.
fn consumer_config(config: &Config, database: &DatabaseConnection, name: &str) -> ConsumerConfig {
    let (common, producer) = (&config.common, &config.producer);
    let subscriber = format!("{}.{}.{name}", producer.topic_prefix, producer.group);
    let settings = ConsumerConfig {
        instance_id: common.instance_id.clone(),
        max_batch: MAX_BATCH,
        // One connection each: requests need the others.
        concurrency: 1,
        retry_concurrency: 1,
        // What each event says stands for itself.
        key_order: KeyOrder::GiveUp,
        ..ConsumerConfig::new(common.kafka.clone(), database.clone(), subscriber)
    };
    config.delivery.of(settings)
}

fn frame(
    store: &OrderStore,
    producer: &TransactionProducer,
    answers: &Consumer,
    report: Trouble,
) -> Frame {
    let (ready_store, ready_producer) = (store.clone(), producer.clone());
    let health = answers.health();
    let frame = Frame::new().ready(move || {
        let (store, producer) = (ready_store.clone(), ready_producer.clone());
        let health = health.clone();
        async move {
            store.ping().await.map_err(|error| error.to_string())?;
            producer.health()?;
            health.check()
        }
    });
    let told = producer.clone();
    let mut frame = frame.warnings(move || [told.warnings(), report.warnings()].concat());
    producer.register_metrics(frame.registry());
    answers.metrics().register(frame.registry());
    frame
}

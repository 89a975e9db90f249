//! Builds a producer: topics, clients, the resolver's thread.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admin::desk::{ACTS_AT_ONCE, LOOKS_AT_ONCE};
use crate::bodies::Bodies;
use crate::checker::Checker;
use crate::config::{ProducerConfig, validate_name};
use crate::error::StartError;
use crate::life::Life;
use crate::listener::{ErasedListener, TransactionListener, erase};
use crate::log::StoreLog;
use crate::metrics::Metrics;
use crate::observe::LifeObserver;
use crate::partition::Partitioner;
use crate::producer::{Inner, TransactionProducer};
use crate::resolver::{Parts, Resolver};
use crate::shared::Shared;
use crate::targets::Targets;
use crate::used::UsedIds;
use crate::{owner, topics};

/// Between two looks at the broker for [`TransactionProducer::health`].
const PROBE_INTERVAL: Duration = Duration::from_secs(2);

/// Collects listeners, then starts.
pub struct ProducerBuilder {
    pub(crate) config: ProducerConfig,
    pub(crate) listeners: HashMap<String, Arc<dyn ErasedListener>>,
    pub(crate) observer: Option<Arc<dyn LifeObserver>>,
}

impl ProducerBuilder {
    /// Registers the listener of a purpose: a kind of local transaction. A second one for the
    /// same purpose replaces the first.
    #[must_use]
    pub fn listener(
        mut self,
        purpose: impl Into<String>,
        listener: impl TransactionListener,
    ) -> Self {
        self.listeners.insert(purpose.into(), erase(listener));
        self
    }

    /// Tells the steps in the lives of half messages to `observer`, which must never block. A second
    /// one replaces the first.
    #[must_use]
    pub fn observer(mut self, observer: impl LifeObserver) -> Self {
        self.observer = Some(Arc::new(observer));
        self
    }

    /// Creates or verifies the topics and starts the resolver's thread. Waits for Kafka up to the
    /// start deadline. Needs a tokio runtime.
    ///
    /// # Errors
    /// [`StartError`]; nothing runs then.
    pub async fn start(self) -> Result<TransactionProducer, StartError> {
        let Self { config, listeners, observer } = self;
        config.validate()?;
        for purpose in listeners.keys() {
            validate_name("purpose", purpose)?;
        }
        topics::ensure(&config).await?;
        owner::claim(&config).await?;
        let timeout = config.store_timeout;
        let max_bytes = topics::store_record_bytes(&config);
        let log = Arc::new(StoreLog::new(&config.kafka, config.store_topic(), timeout, max_bytes)?);
        let partitions = store_partitions(&log, &config).await?;
        let checker = Arc::new(Checker::new(
            config.application.clone(),
            listeners,
            config.check_deadline,
            config.check_concurrency,
        ));
        let shared = Arc::new(Shared::new(partitions));
        let metrics = Metrics::default();
        let life = Life::new(observer);
        let (inputs, receiver) = mpsc::channel();
        let bodies = Arc::new(Bodies::new(&config));
        let targets = Arc::new(Targets::new(Arc::clone(&log)));
        let resolver = Resolver::new(Parts {
            config: config.clone(),
            log: Arc::clone(&log),
            targets: Arc::clone(&targets),
            bodies: Arc::clone(&bodies),
            checker: Arc::clone(&checker),
            shared: Arc::clone(&shared),
            metrics: metrics.clone(),
            life: life.clone(),
            runtime: tokio::runtime::Handle::current(),
            inputs: receiver,
            to_self: inputs.clone(),
            partitions,
        })?;
        let thread = spawn(resolver, Arc::clone(&shared))?;
        let inner = Inner {
            targets,
            bodies,
            places: Arc::new(Semaphore::new(config.max_transactions)),
            looks: Arc::new(Semaphore::new(LOOKS_AT_ONCE)),
            acts: Arc::new(Semaphore::new(ACTS_AT_ONCE)),
            partitioner: Partitioner::new(),
            used: UsedIds::default(),
            partitions,
            log,
            checker,
            shared,
            metrics,
            life,
            inputs,
            tasks: TaskTracker::new(),
            stopping: CancellationToken::new(),
            thread: Mutex::new(Some(thread)),
            config,
        };
        let producer = TransactionProducer { inner: Arc::new(inner) };
        producer.inner.tasks.spawn(probe(Arc::downgrade(&producer.inner)));
        Ok(producer)
    }
}

fn spawn(resolver: Resolver, shared: Arc<Shared>) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name("halfmsg-resolver".into()).spawn(move || {
        struct Ended(Arc<Shared>);
        impl Drop for Ended {
            // Also when the thread panics: health must tell.
            fn drop(&mut self) {
                self.0.resolver_ended();
            }
        }
        let _ended = Ended(shared);
        resolver.run();
    })
}

async fn store_partitions(log: &Arc<StoreLog>, config: &ProducerConfig) -> Result<i32, StartError> {
    let (log, store, deadline) = (Arc::clone(log), config.store_topic(), config.start_deadline);
    let until = Instant::now() + deadline;
    loop {
        let (log, store) = (Arc::clone(&log), store.clone());
        let counted = tokio::task::spawn_blocking(move || {
            log.partition_count(&store, Duration::from_secs(5))
        });
        match counted.await {
            Ok(Ok(count)) => return Ok(count),
            // A topic that was just created takes a moment to be known everywhere.
            Ok(Err(error)) if Instant::now() < until => {
                tracing::debug!(%error, "looking the store up");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            Ok(Err(error)) => return Err(error.into()),
            Err(_) => return Err(rdkafka::error::KafkaError::Canceled.into()),
        }
    }
}

/// Looks at the broker from time to time, until the producer stops. It must not keep alive a
/// producer whose handles are all dropped.
async fn probe(inner: Weak<Inner>) {
    loop {
        let Some(strong) = inner.upgrade() else { return };
        let log = Arc::clone(&strong.log);
        let (shared, stopping) = (Arc::clone(&strong.shared), strong.stopping.clone());
        drop(strong);
        let first = Arc::clone(&log);
        let looked = tokio::task::spawn_blocking(move || first.look_after(PROBE_INTERVAL));
        let looked = tokio::select! {
            () = stopping.cancelled() => return,
            looked = looked => looked,
        };
        let problem = match looked {
            Ok(Ok(partitions)) => {
                shared.count(partitions);
                None
            }
            Ok(Err(error)) => Some(error.to_string()),
            Err(error) => Some(error.to_string()),
        };
        shared.broker(problem);
        let second = Arc::clone(&log);
        let looked = tokio::task::spawn_blocking(move || second.look_after_second(PROBE_INTERVAL));
        tokio::select! {
            () = stopping.cancelled() => return,
            _ = looked => {}
        }
        tokio::select! {
            () = stopping.cancelled() => return,
            () = log.wants_second() => {}
            () = tokio::time::sleep(PROBE_INTERVAL) => {}
        }
    }
}

//! The producer: stores a half message, runs the local transaction, records the decision.

use std::any::Any;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::TransactionId;
use crate::admin::Admin;
use crate::bodies::Bodies;
use crate::builder::ProducerBuilder;
use crate::checker::Checker;
use crate::config::ProducerConfig;
use crate::error::{Invalid, PrepareError};
use crate::life::Life;
use crate::listener::ErasedListener;
use crate::log::StoreLog;
use crate::message::Message;
use crate::metrics::Metrics;
use crate::partition::Partitioner;
use crate::resolver::Input;
use crate::shared::Shared;
use crate::spans;
use crate::targets::Targets;
use crate::transaction::{LocalOutcome, SendResult, Transaction};
use crate::used::UsedIds;

/// What the resolver may take beyond draining: flushing and leaving the group.
const FINISH_MARGIN: Duration = Duration::from_secs(5);
/// Between two looks whether it has ended.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);

pub(crate) struct Inner {
    pub(crate) config: ProducerConfig,
    pub(crate) log: Arc<StoreLog>,
    pub(crate) checker: Arc<Checker>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) metrics: Metrics,
    pub(crate) life: Life,
    pub(crate) inputs: mpsc::Sender<Input>,
    pub(crate) targets: Arc<Targets>,
    pub(crate) bodies: Arc<Bodies>,
    pub(crate) partitioner: Partitioner,
    pub(crate) used: UsedIds,
    pub(crate) partitions: i32,
    pub(crate) places: Arc<Semaphore>,
    /// Looks at the brokers for the views.
    pub(crate) looks: Arc<Semaphore>,
    /// The same for what operators do.
    pub(crate) acts: Arc<Semaphore>,
    pub(crate) tasks: TaskTracker,
    pub(crate) stopping: CancellationToken,
    pub(crate) thread: Mutex<Option<JoinHandle<()>>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.stopping.cancel();
        // The resolver holds a sender itself, so it would never see that nobody else does. It may
        // have ended already.
        let _ = self.inputs.send(Input::Stop);
    }
}

/// What is under way when somebody asks, while the producer lives.
#[derive(Debug)]
struct UnderWay(Weak<Inner>);

impl Collector for UnderWay {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> std::fmt::Result {
        let Some(inner) = self.0.upgrade() else { return Ok(()) };
        let places = inner.config.max_transactions;
        let taken = places.saturating_sub(inner.places.available_permits());
        let gauges = [
            (
                "transactions_under_way",
                "Places taken of those that half messages have until they are decided",
                taken,
            ),
            (
                "store_queue_records",
                "Records for the store that its clients hold and the broker has not acknowledged",
                inner.log.under_way(),
            ),
        ];
        for (name, help, value) in gauges {
            let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            let encoder = encoder.encode_descriptor(name, help, None, gauge.metric_type())?;
            gauge.encode(encoder)?;
        }
        Ok(())
    }
}

/// Sends messages together with local transactions. Cheap to clone; all clones are one producer.
///
/// [`TransactionProducer::shutdown`] ends it in good order. When the last clone, transaction and
/// [`Admin`] is dropped without it, the resolver ends by itself in the background.
#[derive(Clone)]
pub struct TransactionProducer {
    pub(crate) inner: Arc<Inner>,
}

impl TransactionProducer {
    /// Begins to build a producer.
    pub fn builder(config: ProducerConfig) -> ProducerBuilder {
        ProducerBuilder { config, listeners: HashMap::new(), observer: None }
    }

    /// A fresh identity.
    pub fn new_transaction_id(&self) -> TransactionId {
        TransactionId::from_uuid(uuid::Uuid::now_v7())
    }

    /// Stores the half message, runs the purpose's local transaction, records the decision.
    ///
    /// If the local transaction fails, panics or takes longer than the local deadline, its
    /// listener's check is asked at once and decides. Dropping the future after the half is stored
    /// leaves the half to the check-back; the local transaction runs to its end.
    ///
    /// # Errors
    /// [`PrepareError`]: the local transaction has not run.
    pub async fn send_in_transaction<A: Any + Send>(
        &self,
        purpose: &str,
        mut message: Message,
        arg: A,
    ) -> Result<SendResult, PrepareError> {
        let listener = self.listener(purpose)?;
        let arg: Box<dyn Any + Send> = Box::new(arg);
        listener
            .takes(arg.as_ref())
            .map_err(|expected| Invalid::WrongArgument { purpose: purpose.to_owned(), expected })?;
        let (half, place) = self.prepare(purpose, &mut message).await?;
        let half = Arc::new(half);
        let mut run = {
            let half = Arc::clone(&half);
            self.inner.tasks.spawn(async move {
                let outcome = spans::local(&half, listener.execute(&half, arg)).await;
                drop(place);
                outcome
            })
        };
        let end = tokio::time::timeout(self.inner.config.local_deadline, &mut run).await;
        let local = LocalOutcome::of(end);
        Ok(self.decide(&half, local).await)
    }

    /// Stores a half message; the caller runs the local transaction and decides.
    ///
    /// # Errors
    /// [`PrepareError`]: do not run the local transaction then.
    pub async fn begin(
        &self,
        purpose: &str,
        mut message: Message,
    ) -> Result<Transaction, PrepareError> {
        if self.inner.checker.listener(purpose).is_none() {
            return Err(PrepareError::NoListener(purpose.to_owned()));
        }
        let (half, place) = self.prepare(purpose, &mut message).await?;
        Ok(Transaction::new(self.clone(), half, place))
    }

    /// What operators see and do.
    pub fn admin(&self) -> Admin {
        Admin::new(self.clone())
    }

    /// Whether the broker answers and every partition is read.
    ///
    /// # Errors
    /// Why not, in words.
    pub fn health(&self) -> Result<(), String> {
        match self.inner.log.problem() {
            Some(problem) => Err(problem),
            None => self.inner.shared.health(),
        }
    }

    /// What is wrong although the producer is ready: that checks fail, since when and why. It can
    /// take new messages meanwhile, and one message alone may be the reason.
    pub fn warnings(&self) -> Vec<String> {
        self.inner.shared.warnings()
    }

    /// Adds this producer's metrics.
    pub fn register_metrics(&self, registry: &mut Registry) {
        self.inner.metrics.register(registry);
        let under_way = Box::new(UnderWay(Arc::downgrade(&self.inner)));
        registry.sub_registry_with_prefix("halfmsg").register_collector(under_way);
    }

    /// Decisions that contradicted an earlier one, seen by this replica.
    pub fn conflicts(&self) -> u64 {
        self.inner.metrics.conflicts()
    }

    /// Stops: no new transactions, waits for those under way and for deliveries, up to the
    /// shutdown deadline each, then leaves the group. What is not done by then is the next owner's.
    pub async fn shutdown(&self) {
        let inner = &self.inner;
        inner.stopping.cancel();
        inner.tasks.close();
        let deadline = inner.config.shutdown_deadline;
        if tokio::time::timeout(deadline, inner.tasks.wait()).await.is_err() {
            tracing::warn!("local transactions still run; their halves are left to the check-back");
        }
        drop(inner.inputs.send(Input::Stop));
        let thread = inner.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(thread) = thread else { return };
        let until = tokio::time::Instant::now() + deadline + FINISH_MARGIN;
        while !thread.is_finished() {
            if tokio::time::Instant::now() > until {
                tracing::warn!("the resolver did not end in time");
                return;
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    pub(crate) fn listener(&self, purpose: &str) -> Result<Arc<dyn ErasedListener>, PrepareError> {
        let found = self.inner.checker.listener(purpose).cloned();
        found.ok_or_else(|| PrepareError::NoListener(purpose.to_owned()))
    }
}

//! Places one order: claims its key, sends the half message, and answers as soon as the order has
//! a row. It must never answer from an error that it cannot interpret.
//!
//! # Layout
//! - this file: keys, answers, deadlines
//! - `send`: the half message and the local transaction of each flow

mod send;

use std::sync::Arc;
use std::time::Duration;

use axum::http::StatusCode;
use halfmsg_producer::{PrepareError, SendResult, TransactionId, TransactionProducer};
use halfmsg_service_kit::{ApiError, db};
use halfmsg_traces::context::carried;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::task::TaskTracker;
use tracing::field::display;

use crate::answer::{Answer, path_of};
use crate::fault::Fault;
use crate::listener::OrderListener;
use crate::metrics::OrderMetrics;
use crate::model::{NewOrder, Order, OrderId};
use crate::saga::SagaListener;
use crate::stock::StockClient;
use crate::store::idempotency::{Claim, RepeatKey};
use crate::store::{OrderStore, StoreError};

/// Orders that are being placed at once; more are refused.
pub const MAX_ORDERS_AT_ONCE: usize = 8_192;
/// Between two looks for a row that is not there yet.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// When a client may ask again about an order whose fate is not known.
pub(crate) const LOOK_AGAIN_SECS: u64 = 2;
/// When a client may try again what could not begin.
pub(crate) const TRY_AGAIN_SECS: u64 = 1;

/// The bounds of placing an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlaceLimits {
    /// From the request to its answer.
    pub answer: Duration,
    /// How long a claimed key is its request's; longer than its local transaction can take.
    pub lease: Duration,
}

/// A request that keeps every limit.
#[derive(Debug, Clone)]
pub struct PlaceOrder {
    /// What is ordered.
    pub order: NewOrder,
    /// The failure that is asked for.
    pub fault: Option<Fault>,
    /// Set if the request may be repeated.
    pub key: Option<RepeatKey>,
    /// The trace that it belongs to.
    pub trace: Option<String>,
}

/// The topics of the services.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topics {
    /// Orders that failed or were cancelled.
    pub rollback: String,
    /// Orders that wait for their stock.
    pub created: String,
    /// What became of their stock.
    pub outbound: String,
}

/// What it takes to build a [`Placer`].
pub struct Parts {
    /// Stores half messages, with `listener` registered under [`crate::payload::PURPOSE`] and
    /// `saga` under [`crate::payload::CREATED_PURPOSE`].
    pub producer: TransactionProducer,
    /// The orders.
    pub store: OrderStore,
    /// Runs the local transactions of flow A.
    pub listener: OrderListener,
    /// Runs the local transactions of flow B.
    pub saga: SagaListener,
    /// Asked for the prices of flow B.
    pub stock: StockClient,
    /// How long it may take.
    pub stock_deadline: Duration,
    /// Where the messages go.
    pub topics: Topics,
    /// The bounds.
    pub limits: PlaceLimits,
    /// What is counted.
    pub metrics: OrderMetrics,
}

/// Places orders. Cheap to clone.
#[derive(Clone)]
pub struct Placer {
    parts: Arc<Parts>,
    places: Arc<Semaphore>,
    tasks: TaskTracker,
}

type Sending = JoinHandle<Result<Option<SendResult>, PrepareError>>;

impl Placer {
    /// A placer of these parts.
    pub fn new(parts: Parts) -> Self {
        let places = Arc::new(Semaphore::new(MAX_ORDERS_AT_ONCE));
        Self { parts: Arc::new(parts), places, tasks: TaskTracker::new() }
    }

    /// Places an order, or says what became of the one that this request repeats.
    ///
    /// Run it in a task of its own: cancelled, the order may be placed or not, and its key stays
    /// claimed for the length of the lease.
    ///
    /// # Errors
    /// Nothing was begun, or (with `order_id`, 503 and 504) the order's fate is not known yet.
    pub async fn place(&self, request: PlaceOrder) -> Result<Answer, ApiError> {
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            return Err(overloaded("too many orders are being placed"));
        };
        let Some(key) = request.key.clone() else {
            // With the database away nothing may be deducted, so it is asked first.
            self.parts.store.ping().await.map_err(database_problem)?;
            let begun = self.begin(OrderId::generate(), request, place).await;
            return begun.map_err(Unplaced::into_problem);
        };
        let user_id = request.order.user_id.clone();
        let id = match self.claim(&key, &request.order).await? {
            Ok(id) => id,
            Err(answer) => return Ok(answer),
        };
        let placed = self.begin(id, request, place).await;
        let store = &self.parts.store;
        let kept = match &placed {
            Ok(answer) => store.keep_answer(&user_id, &key.key, answer.stored()).await,
            Err(Unplaced::NotBegun(_)) => store.release_key(&user_id, &key.key, id).await,
            Err(Unplaced::NotKnown(_)) => Ok(()),
        };
        if let Err(error) = kept {
            let transaction_id = match &placed {
                Ok(answer) => answer.transaction_id(),
                Err(unplaced) => unplaced.transaction_id().map(str::to_owned),
            };
            tracing::warn!(
                order_id = %id, transaction_id, %error,
                "the key is left to the end of its lease"
            );
        }
        placed.map_err(Unplaced::into_problem)
    }

    /// Waits for what goes on after the answers: local transactions and decisions.
    pub async fn drain(&self, deadline: Duration) {
        self.tasks.close();
        if tokio::time::timeout(deadline, self.tasks.wait()).await.is_err() {
            tracing::warn!("orders were still being placed: the check-back settles them");
        }
    }

    /// Whether this replica reads the store and carries out what is decided, as far as it knows.
    pub(crate) fn is_delivering(&self) -> bool {
        self.parts.producer.health().is_ok()
    }

    /// Counts the work among what [`Placer::drain`] waits for.
    pub fn track<F: Future>(&self, work: F) -> impl Future<Output = F::Output> + use<F> {
        self.tasks.track_future(work)
    }

    /// The order to be placed under this key, or the answer that is there already.
    async fn claim(
        &self,
        key: &RepeatKey,
        order: &NewOrder,
    ) -> Result<Result<OrderId, Answer>, ApiError> {
        let lease = self.parts.limits.lease;
        let claim = self.parts.store.claim_key(key, order, db::now(), lease).await;
        match claim.map_err(|error| match error {
            // The first request is storing its order at this very moment.
            StoreError::Contended(_) => in_progress(None),
            error => database_problem(error),
        })? {
            Claim::Place(id) => Ok(Ok(id)),
            Claim::Answered(stored) => Ok(Err(Answer::again(stored))),
            Claim::Settled(row) => {
                let stored = Answer::of(&row)?.stored().clone();
                let kept = self.parts.store.keep_answer(&order.user_id, &key.key, &stored).await;
                if let Err(error) = kept {
                    tracing::debug!(order_id = %row.id, %error, "the answer is not kept");
                }
                Ok(Err(Answer::again(stored)))
            }
            Claim::Running(id) => Err(in_progress(id)),
            Claim::OtherBody(id) => Err(ApiError::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "idempotency_key_reused",
                "The Idempotency-Key was used for another order.",
            )
            .with("order_id", id)),
        }
    }

    /// The place is taken until all of it is done, which may be long after the answer.
    async fn begin(
        &self,
        id: OrderId,
        request: PlaceOrder,
        place: OwnedSemaphorePermit,
    ) -> Result<Answer, Unplaced> {
        let until = Instant::now() + self.parts.limits.answer;
        let (tell, mut told) = oneshot::channel();
        let trace = request.trace.clone();
        let local = match self.parts.local(id, request, tell).await {
            Ok(local) => local,
            Err(void) => return self.refuse(&void).await,
        };
        let (parts, transaction_id) = (Arc::clone(&self.parts), local.transaction_id());
        let mut sending: Sending = self.tasks.spawn(carried(async move {
            let _place = place;
            parts.send(local, trace).await
        }));
        let sent = tokio::select! {
            biased;
            Ok(row) = &mut told => return self.answer(&row),
            sent = &mut sending => sent,
            () = sleep_until(until) => return Err(self.unknown(id, transaction_id, None)),
        };
        if let Ok(row) = told.try_recv() {
            return self.answer(&row);
        }
        match sent {
            Ok(Err(error)) => {
                self.parts.metrics.not_begun();
                Err(Unplaced::NotBegun(prepare_problem(id, transaction_id, error)))
            }
            Ok(Ok(_)) => self.settle(id, transaction_id, until).await,
            Err(error) => {
                tracing::error!(order_id = %id, %transaction_id, %error, "sending a half message broke off");
                self.settle(id, transaction_id, until).await
            }
        }
    }

    /// Nothing was begun: the void row is all that there will be of the order.
    async fn refuse(&self, void: &Order) -> Result<Answer, Unplaced> {
        match self.parts.store.write_void(void).await {
            Ok(row) => self.answer(&row),
            Err(error) => {
                self.parts.metrics.not_begun();
                // It has no half message: there is no transaction to name.
                Err(Unplaced::NotBegun(order_problem(void.id, None, error)))
            }
        }
    }

    /// The local transaction did not tell: somebody else writes the row, or has written it.
    async fn settle(
        &self,
        id: OrderId,
        transaction_id: TransactionId,
        until: Instant,
    ) -> Result<Answer, Unplaced> {
        loop {
            let problem = match self.parts.store.find(id).await {
                Ok(Some(row)) => return self.answer(&row),
                Ok(None) => None,
                Err(error) => Some(error),
            };
            if Instant::now() + LOOK_INTERVAL >= until {
                return Err(self.unknown(id, transaction_id, problem));
            }
            sleep(LOOK_INTERVAL).await;
        }
    }

    fn answer(&self, row: &Order) -> Result<Answer, Unplaced> {
        self.parts.metrics.placed(row);
        Answer::of(row).map_err(Unplaced::NotKnown)
    }

    fn unknown(
        &self,
        id: OrderId,
        transaction_id: TransactionId,
        problem: Option<StoreError>,
    ) -> Unplaced {
        self.parts.metrics.unknown();
        let answer = match problem {
            Some(error) => order_problem(id, Some(transaction_id), error),
            None => ApiError::new(
                StatusCode::GATEWAY_TIMEOUT,
                "outcome_unknown",
                "What becomes of the order is not known yet.",
            ),
        };
        let answer = answer
            .detail(format!("its status tells soon: see GET {}", path_of(id)))
            .with("order_id", id)
            .retry_after(LOOK_AGAIN_SECS);
        Unplaced::NotKnown(with_transaction(answer, Some(transaction_id)))
    }
}

/// Why there is no answer that follows a row.
enum Unplaced {
    /// The local transaction has not begun and never will.
    NotBegun(ApiError),
    /// It may have.
    NotKnown(ApiError),
}

impl Unplaced {
    fn transaction_id(&self) -> Option<&str> {
        let (Self::NotBegun(problem) | Self::NotKnown(problem)) = self;
        problem.member("transaction_id")
    }

    fn into_problem(self) -> ApiError {
        match self {
            Self::NotBegun(problem) | Self::NotKnown(problem) => problem,
        }
    }
}

/// The problem of a failed read or of a database that is away, where no order is known but the one
/// that cannot be read.
pub(crate) fn database_problem(error: StoreError) -> ApiError {
    match error {
        StoreError::UnreadableOrder { order_id, transaction_id, .. } => {
            order_problem(order_id, transaction_id, error)
        }
        error if error.is_retryable() => {
            tracing::warn!(%error, "the database");
            ApiError::database_unavailable()
        }
        error => ApiError::internal(error),
    }
}

/// The same about one order: what is logged names it.
pub(crate) fn order_problem(
    id: OrderId,
    transaction_id: Option<TransactionId>,
    error: StoreError,
) -> ApiError {
    let in_row = match &error {
        StoreError::UnreadableOrder { transaction_id, .. } => *transaction_id,
        _ => None,
    };
    let transaction_id = transaction_id.or(in_row);
    if error.is_retryable() {
        let told = transaction_id.map(display);
        tracing::warn!(order_id = %id, transaction_id = told, %error, "the database");
        ApiError::database_unavailable()
    } else {
        ApiError::internal_of(id, transaction_id, error)
    }
}

/// The problem of a half message that is not stored; `own` is the id that it was given.
pub(crate) fn prepare_problem(id: OrderId, own: TransactionId, error: PrepareError) -> ApiError {
    let transaction_id = error.transaction_id();
    let unavailable = |code, title| ApiError::new(StatusCode::SERVICE_UNAVAILABLE, code, title);
    let problem = match &error {
        PrepareError::Unavailable { .. } => {
            unavailable("kafka_unavailable", "Kafka cannot be reached; nothing was changed.")
        }
        PrepareError::Backpressure(_) => overloaded("too many transactions are open"),
        PrepareError::ShuttingDown => unavailable("shutting_down", "The service is stopping."),
        PrepareError::UnknownTopic(_) => {
            unavailable("topic_missing", "A topic of the service does not exist yet.")
        }
        PrepareError::Invalid(_) | PrepareError::NoListener(_) => {
            ApiError::internal_of(id, Some(own), &error)
        }
    };
    let told = display(own);
    if matches!(error, PrepareError::UnknownTopic(_)) {
        tracing::error!(order_id = %id, transaction_id = told, %error, "nothing can begin");
    } else {
        tracing::warn!(order_id = %id, transaction_id = told, %error, "nothing could begin");
    }
    with_transaction(problem.retry_after(TRY_AGAIN_SECS).with("order_id", id), transaction_id)
}

pub(crate) fn overloaded(detail: &str) -> ApiError {
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", "Too much is under way.")
        .detail(detail)
        .retry_after(TRY_AGAIN_SECS)
}

fn in_progress(id: Option<OrderId>) -> ApiError {
    let problem = ApiError::new(
        StatusCode::CONFLICT,
        "order_in_progress",
        "The first request with this Idempotency-Key is still running.",
    )
    .retry_after(TRY_AGAIN_SECS);
    match id {
        Some(id) => problem.with("order_id", id),
        None => problem,
    }
}

pub(crate) fn with_transaction(problem: ApiError, id: Option<TransactionId>) -> ApiError {
    match id {
        Some(id) => problem.with("transaction_id", id.to_string()),
        None => problem,
    }
}

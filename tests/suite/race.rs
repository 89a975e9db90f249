//! Row 13: the check-back races a running local transaction, a thousand times. The fence decides:
//! never both outcomes, never neither. What the two race for is a [`Ground`]: here the orders table,
//! in [`fence_race`](super::fence_race) the fence table.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::future::join_all;
use futures::{StreamExt, stream};
use halfmsg_producer::{
    HalfFilter, HalfMessage, HalfState, ListenerResult, LocalTransactionState, PrepareError,
    ProducerConfig, TransactionId, TransactionListener, TransactionProducer,
};
use order_svc::decision::Fate;
use order_svc::listener::OrderListener;
use order_svc::model::{OrderId, OrderStatus};
use order_svc::payload::PURPOSE;
use order_svc::store::{OrderStore, StoreLimits, Stored};
use tokio::time::{Instant, sleep};

use super::database::Kind;
use super::fence::{Orders, confirmed, delivered_are, message, start};
use super::progress::carried_out;
use super::random::Random;
use super::reader::Reader;
use super::{Env, PATIENCE, until};

const ORDERS: u64 = 1_000;
/// Of those that race the immediate check, at once.
const AT_ONCE: usize = 64;
const SEED: u64 = 13;
/// The check comes at once when this is over.
const LOCAL_DEADLINE: Duration = Duration::from_millis(250);
/// A local transaction stores its order at a random moment around the check, within this time.
const SOON_WINDOW: Duration = Duration::from_millis(60);
/// The same around a check that is due.
const LATE_WINDOW: Duration = Duration::from_millis(300);
/// Each side must win so many of either kind, or there was no race.
const WON_AT_LEAST: usize = 5;
/// Until all thousand are decided.
const DEADLINE: Duration = Duration::from_secs(300);

/// What storing said; nothing if the database did not say.
type Said = Arc<Mutex<HashMap<OrderId, Stored>>>;

/// What the local transaction and the check race for.
#[async_trait]
pub(crate) trait Ground: Clone + Send + Sync + 'static {
    /// The local transaction's database transaction, and what it decides if it is stored.
    async fn store(
        &self,
        id: OrderId,
        transaction_id: TransactionId,
    ) -> ListenerResult<(Stored, LocalTransactionState)>;

    /// The check.
    async fn check(&self, halves: &[HalfMessage]) -> Vec<ListenerResult<LocalTransactionState>>;
}

/// A local transaction that stores after a while, and the check of its ground.
#[derive(Clone)]
struct Racing<G> {
    ground: G,
    said: Said,
}

/// Which check a local transaction races.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Against {
    /// The one that is made at once when the local transaction is late.
    ImmediateCheck,
    /// The one that is due after check_after.
    DueCheck,
}

struct Race {
    id: OrderId,
    after: Duration,
}

#[async_trait]
impl<G: Ground> TransactionListener for Racing<G> {
    type Arg = Race;

    async fn execute_local_transaction(
        &self,
        half: &HalfMessage,
        race: Race,
    ) -> ListenerResult<LocalTransactionState> {
        sleep(race.after).await;
        let (stored, decides) = self.ground.store(race.id, half.transaction_id).await?;
        self.said.lock().unwrap_or_else(PoisonError::into_inner).insert(race.id, stored);
        match stored {
            Stored::Inserted => Ok(decides),
            // Whose row it is, its check says.
            Stored::Fenced => Ok(LocalTransactionState::Unknown),
        }
    }

    async fn check_local_transaction(
        &self,
        half: &HalfMessage,
    ) -> ListenerResult<LocalTransactionState> {
        self.ground.check(std::slice::from_ref(half)).await.remove(0)
    }

    async fn check_local_transactions(
        &self,
        halves: &[HalfMessage],
    ) -> Vec<ListenerResult<LocalTransactionState>> {
        self.ground.check(halves).await
    }
}

/// The orders table and its listener.
#[derive(Clone)]
struct OrdersGround {
    store: OrderStore,
    check: OrderListener,
}

#[async_trait]
impl Ground for OrdersGround {
    async fn store(
        &self,
        id: OrderId,
        transaction_id: TransactionId,
    ) -> ListenerResult<(Stored, LocalTransactionState)> {
        let order = confirmed(id, transaction_id);
        let stored = self.store.insert_order(&order, Instant::now()).await?;
        Ok((stored, Fate::from(&order).decides(transaction_id, order.flow)?))
    }

    async fn check(&self, halves: &[HalfMessage]) -> Vec<ListenerResult<LocalTransactionState>> {
        self.check.check_local_transactions(halves).await
    }
}

/// On the tier's own broker and database.
pub(crate) async fn c13_check_races_the_local_transaction(env: Env) {
    race(env).await;
}

/// On the embedded broker and PostgreSQL.
pub(crate) async fn c13_on_the_embedded_broker_and_postgresql(env: Env) {
    race(env.with_embedded_broker()).await;
}

/// On Apache Kafka and SQLite.
pub(crate) async fn c13_on_kafka_and_sqlite(env: Env) {
    race(env.with_database(Kind::Sqlite)).await;
}

async fn race(env: Env) {
    let orders = Orders::with(&env, StoreLimits::default()).await;
    let ground = OrdersGround { store: orders.store.clone(), check: orders.listener.clone() };
    let raced = Raced::run(&env, ground).await;
    let (mut void, mut ends) = (Vec::new(), Ends::new());
    for &(against, id, transaction_id) in &raced.sent {
        let row = orders.row(id).await.expect("neither outcome");
        assert_eq!(row.transaction_id, transaction_id);
        match raced.said.get(&id) {
            Some(Stored::Inserted) => assert_eq!(row.status, OrderStatus::Confirmed, "{id}"),
            Some(Stored::Fenced) => assert_eq!(row.status, OrderStatus::Void, "{id}"),
            None => {}
        }
        match row.status {
            OrderStatus::Confirmed => assert_eq!(row.total_cents, 240),
            OrderStatus::Void => void.push(transaction_id),
            other => panic!("{id}: {other:?}"),
        }
        *ends.entry((against, row.status.as_str())).or_default() += 1;
    }
    for id in &raced.perhaps {
        if let Some(row) = orders.row(*id).await {
            assert_eq!(row.status, OrderStatus::Void, "{id}");
            void.push(row.transaction_id);
        }
    }
    raced.ends_with(ends, void).await;
}

/// How many races of either kind each side won.
pub(crate) type Ends = BTreeMap<(Against, &'static str), usize>;

/// The races, when every half is decided.
pub(crate) struct Raced {
    /// Which check it was, what was to be stored, its half.
    pub(crate) sent: Vec<(Against, OrderId, TransactionId)>,
    /// What storing said.
    pub(crate) said: HashMap<OrderId, Stored>,
    /// Orders whose half messages Kafka did not store in time, and perhaps all the same: nobody stores them, so
    /// their checks find nothing.
    pub(crate) perhaps: Vec<OrderId>,
    producer: TransactionProducer,
    reader: Reader,
    config: ProducerConfig,
}

impl Raced {
    /// Runs a thousand on this ground.
    pub(crate) async fn run(env: &Env, ground: impl Ground) -> Self {
        let mut config = env.group().await;
        config.local_deadline = LOCAL_DEADLINE;
        // What an immediate check could not tell is asked again soon after check_after.
        config.prepare_deadline = Duration::from_millis(7_000);
        config.check_after = Duration::from_millis(7_400);
        // SQLite's one writer is busy often here.
        config.max_checks = 10_000;
        let target = env.topic("target").await;
        let said = Said::default();
        let racing = Racing { ground, said: Arc::clone(&said) };
        let (producer, reader) = start(&config, &target, racing.clone()).await;
        // Due times count from when the resolver reads a half: it must be there.
        until(PATIENCE, "the producer to be ready", async || producer.health()).await;
        let (sent, perhaps) = send_all(&producer, &config, &racing, &target).await;
        none_open(&producer, &config).await;
        let said = said.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Self { sent, said, perhaps, producer, reader, config }
    }

    /// It was a race, no decision contradicted another, and exactly these were delivered.
    pub(crate) async fn ends_with(self, ends: Ends, delivered: Vec<TransactionId>) {
        println!("who won: {ends:?}");
        assert_eq!(ends.len(), 4, "one side won all races: {ends:?}");
        assert!(ends.values().all(|won| *won >= WON_AT_LEAST), "hardly a race: {ends:?}");
        assert_eq!(self.producer.conflicts(), 0, "two decisions that contradict each other");
        delivered_are(&self.reader, &self.config, delivered).await;
        self.producer.shutdown().await;
    }
}

/// Every second local transaction takes about as long as its deadline, and races the check that
/// comes then; the others take about as long as check_after, and race the one that is due.
async fn send_all(
    producer: &TransactionProducer,
    config: &ProducerConfig,
    racing: &Racing<impl Ground>,
    target: &str,
) -> (Vec<(Against, OrderId, TransactionId)>, Vec<OrderId>) {
    let mut random = Random::new(SEED);
    let mut around = |moment: Duration, window: Duration| {
        let window_us = u64::try_from(window.as_micros()).expect("a short time");
        moment - window / 2 + Duration::from_micros(random.below(window_us))
    };
    let races: Vec<(Duration, Duration)> = (0..ORDERS / 2)
        .map(|_| {
            let soon = around(config.local_deadline, SOON_WINDOW);
            (soon, around(config.check_after, LATE_WINDOW))
        })
        .collect();
    let (soon, late): (Vec<_>, Vec<_>) = races.into_iter().unzip();
    let perhaps = Mutex::new(Vec::new());
    let noted = &perhaps;
    let soon = soon.into_iter().map(|after| async move {
        let send = async |id: OrderId| {
            let race = Race { id, after };
            producer.send_in_transaction(PURPOSE, message(id, target), race).await
        };
        let (id, sent) = until_stored(noted, send).await;
        (Against::ImmediateCheck, id, sent.transaction_id)
    });
    let soon = stream::iter(soon).buffer_unordered(AT_ONCE).collect::<Vec<_>>();
    let late = late.into_iter().map(|after| run_late(producer, racing, target, after, noted));
    let (soon, late) = tokio::join!(soon, join_all(late));
    let sent = soon.into_iter().chain(late).collect();
    (sent, perhaps.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// Another order each time, until Kafka stores its half message; the others are noted.
async fn until_stored<T>(
    perhaps: &Mutex<Vec<OrderId>>,
    mut store: impl AsyncFnMut(OrderId) -> Result<T, PrepareError>,
) -> (OrderId, T) {
    until(PATIENCE, "a half message to be stored", async || {
        let id = OrderId::generate();
        let stored = store(id).await;
        if stored.is_err() {
            perhaps.lock().unwrap_or_else(PoisonError::into_inner).push(id);
        }
        stored.map(|stored| (id, stored))
    })
    .await
}

/// Begins, takes its time, stores the order and decides as its result says.
async fn run_late(
    producer: &TransactionProducer,
    racing: &Racing<impl Ground>,
    target: &str,
    after: Duration,
    perhaps: &Mutex<Vec<OrderId>>,
) -> (Against, OrderId, TransactionId) {
    let begin = async |id: OrderId| producer.begin(PURPOSE, message(id, target)).await;
    let (id, begun) = until_stored(perhaps, begin).await;
    let transaction_id = begun.receipt().transaction_id;
    match racing.execute_local_transaction(begun.half(), Race { id, after }).await {
        Ok(LocalTransactionState::Rollback) => {
            // Not stored in time, its check says the same.
            drop(begun.rollback().await);
        }
        _ => drop(begun.check().await),
    }
    (Against::DueCheck, id, transaction_id)
}

async fn none_open(producer: &TransactionProducer, config: &ProducerConfig) {
    carried_out(config, &[]).await;
    until(DEADLINE, "every order to be decided", async || {
        let filter = HalfFilter { state: Some(HalfState::Open), limit: 1_000, cursor: None };
        let open = producer.admin().list(filter).await.map_err(|error| error.to_string())?;
        let parked = HalfFilter { state: Some(HalfState::Parked), limit: 10, cursor: None };
        let parked = producer.admin().list(parked).await.map_err(|error| error.to_string())?;
        assert!(parked.items.is_empty(), "{parked:#?}");
        if open.items.is_empty() { Ok(()) } else { Err(format!("{} are open", open.items.len())) }
    })
    .await;
}

//! Tests of listeners without Kafka (feature `testkit`): the store and the targets are in memory.
//!
//! [`ProducerBuilder::test_kit`] takes the place of `start`. Records are encoded and read back as in
//! Kafka's store, and the program's own resolver core decides when to ask and what follows. Its clock
//! is virtual: [`TestKit::settle_all`] asks about everything that is open, through all its intervals,
//! and [`TestKit::advance`] lets time pass; neither sleeps. A listener's own work takes its real time,
//! and the deadlines of a local transaction and of a check hold for it.
//!
//! [`TestKit::inject`] makes the next step fail ([`Fault`]). After a crash [`TestKit::into_store`] is
//! what is left, and a kit built on it is the process that was started again. [`TestKit::audit`] finds
//! listeners that answer one way today and another way tomorrow.
//!
//! It has one replica and knows no topics: every target exists and takes everything. What brokers,
//! replicas and sizes do to a message is for tests on a broker.
//!
//! It must never be part of a program: what is in memory is gone with it.
//!
//! ```
//! use std::collections::HashMap;
//! use std::sync::{Arc, Mutex};
//!
//! use halfmsg_producer::testkit::{self, Fault, KitError};
//! use halfmsg_producer::{
//!     HalfMessage, ListenerResult, LocalTransactionState, Message, TransactionId,
//!     TransactionListener, TransactionProducer,
//! };
//!
//! /// Books in memory; the map is the fence: whoever writes the entry first has decided.
//! #[derive(Clone, Default)]
//! struct Books(Arc<Mutex<HashMap<TransactionId, LocalTransactionState>>>);
//!
//! #[async_trait::async_trait]
//! impl TransactionListener for Books {
//!     type Arg = ();
//!
//!     async fn execute_local_transaction(
//!         &self,
//!         half: &HalfMessage,
//!         (): (),
//!     ) -> ListenerResult<LocalTransactionState> {
//!         let mut books = self.0.lock().map_err(|_| "poisoned")?;
//!         Ok(*books.entry(half.transaction_id).or_insert(LocalTransactionState::Commit))
//!     }
//!
//!     async fn check_local_transaction(
//!         &self,
//!         half: &HalfMessage,
//!     ) -> ListenerResult<LocalTransactionState> {
//!         let mut books = self.0.lock().map_err(|_| "poisoned")?;
//!         Ok(*books.entry(half.transaction_id).or_insert(LocalTransactionState::Rollback))
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let books = Books::default();
//! let start = || TransactionProducer::builder(testkit::config("shop")).listener("sale", books.clone());
//! let kit = start().test_kit()?;
//! kit.inject(Fault::CrashAfterLocal);
//! let died = kit.send_in_transaction("sale", Message::new("sold", "apple"), ()).await;
//! assert!(matches!(died, Err(KitError::Crashed)));
//!
//! let kit = start().test_kit_on(kit.into_store())?;
//! kit.settle_all().await?;
//! assert_eq!(kit.delivered()[0].payload.as_deref(), Some(&b"apple"[..]));
//! assert!(kit.audit().await?.is_empty());
//! # Ok(())
//! # }
//! ```
//!
//! # Layout
//! - this file: building a kit, and what can be seen of it
//! - `sending`: from a message to its decision, with the faults in between
//! - `settling`: the clock, the questions that are due, the audit
//! - `world`: the store in memory, and what carries a core's commands out
//! - `fault`: [`Fault`]

mod fault;
mod sending;
mod settling;
mod world;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use halfmsg_kafka::KafkaConfig;
use halfmsg_protocol::{ParkCause, TransactionId};

use crate::builder::ProducerBuilder;
use crate::checker::Checker;
use crate::config::{ProducerConfig, validate_name};
use crate::error::{PrepareError, StartError};
use crate::partition::Partitioner;
use crate::used::UsedIds;

/// From now on every producer of this process, not only a kit, takes the wall clock to be ahead by so many
/// milliseconds, or behind if negative; what records carry is the broker's. For a test in a process of its own:
/// no deadline depends on that clock, and no check-back may.
pub fn shift_wall_clock(ms: i64) {
    crate::clock::shift(ms);
}

pub use fault::Fault;
pub use sending::TestTransaction;
pub use settling::{Contradiction, Settled};
pub use world::{Delivered, TestStore};

use world::World;

/// Why a kit does not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum KitError {
    /// As with the real producer: the local transaction has not run.
    #[error(transparent)]
    Prepare(#[from] PrepareError),
    /// An injected fault has ended the process; go on with [`TestKit::into_store`].
    #[error("the process has crashed, as injected: build another kit on what into_store() gives")]
    Crashed,
    /// Something asks again and again: max_checks or no_listener_grace are too large for a test.
    #[error("{open} half messages are still open after {rounds} rounds of checks")]
    Unsettled {
        /// So many.
        open: usize,
        /// After so many steps of the clock.
        rounds: usize,
    },
}

/// Settings for a kit: the defaults of [`ProducerConfig::new`], for no cluster at all.
pub fn config(application: impl Into<String>) -> ProducerConfig {
    let application = application.into();
    ProducerConfig::new(KafkaConfig::new("in-memory:9092"), application.clone(), application)
}

/// A given-up half message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parked {
    /// Its identity.
    pub transaction_id: TransactionId,
    /// Why, as [`ParkCause::as_str`] names it.
    pub cause: &'static str,
    /// Why, in words.
    pub reason: String,
}

/// A producer whose Kafka is in memory and whose clock is virtual; see the [module](self).
pub struct TestKit {
    inner: Arc<Inner>,
}

struct Inner {
    config: ProducerConfig,
    checker: Checker,
    partitioner: Partitioner,
    used: UsedIds,
    world: Mutex<World>,
}

impl ProducerBuilder {
    /// Starts a [`TestKit`] with these listeners and settings, on an empty store.
    ///
    /// # Errors
    /// As `start`: a setting that cannot work.
    pub fn test_kit(self) -> Result<TestKit, StartError> {
        let store = TestStore::new(self.config.store_partitions);
        self.test_kit_on(store)
    }

    /// Starts a [`TestKit`] on what another one has left: the same application, started again.
    ///
    /// # Errors
    /// As `start`: a setting that cannot work.
    pub fn test_kit_on(self, store: TestStore) -> Result<TestKit, StartError> {
        // Nobody is told of lives that are none.
        let Self { config, listeners, observer: _ } = self;
        config.validate()?;
        for purpose in listeners.keys() {
            validate_name("purpose", purpose)?;
        }
        let checker = Checker::new(
            config.application.clone(),
            listeners,
            config.check_deadline,
            config.check_concurrency,
        );
        let world = Mutex::new(World::new(store, &config.core()));
        let (partitioner, used) = (Partitioner::new(), UsedIds::default());
        let inner = Inner { config, checker, partitioner, used, world };
        Ok(TestKit { inner: Arc::new(inner) })
    }
}

impl TestKit {
    /// Lets the next step that this fault is about fail. Several wait, each for its step.
    pub fn inject(&self, fault: Fault) {
        self.inner.world().faults.push(fault);
    }

    /// Takes back what was injected and has not happened.
    pub fn clear_faults(&self) {
        self.inner.world().faults.clear();
    }

    /// A fresh identity.
    pub fn new_transaction_id(&self) -> TransactionId {
        TransactionId::from_uuid(uuid::Uuid::now_v7())
    }

    /// Ends the process without ceremony: what is left is the store. Open transactions of this kit
    /// have crashed.
    pub fn into_store(self) -> TestStore {
        let mut world = self.inner.world();
        world.crashed = true;
        std::mem::take(&mut world.store)
    }

    /// What was delivered so far, in the order of delivery, also by earlier kits on this store.
    pub fn delivered(&self) -> Vec<Delivered> {
        self.inner.world().store.delivered.clone()
    }

    /// The messages that were rolled back.
    pub fn dropped(&self) -> Vec<TransactionId> {
        self.inner.world().store.dropped()
    }

    /// The messages that await a decision.
    pub fn open(&self) -> Vec<TransactionId> {
        self.inner.world().open()
    }

    /// The messages that were given up on.
    pub fn parked(&self) -> Vec<Parked> {
        self.inner.world().parked()
    }

    /// Decisions that contradicted an earlier one, and were ignored.
    pub fn conflicts(&self) -> usize {
        self.inner.world().store.conflicts
    }
}

impl Inner {
    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs an act in the world, unless the process has crashed.
    fn alive<T>(&self, act: impl FnOnce(&mut World) -> T) -> Result<T, KitError> {
        let mut world = self.world();
        if world.crashed { Err(KitError::Crashed) } else { Ok(act(&mut world)) }
    }

    /// Whether this fault was injected, and ends the process here.
    fn crashes(&self, fault: Fault) -> Result<(), KitError> {
        self.alive(|world| world.crashed = world.takes(fault))?;
        self.alive(|_| ())
    }
}

impl Parked {
    fn new(transaction_id: TransactionId, cause: ParkCause, reason: &str) -> Self {
        Self { transaction_id, cause: cause.as_str(), reason: reason.to_owned() }
    }
}

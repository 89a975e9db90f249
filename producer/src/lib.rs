//! Transactional messages with check-back for Kafka, after RocketMQ's half messages.
//!
//! A half message is stored before the local transaction begins. The local transaction then
//! commits or aborts it; if no decision arrives, the listener is asked what became of it. Once
//! [`TransactionProducer::begin`] or [`TransactionProducer::send_in_transaction`] has stored the
//! half, it is delivered if and only if the local transaction's recorded outcome says so.
//!
//! # Layout
//! - [`config`]: every setting and its bound
//! - [`message`]: what is sent, and what a listener sees
//! - [`listener`]: runs a local transaction and answers for it
//! - [`builder`], [`producer`]: RocketMQ's `TransactionMQProducer`
//! - [`several`]: messages that share one local transaction
//! - [`observe`]: hears each step in the life of a half message
//! - [`transaction`]: from a stored half message to its recorded decision
//! - `fence` (feature `fence`): a table that keeps a check-back and its local transaction apart
//! - `prepare`: stores a half message, or says why not; `used`: ids that callers have given lately
//! - [`admin`]: what is open or parked, and settling it by hand
//! - [`operator`]: the same from outside, without an application: for a service that is down
//! - [`snapshot`]: the state of partitions that this replica does not own, read from the brokers;
//!   `stored`: a group's progress
//! - `resolver`: carries decisions out; one thread per replica
//! - `checker`: asks listeners, in batches and within bounds
//! - `bodies`: reads payloads again that memory has no room for
//! - `log`, `parked`, `owner`, `topics`, `targets`, `partition`, `scan`: the store on Kafka
//! - `testkit` (feature `testkit`): tests of listeners without Kafka, with faults and a virtual clock
//! - `shared`, `metrics`, `life`, `spans`, `clock`: what is seen from outside

pub mod admin;
mod bodies;
pub mod builder;
mod checker;
mod clock;
pub mod config;
pub mod error;
#[cfg(feature = "fence")]
pub mod fence;
mod life;
pub mod listener;
mod log;
pub mod message;
mod metrics;
pub mod observe;
pub mod operator;
mod owner;
mod parked;
mod partition;
mod prepare;
pub mod producer;
mod resolver;
mod scan;
pub mod several;
mod shared;
pub mod snapshot;
mod spans;
mod stored;
mod targets;
#[cfg(feature = "testkit")]
pub mod testkit;
mod topics;
pub mod transaction;
mod used;

pub use admin::{
    Admin, AdminError, ForeignFilter, ForeignView, HalfDetail, HalfFilter, HalfState, HalfView,
    HistoryEntry, MissingPartition, OperatorRequest, Page,
};
pub use builder::ProducerBuilder;
pub use checker::{NotReached, check_time_left};
pub use config::{Assignment, ConfigError, CrashPoint, Emission, ProducerConfig};
pub use error::{DecisionError, Invalid, PrepareError, StartError};
pub use halfmsg_protocol::{Backoff, Origin, TransactionId, Verdict};
pub use listener::{ListenerError, ListenerResult, LocalTransactionState, TransactionListener};
pub use message::{HalfMessage, Message};
pub use observe::{LifeEvent, LifeObserver, LifeStep};
pub use operator::{
    ActView, JournalFilter, JournalPage, NewTopics, OperatorClient, Redelivered, ResetPlan,
    ResetTo, Skipped, TopicReport,
};
pub use producer::TransactionProducer;
pub use several::TransactionOfSeveral;
pub use snapshot::{SnapshotLimits, SnapshotProgress};
pub use transaction::{LocalOutcome, Receipt, SendResult, Transaction};

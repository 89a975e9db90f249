//! The suite that both tiers run: what a transactional producer with check-back must show, row by
//! row, on whatever broker and database a tier has.
//!
//! A case is an `async fn(env: Env)`; its name begins with the row that it shows. It waits for
//! conditions with a deadline and never sleeps in hope; that nothing comes is shown by a marker
//! behind it.
//!
//! # Layout
//! - [`cases`]: the list of all cases, with the tiers that they run in (`typed`: what a person types)
//! - [`env`](mod@env): the ground of one case: [`Env`] has a broker, databases and names of its own
//! - [`broker`], [`kafka_script`], [`database`]: what a tier stands on
//! - [`until`](mod@until): waiting for a condition; [`turns`]: how many run at once, and what runs alone
//! - [`setup`]: a producer with its listener and its target, ready to be used
//! - [`told`]: a listener that answers as it is told
//! - [`reader`]: what arrives in a target topic
//! - [`topic`], [`store`], [`progress`]: a topic's records, what those of the store say, how far
//!   they are carried out
//! - [`deciding`], [`checking`], [`asking`], [`parking`], [`outage`], [`slow`], [`restart`], [`borders`], [`garbage`],
//!   [`targets`]: the producer by itself
//! - [`operating`]: what operators see and do, in a replica and without one; [`journal`]: what stays of it
//! - [`fence`], [`race`]: with the orders table and its listener; [`fence_table`], [`fence_race`]:
//!   with the fence table; [`barrier`]: with stock-svc's tables
//! - [`several`]: messages that share one local transaction; [`bounds`], [`long_log`]: trimming, memory, a
//!   long replay
//! - [`soak`]: the store under a load that goes on; [`disk`]: what a topic takes on the broker's disk
//! - [`too_large`]: records that the parked topic does not take
//! - [`replicas`]: a topic that cannot keep what is promised is refused
//! - [`secure`]: logins, TLS, access control lists
//! - [`consuming`]: the consumer crate with handlers of the suite's own
//! - [`services`]: the whole thing, with real processes
//! - [`rebalance`], [`another_log`]: replicas that come and go; progress that is not the log's
//! - [`copies`]: half messages that stand in the store more than once
//! - [`hanging`]: a transaction that the broker never ended
//! - [`load`]: transactions without a pause; [`metrics`]: what a producer counts
//! - [`random`]: numbers that are the same in every run

pub(crate) mod another_log;
pub(crate) mod asking;
pub(crate) mod barrier;
pub(crate) mod borders;
pub(crate) mod bounds;
pub(crate) mod broker;
pub(crate) mod cases;
pub(crate) mod checking;
pub(crate) mod consuming;
pub(crate) mod copies;
pub(crate) mod database;
pub(crate) mod database_away;
pub(crate) mod deciding;
pub(crate) mod disk;
pub(crate) mod env;
pub(crate) mod fence;
pub(crate) mod fence_race;
pub(crate) mod fence_table;
pub(crate) mod garbage;
pub(crate) mod hanging;
pub(crate) mod journal;
pub(crate) mod kafka_script;
pub(crate) mod load;
pub(crate) mod long_log;
pub(crate) mod metrics;
pub(crate) mod operating;
pub(crate) mod outage;
pub(crate) mod parking;
pub(crate) mod progress;
pub(crate) mod race;
pub(crate) mod random;
pub(crate) mod reader;
pub(crate) mod rebalance;
pub(crate) mod replicas;
pub(crate) mod restart;
pub(crate) mod secure;
pub(crate) mod services;
pub(crate) mod setup;
pub(crate) mod several;
pub(crate) mod slow;
pub(crate) mod soak;
pub(crate) mod spare;
pub(crate) mod store;
pub(crate) mod targets;
pub(crate) mod told;
pub(crate) mod too_large;
pub(crate) mod topic;
pub(crate) mod turns;
pub(crate) mod until;

pub(crate) use cases::cases;
pub(crate) use env::Env;
pub(crate) use until::{PATIENCE, until};

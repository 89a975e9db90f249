//! Row 13 on the fence table: [`race`](super::race) with a local transaction that enters the fence.

use std::collections::BTreeSet;

use async_trait::async_trait;
use halfmsg_producer::fence::{self, FenceError, FenceOptions};
use halfmsg_producer::{HalfMessage, ListenerResult, LocalTransactionState, TransactionId};
use order_svc::model::OrderId;
use order_svc::store::Stored;

use super::Env;
use super::database::Kind;
use super::fence_table::Bookings;
use super::race::{Ends, Ground, Raced};

#[async_trait]
impl Ground for Bookings {
    async fn store(
        &self,
        _id: OrderId,
        transaction_id: TransactionId,
    ) -> ListenerResult<(Stored, LocalTransactionState)> {
        match self.book(transaction_id).await {
            Ok(()) => Ok((Stored::Inserted, LocalTransactionState::Commit)),
            Err(FenceError::Fenced(_)) => Ok((Stored::Fenced, LocalTransactionState::Unknown)),
            Err(error) => Err(error.into()),
        }
    }

    async fn check(&self, halves: &[HalfMessage]) -> Vec<ListenerResult<LocalTransactionState>> {
        fence::check(&self.checks, halves, FenceOptions::default()).await
    }
}

/// On the tier's own broker and database.
pub(crate) async fn c13_check_races_the_fence_table(env: Env) {
    race(env).await;
}

/// On Apache Kafka and SQLite.
pub(crate) async fn c13_fence_table_on_kafka_and_sqlite(env: Env) {
    race(env.with_database(Kind::Sqlite)).await;
}

/// On Apache Kafka and MariaDB.
pub(crate) async fn c13_fence_table_on_kafka_and_mariadb(env: Env) {
    race(env.with_database(Kind::Mariadb)).await;
}

/// What is committed is delivered, each once; what is fenced left nothing behind.
async fn race(env: Env) {
    let bookings = Bookings::asked_in_a_hurry(&env).await;
    let raced = Raced::run(&env, bookings.clone()).await;
    let booked: BTreeSet<TransactionId> = bookings.all().await;
    let (mut ends, mut delivered) = (Ends::new(), Vec::new());
    for &(against, id, transaction_id) in &raced.sent {
        let is_booked = booked.contains(&transaction_id);
        match raced.said.get(&id) {
            Some(Stored::Inserted) => assert!(is_booked, "{transaction_id}: committed, and gone"),
            Some(Stored::Fenced) => assert!(!is_booked, "{transaction_id}: refused, and there"),
            None => {}
        }
        let state = bookings.fence_of(transaction_id).await.expect("neither outcome");
        assert_eq!(state, if is_booked { "entered" } else { "tombstone" }, "{transaction_id}");
        if is_booked {
            delivered.push(transaction_id);
        }
        *ends.entry((against, if is_booked { "booked" } else { "fenced" })).or_default() += 1;
    }
    for id in &raced.perhaps {
        assert!(!raced.said.contains_key(id), "{id}: its local transaction ran");
    }
    raced.ends_with(ends, delivered).await;
}

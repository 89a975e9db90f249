//! Waiting until nothing is under way, and the audit of the books.

use std::time::Duration;

use halfmsg_service_kit::db::{DbOptions, connect};
use sea_orm::DatabaseConnection;
use serde_json::Value;
use uuid::Uuid;

use super::Shop;
use crate::suite::database::patient;
use crate::suite::services::books::Books;
use crate::suite::until;

/// A half message that nobody decided is void, and its stock back, within this: the 30 s that are promised for
/// the default settings, what the first check comes later with those of a shop here (a minute, where nobody waits
/// for it), and what a machine that stands still, or does many other things, adds to it.
pub(crate) const VOID_DEADLINE: Duration = Duration::from_secs(180);

impl Shop {
    /// Waits until nothing is under way and the books agree: no half open or parked, every order
    /// confirmed or void as its half says, every delivery in the inbox, every deduction of a
    /// confirmed order or restored, and for every sku received = available + live orders. What they give is
    /// without the orders that were held up.
    ///
    /// # Panics
    /// In exactly-once mode also at once when a message was delivered twice: no waiting mends it.
    pub(crate) async fn conservation(&self, within: Duration) -> Books {
        let orders = database(self.ground.orders.url()).await;
        let stock = database(self.ground.stock.url()).await;
        let once = self.is_exactly_once();
        until(within, "nothing under way and books that agree", async || {
            for state in ["open", "parked"] {
                let halves = self.halves(state).await?;
                if !halves.is_empty() {
                    return Err(format!("{} halves are {state}: {}", halves.len(), halves[0]));
                }
            }
            let books = Books::read(&self.ground, &orders, &stock).await?;
            assert!(!once || books.audit_once().is_ok(), "{:?}", books.audit_once());
            books.audit().map(|()| books.without(&self.held_up()))
        })
        .await
    }

    /// Waits until an order has this status.
    pub(crate) async fn becomes(&self, order_id: Uuid, status: &str) -> Value {
        let what = format!("order {order_id} to be {status}");
        until(VOID_DEADLINE, &what, async || {
            let order = self.find(order_id).await.ok_or("it has no row")?;
            if order["status"] == status { Ok(order) } else { Err(order.to_string()) }
        })
        .await
    }

    /// Waits until so much of a product can be sold.
    pub(crate) async fn stock_is(&self, sku: &str, expected: i64) {
        until(VOID_DEADLINE, &format!("{expected} {sku} to be available"), async || {
            let available = self.available(sku).await;
            if available == expected { Ok(()) } else { Err(format!("{available} are")) }
        })
        .await
    }

    /// Waits until a half message is seen in this state: a moment after it was stored, because the
    /// resolver reads it back first.
    pub(crate) async fn half_is(&self, transaction_id: &str, expected: &str) {
        until(
            VOID_DEADLINE,
            &format!("half message {transaction_id} to be {expected}"),
            async || {
                let state = self.half_state(transaction_id).await;
                if state == expected { Ok(()) } else { Err(state) }
            },
        )
        .await;
    }

    /// Waits until a half message is closed, and says how.
    pub(crate) async fn half_ends(&self, transaction_id: &str) -> String {
        until(VOID_DEADLINE, &format!("half message {transaction_id} to be closed"), async || {
            let state = self.half_state(transaction_id).await;
            if ["committed", "rolled_back"].contains(&state.as_str()) {
                Ok(state)
            } else {
                Err(state)
            }
        })
        .await
    }

    /// Waits until a half message of a cancellation is in the store, or the order cancelled.
    pub(crate) async fn half_of_a_cancellation(&self, order_id: Uuid) {
        until(VOID_DEADLINE, "the half message of a cancellation", async || {
            let open = self.halves("open").await?;
            let of_order = |half: &&Value| {
                half["purpose"] == "order.cancel" && half["key"] == order_id.to_string()
            };
            if open.iter().any(|half| of_order(&half)) {
                return Ok(());
            }
            let order = self.find(order_id).await.ok_or("it has no row")?;
            if order["status"] == "cancelled" { Ok(()) } else { Err(order.to_string()) }
        })
        .await;
    }

    /// Waits for the only order of a user that no answer has named.
    pub(crate) async fn only_order_of(&self, user_id: &str) -> Value {
        until(VOID_DEADLINE, &format!("the order of {user_id}"), async || {
            let orders = self.orders_of(user_id).await;
            match <[Value; 1]>::try_from(orders) {
                Ok([order]) => Ok(order),
                Err(orders) => Err(format!("there are {}", orders.len())),
            }
        })
        .await
    }
}

/// A connection of the test's own.
pub(crate) async fn database(url: &str) -> DatabaseConnection {
    // What it holds is held while others are waited for.
    let options =
        DbOptions { max_connections: 1, idle_transaction_timeout: 2 * VOID_DEADLINE, ..patient() };
    connect(url, &options).await.expect("the database of the test")
}

//! A payment, and the listener that makes it and answers for it.

use async_trait::async_trait;
use halfmsg_producer::fence::{self, FenceOptions};
use halfmsg_producer::{
    HalfMessage, ListenerResult, LocalTransactionState, Message, ProducerBuilder, ProducerConfig,
    TransactionListener, TransactionProducer,
};
use sea_orm::{ConnectionTrait, DatabaseConnection, Statement};
use serde::{Deserialize, Serialize};

/// The kind of local transaction: it selects the listener.
pub const PURPOSE: &str = "payment";
/// Where payments are told.
pub const TOPIC: &str = "payments.paid";

/// What is paid, from which account.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Payment {
    /// Its number.
    pub number: String,
    /// Who pays.
    pub account: String,
    /// How much.
    pub cents: i64,
}

impl Payment {
    /// The message that tells of it.
    pub fn message(&self) -> serde_json::Result<Message> {
        Ok(Message::new(TOPIC, serde_json::to_vec(self)?).key(self.account.clone()))
    }
}

/// Makes payments and answers for them.
pub struct Payments {
    /// For payments.
    pub db: DatabaseConnection,
    /// For checks. On SQLite a pool of its own with a short busy timeout; elsewhere a clone of `db`.
    pub checks: DatabaseConnection,
}

#[async_trait]
impl TransactionListener for Payments {
    type Arg = Payment;

    async fn execute_local_transaction(
        &self,
        half: &HalfMessage,
        payment: Payment,
    ) -> ListenerResult<LocalTransactionState> {
        let tx = fence::begin_write(&self.db).await?;
        fence::enter_in_tx(&tx, half.local_transaction_id).await?;
        let debit = "UPDATE account SET cents = cents - $1 WHERE name = $2 AND cents >= $1";
        let values = [payment.cents.into(), payment.account.into()];
        let debit = Statement::from_sql_and_values(tx.get_database_backend(), debit, values);
        if tx.execute_raw(debit).await?.rows_affected() == 0 {
            tx.rollback().await?;
            return Ok(LocalTransactionState::Rollback);
        }
        tx.commit().await?;
        Ok(LocalTransactionState::Commit)
    }

    async fn check_local_transaction(
        &self,
        half: &HalfMessage,
    ) -> ListenerResult<LocalTransactionState> {
        fence::check_one(&self.checks, half, FenceOptions::default()).await
    }

    async fn check_local_transactions(
        &self,
        halves: &[HalfMessage],
    ) -> Vec<ListenerResult<LocalTransactionState>> {
        fence::check(&self.checks, halves, FenceOptions::default()).await
    }
}

/// The producer, which the program starts and the tests take for a test kit.
pub fn producer(config: ProducerConfig, payments: Payments) -> ProducerBuilder {
    TransactionProducer::builder(config).listener(PURPOSE, payments)
}

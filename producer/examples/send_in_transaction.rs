//! A payment and its message: both, or none.

mod support;
use halfmsg_producer::LocalTransactionState::{self, Commit, Rollback};
use halfmsg_producer::fence::{self, FenceOptions};
use halfmsg_producer::{
    HalfMessage, ListenerResult, Message, TransactionListener, TransactionProducer,
};
use sea_orm::{ConnectionTrait, DatabaseConnection, DbBackend, Statement};

struct Payments {
    db: DatabaseConnection,
    checks: DatabaseConnection,
}

#[async_trait::async_trait]
impl TransactionListener for Payments {
    type Arg = i64; // the cents to be paid

    async fn execute_local_transaction(
        &self,
        half: &HalfMessage,
        cents: i64,
    ) -> ListenerResult<LocalTransactionState> {
        let tx = fence::begin_write(&self.db).await?;
        fence::enter_in_tx(&tx, half.local_transaction_id).await?; // the first statement
        let pay = "UPDATE account SET cents = cents - $1 WHERE cents >= $1";
        let pay = Statement::from_sql_and_values(DbBackend::Sqlite, pay, [cents.into()]);
        if tx.execute_raw(pay).await?.rows_affected() == 0 {
            return Ok(Rollback); // too little money: tx is rolled back, the message dropped
        }
        tx.commit().await?; // an error up to here: the check below is asked, and tells
        Ok(Commit)
    }

    async fn check_local_transaction(
        &self,
        half: &HalfMessage,
    ) -> ListenerResult<LocalTransactionState> {
        fence::check_one(&self.checks, half, FenceOptions::default()).await
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let stage = support::Stage::new(&["paid"]).await?;
    let payments = Payments { db: stage.db.clone(), checks: stage.checks.clone() };
    let builder = TransactionProducer::builder(stage.config());
    let producer = builder.listener("payment", payments).start().await?;
    for (cents, end) in [(100_i64, Commit), (80, Rollback)] {
        let message = Message::new("paid", format!("{cents} cents")).key("ann");
        // Stores the half message, runs the local transaction, records its decision.
        let state = producer.send_in_transaction("payment", message, cents).await?.state;
        anyhow::ensure!(state == end && stage.balance().await? == 50, "{state:?}");
    }
    println!("of two payments, one had the money: {:?}", stage.received("paid", 1).await?);
    producer.shutdown().await;
    Ok(())
}

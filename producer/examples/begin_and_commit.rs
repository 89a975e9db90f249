//! The local transaction stays where it is in your code: `begin` before it, `commit` or `rollback`
//! behind it.

mod support;

use halfmsg_producer::fence::{self, FenceOptions};
use halfmsg_producer::{
    HalfMessage, ListenerResult, LocalTransactionState, Message, TransactionListener,
    TransactionProducer,
};
use sea_orm::{ConnectionTrait, DatabaseConnection};

struct Payments(DatabaseConnection);

#[async_trait::async_trait]
impl TransactionListener for Payments {
    type Arg = ();

    async fn execute_local_transaction(
        &self,
        _: &HalfMessage,
        (): (),
    ) -> ListenerResult<LocalTransactionState> {
        Err("payments are begun with begin()".into())
    }

    async fn check_local_transaction(
        &self,
        half: &HalfMessage,
    ) -> ListenerResult<LocalTransactionState> {
        fence::check_one(&self.0, half, FenceOptions::default()).await
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let stage = support::Stage::new(&["paid"]).await?;
    let builder = TransactionProducer::builder(stage.config());
    let producer = builder.listener("payment", Payments(stage.checks.clone())).start().await?;

    for cents in [100, 20] {
        let message = Message::new("paid", format!("{cents} cents")).key("ann");
        let half = producer.begin("payment", message).await?;
        let tx = fence::begin_write(&stage.db).await?;
        fence::enter_in_tx(&tx, half.half().local_transaction_id).await?;
        tx.execute_unprepared(&format!("UPDATE account SET cents = cents - {cents}")).await?;
        if cents > 50 {
            tx.rollback().await?;
            half.rollback().await?; // never an error of the payment: lost, the check finds the same
        } else {
            tx.commit().await?;
            half.commit().await?;
        }
    }
    println!("received: {:?}, {} left", stage.received("paid", 1).await?, stage.balance().await?);
    anyhow::ensure!(stage.balance().await? == 130);
    producer.shutdown().await;
    Ok(())
}

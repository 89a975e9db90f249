//! One local transaction, two messages to two topics: both, or none. One fence answers for both.

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
        Err("payments are begun with begin_several()".into())
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
    let stage = support::Stage::new(&["paid", "mail"]).await?;
    let builder = TransactionProducer::builder(stage.config());
    let producer = builder.listener("payment", Payments(stage.checks.clone())).start().await?;

    let messages = vec![Message::new("paid", "100 cents"), Message::new("mail", "Thank you")];
    let halves = producer.begin_several("payment", messages).await?;
    let tx = fence::begin_write(&stage.db).await?;
    fence::enter_in_tx(&tx, halves.id()).await?;
    tx.execute_unprepared("UPDATE account SET cents = cents - 100").await?;
    tx.commit().await?;
    halves.commit().await?;

    let (paid, mail) = (stage.received("paid", 1).await?, stage.received("mail", 1).await?);
    println!("received: {paid:?} and {mail:?}, {} left", stage.balance().await?);
    anyhow::ensure!(paid == ["100 cents"] && mail == ["Thank you"]);
    producer.shutdown().await;
    Ok(())
}

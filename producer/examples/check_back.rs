//! The decision is lost, as if the process had died behind its commit: the listener is asked what
//! became of the payment, and its answer delivers the message.

mod support;

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use halfmsg_producer::fence::{self, FenceOptions};
use halfmsg_producer::{
    HalfMessage, ListenerResult, LocalTransactionState, Message, TransactionListener,
    TransactionProducer,
};
use sea_orm::{ConnectionTrait, DatabaseConnection};

struct Payments(DatabaseConnection);
static ASKED: AtomicU32 = AtomicU32::new(0);

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
        let state = fence::check_one(&self.0, half, FenceOptions::default()).await?;
        println!("asked about {}: {state:?}", half.local_transaction_id);
        ASKED.fetch_add(1, Relaxed);
        Ok(state)
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let stage = support::Stage::new(&["paid"]).await?;
    let builder = TransactionProducer::builder(stage.config());
    let producer = builder.listener("payment", Payments(stage.checks.clone())).start().await?;

    let half = producer.begin("payment", Message::new("paid", "100 cents")).await?;
    let tx = fence::begin_write(&stage.db).await?;
    fence::enter_in_tx(&tx, half.half().local_transaction_id).await?;
    tx.execute_unprepared("UPDATE account SET cents = cents - 100").await?;
    tx.commit().await?;
    println!("paid, and not told: {}", half.leave_open().transaction_id);

    println!("received: {:?}", stage.received("paid", 1).await?);
    anyhow::ensure!(ASKED.load(Relaxed) == 1 && stage.balance().await? == 50);
    producer.shutdown().await;
    Ok(())
}

//! A message that fails is tried again later, then it is a dead letter; the cause removed, it is
//! replayed. Messages of other keys are not held up.

mod support;

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use halfmsg_consumer::{
    Consumer, ConsumerConfig, Context, DeadLetterFilter, HandlerError, MessageHandler,
    ReceivedMessage, RetryLevels,
};
use sea_orm::ConnectionTrait;
use uuid::Uuid;

static ACCOUNT_IS_CLOSED: AtomicBool = AtomicBool::new(true);

struct Book;

#[async_trait::async_trait]
impl MessageHandler for Book {
    async fn handle(
        &self,
        context: &Context<'_>,
        batch: &[ReceivedMessage],
    ) -> Result<(), HandlerError> {
        if ACCOUNT_IS_CLOSED.load(Relaxed) {
            return Err(HandlerError::Failed("the account is closed".into()));
        }
        for _ in batch {
            context.transaction().execute_unprepared("INSERT INTO book VALUES ('paid')").await?;
        }
        Ok(())
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let stage = support::Stage::new(&["paid"]).await?;
    let retry = RetryLevels::new([100, 200].map(Duration::from_millis)); // by default 10 s to 2 h
    let config = ConsumerConfig { retry, ..stage.config() };
    let consumer = Consumer::builder(config).subscribe("paid", Book).build()?;
    let (metrics, dead_letters) = (consumer.metrics(), consumer.dead_letters());
    let running = support::run(consumer);

    stage.send("paid", Uuid::now_v7(), "100 cents").await?;
    support::until("it is a dead letter", || metrics.dead_letters() == 1).await?;
    let dead = dead_letters.list(&DeadLetterFilter::default(), None, 10).await?;
    println!("given up after {} attempts: {}", dead[0].attempts, dead[0].cause);

    ACCOUNT_IS_CLOSED.store(false, Relaxed);
    let replayed = dead_letters.replay(dead[0].id).await?;
    println!("replayed: {replayed:?}, booked: {}", stage.entries().await?);
    anyhow::ensure!(dead[0].attempts == 5 && stage.entries().await? == 1);
    running.stop().await
}

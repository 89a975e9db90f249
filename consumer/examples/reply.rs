//! Consume, change, answer: effect and answer commit together, and a repetition has the same id.

mod support;

use halfmsg_consumer::{
    Consumer, Context, HandlerError, MessageHandler, ReceivedMessage, Reply, reply_id,
};
use sea_orm::ConnectionTrait;
use uuid::Uuid;

struct Book;

#[async_trait::async_trait]
impl MessageHandler for Book {
    async fn handle(
        &self,
        context: &Context<'_>,
        batch: &[ReceivedMessage],
    ) -> Result<(), HandlerError> {
        for message in batch {
            context.transaction().execute_unprepared("INSERT INTO book VALUES ('paid')").await?;
            let mut answer = Reply::new("booked", "thank you");
            answer.key = message.key.clone(); // answers to one key keep their order
            context.publish(message, answer)?;
        }
        Ok(())
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let stage = support::Stage::new(&["paid", "booked"]).await?;
    let consumer = Consumer::builder(stage.config()).subscribe("paid", Book).build()?;
    let running = support::run(consumer);

    let id = Uuid::now_v7();
    stage.send("paid", id, "100 cents").await?;
    let (reply, payload) = stage.received("booked").await?;

    println!("booked: {}, answered: {payload} ({reply})", stage.entries().await?);
    // By this a receiver knows the answer, however often it comes.
    anyhow::ensure!(reply == reply_id("books", &id.to_string(), 0).to_string());
    anyhow::ensure!(payload == "thank you" && stage.entries().await? == 1);
    running.stop().await
}

//! A message that comes twice has its effect once: the inbox and the handler's statements are one
//! transaction.

mod support;

use halfmsg_consumer::{Consumer, Context, HandlerError, MessageHandler, ReceivedMessage};
use sea_orm::{ConnectionTrait, DbBackend, Statement};
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
            let entry = String::from_utf8(message.payload.as_deref().unwrap_or_default().to_vec());
            let entry = entry.map_err(|error| HandlerError::Undecodable(error.to_string()))?;
            let insert = "INSERT INTO book VALUES ($1)";
            let insert = Statement::from_sql_and_values(DbBackend::Sqlite, insert, [entry.into()]);
            context.transaction().execute_raw(insert).await?;
        }
        Ok(())
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let stage = support::Stage::new(&["paid"]).await?;
    let consumer = Consumer::builder(stage.config()).subscribe("paid", Book).build()?;
    let metrics = consumer.metrics();
    let running = support::run(consumer);

    let id = Uuid::now_v7();
    stage.send("paid", id, "100 cents").await?;
    stage.send("paid", id, "100 cents").await?; // as after a crash between delivery and progress
    support::until("both are handled", || metrics.messages() + metrics.duplicates() == 2).await?;

    println!("booked: {}, left out: {}", stage.entries().await?, metrics.duplicates());
    anyhow::ensure!(stage.entries().await? == 1 && metrics.duplicates() == 1);
    running.stop().await
}

//! Books payments, each once.

use async_trait::async_trait;
use halfmsg_consumer::{
    Consumer, ConsumerBuilder, ConsumerConfig, Context, HandlerError, MessageHandler,
    ReceivedMessage,
};
use sea_orm::{ConnectionTrait, Statement};

use crate::payment::{Payment, TOPIC};

/// Writes a booking for each payment.
pub struct Book;

#[async_trait]
impl MessageHandler for Book {
    async fn handle(
        &self,
        context: &Context<'_>,
        batch: &[ReceivedMessage],
    ) -> Result<(), HandlerError> {
        let tx = context.transaction();
        for message in batch {
            let payload = message.payload.as_deref().unwrap_or_default();
            let payment: Payment = serde_json::from_slice(payload)
                .map_err(|error| HandlerError::Undecodable(error.to_string()))?;
            let book = "INSERT INTO booking (number, cents) VALUES ($1, $2)";
            let values = [payment.number.into(), payment.cents.into()];
            let book = Statement::from_sql_and_values(tx.get_database_backend(), book, values);
            tx.execute_raw(book).await?;
        }
        Ok(())
    }
}

/// The consumer, which the program runs and the tests take for a test kit.
pub fn consumer(config: ConsumerConfig) -> ConsumerBuilder {
    Consumer::builder(config).subscribe(TOPIC, Book)
}

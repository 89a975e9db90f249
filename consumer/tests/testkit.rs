//! The test kit: what it does is what the running consumer does.
#![allow(clippy::unwrap_used)]

use async_trait::async_trait;
use halfmsg_consumer::testkit::{self, ConsumerKit, Counts, Crash};
use halfmsg_consumer::{
    Consumer, Context, DeadLetterFilter, HandlerError, MessageHandler, ReceivedMessage, Reply,
    RetryLevels,
};
use sea_orm::{ConnectionTrait, DatabaseConnection, DbBackend, Statement};

/// Writes the payload down and answers; `bad` never works, `garbage` cannot be read.
struct Write;

#[async_trait]
impl MessageHandler for Write {
    async fn handle(
        &self,
        context: &Context<'_>,
        batch: &[ReceivedMessage],
    ) -> Result<(), HandlerError> {
        for message in batch {
            let payload = String::from_utf8_lossy(message.payload.as_deref().unwrap()).into_owned();
            match payload.as_str() {
                "bad" => return Err(HandlerError::Failed("bad".into())),
                "garbage" => return Err(HandlerError::Undecodable("garbage".into())),
                _ => {}
            }
            let insert = "INSERT INTO written VALUES (?)";
            let insert =
                Statement::from_sql_and_values(DbBackend::Sqlite, insert, [payload.into()]);
            context.transaction().execute_raw(insert).await?;
            context.publish(message, Reply::new("answers", "ok"))?;
        }
        Ok(())
    }
}

async fn kit() -> (ConsumerKit, DatabaseConnection) {
    let database = testkit::database().await.unwrap();
    database.execute_unprepared("CREATE TABLE written (payload TEXT)").await.unwrap();
    let builder = Consumer::builder(testkit::config(database.clone(), "s"));
    (builder.subscribe("t", Write).test_kit().unwrap(), database)
}

async fn written(database: &DatabaseConnection) -> Vec<String> {
    let select = Statement::from_string(DbBackend::Sqlite, "SELECT payload FROM written");
    let rows = database.query_all_raw(select).await.unwrap();
    rows.iter().map(|row| row.try_get_by_index(0).unwrap()).collect()
}

#[tokio::test]
async fn a_message_has_one_effect_and_one_answer_wherever_the_process_dies() {
    for crash in [Crash::BeforeCommit, Crash::AfterCommit] {
        let (kit, database) = kit().await;
        let message = [kit.message("t", "a")];
        kit.deliver_and_crash(&message, crash).await.unwrap();
        let before = usize::from(crash == Crash::AfterCommit);
        assert_eq!((written(&database).await.len(), kit.replies().len()), (before, 0));
        kit.deliver(&message).await;
        kit.deliver(&message).await;
        assert_eq!(written(&database).await, ["a"], "{crash:?}");
        let replies = kit.replies();
        assert_eq!(replies.len(), 1, "{crash:?}");
        let id = halfmsg_consumer::reply_id("s", &message[0].inbox_key(), 0);
        assert_eq!((replies[0].id, replies[0].reply.topic.as_str()), (id, "answers"));
    }
}

#[tokio::test]
async fn a_failing_message_goes_through_all_levels_and_holds_back_its_key_only() {
    let (kit, database) = kit().await;
    let keyed = |payload: &'static str, key: &'static str| {
        let mut message = kit.message("t", payload);
        message.key = Some(key.into());
        message
    };
    let batch = [keyed("bad", "k"), keyed("behind", "k"), keyed("other", "l")];
    let counts = kit.deliver(&batch).await;
    assert_eq!(counts, Counts { applied: 1, retried: 1, held: 1, ..Counts::default() });
    assert_eq!(written(&database).await, ["other"]);
    assert_eq!(kit.waiting().await.unwrap(), 2);
    let settled = kit.settle_all().await.unwrap();
    assert_eq!(settled, Counts { applied: 1, dead: 1, ..Counts::default() });
    assert_eq!(written(&database).await, ["other", "behind"]);
    let dead = kit.dead_letters().list(&DeadLetterFilter::default(), None, 10).await.unwrap();
    let retries = i64::from(RetryLevels::default().max_retries);
    assert_eq!(dead.len(), 1);
    assert_eq!(dead[0].attempts, 3 + retries, "quick attempts and retries");
}

#[tokio::test]
async fn what_cannot_be_decoded_is_a_dead_letter_at_once() {
    let (kit, database) = kit().await;
    let batch = [kit.message("t", "a"), kit.message("t", "garbage"), kit.message("t", "b")];
    let counts = kit.deliver(&batch).await;
    assert_eq!(counts, Counts { applied: 2, dead: 1, ..Counts::default() });
    assert_eq!(written(&database).await, ["a", "b"]);
    assert_eq!(kit.settle_all().await.unwrap(), Counts::default());
    let failing = [kit.message("t", "bad")];
    let crash = kit.deliver_and_crash(&failing, Crash::BeforeCommit).await;
    assert!(crash.is_err_and(|error| error.to_string().contains("bad")));
}

//! A handler that has an effect for each message, or does what a rule says.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use halfmsg_consumer::{Context, HandlerError, MessageHandler, ReceivedMessage, Reply};
use sea_orm::sea_query::Query;
use sea_orm::{ConnectionTrait, DbBackend};
use tokio::time::Instant;

/// What is done with a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Rule {
    /// It has its effect.
    Apply,
    /// The same, and a reply to this topic, with the message's key and payload.
    Reply(String),
    /// An error.
    Fail,
    /// An error that no retry helps.
    Undecodable,
    /// Its effect, after this time.
    Slow(Duration),
    /// A statement that fails, passed over.
    Swallow,
}

type Rules = Arc<dyn Fn(&str) -> Rule + Send + Sync>;
type AfterCommit = Arc<dyn Fn(&str) + Send + Sync>;

/// The handler. Clones share what they have seen.
#[derive(Clone)]
pub(crate) struct Effects {
    rules: Rules,
    after_commit: AfterCommit,
    seen: Arc<Mutex<Vec<(String, Instant)>>>,
}

impl Effects {
    /// One that asks the rule with the payload of each message.
    pub(crate) fn by(rules: impl Fn(&str) -> Rule + Send + Sync + 'static) -> Self {
        Self { rules: Arc::new(rules), after_commit: Arc::new(|_| {}), seen: Arc::default() }
    }

    /// One that applies everything.
    pub(crate) fn all() -> Self {
        Self::by(|_| Rule::Apply)
    }

    /// The same, and this once a message's transaction is committed.
    pub(crate) fn after_commit(self, action: impl Fn(&str) + Send + Sync + 'static) -> Self {
        Self { after_commit: Arc::new(action), ..self }
    }

    /// When each message with this payload was given to it.
    pub(crate) fn times(&self, payload: &str) -> Vec<Instant> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.iter().filter(|(text, _)| text == payload).map(|(_, at)| *at).collect()
    }

    fn saw(&self, payload: &str) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.push((payload.to_owned(), Instant::now()));
    }
}

/// The payload as text.
pub(crate) fn text(message: &ReceivedMessage) -> String {
    String::from_utf8_lossy(message.payload.as_deref().unwrap_or_default()).into_owned()
}

#[async_trait]
impl MessageHandler for Effects {
    async fn handle(
        &self,
        context: &Context<'_>,
        batch: &[ReceivedMessage],
    ) -> Result<(), HandlerError> {
        for message in batch {
            let payload = text(message);
            self.saw(&payload);
            match (self.rules)(&payload) {
                Rule::Apply => {}
                Rule::Fail => return Err(HandlerError::Failed(format!("told to fail: {payload}"))),
                Rule::Undecodable => return Err(HandlerError::Undecodable(payload)),
                Rule::Slow(time) => tokio::time::sleep(time).await,
                Rule::Swallow => {
                    let wrong = "SELECT * FROM there_is_no_such_table";
                    let failed = context.transaction().execute_unprepared(wrong).await;
                    assert!(failed.is_err());
                    continue;
                }
                Rule::Reply(topic) => {
                    let mut reply = Reply::new(topic, payload.clone());
                    reply.key = message.key.clone();
                    context.publish(message, reply)?;
                }
            }
            let mut insert = Query::insert();
            insert.into_table("effect").columns(["payload"]).values_panic([payload.clone().into()]);
            context.transaction().execute(&insert).await?;
            let after_commit = self.after_commit.clone();
            context.after_commit(move || after_commit(&payload));
        }
        Ok(())
    }
}

/// The table of effects. It has no unique key: a second effect would be seen.
pub(crate) fn effect_table(backend: DbBackend) -> &'static str {
    match backend {
        DbBackend::Sqlite => {
            "CREATE TABLE effect (seq INTEGER PRIMARY KEY AUTOINCREMENT, payload TEXT NOT NULL)"
        }
        _ => "CREATE TABLE effect (seq BIGSERIAL PRIMARY KEY, payload TEXT NOT NULL)",
    }
}

//! A producer with its listener and its target, ready to be used.

use futures::{StreamExt, TryStreamExt, stream};
use halfmsg_producer::{
    AdminError, Emission, HalfDetail, HalfFilter, HalfState, HalfView, Message, OperatorRequest,
    PrepareError, ProducerConfig, Receipt, SendResult, TransactionId, TransactionProducer,
};

use super::env::asked_soon;
use super::progress::carried_out;
use super::reader::{Delivered, Reader, counts, once_each};
use super::told::{Do, PURPOSE, Told};
use super::{Env, PATIENCE, until};

/// Transactions at once, where there are many.
pub(crate) const AT_ONCE: usize = 16;
/// More than any case leaves open or parked.
const ALL: usize = 1_000;

/// What most cases begin with.
pub(crate) struct Setup {
    pub(crate) config: ProducerConfig,
    pub(crate) told: Told,
    pub(crate) producer: TransactionProducer,
    pub(crate) reader: Reader,
    pub(crate) target: String,
    // Last: everything else needs its broker.
    pub(crate) env: Env,
}

impl Setup {
    /// With a listener that answers this unless it is told otherwise; it is asked only when a case asks.
    pub(crate) async fn new(env: Env, otherwise: Do) -> Self {
        let config = env.group().await;
        Self::with(env, config, otherwise).await
    }

    /// The same with a check-back that soon asks about what was left open.
    pub(crate) async fn asking(env: Env, otherwise: Do) -> Self {
        let config = env.asking_group().await;
        Self::with(env, config, otherwise).await
    }

    /// With these settings.
    pub(crate) async fn with(env: Env, config: ProducerConfig, otherwise: Do) -> Self {
        let target = env.topic("target").await;
        let told = Told::otherwise(otherwise);
        let producer = Env::start(&config, &told).await;
        let reader = Reader::start(&config.kafka, &target).await;
        Self { config, told, producer, reader, target, env }
    }

    /// A message whose payload is its number; some share a key, one in eight has none.
    pub(crate) fn message(&self, number: usize) -> Message {
        let message = Message::new(&self.target, text(number));
        if number % 8 == 7 { message } else { message.key(format!("key-{}", number % 8)) }
    }

    /// Sends the message of this number with a local transaction that does this.
    pub(crate) async fn send(&self, number: usize, local: Do) -> SendResult {
        let sent = self.producer.send_in_transaction(PURPOSE, self.message(number), local).await;
        sent.expect("it is stored")
    }

    /// Sends so many.
    pub(crate) async fn send_all(
        &self,
        count: usize,
        locals: impl Fn(usize) -> Do,
    ) -> Vec<SendResult> {
        let sends = (0..count).map(|number| self.send(number, locals(number)));
        stream::iter(sends).buffered(AT_ONCE).collect().await
    }

    /// Stores halves and leaves them to the check-back.
    pub(crate) async fn leave_open(&self, numbers: impl Iterator<Item = usize>) -> Vec<Receipt> {
        let begins = numbers.map(async |number| {
            let begun = self.producer.begin(PURPOSE, self.message(number)).await?;
            Ok::<_, PrepareError>(begun.leave_open())
        });
        stream::iter(begins).buffered(AT_ONCE).try_collect().await.expect("they are stored")
    }

    /// Sends the message of this number until it is stored, as an application does. One that was stored all the
    /// same has no local transaction, so the listener must roll back what it was told nothing of.
    pub(crate) async fn send_until_stored(&self, number: usize, local: Do) -> SendResult {
        until(PATIENCE, "a message to be stored", async || {
            let message = self.message(number);
            match self.producer.send_in_transaction(PURPOSE, message, local).await {
                Err(error) if error.is_retryable() => Err(error.to_string()),
                sent => Ok(sent.expect("it is stored")),
            }
        })
        .await
    }

    /// The halves in this state, in the order of partition and offset.
    pub(crate) async fn list(&self, state: HalfState) -> Result<Vec<HalfView>, AdminError> {
        let filter = HalfFilter { state: Some(state), limit: ALL, cursor: None };
        Ok(self.producer.admin().list(filter).await?.items)
    }

    /// Waits until so many halves are in this state.
    pub(crate) async fn listed(&self, state: HalfState, count: usize) -> Vec<HalfView> {
        until(PATIENCE, &format!("{count} halves {state:?}"), async || {
            let items = self.list(state).await.map_err(|error| error.to_string())?;
            if items.len() == count { Ok(items) } else { Err(format!("{items:#?}")) }
        })
        .await
    }

    /// Waits until the half shows what is asked for.
    pub(crate) async fn shows(
        &self,
        id: TransactionId,
        what: &str,
        is_it: impl Fn(&HalfDetail) -> bool,
    ) -> HalfDetail {
        until(PATIENCE, what, async || {
            let found = self.producer.admin().get(id).await.map_err(|error| error.to_string())?;
            let found = found.ok_or("it is not known")?;
            if is_it(&found) { Ok(found) } else { Err(format!("{found:#?}")) }
        })
        .await
    }

    /// Waits until every half that was stored by now is decided.
    pub(crate) async fn none_open(&self) {
        carried_out(&self.config, &[]).await;
        self.listed(HalfState::Open, 0).await;
    }

    /// What was delivered in the end is exactly this, each once.
    pub(crate) async fn ends_with(self, expected: impl Iterator<Item = usize>) {
        self.none_open().await;
        let delivered = self.reader.everything_of(&self.config).await;
        assert_eq!(counts(&delivered), once_each(expected.map(text)));
        self.producer.shutdown().await;
    }

    /// Stops the producer in good order and starts another one of the same group.
    pub(crate) async fn restart(&mut self) {
        self.producer.shutdown().await;
        self.start_again().await;
    }

    /// Starts another producer of the same group, after the last one has ended.
    pub(crate) async fn start_again(&mut self) {
        self.producer = Env::start(&self.config, &self.told).await;
        self.ready().await;
    }

    /// Drops the producer without a shutdown, which ends it in the background, and starts another one of
    /// the same group.
    pub(crate) async fn drop_and_start_another(self) -> Self {
        let Self { config, told, producer, reader, target, env } = self;
        drop(producer);
        let producer = Env::start(&config, &told).await;
        let another = Self { config, told, producer, reader, target, env };
        another.ready().await;
        another
    }

    /// From now on what was left open is asked about as soon as it is due: by another producer, which stores
    /// nothing that a machine standing still would keep from its place or its decision.
    pub(crate) async fn ask_soon(&mut self) {
        self.config = asked_soon(self.config.clone());
        self.restart().await;
    }

    /// Waits until Kafka answers and every partition is read.
    pub(crate) async fn ready(&self) {
        until(PATIENCE, "the producer to be ready", async || self.producer.health()).await;
    }
}

/// What was delivered, of messages that a crash or an outage may have hit, is what was promised:
/// exactly these, each once; in at-least-once mode, at least once.
#[track_caller]
pub(crate) fn as_promised(
    config: &ProducerConfig,
    delivered: &[Delivered],
    expected: impl IntoIterator<Item = String>,
) {
    let mut found = counts(delivered);
    if config.emission == Emission::AtLeastOnce {
        found.values_mut().for_each(|count| *count = 1);
    }
    assert_eq!(found, once_each(expected));
}

/// What comes of what an operator asks for. While the broker stands still nothing is done: it is asked again.
pub(crate) async fn answered<T>(
    mut ask: impl AsyncFnMut() -> Result<T, AdminError>,
) -> Result<T, AdminError> {
    until(PATIENCE, "an answer to an operator", async || match ask().await {
        Err(error @ (AdminError::Unreachable(_) | AdminError::Incomplete(_))) => Err(error),
        answer => Ok(answer),
    })
    .await
}

/// The payload of the message of this number.
pub(crate) fn text(number: usize) -> String {
    format!("message {number}")
}

/// What an operator says.
pub(crate) fn operator(force: bool) -> OperatorRequest {
    OperatorRequest { operator: "ann".into(), reason: "seen in the books".into(), force }
}

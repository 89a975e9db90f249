//! Sends replies that are committed, and forgets them once they are acknowledged.
//!
//! The replies of one key go one after the other, each behind the acknowledgement of the one before;
//! those of different keys together. It must never forget a reply that was not acknowledged.

mod outlet;

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};

use chrono::{DateTime, Utc};
use halfmsg_db::writers_turn;
use halfmsg_kafka::KafkaConfig;
use rdkafka::producer::{FutureProducer, Producer};
use sea_orm::{DatabaseConnection, DbErr};
use tokio::sync::Mutex;

use crate::metrics::ConsumerMetrics;
use crate::reply::{self, Answers, Chain, Stored, Unsent};
#[cfg(feature = "testkit")]
pub(crate) use outlet::Outbox;
use outlet::{Outlet, Sent, Turns};

/// At most this many replies are read and sent in one go.
const BATCH: u64 = 1_000;
/// So many messages are asked for their replies in one statement.
const KEYS: usize = 1_000;
/// No further reply is read into memory behind so many bytes of payload.
const BYTES: usize = 8 * 1024 * 1024;
/// A reply that is not acknowledged in this time, in milliseconds, is sent again.
const TIMEOUT_MILLIS: &str = "10000";

/// Why replies wait: Kafka or the database is away. Trying again can help.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct NotSent(String);

impl From<DbErr> for NotSent {
    fn from(error: DbErr) -> Self {
        Self(error.to_string())
    }
}

/// What one pass leaves to a later one.
#[derive(Default)]
struct LeftOut {
    /// Chains whose first reply was refused.
    stuck: HashSet<Chain>,
    /// Topics that did not take a reply in time, as without a leader: waited for once each, and not by the
    /// replies to others.
    away: HashSet<String>,
    /// Why the last of them did not.
    cause: Option<String>,
}

impl LeftOut {
    fn has(&self, topic: &str, chain: Option<&Chain>) -> bool {
        self.away.contains(topic) || chain.is_some_and(|chain| self.stuck.contains(chain))
    }

    /// How the pass ended.
    fn told(self) -> Result<(), NotSent> {
        self.cause.map_or(Ok(()), |cause| Err(NotSent(cause)))
    }
}

/// The producer of a consumer's replies. It is made with the first of them.
pub(crate) struct Sender {
    kafka: KafkaConfig,
    database: DatabaseConnection,
    subscriber: String,
    metrics: ConsumerMetrics,
    outlet: Mutex<Option<Outlet>>,
}

impl Sender {
    pub(crate) fn new(
        kafka: KafkaConfig,
        database: DatabaseConnection,
        subscriber: String,
        metrics: ConsumerMetrics,
    ) -> Self {
        Self { kafka, database, subscriber, metrics, outlet: Mutex::default() }
    }

    /// One that sends nothing, for a test kit.
    #[cfg(feature = "testkit")]
    pub(crate) fn keeping(
        database: DatabaseConnection,
        subscriber: String,
        metrics: ConsumerMetrics,
        outbox: Outbox,
    ) -> Self {
        let outlet = Mutex::new(Some(Outlet::Kept(outbox)));
        let kafka = KafkaConfig::new("in-memory:9092");
        Self { kafka, database, subscriber, metrics, outlet }
    }

    /// Replies go to [`Outlet::Without`] from now on.
    #[cfg(test)]
    pub(crate) async fn give_to_nobody(&self) -> outlet::Given {
        let given = outlet::Given::default();
        *self.outlet.lock().await = Some(Outlet::Without(given.clone(), Turns::default()));
        given
    }

    /// Sends what these messages are owed, behind earlier replies of the same keys. Behind one that
    /// the broker refuses it is left to the background. A topic that is away holds up no other.
    ///
    /// Cancelled, what was acknowledged may be sent again.
    pub(crate) async fn send(&self, answers: &Answers) -> Result<(), NotSent> {
        let mut left_out = LeftOut::default();
        for keys in answers.message_keys.chunks(KEYS) {
            let mut after = i64::MIN;
            loop {
                let (database, subscriber) = (&self.database, &self.subscriber);
                let own = reply::to_messages(database, subscriber, keys, after, BATCH).await?;
                let Some(last) = own.last() else { break };
                after = last.seq;
                self.through(&own, false, &mut left_out).await?;
            }
        }
        left_out.told()
    }

    /// Sends what nobody else has: with `before`, also what was stored before then, as by an earlier life,
    /// and what was refused.
    pub(crate) async fn send_left_behind(
        &self,
        before: Option<DateTime<Utc>>,
    ) -> Result<(), NotSent> {
        let (mut left_out, mut after) = (LeftOut::default(), i64::MIN);
        loop {
            let (database, subscriber) = (&self.database, &self.subscriber);
            let found = reply::left_behind(database, subscriber, after, before, BATCH).await?;
            let Some(last) = found.last() else { return left_out.told() };
            after = last.seq;
            self.through(&found, before.is_some(), &mut left_out).await?;
        }
    }

    /// Sends a page of replies, and whatever goes before them in their chains, page by page. What is left
    /// out is passed over; chains whose first was refused once, with `again`, only if it is refused anew.
    async fn through(
        &self,
        wanted: &[Stored],
        again: bool,
        left_out: &mut LeftOut,
    ) -> Result<(), NotSent> {
        let Some(end) = wanted.last().map(|one| one.seq) else { return Ok(()) };
        let alone = wanted.iter().filter(|one| one.chain.is_none() && (again || !one.refused));
        self.in_portions(alone.collect(), left_out).await?;
        let mut chains: BTreeSet<Chain> =
            wanted.iter().filter_map(|one| one.chain.clone()).collect();
        let mut after = i64::MIN;
        loop {
            chains.retain(|chain| !left_out.has(&chain.0, Some(chain)));
            if chains.is_empty() {
                return Ok(());
            }
            let (database, subscriber) = (&self.database, &self.subscriber);
            let page = reply::of_chains(database, subscriber, &chains, after, end, BATCH).await?;
            let Some(last) = page.last() else { return Ok(()) };
            after = last.seq;
            if !again {
                let refused = page.iter().filter(|one| one.refused);
                left_out.stuck.extend(refused.filter_map(|one| one.chain.clone()));
            }
            self.in_portions(page.iter().collect(), left_out).await?;
        }
    }

    /// Reads and sends so much at once as fits into [`BYTES`].
    async fn in_portions(&self, page: Vec<&Stored>, left_out: &mut LeftOut) -> Result<(), NotSent> {
        let mut rest = page.as_slice();
        while !rest.is_empty() {
            let mut bytes = 0_usize;
            let fits = rest.iter().take_while(|one| {
                let room = bytes < BYTES;
                bytes = bytes.saturating_add(one.bytes);
                room
            });
            let (portion, more) = rest.split_at(fits.count());
            rest = more;
            let goes = portion.iter().filter(|one| !left_out.has(&one.topic, one.chain.as_ref()));
            let seqs: Vec<i64> = goes.map(|one| one.seq).collect();
            if !seqs.is_empty() {
                let unsent = reply::load(&self.database, &seqs).await?;
                self.in_order(unsent, left_out).await?;
            }
        }
        Ok(())
    }

    /// In rounds: the first of every key, then the second of those whose first was acknowledged.
    async fn in_order(&self, unsent: Vec<Unsent>, left_out: &mut LeftOut) -> Result<(), NotSent> {
        let mut chains = chains(unsent);
        while !chains.is_empty() {
            let outlet = self.outlet().await?;
            let heads = chains.iter().filter_map(VecDeque::front);
            let sent = outlet.send_all(heads.collect()).await;
            let (mut acknowledged, mut refused) = (Vec::new(), Vec::new());
            let mut away = None;
            let mut going_on = Vec::with_capacity(chains.len());
            for (mut chain, sent) in chains.into_iter().zip(sent) {
                let Some(one) = chain.pop_front() else { continue };
                match sent {
                    Sent::Acknowledged => {
                        acknowledged.push(one.seq);
                        going_on.push(chain);
                    }
                    Sent::Refused(cause) | Sent::TooLarge(cause) => refused.push((one, cause)),
                    Sent::Away(cause) => {
                        left_out.away.insert(one.reply.topic);
                        away = Some(cause);
                    }
                }
            }
            if !acknowledged.is_empty() {
                let _turn = writers_turn(&self.database).await;
                reply::forget(&self.database, &acknowledged).await?;
                self.metrics.replies.inc_by(acknowledged.len() as u64);
            }
            for (one, cause) in refused {
                self.note_refusal(&one, &cause).await?;
                let chain = one.key_hash.map(|hash| (one.reply.topic, hash));
                left_out.stuck.extend(chain);
            }
            if let Some(cause) = away {
                if self.let_go_if_broken(&outlet).await {
                    return Err(NotSent(cause));
                }
                left_out.cause = Some(cause);
            }
            chains = going_on;
            chains.retain(|chain| !chain.is_empty());
        }
        Ok(())
    }

    async fn note_refusal(&self, one: &Unsent, cause: &str) -> Result<(), DbErr> {
        let topic = &one.reply.topic;
        let key = one.reply.key.as_deref().and_then(|key| std::str::from_utf8(key).ok());
        tracing::error!(
            transaction_id = %one.id, key, topic, cause,
            "a reply was refused; it stays and is tried again"
        );
        self.metrics.replies_refused.inc();
        let _turn = writers_turn(&self.database).await;
        reply::refused(&self.database, one.seq, cause).await
    }

    async fn outlet(&self) -> Result<Outlet, NotSent> {
        let mut present = self.outlet.lock().await;
        if let Some(outlet) = &*present {
            return Ok(outlet.clone());
        }
        let mut client = self.kafka.producer();
        client
            // The agreement with Java clients on which partition a key goes to.
            .set("partitioner", "murmur2_random")
            .set("topic.metadata.propagation.max.ms", "5000")
            .set("message.timeout.ms", TIMEOUT_MILLIS);
        let producer: FutureProducer =
            client.create().map_err(|error| NotSent(error.to_string()))?;
        let outlet = Outlet::Kafka(producer, Turns::default());
        *present = Some(outlet.clone());
        Ok(outlet)
    }

    /// A producer that met a fatal error sends nothing any more: the next reply makes a new one.
    async fn let_go_if_broken(&self, outlet: &Outlet) -> bool {
        let fatal = match outlet {
            Outlet::Kafka(producer, _) => producer.client().fatal_error(),
            #[cfg(feature = "testkit")]
            Outlet::Kept(_) => None,
            #[cfg(test)]
            Outlet::Without(..) => None,
        };
        let Some((code, text)) = fatal else { return false };
        tracing::warn!(%code, text, "the producer of replies is broken; it is made anew");
        *self.outlet.lock().await = None;
        true
    }
}

/// By topic and key, each in the order of storing; a reply without a key is alone.
fn chains(unsent: Vec<Unsent>) -> Vec<VecDeque<Unsent>> {
    let mut keyed: BTreeMap<(String, i64), VecDeque<Unsent>> = BTreeMap::new();
    let mut chains = Vec::new();
    for one in unsent {
        match one.key_hash {
            Some(hash) => {
                keyed.entry((one.reply.topic.clone(), hash)).or_default().push_back(one);
            }
            None => chains.push(VecDeque::from([one])),
        }
    }
    chains.extend(keyed.into_values());
    chains
}

#[cfg(test)]
mod tests {
    use halfmsg_db::{begin_write, now};

    use super::*;
    use crate::config::KeyOrder;
    use crate::handler::NewReply;
    use crate::reply::Reply;
    use crate::worker::tests::world;

    #[test]
    fn the_replies_of_a_key_are_one_chain() {
        let unsent = |seq, topic: &str, key_hash| Unsent {
            seq,
            id: uuid::Uuid::nil(),
            key_hash,
            reply: Reply::new(topic, ""),
        };
        let chains = chains(vec![
            unsent(1, "a", Some(7)),
            unsent(2, "a", None),
            unsent(3, "b", Some(7)),
            unsent(4, "a", Some(7)),
            unsent(5, "a", None),
        ]);
        let seqs = |chain: &VecDeque<Unsent>| chain.iter().map(|one| one.seq).collect::<Vec<_>>();
        let mut found: Vec<Vec<i64>> = chains.iter().map(seqs).collect();
        found.sort();
        assert_eq!(found, [vec![1, 4], vec![2], vec![3], vec![5]]);
    }

    /// What this life has stored is on its way; what was refused is not.
    #[tokio::test]
    async fn the_first_look_leaves_alone_what_was_stored_since_the_start() {
        // The machine may stand still until they are due: once, or twice.
        let mut is_late = true;
        for _ in 0..3 {
            is_late = is_late && first_look_leaves_alone_what_is_new().await > reply::GRACE;
        }
        assert!(!is_late, "it stood still each time");
    }

    /// How long it took.
    async fn first_look_leaves_alone_what_is_new() -> std::time::Duration {
        let world = world(0, KeyOrder::Keep).await;
        let (database, sender) = (&world.worker.deliverer.database, &world.worker.sender);
        let given = sender.give_to_nobody().await;
        let (began, started) = (std::time::Instant::now(), now());
        let replies = ["later", "refused"].map(|topic| Reply::new(topic, ""));
        let replies: Vec<_> = replies
            .into_iter()
            .enumerate()
            .map(|(index, reply)| NewReply { inbox_key: "m".into(), index, reply })
            .collect();
        // The clock moves on.
        while now() == started {
            tokio::task::yield_now().await;
        }
        let transaction = begin_write(database).await.unwrap();
        reply::store_in_tx(&transaction, "s", &replies).await.unwrap();
        transaction.commit().await.unwrap();
        let taken = || std::mem::take(&mut *given.lock().unwrap());
        assert_eq!(sender.send_left_behind(Some(started)).await, Ok(()));
        let (new, took) = (taken(), began.elapsed());
        if took > reply::GRACE {
            return took;
        }
        assert!(new.is_empty(), "{new:?}");
        // The second is refused here, and in a later life again.
        assert_eq!(sender.send(&Answers { message_keys: vec!["m".into()] }).await, Ok(()));
        assert_eq!(taken(), ["later", "refused"]);
        assert_eq!(sender.send_left_behind(Some(started)).await, Ok(()));
        assert_eq!(taken(), ["refused"]);
        took
    }

    /// As where a topic has no leader: it is waited for once, and what goes elsewhere is sent.
    #[tokio::test]
    async fn a_topic_that_is_away_holds_up_no_other() {
        let world = world(0, KeyOrder::Keep).await;
        let (database, sender) = (&world.worker.deliverer.database, &world.worker.sender);
        let given = sender.give_to_nobody().await;
        let reply = |(index, reply)| NewReply { inbox_key: "m".into(), index, reply };
        let keyed = |topic: &str, key: &'static str| Reply::new(topic, "").with_key(key);
        let replies = [
            Reply::new("away", ""),
            keyed("away", "a"),
            keyed("fine", "a"),
            keyed("away", "b"),
            keyed("fine", "a"),
        ];
        let replies: Vec<_> = replies.into_iter().enumerate().map(reply).collect();
        let transaction = begin_write(database).await.unwrap();
        reply::store_in_tx(&transaction, "s", &replies).await.unwrap();
        transaction.commit().await.unwrap();
        let told = NotSent("no leader".into());
        assert_eq!(sender.send_left_behind(Some(now())).await, Err(told.clone()));
        assert_eq!(std::mem::take(&mut *given.lock().unwrap()), ["away", "fine", "fine"]);
        assert_eq!(reply::count(database, "s").await.unwrap(), 3);
        // What is owed for a message likewise.
        let answers = Answers { message_keys: vec!["m".into()] };
        assert_eq!(sender.send(&answers).await, Err(told));
        assert_eq!(*given.lock().unwrap(), ["away"]);
    }
}

//! Replies: with the effect, once for their receivers, in the order of their key, through crashes.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use halfmsg_consumer::{ConsumerConfig, RetryLevels, reply_id};
use halfmsg_protocol::TRANSACTION_ID_HEADER;
use tokio::time::Instant;
use uuid::Uuid;

use super::confirming::confirmed;
use super::ground::{Ground, Running};
use super::handler::{Effects, Rule};
use crate::suite::reader::Reader;
use crate::suite::{Env, PATIENCE, until};

/// After this a reply is sent by whoever finds it, and this long it is left alone once it was refused.
const LEFT_BEHIND_AFTER: Duration = Duration::from_secs(10);
const REFUSED_PAUSE: Duration = Duration::from_secs(60);

/// A crash between the commit and the sending of the reply.
struct Crash {
    handler: Effects,
    committed: Arc<AtomicBool>,
    go_on: mpsc::Sender<()>,
}

impl Crash {
    /// `rule`, and standing still after the commit.
    fn of(rule: impl Fn(&str) -> Rule + Send + Sync + 'static) -> Self {
        let committed = Arc::new(AtomicBool::new(false));
        let (go_on, wait) = mpsc::channel();
        let (noted, wait) = (committed.clone(), Mutex::new(wait));
        let handler = Effects::by(rule).after_commit(move |_| {
            noted.store(true, Ordering::Release);
            // Until the test has torn it off; then the next await is its end. Said to tokio, whose
            // other threads may wait for this one.
            tokio::task::block_in_place(|| {
                let _ = wait.lock().unwrap_or_else(PoisonError::into_inner).recv();
            });
        });
        Self { handler, committed, go_on }
    }

    async fn happens(self, running: Running) {
        until(PATIENCE, "the commit", async || {
            if self.committed.load(Ordering::Acquire) { Ok(()) } else { Err("not yet") }
        })
        .await;
        running.begin_to_tear_off();
        self.go_on.send(()).expect("it waits");
        running.tear_off().await;
    }
}

/// Committed with its effect, not yet sent, and the process is gone: the next one sends it, and its
/// receiver acts once.
pub(crate) async fn c38_a_reply_not_confirmed_before_a_crash_is_sent(env: Env) {
    let ground = Ground::new(env).await;
    let target = ground.env.topic("replies").await;
    let reader = Reader::start(&ground.env.kafka(), &target).await;
    let config = ground.config();
    let replying = || {
        let target = target.clone();
        move |_: &str| Rule::Reply(target.clone())
    };
    let crash = Crash::of(replying());
    let running = ground.start(config.clone(), &crash.handler);
    let id = ground.send("k", "question").await;
    crash.happens(running).await;
    assert_eq!((ground.effects().await.len(), ground.rows("reply").await), (1, 1));
    let running = ground.start(config.clone(), &Effects::by(replying()));
    let reply = reader.sees("question").await;
    let expected = reply_id(&config.subscriber, &id.to_string(), 0);
    assert_eq!(reply.transaction_id.to_string(), expected.to_string());
    assert_eq!(reply.entry.key.as_deref(), Some(b"k".as_slice()));
    until(PATIENCE, "the confirmation", async || match ground.rows("reply").await {
        0 => Ok(()),
        rows => Err(format!("{rows} wait")),
    })
    .await;
    running.stop().await;
    ground.one_each(["question".to_owned()]).await;
    acts_once(&ground, &target).await;
}

/// A consumer of the replies.
async fn acts_once(ground: &Ground, target: &str) {
    let receiver = ground.at(target);
    let subscriber = ground.env.named("receiver");
    let running = receiver
        .start(ConsumerConfig { subscriber, ..ground.config() }, &Effects::by(|_| Rule::Apply));
    receiver.send("k", "marker").await;
    ground.sees(3).await;
    running.stop().await;
    ground.one_each(["question", "question", "marker"].map(str::to_owned)).await;
}

/// The same behind a retry: its message is not delivered again, so nothing but the table knows of
/// the reply.
pub(crate) async fn c38_a_reply_of_a_retry_is_sent_after_a_crash(env: Env) {
    let ground = Ground::new(env).await;
    let target = ground.env.topic("replies").await;
    let reader = Reader::start(&ground.env.kafka(), &target).await;
    let config = ConsumerConfig {
        quick_attempts: 1,
        retry: RetryLevels::new([Duration::from_millis(200)]),
        ..ground.config()
    };
    let (topic, failed) = (target.clone(), AtomicBool::new(false));
    let crash = Crash::of(move |_| {
        if failed.swap(true, Ordering::AcqRel) { Rule::Reply(topic.clone()) } else { Rule::Fail }
    });
    let running = ground.start(config.clone(), &crash.handler);
    ground.send("k", "question").await;
    crash.happens(running).await;
    assert_eq!((ground.rows("retry").await, ground.rows("reply").await), (0, 1));
    let running = ground.start(config, &Effects::all());
    reader.sees("question").await;
    running.stop().await;
    ground.one_each(["question".to_owned()]).await;
}

/// Torn off again and again: every reply arrives, each key's in its order, and whoever drops what he
/// has seen before sees each once.
pub(crate) async fn c38_long_replies_keep_their_order_through_crashes(env: Env) {
    const KEYS: usize = 10;
    const MESSAGES: usize = 2_000;
    const CRASHES: usize = 8;
    let ground = Ground::new(env).await;
    let target = ground.env.topic("replies").await;
    let reader = Reader::start(&ground.env.kafka(), &target).await;
    let config = ConsumerConfig {
        instance_id: (!ground.env.kafka().embedded).then(|| ground.env.named("instance")),
        max_batch: 40,
        ..ground.config()
    };
    let topic = target.clone();
    let handler = Effects::by(move |_| Rule::Reply(topic.clone()));
    let all =
        || (0..MESSAGES).map(|n| (format!("k{}", n % KEYS), format!("{:02}-{n:05}", n % KEYS)));
    ground.send_all(all()).await;
    for crash in 1..=CRASHES {
        let running = ground.start(config.clone(), &handler);
        ground.sees(MESSAGES * crash / (CRASHES + 1)).await;
        running.tear_off().await;
    }
    let running = ground.start(config, &handler);
    ground.sees(MESSAGES).await;
    let in_order = until(PATIENCE, "every reply", async || {
        let mut seen: BTreeMap<Uuid, usize> = BTreeMap::new();
        let mut of_key: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for reply in reader.entries() {
            let id =
                reply.header(TRANSACTION_ID_HEADER).and_then(|id| Uuid::try_parse_ascii(id).ok());
            let times = seen.entry(id.expect("every reply has an id")).or_default();
            *times += 1;
            if *times == 1 {
                let text = String::from_utf8_lossy(reply.payload.as_deref().unwrap_or_default());
                of_key.entry(text[..2].to_owned()).or_default().push(text.into_owned());
            }
        }
        if seen.len() == MESSAGES { Ok(of_key) } else { Err(format!("{} replies", seen.len())) }
    })
    .await;
    for (key, payloads) in in_order {
        assert!(payloads.is_sorted(), "the order of key {key} is not kept: {payloads:?}");
    }
    running.stop().await;
    ground.one_each(all().map(|(_, payload)| payload)).await;
    assert_eq!(ground.rows("reply").await, 0);
}

/// A reply whose topic is not there stays and is tried again; it holds up neither the offsets nor
/// other replies.
pub(crate) async fn c38_a_reply_that_is_refused_holds_nothing_up(env: Env) {
    let ground = Ground::new(env).await;
    let (target, missing) = (ground.env.topic("replies").await, ground.env.named("missing"));
    let reader = Reader::start(&ground.env.kafka(), &target).await;
    let handler = Effects::by(move |payload| {
        Rule::Reply(if payload == "lost" { missing.clone() } else { target.clone() })
    });
    let config = ground.config();
    let group = config.subscriber.clone();
    let began = Instant::now();
    let running = ground.start(config, &handler);
    ground.send("k", "lost").await;
    ground.send("k", "found").await;
    reader.sees("found").await;
    // The refused one waits in the table alone.
    until(PATIENCE, "both offsets", async || match confirmed(&ground, &group).await {
        2 => Ok(()),
        other => Err(other.to_string()),
    })
    .await;
    until(PATIENCE, "one refused reply", async || match ground.rows("reply").await {
        1 => Ok(()),
        rows => Err(format!("{rows} wait")),
    })
    .await;
    // It is counted behind the acknowledgement of the other one.
    refused_by_each_that_sent_it(&running, began).await;
    running.stop().await;
    ground.one_each(["lost", "found"].map(str::to_owned)).await;
}

/// Once by who handled the message, once by who looks for replies that wait, and so again after a pause.
async fn refused_by_each_that_sent_it(running: &Running, began: Instant) {
    until(PATIENCE, "a refused reply to be counted", async || {
        match running.reads("halfmsg_consumer_replies_refused_total") {
            Some(times @ 1..) => Ok(times),
            other => Err(format!("{other:?} are")),
        }
    })
    .await;
    let times = running.reads("halfmsg_consumer_replies_refused_total").unwrap_or_default();
    let most = 2 * (1 + times_in(began, REFUSED_PAUSE));
    assert!(times <= most as u64, "refused {times} times after {:?}", began.elapsed());
    until(PATIENCE, "the health", async || running.health.check()).await;
}

/// How many whole times of this length have passed.
fn times_in(began: Instant, length: Duration) -> usize {
    usize::try_from(began.elapsed().as_secs() / length.as_secs()).expect("few")
}

/// Replies that went in one request which the topic does not take go once more, one by one; the one
/// that is too large alone stays, and is told. Here, not in another request: the broker has to
/// refuse the request for the others' sake.
pub(crate) async fn c38_replies_too_large_together_go_one_by_one(env: Env) {
    const REPLIES: usize = 60;
    const BYTES: usize = 6_000;
    let ground = Ground::new(env).await;
    let target = ground.env.named("replies");
    // Two of them are too much for it.
    let limit = [("max.message.bytes", "10000")];
    ground.env.broker.create_topic(&target, 1, &limit).await;
    let reader = Reader::start(&ground.env.kafka(), &target).await;
    let handler = Effects::by(move |_| Rule::Reply(target.clone()));
    let text = |number: usize, bytes: usize| format!("{number:04}{}", "x".repeat(bytes));
    let mut messages: Vec<(String, String)> =
        (0..REPLIES).map(|number| (format!("k{number}"), text(number, BYTES))).collect();
    // A key of its own, in the middle of them.
    messages.insert(REPLIES / 2, ("large".into(), text(9_999, 3 * BYTES)));
    ground.send_all(messages.clone()).await;
    // All are there when it starts, so that they are answered together.
    let config = ConsumerConfig { max_batch: 100, concurrency: 1, ..ground.config() };
    let began = Instant::now();
    let running = ground.start(config, &handler);
    until(PATIENCE, "all but one reply", async || {
        let seen: BTreeMap<Vec<u8>, usize> =
            reader.entries().into_iter().fold(BTreeMap::new(), |mut seen, one| {
                *seen.entry(one.payload.unwrap_or_default().to_vec()).or_default() += 1;
                seen
            });
        let rows = ground.rows("reply").await;
        if seen.len() == REPLIES && rows == 1 {
            // Those that went alone must not bring the others along, nor does the first look after the
            // start take what is on its way. While the machine stands still, they are taken for left behind.
            let most = seen.values().max().copied().unwrap_or_default();
            let behind = times_in(began, LEFT_BEHIND_AFTER);
            assert!(most <= 1 + behind, "sent again in {:?}: {:?}", began.elapsed(), seen.values());
            return Ok(());
        }
        Err(format!("{} of {REPLIES} replies, {rows} wait", seen.len()))
    })
    .await;
    // It is counted behind the acknowledgement of the others.
    refused_by_each_that_sent_it(&running, began).await;
    running.stop().await;
    ground.one_each(messages.into_iter().map(|(_, payload)| payload)).await;
}

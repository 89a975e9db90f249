//! The producer on the embedded broker, through its public interface.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use halfmsg_kafka::EmbeddedBroker;
use halfmsg_producer::{
    AdminError, HalfFilter, HalfMessage, HalfView, LifeEvent, LifeObserver, LifeStep,
    ListenerResult, LocalOutcome, LocalTransactionState, Message, OperatorClient, OperatorRequest,
    Origin, ProducerConfig, ResetTo, SnapshotLimits, TransactionId, TransactionListener,
    TransactionProducer, Verdict,
};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Headers, Message as _};
use rdkafka::{Offset, TopicPartitionList};

/// Long enough for a busy machine; only a failing test waits as long.
const DEADLINE: Duration = Duration::from_secs(120);
/// Nothing is asked about by itself.
const NEVER: Duration = Duration::from_secs(3_600);

/// Answers as it is told to, by payload.
#[derive(Clone, Default)]
struct Told {
    checks: Arc<Mutex<HashMap<Vec<u8>, LocalTransactionState>>>,
}

#[async_trait]
impl TransactionListener for Told {
    type Arg = Result<LocalTransactionState, String>;

    async fn execute_local_transaction(
        &self,
        _half: &HalfMessage,
        arg: Self::Arg,
    ) -> ListenerResult<LocalTransactionState> {
        Ok(arg?)
    }

    async fn check_local_transaction(
        &self,
        half: &HalfMessage,
    ) -> ListenerResult<LocalTransactionState> {
        let checks = self.checks.lock().expect("no test panics while holding it");
        let payload = half.payload.clone().unwrap_or_default();
        Ok(checks.get(payload.as_ref()).copied().unwrap_or(LocalTransactionState::Unknown))
    }
}

/// A step of a message, in short, and when it was.
type Step = (TransactionId, String, Option<i64>);

/// Writes down what it hears.
#[derive(Clone, Default)]
struct Heard {
    steps: Arc<Mutex<Vec<Step>>>,
}

impl LifeObserver for Heard {
    fn observe(&self, event: &LifeEvent<'_>) {
        assert_eq!(event.key, Some(&b"k"[..]), "{event:?}");
        let said = match event.step {
            LifeStep::Stored { purpose, topic, .. } => format!("stored {purpose} {topic}"),
            LifeStep::LocalTransaction { outcome } => format!("local {outcome:?}"),
            LifeStep::Checked { answer, .. } => format!("checked {answer}"),
            LifeStep::Decided { verdict, by, operator, reason } => {
                assert_eq!(by == Origin::Operator, operator == Some("ann"), "{event:?}");
                assert_eq!(by == Origin::Operator, reason == "looked up", "{event:?}");
                let verdict = if verdict == Verdict::Commit { "commit" } else { "rollback" };
                format!("{verdict} by {}", by.as_str())
            }
            LifeStep::Delivered { topic } => format!("delivered {topic}"),
            LifeStep::Dropped => "dropped".into(),
            LifeStep::Parked { cause, .. } => format!("parked {cause}"),
            LifeStep::Reopened { operator, .. } => format!("reopened by {operator}"),
            other => format!("{other:?}"),
        };
        self.steps.lock().expect("unpoisoned").push((event.transaction_id, said, event.at_ms));
    }
}

impl Heard {
    /// How many messages came to this.
    fn count(&self, said: &str) -> usize {
        let steps = self.steps.lock().expect("unpoisoned");
        steps.iter().filter(|(_, step, _)| step == said).count()
    }

    /// Waits for the last step of a message, and gives all of them.
    async fn until(&self, id: TransactionId, last: &str) -> Vec<String> {
        let of = self.times(id, last).await;
        of.into_iter().map(|(step, _)| step).collect()
    }

    /// The same, with their times.
    async fn times(&self, id: TransactionId, last: &str) -> Vec<(String, Option<i64>)> {
        let until = Instant::now() + DEADLINE;
        loop {
            let steps = self.steps.lock().expect("unpoisoned").clone();
            let of = steps.into_iter().filter(|(of, ..)| *of == id);
            let of: Vec<_> = of.map(|(_, step, at_ms)| (step, at_ms)).collect();
            if of.iter().any(|(step, _)| step == last) {
                return of;
            }
            assert!(Instant::now() < until, "no {last}: {of:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

fn broker(config: &ProducerConfig, broker: &EmbeddedBroker) {
    for topic in [config.store_topic(), config.parked_topic(), "target".to_owned()] {
        broker.create_topic(&topic, 4).expect("a fresh broker");
    }
}

/// With more patience than any machine stands still, and so with checks that never come.
fn config(broker: &EmbeddedBroker) -> ProducerConfig {
    let mut config = ProducerConfig::new(broker.config(), "app", "group");
    for deadline in [
        &mut config.start_deadline,
        &mut config.prepare_deadline,
        &mut config.local_deadline,
        &mut config.decision_deadline,
        &mut config.store_timeout,
        &mut config.check_deadline,
    ] {
        *deadline = DEADLINE;
    }
    config.shutdown_deadline = DEADLINE / 4;
    config.check_after = NEVER;
    config
}

/// The same for the next process, which asks at once about what was left open, and stores no half message.
fn asks_at_once(config: &ProducerConfig) -> ProducerConfig {
    let (mut config, soon) = (config.clone(), Duration::from_millis(100));
    (config.prepare_deadline, config.local_deadline, config.check_after) = (soon, soon, 3 * soon);
    (config.check_backoff.initial, config.check_backoff.max) = (soon / 2, soon);
    config
}

/// Commits by hand; nothing if a try before has done it, of which a machine that stood still did not tell in
/// time.
async fn commit_by_hand(
    producer: &TransactionProducer,
    id: TransactionId,
    request: OperatorRequest,
) -> Option<HalfView> {
    let (mut tries, until) = (0, Instant::now() + DEADLINE);
    loop {
        tries += 1;
        match producer.admin().commit(id, request.clone()).await {
            Ok(settled) => return Some(settled),
            Err(AdminError::AlreadyClosed { decision: "commit", .. }) if tries > 1 => return None,
            Err(
                error @ (AdminError::Unavailable(_)
                | AdminError::Unseen(_)
                | AdminError::Unreachable(_)
                | AdminError::Incomplete(_)),
            ) => assert!(Instant::now() < until, "{error}"),
            Err(other) => panic!("{other}"),
        }
    }
}

/// A message of the target: its transaction id and its payload.
type Delivered = (String, Vec<u8>);

/// Reads the target until so many messages are there, and a little longer for any too many.
fn delivered(broker: &EmbeddedBroker, count: usize) -> Vec<Delivered> {
    delivered_until(broker, |found| found.len() >= count)
}

/// The same until all are there that are waited for.
fn delivered_until(
    broker: &EmbeddedBroker,
    is_all: impl Fn(&[Delivered]) -> bool,
) -> Vec<Delivered> {
    let consumer: BaseConsumer =
        broker.config().consumer("reader").create().expect("a valid configuration");
    consumer.fetch_metadata(Some("target"), DEADLINE).expect("the topic is there");
    let mut all = TopicPartitionList::new();
    for partition in 0..4 {
        all.add_partition_offset("target", partition, Offset::Beginning).expect("an offset");
    }
    consumer.assign(&all).expect("assignable");
    let (mut found, mut is_there) = (Vec::new(), false);
    let mut until = Instant::now() + DEADLINE;
    while Instant::now() < until {
        let Some(Ok(message)) = consumer.poll(Duration::from_millis(50)) else { continue };
        let headers = message.headers().expect("the transaction id");
        let id = headers.iter().find(|header| header.key == "halfmsg-transaction-id");
        let id = id.and_then(|header| header.value).expect("the transaction id");
        let id = String::from_utf8(id.to_vec()).expect("text");
        found.push((id, message.payload().unwrap_or_default().to_vec()));
        if !is_there && is_all(&found) {
            (is_there, until) = (true, Instant::now() + Duration::from_millis(300));
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commits_are_delivered_once_and_rollbacks_never() {
    use LocalTransactionState::{Commit, Rollback, Unknown};
    drop(tracing_subscriber::fmt().with_env_filter("info").with_test_writer().try_init());
    let embedded = EmbeddedBroker::start().expect("a loopback port");
    let config = config(&embedded);
    broker(&config, &embedded);
    let told = Told::default();
    told.checks
        .lock()
        .expect("unpoisoned")
        .extend([(b"checked-commit".to_vec(), Commit), (b"checked-rollback".to_vec(), Rollback)]);
    let start = async |config| {
        let builder = TransactionProducer::builder(config).listener("order", told.clone());
        builder.start().await.expect("starts on the embedded broker")
    };
    let producer = start(config.clone()).await;
    let mut expected = Vec::new();
    for (payload, local, end) in [
        ("commit", Ok(Commit), Commit),
        ("rollback", Ok(Rollback), Rollback),
        ("checked-commit", Ok(Unknown), Commit),
        ("checked-rollback", Err("broken".to_owned()), Rollback),
    ] {
        let message = Message::new("target", payload).key("k");
        let sent = producer.send_in_transaction("order", message, local.clone()).await;
        let sent = sent.expect("stored");
        assert_eq!(sent.state, end, "{payload}");
        assert!(sent.decision_recorded, "{payload}");
        assert_eq!(matches!(sent.local, LocalOutcome::Failed(_)), local.is_err());
        if end == Commit {
            expected.push((sent.transaction_id.to_string(), payload.as_bytes().to_vec()));
        }
    }
    let left = producer.begin("order", Message::new("target", "checked-commit").key("k")).await;
    let left = left.expect("stored").leave_open();
    let id = left.transaction_id.to_string();
    let is_open = |item: &HalfView| item.transaction_id == id && item.state == "open";
    eventually("it to be listed, alone", async || {
        match producer.admin().list(HalfFilter { limit: 10, ..HalfFilter::default() }).await {
            Ok(page) if page.items.len() == 1 && is_open(&page.items[0]) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    producer.shutdown().await;
    let producer = start(asks_at_once(&config)).await;
    expected.push((left.transaction_id.to_string(), b"checked-commit".to_vec()));
    let broker = tokio::task::spawn_blocking(move || {
        let found = delivered(&embedded, 3);
        (found, embedded)
    });
    let (found, embedded) = broker.await.expect("the reader ends");
    assert_eq!(found, expected);
    producer.shutdown().await;
    drop(embedded);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_half_that_nobody_can_explain_is_parked_once_and_settled_by_hand() {
    let embedded = EmbeddedBroker::start().expect("a loopback port");
    let mut config = config(&embedded);
    config.max_checks = 2;
    broker(&config, &embedded);
    let start = async |config| {
        let builder = TransactionProducer::builder(config).listener("order", Told::default());
        builder.start().await.expect("starts")
    };
    let producer = start(config.clone()).await;
    let half = producer.begin("order", Message::new("target", "x")).await.expect("stored");
    let id = half.leave_open().transaction_id;
    producer.shutdown().await;
    let producer = start(asks_at_once(&config)).await;
    // It is not known before the resolver has read it.
    let found = eventually("it to be parked", async || match producer.admin().get(id).await {
        Ok(Some(found)) if found.half.state == "parked" => Ok(found),
        other => Err(format!("{other:?}")),
    })
    .await;
    assert_eq!((found.half.attempts, found.payload.as_deref()), (2, Some("x")));
    let request = |force| OperatorRequest {
        operator: "ann".into(),
        reason: "the order is in the books".into(),
        force,
    };
    eventually("it to be refused", async || {
        match producer.admin().commit(id, request(false)).await {
            Err(AdminError::NeedsForce { .. }) => Ok(()),
            Ok(settled) => panic!("{settled:?}"),
            Err(other) => Err(other.to_string()),
        }
    })
    .await;
    if let Some(settled) = commit_by_hand(&producer, id, request(true)).await {
        assert_eq!((settled.state, settled.epoch), ("committed", 1));
    }
    let read = tokio::task::spawn_blocking(move || (delivered(&embedded, 1), embedded));
    let (found, _embedded) = read.await.expect("the reader ends");
    assert_eq!(found, [(id.to_string(), b"x".to_vec())]);
    producer.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_observer_hears_each_step_once_and_in_its_order() {
    use LocalTransactionState::{Commit, Rollback, Unknown};
    let embedded = EmbeddedBroker::start().expect("a loopback port");
    let mut config = config(&embedded);
    config.max_checks = 1;
    broker(&config, &embedded);
    let (listener, heard) = (Told::default(), Heard::default());
    listener.checks.lock().expect("unpoisoned").insert(b"late".to_vec(), Rollback);
    let start = async |config| {
        let builder = TransactionProducer::builder(config).listener("order", listener.clone());
        let started = builder.observer(heard.clone()).start().await;
        started.expect("starts on the embedded broker")
    };
    let producer = start(config.clone()).await;
    let message = |payload: &'static str| Message::new("target", payload).key("k");
    let told = |state| Ok::<_, String>(state);

    let sent = producer.send_in_transaction("order", message("now"), told(Commit)).await;
    let steps = heard.until(sent.expect("stored").transaction_id, "delivered target").await;
    let local = "local Answered(Commit)";
    assert_eq!(steps, ["stored order target", local, "commit by producer", "delivered target"]);

    let sent = producer.send_in_transaction("order", message("late"), told(Unknown)).await;
    let steps = heard.until(sent.expect("stored").transaction_id, "dropped").await;
    let local = "local Answered(Unknown)";
    assert_eq!(
        steps,
        ["stored order target", local, "checked rollback", "rollback by check-back", "dropped"]
    );

    let half = producer.begin("order", message("never")).await.expect("stored");
    let id = half.leave_open().transaction_id;
    producer.shutdown().await;
    let producer = start(asks_at_once(&config)).await;
    let steps = heard.until(id, "parked max_checks").await;
    assert_eq!(steps, ["stored order target", "checked unknown", "parked max_checks"]);
    let request =
        OperatorRequest { operator: "ann".into(), reason: "looked up".into(), force: true };
    commit_by_hand(&producer, id, request).await;
    let steps = heard.until(id, "delivered target").await;
    let by_hand = ["reopened by ann", "commit by operator", "delivered target"];
    assert!(
        by_hand.iter().all(|step| steps.iter().filter(|of| of == step).count() == 1),
        "{steps:?}"
    );
    assert!(
        steps.iter().position(|of| of == by_hand[0]) < steps.iter().position(|of| of == by_hand[1])
    );
    producer.shutdown().await;
}

/// The next owner reads what progress does not cover, and tells it again: records keep their time, and that of
/// a delivery is not known. Between the two it was some other time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_told_again_has_the_time_of_its_record() {
    use LocalTransactionState::{Commit, Rollback};
    let embedded = EmbeddedBroker::start().expect("a loopback port");
    let config = config(&embedded);
    broker(&config, &embedded);
    let (heard, again) = (Heard::default(), Heard::default());
    let start = async |observer: &Heard| {
        let builder =
            TransactionProducer::builder(config.clone()).listener("order", Told::default());
        let started = builder.observer(observer.clone()).start().await;
        let producer = started.expect("starts on the embedded broker");
        // What is decided before a partition is taken over, somebody else may have delivered.
        eventually("every partition to be taken over", async || producer.health()).await;
        producer
    };
    let producer = start(&heard).await;
    let message = || Message::new("target", "x").key("k");
    let told = |state| Ok::<_, String>(state);
    // As long as it is open, nothing behind it is trimmed.
    producer.begin("order", message()).await.expect("stored").leave_open();
    let began = wall_ms();
    let sent = producer.send_in_transaction("order", message(), told(Commit)).await;
    let committed = sent.expect("stored").transaction_id;
    let first = heard.times(committed, "delivered target").await;
    let sent = producer.send_in_transaction("order", message(), told(Rollback)).await;
    let rolled_back = sent.expect("stored").transaction_id;
    let dropped = heard.times(rolled_back, "dropped").await;
    let times: Vec<_> = first.iter().chain(&dropped).map(|(_, at)| at.expect("known")).collect();
    assert!(times.is_sorted() && times[0] >= began, "{first:?}, {dropped:?}");
    assert_eq!(dropped[2].1, dropped[3].1, "it is dropped by its decision: {dropped:?}");
    let told_by = wall_ms();
    producer.shutdown().await;

    let client = OperatorClient::new(embedded.config(), &config.topic_prefix, &config.group);
    let patient = SnapshotLimits { deadline: DEADLINE, ..SnapshotLimits::default() };
    let client = client.expect("valid settings").limits(patient);
    let request =
        || OperatorRequest { operator: "ann".into(), reason: "a test".into(), force: true };
    for partition in 0..4 {
        // Writing it has a deadline of its own; nobody runs.
        eventually("the progress to be set", async || {
            match client.plan_reset(partition, ResetTo::Start).await {
                Ok(plan) => {
                    client.reset_progress(&plan, request()).await.map_err(|error| error.to_string())
                }
                Err(error) => Err(error.to_string()),
            }
        })
        .await;
    }
    while wall_ms() <= told_by {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let producer = start(&again).await;
    let of = |steps: &[(String, Option<i64>)], name: &str| {
        steps.iter().find(|(step, _)| step == name).map(|(_, at)| *at).expect("it was told")
    };
    let second = again.times(committed, "delivered target").await;
    let decided = "commit by producer";
    assert_eq!(of(&second, decided), of(&first, decided), "{second:?}, {first:?}");
    assert_eq!(of(&second, "delivered target"), None, "who knows: {second:?}");
    let second = again.times(rolled_back, "dropped").await;
    for step in ["rollback by producer", "dropped"] {
        assert_eq!(of(&second, step), of(&dropped, step), "{second:?}, {dropped:?}");
    }
    // What it delivers itself for the first time, it knows.
    let sent = producer.send_in_transaction("order", message(), told(Commit)).await;
    let news = again.times(sent.expect("stored").transaction_id, "delivered target").await;
    assert!(of(&news, "delivered target") > Some(told_by), "{news:?}");
    producer.shutdown().await;
}

fn wall_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    i64::try_from(since.as_millis()).expect("before the year 292 million")
}

/// One partition of the store has lost its leader when a replica starts: the others are taken over and
/// serve, health names it and what to do, and it is taken over when it has a leader again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_partition_without_a_leader_holds_up_no_other() {
    let embedded = EmbeddedBroker::start().expect("a loopback port");
    let mut config = config(&embedded);
    // One that comes to the partition without a leader is waited for so long.
    config.prepare_deadline = Duration::from_secs(7);
    broker(&config, &embedded);
    let (store, led) = (config.store_topic(), 3);
    embedded.without_leader(&store, 1).expect("it runs");
    let told = Told::default();
    let builder = TransactionProducer::builder(config).listener("test", told);
    let producer = builder.start().await.expect("it starts");
    let why = eventually("health to name the partition", async || match producer.health() {
        Err(why) if why.contains(&format!("{store}[1]")) => Ok(why),
        other => Err(format!("{other:?}")),
    })
    .await;
    assert!(why.contains("kafka-topics.sh --describe") && why.contains("[1]"), "{why}");
    // Keys of the other partitions: what is committed there is delivered.
    let mut sent = BTreeSet::new();
    let mut number = 0;
    while sent.len() < led {
        let message = Message::new("target", format!("{number}")).key(format!("key {number}"));
        number += 1;
        let Ok(begun) = producer.begin("test", message).await else { continue };
        begun.commit().await.expect("its partition has a leader");
        sent.insert(begun.receipt().partition);
    }
    assert!(!sent.contains(&1), "{sent:?}");
    let before = delivered(&embedded, led).len();
    assert!(before >= led, "{before}");
    embedded.with_leader(&store, 1).expect("it runs");
    eventually("all to be taken over", async || producer.health()).await;
    let until = Instant::now() + DEADLINE;
    let last = loop {
        assert!(Instant::now() < until, "the partition takes nothing");
        let message = Message::new("target", "at last").key(format!("key {number}"));
        number += 1;
        let Ok(begun) = producer.begin("test", message).await else { continue };
        begun.commit().await.expect("every partition has a leader");
        if begun.receipt().partition == 1 {
            break begun.receipt().transaction_id.to_string();
        }
    };
    let is_there = |found: &[Delivered]| found.iter().any(|(id, _)| *id == last);
    let found = delivered_until(&embedded, is_there);
    assert!(is_there(&found), "{found:?}");
    producer.shutdown().await;
}

/// A target that takes nothing: its partition is not read on beyond what may wait, however much is
/// committed; and all is delivered once it takes again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_that_takes_nothing_bounds_what_is_read() {
    const COMMITTED: usize = 1_000;
    /// Decisions that may wait, those of a batch under way, and those of one turn's reading, before the lane is
    /// found full.
    const READ: usize = 8 + 4 + 1_024 / 2;
    let embedded = EmbeddedBroker::start().expect("a loopback port");
    let (mut config, heard) = (config(&embedded), Heard::default());
    (config.max_queued_messages, config.batch_messages) = (8, 4);
    broker(&config, &embedded);
    for partition in 0..4 {
        embedded.without_leader("target", partition).expect("it runs");
    }
    let builder = TransactionProducer::builder(config).listener("test", Told::default());
    let producer = builder.observer(heard.clone()).start().await.expect("it starts");
    for number in 0..COMMITTED {
        let message = Message::new("target", number.to_string()).key("k");
        let begun = producer.begin("test", message).await.expect("the store takes it");
        begun.commit().await.expect("likewise");
    }
    eventually("a decision to be read", async || match heard.count("commit by producer") {
        0 => Err("none is".to_owned()),
        _ => Ok(()),
    })
    .await;
    let until = Instant::now() + Duration::from_secs(5);
    while Instant::now() < until {
        let read = heard.count("commit by producer");
        assert!(read <= READ, "{read} decisions were read");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    for partition in 0..4 {
        embedded.with_leader("target", partition).expect("it runs");
    }
    // What was under way when the target was without its leader may come twice.
    let numbers = |found: &[Delivered]| {
        let numbers: BTreeSet<&[u8]> = found.iter().map(|(_, payload)| &payload[..]).collect();
        numbers.len()
    };
    let is_all = move |found: &[Delivered]| numbers(found) == COMMITTED;
    let found = tokio::task::spawn_blocking(move || (delivered_until(&embedded, is_all), embedded));
    let (found, embedded) = found.await.expect("the reader ends");
    assert_eq!(numbers(&found), COMMITTED);
    producer.shutdown().await;
    drop(embedded);
}

async fn eventually<T>(what: &str, look: impl AsyncFn() -> Result<T, String>) -> T {
    let until = Instant::now() + DEADLINE;
    loop {
        match look().await {
            Ok(found) => return found,
            Err(why) => assert!(Instant::now() < until, "{what}: {why}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

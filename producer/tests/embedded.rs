//! The producer on the embedded broker, through its public interface.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use halfmsg_kafka::EmbeddedBroker;
use halfmsg_producer::{
    HalfFilter, HalfMessage, LifeEvent, LifeObserver, LifeStep, ListenerResult, LocalOutcome,
    LocalTransactionState, Message, OperatorRequest, Origin, ProducerConfig, TransactionId,
    TransactionListener, TransactionProducer, Verdict,
};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Headers, Message as _};
use rdkafka::{Offset, TopicPartitionList};

const DEADLINE: Duration = Duration::from_secs(30);

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

/// Writes down what it hears, in short.
#[derive(Clone, Default)]
struct Heard {
    steps: Arc<Mutex<Vec<(TransactionId, String)>>>,
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
        self.steps.lock().expect("unpoisoned").push((event.transaction_id, said));
    }
}

impl Heard {
    /// Waits for the last step of a message, and gives all of them.
    async fn until(&self, id: TransactionId, last: &str) -> Vec<String> {
        let until = Instant::now() + DEADLINE;
        loop {
            let steps = self.steps.lock().expect("unpoisoned").clone();
            let of: Vec<_> = steps.into_iter().filter(|(of, _)| *of == id).collect();
            if of.iter().any(|(_, step)| step == last) {
                return of.into_iter().map(|(_, step)| step).collect();
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

fn config(broker: &EmbeddedBroker) -> ProducerConfig {
    let mut config = ProducerConfig::new(broker.config(), "app", "group");
    config.prepare_deadline = Duration::from_secs(3);
    config.local_deadline = Duration::from_millis(200);
    config.check_after = Duration::from_millis(3_300);
    config.check_backoff.initial = Duration::from_millis(50);
    config.check_backoff.max = Duration::from_millis(100);
    config
}

/// Reads the target until so many messages are there, and a little longer for any too many.
fn delivered(broker: &EmbeddedBroker, count: usize) -> Vec<(String, Vec<u8>)> {
    let consumer: BaseConsumer =
        broker.config().consumer("reader").create().expect("a valid configuration");
    consumer.fetch_metadata(Some("target"), DEADLINE).expect("the topic is there");
    let mut all = TopicPartitionList::new();
    for partition in 0..4 {
        all.add_partition_offset("target", partition, Offset::Beginning).expect("an offset");
    }
    consumer.assign(&all).expect("assignable");
    let mut found = Vec::new();
    let mut until = Instant::now() + DEADLINE;
    while Instant::now() < until {
        let Some(Ok(message)) = consumer.poll(Duration::from_millis(50)) else { continue };
        let headers = message.headers().expect("the transaction id");
        let id = headers.iter().find(|header| header.key == "halfmsg-transaction-id");
        let id = id.and_then(|header| header.value).expect("the transaction id");
        let id = String::from_utf8(id.to_vec()).expect("text");
        found.push((id, message.payload().unwrap_or_default().to_vec()));
        if found.len() == count {
            until = Instant::now() + Duration::from_millis(300);
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
    let producer = TransactionProducer::builder(config)
        .listener("order", told)
        .start()
        .await
        .expect("starts on the embedded broker");
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
    let until = Instant::now() + DEADLINE;
    loop {
        let list = producer.admin().list(HalfFilter { limit: 10, ..HalfFilter::default() }).await;
        let items = list.expect("the resolver answers").items;
        if items.len() == 1 && items[0].transaction_id == id && items[0].state == "open" {
            break;
        }
        assert!(Instant::now() < until, "{items:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
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
    let started = TransactionProducer::builder(config).listener("order", Told::default()).start();
    let producer = started.await.expect("starts");
    let half = producer.begin("order", Message::new("target", "x")).await.expect("stored");
    let id = half.leave_open().transaction_id;
    let until = Instant::now() + DEADLINE;
    loop {
        // It is not known before the resolver has read it.
        let found = producer.admin().get(id).await.expect("the resolver answers");
        if let Some(found) = found.as_ref().filter(|found| found.half.state == "parked") {
            assert_eq!(found.half.attempts, 2);
            assert_eq!(found.payload.as_deref(), Some("x"));
            break;
        }
        assert!(Instant::now() < until, "not parked: {found:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let request = |force| OperatorRequest {
        operator: "ann".into(),
        reason: "the order is in the books".into(),
        force,
    };
    let refused = producer.admin().commit(id, request(false)).await;
    assert!(refused.is_err_and(|error| error.to_string().contains("force")));
    let settled = producer.admin().commit(id, request(true)).await.expect("forced");
    assert_eq!(settled.state, "committed");
    assert_eq!(settled.epoch, 1);
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
    let producer = TransactionProducer::builder(config)
        .listener("order", listener)
        .observer(heard.clone())
        .start()
        .await
        .expect("starts on the embedded broker");
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
    let steps = heard.until(id, "parked max_checks").await;
    assert_eq!(steps, ["stored order target", "checked unknown", "parked max_checks"]);
    let request =
        OperatorRequest { operator: "ann".into(), reason: "looked up".into(), force: true };
    producer.admin().commit(id, request).await.expect("forced");
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

/// One partition of the store has lost its leader when a replica starts: the others are taken over and
/// serve, health names it and what to do, and it is taken over when it has a leader again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_partition_without_a_leader_holds_up_no_other() {
    let embedded = EmbeddedBroker::start().expect("a loopback port");
    let config = config(&embedded);
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
    let mut sent = std::collections::BTreeSet::new();
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
    loop {
        let message = Message::new("target", "at last").key(format!("key {number}"));
        number += 1;
        let begun = producer.begin("test", message).await.expect("every partition has a leader");
        begun.commit().await.expect("likewise");
        if begun.receipt().partition == 1 {
            break;
        }
    }
    let found = delivered(&embedded, before + 1);
    assert!(found.iter().any(|(_, payload)| payload == b"at last"), "{found:?}");
    producer.shutdown().await;
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

//! CONFORMANCE 21 on the embedded broker: a replica's wall clock is wrong when it takes half messages over, and
//! jumps while it runs. A process of its own, because its clock is that of all producers in it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use halfmsg_kafka::EmbeddedBroker;
use halfmsg_producer::testkit::shift_wall_clock;
use halfmsg_producer::{
    HalfFilter, HalfMessage, HalfState, ListenerResult, LocalTransactionState, Message,
    ProducerConfig, TransactionId, TransactionListener, TransactionProducer,
};

/// Long enough for a busy machine; only a failing test waits as long.
const DEADLINE: Duration = Duration::from_secs(120);
/// Far more than that: who waited for the wrong clock would ask too late. Ages over a takeover are by that
/// clock, so it stays below the age at which what nobody can tell is parked, 24 h.
const JUMP_MS: i64 = 3_600_000;
const HALVES: usize = 20;
const NEVER: Duration = Duration::from_secs(3_600);
const SOON: Duration = Duration::from_millis(100);

/// Knows nothing when it is asked first, and then that it was committed.
#[derive(Clone, Default)]
struct Second {
    asked: Arc<Mutex<HashMap<TransactionId, usize>>>,
}

impl Second {
    fn times(&self, id: TransactionId) -> usize {
        self.asked.lock().expect("unpoisoned").get(&id).copied().unwrap_or_default()
    }
}

#[async_trait]
impl TransactionListener for Second {
    type Arg = ();

    async fn execute_local_transaction(
        &self,
        _half: &HalfMessage,
        _arg: (),
    ) -> ListenerResult<LocalTransactionState> {
        Ok(LocalTransactionState::Unknown)
    }

    async fn check_local_transaction(
        &self,
        half: &HalfMessage,
    ) -> ListenerResult<LocalTransactionState> {
        let mut asked = self.asked.lock().expect("unpoisoned");
        let times = asked.entry(half.transaction_id).or_default();
        *times += 1;
        let is_first = *times == 1;
        Ok(if is_first { LocalTransactionState::Unknown } else { LocalTransactionState::Commit })
    }
}

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
    config.store_partitions = 1;
    config
}

/// The same for the next replica, which asks soon.
fn asks_soon(config: &ProducerConfig) -> ProducerConfig {
    let mut config = config.clone();
    (config.prepare_deadline, config.local_deadline, config.check_after) = (SOON, SOON, 3 * SOON);
    (config.check_backoff.initial, config.check_backoff.max) = (SOON / 2, SOON);
    config
}

async fn leave_open(producer: &TransactionProducer) -> Vec<TransactionId> {
    let (mut left, until) = (Vec::new(), Instant::now() + DEADLINE);
    while left.len() < HALVES {
        match producer.begin("order", Message::new("target", "x")).await {
            Ok(begun) => left.push(begun.leave_open().transaction_id),
            // Its deadline may be short.
            Err(error) => assert!(Instant::now() < until, "{error}"),
        }
    }
    left
}

async fn listed(producer: &TransactionProducer, state: HalfState) -> Option<Vec<String>> {
    let filter = HalfFilter { state: Some(state), limit: 10 * HALVES, cursor: None };
    let listed = producer.admin().list(filter).await.ok()?;
    Some(listed.items.into_iter().map(|half| half.transaction_id).collect())
}

/// Waits until each was asked about twice, and nothing is open.
async fn settled(producer: &TransactionProducer, answers: &Second, of: &[TransactionId]) {
    let until = Instant::now() + DEADLINE;
    loop {
        let times: Vec<usize> = of.iter().map(|id| answers.times(*id)).collect();
        let open = listed(producer, HalfState::Open).await;
        if times.iter().all(|times| *times == 2) && open.as_ref().is_some_and(Vec::is_empty) {
            break;
        }
        assert!(times.iter().all(|times| *times <= 2), "asked again: {times:?}");
        assert!(Instant::now() < until, "asked {times:?} times; open: {open:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let parked = loop {
        if let Some(parked) = listed(producer, HalfState::Parked).await {
            break parked;
        }
        assert!(Instant::now() < until, "the parked ones cannot be listed");
    };
    assert!(parked.is_empty(), "parked by a wrong clock: {parked:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c21_a_wrong_wall_clock_asks_neither_late_nor_twice_and_parks_nothing() {
    for jump in [JUMP_MS, -JUMP_MS] {
        shift_wall_clock(0);
        let broker = EmbeddedBroker::start().expect("a loopback port");
        let config = config(&broker);
        for topic in [config.store_topic(), config.parked_topic(), "target".to_owned()] {
            broker.create_topic(&topic, 1).expect("a fresh broker");
        }
        let answers = Second::default();
        let start = async |config: ProducerConfig| {
            let builder = TransactionProducer::builder(config).listener("order", answers.clone());
            builder.start().await.expect("it starts")
        };
        let producer = start(config.clone()).await;
        let left = leave_open(&producer).await;
        // Carried out behind them: the next owner replays them.
        let behind = producer.begin("order", Message::new("target", "x")).await.expect("stored");
        behind.commit().await.expect("stored");
        let until = Instant::now() + DEADLINE;
        while listed(&producer, HalfState::Open).await.is_none_or(|open| open.len() != HALVES) {
            assert!(Instant::now() < until, "it stays open");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        producer.shutdown().await;
        assert!(left.iter().all(|id| answers.times(*id) == 0));

        shift_wall_clock(jump);
        let producer = start(asks_soon(&config)).await;
        settled(&producer, &answers, &left).await;
        // In the midst of it, the clock is set right, and wrong the other way.
        let lately = leave_open(&producer).await;
        shift_wall_clock(0);
        settled(&producer, &answers, &lately).await;
        let last = leave_open(&producer).await;
        shift_wall_clock(-jump);
        settled(&producer, &answers, &last).await;
        producer.shutdown().await;
    }
}

//! What others do to a consumer, and its parts to each other: partitions that are added or worked on at
//! once, Kafka transactions that are aborted, rows that somebody holds, retries that take long.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use halfmsg_consumer::{
    Assignment, Consumer, ConsumerConfig, Context, HandlerError, KeyOrder, MessageHandler,
    ReceivedMessage, RetryLevels, Spread, TopicSettings,
};
use halfmsg_service_kit::db::{DbFault, DbOptions, begin_write, connect, set_timeouts_in_tx};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use sea_orm::sea_query::Query;
use sea_orm::{ConnectionTrait, DbBackend, DbErr, Statement};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::ground::Ground;
use super::handler::{Effects, Rule};
use crate::suite::database::patient;
use crate::suite::env::PARTITIONS;
use crate::suite::{Env, PATIENCE, until};

/// Another replica has a message in hand for longer than an attempt may take: no attempt is counted,
/// and the others go on.
pub(crate) async fn c36_a_row_that_another_replica_holds_burns_no_attempt(env: Env) {
    let ground = Ground::new(env).await;
    // All are fetched together, and share a batch: the next one would wait for this one's end.
    let topic = ground.env.named("together");
    ground.env.broker.create_topic(&topic, 1, &[]).await;
    let ground = ground.at(&topic);
    let config = ConsumerConfig {
        quick_attempts: 1,
        topic: TopicSettings { partitions: 1, ..TopicSettings::default() },
        // Longer than any machine stands still: whoever outlasts it waits for that row.
        attempt_deadline: Duration::from_secs(7),
        key_order: KeyOrder::GiveUp,
        ..ground.config()
    };
    let held = Uuid::now_v7();
    let holder = begin_write(&ground.pool).await.expect("the database");
    let mut insert = Query::insert();
    insert.into_table("inbox").columns(["subscriber", "message_key", "received_at"]).values_panic(
        [config.subscriber.as_str().into(), held.to_string().into(), chrono::Utc::now().into()],
    );
    holder.execute(&insert).await.expect("the table");
    ground.send_as(held, "held", "held").await;
    ground.send_all((0..20).map(|n| (format!("k{n}"), format!("m{n}")))).await;
    let running = ground.start(config, &Effects::all());
    ground.sees(20).await;
    running.counts("failures", |metrics| metrics.failures() >= 4).await;
    holder.rollback().await.expect("the database");
    ground.sees(21).await;
    assert_eq!((running.metrics.retried(), running.metrics.dead_letters()), (0, 0));
    running.stop().await;
    ground.one_each((0..20).map(|n| format!("m{n}")).chain(["held".to_owned()])).await;
}

/// The replica that has messages in hand stands still, or its machine is gone: the database ends its
/// transaction, and the messages go on.
pub(crate) async fn c36_a_replica_that_stands_still_keeps_no_message(env: Env) {
    const IDLE: Duration = Duration::from_secs(1);
    let ground = Ground::new(env).await;
    let config = ground.config();
    let options = DbOptions { idle_transaction_timeout: IDLE, ..patient() };
    let bounded = connect(ground.database_url(), &options).await.expect("the database");
    let mut holders = Vec::new();
    for (n, pool) in [&bounded, &ground.pool].into_iter().enumerate() {
        let held = Uuid::now_v7();
        let mut insert = Query::insert();
        let columns = ["subscriber", "message_key", "received_at"];
        insert.into_table("inbox").columns(columns).values_panic([
            config.subscriber.as_str().into(),
            held.to_string().into(),
            chrono::Utc::now().into(),
        ]);
        // It may be ended before it holds anything.
        let holder = until(PATIENCE, "a row to be held", async || {
            let holder = begin_write(pool).await?;
            if n == 1 {
                // As a consumer does, whatever its pool says.
                set_timeouts_in_tx(&holder, IDLE, IDLE).await?;
            }
            holder.execute(&insert).await?;
            Ok::<_, DbErr>(holder)
        });
        holders.push(holder.await);
        ground.send_as(held, "held", &format!("held-{n}")).await;
    }
    let running = ground.start(config, &Effects::all());
    ground.sees(2).await;
    assert_eq!((running.metrics.retried(), running.metrics.dead_letters()), (0, 0));
    running.stop().await;
    // It goes on, and is told so that no message is to blame.
    for holder in &holders {
        let error = holder.execute_unprepared("SELECT 1").await.expect_err("it has been ended");
        assert_eq!(DbFault::of(&error), DbFault::Unavailable, "{error}");
    }
    ground.one_each(["held-0".to_owned(), "held-1".to_owned()]).await;
}

/// Asks the server for the bounds of the transaction that it is given.
#[derive(Clone, Default)]
struct AsksForBounds(Arc<Mutex<Vec<String>>>);

#[async_trait]
impl MessageHandler for AsksForBounds {
    async fn handle(
        &self,
        context: &Context<'_>,
        _: &[ReceivedMessage],
    ) -> Result<(), HandlerError> {
        let mut bounds = Vec::new();
        for setting in ["idle_in_transaction_session_timeout", "lock_timeout"] {
            let ask = format!("SHOW {setting}");
            let ask = Statement::from_string(DbBackend::Postgres, ask);
            let row = context.transaction().query_one_raw(ask).await?;
            bounds.push(row.expect("one row").try_get_by_index(0)?);
        }
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = bounds;
        Ok(())
    }
}

/// By which the case before ends its holders: a consumer sets it itself, whatever its pool says.
pub(crate) async fn c36_an_attempt_says_how_long_it_may_be_silent(env: Env) {
    let ground = Ground::new(env).await;
    // With the 5 s of `docs/guarantees.md`.
    let expected = ["12s", "3500ms"];
    let config = ConsumerConfig { attempt_deadline: Duration::from_secs(7), ..ground.config() };
    let asks = AsksForBounds::default();
    let consumer = Consumer::builder(config).subscribe(&ground.topic, asks.clone());
    let consumer = consumer.build().expect("the settings are valid");
    let shutdown = CancellationToken::new();
    let task = tokio::spawn(consumer.run(shutdown.clone()));
    ground.send("k", "asks").await;
    until(PATIENCE, "the server's answer", async || {
        let bounds = asks.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if bounds == expected { Ok(()) } else { Err(format!("{bounds:?}")) }
    })
    .await;
    shutdown.cancel();
    task.await.expect("no panic").expect("it consumes");
}

/// A retry that becomes due while another one takes long is not made to wait for it.
pub(crate) async fn consuming_a_slow_retry_holds_up_no_later_one(env: Env) {
    const LONG: Duration = PATIENCE;
    let ground = Ground::new(env).await;
    let (slow, quick) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let handler = Effects::by(move |payload| {
        let calls = if payload == "slow" { &slow } else { &quick };
        match (calls.fetch_add(1, Ordering::AcqRel), payload) {
            (0, _) => Rule::Fail,
            (_, "slow") => Rule::Slow(LONG),
            _ => Rule::Apply,
        }
    });
    let config = ConsumerConfig {
        quick_attempts: 1,
        retry: RetryLevels::new([Duration::from_millis(100)]),
        attempt_deadline: 2 * LONG,
        ..ground.config()
    };
    let running = ground.start(config, &handler);
    ground.send("a", "slow").await;
    until(PATIENCE, "the slow retry begins", async || match handler.times("slow").len() {
        2 => Ok(()),
        calls => Err(format!("{calls} calls")),
    })
    .await;
    ground.send("b", "quick").await;
    assert_eq!(ground.sees_within(1, LONG / 2).await, ["quick"]);
    running.tear_off().await;
}

/// Without a group, too.
pub(crate) async fn consuming_all_takes_partitions_that_are_added(env: Env) {
    let ground = Ground::new(env).await;
    let config = ConsumerConfig {
        assignment: Assignment::All,
        partition_interval: Duration::from_millis(100),
        ..ground.config()
    };
    let running = ground.start(config.clone(), &Effects::all());
    ground.send("k", "before").await;
    ground.sees(1).await;
    ground.env.broker.add_partitions(&ground.topic, 3 * PARTITIONS).await;
    let messages = |round: usize| (0..40).map(move |n| (format!("k{n}"), format!("{round}-{n}")));
    let (mut sent, mut rounds) = (vec!["before".to_owned()], 0_usize..);
    // The producer learns of them by itself.
    let went_to_a_new_one = async || {
        let round = rounds.next().expect("there is no end of them");
        sent.extend(messages(round).map(|(_, payload)| payload));
        match ground.send_all(messages(round)).await {
            highest if highest < PARTITIONS => Err(format!("partition {highest}")),
            _ => Ok(()),
        }
    };
    until(PATIENCE, "a new partition", went_to_a_new_one).await;
    ground.sees(sent.len()).await;
    running.stop().await;
    // Their offsets were committed.
    let running = ground.start(config, &Effects::all());
    ground.send("k", "after").await;
    ground.sees(sent.len() + 1).await;
    assert_eq!(running.metrics.duplicates(), 0);
    running.stop().await;
    ground.one_each(sent.into_iter().chain(["after".to_owned()])).await;
}

/// Notes which partitions it works on at the same time.
#[derive(Clone, Default)]
struct ByPartition {
    inside: Arc<Mutex<BTreeSet<i32>>>,
    most: Arc<AtomicUsize>,
}

impl ByPartition {
    fn enter(&self, partitions: &BTreeSet<i32>) {
        let mut inside = self.inside.lock().unwrap_or_else(PoisonError::into_inner);
        for partition in partitions {
            assert!(inside.insert(*partition), "partition {partition} twice at once");
        }
        self.most.fetch_max(inside.len(), Ordering::AcqRel);
    }

    fn leave(&self, partitions: &BTreeSet<i32>) {
        let mut inside = self.inside.lock().unwrap_or_else(PoisonError::into_inner);
        inside.retain(|partition| !partitions.contains(partition));
    }
}

#[async_trait]
impl MessageHandler for ByPartition {
    async fn handle(
        &self,
        context: &Context<'_>,
        batch: &[ReceivedMessage],
    ) -> Result<(), HandlerError> {
        let partitions: BTreeSet<i32> = batch.iter().map(|message| message.partition).collect();
        self.enter(&partitions);
        tokio::time::sleep(Duration::from_millis(20)).await;
        for ReceivedMessage { partition, offset, .. } in batch {
            let payload = format!("{partition}-{offset:06}");
            let mut insert = Query::insert();
            insert.into_table("effect").columns(["payload"]).values_panic([payload.into()]);
            context.transaction().execute(&insert).await?;
        }
        self.leave(&partitions);
        Ok(())
    }
}

/// Partitions at once, each of them in its order whatever the keys are.
pub(crate) async fn consuming_partitions_run_at_once_and_keep_their_order(env: Env) {
    const MESSAGES: usize = 400;
    let ground = Ground::new(env).await;
    ground.send_all((0..MESSAGES).map(|n| (format!("k{n}"), format!("m{n}")))).await;
    let config = ConsumerConfig {
        spread: Spread::ByPartition,
        concurrency: PARTITIONS as usize,
        max_batch: 40,
        ..ground.config()
    };
    let handler = ByPartition::default();
    let builder = Consumer::builder(config).subscribe(&ground.topic, handler.clone());
    let (shutdown, consumer) = (CancellationToken::new(), builder.build().expect("valid"));
    let metrics = consumer.metrics();
    let running = tokio::spawn(consumer.run(shutdown.clone()));
    let effects = ground.sees(MESSAGES).await;
    shutdown.cancel();
    running.await.expect("no panic").expect("it consumes");
    for partition in 0..PARTITIONS {
        let begins = format!("{partition}-");
        let of_one: Vec<_> = effects.iter().filter(|one| one.starts_with(&begins)).collect();
        assert!(!of_one.is_empty() && of_one.is_sorted(), "{of_one:?}");
    }
    let distinct: BTreeSet<_> = effects.iter().collect();
    assert_eq!((effects.len(), distinct.len(), metrics.failures()), (MESSAGES, MESSAGES, 0));
    let most = handler.most.load(Ordering::Acquire);
    assert!(most > 1, "one partition after the other");
}

/// What a Kafka transaction took back is never handled, and what lies behind it is; the offsets pass
/// both and the marks of their ends.
pub(crate) async fn consuming_sees_nothing_of_an_aborted_transaction(env: Env) {
    let ground = Ground::new(env).await;
    let config = ConsumerConfig { kafka: ground.kafka_of_one(), ..ground.config() };
    let running = ground.start(config.clone(), &Effects::all());
    let mut client = ground.env.kafka().producer();
    client.set("transactional.id", ground.env.named("writer"));
    let topic = ground.topic.clone();
    let written = tokio::task::spawn_blocking(move || {
        let producer: ThreadedProducer<DefaultProducerContext> =
            client.create().expect("a producer");
        producer.init_transactions(PATIENCE).expect("the coordinator");
        for (round, commits) in [false, true, false, true, false].into_iter().enumerate() {
            producer.begin_transaction().expect("a transaction");
            for n in 0..50 {
                let payload = format!("{}-{round}-{n}", if commits { "good" } else { "bad" });
                let (key, id) = (format!("k{n}"), Uuid::now_v7().to_string());
                let header =
                    Header { key: halfmsg_consumer::TRANSACTION_ID_HEADER, value: Some(&id) };
                let headers = OwnedHeaders::new().insert(header);
                let record = BaseRecord::to(&topic).key(&key).payload(&payload).headers(headers);
                producer.send(record).map_err(|(error, _)| error).expect("there is room");
            }
            producer.flush(PATIENCE).expect("the records are in the log");
            if commits {
                producer.commit_transaction(PATIENCE).expect("it is committed");
            } else {
                producer.abort_transaction(PATIENCE).expect("it is taken back");
            }
        }
    });
    written.await.expect("it is written");
    // Behind the last one that was taken back, in every partition that it was in.
    ground.send_all((0..50).map(|n| (format!("k{n}"), format!("last-{n}")))).await;
    ground.sees(150).await;
    running.stop().await;
    let running = ground.start(config, &Effects::all());
    ground.send("k", "marker").await;
    ground.sees(151).await;
    assert_eq!(running.metrics.duplicates(), 0, "the offsets were committed");
    running.stop().await;
    let good =
        [1, 3].into_iter().flat_map(|round| (0..50).map(move |n| format!("good-{round}-{n}")));
    let last = (0..50).map(|n| format!("last-{n}"));
    ground.one_each(good.chain(last).chain(["marker".to_owned()])).await;
}

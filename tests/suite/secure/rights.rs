//! What is needed of access control lists, and what is said when a part of it is missing.

use std::time::Duration;

use halfmsg_kafka::KafkaConfig;
use halfmsg_producer::{HalfFilter, Message};
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, BaseRecord, FutureProducer, FutureRecord, Producer};
use rdkafka::{Offset, TopicPartitionList};

use super::super::bounds::bounds;
use super::super::env::{PARTITIONS, SOON_GIVEN_UP};
use super::super::metrics::metric;
use super::super::setup::answered;
use super::super::told::{Do, PURPOSE};
use super::super::{Env, PATIENCE, until};
use super::acls::Right;
use super::ground::Ground;

/// One call to Kafka.
const DEADLINE: Duration = Duration::from_secs(60);

/// Every right but this.
pub(crate) fn without(rights: &[Right], missing: &Right) -> Vec<Right> {
    rights.iter().filter(|right| *right != missing).cloned().collect()
}

/// Used by trimming, which has a case of its own.
fn is_for_trimming(right: &Right) -> bool {
    right.operation == "Delete"
}

/// One after the other is missing: the start, the health or the first message says which.
pub(crate) async fn secure_each_missing_right_of_the_producer_is_told(env: Env) {
    let mut ground = Ground::new(env).await;
    ground.env.broker.create_topic(&ground.target, PARTITIONS, &[]).await;
    // So long a topic that nothing is told of is looked for.
    ground.group.prepare_deadline = SOON_GIVEN_UP;
    let count = ground.producer_rights().len();
    for number in 0..count {
        ground.group.group = ground.env.named(&format!("group-{number}"));
        let rights = ground.producer_rights();
        let missing = &rights[number];
        if is_for_trimming(missing) {
            continue;
        }
        ground.only("alice", without(&rights, missing)).await;
        let expected = match (missing.resource.as_str(), missing.name == ground.target) {
            ("group", _) => "grant Read on the topic and on the consumer group".to_owned(),
            ("transactional-id", _) => "Transactional Id authorization failed".to_owned(),
            // Write implies Describe, which is looked for first.
            (_, true) => format!("no right to Describe topic '{}'", ground.target),
            (_, false) => format!("no right to {} topic '{}", missing.operation, missing.name),
        };
        // Another time if the broker stood still, which is all that is told then.
        until(PATIENCE, &format!("a complaint without {missing:?}"), async || {
            let told = producer_complaint(&ground).await;
            if told.contains(&expected) { Ok(()) } else { Err(told) }
        })
        .await;
    }
}

async fn producer_complaint(ground: &Ground) -> String {
    let producer = match ground.producer(ground.plain("alice")).await {
        Ok(producer) => producer,
        Err(error) => return error.to_string(),
    };
    let health =
        until(PATIENCE, "the producer to be ready, or to complain", async || {
            match producer.health() {
                Err(text) if text.contains("grant") || text.contains("cannot") => Ok(Err(text)),
                Err(text) => Err(text),
                Ok(()) => Ok(Ok(())),
            }
        });
    let told = match health.await {
        Err(text) => text,
        Ok(()) => {
            let message = Message::new(&ground.target, "refused");
            let sent = producer.send_in_transaction(PURPOSE, message, Do::Commit).await;
            sent.map_or_else(|error| error.to_string(), |_| "nothing was missing".to_owned())
        }
    };
    producer.shutdown().await;
    told
}

/// A target that may be described and not written to: its message is parked, the others of the
/// partition are delivered; bodies that memory has no room for are read with the same rights.
pub(crate) async fn secure_a_target_without_write_is_parked_and_holds_nothing_up(env: Env) {
    let mut ground = Ground::new(env).await;
    ground.group.store_partitions = 1;
    ground.group.body_budget_bytes = 1;
    let closed = ground.env.named("closed");
    for topic in [&ground.target, &closed] {
        ground.env.broker.create_topic(topic, PARTITIONS, &[]).await;
    }
    let mut rights = ground.producer_rights();
    let mut describe: Vec<Right> =
        rights.iter().filter(|right| right.name == ground.target).cloned().collect();
    for right in &mut describe {
        (right.name, right.operation) = (closed.clone(), "Describe".into());
    }
    assert!(!describe.is_empty(), "{rights:?}");
    rights.extend(describe);
    ground.only("alice", rights).await;
    let producer = ground.producer(ground.plain("alice")).await.expect("it has its rights");
    let begin = async |topic: &str, number: usize| {
        let message = Message::new(topic, format!("message {number}"));
        producer.begin(PURPOSE, message).await.expect("it is stored")
    };
    until(PATIENCE, "the producer to be ready", async || producer.health()).await;
    let begun =
        [begin(&ground.target, 0).await, begin(&closed, 1).await, begin(&ground.target, 2).await];
    let refused = begun[1].receipt().transaction_id;
    for transaction in &begun {
        transaction.commit().await.expect("it is stored");
    }
    until(PATIENCE, "the refused one to be parked, the others delivered", async || {
        let filter = HalfFilter { limit: 10, ..HalfFilter::default() };
        let listed = producer.admin().list(filter).await.map_err(|error| error.to_string())?;
        match &listed.items[..] {
            [one] if one.state == "parked" && one.transaction_id == refused.to_string() => Ok(()),
            other => Err(format!("{other:#?}")),
        }
    })
    .await;
    let shown = answered(async || producer.admin().get(refused).await).await;
    let shown = shown.expect("Kafka answers").expect("it is known");
    assert_eq!(shown.payload.as_deref(), Some("message 1"), "{shown:#?}");
    producer.shutdown().await;
}

/// One after the other is missing: the consumer ends, or is not ready, and says which.
pub(crate) async fn secure_each_missing_right_of_the_consumer_is_told(env: Env) {
    let ground = Ground::new(env).await;
    let rights = ground.consumer_rights();
    // Without Create first: the topic must not be there yet.
    let is_create = |right: &&Right| right.operation == "Create";
    let (create, others): (Vec<_>, Vec<_>) = rights.iter().partition(is_create);
    for (number, missing) in create.into_iter().chain(others).enumerate() {
        if number == 1 {
            ground.env.broker.create_topic(&ground.target, PARTITIONS, &[]).await;
        }
        ground.only("bob", without(&rights, missing)).await;
        let expected = match (missing.resource.as_str(), missing.operation.as_str()) {
            ("group", _) => "GroupAuthorizationFailed".to_owned(),
            // DescribeConfigs and Create do not imply Describe: it is missing with Read.
            (_, "Read") => format!("no right to Describe topic '{}'", ground.target),
            (_, operation) => format!("no right to {operation} topic '{}'", ground.target),
        };
        let told = ground.consumer(ground.plain("bob")).await.complaint(&expected).await;
        assert!(told.contains(&expected), "without {missing:?}: {told}");
    }
}

/// Read is taken from a consumer that runs, and given back: it tells the one, finds out about the other
/// although no message comes, and goes on.
pub(crate) async fn secure_a_right_that_is_given_back_makes_ready_again(env: Env) {
    let ground = Ground::new(env).await;
    ground.env.broker.create_topic(&ground.target, PARTITIONS, &[]).await;
    let rights = ground.consumer_rights();
    ground.only("bob", rights.clone()).await;
    let running = ground.consumer(ground.plain("bob")).await;
    running.ready().await;
    let mut less = rights.clone();
    let is_read = |right: &&mut Right| right.resource == "topic" && right.operation == "Read";
    // Seen all the same: else the group would go on without the topic.
    less.iter_mut().find(is_read).expect("it is listed").operation = "Describe".into();
    ground.only("bob", less).await;
    until(PATIENCE, "it to be denied", async || match running.health.check() {
        Err(text) if text.contains("uthorization") => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    ground.only("bob", rights).await;
    running.ready().await;
    let producer: FutureProducer = ground.env.kafka().producer().create().expect("a producer");
    let record = FutureRecord::<(), str>::to(&ground.target).payload("behind");
    producer.send(record, PATIENCE).await.expect("it is acknowledged");
    running.sees("behind").await;
    running.stop().await;
}

/// A delivery and progress in one Kafka transaction; and DeleteRecords, by which the store is
/// trimmed. Each with all rights, then without its own.
pub(crate) async fn secure_transactions_and_trimming_need_the_documented_rights(env: Env) {
    let ground = Ground::new(env).await;
    ground.env.broker.create_topic(&ground.target, PARTITIONS, &[]).await;
    ground.env.broker.create_topic(&ground.group.store_topic(), PARTITIONS, &[]).await;
    let rights = ground.producer_rights();
    let the = |is_it: fn(&&Right) -> bool| rights.iter().find(is_it).expect("it is listed");
    ground.only("alice", rights.clone()).await;
    deliver(&ground).await.expect("the documented rights are enough");
    trim(&ground).await.expect("the documented rights are enough");

    let of_transactions = the(|right| right.resource == "transactional-id");
    ground.only("alice", without(&rights, of_transactions)).await;
    let denied = deliver(&ground).await.expect_err("it has no right to the transactional id");
    let code = RDKafkaErrorCode::TransactionalIdAuthorizationFailed;
    assert_eq!(denied.rdkafka_error_code(), Some(code), "{denied}");

    let delete = the(|right| right.operation == "Delete");
    ground.only("alice", without(&rights, delete)).await;
    let denied = trim(&ground).await.expect_err("it may not delete");
    assert_eq!(denied.rdkafka_error_code(), Some(RDKafkaErrorCode::TopicAuthorizationFailed));
}

/// The mark below which nothing is needed has moved for the last time by then.
pub(crate) async fn secure_a_refused_trim_is_made_once_it_may_be(env: Env) {
    const REFUSALS: u64 = 10;
    let mut ground = Ground::new(env).await;
    ground.group.kafka = ground.plain("alice");
    ground.group.trim_interval = Some(Duration::from_millis(100));
    ground.env.broker.create_topic(&ground.target, PARTITIONS, &[]).await;
    let rights = ground.producer_rights();
    let delete = rights.iter().find(|right| is_for_trimming(right)).expect("it is listed");
    ground.only("alice", without(&rights, delete)).await;
    let producer = ground.producer(ground.plain("alice")).await.expect("it needs no other right");
    until(PATIENCE, "the producer to be ready", async || producer.health()).await;
    let message = Message::new(&ground.target, "kept");
    producer.send_in_transaction(PURPOSE, message, Do::Commit).await.expect("it is stored");
    until(PATIENCE, "it to be refused again and again", async || {
        match metric(&producer, "halfmsg_trim_failures_total") {
            REFUSALS.. => Ok(()),
            count => Err(format!("{count} times")),
        }
    })
    .await;
    let begins = until(PATIENCE, "the log's bounds", async || bounds(&ground.group).await).await;
    assert!(begins.iter().all(|(start, _)| *start == 0), "{begins:?}");
    ground.only("alice", rights).await;
    until(PATIENCE, "what was carried out to be deleted", async || {
        let bounds = bounds(&ground.group).await?;
        let is_trimmed = bounds.iter().all(|(start, end)| start == end);
        let is_used = bounds.iter().any(|(_, end)| *end > 0);
        if is_trimmed && is_used { Ok(()) } else { Err(format!("{bounds:?}")) }
    })
    .await;
    producer.shutdown().await;
}

async fn trim(ground: &Ground) -> Result<(), KafkaError> {
    let admin: AdminClient<DefaultClientContext> = ground.plain("alice").admin().create()?;
    let mut below = TopicPartitionList::new();
    below.add_partition_offset(&ground.group.store_topic(), 0, Offset::Offset(0))?;
    let options = AdminOptions::new().request_timeout(Some(DEADLINE));
    let trimmed = admin.delete_records(&below, &options).await?;
    trimmed.elements()[0].error()
}

async fn deliver(ground: &Ground) -> Result<(), KafkaError> {
    let (kafka, store) = (ground.plain("alice"), ground.group.store_topic());
    let target = ground.target.clone();
    let run = tokio::task::spawn_blocking(move || transaction(&kafka, &store, &target));
    run.await.expect("no panic")
}

fn transaction(kafka: &KafkaConfig, store: &str, target: &str) -> Result<(), KafkaError> {
    let consumer: BaseConsumer = kafka.consumer(store).create()?;
    consumer.subscribe(&[store])?;
    let mut client = kafka.producer();
    let producer: BaseProducer = client.set("transactional.id", format!("{store}-0")).create()?;
    producer.init_transactions(DEADLINE)?;
    producer.begin_transaction()?;
    let record = BaseRecord::<(), str>::to(target).payload("delivered");
    producer.send(record).map_err(|(error, _)| error)?;
    producer.flush(DEADLINE)?;
    let mut progress = TopicPartitionList::new();
    progress.add_partition_offset(store, 0, Offset::Offset(1))?;
    let group = consumer.group_metadata().expect("a consumer of a group");
    producer.send_offsets_to_transaction(&progress, &group, DEADLINE)?;
    producer.commit_transaction(DEADLINE)
}

//! The rights of flow B, one after the other missing.

use std::collections::BTreeSet;

use halfmsg_producer::{HalfFilter, Message};
use rdkafka::producer::{FutureProducer, FutureRecord};

use super::super::env::PARTITIONS;
use super::super::told::PURPOSE;
use super::super::{Env, PATIENCE, until};
use super::acls::Right;
use super::ground::{Ground, Seen};
use super::rights::without;

/// stock-svc's consumer of orders: each right of its rows is told where it is missing, and all of
/// them are enough.
pub(crate) async fn secure_each_missing_right_of_stock_svc_in_flow_b_is_told(env: Env) {
    let ground = Ground::new(env).await;
    let group = ground.env.named("stock");
    let rights = ground.documented("stock-svc, flow B", &group);
    let subscriber = format!("{group}.deductions");
    let consumer = async || {
        let seen = Seen::answering(ground.outbound());
        let kafka = ground.plain("bob");
        ground.consumer_of(kafka, &subscriber, &ground.created(), seen).await
    };
    ground.env.broker.create_topic(&ground.outbound(), PARTITIONS, &[]).await;
    let (answers, others): (Vec<_>, Vec<_>) =
        rights.iter().partition(|right| right.name == ground.outbound());
    let mut made = BTreeSet::new();
    for missing in creates_first(others) {
        if missing.operation != "Create" && made.insert(ground.created()) {
            ground.env.broker.create_topic(&ground.created(), PARTITIONS, &[]).await;
        }
        ground.only("bob", without(&rights, missing)).await;
        let expected = expected_of_consumer(missing);
        let told = consumer().await.complaint(&expected).await;
        assert!(told.contains(&expected), "without {missing:?}: {told}");
    }
    let [write] = answers.as_slice() else { panic!("{answers:?}") };
    ground.only("bob", without(&rights, write)).await;
    let running = consumer().await;
    running.ready().await;
    order(&ground, "first").await;
    running.sees("first").await;
    let cause = running.refused_reply().await;
    assert!(cause.contains("authorization"), "without {write:?}: {cause}");
    running.stop().await;
    ground.only("bob", rights).await;
    let running = consumer().await;
    order(&ground, "second").await;
    running.sees("second").await;
    running.nothing_waits().await;
    running.stop().await;
}

/// order-svc's consumers of answers and of the report, and its messages of flow B.
pub(crate) async fn secure_each_missing_right_of_order_svc_in_flow_b_is_told(env: Env) {
    let ground = Ground::new(env).await;
    let group = ground.group.group.clone();
    let of_b = ground.documented("order-svc, flow B", &group);
    // Together with what it needs anyhow, the group of its consumers among it.
    let mut rights = ground.producer_rights();
    rights.extend(of_b.clone());
    let subscriber = format!("{}.{group}.answers", ground.group.topic_prefix);
    let (writes, reads): (Vec<_>, Vec<_>) =
        of_b.iter().partition(|right| right.operation == "Write");
    let mut made = BTreeSet::new();
    for missing in creates_first(reads) {
        if missing.operation != "Create" && made.insert(missing.name.clone()) {
            ground.env.broker.create_topic(&missing.name, PARTITIONS, &[]).await;
        }
        ground.only("alice", without(&rights, missing)).await;
        // Write on the same topic implies Describe: then reading itself is refused.
        let describes =
            rights.iter().any(|right| right.name == missing.name && right.operation == "Write");
        let expected = match missing.operation.as_str() {
            "Read" if describes => "uthorization".to_owned(),
            _ => expected_of_consumer(missing),
        };
        let kafka = ground.plain("alice");
        let seen = Seen::default();
        let consumer = ground.consumer_of(kafka, &subscriber, &missing.name, seen).await;
        let told = consumer.complaint(&expected).await;
        assert!(told.contains(&expected), "without {missing:?}: {told}");
    }
    let [write] = writes.as_slice() else { panic!("{writes:?}") };
    ground.only("alice", without(&rights, write)).await;
    parks(&ground).await;
}

/// Without Write on the topic of created orders, a committed one is parked.
async fn parks(ground: &Ground) {
    let producer = ground.producer(ground.plain("alice")).await.expect("it may start");
    until(PATIENCE, "the producer to be ready", async || producer.health()).await;
    let message = Message::new(ground.created(), "an order");
    let transaction = producer.begin(PURPOSE, message).await.expect("it is stored");
    let id = transaction.receipt().transaction_id.to_string();
    transaction.commit().await.expect("it is stored");
    until(PATIENCE, "it to be parked", async || {
        let filter = HalfFilter { limit: 10, ..HalfFilter::default() };
        let listed = producer.admin().list(filter).await.map_err(|error| error.to_string())?;
        match &listed.items[..] {
            [one] if one.state == "parked" && one.transaction_id == id => Ok(()),
            other => Err(format!("{other:#?}")),
        }
    })
    .await;
    producer.shutdown().await;
}

/// Without Create first: the topics must not be there yet.
fn creates_first(rights: Vec<&Right>) -> impl Iterator<Item = &Right> {
    let (create, others): (Vec<_>, Vec<_>) =
        rights.into_iter().partition(|right| right.operation == "Create");
    create.into_iter().chain(others)
}

fn expected_of_consumer(missing: &Right) -> String {
    match (missing.resource.as_str(), missing.operation.as_str()) {
        ("group", _) => "GroupAuthorizationFailed".to_owned(),
        // DescribeConfigs and Create do not imply Describe: it is missing with Read.
        (_, "Read") => format!("no right to Describe topic '{}'", missing.name),
        (_, operation) => format!("no right to {operation} topic '{}'", missing.name),
    }
}

/// An order that waits for its stock, by somebody who may do everything.
async fn order(ground: &Ground, text: &str) {
    let producer: FutureProducer = ground.env.kafka().producer().create().expect("a producer");
    let topic = ground.created();
    let record = FutureRecord::<(), str>::to(&topic).payload(text);
    producer.send(record, PATIENCE).await.expect("it is acknowledged");
}

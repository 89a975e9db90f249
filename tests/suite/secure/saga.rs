//! The rights of flow B, one after the other missing.

use std::collections::BTreeSet;

use halfmsg_consumer::{ConsumerConfig, ConsumerFamilies};
use halfmsg_migrations::{OrderMigrator, migrate};
use halfmsg_producer::{HalfFilter, Message};
use halfmsg_service_kit::Letters;
use order_svc::metrics::OrderMetrics;
use order_svc::place::Topics;
use order_svc::report::Reporter;
use order_svc::report::store::ReportStore;
use order_svc::report::trouble::Trouble;
use rdkafka::producer::{FutureProducer, FutureRecord};
use tokio_util::sync::CancellationToken;

use super::super::database::{Database, Kind, patient};
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
    // As it is documented: the log and the metrics tell it.
    running.ready().await;
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
    let names = format!("{}.{group}", ground.group.topic_prefix);
    let (writes, reads): (Vec<_>, Vec<_>) =
        of_b.iter().partition(|right| right.operation == "Write");
    // The topics are made by the report, as far as it may.
    for missing in creates_first(reads) {
        ground.only("alice", without(&rights, missing)).await;
        // Write on the same topic implies Describe: then reading itself is refused.
        let describes =
            rights.iter().any(|right| right.name == missing.name && right.operation == "Write");
        let expected = match missing.operation.as_str() {
            "Read" if describes => "uthorization".to_owned(),
            _ => expected_of_consumer(missing),
        };
        warns(&ground, &format!("{names}.report"), &expected, missing).await;
        // The only topic that order-svc reads besides.
        if missing.name == ground.outbound() {
            let (kafka, subscriber) = (ground.plain("alice"), format!("{names}.answers"));
            let answers =
                ground.consumer_of(kafka, &subscriber, &missing.name, Seen::default()).await;
            let told = answers.complaint(&expected).await;
            assert!(told.contains(&expected), "without {missing:?}: {told}");
        }
    }
    let [write] = writes.as_slice() else { panic!("{writes:?}") };
    ground.only("alice", without(&rights, write)).await;
    parks(&ground).await;
}

/// The report, with order-svc's own wiring: the service is ready, and warns.
async fn warns(ground: &Ground, subscriber: &str, expected: &str, missing: &Right) {
    let database = Database::new(Kind::Sqlite).await;
    let connection = database.connect(&patient()).await;
    migrate::<OrderMigrator>(&connection).await.expect("an empty database");
    let trouble = Trouble::default();
    let reporter = Reporter {
        consumer: ConsumerConfig::new(ground.plain("alice"), connection.clone(), subscriber),
        families: ConsumerFamilies::default(),
        topics: Topics {
            rollback: ground.target.clone(),
            created: ground.created(),
            outbound: ground.outbound(),
        },
        store: ReportStore::new(connection),
        metrics: OrderMetrics::default(),
        letters: Letters::default(),
        trouble: trouble.clone(),
    };
    let stop = CancellationToken::new();
    let running = tokio::spawn(reporter.run(stop.clone()));
    until(PATIENCE, &format!("a warning without {missing:?}"), async || {
        let warnings = trouble.warnings();
        let is_told = warnings.iter().any(|told| told.contains(expected));
        if is_told { Ok(()) } else { Err(format!("{warnings:?}, not {expected}")) }
    })
    .await;
    stop.cancel();
    running.await.expect("no panic");
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

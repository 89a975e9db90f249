//! At start, on real Kafka: a topic that cannot keep what is promised is refused, with the command
//! that changes it; one that keeps less than the cluster could is warned of. (A broker alone has no more than
//! one replica to offer.)

use std::time::Duration;

use halfmsg_kafka::{TopicError, TopicSpec, TopicStatus, ensure_topic};
use halfmsg_producer::{ProducerConfig, StartError, TransactionProducer};

use super::env::{PARTITIONS, logged};
use super::told::{Do, PURPOSE, Told};
use super::{Env, PATIENCE, until};

/// One look at a topic.
const DEADLINE: Duration = Duration::from_secs(60);

async fn refusal(config: ProducerConfig) -> TopicError {
    let builder = TransactionProducer::builder(config);
    match builder.listener(PURPOSE, Told::otherwise(Do::Commit)).start().await {
        Err(StartError::Topic(error)) => error,
        Err(error) => panic!("{error:?}"),
        Ok(_) => panic!("it started"),
    }
}

/// More replicas in sync than there are, fewer of either than configured, and records that are too
/// small.
pub(crate) async fn topics_that_cannot_keep_the_promise_are_refused(env: Env) {
    const SETTINGS: [(&str, &str); 5] = [
        ("retention.ms", "-1"),
        ("retention.bytes", "-1"),
        ("message.timestamp.type", "LogAppendTime"),
        ("unclean.leader.election.enable", "false"),
        ("max.message.bytes", "2000000"),
    ];
    let mut config = env.group().await;
    let mut made = 0;
    let mut another = async |own: &[(&str, &str)]| {
        made += 1;
        config.group = env.named(&format!("group-{made}"));
        env.broker.expect_group(&config).await;
        let settings: Vec<_> = SETTINGS.iter().chain(own).copied().collect();
        env.broker.create_topic(&config.store_topic(), PARTITIONS, &settings).await;
        config.clone()
    };

    let unwritable = refusal(another(&[("min.insync.replicas", "2")]).await).await;
    assert!(matches!(unwritable, TopicError::Unwritable { min_in_sync: 2, replicas: 1, .. }));
    assert!(unwritable.to_string().contains("--add-config min.insync.replicas=1"), "{unwritable}");

    let one = another(&[]).await;
    let few = refusal(ProducerConfig { replication_factor: 3, ..one.clone() }).await;
    assert!(matches!(few, TopicError::TooFewReplicas { found: 1, needed: 3, .. }), "{few}");
    let few = refusal(ProducerConfig { min_insync_replicas: 2, ..one }).await.to_string();
    assert!(few.contains("has min.insync.replicas=1") && few.contains("kafka-configs.sh"), "{few}");

    // A later setting of the same name counts.
    let small = refusal(another(&[("max.message.bytes", "1000000")]).await).await.to_string();
    let needed = "--add-config max.message.bytes=1065536";
    assert!(small.contains("max.message.bytes=1000000") && small.contains(needed), "{small}");
}

/// What is configured is what a new topic gets; what the cluster does not have is refused.
pub(crate) async fn topics_are_created_with_the_configured_replicas(env: Env) {
    let spec = |what: &str, replication_factor, min_insync_replicas| TopicSpec {
        name: env.named(what),
        partitions: 1,
        replication_factor,
        min_insync_replicas,
        settings: Default::default(),
        required: Vec::new(),
        at_least: Vec::new(),
        advised: Vec::new(),
    };
    let ensure = async |spec: &TopicSpec| ensure_topic(&env.kafka(), spec, DEADLINE).await;
    let one = spec("one", 1, 1);
    env.broker.expect_topic(&one.name).await;
    assert_eq!(ensure(&one).await.expect("it can be made"), TopicStatus::Created);
    assert_eq!(ensure(&one).await.expect("it is as it must be"), TopicStatus::Verified);
    let three = ensure(&spec("three", 3, 2)).await;
    assert!(matches!(three, Err(TopicError::Refused { .. })), "{three:?}");
    // Made with the broker's default factor, it is found to be unwritable.
    let two = spec("two", -1, 2);
    env.broker.expect_topic(&two.name).await;
    let unwritable = ensure(&two).await;
    assert!(matches!(unwritable, Err(TopicError::Unwritable { .. })), "{unwritable:?}");
}

/// A start on a cluster of three brokers says which topics have one replica, and what to do about it; on one
/// broker alone there is nothing better to be had, and nothing is said.
pub(crate) async fn topics_with_too_few_replicas_are_warned_of(env: Env) {
    let env = env.with_own_broker().await;
    let config = env.group().await;
    let told = Told::otherwise(Do::Rollback);
    let topics = [config.store_topic(), config.parked_topic()];
    Env::start(&config, &told).await.shutdown().await;
    for topic in &topics {
        assert_eq!(logged(&[topic, "has "]), Vec::<String>::new());
    }
    let _others = [env.broker.join().await, env.broker.join().await];
    until(PATIENCE, "a start that warns", async || {
        Env::start(&config, &told).await.shutdown().await;
        for topic in &topics {
            let named = format!("topic '{topic}' has");
            let factor = logged(&[&format!("{named} replication factor 1:"), "of 3 brokers"]);
            let in_sync = logged(&[&format!("{named} min.insync.replicas=1:")]);
            // The brokers may not know of each other at once.
            let ([factor, ..], [in_sync, ..]) = (&factor[..], &in_sync[..]) else {
                return Err(format!("{factor:?}, {in_sync:?}"));
            };
            assert!(factor.contains("WARN") && factor.contains("kafka-reassign-partitions.sh"));
            let command = format!("--topic {topic} --add-config min.insync.replicas=2");
            assert!(in_sync.contains("WARN") && in_sync.contains(&command), "{in_sync}");
        }
        Ok(())
    })
    .await;
}

//! What becomes of partitions when the client or a partition fails, on a broker in this process.

use std::collections::{BTreeMap, HashMap};

use halfmsg_kafka::EmbeddedBroker;
use halfmsg_protocol::Event;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

use super::*;
use crate::bodies::Bodies;
use crate::checker::Checker;
use crate::config::ProducerConfig;
use crate::life::Life;
use crate::log::StoreLog;
use crate::parked::ParkedPartition;
use crate::resolver::emitter::Emitter;
use crate::resolver::takeover::Found;
use crate::resolver::{Parts, TICK};
use crate::shared::Shared;
use crate::stored::Place;
use crate::targets::Targets;

const DEADLINE: Duration = Duration::from_secs(120);

/// A resolver that the test turns by hand, of a store with so many partitions.
fn resolver(broker: &EmbeddedBroker, config: ProducerConfig, partitions: i32) -> Resolver {
    for topic in [config.store_topic(), config.parked_topic()] {
        broker.create_topic(&topic, partitions).expect("a topic");
    }
    let log = StoreLog::new(&config.kafka, config.store_topic(), DEADLINE, 1_000_000);
    let log = Arc::new(log.expect("a client"));
    let (to_self, inputs) = mpsc::channel();
    let (application, deadline) = (config.application.clone(), config.check_deadline);
    let parts = Parts {
        targets: Arc::new(Targets::new(Arc::clone(&log))),
        bodies: Arc::new(Bodies::new(&config)),
        checker: Arc::new(Checker::new(application, HashMap::new(), deadline, 1)),
        shared: Arc::new(Shared::new(partitions)),
        metrics: Default::default(),
        life: Life::new(None),
        runtime: tokio::runtime::Handle::current(),
        log,
        inputs,
        to_self,
        partitions,
        config,
    };
    Resolver::new(parts).expect("a client")
}

fn config(broker: &EmbeddedBroker) -> ProducerConfig {
    ProducerConfig::new(broker.config(), "tests", "group")
}

/// The broker says only once that another process has the instance id, and nobody listens.
#[tokio::test]
async fn a_fatal_error_that_a_drain_passed_over_is_found() {
    let broker = EmbeddedBroker::start().expect("a loopback port");
    let mut config = config(&broker);
    config.assignment = Assignment::Shared;
    config.instance_id = Some("instance".into());
    let mut resolver = resolver(&broker, config, 1);
    let fenced = RDKafkaRespErr::RD_KAFKA_RESP_ERR_FENCED_INSTANCE_ID;
    broker.refuse(RDKafkaApiKey::JoinGroup, &[fenced]).expect("it runs");
    let until = Instant::now() + DEADLINE;
    while resolver.consumer.client().fatal_error().is_none() {
        assert!(Instant::now() < until, "it is refused");
        resolver.pause_all();
        drop(resolver.consumer.poll(POLL));
    }
    // What there is to be told.
    while resolver.consumer.poll(POLL * 10).is_some() {}
    resolver.tick();
    assert!(!resolver.is_renewed);
    let health = resolver.shared.health();
    assert!(health.as_ref().is_err_and(|why| why.contains("instance id instance")), "{health:?}");
    drop(resolver.consumer.poll(TICK * 2));
    resolver.tick();
    assert_eq!(resolver.renewals, 1, "once for each consumer");
}

/// What a takeover hands over first goes on at once; the rest joins it, and nothing of a takeover that
/// counts no more does.
#[tokio::test]
async fn what_is_taken_over_later_joins_what_goes_on() {
    let broker = EmbeddedBroker::start().expect("a loopback port");
    let mut resolver = resolver(&broker, config(&broker), 3);
    let found = |partition| {
        let place = Place { start: 0, end: 0, stored: None };
        Found::at(("s", partition), place, ParkedPartition::default(), true)
    };
    let taken = |partition| vec![Taken { found: found(partition), emitter: Emitter::by_hand().0 }];
    resolver.wanted.takes(1, Arc::default());
    resolver.taken(1, taken(2));
    let owned = |resolver: &Resolver| resolver.owned.keys().copied().collect::<Vec<_>>();
    let assigned = |resolver: &Resolver| resolver.consumer.assignment().expect("it knows").count();
    assert_eq!((owned(&resolver), assigned(&resolver)), (vec![2], 1));
    assert!(resolver.wanted.due().is_empty(), "no other takeover meanwhile");
    resolver.taken(1, taken(0));
    assert_eq!((owned(&resolver), assigned(&resolver)), (vec![0, 2], 2));
    let why = Some("no answer".to_owned());
    resolver.taken_over(TakeoverEnd { generation: 1, failed: vec![1], why });
    resolver.publish();
    let health = resolver.shared.health();
    assert!(health.as_ref().is_err_and(|why| why.contains("no answer")), "{health:?}");
    resolver.taken(1, taken(1));
    assert_eq!(owned(&resolver), [0, 2], "it is over");
}

/// Whoever takes a partition over anew must know how far its log was read: one that is shorter is another.
#[tokio::test]
async fn how_far_a_partition_was_read_outlives_its_ownership() {
    let broker = EmbeddedBroker::start().expect("a loopback port");
    let mut resolver = resolver(&broker, config(&broker), 3);
    let found = |partition, stop: bool| {
        let place = Place { start: 0, end: 0, stored: None };
        let mut found = Found::at(("s", partition), place, ParkedPartition::default(), true);
        found.stopped = stop.then(|| "another log".to_owned());
        Taken { found, emitter: Emitter::by_hand().0 }
    };
    resolver.wanted.takes(1, Arc::default());
    resolver.taken(1, vec![found(0, false), found(1, false)]);
    for (partition, position) in [(0, 7), (1, 20)] {
        resolver.step(partition, None, Event::CaughtUp { position });
    }
    resolver.take_over_anew();
    assert!(resolver.owned.is_empty());
    let seen = BTreeMap::from([(0, 7), (1, 20)]);
    assert_eq!(resolver.seen, seen);
    // Of a log that must not be read nothing is taken for read.
    resolver.wanted.takes(2, Arc::default());
    resolver.taken(2, vec![found(1, true)]);
    resolver.assigned(vec![0]);
    resolver.note_seen();
    assert_eq!(resolver.seen, seen);
}

//! How the consumer ends.
#![allow(clippy::unwrap_used)]

use std::net::TcpListener;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use halfmsg_kafka::KafkaConfig;
use sea_orm::Database;
use tokio_util::sync::CancellationToken;

use super::Consumer;
use crate::config::{Assignment, ConsumerConfig};
use crate::handler::{Context, HandlerError, MessageHandler};
use crate::message::ReceivedMessage;
use crate::poller::ASK_DEADLINE;

struct Nothing;

#[async_trait]
impl MessageHandler for Nothing {
    async fn handle(&self, _: &Context<'_>, _: &[ReceivedMessage]) -> Result<(), HandlerError> {
        Ok(())
    }
}

/// One that has yet to hear which partitions there are, of a broker that takes connections and says
/// nothing: it has nothing to leave, and its end waits for no answer.
#[tokio::test(flavor = "multi_thread")]
async fn a_stop_does_not_wait_for_a_broker_that_is_away() {
    let mut took = Vec::new();
    // The machine may stand still once, or twice.
    while took.iter().all(|took| *took >= ASK_DEADLINE / 2) {
        assert!(took.len() < 3, "{took:?}");
        took.push(a_stop_takes().await);
    }
}

/// From the stop to its end, while it asks a broker that says nothing.
async fn a_stop_takes() -> Duration {
    /// As long as it asks, and longer.
    const DRAIN: Duration = Duration::from_secs(60);
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let database = Database::connect("sqlite::memory:").await.unwrap();
    let config = ConsumerConfig {
        assignment: Assignment::All,
        drain_deadline: DRAIN,
        ..ConsumerConfig::new(KafkaConfig::new(address), database, "one")
    };
    let consumer = Consumer::builder(config).subscribe("t", Nothing).build().unwrap();
    let shutdown = CancellationToken::new();
    let topics = ["t".to_owned()];
    let session = consumer.session(&topics, &shutdown);
    tokio::pin!(session);
    // It asks as soon as the broker has somebody at its door.
    let asked = tokio::task::spawn_blocking(move || silent.accept().map(|_| silent).unwrap());
    let silent = tokio::select! {
        silent = asked => silent.unwrap(),
        ended = &mut session => panic!("{ended:?}"),
    };
    let stopped = Instant::now();
    shutdown.cancel();
    session.await.unwrap();
    let took = stopped.elapsed();
    drop(silent);
    took
}
